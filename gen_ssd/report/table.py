"""The table of arms of the page, and the sentence about which arm is best."""

from collections.abc import Sequence
import itertools
import json
from typing import Any

from gen_ssd.report import reading
from gen_ssd.report import statistics
from gen_ssd.report import values
from gen_ssd.report.figures import fixed
from gen_ssd.report.words import cut

MOST = 64  # changed settings of an arm that are shown
LAST_NUMBER, HELD_OUT = "right by last number", "held-out nll"
OPTIONAL = {LAST_NUMBER: "last_number", HELD_OUT: "held_out_nll"}  # shown where any model has it
DIVERSITY = (
  ("kept", "distinct_ngrams", "distinct n-grams of kept traces"),
  ("kept", "distinct_texts", "distinct kept traces"),
  ("answers", "distinct_ngrams", "distinct n-grams of answers"),
  ("answers", "distinct_texts", "distinct answers"),
)
PICKS = ("longest", "shortest", "repeated")
HEADS = (
  "arm",
  "accuracy",
  "95% interval",
  "n",
  "answer tokens",
  "truncated",
  LAST_NUMBER,
  HELD_OUT,
  "student nll",
  "kept / problems",
  "teacher tokens",
  "pruned",
)


def _verdict(arms):
  """The arm with the highest accuracy, and the arms that its interval does not separate from it.

  `seeds` are the training seeds of every arm, or of the arm that has the fewest; None: not known.
  """
  ranked = [
    (accuracy, arm.label, values.interval(arm.results.get("ci")), arm.seeds)
    for arm in arms
    if (accuracy := values.number(arm.results.get("accuracy"))) is not None
  ]
  ranked.sort(key=lambda x: -x[0])
  if not ranked:
    return {"top": None, "measured": 0, "is_best": False}
  accuracy, top, ci, _ = ranked[0]
  near = [name for _, name, other, _ in ranked[1:] if not (ci and other and ci[0] > other[1])]
  return {
    "top": top,
    "accuracy": accuracy,
    "measured": len(ranked),
    "near": near,
    "is_best": len(ranked) > 1 and not near,
    "seeds": min(seeds for *_, seeds in ranked) or None,
  }


def table(run: reading.Run) -> dict[str, Any]:
  """The rows of the models that no arm trained, then those of the arms, and the verdict on the arms."""
  verdict = _verdict(run.arms)
  rows = [_model_row(label, results) for label, results in run.models.items()]
  rows += [_arm_row(arm, verdict) for arm in run.arms]
  named = {name for results in _all_results(run) for name in results}
  absent = {head: name for head, name in OPTIONAL.items() if name not in named}
  for row in rows:
    row["cells"] = [cell for cell in row["cells"] if cell["name"] not in absent.values()]
  counted = any(cell["counted"] for row in rows for cell in row["cells"])
  known = {a.name: {k: values.number(v) for k, v in a.results.items()} for a in run.arms}
  return {
    "verdict": verdict,
    "heads": [head for head in HEADS if head not in absent],
    "rows": rows,
    "counted": counted,
    "unfinished": statistics.unfinished(known),
  }


def _all_results(run):
  return [*run.models.values(), *(arm.results for arm in run.arms)]


def diversity(arms: Sequence[reading.Arm]) -> dict[str, Any] | None:
  """How much the kept traces and the answers of each arm differ; None where nobody measured it."""
  found = {a.name: values.as_dict(a.results.get("diversity")) for a in arms}
  value = lambda name, of, field: values.number(values.as_dict(found[name].get(of)).get(field))
  rows = [
    {
      "name": a.label,
      "look": a.look,
      "cells": [fixed(value(a.name, of, field), 3) for of, field, _ in DIVERSITY],
    }
    for a in arms
  ]
  if not any(cell != fixed(None) for row in rows for cell in row["cells"]):
    return None
  return {"heads": ["arm", *(head for *_, head in DIVERSITY)], "rows": rows}


def picks(arms: Sequence[reading.Arm]) -> dict[str, Any] | None:
  """What the rule of each arm picked, beside what chance picks; None where nothing was chosen."""
  rows = []
  for a in arms:
    found = values.as_dict(a.results.get("picks"))
    chance = values.as_dict(found.get("chance"))
    if (rounds := values.number(found.get("rounds"))) is not None:
      share = lambda of, name: fixed(values.number(of.get(name)), 1, 100, "%")
      cells = [f"{share(found, name)} ({share(chance, name)})" for name in PICKS]
      rows.append({"name": a.label, "look": a.look, "cells": [fixed(rounds, 0), *cells]})
  return {"heads": ["arm", "rounds", *PICKS], "rows": rows} if rows else None


def _model_row(label, results):
  """A model that no arm trained: it has the figures of answers, and none of a collection."""
  return {"name": label, "look": None, "top": False, "changes": "", **_figures(results, {})}


def _arm_row(arm, verdict):
  """Figures of results.json; those of the collection are counted from its traces where missing."""
  found = arm.collected if arm.collected and arm.collected.traces else None
  counted: dict[str, float | None] = {
    "kept": found and found.kept,
    "problems": found and found.problems,
    "teacher_tokens": found and found.teacher_tokens,
    "pruned": found and found.pruned / found.traces,
  }
  changes = ", ".join(
    f"{_short(k)}={_short(v if isinstance(v, str) else json.dumps(v))}"
    for k, v in itertools.islice(arm.changes.items(), MOST)
  )
  return {
    "name": arm.label,
    "look": arm.look,
    "top": arm.label == verdict["top"],
    "is_best": verdict["is_best"],
    "changes": changes,
    **_figures(arm.results, counted),
  }


def _figures(results, counted):
  """The cells of a row. `counted` has figures for those that `results` lacks."""
  given = {name: x for name, v in results.items() if (x := values.number(v)) is not None}
  both, ci = {**counted, **given}, values.interval(results.get("ci"))
  last, held_out = (
    values.number(values.as_dict(results.get(name)).get("value"))
    for name in ("last_number", "held_out_nll")
  )
  cells = [
    ("n", fixed(both.get("n"), 0)),
    ("mean_tokens", fixed(both.get("mean_tokens"), 1)),
    ("truncated", fixed(both.get("truncated"), 1, 100, "%")),
    ("last_number", fixed(last, 1, 100, "%")),
    ("held_out_nll", fixed(held_out, 3)),
    ("student_nll", fixed(both.get("student_nll"), 3)),
    ("kept", f"{fixed(both.get('kept'), 0)} / {fixed(both.get('problems'), 0)}"),
    ("teacher_tokens", fixed(both.get("teacher_tokens"), 0)),
    ("pruned", fixed(both.get("pruned"), 1, 100, "%")),
  ]
  return {
    "accuracy": fixed(both.get("accuracy"), 1, 100, "%"),
    "interval": f"[{ci[0] * 100:.1f}, {ci[1] * 100:.1f}]" if ci else "",
    "cells": [
      {
        "name": name,
        "words": words.replace("– / –", "–"),
        "counted": name not in given and counted.get(name) is not None,
      }
      for name, words in cells
    ],
  }


def _short(x):
  return cut(x, values.SHORT)
