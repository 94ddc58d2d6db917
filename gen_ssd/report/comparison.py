"""What the finished items of a sweep say together: sweep.json, tables, figures, a page and examples."""

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
from gen_ssd.report import comparison_figures
from gen_ssd.report import comparison_tables
from gen_ssd.report import examples
from gen_ssd.report import looks
from gen_ssd.report import statistics
from gen_ssd.report import sweep_page
from gen_ssd.report import words

FILES = ("sweep.json", "sweep.md", "sweep.html", "examples.md")
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
    for base in looks.BASES
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
  files = {
    "sweep.json": json.dumps(found, indent=1),
    "sweep.md": comparison_tables.markdown(found),
    "sweep.html": sweep_page.html(found, workdir.name),
    **comparison_figures.draw(found),
  }
  if {"gen_ssd", "random"} <= found["arms"].keys():
    files["examples.md"] = examples.examples(workdir / next(iter(configs)))
  for name, text in files.items():
    folders.write(workdir / name, words.visible(text))
  return words.visible(files["sweep.md"]), [workdir / name for name in files]
