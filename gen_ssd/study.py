"""Several runs read as one study: python -m gen_ssd.study --workdir=runs/study [--quick].

The config file names its runs (RUNS, and QUICK for --quick); each is an ordinary run in
workdir/NAME, kept when it is finished. What they say together goes to workdir/study.json,
study.md, examples.md and three figures.
"""

import collections
import importlib.util
import json
import pathlib
import sys
import time

from absl import app
from absl import flags
from absl import logging

from gen_ssd import config as config_lib
from gen_ssd import mesh
from gen_ssd import stages
from gen_ssd import workdir as workdir_lib
from gen_ssd.report import figures
from gen_ssd.report import statistics

CONFIG = flags.DEFINE_string(
  "config", "configs/study.py", "The config file: RUNS, QUICK, get_config."
)
WORKDIR = flags.DEFINE_string(
  "workdir",
  None,
  "Where everything goes; run the same command again to continue a study that was stopped.",
)
QUICK = flags.DEFINE_bool("quick", False, "The arms only, fewer problems, seeds and updates.")

BASES = ("standard_kd", "morsd", "posthoc")  # every arm is compared with these


def run(file, workdir, names, devices=None):
  """Does the runs `names` of a loaded config file; returns {name: Config}. ValueError: bad config."""
  configs = {name: config_lib.parse(file.get_config(name)) for name in names}
  for name, config in configs.items():
    stages.begin(config, workdir / name, devices)
  for i, (name, config) in enumerate(configs.items()):
    if (workdir / name / "report.html").exists():  # the last thing a run writes
      continue
    print(f"-- {name} ({i + 1} of {len(names)})", flush=True)
    mesh.start(config.model_parallel, devices)
    for stage in config.stages:
      stages.STAGES[stage](config, workdir / name)
  return configs


def read(workdir, configs, sweeps):
  """study.json of finished runs: arms and paired differences of the first run, and the sweeps.

  `training_tokens` are the targets of all updates, estimated from those that were logged.

  sweeps: {name: {line: [(value, run, arm), ...]}}; one of runs that were not done is left out.
  """
  runs = {name: json.loads((workdir / name / "results.json").read_text()) for name in configs}
  first = next(iter(configs))
  arms = runs[first]["arms"]
  answers = {name: workdir_lib.arm_answers(workdir / first, name) for name in arms}
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
    targets = [json.loads(line)["targets"] for line in log.read_text().splitlines()]
    a["training_tokens"] = round(configs[first].train.steps * sum(targets) / len(targets))
  for name, a in arms.items():  # the same accuracy twice, unless the arm was cheaper: then its _all
    rich = arms.get(f"{name}_all", a)
    a["equal_training_tokens"] = a["accuracy"]
    a["equal_teacher_tokens"] = rich["accuracy"] if rich["teacher_tokens"] > budget / 2 else None
  found = {"arms": arms, "paired": paired, "sweeps": {}}
  for sweep, lines in sweeps.items():
    if {run for points in lines.values() for _, run, _ in points} <= runs.keys():
      found["sweeps"][sweep] = {
        line: [{"value": value, **runs[run]["arms"][arm]} for value, run, arm in points]
        for line, points in lines.items()
      }
  return found


# ---------------------------------------------------------------- what a person reads


def table(found):
  """study.json's arms and differences as Markdown."""
  heads = (
    "arm",
    "accuracy, %",
    "95 % interval",
    "seeds, low - high",
    "at equal teacher tokens",
    "answer tokens",
    "kept trace tokens",
    "student nll",
    "coverage, %",
    "pruned, %",
    "teacher tokens",
    "training tokens",
  )
  lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
  percent = lambda x: "-" if x is None else f"{100 * x:.1f}"
  number = lambda x, digits=1: "-" if x is None else f"{x:,.{digits}f}"
  for name, a in found["arms"].items():
    cells = (
      f"**{percent(a['accuracy'])}**",
      " - ".join(map(percent, a["ci"])),
      f"{percent(min(a['seeds']))} - {percent(max(a['seeds']))}",
      percent(a["equal_teacher_tokens"]),
      number(a["mean_tokens"]),
      number(a["mean_kept_tokens"]),
      number(a["student_nll"], 3),
      percent(a["coverage"]),
      percent(a["pruned"]),
      number(a["teacher_tokens"], 0),
      number(a["training_tokens"], 0),
    )
    lines.append(f"| {name} | " + " | ".join(cells) + " |")
  bases = [b for b in BASES if b in found["arms"]]
  lines += [
    "",
    "| difference, points (95 % interval) | " + " | ".join(f"- {b}" for b in bases) + " |",
    "|---|" + "---|" * len(bases),
  ]
  for name in found["arms"]:
    row = []
    for base in bases:
      p = found["paired"].get(f"{name}-{base}")
      row.append(
        ""
        if p is None
        else f"{100 * p['difference']:+.1f} ({100 * p['ci'][0]:+.1f} to {100 * p['ci'][1]:+.1f})"
      )
    lines.append(f"| {name} | " + " | ".join(row) + " |")
  return "\n".join(lines) + "\n"


def draw(found, workdir):
  """arms.svg, paired.svg and, where there are sweeps, sweeps.svg."""
  looks = {name: i for i, name in enumerate(found["arms"])}
  percent = lambda v: f"{100 * v:.4g}%"
  some = next(iter(found["arms"].values()))
  hint = f"{some['n']:,} problems, {len(some['seeds'])} seeds (small rings); whiskers: 95% interval"
  panel = figures.intervals(
    "Accuracy of the student",
    hint,
    [
      (looks[n], n, a["accuracy"], a["ci"], f"{100 * a['accuracy']:.1f}%", a["seeds"])
      for n, a in reversed(found["arms"].items())
    ],
    percent,
  )
  (workdir / "arms.svg").write_text(figures.svg([panel]))
  panels = []
  for base in BASES:
    rows = [
      (looks[n], n, p["difference"], p["ci"], f"{100 * p['difference']:+.1f}")
      for n in reversed(found["arms"])
      if (p := found["paired"].get(f"{n}-{base}"))
    ]
    if rows:
      panels.append(
        figures.intervals(
          f"Difference from {base}",
          "percentage points, same problems; hollow: includes 0",
          rows,
          lambda v: f"{100 * v:+.3g}" if v else "0",
          zero=True,
        )
      )
  (workdir / "paired.svg").write_text(figures.svg(panels))
  panels = []
  for sweep, lines in found["sweeps"].items():
    for title, hint, value in (
      (f"{sweep}: accuracy", "whiskers: 95% interval", lambda p: p["accuracy"]),
      (
        f"{sweep}: cost",
        "teacher tokens for every kept trace",
        lambda p: p["teacher_tokens"] / max(p["kept"], 1),
      ),
    ):
      share = title.endswith("accuracy")
      panels.append(
        figures.curves(
          title,
          hint,
          [
            (
              looks.get(name, 0),
              name,
              [(str(p["value"]), value(p), p["ci"] if share else None) for p in points],
            )
            for name, points in lines.items()
          ],
          percent if share else lambda v: f"{v:,.0f}",
          joined=sweep != "scorer",
        )
      )
  if panels:
    (workdir / "sweeps.svg").write_text(figures.svg(panels, columns=2))


def examples(workdir, mine="gen_ssd", other="random", count=3):
  """Traces of one arm where choosing helped, and where it hurt, with all candidates, as Markdown.

  Helped: right, where the other arm (same problem, same first candidates) ended wrong; hurt: the
  other way round. The first `count` problems of each kind, in the order of the run.
  """
  rows = lambda arm: {(r["uuid"], r["attempt"]): r for r in workdir_lib.arm_rows(workdir, arm)[0]}
  chosen, plain, losers = rows(mine), rows(other), collections.defaultdict(dict)
  for r in workdir_lib.lost_candidates(workdir_lib.collection(workdir, mine)):
    losers[r["uuid"], r["attempt"]][r["chunk"], r["resample"], r["branch"]] = r["text"], r["score"]
  parts = []
  for title, good, bad in (("helped", chosen, plain), ("hurt", plain, chosen)):
    keys = [
      k
      for k in chosen
      if k in plain and good[k]["verdict"] == "right" and bad[k]["verdict"] == "wrong"
    ]
    parts.append(f"## Where choosing {title} ({len(keys)} of {len(chosen)} problems)\n")
    for k in keys[:count]:
      row = chosen[k]
      parts.append(
        f"**{row['problem']}** Answer: {row['answer']}.\n\n{other} wrote: "
        f"`{plain[k]['text']}` ({plain[k]['verdict']}).\n\n{mine} "
        f"({row['verdict']}, {row['stop']}):\n"
      )
      for i, chunk in enumerate(row["chunks"]):
        cells = [
          (chunk["text"], s)
          if b == chunk["choice"]
          else losers[k].get((i, chunk["resamples"], b), ("", s))
          for b, s in enumerate(chunk["scores"])
        ]
        parts.append(f"{i + 1}. " + _candidates(cells, chunk["choice"]))
      if row["stop"] == "pruned":
        last = [v for (i, _, _), v in sorted(losers[k].items()) if i == len(row["chunks"])]
        parts.append(f"{len(row['chunks']) + 1}. none suitable: {_candidates(last)}")
      parts.append("")
  return "\n".join(parts)


def _candidates(cells, choice=None):
  """(text, score or None) of each candidate, the chosen one bold."""
  words = [
    f"`{text.strip() or 'end'}` {'invalid' if s is None else f'{s:.2f}'}" for text, s in cells
  ]
  return " · ".join(f"**{w}**" if i == choice else w for i, w in enumerate(words))


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}")
  if not flags.FLAGS["verbosity"].present:
    logging.set_verbosity(logging.ERROR)
  workdir, start = pathlib.Path(WORKDIR.value), time.monotonic()
  spec = importlib.util.spec_from_file_location("study_config", CONFIG.value)
  file = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(file)
  try:
    configs = run(file, workdir, file.QUICK if QUICK.value else file.RUNS)
  except ValueError as error:
    sys.exit(f"gen_ssd: {error}")
  found = read(workdir, configs, getattr(file, "SWEEPS", {}))
  workdir_lib.write_atomically(workdir / "study.json", json.dumps(found, indent=1))
  workdir_lib.write_atomically(workdir / "study.md", table(found))
  first = workdir / next(iter(configs))
  workdir_lib.write_atomically(workdir / "examples.md", examples(first))
  draw(found, workdir)
  print(table(found))
  print(
    f"{workdir / 'study.json'}, study.md, examples.md, arms.svg, paired.svg"
    f"{', sweeps.svg' if found['sweeps'] else ''}: {(time.monotonic() - start) / 60:.1f} minutes"
  )


if __name__ == "__main__":
  flags.mark_flag_as_required("workdir")
  app.run(main)
