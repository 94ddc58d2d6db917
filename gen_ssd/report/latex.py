"""LaTeX of problems and traces as MathML, which browsers draw without a script or a network."""

import re

from latex2mathml import converter
from markupsafe import Markup
from markupsafe import escape

LONGEST = 400  # characters of a formula that is drawn
FORMULA = re.compile(
  r"\\\[(?P<a>.+?)\\\]|\$\$(?P<b>.+?)\$\$|\\\((?P<c>.+?)\\\)"
  r"|(?P<d>\\boxed\s*\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\})"
  # Dollars may be prices: a formula has no space inside of its dollars, and no digit after them.
  r"|(?<![\\\w$])\$(?![\s$])(?P<e>[^$\n]+?)(?<![\s\\])\$(?![\d$])",
  re.DOTALL,
)
# Commands that give an element a link or an attribute of the author's choice.
OTHER = re.compile(r"\\(?:href|url|class|style|id|css|html\w*|data|require|unicode)(?![A-Za-z])")


def drawn(text: str) -> Markup:
  """HTML of a text with its formulas as MathML. What is no valid formula stays text, escaped."""
  parts, end = [], 0
  for found in FORMULA.finditer(text):
    formula = next(x for x in found.groups() if x is not None)
    parts += [escape(text[end : found.start()]), _mathml(formula, found)]
    end = found.end()
  return Markup("").join([*parts, escape(text[end:])])


def _mathml(formula, found):
  if len(formula) > LONGEST or OTHER.search(formula):
    return escape(found[0])
  try:
    display = "block" if found["a"] or found["b"] else "inline"
    # The converter makes an XML tree and writes it, so that what it is given is escaped.
    return Markup(converter.convert(formula, display=display))
  except Exception:  # a parser of many kinds of errors, whose only input is the formula
    return escape(found[0])
