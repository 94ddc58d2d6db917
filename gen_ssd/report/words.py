"""Texts of a run, fit to be shown: of bounded length, and without characters that control anything."""

from collections.abc import Sequence
import re
from typing import Any
import unicodedata

JOINERS = "\u200c\u200d"  # scripts and emoji need them
MARKDOWN = re.compile(r"([\\`|<>])")


def cut(x: Any, most: int) -> str:
  """str(x), cut to `most` characters; then the length of all of it is said."""
  text = str(x)
  return text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"


def visible(text: str) -> str:
  r"""The text with control characters, bidi overrides and lone surrogates as escapes, like \x1b.

  Line breaks, tabs and every kind of space stay as they are.
  """
  return re.sub(r"[^\x20-\x7e\t\n]", _visible, text)


def _visible(found):
  c = found[0]
  stays = c.isprintable() or c in JOINERS or unicodedata.category(c) == "Zs"
  return c if stays else repr(c)[1:-1]


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
  """The rows of a table as lines of equal length: the first column to the left, others to the right."""
  widths = [max(map(len, column)) for column in zip(*rows)]
  return [
    "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
  ]


def line(x: Any, most: int) -> str:
  """`x` on one line of plain text."""
  return visible(" ".join(cut(x, most).split()))


def markdown(x: Any, most: int) -> str:
  """`x` on one line of Markdown, in which it is only text."""
  return MARKDOWN.sub(r"\\\1", line(x, most))


def code(x: Any, most: int) -> str:
  """`x` as a piece of code on one line of Markdown; its line breaks are shown."""
  text = visible(cut(x, most)).replace("\n", "⏎").replace("\t", " ")
  longest = max(map(len, re.findall("`+", text)), default=0)
  fence, pad = "`" * (longest + 1), " " if longest else ""
  return f"{fence}{pad}{text}{pad}{fence}"
