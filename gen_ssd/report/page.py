"""One self-contained HTML page per run: arms, intervals, distributions, branch trees.

This file makes plain data of what the page says; page.html.jinja makes HTML of it.
"""

import base64
import datetime
import hashlib
import importlib.metadata
import itertools
import json
import math
from pathlib import Path
import platform
from typing import Any

import jinja2
from markupsafe import Markup
from markupsafe import escape

from gen_ssd import folders
from gen_ssd.errors import UserError
from gen_ssd.report import figures
from gen_ssd.report import overlap
from gen_ssd.report import reading
from gen_ssd.report import statistics
from gen_ssd.report import tree
from gen_ssd.report import words
from gen_ssd.report.figures import fixed
from gen_ssd.report.words import cut

SCRIPT = (Path(__file__).parent / "page.js").read_text(encoding="utf-8")
MOST = 64  # rows of a figure or a list
HEADS = (
  "arm",
  "accuracy",
  "95% interval",
  "n",
  "answer tokens",
  "truncated",
  "student nll",
  "kept / problems",
  "teacher tokens",
  "pruned",
)


def write_report(workdir: str | folders.Path, trees: int = 6) -> folders.Path:
  """Draws `workdir/report.html` from what the run has written so far and returns its path.

  `trees` is the number of branch trees to show. Raises UserError when config.json is missing or is
  not a JSON object, and OSError when the page cannot be written; any other missing or broken file is
  named in the footer. Long texts are cut, with their length, and control characters are shown.
  """
  workdir = folders.path(workdir)
  path = workdir / "report.html"
  if path.is_dir():
    raise UserError(f"{path} is a folder: remove it, the page goes there")
  run = reading.read_run(workdir, trees)
  page = _template().render(
    style=figures.STYLE,
    script=Markup(SCRIPT),
    script_hash=base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode(),
    heading=_heading(run),
    table=_table(run.arms),
    accuracy=_accuracy(run),
    distributions=_distributions(run.arms),
    trees=_trees(run, trees),
    left_out=overlap.section(workdir, run.notes),
    footer=_footer(run),  # last: by now every note is written
  )
  folders.write(path, words.visible(page))
  return path


def _template():
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters["fixed"] = fixed
  environment.filters["breakable"] = lambda name: escape(name).replace("_", Markup("_<wbr>"))
  environment.globals["mark"] = figures.mark
  return environment.get_template("page.html.jinja")


def _short(x):
  return cut(x, reading.SHORT)


def _heading(run):
  config, select = run.config, reading.as_dict(run.config.get("select"))
  paths = [str(reading.as_dict(config.get(who)).get("path", who)) for who in ("teacher", "student")]
  teacher, student = (_short("/".join(path.rstrip("/").split("/")[-2:])) for path in paths)
  sizes = [reading.number(select.get(k)) for k in ("k", "c")]
  k, c = (f"{x:.0f}" if x else words for x, words in zip(sizes, ("several", "a few")))
  scorer = _short(select.get("scorer", "perplexity"))
  settings = [n for n in ("temperature", "slots", "max_tokens") if n in select]
  return {
    "title": _short(config.get("name", "Gen-SSD run")),
    "name": _short(config.get("name", "unnamed")),
    "teacher": teacher,
    "student": student,
    "k": k,
    "c": c,
    "scorer": scorer,
    "facts": [
      ("teacher", teacher),
      ("student", student),
      ("candidates K", k),
      ("chunk C, tokens", c),
      ("score", scorer),
      *((n.replace("_", " "), _short(select[n])) for n in settings),
      ("arms", len(run.arms)),
    ],
  }


# ---------------------------------------------------------------- table of arms


def _verdict(arms):
  """The arm with the highest accuracy, and the arms that its interval does not separate from it."""
  ranked = [
    (accuracy, arm.label, reading.interval(arm.results.get("ci")))
    for arm in arms
    if (accuracy := reading.number(arm.results.get("accuracy"))) is not None
  ]
  ranked.sort(key=lambda x: -x[0])
  if not ranked:
    return {"top": None, "measured": 0, "is_best": False}
  accuracy, top, ci = ranked[0]
  near = [name for _, name, other in ranked[1:] if not (ci and other and ci[0] > other[1])]
  return {
    "top": top,
    "accuracy": accuracy,
    "measured": len(ranked),
    "near": near,
    "is_best": len(ranked) > 1 and not near,
  }


def _table(arms):
  verdict = _verdict(arms)
  rows = [_table_row(arm, verdict) for arm in arms]
  counted = any(cell["counted"] for row in rows for cell in row["cells"])
  known = {a.name: {k: reading.number(v) for k, v in a.results.items()} for a in arms}
  return {
    "verdict": verdict,
    "heads": HEADS,
    "rows": rows,
    "counted": counted,
    "unfinished": statistics.unfinished(known),
  }


def _table_row(arm, verdict):
  """Figures of results.json; those of the collection are counted from its traces where missing."""
  found = arm.collected if arm.collected and arm.collected.traces else None
  given = {name: x for name, v in arm.results.items() if (x := reading.number(v)) is not None}
  counted: dict[str, float | None] = {
    "kept": found and found.kept,
    "problems": found and found.problems,
    "teacher_tokens": found and found.teacher_tokens,
    "pruned": found and found.pruned / found.traces,
  }
  both, ci = {**counted, **given}, reading.interval(arm.results.get("ci"))
  changes = ", ".join(
    f"{_short(k)}={_short(v if isinstance(v, str) else json.dumps(v))}"
    for k, v in itertools.islice(arm.changes.items(), MOST)
  )
  cells = [
    ("n", fixed(both.get("n"), 0)),
    ("mean_tokens", fixed(both.get("mean_tokens"), 1)),
    ("truncated", fixed(both.get("truncated"), 1, 100, "%")),
    ("student_nll", fixed(both.get("student_nll"), 3)),
    ("kept", f"{fixed(both['kept'], 0)} / {fixed(both['problems'], 0)}".replace("– / –", "–")),
    ("teacher_tokens", fixed(both["teacher_tokens"], 0)),
    ("pruned", fixed(both["pruned"], 1, 100, "%")),
  ]
  return {
    "name": arm.label,
    "look": arm.look,
    "top": arm.label == verdict["top"],
    "is_best": verdict["is_best"],
    "changes": changes,
    "accuracy": fixed(both.get("accuracy"), 1, 100, "%"),
    "interval": f"[{ci[0] * 100:.1f}, {ci[1] * 100:.1f}]" if ci else "",
    "cells": [
      {"words": words, "counted": name not in given and counted.get(name) is not None}
      for name, words in cells
    ],
  }


# ---------------------------------------------------------------- figures


def _accuracy(run):
  """Panels: accuracy on all tests, on each of several, and paired differences."""
  panels = []
  tests = {
    name: reading.as_dict(reading.as_dict(test).get("arms"))
    for name, test in _first(run, "tests", reading.as_dict(run.results.get("tests")).items())
  }
  title = "Accuracy on all tests" if tests else "Accuracy"
  panels += _accuracy_panel(title, run.arms, {a.name: a.results for a in run.arms})
  for test, found in tests.items():
    n = max((reading.number(reading.as_dict(r).get("n")) or 0 for r in found.values()), default=0)
    panels += _accuracy_panel(f"Accuracy on {_short(test)}, {n:.0f} problems", run.arms, found)
  return panels + _paired_panel(run)


def _accuracy_panel(title, arms, results):
  """A list of the panel, or an empty one when no arm has an accuracy."""
  rows = []
  for arm in arms:
    given = reading.as_dict(results.get(arm.name))
    accuracy, seeds = reading.number(given.get("accuracy")), reading.numbers(given.get("seeds"))
    if accuracy is not None:
      ci, words = reading.interval(given.get("ci")), fixed(accuracy, 1, 100, "%")
      dots = seeds[:MOST] if len(seeds) > 1 else ()
      rows.append(figures.Estimate(arm.look, arm.label, accuracy, ci, words, dots))
  rings = "small rings: training seeds; " if any(r.dots for r in rows) else ""
  hint = f"{rings}whiskers: 95% interval; the axis does not start at 0"
  return [figures.intervals(title, hint, rows, lambda v: f"{v * 100:.4g}%")] if rows else []


def _paired_panel(run):
  pairs = {f"{a.name}-{b.name}": (a, b) for a in run.arms for b in run.arms}
  paired, rows = reading.as_dict(run.results.get("paired")), []
  ordered = sorted(paired.items(), key=lambda x: not x[0].endswith("-standard_kd"))
  for key, value in _first(run, "paired differences", ordered):
    value = reading.as_dict(value)
    difference = reading.number(value.get("difference"))
    if difference is None:
      continue
    ci, arms = reading.interval(value.get("ci")), pairs.get(key, ())
    side = "" if not ci else "above 0" if ci[0] > 0 else "below 0" if ci[1] < 0 else "includes 0"
    rows.append(
      figures.Estimate(
        arms[0].look if arms else 0,
        " − ".join(a.label for a in arms) or _short(key),
        difference,
        ci,
        f"{difference * 100:+.1f} {side}".replace("-", "−"),
      )
    )
  if not rows:
    return []
  return [
    figures.intervals(
      "Paired difference in accuracy",
      "percentage points, same problems; hollow: includes 0",
      rows,
      lambda v: f"{v * 100:+.3g}".replace("-", "−") if v else "0",
      zero=True,
    )
  ]


def _distributions(arms):
  """Panels: nll and length of every arm's kept traces."""
  samples = lambda name: [
    figures.Sample(a.look, a.label, values)
    for a in arms
    if a.collected and (values := getattr(a.collected, name))
  ]
  panels = []
  if nlls := samples("nlls"):
    panels.append(
      figures.ridges(
        "Student nll",
        "nats per token, mean of each kept trace; lower is easier for the student",
        nlls,
        lambda v: f"{v:.3g}",
        lambda v: f"{v:.2f}, perplexity {math.exp(min(v, 99)):.2f}",
      )
    )
  if lengths := samples("lengths"):
    panels.append(
      figures.ridges(
        "Trace length",
        "tokens of each kept trace",
        lengths,
        lambda v: f"{v:,.0f}",
        lambda v: f"{v:,.5g} tokens",
        integer=True,
      )
    )
  return panels


# ---------------------------------------------------------------- trees and footer


def _picked(examples, count):
  """Up to `count` traces: one pruned, one wrong, the others those whose scores differ most."""
  ranked = {outcome: list(group) for outcome, group in examples.items()}
  chosen = [ranked[o].pop(0) for o in ("wrong", "pruned") if ranked.get(o)][: max(count - 1, 0)]
  for outcome in ("right", *ranked):
    while ranked.get(outcome) and len(chosen) < count:
      chosen.append(ranked[outcome].pop(0))
  order = list(tree.OUTCOMES)
  return sorted(chosen, key=lambda t: order.index(t.outcome) if t.outcome in order else 9)


def _trees(run, count) -> dict[str, Any] | None:
  """Trees of the first arm that has candidates to show: gen_ssd where it does."""
  arms = [a for a in run.arms if a.collected and a.collected.examples]
  arm = min(arms, key=lambda a: a.name != "gen_ssd", default=None)
  if arm is None or count < 1:
    return None
  chosen = _picked(arm.collected.examples, count)
  lost = reading.lost_candidates(arm.folder, [t.key for t in chosen], run.notes)
  cuts = tree.score_cuts(s for t in chosen for r in t.rounds for s in r.scores if s is not None)
  settings = {**reading.as_dict(run.config.get("select")), **arm.changes}
  outcomes = dict.fromkeys(t.outcome for t in chosen if t.outcome in tree.OUTCOMES)
  return {
    "arm": arm.label,
    "look": arm.look,
    "scorer": _short(settings.get("scorer", "perplexity")),
    "bins": tree.bin_names(cuts),
    "outcomes": [(outcome, tree.OUTCOMES[outcome]) for outcome in outcomes],
    "drawn": [tree.tree(i, t, lost[t.key], cuts) for i, t in enumerate(chosen, 1)],
  }


def _versions():
  names = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
  known = [f"{n} {names[n]}" for n in ("gen-ssd", "jax", "numpy") if n in names]
  return ", ".join([f"python {platform.python_version()}", *known])


def _first(run, what, items):
  """The first items; that there are more is noted."""
  items = [*items]
  if len(items) > MOST:
    run.notes.append(f"{len(items) - MOST:,} of {len(items):,} {what}")
  return items[:MOST]


def _footer(run):
  notes = list(dict.fromkeys(run.notes))
  more = [f"and more: {len(notes) - MOST:,} other notes"] if len(notes) > MOST else []
  return {
    "notes": [cut(note, 300) for note in notes[:MOST]] + more,
    "time": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    "versions": _versions(),
    "config": cut(json.dumps(run.config, indent=1, ensure_ascii=False), 100_000),
  }
