r"""The forms in which answers are written: what one says, where no algebra is needed to tell.

`plain` removes what only concerns the looks of an answer. `decide` compares two plain answers that are
numbers (with units, or in a base), relations, intervals or words, as an examiner would. Some
things depend on the question, which is not known here: a unit, a base or a percent sign that only one
of the two has is accepted. A caller who knows the question can be stricter.
"""

from fractions import Fraction
import re
from typing import Literal
import unicodedata

Verdict = Literal["right", "wrong", "unverifiable"]
LONGEST = 400  # characters of an answer that has a form; longer ones are left to algebra
# This much longer than ten times the gold, an answer is an essay or a loop, not a final answer.
# Algebra would need seconds to say so.
ESSAY = 2000
NORMALISED = 4000  # characters; normalising needs quadratic time for many accents on one letter
DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<!\d)\.\d+"
NUMBER = re.compile(rf"([-+]?)({DIGITS})(\\?%)?", re.ASCII)
LOOKS = re.compile(
  r"\\(?:boldsymbol|bm|pmb|bold|mathbf|mathit|mathsf|mathtt|emph|underline|displaystyle|bf|it|rm|tt"
  r"|small|large|Large|LARGE|huge|Huge)(?![A-Za-z])\s*"
  r"|\\(?:text)?color(?:\[[^][]*\])?\{[^{}]*\}"
)
OUTER = re.compile(r"^\{((?:[^{}]|\{[^{}]*\})+)\}$")
# A number inside a command for text: `\textbf{1,234}`, `\mathrm{5 kg}`.
IN_TEXT = re.compile(
  r"^\\(?:text|textbf|textit|textrm|texttt|mathrm|mbox)\{\s*([-+$\\]*[\d.][^{}]*)\}$"
)
SAID = re.compile(
  r"^\\text\{[^{}]*\b(?:is|are|answer):?\s*\}:?|^(?:the )?(?:final )?answer(?: is|:):?", re.I
)
# What lacks braces around it: `5^\frac{1}{2}`, `\sqrt\frac12`, `\sqrt[3]2`.
BARE = re.compile(
  r"(\^|_|\\sqrt)\s*(\\[dt]?frac(?:\{[^{}]*\}\{[^{}]*\}|\d\d)|\\sqrt\{[^{}]*\})"
  r"|(\\sqrt\[[^][]*\])\s*(\w)"
)
PERCENT = re.compile(r"(?<=\d)\s*(?:\\text\{\s*percent\s*\}|percent(?![A-Za-z]))")
RAISED, LOWERED = re.compile("[⁰¹²³⁴-⁹⁺⁻ⁿ]+"), re.compile("[₀-₉]+")
EDGE = r"\\cup|\\cap|\\times|\\cdot|\\div|\\to|\\in(?![A-Za-z])|[*/^_]"
FRAGMENT = re.compile(rf"^(?:{EDGE})|(?:{EDGE}|[-+=,;<>])$")
MIXED = re.compile(r"(-?)(\d+)(?: (\d+)/(\d+)| ?\\frac(?:\{(\d+)\}\{(\d+)\}|(\d)(\d)))", re.ASCII)
RATIO = re.compile(r"(-?)(?:(\d+)/(\d+)|\\frac(?:\{(\d+)\}\{(\d+)\}|(\d)(\d)))", re.ASCII)
BASED = re.compile(r"([0-9A-Fa-f]+)_\{?(?:\\text\{)?(\d+|[a-z]+)\}{0,2}", re.ASCII)
BASES = {"two": "2", "eight": "8", "ten": "10", "sixteen": "16"}
ORDER = {"<": "<", r"\lt": "<", ">": ">", r"\gt": ">", r"\le": "<=", r"\leq": "<=", "<=": "<=",
         r"\leqslant": "<=", r"\ge": ">=", r"\geq": ">=", ">=": ">=", r"\geqslant": ">="}  # fmt: skip
SIGN = "|".join(sorted(map(re.escape, ORDER), key=len, reverse=True))
ONE_SIDED = re.compile(rf"([A-Za-z])? ?({SIGN})(?![A-Za-z]) ?([^<>]+)")
TWO_SIDED = re.compile(
  rf"([^<>]+?) ?({SIGN})(?![A-Za-z]) ?([A-Za-z]) ?({SIGN})(?![A-Za-z]) ?([^<>]+)"
)
# An answer that may say the same as a relation does.
RELATES = re.compile(rf"{SIGN}|\\neq?|\\not|\\cup|\\cap|\\setminus|\\in(?![A-Za-z])|\\mathbb")
UNEQUAL = re.compile(r"([A-Za-z])? ?(?:\\neq?|\\not=)(?![A-Za-z]) ?(.+)")
ASSIGNED = re.compile(r"^(?:[A-Za-z](?:_\{?\w\}?)?(?:\([A-Za-z]\))?)?=(?=[^=]+$)")
INFINITY = r"\infty"
# `5 hours 30 minutes`, which is not 5.
SEVERAL = re.compile(rf"((?:{DIGITS})) *[A-Za-z][A-Za-z ]* (?:{DIGITS})(?!\w)", re.ASCII)
WORD = re.compile(r"[A-Za-z][A-Za-z' -]+")
MAGNITUDES = dict(hundred=10**2, thousand=10**3, million=10**6, billion=10**9, trillion=10**12)
# Words between numbers, and functions: what they follow is not a quantity.
NO_UNITS = {"or", "to", "not", "than", "plus", "minus", "times", "over", "mod", "squared", "cubed"}
NO_UNITS |= {"pi", "sqrt", "sin", "cos", "tan", "log", "ln", "exp"}
UNITS = {  # other names of a unit; a plural is its singular
  "hr": "hour", "h": "hour", "min": "minute", "sec": "second", "s": "second", "cm": "centimeter",
  "centimetre": "centimeter", "m": "meter", "metre": "meter", "km": "kilometer",
  "kilometre": "kilometer", "mm": "millimeter", "millimetre": "millimeter", "feet": "foot",
  "ft": "foot", "inche": "inch", "in": "inch", "mi": "mile", "yd": "yard", "kg": "kilogram",
  "g": "gram", "gm": "gram", "lb": "pound", "oz": "ounce", "l": "liter", "litre": "liter",
  "ml": "milliliter", "$": "dollar", "buck": "dollar", "¢": "cent", "deg": "degree",
  "°": "degree", "people": "person", "children": "child",
}  # fmt: skip


def plain(answer: str) -> str:
  """The answer without what only concerns its looks: fonts, colours, full-width characters."""
  if not answer.isascii() and len(answer) <= NORMALISED:
    answer = LOWERED.sub(r"_{\g<0>}", RAISED.sub(r"^{\g<0>}", answer.replace("°", r"^\circ")))
    answer = re.sub("(?<=[0-9])(?=[¼-¾⅐-⅞])", " ", answer)
    answer = unicodedata.normalize("NFKC", answer).replace("\u2044", "/")
  if "percent" in answer:
    answer = PERCENT.sub(r"\%", answer)
  if "\\" in answer or "answer" in answer.casefold():
    answer = SAID.sub("", re.sub(r"\\[()\[\]]", "", LOOKS.sub("", answer.strip())))
    answer = re.sub(r"(\\circ|\\degrees?)(?![A-Za-z])", r"\\circ", answer)
    answer = re.sub(r"(?<!\^)(?<!\^\{)\\circ", r"^\\circ", answer)
    answer = IN_TEXT.sub(r"\1", OUTER.sub(r"\1", answer))
    answer = re.sub(r"\\varnothing|\\\{\s*\\\}", r"\\emptyset", BARE.sub(r"\1\3{\2\4}", answer))
  return answer


def number(text: str) -> tuple[Fraction, bool] | None:
  """(exact value, has it a percent sign?) of one number, a mixed number or a ratio of integers."""
  if len(text) > 100:
    return None
  if found := NUMBER.fullmatch(text):
    return Fraction(found[1] + found[2].replace(",", "")), bool(found[3])
  for pattern in (MIXED, RATIO):
    if found := pattern.fullmatch(text):
      sign, *parts = found.groups()
      *whole, over, under = [int(x) for x in parts if x]
      if under:
        return (-1 if sign else 1) * (sum(whole) + Fraction(over, under)), False
  return None


def quantity(text: str) -> tuple[Fraction, str] | None:
  """(value, unit) of a number that words follow, such as `5 dollars` or `5\\text{ million}`."""
  if len(text) >= 100:
    return None
  found = re.match(rf"[-+]?\\?\$?(?:\d+ \d+/\d+|\d+/\d+|{DIGITS})", text, re.ASCII)
  if not found or not (rest := text[found.end() :]):
    return None
  value = number(found[0].replace("\\", "").replace("$", ""))
  words = re.sub(r"\\(?:text|textbf|mathrm|mbox|operatorname)\{([^{}]*)\}", r" \1 ", rest)
  # Digits are exponents, as in m^2, m2 and s^{-1}: not `5 or 6`, `5 hours 30 minutes`.
  if not value or not re.fullmatch(r"(?:[A-Za-z°¢ .²³^{}/-]|(?<=[A-Za-z^{-])\d)+", words):
    return None
  letter = re.match(r"( ?)([A-Za-z])(?![A-Za-z])", rest)
  if letter and (not letter[1] or (letter[2].islower() and letter[2] not in UNITS)):
    return None  # 5x, 5 x
  words = re.sub(r"\b(square|sq|cubic)\.? ([a-z]+)", _power, words.casefold())
  total, unit = value[0], []
  for word in re.findall(r"[a-z°¢]+|[²³/]|\^\{?-?\d\}?", words):
    if word in NO_UNITS:
      return None
    if word in MAGNITUDES and not unit:
      total *= MAGNITUDES[word]
    elif word != "and":
      word = word.removesuffix("s") if len(word) > 2 else word
      unit.append(UNITS.get(word, word).translate({ord("{"): None, ord("}"): None}))
  return (total, " ".join(unit)) if re.search("[a-z°¢]", words) else None


def _power(found):
  """`cm^2` for `square cm`."""
  return f"{found[2]}^{3 if found[1] == 'cubic' else 2}"


def _interval(text):
  """(left bracket, left end, right end, right bracket) of an interval or an inequality, or None."""
  if found := TWO_SIDED.fullmatch(text):
    left, first, _, second, right = found.groups()
    if ORDER[first][0] == ORDER[second][0] == "<":
      return "[" if "=" in ORDER[first] else "(", left, right, "]" if "=" in ORDER[second] else ")"
  if found := ONE_SIDED.fullmatch(text):
    sign, end = ORDER[found[2]], found[3]
    if sign[0] == ">":
      return "[" if "=" in sign else "(", end, INFINITY, ")"
    return "(", "-" + INFINITY, end, "]" if "=" in sign else ")"
  found = re.fullmatch(r"([(\[])([^,()\[\]]+),([^,()\[\]]+)([)\]])", text)
  return found and tuple(x.replace("+" + INFINITY, INFINITY).strip() for x in found.groups())


def _same_interval(a, b):
  """Are two intervals equal? None where the ends need algebra."""
  if a[0] != b[0] or a[3] != b[3]:
    return False
  ends = [_equal(x, y) for x, y in zip(a[1:3], b[1:3])]
  return False if False in ends else None if None in ends else True


def _equal(a, b):
  """Are two ends, or two numbers, equal? None where it needs algebra."""
  if a == b:
    return True
  x, y = number(a), number(b)
  return close(x[0], y[0]) if x and y else False if INFINITY in a + b else None


def close(a: Fraction, b: Fraction) -> bool:
  """Are two numbers equal, or is one of them the other, rounded to six or more digits?"""
  if a.denominator == b.denominator == 1:
    return a == b
  return abs(a - b) <= Fraction(1, 10**6) * max(abs(a), abs(b))


def decide(gold: str, answer: str) -> Verdict | None:
  """Verdict on two plain answers without spaces that mean nothing; None where algebra must tell."""
  if gold == answer:
    return "right"
  if len(answer) > ESSAY + 10 * len(gold):
    return "wrong"
  if max(len(gold), len(answer)) > LONGEST:
    return None
  if FRAGMENT.search(answer) and not FRAGMENT.search(gold):
    return "wrong"
  for rule in (_relations, _numbers, _bases, _quantities, _names):
    if (found := rule(gold, answer)) is not None:
      return "right" if found else "wrong"
  return None


def _relations(gold, answer):
  """Inequalities and intervals. A set is not a pair, and a relation is not a value."""
  value = not RELATES.search(gold)  # then a relation cannot equal it, unless it is an interval
  a, b = UNEQUAL.fullmatch(gold), UNEQUAL.fullmatch(answer)
  if a or b:
    return _equal(a[2], b[2]) if a and b else False if value else None
  kinds = [bool(ONE_SIDED.fullmatch(x) or TWO_SIDED.fullmatch(x)) for x in (gold, answer)]
  brackets = {"(": "(", "[": "(", "\\{": "{"}
  a, b = (
    next((kind for k, kind in brackets.items() if x.startswith(k)), "") for x in (gold, answer)
  )
  if not any(kinds) and a and b and a != b and gold.endswith(("}", ")", "]")):
    return False  # (1,2) and \{1,2\}
  a, b = _interval(gold), _interval(answer)
  if a and b and (any(kinds) or {a[0], a[3], b[0], b[3]} & {"[", "]"} or INFINITY in gold):
    return _same_interval(a, b)
  return False if kinds[1] and value and not a else None


def _numbers(gold, answer):
  gold, answer = (ASSIGNED.sub("", x) for x in (gold, answer))
  a, b = number(gold), number(answer)
  if not a or not b:
    return True if gold == answer else None
  if close(a[0], b[0]):
    return True  # also 10% for 10: the question asks for percent, or does not
  if a[1] != b[1]:
    return close(a[0] / (100 if a[1] else 1), b[0] / (100 if b[1] else 1))
  return False


def _bases(gold, answer):
  a, b = BASED.fullmatch(gold), BASED.fullmatch(answer)
  base = lambda x: BASES.get(x[2], x[2])
  if a and b:
    return (a[1].casefold(), base(a)) == (b[1].casefold(), base(b))
  if a and number(answer):
    return a[1] == answer  # the question names the base
  if b and number(gold):
    try:
      return int(base(b)) > 1 and int(b[1], int(base(b))) == number(gold)[0]
    except ValueError:  # a digit that the base does not have, or no base
      return False
  return None


def _quantities(gold, answer):
  """Numbers with units. A unit that only one has is taken for granted; two must be the same."""
  a, b = quantity(gold), quantity(answer)
  if not a and not b:
    first = SEVERAL.match(re.sub(r"\\text\{([^{}]*)\}", r" \1 ", answer)) if number(gold) else None
    return False if first and close(number(first[1])[0], number(gold)[0]) else None
  a, b = (x or ((n := number(y)) and (n[0], "")) for x, y in ((a, gold), (b, answer)))
  if not a or not b:
    return None
  return close(a[0], b[0]) and (not a[1] or not b[1] or a[1] == b[1])


def _names(gold, answer):
  """Words, whose case does not count: not single letters, which may be variables."""
  bare = lambda x: re.sub(r"\\(?:text|textbf|mathrm|mbox)\{([^{}]*)\}", r"\1", x).strip(" .")
  a, b = bare(gold), bare(answer)
  return True if WORD.fullmatch(a) and a.casefold() == b.casefold() else None
