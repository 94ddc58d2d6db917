"""A bundled family of grade-school word problems; sets.py reads other problems.

The family is a controlled testbed. A problem is a short story of additions and subtractions; its
level is the number of operations. A worked solution draws the style of each step at random: fine
(one operation per step), coarse (two operations at once, so work is skipped) or detour (one
operation in two parts). All styles are correct. What is trained and chosen does not depend on them;
`ways` recognises them for reports.

Every text is a function of the random generator that is passed in. The bundled models were trained
on these texts: changing the order of draws changes all of them.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import itertools
import re

import numpy as np

from gen_ssd.errors import UserError
from gen_ssd.problems import problem as problem_lib

LEVELS = (2, 3, 4, 5, 6)
SPLITS = {"train": (0, 70), "cold_start": (70, 85), "test": (85, 100)}  # percent of the hash range
# There are 80 million different stories of level 2 and more of each other level, so in so many
# problems hardly any draw is a repeat. They take about a minute and half a gigabyte.
MOST = {split: 10_000 * (high - low) for split, (low, high) in SPLITS.items()}
WAYS = {"fine": 0.35, "coarse": 0.45, "detour": 0.2}  # style of a step -> probability

PEOPLE = {
  "Tom": "He",
  "Ann": "She",
  "Ben": "He",
  "Mia": "She",
  "Sam": "He",
  "Eva": "She",
  "Leo": "He",
  "Zoe": "She",
  "Max": "He",
  "Lily": "She",
  "Jack": "He",
  "Nora": "She",
}
THINGS = (
  "apples",
  "cakes",
  "cookies",
  "eggs",
  "grapes",
  "muffins",
  "nuts",
  "pears",
  "pies",
  "plums",
  "rolls",
  "sweets",
)
GAINS = ("buys", "finds", "gets", "makes", "picks", "wins")
LOSSES = ("breaks", "drops", "eats", "loses", "sells", "uses")
LAST = "So \\boxed{{{}}}."
ASKED = re.compile(r"\w+ has (\d+) \w+\. \w+ (.+)\. How many \w+ does \w+ have now\?")
STEP = re.compile(r"\d+((?: [+-] \d+)+) = -?\d+")


@dataclasses.dataclass(frozen=True)
class Story:
  """The content of a bundled problem: a starting number of things and its changes, in order."""

  name: str
  thing: str
  start: int
  changes: tuple[tuple[str, int], ...]  # (verb, signed amount)

  @property
  def total(self) -> int:
    """The answer."""
    return self.start + sum(amount for _, amount in self.changes)

  def text(self) -> str:
    """The problem as it is asked."""
    he = PEOPLE[self.name]
    parts = [f"{verb} {abs(a)}" for verb, a in self.changes]
    changes = ", ".join(parts[:-1]) + f" and {parts[-1]}"
    return (
      f"{self.name} has {self.start} {self.thing}. {he} {changes}. "
      f"How many {self.thing} does {he.lower()} have now?"
    )


def draw_story(rng: np.random.Generator, level: int) -> Story:
  """A story of `level` changes of 2 to 9 whose running total stays between 10 and 99."""
  start = int(rng.integers(10, 90))
  amounts = rng.permutation(np.arange(2, 10))[:level]
  gains, losses = rng.permutation(len(GAINS)), rng.permutation(len(LOSSES))
  total, changes = start, []
  for i, a in enumerate(map(int, amounts)):
    up = total - a < 10 or (total + a <= 99 and rng.random() < 0.5)
    verb = GAINS[gains[i]] if up else LOSSES[losses[i]]
    total += a if up else -a
    changes.append((verb, a if up else -a))
  name = list(PEOPLE)[rng.integers(len(PEOPLE))]
  return Story(name, THINGS[rng.integers(len(THINGS))], start, tuple(changes))


def split_of(text: str) -> str:
  """The split of a bundled problem. It depends on the hash of the text, so splits are disjoint."""
  percentile = int(problem_lib.digest(text)[:8], 16) % 100
  return next(name for name, (low, high) in SPLITS.items() if low <= percentile < high)


def stories(
  split: str, seed: int = 0, levels: Sequence[int] = LEVELS
) -> Iterator[tuple[Story, problem_lib.Problem]]:
  """Stream of MOST[split] problems of one split, without repeats; a function of its arguments.

  Raises ValueError for an unknown split, for levels that are none or not of LEVELS, and for a
  negative seed.
  """
  if split not in SPLITS:
    raise ValueError(f"problems.split is {split!r}: it must be one of {sorted(SPLITS)}")
  if not levels or not {*levels} <= {*LEVELS}:
    raise ValueError(f"levels is {levels}: it must be some of {LEVELS}")
  rng, seen = np.random.default_rng([seed, 7]), set()
  while len(seen) < MOST[split]:
    level = int(levels[rng.integers(len(levels))])
    story = draw_story(rng, level)
    text = story.text()
    if split_of(text) != split or text in seen:
      continue
    seen.add(text)
    uuid = problem_lib.digest(text)[:16]
    yield story, problem_lib.Problem(uuid, "bundled", split, text, str(story.total), level)


def problems(
  split: str, count: int, seed: int = 0, levels: Sequence[int] = LEVELS
) -> list[problem_lib.Problem]:
  """The first `count` problems of `stories`.

  Raises UserError for more than MOST[split], before any is made, and ValueError as `stories` does.
  """
  if count > MOST.get(split, count):
    raise UserError(
      f"{count} bundled problems of the split {split} are asked for: the source has only {MOST[split]}"
    )
  return [p for _, p in itertools.islice(stories(split, seed, levels), count)]


def solution(
  story: Story, rng: np.random.Generator, ways: Mapping[str, float] | None = None
) -> str:
  """A correct worked solution. The style of each step is drawn with the weights `ways`, or WAYS."""
  ways = WAYS if ways is None else ways
  names, weights = list(ways), np.array(list(ways.values()), float)
  steps, total, remaining = [], story.start, [a for _, a in story.changes]
  while remaining:
    way = names[rng.choice(len(names), p=weights / weights.sum())]
    if way == "detour":  # one change in two parts
      first = int(rng.integers(1, abs(remaining[0]))) * (1 if remaining[0] > 0 else -1)
      parts = [[first], [remaining[0] - first]]
      remaining = remaining[1:]
    else:
      size = {"fine": 1, "coarse": 2}[way]
      parts, remaining = [remaining[:size]], remaining[size:]
    for part in parts:
      steps.append(f"{total}{''.join(map(_term, part))} = {total + sum(part)}.")
      total += sum(part)
  return " ".join([*steps, LAST.format(total)])


def _term(amount):
  """A signed amount as a term of a sum: ' + 3' or ' - 3'."""
  return f" {'+' if amount > 0 else '-'} {abs(amount)}"


def ways(problem: str, text: str) -> list[str] | None:
  """The way of each step of a solution, in order: a name of WAYS, or `other`.

  fine is one operation of the problem, coarse is two at once, and detour is one operation in two
  steps, which count as one. `other` is everything else: operations that the problem does not ask for,
  or not any more. Results may be wrong, only the operations count. None if `problem` is not of the
  bundled family.
  """
  if (changes := _changes(problem)) is None:
    return None
  steps, found, done = [_amounts(step) for step in STEP.findall(text)], [], 0
  while steps:
    # Steps may be left out: the first change that is not done and that fits.
    fits = ((i, _way(steps, changes[i:])) for i in range(done, len(changes)))
    done, way = next(((i, way) for i, way in fits if way), (done, "other"))
    found.append(way)
    done += {"other": 0, "coarse": 2}.get(way, 1)
    steps = steps[2 if way == "detour" else 1 :]
  return found


def _changes(problem):
  """The signed amounts of a bundled problem, in order; None for another problem."""
  if not (match := ASKED.fullmatch(problem.strip())):
    return None
  found = []
  for part in match[2].replace(" and ", ", ").split(", "):
    verb, _, amount = part.partition(" ")
    if verb not in (*GAINS, *LOSSES) or not amount.isdecimal():
      return None
    found.append(int(amount) if verb in GAINS else -int(amount))
  return found


def _amounts(terms):
  """' + 3 - 4' as [3, -4]."""
  return [int(sign + amount) for sign, amount in re.findall(r"([+-]) (\d+)", terms)]


def _way(steps, changes):
  """How the first of `steps` makes the first of `changes`; empty: it does not."""
  if len(steps[0]) <= 2 and steps[0] == changes[: len(steps[0])]:
    return "fine" if len(steps[0]) == 1 else "coarse"
  parts = sum(steps[:2], [])
  two = len(steps) > 1 and len(steps[0]) == len(steps[1]) == 1
  if two and sum(parts) == changes[0] and all(x * changes[0] > 0 for x in parts):
    return "detour"
  return ""


def signed_amount(rng: np.random.Generator, total: int) -> int:
  """A random amount of 1 to 9 with a sign that keeps `total` between 10 and 99."""
  a = int(rng.integers(1, 10))
  up = total - a < 10 or (total + a <= 99 and rng.random() < 0.5)
  return a if up else -a


def sums(rng: np.random.Generator, most: int) -> str:
  """6 to 10 sums of one to `most` operations: arithmetic practice without a story."""
  found = []
  for _ in range(int(rng.integers(6, 11))):
    start = total = int(rng.integers(10, 100))
    terms = ""
    for _ in range(int(rng.integers(1, most + 1))):
      a = signed_amount(rng, total)
      total += a
      terms += _term(a)
    found.append(f"{start}{terms} = {total}.")
  return " ".join(found)


def lesson(rng: np.random.Generator) -> tuple[str | None, str]:
  """A training text for a teacher: (problem, solution) of the train split, or (None, sums)."""
  if rng.random() < 0.5:
    return None, sums(rng, 2)
  while True:
    story = draw_story(rng, int(rng.choice(LEVELS)))
    if split_of(story.text()) == "train":
      return story.text(), solution(story, rng)


def plain_text(rng: np.random.Generator) -> str:
  """A short text of the domain, to pre-train a base student. It is never a worked solution.

  One of four kinds: sums of one operation, a story told with its running total, or a story followed
  by its changes, as one sum without result or with each intermediate total.
  """
  kind = rng.integers(4)
  if kind == 0:
    return sums(rng, 1)
  story = draw_story(rng, int(rng.integers(2, 7)))
  he, total = PEOPLE[story.name], story.start
  if kind == 1:
    sentences = [f"{story.name} has {story.start} {story.thing}."]
    for verb, a in story.changes:
      sentences.append(f"{he} {verb} {abs(a)}. {total}{_term(a)} = {total + a}.")
      total += a
    return " ".join([*sentences, f"{story.name} has {total} {story.thing} now."])
  amounts = [a for _, a in story.changes]
  if kind == 2:
    return f"{story.text()} {story.start}{''.join(map(_term, amounts))}."
  ledger = str(story.start)
  for a in amounts:
    total += a
    ledger += f"{_term(a)} = {total}."
  return f"{story.text()} {ledger}"


def vocabulary() -> list[str]:
  """All words of the bundled family, without digits and punctuation, for its tokenizer."""
  pronouns = set(PEOPLE.values())
  words = {*PEOPLE, *pronouns, *(p.lower() for p in pronouns), *THINGS, *GAINS, *LOSSES}
  return sorted(words | set("has and How many does have now So".split()))
