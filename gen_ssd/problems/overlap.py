"""Near duplicates: training problems that say what a test problem says, in almost the same words.

The measure is the part of a test problem's distinct word n-grams that one training problem contains.
N-grams that many problems have say nothing, for example the sentence by which AIME asks for m + n.
"""

import collections
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import re
from typing import Any
import unicodedata

from gen_ssd.problems.problem import Problem

N = 8  # words of an n-gram
FEWEST = 5  # n-grams: a test problem with fewer, or of fewer than 12 words, is compared whole
SEVERAL = 3  # test problems of one set; what so many contain is boilerplate
MANY = 10  # training problems; what more contain is boilerplate
MANY_OF = 1000  # of more than MANY times as many training problems: one in so many, instead

# What is written in several ways, and what only sets the type. After casefold.
WRITTEN = [
  (re.compile(pattern), plain)
  for pattern, plain in (
    (r"\{,\}|,\\!", ","),
    (r"(?<=\d),(?=\d{3}(?!\d))", ""),  # 1,200
    (r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"\1/\2"),
    (r"\\(?:cdot|times)(?![a-z])|[×⋅·]", "*"),
    (r"\\div(?![a-z])|[÷⁄]", "/"),
    (r"\\leq?(?![a-z])", "≤"),
    (r"\\geq?(?![a-z])", "≥"),
    (r"\\(?:left|right|q?quad|text(?:bf|it|rm)?|math(?:bf|it|rm))(?![a-z])|\\[,;:! ]", " "),
    ("\u2212", "-"),
    (r"(?<=[^\W\d_])['’](?=[^\W\d_])", ""),  # don't
    # Hyphens, dashes and asterisks of texts, which are not the signs of formulas.
    (r"(?<=[^\W\d_]{2})[-*]+|[-*]+\s*(?=[^\W\d_]{2})", " "),
  )
]
ALONE = "\u3040-\u30ff\u3400-\u9fff"  # characters of scripts without spaces, each a word
# The signs of formulas are words: 3 + 4 is not 3 - 4. Letters and digits are in different words.
WORD = re.compile(rf"\d+(?:\.\d+)?|[{ALONE}]|(?:(?![{ALONE}])[^\W\d_])+|[-+*/^=<>≤≥≠±√%]|(?<=\d)!")

Words = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Match:
  """A training problem that is a near duplicate of a test problem."""

  training: Problem
  test: Problem
  share: float  # of the test problem's n-grams, 0 to 1; 1 for the same words
  reason: str

  def row(self, test: str) -> dict[str, Any]:
    """The match as plain JSON values; `test` is the name of the test set."""
    return {
      "split": self.training.split,
      "uuid": self.training.uuid,
      "problem": self.training.problem,
      "test": test,
      "test_uuid": self.test.uuid,
      "test_problem": self.test.problem,
      "share": round(self.share, 4),
      "reason": self.reason,
    }


def words(text: str) -> Words:
  """The words of a text without upper case and punctuation; the signs of formulas are words, too."""
  text = unicodedata.normalize("NFKC", text).casefold()
  for pattern, plain in WRITTEN:
    text = pattern.sub(plain, text)
  return tuple(WORD.findall(text))


def near(training: Sequence[Problem], tests: Sequence[Problem], share: float) -> list[Match]:
  """Near duplicates of the problems of one test set, in the order of the training problems.

  A training problem is one when it has the words of a test problem, or more than `share` (0 to 1) of
  the n-grams of one. Each is returned once, with the test problem that it shares most with. N-grams
  of SEVERAL test problems, or of many training problems, do not count; a test problem that is short
  without them must have the same words. Of three or more variants in a test set, then, only what is
  their own counts. Bundled problems are never near duplicates: their splits are disjoint, and texts
  from templates look alike.
  """
  training = [p for p in training if p.source != "bundled"]
  asked: dict[Words, Problem] = {}  # a test problem that occurs twice is no boilerplate
  for p in sorted(tests, key=lambda p: p.uuid) if training else ():
    asked.setdefault(words(p.problem), p)
  asked.pop((), None)
  owners = collections.defaultdict(list)
  for text in asked:
    for gram in {*_grams(text)}:
      owners[gram].append(text)
  said = []  # (training problem, the test problem of the same words, shared n-grams)
  for p in training:
    text = words(p.problem)
    said.append((p, asked.get(text), {g for g in _grams(text) if g in owners}))
  times = collections.Counter(g for _, _, grams in said for g in grams)
  many = max(MANY, len(training) / MANY_OF)
  telling = {g: own for g, own in owners.items() if len(own) < SEVERAL and times[g] <= many}
  sizes = collections.Counter(text for own in telling.values() for text in own)
  found = []
  for p, same, grams in said:
    if same:
      found.append(Match(p, same, 1.0, "same text apart from punctuation"))
      continue
    shared = collections.Counter(text for g in grams for text in telling.get(g, ()))
    shares = [(n / sizes[t], asked[t]) for t, n in shared.items() if sizes[t] >= FEWEST]
    part, test = min(shares, key=lambda x: (-x[0], x[1].uuid), default=(0.0, None))
    if test and part > share:
      found.append(Match(p, test, part, f"{part:.2f} of the test problem's word {N}-grams"))
  return found


def _grams(text: Words) -> Iterator[Words]:
  return (text[i : i + N] for i in range(len(text) - N + 1))
