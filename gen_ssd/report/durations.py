"""The table of how long the parts of a run took, from the files times.csv of its folders."""

from collections.abc import Iterator
from typing import Any

from gen_ssd import folders
from gen_ssd import times
from gen_ssd.report import reading
from gen_ssd.report.figures import fixed

HEADS = ("", "collection", "tokens/s", "training", "tokens/s", "evaluation", "tokens/s")


def table(workdir: folders.Path, run: reading.Run) -> dict[str, Any] | None:
  """A row for the cold start, for every model and for every arm; None where no time is known.

  A collection that several arms share stands in the row of each. It counts once in `total`, the time
  of all parts together.
  """
  known, rows = {}, []
  for name, look, *parts in _parts(workdir, run):
    cells = []
    for part in parts:
      found = {folder: times.read(folder) for folder in part}
      known |= found
      cells += _cells(sum(found.values(), times.Took()))
    if any(cell != "–" for cell in cells):
      rows.append({"name": name, "look": look, "cells": cells})
  if not rows:
    return None
  total = duration(sum(took.seconds for took in known.values()))
  return {"heads": HEADS, "rows": rows, "total": total}


def _parts(workdir, run) -> Iterator[tuple]:
  """(label, look, folders of collections, of trainings, of evaluations) of each row."""
  home = workdir / "cold_start"
  written = [home / "traces", *home.glob("calibration-*")]
  yield "cold start", None, written, [home / "checkpoints"], []
  for name, label in reading.MODELS.items():
    yield label, None, [], [], [*(workdir / "models" / name).glob("answers*")]
  for arm in run.arms:
    if arm.folder:  # else the workdir has no folder of this arm
      home = workdir / "arms" / arm.name
      written = [arm.folder, *arm.folder.glob("refresh-*/calibration-*")]
      trained = [*arm.folder.glob("refresh-*/checkpoints"), *home.glob("seed-*/checkpoints")]
      yield arm.label, arm.look, written, trained, [*home.glob("seed-*/answers*")]


def _cells(took):
  if not took.seconds:
    return "–", "–"
  return duration(took.seconds), fixed(took.tokens / took.seconds, 0)


def duration(seconds: float) -> str:
  """Such as 8.1 s, 12 min 5 s or 3 h 20 min."""
  if seconds < 60:
    return f"{seconds:.1f} s"
  minutes, rest = divmod(round(seconds), 60)
  return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"
