"""The story of a run, one function a stage. Everything is under workdir; a finished part is kept.

Long, because the stages share how a collection and a training are made.

workdir/cold_start/   traces of the teacher, the warmed-up student that will choose
workdir/traces/HASH/  traces of one way of writing; arms that only filter them differently share
                      (and refresh-N/, with the student that chose after N problems)
workdir/arms/NAME/    which traces are kept; a student and its answers in seed-0/, ...
workdir/results.json, report.html
"""

import collections
import contextlib
import dataclasses
import json
import math

import jax
import numpy as np

from gen_ssd import checks
from gen_ssd import claims
from gen_ssd import config as config_lib
from gen_ssd import folders
from gen_ssd import inputs
from gen_ssd import mesh as mesh_lib
from gen_ssd import programs
from gen_ssd import provenance
from gen_ssd import trackers
from gen_ssd import workdir as workdir_lib
from gen_ssd.collect import loop
from gen_ssd.collect import posthoc
from gen_ssd.collect import traces
from gen_ssd.collect import writer as writer_lib
from gen_ssd.errors import UserError
from gen_ssd.models import decoder
from gen_ssd.models import export
from gen_ssd.models import hf
from gen_ssd.models import tokenization
from gen_ssd.models import weights
from gen_ssd.models.architecture import Layout
from gen_ssd.problems import answers
from gen_ssd.report import page
from gen_ssd.report import statistics
from gen_ssd.training import packing
from gen_ssd.training import pretrain as pretrain_lib
from gen_ssd.training import train as train_lib


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
  rows = _collect(config, workdir, config.cold_start, home, problems, (None, None), "cold start")
  _train(config, _cold_kept(config, rows), config.warm_up, folder, title="cold-start training")


def collect(config, workdir):
  """Every arm's traces, and which of them are kept."""
  for name, select in config.arms:
    folder, plain = workdir / "arms" / name, config_lib.collection(select)
    home, done = workdir_lib.short_hash(plain), (folder / "kept.json").exists()
    mesh_lib.barrier(f"{name} looked for")  # before anybody writes it
    rows = _write(config, workdir, plain, workdir / "traces" / home, name)
    if done:
      continue
    kept = traces.kept(rows, keep=select.keep, pruned=select.pruned)
    if select.granularity == "trace":
      kept = _best(config, workdir, select, kept)
    if jax.process_index() == 0:
      folder.mkdir(parents=True, exist_ok=True)
      pairs = [[r["uuid"], r["attempt"]] for r in kept]
      traces.write_parquet(
        folder / "traces.parquet", rows, kept=pairs, system=config.problems.system
      )
      folders.write(folder / "traces.json", json.dumps({"collection": home}))
      folders.write(folder / "kept.json", json.dumps(pairs))
    trackers.write(f"collect {name}", len(rows), {"kept": len(kept) / max(len(rows), 1)})
    mesh_lib.barrier(f"{name} written")


def _write(config, workdir, select, folder, name):
  """Rows of a collection; every `select.refresh` problems the student is trained anew.

  That is like the cold start, on its traces and those kept so far. The student of folder/refresh-N
  chooses from problem N on. A finished part is looked at, too: a trace that was damaged since is
  written again by the student that wrote it.
  """
  problems, student = inputs.problems(config, "train"), _chooser(config, workdir, select)
  size = select.refresh or len(problems)
  for end in range(size, len(problems) + size, size):
    fresh = folder / f"refresh-{end}"
    rows = _collect(
      config, workdir, select, folder, problems[:end], (None, student), f"collect {name}"
    )
    if end < len(problems) and not workdir_lib.has_student(fresh):
      kept = traces.kept(rows, keep=select.keep, pruned=select.pruned)
      _train(
        config,
        _cold_rows(config, workdir) + kept,
        config.warm_up,
        fresh,
        title=f"refresh {name} after {end}",
      )
    student = str(fresh / "student")
  return rows


def train(config, workdir):
  """A student for every arm, from the same start and with the same number of updates."""
  for name, _ in config.arms:
    folder = workdir / "arms" / name
    homes = [folder / f"seed-{i}" for i in range(config.seeds)]
    if all(map(workdir_lib.has_student, homes)):
      continue
    kept = _cold_rows(config, workdir) if config.train.cold_traces else []
    kept += workdir_lib.arm_rows(workdir, name)[1]
    warm = str(workdir / "cold_start" / "student") if config.train.start == "cold_start" else None
    for i, home in enumerate(homes):
      if not workdir_lib.has_student(home):
        _train(
          config,
          kept,
          dataclasses.replace(config.train, seed=config.train.seed + i),
          home,
          title=f"train {name}" + f", seed {i}" * (config.seeds > 1),
          source=warm,
        )


def evaluate(config, workdir):
  """Every student on every test; results.json and a table a test.

  results.json holds `arms` and `paired`, over the problems of all tests; with several tests also
  `tests`, the same for each.
  """
  costs, answered, problems = (
    {},
    {},
    {t: inputs.problems(config, "test", e) for t, e in inputs.tests(config)},
  )
  for name, select in config.arms:
    folder = workdir / "arms" / name
    for test, e in inputs.tests(config):
      answered[name, test] = [
        _collect(
          config,
          workdir,
          inputs.answering(config, e),
          home / "-".join(filter(None, ("answers", test))),
          problems[test],
          (str(home / "student"), None),
          f"evaluate {name} {test}".strip() + f", seed {i}" * (config.seeds > 1),
        )
        for i, home in enumerate([folder / f"seed-{i}" for i in range(config.seeds)])
      ]
    costs[name] = statistics.collected(
      *workdir_lib.arm_rows(workdir, name),
      len(inputs.problems(config, "train")),
      whole=select.granularity == "trace",
    )
  per_test = {
    t: statistics.results(costs, {name: answered[name, t] for name in costs}, problems[t])
    for t in problems
  }
  for test, one in per_test.items():
    accuracies = {name: arm["accuracy"] for name, arm in one["arms"].items()}
    trackers.write(f"accuracy {test}", 0, accuracies)
  found = next(iter(per_test.values()))
  if len(per_test) > 1:
    pooled = {
      name: [sum(rows, []) for rows in zip(*(answered[name, t] for t in problems))]
      for name in costs
    }
    found = {**statistics.results(costs, pooled, sum(problems.values(), [])), "tests": per_test}
  if jax.process_index() == 0:
    named = {**found, "made_by": provenance.provenance()}
    folders.write(workdir / "results.json", json.dumps(named, indent=1))
    for test, one in per_test.items():
      print("\n".join(filter(None, (test, statistics.table(one)))))
    if len(per_test) > 1:
      print(f"all tests\n{statistics.table(found)}")


def report(config, workdir):
  """report.html: one page to look at."""
  if jax.process_index() == 0:
    print(f"report: {page.write_report(workdir)}")


def pretrain(config, workdir):
  """Makes one of the bundled models."""
  pretrain_lib.pretrain(config, workdir)


STAGES = {f.__name__: f for f in (cold_start, collect, train, evaluate, report, pretrain)}


# ---------------------------------------------------------------- shared by the stages


def _collect(config, workdir, select, folder, problems, models, title):
  """Rows of one collection; its models are loaded if there is work left.

  `models` are the paths of a student that writes, or None where the teacher does, and of the
  student that scores, or None.
  """
  if (rows := loop.finished(problems, select, folder)) is not None:
    return rows
  path, student = models
  if path is None:
    path = hf.locate(config.teacher.path)
    teacher, tokenizer = inputs.load(config.teacher, path)
  else:
    path = hf.locate(path)
    teacher, tokenizer = inputs.load(config.student, path, **inputs.ALONE)
  chooser, its_tokenizer = (
    (None, None) if student is None else inputs.load(config.student, student, **inputs.ALONE)
  )
  differ = config.translate and bool(chooser)
  writer = writer_lib.Writer(
    teacher=decoder.unstacked(teacher),
    teacher_tokenizer=tokenizer,
    ends=tokenization.eos_ids(path, tokenizer),
    student=chooser and decoder.unstacked(chooser),
    student_tokenizer=its_tokenizer,
    system=config.problems.system or None,
    translate=differ and bool(tokenization.differences(tokenizer, its_tokenizer)),
  )
  threshold = math.inf if select.threshold == "off" else select.threshold
  if threshold == "calibrated":
    threshold = _calibrate(config, workdir, select, student)
  with answers.Grader() as grader:
    return loop.collect(
      writer, problems, select, folder, grader=grader, threshold=threshold, title=title
    )


def _calibrate(config, workdir, select, student):
  """The threshold: a quantile of the student's chunk scores on held-out cold-start problems.

  The teacher writes them as it wrote the cold start, one candidate a chunk, so this is what the
  student finds in ordinary teacher text.
  """
  problems = inputs.problems(config, "cold_start")[: config.problems.held_out]
  plain = dataclasses.replace(
    select,
    k=1,
    temperature=config.cold_start.temperature,
    threshold="off",
    margin="off",
    running_margin="off",
    attempts=1,
    pruned="drop",
    retries=config_lib.Select.retries,
    refresh=0,
    keep=config_lib.Select.keep,
    quantile=config_lib.Select.quantile,
  )
  home = workdir / "cold_start" if select.chooser == "base" else folders.path(student).parent
  rows = _collect(
    config,
    workdir,
    plain,
    home / f"calibration-{workdir_lib.short_hash(plain)}",
    problems,
    (None, student),
    "calibrate",
  )
  found = [c["score"] for r in rows for c in r["chunks"] if c["score"] is not None]
  if not found:
    raise UserError(
      f"problems.held_out is {config.problems.held_out}: no chunk of their traces has a score that "
      "could calibrate the threshold; take more problems, or set a threshold"
    )
  return float(np.quantile(found, select.quantile))


def _cold_kept(config, rows):
  return traces.kept(rows, keep=config.cold_start.keep, pruned=config.cold_start.pruned)


def _cold_rows(config, workdir):
  """The traces of the cold start's training. UserError when they are gone."""
  rows = workdir_lib.finished_rows(workdir / "cold_start" / "traces")
  if not rows:
    raise UserError(
      f"{workdir / 'cold_start' / 'traces'} holds no traces of the cold start, which "
      "are wanted for training: remove cold_start/student to make both anew"
    )
  return _cold_kept(config, rows)


def _train(config, rows, settings, folder, *, title, source=None):
  """Fine-tunes the base student, or weights at `source`, on rows; exports it to folder/student."""
  path = hf.locate(config.student.path)
  if not rows:
    raise UserError(f"{title}: there is nothing to train on: no trace was kept")
  tokenizer = inputs.tokenizer(config.student)
  field = "warm_up" if settings is config.warm_up else "train"
  pairs, note = packing.fitting(inputs.training_pairs(config, rows), settings, field)
  if note and jax.process_index() == 0:
    print(f"{title}: {note}")
  fsdp_axes = train_lib.fsdp_axes(hf.read_architecture(path))
  layout = Layout(batch_axes=train_lib.AXES, tensor_axis=None, fsdp_axes=fsdp_axes)
  model = weights.load(hf.locate(source) if source else path, layout)
  examples = packing.Rows(pairs, settings.length)
  model = train_lib.fit(model, examples, settings, folder / "checkpoints", title=title, field=field)
  own_template = config.student.chat_template or config.student.thinking
  export.save(
    str(folder / "student"),
    model,
    path,
    dtype="float32",
    chat_template=tokenizer.chat_template if own_template else "",
  )


def _chooser(config, workdir, select):
  """Path of the student that scores an arm's candidates."""
  return (
    hf.locate(config.student.path)
    if select.chooser == "base"
    else str(workdir / "cold_start" / "student")
  )


def _best(config, workdir, select, rows):
  """The best whole trace of each problem; some scorers have the student read them again first."""
  options, difficulty = {}, None
  if posthoc.reads_again(select.scorer):
    student, tokenizer = inputs.load(
      config.student, _chooser(config, workdir, select), **inputs.ALONE
    )
    if select.scoring_prompt == "teacher":
      tokenizer = inputs.tokenizer(config.teacher)
    options = dict(batch=select.slots, system=config.problems.system or None)
  if select.scorer == "morsd":
    difficulty = posthoc.difficulties(student, tokenizer, rows, **options)
  elif select.scorer == "local":
    rows = posthoc.short_context(
      student, tokenizer, rows, context=select.context * select.c, **options
    )
  return posthoc.best(rows, select.scorer, seed=select.seed, difficulty=difficulty)
