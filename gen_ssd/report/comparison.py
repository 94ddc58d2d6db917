"""What the finished items of a sweep say together: sweep.json, tables, figures and example traces."""

from collections.abc import Mapping
from collections.abc import Sequence
import json
import typing
from typing import Any

from gen_ssd import config as config_lib
from gen_ssd import folders
from gen_ssd import provenance
from gen_ssd import rows as rows_lib
from gen_ssd import workdir as workdir_lib
from gen_ssd.errors import UserError
from gen_ssd.errors import clip
from gen_ssd.folders import Path
from gen_ssd.report import curves
from gen_ssd.report import examples
from gen_ssd.report import figures
from gen_ssd.report import looks as looks_lib
from gen_ssd.report import statistics
from gen_ssd.report import words

SHORT = 60  # characters that are shown of a name
BASES = ("standard_kd", "random", "posthoc", "morsd")  # every arm is compared with these
FILES = ("sweep.json", "sweep.md", "examples.md")
FILES += ("arms.svg", "paired.svg", "items.svg", "sweeps.svg")
# {sweep: {line: [(value, item, arm), ...]}}
Sweeps = Mapping[str, Mapping[str, Sequence[tuple[Any, str, str]]]]


class Result(typing.TypedDict):
  """What a comparison needs of an arm in results.json."""

  accuracy: float
  ci: list[float]
  n: int
  seeds: list[float]
  mean_tokens: float | None
  mean_kept_tokens: float | None
  student_nll: float | None
  kept: int
  teacher_tokens: int
  coverage: float
  pruned: float


def read(workdir: Path, configs: Mapping[str, config_lib.Config], sweeps: Sweeps) -> dict[str, Any]:
  """sweep.json: arms and paired differences of the first of the finished `configs`, items and sweeps.

  A sweep that needs an item outside `configs` is left out. Two entries of an arm of the first item
  are made here:
  `training_tokens` estimates the tokens a student was trained on, from the updates that were logged,
  and is None where the log is missing or damaged;
  `equal_teacher_tokens` is the accuracy when every arm may spend as many teacher tokens as the most
  expensive one: for a cheap arm, that of the arm named with `_all`; None where there is no such arm.

  Raises UserError where an item has no results.json, or a damaged one, or no answers, and where a
  sweep names an arm that its item lacks.
  """
  runs = {name: _results(workdir / name, its) for name, its in configs.items()}
  first, config = next(iter(configs.items()))
  arms = runs[first]["arms"]
  answers = {name: workdir_lib.arm_answers(workdir / first, name) for name in arms}
  for name, seeds in answers.items():
    if not seeds or not all(seeds):
      where = workdir / first / "arms" / name
      raise UserError(f"{where} lacks answers in seed-*/answers: {_remedy(workdir / first)}")
  paired = {
    f"{name}-{base}": statistics.paired(answers[name], answers[base])
    for base in BASES
    if base in arms
    for name in arms
    if name != base
  }
  budget = max(a["teacher_tokens"] for a in arms.values())
  for name, a in arms.items():
    log = workdir / first / "arms" / name / "seed-0" / "checkpoints" / "metrics.jsonl"
    a["training_tokens"] = _training_tokens(log, config.train.steps)
  for name, a in arms.items():
    rich = arms.get(f"{name}_all", a)
    a["equal_training_tokens"] = a["accuracy"]
    a["equal_teacher_tokens"] = rich["accuracy"] if rich["teacher_tokens"] > budget / 2 else None
  found: dict[str, Any] = {"arms": arms, "paired": paired, "sweeps": {}}
  found["items"] = {name: run["arms"] for name, run in runs.items()}
  for sweep, lines in sweeps.items():
    if {name for points in lines.values() for _, name, _ in points} <= runs.keys():
      found["sweeps"][sweep] = {
        line: [{"value": value, **_arm(runs, sweep, name, arm)} for value, name, arm in points]
        for line, points in lines.items()
      }
  found["made_by"] = provenance.provenance()
  return found


def _arm(runs, sweep, name, arm):
  if arm not in (arms := runs[name]["arms"]):
    known = ", ".join(arms)
    raise UserError(f"SWEEPS[{sweep!r}] names the arm {arm!r} of {name}: it must be one of {known}")
  return arms[arm]


def _remedy(run):
  return f"delete {clip(str(run / 'report.html'))}, and the same command makes it again"


def _results(run, config):
  """results.json of a finished run, with a well-formed entry for every arm of its config."""
  path = run / "results.json"
  found = workdir_lib.read_json(path, f"delete it if it is there; {_remedy(run)}")
  arms = found.get("arms") if isinstance(found, dict) else None
  arms = arms if isinstance(arms, dict) else {}
  names = dict.fromkeys([*(name for name, _ in config.arms), *arms])
  for name in names or [""]:
    a = arms.get(name)
    if not (rows_lib.fits(a, Result) and len(a["ci"]) == 2 and a["seeds"]):
      what = f"it lacks figures of the arm {clip(repr(name))}"
      raise UserError(f"{clip(str(path))} is damaged ({what}): delete it; {_remedy(run)}")
  return found


def _training_tokens(log, steps):
  try:
    targets = [int(json.loads(line)["targets"]) for line in log.read_bytes().splitlines()]
    return round(steps * sum(targets) / len(targets))
  except (OSError, ValueError, KeyError, TypeError, ArithmeticError, RecursionError):
    return None


def write(
  workdir: Path, configs: Mapping[str, config_lib.Config], sweeps: Sweeps
) -> tuple[str, list[Path]]:
  """Writes the files of a sweep of finished items; returns the table of items and the paths.

  examples.md is left out when the first item has no arm gen_ssd or no arm random.
  """
  found = read(workdir, configs, sweeps)
  files = {"sweep.json": json.dumps(found, indent=1), "sweep.md": table(found), **draw(found)}
  if {"gen_ssd", "random"} <= found["arms"].keys():
    files["examples.md"] = examples.examples(workdir / next(iter(configs)))
  for name, text in files.items():
    folders.write(workdir / name, words.visible(text))
  return words.visible(files["sweep.md"]), [workdir / name for name in files]


# ---------------------------------------------------------------- tables


def table(found: Mapping[str, Any]) -> str:
  """sweep.json as Markdown tables: items, arms and differences of the first, what was not graded."""
  parts = [_items_table(found)] if len(found["items"]) > 1 else []
  parts += [_arms_table(found), *statistics.unfinished(found["arms"])]
  parts += [_paired_table(found)] if found["paired"] else []
  return "\n\n".join(parts) + "\n"


def _items_table(found):
  """A row per item and arm; cells are padded, because it is read on a terminal, too."""
  rows = [("item", "arm", "accuracy, %", "95 % interval", "kept", "teacher tokens")]
  rows += [
    (
      words.markdown(name, SHORT),
      words.markdown(arm, SHORT),
      _percent(a["accuracy"]),
      " - ".join(map(_percent, a["ci"])),
      _number(a["kept"], 0),
      _number(a["teacher_tokens"], 0),
    )
    for name, arms in found["items"].items()
    for arm, a in arms.items()
  ]
  widths = [max(map(len, column)) for column in zip(*rows)]
  return _markdown(*([cell.ljust(w) for cell, w in zip(row, widths)] for row in rows))


def _percent(x):
  return "-" if x is None else f"{100 * x:.1f}"


def _number(x, digits=1):
  return "-" if x is None else f"{x:,.{digits}f}"


def _markdown(*rows):
  head, *body = (f"| {' | '.join(row)} |" for row in rows)
  return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def _arms_table(found):
  heads = (
    "arm",
    "accuracy, %",
    "95 % interval",
    "lowest - highest seed",
    "at equal teacher tokens",
    "answer tokens",
    "kept trace tokens",
    "student nll",
    "coverage, %",
    "pruned, %",
    "teacher tokens",
    "training tokens",
  )
  rows = [
    (
      words.markdown(name, SHORT),
      f"**{_percent(a['accuracy'])}**",
      " - ".join(map(_percent, a["ci"])),
      f"{_percent(min(a['seeds']))} - {_percent(max(a['seeds']))}",
      _percent(a["equal_teacher_tokens"]),
      _number(a["mean_tokens"]),
      _number(a["mean_kept_tokens"]),
      _number(a["student_nll"], 3),
      _percent(a["coverage"]),
      _percent(a["pruned"]),
      _number(a["teacher_tokens"], 0),
      _number(a["training_tokens"], 0),
    )
    for name, a in found["arms"].items()
  ]
  return _markdown(heads, *rows)


def _paired_table(found):
  bases = [b for b in BASES if b in found["arms"]]
  rows = []
  for name in found["arms"]:
    pairs = [found["paired"].get(f"{name}-{base}") for base in bases]
    rows.append([words.markdown(name, SHORT), *(p and _difference(p) or "" for p in pairs)])
  heads = ["difference in accuracy, points (95 % interval)", *(f"- {b}" for b in bases)]
  return _markdown(heads, *rows)


def _difference(p):
  low, high = p["ci"]
  return f"{100 * p['difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


# ---------------------------------------------------------------- figures


def draw(found: Mapping[str, Any]) -> Mapping[str, str]:
  """{name: SVG} of arms.svg and, where there is something to show: paired, items and sweeps.svg."""
  looks = looks_lib.looks(
    {*found["arms"], *(arm for arms in found["items"].values() for arm in arms)}
    | {name for lines in found["sweeps"].values() for name in lines}
  )
  files = {"arms.svg": figures.svg([_arms_panel(found, looks)])}
  if paired := _paired_panels(found, looks):
    files["paired.svg"] = figures.svg(paired, columns=len(paired))
  if compared := _item_panels(found, looks):
    files["items.svg"] = figures.svg(compared, columns=min(len(compared), 3))
  if found["sweeps"]:
    panels = [p for name, lines in found["sweeps"].items() for p in _sweep(name, lines, looks)]
    files["sweeps.svg"] = figures.svg(panels, columns=2)
  return files


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
  for base in BASES:
    rows = []
    for name in found["arms"]:
      if p := found["paired"].get(f"{name}-{base}"):
        change = f"{100 * p['difference']:+.1f}"
        rows.append(figures.Estimate(looks[name], name, p["difference"], p["ci"], change))
      elif name == base:
        rows.append(figures.Estimate(looks[name], name, 0.0, None, "reference"))
    if len(rows) > 1:
      panels.append(
        figures.intervals(
          f"Difference from {base}",
          "percentage points, same problems; hollow: includes 0",
          rows,
          lambda v: f"{100 * v:+.3g}" if v else "0",
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
      hint = "accuracy; whiskers: 95% interval"
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
