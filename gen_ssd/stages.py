"""The story of a run, one function a stage. Everything is under workdir; a finished part is kept.

Long, because the stages share how a collection and a training are made.

workdir/cold_start/   traces of the teacher, the warmed-up student that will choose
workdir/traces/HASH/  traces of one way of writing; arms that only filter them differently share
                      (and refresh-N/, with the student that chose after N problems)
workdir/arms/NAME/    which traces are kept; a student and its answers in seed-0/, ...
workdir/models/NAME/  answers of the models that are measured beside the arms
workdir/results.json, report.html
"""

import collections
import contextlib
import dataclasses
import json
import math
import typing

import jax
import numpy as np

from gen_ssd import cards
from gen_ssd import checks
from gen_ssd import claims
from gen_ssd import config as config_lib
from gen_ssd import folders
from gen_ssd import inputs
from gen_ssd import mesh as mesh_lib
from gen_ssd import programs
from gen_ssd import trackers
from gen_ssd import workdir as workdir_lib
from gen_ssd.collect import loop
from gen_ssd.collect import posthoc
from gen_ssd.collect import tables
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
from gen_ssd.report import results
from gen_ssd.training import packing
from gen_ssd.training import pretrain as pretrain_lib
from gen_ssd.training import train as train_lib

HELD_OUT = 64  # right answers of the teacher that students read


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
  rows = _collect(config, config.cold_start, home, problems, Models(), "cold start")
  _train(config, _cold_kept(config, rows), config.warm_up, folder, title="cold-start training")


def collect(config, workdir):
  """Every arm's traces, and which of them are kept."""
  for name, select in config.arms:
    folder, plain = workdir / "arms" / name, config_lib.collection(select)
    home, done = workdir_lib.short_hash(plain), (folder / "kept.json").exists()
    mesh_lib.barrier(f"{name} looked for")  # before anybody writes it
    rows, thresholds = _write(config, workdir, plain, workdir / "traces" / home, name)
    if done:
      continue
    kept = traces.kept(rows, keep=select.keep, pruned=select.pruned)
    if select.granularity == "trace":
      kept = _best(config, workdir, select, kept)
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
  problems, student = inputs.problems(config, "train"), _chooser(config, workdir, select)
  size = select.refresh or len(problems)
  for end in range(size, len(problems) + size, size):
    fresh = folder / f"refresh-{end}"
    threshold = _threshold(config, workdir, select, student)
    thresholds += [threshold] * math.isfinite(threshold)
    models, title = Models(chooser=student), f"collect {name}"
    rows = _collect(config, select, folder, problems[:end], models, title, threshold)
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
  return rows, thresholds


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
  """Answers of every student, and of the references, to every test; results.json, and tables."""
  problems = {t: inputs.problems(config, "test", e) for t, e in inputs.tests(config)}
  for title, home, model in _measured(config, workdir):
    for test, e in inputs.tests(config):
      _collect(
        config,
        inputs.answering(config, e),
        workdir_lib.answers(home, test),
        problems[test],
        Models(writer=model, examples=inputs.examples(e)),
        f"evaluate {title} {test}".strip(),
      )
  _read_held_out(config, workdir)
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


def _read_held_out(config, workdir):
  """held_out.json of every student: its nll of right answers that the teacher gave to test problems."""
  homes = [workdir_lib.answers(workdir / "models" / "teacher", t) for t, _ in inputs.tests(config)]
  rows = [r for home in homes for r in workdir_lib.finished_rows(home) if r["verdict"] == "right"]
  some = sorted({r["uuid"]: r for r in rows}.items())[:HELD_OUT]  # ids are hashes: a random part
  files = {home / "held_out.json": path for _, home, path in _measured(config, workdir) if path}
  todo = {file: path for file, path in files.items() if some and not file.exists()}
  pairs = inputs.training_pairs(config, [r for _, r in some]) if todo else []
  for file, path in todo.items():
    student, _ = inputs.load(config.student, hf.locate(path), **inputs.ALONE)
    nlls = posthoc.mean_nlls(student, pairs, batch=4 * jax.sharding.get_mesh().size)
    if jax.process_index() == 0:
      folders.write(file, json.dumps({uuid: nll for (uuid, _), nll in zip(some, nlls)}))


def _measured(config, workdir):
  """(title, folder of its answers, path or None for the teacher) of the models that answer tests."""
  paths = {
    "teacher": None,
    "base": config.student.path,
    "cold_start": str(workdir / "cold_start" / "student"),
  }
  for name in config.references:
    if name != "cold_start" or workdir_lib.has_student(workdir / name):
      yield name, workdir / "models" / name, paths[name]
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


# ---------------------------------------------------------------- shared by the stages


class Models(typing.NamedTuple):
  """Who takes part in a collection: paths of models, and what every prompt shows."""

  writer: str | None = None  # None: the teacher
  chooser: str | None = None  # the student that scores; None: nobody
  examples: tuple[tuple[str, str], ...] = ()


def _collect(config, select, folder, problems, models, title, threshold=math.inf):
  """Rows of one collection; its models are loaded if there is work left."""
  if (rows := loop.finished(problems, select, folder)) is not None:
    return rows
  path, student, examples = models
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
  teacher = decoder.unstacked(teacher)  # in its place: nobody holds the stacked layers any more
  chooser = chooser and decoder.unstacked(chooser)
  writer = writer_lib.Writer(
    teacher=teacher,
    teacher_tokenizer=tokenizer,
    ends=tokenization.eos_ids(path, tokenizer),
    student=chooser,
    student_tokenizer=its_tokenizer,
    system=config.problems.system or None,
    examples=examples,
    translate=differ and bool(tokenization.differences(tokenizer, its_tokenizer)),
  )
  with answers.Grader() as grader:
    return loop.collect(
      writer, problems, select, folder, grader=grader, threshold=threshold, title=title
    )


def _threshold(config, workdir, select, student):
  """The highest score of a winner, in nats; infinite when it is off."""
  if select.threshold == "calibrated":
    return _calibrate(config, workdir, select, student)
  return math.inf if select.threshold == "off" else select.threshold


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
    teacher_share=config_lib.Select.teacher_share,
    branch_entropy=config_lib.Select.branch_entropy,
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
    plain,
    home / f"calibration-{workdir_lib.short_hash(plain)}",
    problems,
    Models(chooser=student),
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
    card=cards.student(config, title, settings, len(pairs)),
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
  beta = select.beta if select.selector == "softmin" else None
  return posthoc.best(rows, select.scorer, seed=select.seed, difficulty=difficulty, beta=beta)
