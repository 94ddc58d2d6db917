"""The stages of a run, one function each. All files are in workdir; a finished part is not made again.

collecting.py, students.py and instruments.py do the work.

workdir/cold_start/   traces of the teacher, the warmed-up student that will choose
workdir/traces/HASH/  traces written with the same settings; arms that differ only in what they keep
                      share it (refresh-N/: the student that chose after N problems)
workdir/arms/NAME/    which traces are kept; a student and its answers in seed-0/, ...
workdir/models/NAME/  answers of the models that are measured beside the arms
workdir/results.json, report.html
"""

import collections
import contextlib
import json
import math

import jax

from gen_ssd import cards
from gen_ssd import checks
from gen_ssd import claims
from gen_ssd import collecting
from gen_ssd import config as config_lib
from gen_ssd import folders
from gen_ssd import inputs
from gen_ssd import instruments
from gen_ssd import mesh as mesh_lib
from gen_ssd import programs
from gen_ssd import students
from gen_ssd import trackers
from gen_ssd import workdir as workdir_lib
from gen_ssd.collect import tables
from gen_ssd.collect import traces
from gen_ssd.report import page
from gen_ssd.report import results
from gen_ssd.training import packing
from gen_ssd.training import pretrain as pretrain_lib


def run(config, workdir, devices=None):
  """Checks a Config, makes `workdir` its home and runs its stages on `devices` (default: all).

  Run again after it was stopped, it goes on to the same files. Raises UserError, before any
  compute, for a setting, model or problem file that cannot be, for sizes that do not fit into the
  memory of the devices, and for a workdir that another config has or that is in use.
  """
  checks.check(config)
  workdir = folders.path(workdir)
  with begun(config, workdir, devices):
    run_stages(config, workdir)


def run_stages(config, workdir):
  """Runs the stages of a Config whose run has begun, with its trackers open."""
  with trackers.opened(config.trackers, workdir, config_lib.settings(config)):
    for stage in config.stages:
      STAGES[stage](config, workdir)


@contextlib.contextmanager
def begun(config, workdir, devices=None):
  """The mesh and the claim on `workdir` of a checked Config; holds the workdir's lock.

  Raises UserError as `run` does.
  """
  mesh = mesh_lib.start(config.model_parallel, devices)
  checks.check_devices(config, mesh)
  checks.check_earlier(config, workdir)
  with claims.claimed(workdir, config, inputs.identities(config)):
    if jax.process_index() == 0 and "pretrain" not in config.stages:
      workdir_lib.describe(workdir, config.name)
      _write_overlap(config, workdir)
    with mesh_lib.together():
      programs.check(config, workdir, mesh.local_devices[0])
      yield


def _write_overlap(config, workdir):
  """overlap.json: which problems are not trained on, because they are near test problems."""
  rows = [match.row(test) for test, match in inputs.near_duplicates(config)]
  folders.write(workdir / "overlap.json", json.dumps(rows, indent=1))
  if rows:
    count = collections.Counter(row["split"] for row in rows)
    print(
      f"problems.overlap is {config.problems.overlap}: {count['train']} training and "
      f"{count['cold_start']} cold-start problems are left out as near duplicates of test problems, "
      f"see {workdir / 'overlap.json'}"
    )


def cold_start(config, workdir):
  """Teacher traces on a few problems, and the student fine-tuned on the right ones."""
  folder = workdir / "cold_start"
  if workdir_lib.has_student(folder):
    return
  problems = inputs.problems(config, "cold_start")[config.problems.held_out :]
  home = folder / "traces"
  rows = collecting.collect(
    config, config.cold_start, home, problems, collecting.Models(), "cold start"
  )
  pairs = inputs.training_pairs(config, collecting.cold_kept(config, rows))
  examples = [(packing.Rows(pairs, config.warm_up.length), 1.0)]
  students.train(config, examples, config.warm_up, folder, title="cold-start training")


def collect(config, workdir):
  """Every arm's traces, and which of them are kept."""
  for name, arm in config_lib.ordered(config.arms):
    select, folder = arm.select, workdir / "arms" / name
    plain = config_lib.collection(select)
    home = workdir_lib.collection_hash(select, config.arms)
    done = (folder / "kept.json").exists()
    mesh_lib.barrier(f"{name} looked for")  # before anybody writes it
    rows, thresholds = _write(config, workdir, plain, workdir / "traces" / home, name)
    if done:
      continue
    kept = traces.kept(rows, keep=select.keep, pruned=select.pruned)
    if select.granularity == "trace":
      kept = collecting.best(
        config, students.student(config, workdir, select.chooser), select, kept
      )
    if jax.process_index() == 0:
      folder.mkdir(parents=True, exist_ok=True)
      pairs = [[r["uuid"], r["attempt"]] for r in kept]
      dataset = folder / "dataset"
      dataset.mkdir(parents=True, exist_ok=True)
      lost = workdir_lib.lost_candidates(workdir / "traces" / home)
      counts = tables.write(dataset, rows, kept, lost, config.problems.system)
      folders.write(dataset / "README.md", cards.data_set(config, name, rows, kept, counts))
      folders.write(
        folder / "traces.json", json.dumps({"collection": home, "thresholds": thresholds})
      )
      folders.write(folder / "kept.json", json.dumps(pairs))
    trackers.write(f"collect {name}", len(rows), {"kept": len(kept) / max(len(rows), 1)})
    mesh_lib.barrier(f"{name} written")


def _write(config, workdir, select, folder, name):
  """(rows, thresholds) of a collection; every `select.refresh` problems the student is trained anew.

  That is like the cold start, on its traces and those kept so far. The student of folder/refresh-N
  chooses from problem N on. A finished part is looked at, too: a trace that was damaged since is
  written again by the student that wrote it. A threshold for every student; none where it is off.
  """
  thresholds = []
  problems = inputs.problems(config, "train")
  student = students.student(config, workdir, select.chooser)
  writer = None if select.writer == "teacher" else students.student(config, workdir, select.writer)
  select, given = collecting.continued(config, workdir, select)
  size = select.refresh or len(problems)
  for end in range(size, len(problems) + size, size):
    fresh = folder / f"refresh-{end}"
    models = collecting.Models(writer=writer, chooser=student, given=given)
    threshold = collecting.threshold_of(config, workdir, select, models)
    thresholds += [threshold] * math.isfinite(threshold)
    rows = collecting.collect(
      config, select, folder, problems[:end], models, f"collect {name}", threshold
    )
    if end < len(problems) and not workdir_lib.has_student(fresh):
      kept = traces.kept(rows, keep=select.keep, pruned=select.pruned)
      pairs = inputs.training_pairs(config, collecting.cold_rows(config, workdir))
      pairs += inputs.training_pairs(config, kept, writer=select.writer)
      examples = [(packing.Rows(pairs, config.warm_up.length), 1.0)]
      students.train(config, examples, config.warm_up, fresh, title=f"refresh {name} after {end}")
    student = str(fresh / "student")
  return rows, thresholds


def train(config, workdir):
  """The students of every arm, one for each seed."""
  for name, _ in config_lib.ordered(config.arms):
    for i in range(config.seeds):
      students.student(config, workdir, name, i)


def evaluate(config, workdir):
  """Answers of every student, and of the references, to every test; results.json, and tables."""
  problems = {t: inputs.problems(config, "test", e) for t, e in inputs.tests(config)}
  for title, home, model in _measured(config, workdir):
    for test, e in inputs.tests(config):
      collecting.collect(
        config,
        inputs.answering(config, e),
        workdir_lib.answers(home, test),
        problems[test],
        collecting.Models(writer=model, examples=inputs.examples(e)),
        " ".join(filter(None, ("evaluate", title, test))),
      )
  answered = [(home, path) for _, home, path in _measured(config, workdir) if path]
  instruments.read(config, workdir, answered)
  if jax.process_index() == 0:
    training = len(inputs.problems(config, "train")) if config.arms else 0
    asked = {test: {p.uuid for p in found} for test, found in problems.items()}
    counts = {test: len(found) for test, found in asked.items()}
    together = len(set().union(*asked.values()))
    found = results.write(workdir, config, counts, together, training)
    for test, one in found.get("tests", {"": found}).items():
      accuracies = {name: arm["accuracy"] for name, arm in one["arms"].items()}
      trackers.write(f"accuracy {test}", 0, accuracies)
    print(results.tables(found, config))


def _measured(config, workdir):
  """(title, folder of its answers, path or None for the teacher) of the models that answer tests."""
  paths = {
    "teacher": None,
    "base": config.student.path,
    "cold_start": str(workdir / "cold_start" / "student"),
  }
  for name in config.references:
    if name != "cold_start" or workdir_lib.has_student(workdir / name):
      yield name if config.arms else "", workdir / "models" / name, paths[name]
  for name, _ in config.arms:
    for i in range(config.seeds):
      home = workdir / "arms" / name / f"seed-{i}"
      yield name + f", seed {i}" * (config.seeds > 1), home, str(home / "student")


def report(config, workdir):
  """report.html: one page to look at."""
  if jax.process_index() == 0:
    print(f"report: {page.write_report(workdir)}")


def pretrain(config, workdir):
  """Makes one of the bundled models."""
  pretrain_lib.pretrain(config, workdir)


STAGES = {f.__name__: f for f in (cold_start, collect, train, evaluate, report, pretrain)}
