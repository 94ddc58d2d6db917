"""times.csv of a folder: how long the work in it took, one line for each time it was begun.

Everything else that a run writes is the same on every machine; times are not, so they stand in files
of their own. A run that is killed keeps what was written at its last fence or checkpoint.
"""

import contextlib
import csv
import datetime
import io
import math
import time
from typing import NamedTuple

import jax

from gen_ssd import folders

NAME = "times.csv"
HEAD = ("begun", "seconds", "tokens")


class Took(NamedTuple):
  """Time that some work took, compilation included, and the tokens that it processed."""

  seconds: float = 0.0
  tokens: float = 0.0

  def __add__(self, other):
    return Took(self.seconds + other.seconds, self.tokens + other.tokens)


class Times:
  """Writes times.csv of `folder`, in process 0 only; the clock starts here."""

  def __init__(self, folder: folders.Path):
    self.path, self.start = folder / NAME, time.monotonic()
    self.begun = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    self.on = jax.process_index() == 0
    self.earlier = _rows(self.path) if self.on else []

  def write(self, tokens: int) -> None:
    """Says how long the work took so far, and that it processed so many `tokens`. Makes the folder."""
    if self.on:
      text = io.StringIO()
      now = (self.begun, f"{time.monotonic() - self.start:.1f}", tokens)
      csv.writer(text, lineterminator="\n").writerows([HEAD, *self.earlier, now])
      self.path.parent.mkdir(parents=True, exist_ok=True)
      folders.write(self.path, text.getvalue())


def read(folder: folders.Path) -> Took:
  """The sum of the sound lines of times.csv of `folder`; zeros where there is none."""
  return sum((Took(float(s), float(n)) for _, s, n in _rows(folder / NAME)), Took())


def _rows(path):
  """[begun, seconds, tokens] of every sound line, as texts."""
  found = []
  with contextlib.suppress(OSError, UnicodeDecodeError, csv.Error):
    for row in csv.reader(io.StringIO(path.read_text(encoding="utf-8"))):
      with contextlib.suppress(ValueError):
        begun, *numbers = row
        seconds, tokens = map(float, numbers)
        datetime.datetime.fromisoformat(begun)
        if all(math.isfinite(x) and x >= 0 for x in (seconds, tokens)):
          found.append(row)
  return found
