"""The near duplicates of test problems that a run left out, as its page shows them."""

import itertools
from typing import Any

from gen_ssd.folders import Path
from gen_ssd.report import reading
from gen_ssd.report import traces
from gen_ssd.report import values
from gen_ssd.report.words import cut

MOST = 20  # pairs whose texts are shown
SPLITS = {"train": "training", "cold_start": "cold-start"}


def section(workdir: Path, notes: list[str]) -> dict[str, Any] | None:
  """What the page says of overlap.json; None where nothing was left out.

  The file is untrusted, as in reading.py: what cannot be read is noted and left out.
  """
  rows = reading.read_json(workdir / "overlap.json", notes)
  if rows is not None and not isinstance(rows, list):
    notes.append("overlap.json: not a list, left out")
  pairs = [x for x in rows if _is_pair(x)] if isinstance(rows, list) else []
  if isinstance(rows, list) and (bad := len(rows) - len(pairs)):
    notes.append(f"overlap.json: {bad:,} broken entr{'ies' if bad > 1 else 'y'} skipped")
  if not pairs:
    return None
  counts = {words: sum(x["split"] == name for x in pairs) for name, words in SPLITS.items()}
  return {
    "counts": ", ".join(f"{n:,} {words}" for words, n in counts.items() if n),
    "hidden": max(len(pairs) - MOST, 0),
    "pairs": [_pair(x) for x in itertools.islice(pairs, MOST)],
  }


def _is_pair(x):
  names = ("split", "problem", "test", "test_problem", "reason")
  texts = isinstance(x, dict) and all(isinstance(x.get(name), str) for name in names)
  return texts and x["split"] in SPLITS


def _pair(x):
  return {
    "split": SPLITS[x["split"]],
    "test": cut(x["test"], values.SHORT),
    "reason": cut(x["reason"], values.SHORT),
    "problem": cut(x["problem"], traces.TEXT),
    "test_problem": cut(x["test_problem"], traces.TEXT),
  }
