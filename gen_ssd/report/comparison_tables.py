"""The tables of a comparison, as plain text and as Markdown."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any, NamedTuple

from gen_ssd.report import looks
from gen_ssd.report import statistics
from gen_ssd.report import words

SHORT = 60  # characters that are shown of a name
ITEMS, ARMS, PAIRED = "Items", "Arms", "Differences"  # titles of the tables


class Table(NamedTuple):
  """A table of plain texts. Names in it are cut."""

  title: str
  heads: Sequence[str]
  rows: list[Sequence[str]]
  bold: int = -1  # column that is in bold type


def tables(found: Mapping[str, Any]) -> list[Table]:
  """Of sweep.json: the items if there are several, the arms of the first, and their differences."""
  made = [_items_table(found)] if len(found["items"]) > 1 else []
  made += [_arms_table(found)]
  return made + ([_paired_table(found)] if found["paired"] else [])


def unfinished(found: Mapping[str, Any]) -> list[str]:
  """What math-verify did not finish, a line per arm."""
  return statistics.unfinished(found["arms"])


def markdown(found: Mapping[str, Any]) -> str:
  """`tables` as Markdown; what was not graded follows that of the arms."""
  parts = []
  for made in tables(found):
    parts.append(_markdown(made))
    parts += unfinished(found) if made.title == ARMS else []
  return "\n\n".join(parts) + "\n"


def _items_table(found):
  """A row per item and arm."""
  heads = ("item", "arm", "accuracy, %", "95 % interval", "kept", "teacher tokens")
  rows = [
    (
      words.cut(name, SHORT),
      words.cut(arm, SHORT),
      _percent(a["accuracy"]),
      " - ".join(map(_percent, a["ci"])),
      _number(a["kept"], 0),
      _number(a["teacher_tokens"], 0),
    )
    for name, arms in found["items"].items()
    for arm, a in arms.items()
  ]
  return Table(ITEMS, heads, rows)


def _percent(x):
  return "-" if x is None else f"{100 * x:.1f}"


def _number(x, digits=1):
  return "-" if x is None else f"{x:,.{digits}f}"


def _markdown(made):
  """Cells of the table of items are padded, because it is read on a terminal, too."""
  rows = [[words.markdown(cell, 3 * SHORT) for cell in row] for row in made.rows]
  for row in rows if made.bold >= 0 else ():
    row[made.bold] = f"**{row[made.bold]}**"
  rows = [list(made.heads), *rows]
  if made.title == ITEMS:
    widths = [max(map(len, column)) for column in zip(*rows)]
    rows = [[cell.ljust(w) for cell, w in zip(row, widths)] for row in rows]
  head, *body = (f"| {' | '.join(row)} |" for row in rows)
  return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def _arms_table(found):
  heads = (
    "arm",
    "accuracy, %",
    "95 % interval",
    "lowest - highest seed",
    "at equal teacher tokens",
    "answer tokens",
    "kept trace tokens",
    "student nll",
    "coverage, %",
    "pruned, %",
    "teacher tokens",
    "training tokens",
  )
  rows = [
    (
      words.cut(name, SHORT),
      _percent(a["accuracy"]),
      " - ".join(map(_percent, a["ci"])),
      f"{_percent(min(a['seeds']))} - {_percent(max(a['seeds']))}",
      _percent(a["equal_teacher_tokens"]),
      _number(a["mean_tokens"]),
      _number(a["mean_kept_tokens"]),
      _number(a["student_nll"], 3),
      _percent(a["coverage"]),
      _percent(a["pruned"]),
      _number(a["teacher_tokens"], 0),
      _number(a["training_tokens"], 0),
    )
    for name, a in found["arms"].items()
  ]
  return Table(ARMS, heads, rows, bold=1)


def _paired_table(found):
  arms, paired = found["arms"], found["paired"]
  bases = [b for b in looks.BASES if any(f"{name}-{b}" in paired for name in arms)]
  rows = []
  for name in arms:
    pairs = [paired.get(f"{name}-{base}") for base in bases]
    rows.append([words.cut(name, SHORT), *(p and _difference(p) or "" for p in pairs)])
  heads = ["difference in accuracy, points (95 % interval)", *(f"- {b}" for b in bases)]
  return Table(PAIRED, heads, rows)


def _difference(p):
  low, high = p["ci"]
  return f"{100 * p['difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
