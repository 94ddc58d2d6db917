"""Made-up pages that hold all that a page can show, and texts that are hard to lay out."""

import json
import pathlib
import random

from gen_ssd.problems import overlap
from gen_ssd.problems import problem
from gen_ssd.report import comparison_figures
from gen_ssd.report import looks
from gen_ssd.report import page
from gen_ssd.report import sweep_page
from tests.report import made_run

WIDE = (
  r"\[\sum_{i=1}^{n} \frac{i^2(i+1)^2(i+2)^2}{(i+3)^2(i+4)^2} = \int_0^\infty e^{-x^2}\,dx + "
  r"\begin{pmatrix} 1 & 2 & 3 & 4 & 5 & 6 & 7 & 8 \end{pmatrix} + abcdefghijklmnopqrstuvw\]"
)
HARD = f"Let $a$ be real with {WIDE} and see https://example.org/{'x' * 120} ."
LONG_NAME = "deepseek-r1-distill-qwen-32b-to-qwen2.5-1.5b_with_a_name_that_goes_on_and_on"


def run(folder: pathlib.Path) -> pathlib.Path:
  """The page of a run with all of its figures, tables and lists."""
  made_run.make(folder)
  results = json.loads(json.dumps(made_run.RESULTS))
  for name, arm in results["arms"].items():
    arm["seeds"] = [arm["accuracy"] + d for d in (-0.02, 0.0, 0.03)]
    for field, step in (("pass_at_k", 0.05), ("maj_at_k", 0.03)):
      arm[field] = {
        str(k): {"value": (at := arm["accuracy"] + step * i), "ci": [at - 0.04, at + 0.04]}
        for i, k in enumerate((1, 4, 16, 64))
      }
    arm["diversity"] = {"kept": {"distinct_ngrams": 0.25, "distinct_texts": 0.5}}
    shares = {"longest": 0.351, "shortest": 0.891, "repeated": 0.0}
    arm["held_out_nll"] = {"value": arm["student_nll"] + 0.4, "ci": [0.9, 1.1], "n": 64}
    arm["ways"] = {"kept": dict(steps=900, fine=0.35, coarse=0.45, detour=0.2, other=0.0)}
    for figure in ("kl_own", "kl_data", "own_entropy", "wrong_minus_right"):
      arm[figure] = {"value": arm["student_nll"] / 3, "ci": [0.1, 0.3], "n": 64}
    arm["picks"] = {"rounds": 2049, **shares, "chance": shares}
    made_run.write_lines(
      folder / "arms" / name / "seed-0" / "checkpoints" / "metrics.jsonl",
      [{"step": i, "loss": 3 / i + arm["student_nll"] / 20, "targets": 9.0} for i in range(1, 101)],
    )
  results["models"] = {"teacher": {"accuracy": 0.91, "ci": [0.88, 0.94], "n": 320}}
  results["tests"] = {"math500": {"arms": results["arms"]}}
  (folder / "results.json").write_text(json.dumps(results))
  own, asked = (
    problem.Problem("0", "made up", split, f"What is 1 + 1 for {split} ?", "2")
    for split in ("train", "test")
  )
  pair = overlap.Match(own, asked, 0.75, "0.75 of it").row("test")
  (folder / "overlap.json").write_text(json.dumps([pair]))
  return page.write_report(folder)


def hard(folder: pathlib.Path) -> pathlib.Path:
  """The page of a run with long names, words and formulas, which are drawn."""
  made_run.make(folder, problems=8)
  rng = random.Random(0)
  select = {**made_run.CONFIG["select"], "scorer": LONG_NAME}
  arms = {**made_run.CONFIG["arms"], LONG_NAME: {"scorer": LONG_NAME}}
  config = {**made_run.CONFIG, "name": LONG_NAME, "select": select, "arms": arms}
  config["teacher"] = {"path": f"/checkpoints/{LONG_NAME}/{LONG_NAME}"}
  (folder / "config.json").write_text(json.dumps(config))
  results = json.loads(json.dumps(made_run.RESULTS))
  results["arms"][LONG_NAME] = results["arms"]["random"]
  results["paired"][f"{LONG_NAME}-random"] = results["paired"]["gen_ssd-posthoc"]
  (folder / "results.json").write_text(json.dumps(results))
  for shard in folder.glob("traces/*/traces-*.jsonl"):
    rows = [json.loads(line) for line in shard.read_text().splitlines()]
    for row in rows:
      row["problem"] = f"{HARD} {row['problem']}"
      row["text"] = f"<think>{HARD * 4}</think>{HARD} {row['text']}"
      for chunk in row["chunks"]:
        chunk["text"] += f" {HARD}" * rng.randrange(3)
    made_run.write_lines(shard, rows)
  return page.write_report(folder, formulas="mathml")


def many(folder: pathlib.Path) -> pathlib.Path:
  """The page of a run with 10,000 traces."""
  made_run.make(folder, problems=2500)
  return page.write_report(folder)


def sweep(folder: pathlib.Path) -> pathlib.Path:
  """The page of a sweep with every known arm, and its figures as files beside it."""
  arms = {name: _arm(0.05 + 0.4 * (i / 14) ** 3) for i, name in enumerate(looks.KNOWN_ARMS)}
  some = {name: arms[name] for name in ("standard_kd", "gen_ssd")}
  found = {
    "arms": arms,
    "items": {"seed=0": some, "select.k=16,select.c=128,select.temperature=0.85": some},
    "paired": {
      f"{a}-{b}": {"difference": (d := arms[a]["accuracy"] - arms[b]["accuracy"]), "n": 1000}
      | {"ci": [d - 0.03, d + 0.03]}
      for a in arms
      for b in looks.BASES
      if a != b
    },
    "sweeps": {
      "scorer": _lines("perplexity", "local", "drop_first", "teacher_gap", "shortest", "longest"),
      "k": _lines(1, 2, 4, 8),
    },
  }
  for name, text in comparison_figures.draw(found).items():
    (folder / name).write_text(text, encoding="utf-8")
  path = folder / "sweep.html"
  path.write_text(sweep_page.html(found, LONG_NAME), encoding="utf-8")
  return path


def _arm(accuracy):
  return {
    **made_run.RESULTS["arms"]["gen_ssd"],
    "accuracy": accuracy,
    "ci": [accuracy - 0.02, accuracy + 0.02],
    "n": 1000,
    "seeds": [accuracy - 0.03, accuracy, accuracy + 0.03],
    "mean_kept_tokens": 34.0,
    "coverage": 0.9,
    "equal_teacher_tokens": accuracy,
    "training_tokens": 284190.0,
  }


def _lines(*values):
  return {
    arm: [{"value": v, **_arm(start + 0.05 * i)} for i, v in enumerate(values)]
    for arm, start in (("gen_ssd", 0.3), ("posthoc", 0.28), ("gen_ssd_no_cold_start", 0.2))
  }
