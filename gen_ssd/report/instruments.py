"""The table of the page that says how students write, and how far they are from their teacher."""

from typing import Any

from gen_ssd.report import reading
from gen_ssd.report import values
from gen_ssd.report.figures import fixed

WAYS = ("fine", "coarse", "detour")
# (head, what it is) of the columns of figures, by name in results.json.
FIGURES = {
  "kl_own": (
    "KL(S‖T)",
    "divergence of the student from the teacher, on the student’s own answers: how unlikely to the "
    "teacher it writes",
  ),
  "kl_data": (
    "KL(T‖S)",
    "divergence of the teacher from the student, on right answers of the teacher to test problems: "
    "how much of the teacher the student misses",
  ),
  "own_entropy": (
    "own entropy",
    "how uncertain the student is of the next token, on its own answers",
  ),
  "wrong_minus_right": (
    "wrong − right",
    "nll of wrong traces of the teacher minus nll of right ones to the same held-out problems: above "
    "0, the student finds wrong ones less likely",
  ),
}
KEPT = ("kept ways", "shares of fine / coarse / detour steps of the arm’s kept traces: one operation "
        "in a step, two in a step, one in two steps")  # fmt: skip
ANSWERS = (
  "answer ways",
  "the same of the model’s answers; what is missing to 100% fits none of them",
)
PASSED = ("pass@k", "share of problems with a right answer among k, the most that were sampled")
WRITTEN = ("student tokens", "tokens that the arm’s students wrote to learn from, of all seeds")


def table(run: reading.Run) -> dict[str, Any] | None:
  """{"heads", "rows", "notes": what each column is}; None where nothing of it was measured."""
  rows = [_row(label, None, results) for label, results in run.models.items()]
  rows += [_row(arm.label, arm.look, arm.results) for arm in run.arms]
  columns, nothing = [KEPT, ANSWERS, *FIGURES.values(), PASSED, WRITTEN], (fixed(None), "0")
  used = [i for i in range(len(columns)) if any(row["cells"][i] not in nothing for row in rows)]
  if not used:
    return None
  for row in rows:
    row["cells"] = [row["cells"][i] for i in used]
  notes = [columns[i] for i in used]
  return {"heads": ["arm", *(head for head, _ in notes)], "rows": rows, "notes": notes}


def _row(label, look, results):
  ways = values.as_dict(results.get("ways"))
  figures = [values.number(values.as_dict(results.get(name)).get("value")) for name in FIGURES]
  cells = [
    *(_shares(ways.get(of)) for of in ("kept", "answers")),
    *(fixed(x, 3) for x in figures),
    _passed(results.get("pass_at_k")),
    fixed(values.number(results.get("student_tokens")), 0),
  ]
  return {"name": label, "look": look, "cells": cells}


def _shares(x):
  """'35 / 45 / 20%' of shares; a dash where they were not measured."""
  found = [values.number(values.as_dict(x).get(way)) for way in WAYS]
  if None in found:
    return fixed(None)
  return " / ".join(fixed(share, 0, 100) for share in found) + "%"


def _passed(x):
  """pass@k of the largest k."""
  found = {k: values.as_dict(entry) for k, entry in values.as_dict(x).items()}
  known = {
    int(k): values.number(v.get("value")) for k, v in found.items() if k.isdecimal() and len(k) < 7
  }
  if not known or known[most := max(known)] is None:
    return fixed(None)
  return f"{fixed(known[most], 1, 100, '%')} (k = {most})"
