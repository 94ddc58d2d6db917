"""Values of the fields of one row: what is no text, number or answer is refused with its name."""

import decimal
import math
import re

import numpy as np

from gen_ssd import errors
from gen_ssd.errors import UserError
from gen_ssd.problems import answers
from gen_ssd.problems import files

WRITTEN = re.compile(r"[-+]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)", re.ASCII)


class Layout(UserError):
  """A row does not have the layout of its set; `read` adds file and line to the message."""


def field(row: dict, *names: str) -> tuple[str, object]:
  """(name, value) of the first of `names` that the row has; Layout when it has none."""
  for name in names:
    if row.get(name) is not None:
      return name, row[name]
  if null := next((name for name in names if name in row), None):
    raise Layout(f": {null} is null: it must be there")
  others = f" (or {', '.join(names[1:])})" if names[1:] else ""
  raise Layout(f" has no field {names[0]}{others}; it has {files.show(sorted(row))}")


def check_text(value: str, name: str) -> None:
  """Raises Layout for a text that shows nothing or cannot be written."""
  if not errors.encodable(value):
    raise Layout(
      f": {name} is {files.show(value)}: it must be Unicode, without half a pair such as \\ud800"
    )
  if not any(c.isprintable() and not c.isspace() for c in value):
    raise Layout(f": {name} is {files.show(value)}: it must not be empty")


def text(row: dict, *names: str) -> str:
  """The value of `field`; Layout unless it is text that shows something."""
  name, value = field(row, *names)
  if not isinstance(value, str):
    raise Layout(f": {name} is {files.show(value)}: it must be text")
  check_text(value, name)
  return value


def answer(row: dict, *names: str) -> str:
  """The value of `field`: text without spaces around it, or the digits of a finite number."""
  name, value = field(row, *names)
  if isinstance(value, str):
    check_text(value, name)
    return value.strip()
  if isinstance(value, int) and not isinstance(value, bool):
    return str(value)
  if isinstance(value, decimal.Decimal) and value.is_finite():
    return f"{value:f}"
  if isinstance(value, float) and math.isfinite(value):
    return np.format_float_positional(value, trim="-")
  raise Layout(f": {name} is {files.show(value)}: it must be text or a finite number")


def answer_or_box(row: dict, *names: str) -> str:
  """`answer`, or else the boxed answer of the solution, as in MATH and its subsets."""
  solution = row.get("solution")
  if not isinstance(solution, str) or any(row.get(name) is not None for name in names):
    return answer(row, *names)
  if (boxed := answers.extract_boxed(solution)) is not None:
    return boxed
  raise Layout(f": its solution has no \\boxed answer, and there is no field {names[0]}")


def number(value: str, name: str, low: int | None = None, high: int | None = None) -> str:
  """A number as short text: 145.0 is "145". Raises Layout for what is no number in low..high."""
  digits = value.strip("$ ")
  if not WRITTEN.fullmatch(digits):
    raise Layout(f": {name} is {files.show(value)}: it must be a number")
  exact = decimal.Decimal(digits.replace(",", ""))
  if low is not None and not (exact == exact.to_integral_value() and low <= exact <= high):
    raise Layout(f": {name} is {files.show(value)}: it must be a whole number from {low} to {high}")
  short = f"{exact:f}" if exact else "0"
  return short.rstrip("0").rstrip(".") if "." in short else short


def level(row: dict) -> int:
  """3 for `3` and `Level 3`; 0, which is unknown, for anything else."""
  value = row.get("level")
  if isinstance(value, float) and value.is_integer():
    value = int(value)
  known = isinstance(value, (str, int)) and re.fullmatch(r"(?:Level )?(\d{1,4})", str(value))
  return int(known[1]) if known else 0
