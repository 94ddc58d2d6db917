"""Problems, and an endless bundled family of grade-school word problems; sets.py reads others.

The bundled family is a controlled testbed. A problem is a short story of additions and
subtractions; its level is their number. A worked solution mixes several ways of writing, by
chance, step by step: fine (one operation a step), coarse (two at once: work is skipped) and
detour (one operation in two parts). All are correct; nothing else in the project
knows about them.
"""

import dataclasses

import numpy as np

from gen_ssd.problems import problem as problem_lib

LEVELS = (2, 3, 4, 5, 6)
SPLITS = {"train": (0, 70), "cold_start": (70, 85), "test": (85, 100)}  # percent of the hash range
WAYS = {"fine": 0.35, "coarse": 0.45, "detour": 0.2}

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


@dataclasses.dataclass(frozen=True)
class Story:
  """What a bundled problem is about: its start and its changes, in order."""

  name: str
  thing: str
  start: int
  changes: tuple  # ((verb, signed amount), ...)

  @property
  def total(self):
    return self.start + sum(amount for _, amount in self.changes)

  def text(self):
    he = PEOPLE[self.name]
    told = [f"{verb} {abs(a)}" for verb, a in self.changes]
    told = ", ".join(told[:-1]) + f" and {told[-1]}"
    return (
      f"{self.name} has {self.start} {self.thing}. {he} {told}. "
      f"How many {self.thing} does {he.lower()} have now?"
    )


def story(rng, level):
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


def split_of(text):
  """The split a bundled problem belongs to, by the hash of its text: disjoint by construction."""
  place = int(problem_lib.digest(text)[:8], 16) % 100
  return next(name for name, (low, high) in SPLITS.items() if low <= place < high)


def stories(split, seed=0, levels=LEVELS):
  """Endless stream of (Story, Problem) of one split, without repeats. Same seed, same stream."""
  if split not in SPLITS:
    raise ValueError(f"problems.split is {split!r}: one of {sorted(SPLITS)}")
  rng, seen = np.random.default_rng([seed, 7]), set()
  while True:
    level = int(levels[rng.integers(len(levels))])
    one = story(rng, level)
    text = one.text()
    if split_of(text) != split or text in seen:
      continue
    seen.add(text)
    yield (
      one,
      problem_lib.Problem(
        problem_lib.digest(text)[:16], "bundled", split, text, str(one.total), level
      ),
    )


def problems(split, count, seed=0, levels=LEVELS):
  """The first `count` bundled problems of a split."""
  stream = stories(split, seed, levels)
  return [next(stream)[1] for _ in range(count)]


def solution(one, rng, ways=None):
  """A correct worked solution of a Story, each step written in a way drawn from `ways`."""
  ways = WAYS if ways is None else ways
  names, weights = list(ways), np.array(list(ways.values()), float)
  steps, total, todo = [], one.start, [a for _, a in one.changes]
  while todo:
    way = names[rng.choice(len(names), p=weights / weights.sum())]
    if way == "detour":  # one change in two parts
      first = int(rng.integers(1, abs(todo[0]))) * (1 if todo[0] > 0 else -1)
      parts = [[first], [todo[0] - first]]
      todo = todo[1:]
    else:
      size = {"fine": 1, "coarse": 2}[way]
      parts, todo = [todo[:size]], todo[size:]
    for part in parts:
      terms = "".join(f" {'+' if a > 0 else '-'} {abs(a)}" for a in part)
      steps.append(f"{total}{terms} = {total + sum(part)}.")
      total += sum(part)
  return " ".join([*steps, LAST.format(total)])


def signed(rng, total):
  """An amount of 1 to 9 with a sign that keeps `total` between 10 and 99."""
  a = int(rng.integers(1, 10))
  up = total - a < 10 or (total + a <= 99 and rng.random() < 0.5)
  return a if up else -a


def sums(rng, most):
  """Loose sums of one to `most` operations: arithmetic practice without a story."""
  found = []
  for _ in range(int(rng.integers(6, 11))):
    start = total = int(rng.integers(10, 100))
    terms = ""
    for _ in range(int(rng.integers(1, most + 1))):
      a = signed(rng, total)
      total += a
      terms += f" {'+' if a > 0 else '-'} {abs(a)}"
    found.append(f"{start}{terms} = {total}.")
  return " ".join(found)


def lesson(rng):
  """(prompt or None, text) for a teacher: a story of the train split solved, or loose sums."""
  if rng.random() < 0.5:
    return None, sums(rng, 2)
  while True:
    one = story(rng, int(rng.choice(LEVELS)))
    if split_of(one.text()) == "train":
      return one.text(), solution(one, rng)


def plain_text(rng):
  """A short plain text of the domain, for pre-training a base student: never a worked solution.

  Loose sums of one operation, or a story told with its running total, or a story and its list of
  changes, bare or as a ledger.
  """
  kind = rng.integers(4)
  if kind == 0:
    return sums(rng, 1)
  one = story(rng, int(rng.integers(2, 7)))
  he, total = PEOPLE[one.name], one.start
  if kind == 1:
    told = [f"{one.name} has {one.start} {one.thing}."]
    for verb, a in one.changes:
      told.append(f"{he} {verb} {abs(a)}. {total} {'+' if a > 0 else '-'} {abs(a)} = {total + a}.")
      total += a
    return " ".join([*told, f"{one.name} has {total} {one.thing} now."])
  terms = [f" {'+' if a > 0 else '-'} {abs(a)}" for _, a in one.changes]
  if kind == 2:
    return f"{one.text()} {one.start}{''.join(terms)}."
  told = str(one.start)
  for term, (_, a) in zip(terms, one.changes):
    total += a
    told += f"{term} = {total}."
  return f"{one.text()} {told}"


def vocabulary():
  """Every word of the bundled family (digits and punctuation apart), for its tokenizer."""
  he = {he for he in PEOPLE.values()}
  words = {*PEOPLE, *he, *(h.lower() for h in he), *THINGS, *GAINS, *LOSSES}
  return sorted(words | set("has and How many does have now So".split()))
