r"""False equations in the text of a model: `3 + 4 = 8`.

Only plain arithmetic is judged, exactly: integers, decimals and \frac of integers, joined by + - * /
x × ÷ and their LaTeX names, with parentheses. Whatever might mean something else is passed over, so
that most false equations are found, and few true ones are called false.
"""

from collections.abc import Iterator
from fractions import Fraction
import re
from typing import NamedTuple

TOKEN = re.compile(
  r"""(?P<number>\\[dt]?frac\{\d{1,30}\}\{\d{1,30}\}
        |\d{1,3}(?:,\d{3})+(?![\d,])(?:\.\d+)?|\d+(?:\.\d+)?|(?<![\d.])\.\d+)
    |(?P<space>[ \t]+|\\[,;:!]|\\?[$€£](?=[ ]?[\d.])|\\left(?=\()|\\right(?=\)))
    |(?P<times>[*×·⋅]|\\times(?![a-zA-Z])|\\cdot(?![a-zA-Z])
        |(?<=\d)[xX](?=\d)|(?<=[\d)][ ])[xX](?=[ ][\d(.$]))
    |(?P<over>[/÷]|\\div(?![a-zA-Z]))
    |(?P<plus>\+)|(?P<minus>[-−]|(?<=[ ])–(?=[ ]))
    |(?P<open>\()|(?P<close>\))|(?P<equals>=)""",
  re.VERBOSE,
)
BULLET = re.compile(r"[ \t]*(?:[-*+•][ \t]+)?")
# What stands before a number that is part of something larger: 2^3 + 1, f(3), 3,5, half of 10 + 2.
BEFORE = re.compile(
  r"[\w^}\\√!|%≈<>]$|[\d)\]}][.,:]$|[\^_√%]\s*$|\b[xX]\s*$|\d\s+and\s*$"
  r"|(?i:\b(?:of|by|times|plus|minus|over|sqrt|log|step|day|week|case|part|problem|question)\s*\#?$)"
)
# What stands behind a number that is part of something larger: 8x, 2^3, 3,5, 3 remainder 2, 3 mod 12.
AFTER = re.compile(
  r"[\w^!_%°{\[(]|[.,:]\d|\\(?:[a-su-z]|t(?!ext))|\s*%|\s*(?:,|with|and|a|\s)*(?:remainder|[rR]\b)"
  r"|\s*\(?\s*\\?p?mod|\s*(?:cents?|¢)|\s+and\s+\(?\d"
)
MOST_TOKENS, MOST_DIGITS = 80, 40  # of an equation, and of a number; longer ones are passed over


class Equation(NamedTuple):
  """An equation and its place in the text."""

  text: str
  start: int
  end: int


def first_false(text: str) -> Equation | None:
  """The first false equation `a op b = c` of `text`; None where none is found.

  In a chain such as `2 + 3 * 4 = 14 = 15` neighbours are compared. A decimal on the right may be
  rounded or cut: `10 / 3 = 3.33` is not false.
  """
  start = 0
  for line in text.splitlines(keepends=True):
    if "=" in line:
      for tokens in _runs(line):
        if found := _false(line, tokens):
          return Equation(line[slice(*found)].strip(), start + found[0], start + found[1])
    start += len(line)
  return None


def _runs(line) -> Iterator[list[re.Match]]:
  """The longest pieces of a line that consist of tokens alone, without spaces at their ends."""
  begin = BULLET.match(line)
  run: list[re.Match] = []
  end = begin.end() if begin else 0
  for token in TOKEN.finditer(line, end):
    if token.start() != end:
      yield from _split(run)
      run = []
    end = token.end()
    if token.lastgroup != "space":
      run.append(token)
  yield from _split(run)


def _split(run):
  """Cuts a run at parentheses without a partner, and at those around an equation: (3 + 4 = 8)."""
  opened, cuts = [], []
  for i, token in enumerate(run):
    if token.lastgroup == "open":
      opened.append(i)
    elif token.lastgroup == "close":
      first = opened.pop() if opened else None
      if first is None:
        cuts.append(i)
      elif any(t.lastgroup == "equals" for t in run[first:i]):
        cuts += [first, i]
  edges = [-1, *sorted(cuts + opened), len(run)]
  for a, b in zip(edges, edges[1:]):
    piece = run[a + 1 : b]
    if [t[0] for t in piece[:2]] == ["*", "*"]:  # bold text of Markdown
      piece = piece[2:]
    if [t[0] for t in piece[-2:]] == ["*", "*"]:
      piece = piece[:-2]
    if len(piece) <= MOST_TOKENS:
      yield piece


def _false(line, run):
  """(start, end) of the first two sides of a chain that differ; None where none do."""
  sides, side = [], []
  for token in run:
    if token.lastgroup == "equals":
      sides.append(side)
      side = []
    else:
      side.append(token)
  sides.append(side)
  calculated = False
  for left, right in zip(sides, sides[1:]):
    calculated = calculated or any(t.lastgroup in ("plus", "minus", "times", "over") for t in left)
    if not (left and right and calculated):
      continue
    if left is sides[0] and (
      BEFORE.search(line[: left[0].start()]) or left[0].lastgroup == "minus"
    ):
      continue
    if right is sides[-1] and AFTER.match(line, right[-1].end()):
      continue
    values = _value(left), _value(right)
    if None not in values and not _equal(*values, right):
      return left[0].start(), right[-1].end()
  return None


def _equal(left, right, tokens):
  """Whether the values are equal, or the right side is a decimal that the left one rounds to."""
  whole, point, decimals = tokens[-1][0].partition(".")
  if len(tokens) == 1 and point:
    return abs(left - right) < Fraction(1, 10 ** len(decimals)) or left == right
  return left == right


# ---------------------------------------------------------------- values


def _value(tokens) -> Fraction | None:
  """The value of an expression; None where it is not one, or divides by 0."""
  try:
    value, rest = _sum(tokens)
  except (ValueError, ZeroDivisionError):
    return None
  return None if rest else value


def _sum(tokens):
  value, tokens = _product(tokens)
  while tokens and tokens[0].lastgroup in ("plus", "minus"):
    sign = 1 if tokens[0].lastgroup == "plus" else -1
    term, tokens = _product(tokens[1:])
    value += sign * term
  return value, tokens


def _product(tokens):
  value, tokens = _factor(tokens)
  before = None
  while tokens and tokens[0].lastgroup in ("times", "over"):
    if before == tokens[0].lastgroup == "over":
      raise ValueError("6 / 1/3 may mean either")
    before, (by, rest) = tokens[0].lastgroup, _factor(tokens[1:])
    value = value * by if before == "times" else value / by
    tokens = rest
  return value, tokens


def _factor(tokens):
  """A number, an expression in parentheses, or a minus before either. Returns it and what is left."""
  kind = tokens[0].lastgroup if tokens else None
  if kind == "minus":
    value, rest = _factor(tokens[1:])
    return -value, rest
  if kind == "open":
    value, rest = _sum(tokens[1:])
    if not rest or rest[0].lastgroup != "close":
      raise ValueError("a parenthesis is not closed")
    return value, rest[1:]
  if kind != "number" or len(tokens[0][0]) > MOST_DIGITS + 8:
    raise ValueError("not a number")
  digits = re.findall(r"[\d.,]+", tokens[0][0])
  parts = [Fraction(part.replace(",", "")) for part in digits]
  return (parts[0] / parts[1] if len(parts) > 1 else parts[0]), tokens[1:]
