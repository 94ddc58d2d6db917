"""The figures of the page: accuracy, paired differences, and what each arm taught."""

from collections.abc import Sequence
import math

from gen_ssd.report import figures
from gen_ssd.report import reading
from gen_ssd.report.figures import fixed
from gen_ssd.report.words import cut

MOST = 64  # rows of a figure


def _short(x):
  return cut(x, reading.SHORT)


def accuracy(run: reading.Run) -> list[figures.Panel]:
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


