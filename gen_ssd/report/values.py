"""Values of the expected kind out of files that may hold anything."""

from typing import Any

SHORT = 100  # characters that are shown of a name


def as_dict(x: Any) -> dict:
  return x if isinstance(x, dict) else {}


def number(x: Any) -> float | None:
  """x as a float of 12 decimals; None for anything that is not a number which an axis can show."""
  if isinstance(x, bool) or not isinstance(x, (int, float)):
    return None
  return round(float(x), 12) if abs(x) < 1e15 else None


def numbers(x: Any) -> list[float]:
  """The numbers of a list; [] for anything else."""
  return [n for v in x if (n := number(v)) is not None] if isinstance(x, list) else []


def interval(x: Any) -> tuple[float, float] | None:
  """x as (low, high); None for anything that is not two numbers."""
  found = numbers(x)
  return (found[0], found[1]) if len(found) == 2 == len(x) else None
