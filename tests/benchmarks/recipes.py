"""Says what held of the expectations of recipes, from the results of a run of configs/recipes.py.

  gen-ssd run --config=configs/recipes.py --workdir=runs/recipes --config.seeds=5
  python tests/benchmarks/recipes.py runs/recipes

An expectation is an order: a figure of results.json must rise from arm to arm, or the mean number of
teacher sentences of a kept trace. `must` are those without which the recipe would not do what it is
for; `paper` are findings of the papers, or guesses of ours, which may turn out otherwise here. An
order is certain where the intervals of neighbours do not overlap; figures of traces have none.
"""

import argparse
import json
import math
import pathlib
import sys

ROOT = pathlib.Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))
from gen_ssd import workdir as workdir_lib  # noqa: E402
from gen_ssd.collect import posthoc  # noqa: E402

# (recipe, kind, figure, arms from the lowest to the highest)
EXPECTATIONS = (
  ("gkd", "must", "kl_data", ("kd_offline", "longer")),
  ("gkd", "must", "kl_own", ("on_policy_rkl", "kd_offline", "standard_kd")),
  ("gkd", "paper", "accuracy", ("longer", "on_policy_rkl")),
  ("gkd", "paper", "accuracy", ("gkd", "gen_ssd")),
  ("redi", "must", "wrong_minus_right", ("standard_kd_all", "redi")),
  ("redi", "must", "wrong_minus_right", ("redi_0", "redi", "redi_1")),
  ("redi", "paper", "accuracy", ("redi_0", "redi")),
  ("tsd_kd", "must", "own_entropy", ("tsd_kd", "direct_order")),
  ("tsd_kd", "paper", "accuracy", ("gkd_09", "direct", "tsd_kd")),
  ("curiosft", "must", "own_entropy", ("standard_kd", "curiosft")),
  ("opd", "must", "kl_own", ("opd", "standard_kd")),
  ("minillm", "must", "kl_own", ("minillm", "standard_kd")),
  ("minillm", "paper", "accuracy", ("opd", "minillm")),
  ("grpo", "paper", "accuracy", ("standard_kd", "grpo")),
  ("grpo", "paper", "ways.answers.fine", ("standard_kd", "grpo")),
  ("fidelity", "must", "kl_data", ("kd_offline", "longer")),
  ("fidelity", "must", "kl_own", ("rkl", "longer")),
  ("pld", "paper", "accuracy", ("standard_kd", "pld")),
  ("rmd", "paper", "kl_data", ("third", "second", "fkl")),
  ("dasd", "must", "teacher_sentences", ("gen_ssd", "standard_kd", "t10")),
  ("dasd", "paper", "ways.kept.coarse", ("gen_ssd", "standard_kd", "t10")),
  ("dasd", "paper", "accuracy", ("t06", "t10", "mixed")),
  ("dasd", "paper", "accuracy", ("mixed_masked", "mixed")),
)


def figure(arms, arm, name):
  """(value, lowest, highest) of a figure of an arm; None where it was not measured.

  A figure without an interval might be anything.
  """
  found = arms.get(arm, {})
  if name == "accuracy":
    found = {"value": found.get(name), "ci": found.get("ci")}
  else:
    for part in name.split("."):
      found = (found or {}).get(part)
  if isinstance(found, float):
    return found, -math.inf, math.inf
  return None if not found or found["value"] is None else (found["value"], *found["ci"])


def teacher_sentences(workdir, arm):
  """The mean number of a kept trace's sentences that are likelier to the teacher: see teacher_count."""
  kept = workdir_lib.arm_rows(workdir, arm)[1]
  return float(-posthoc.score(kept, "teacher_count").mean())


def shown(x):
  """The text of a figure."""
  if x is None:
    return "-"
  return f"{x[0]:.3f}" + f" ({x[1]:.3f} to {x[2]:.3f})" * math.isfinite(x[1])


def judge(arms, name, order):
  """A verdict on one order, and its figures."""
  figures = [figure(arms, arm, name) for arm in order]
  if None in figures:
    return "not measured", figures
  pairs = [*zip(figures, figures[1:])]
  if all(a[2] < b[1] for a, b in pairs):
    return "holds", figures
  return ("holds, not certain" if all(a[0] < b[0] for a, b in pairs) else "DOES NOT HOLD"), figures


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("workdir", type=pathlib.Path, help="of a run that is done")
  file = parser.parse_args().workdir / "results.json"
  if not file.exists():
    parser.error(f"{file} does not exist: run configs/recipes.py to its end first")
  arms, broken = json.loads(file.read_text())["arms"], 0
  for name in {
    arm for _, _, of, order in EXPECTATIONS for arm in order if of == "teacher_sentences"
  }:
    if name in arms:
      arms[name]["teacher_sentences"] = teacher_sentences(file.parent, name)
  for recipe, kind, name, order in EXPECTATIONS:
    verdict, figures = judge(arms, name, order)
    broken += kind == "must" and verdict == "DOES NOT HOLD"
    text = " < ".join(f"{arm} {shown(x)}" for arm, x in zip(order, figures))
    print(f"{recipe:9} {kind:6} {verdict:19} {name}: {text}")
  sys.exit(f"{broken} expectations that must hold do not" if broken else 0)


if __name__ == "__main__":
  main()
