"""The figures of the page: accuracy, paired differences, and what each arm taught."""

from collections.abc import Sequence
import math

from gen_ssd.report import curves
from gen_ssd.report import figures
from gen_ssd.report import reading
from gen_ssd.report import values
from gen_ssd.report.figures import fixed
from gen_ssd.report.words import cut

MOST = 64  # rows of a figure
SEVERAL = (
  ("pass_at_k", "pass@k", "share of problems with a right answer among k; whiskers: 95% interval"),
  (
    "maj_at_k",
    "maj@k",
    "share of problems whose most frequent answer of k is right; whiskers: 95%",
  ),
)


def _short(x):
  return cut(x, values.SHORT)


def accuracy(run: reading.Run) -> list[figures.Panel]:
  """Panels: accuracy on all tests, on each of several, paired differences, and several answers."""
  panels = []
  tests = {
    name: values.as_dict(values.as_dict(test).get("arms"))
    for name, test in _first(run, "tests", values.as_dict(run.results.get("tests")).items())
  }
  title = "Accuracy on all tests" if tests else "Accuracy"
  others = [
    figures.Reference(label, value, fixed(value, 1, 100, "%"))
    for label, results in run.models.items()
    if (value := values.number(results.get("accuracy"))) is not None
  ]
  panels += _accuracy_panel(title, run.arms, {a.name: a.results for a in run.arms}, others)
  for test, found in tests.items():
    n = max((values.number(values.as_dict(r).get("n")) or 0 for r in found.values()), default=0)
    panels += _accuracy_panel(f"Accuracy on {_short(test)}, {n:.0f} problems", run.arms, found)
  return panels + _paired_panel(run) + _several_panels(run.arms)


def _accuracy_panel(title, arms, results, others=()):
  """A list of the panel, or an empty one when no arm has an accuracy."""
  rows = []
  for arm in arms:
    given = values.as_dict(results.get(arm.name))
    accuracy, seeds = values.number(given.get("accuracy")), values.numbers(given.get("seeds"))
    if accuracy is not None:
      ci, words = values.interval(given.get("ci")), fixed(accuracy, 1, 100, "%")
      dots = seeds[:MOST] if len(seeds) > 1 else ()
      rows.append(figures.Estimate(arm.look, arm.label, accuracy, ci, words, dots))
  if not rows:
    return []
  rings = "small rings: training seeds; " if any(r.dots for r in rows) else ""
  hint = f"{rings}whiskers: 95% interval"
  if figures.span(rows, others)[0] > 0:
    hint += "; the axis does not start at 0"
  return [figures.intervals(title, hint, rows, _percent, references=others)]


def _percent(v):
  return f"{v * 100:.4g}%"


def _several_panels(arms):
  """Panels of pass@k and maj@k, where they are known for more than one k."""
  panels = []
  for field, title, hint in SEVERAL:
    found = {a.name: _by_count(a.results.get(field)) for a in arms}
    counts = sorted({k for values in found.values() for k in values})
    lines = [
      curves.Line(
        a.look,
        a.label,
        [curves.Point(str(k), *found[a.name][k]) for k in counts if k in found[a.name]],
      )
      for a in arms
      if found[a.name]
    ]
    if len(counts) > 1:
      places = [str(k) for k in counts]
      panels.append(curves.curves(title, hint, lines, _percent, places=places))
  return panels


def _by_count(x):
  """{k: (share, interval or None)} of the first MOST numbers of answers, in ascending order."""
  found = {}
  for k, entry in values.as_dict(x).items():
    value = values.number(values.as_dict(entry).get("value"))
    if value is not None and k.isdecimal() and len(k) < 7:
      found[int(k)] = value, values.interval(entry.get("ci"))
  return dict(sorted(found.items())[:MOST])


def differences(run: reading.Run) -> list[str]:
  """A line of text per paired difference of results.json."""
  return [f"{row.label}: {row.words} {_points(row.interval)}".rstrip() for row in _paired(run)]


def _points(ci):
  return f"({100 * ci[0]:+.1f} to {100 * ci[1]:+.1f} points)".replace("-", "−") if ci else ""


def _paired(run):
  """A row per paired difference: first those of gen_ssd from arms of the same cost."""
  pairs = {f"{a.name}-{b.name}": (a, b) for a in run.arms for b in run.arms}
  paired, rows = values.as_dict(run.results.get("paired")), []
  ordered = sorted(paired.items(), key=lambda x: x[0] not in ("gen_ssd-posthoc", "gen_ssd-random"))
  for key, value in _first(run, "paired differences", ordered):
    value = values.as_dict(value)
    difference = values.number(value.get("difference"))
    if difference is None:
      continue
    ci, arms = values.interval(value.get("ci")), pairs.get(key, ())
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
  return rows


def _paired_panel(run):
  rows = _paired(run)
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


def training(arms: Sequence[reading.Arm]) -> list[figures.Panel]:
  """A panel with the loss of every student while it was trained."""
  lines = [
    curves.Series(a.look, a.label if i == 0 else "", points)
    for a in arms
    for i, points in enumerate(a.losses)
  ]
  hint = "nats per token that is learnt, over updates; a line per training seed"
  return (
    [curves.series("Loss of the student", hint, lines[:MOST], "{:.3g}".format)] if lines else []
  )


def distributions(arms: Sequence[reading.Arm]) -> list[figures.Panel]:
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


def _first(run, what, items):
  """The first items; that there are more is noted."""
  items = [*items]
  if len(items) > MOST:
    run.notes.append(f"{len(items) - MOST:,} of {len(items):,} {what}")
  return items[:MOST]
