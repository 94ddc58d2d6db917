"""The figures of a comparison, as panels and as SVG files."""

from collections.abc import Mapping
from typing import Any

from gen_ssd.report import curves
from gen_ssd.report import figures
from gen_ssd.report import looks as looks_lib

Panels = Mapping[str, tuple[list[figures.Panel], int]]  # {file: (panels, columns)}


def panels(found: Mapping[str, Any]) -> Panels:
  """The panels of arms.svg and, where there is something to show: paired, items and sweeps.svg.

  found: sweep.json.
  """
  looks = looks_lib.looks(
    {*found["arms"], *(arm for arms in found["items"].values() for arm in arms)}
    | {name for lines in found["sweeps"].values() for name in lines}
  )
  made = {"arms.svg": ([_arms_panel(found, looks)], 1)}
  if paired := _paired_panels(found, looks):
    made["paired.svg"] = (paired, len(paired))
  if compared := _item_panels(found, looks):
    made["items.svg"] = (compared, min(len(compared), 3))
  if found["sweeps"]:
    swept = [p for name, lines in found["sweeps"].items() for p in _sweep(name, lines, looks)]
    made["sweeps.svg"] = (swept, 2)
  return made


def draw(found: Mapping[str, Any]) -> Mapping[str, str]:
  """{name: SVG} of `panels`."""
  return {name: figures.svg(drawn, columns=n) for name, (drawn, n) in panels(found).items()}


def _show_percent(v):
  return f"{100 * v:.4g}%"


def _arms_panel(found, looks):
  some = next(iter(found["arms"].values()))
  hint = f"{some['n']:,} problems, {len(some['seeds'])} seeds (small rings); whiskers: 95% interval"
  rows = [
    figures.Estimate(
      looks[name], name, a["accuracy"], a["ci"], f"{100 * a['accuracy']:.1f}%", a["seeds"]
    )
    for name, a in found["arms"].items()
  ]
  return figures.intervals("Accuracy of the student", hint, rows, _show_percent)


def _paired_panels(found, looks):
  """A panel per base. An arm is on the same line of all of them; the base's own mark is at 0."""
  panels = []
  for base in looks_lib.BASES:
    rows = []
    for name in found["arms"]:
      if p := found["paired"].get(f"{name}-{base}"):
        change = f"{100 * p['difference']:+.1f}".replace("-", "−")
        rows.append(figures.Estimate(looks[name], name, p["difference"], p["ci"], change))
      elif name == base:
        rows.append(figures.Estimate(looks[name], name, 0.0, None, "reference"))
    if len(rows) > 1:
      panels.append(
        figures.intervals(
          f"Difference from {base}",
          "percentage points, same problems; hollow: includes 0",
          rows,
          lambda v: f"{100 * v:+.3g}".replace("-", "−") if v else "0",
          zero=True,
        )
      )
  return panels


def _item_panels(found, looks):
  """A panel per arm that several items have, with a row per item."""
  items, panels = found["items"], []
  for arm in dict.fromkeys(arm for arms in items.values() for arm in arms):
    rows = [
      figures.Estimate(
        looks[arm], name, a["accuracy"], a["ci"], f"{100 * a['accuracy']:.1f}%", a["seeds"]
      )
      for name in items
      for a in ([items[name][arm]] if arm in items[name] else [])
    ]
    if len(rows) > 1:
      hint = "accuracy; small rings: training seeds; whiskers: 95% interval"
      panels.append(figures.intervals(arm, hint, rows, _show_percent))
  return panels


def _sweep(sweep, lines, looks):
  """Two panels: accuracy, and teacher tokens per kept trace."""

  def panel(title, hint, show, point):
    drawn = [
      curves.Line(looks[name], name, [point(p) for p in points]) for name, points in lines.items()
    ]
    return curves.curves(
      f"{sweep}: {title}", hint, drawn, show, joined=not sweep.endswith("scorer")
    )

  return [
    panel(
      "accuracy",
      "whiskers: 95% interval",
      _show_percent,
      lambda p: curves.Point(str(p["value"]), p["accuracy"], p["ci"]),
    ),
    panel(
      "cost",
      "teacher tokens per kept trace",
      lambda v: f"{v:,.0f}",
      lambda p: curves.Point(str(p["value"]), p["teacher_tokens"] / max(p["kept"], 1)),
    ),
  ]
