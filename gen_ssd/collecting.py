"""Collections: traces of a writer, maybe chosen by a student, and the threshold and best of them."""

import dataclasses
import math
import typing

import numpy as np

from gen_ssd import config as config_lib
from gen_ssd import folders
from gen_ssd import inputs
from gen_ssd import workdir as workdir_lib
from gen_ssd.collect import loop
from gen_ssd.collect import posthoc
from gen_ssd.collect import traces
from gen_ssd.collect import writer as writer_lib
from gen_ssd.errors import UserError
from gen_ssd.models import decoder
from gen_ssd.models import hf
from gen_ssd.models import tokenization
from gen_ssd.problems import answers


class Models(typing.NamedTuple):
  """Who takes part in a collection: paths of models, and what they are given."""

  writer: str | None = None  # None: the teacher
  chooser: str | None = None  # the student that scores; None: nobody
  examples: tuple[tuple[str, str], ...] = ()  # what every prompt shows
  given: writer_lib.Given = None  # see continued


def collect(config, select, folder, problems, models, title, threshold=math.inf):
  """Rows of one collection; its models are loaded if there is work left."""
  path, student, examples, given = models
  if (rows := loop.finished(problems, select, folder, given)) is not None:
    return rows
  teacher, tokenizer = inputs.load(config, "student" if path else "teacher", path)
  chooser, its_tokenizer = inputs.load(config, "student", student) if student else (None, None)
  differ = config.translate and bool(chooser)
  teacher = decoder.unstacked(teacher)  # in its place: nobody holds the stacked layers any more
  chooser = chooser and decoder.unstacked(chooser)
  writer = writer_lib.Writer(
    teacher=teacher,
    teacher_tokenizer=tokenizer,
    ends=tokenization.eos_ids(hf.locate(path or config.teacher.path), tokenizer),
    student=chooser,
    student_tokenizer=its_tokenizer,
    system=config.problems.system or None,
    examples=examples,
    translate=differ and bool(tokenization.differences(tokenizer, its_tokenizer)),
    given=given,
  )
  with answers.Grader() as grader:
    return loop.collect(
      writer, problems, select, folder, grader=grader, threshold=threshold, title=title
    )


def continued(config, workdir, select):
  """(Select, Given) of a collection that goes on from all traces of the arm `select.after`.

  Where that arm has n attempts on disk, attempt a goes on from its attempt a modulo n.
  """
  arms = dict(config.arms)
  if not select.after:
    return select, None
  source = workdir_lib.collection_hash(arms[select.after].select, config.arms)
  rows = workdir_lib.finished_rows(workdir / "traces" / source)
  n = 1 + max((r["attempt"] for r in rows), default=0)
  given = {(r["uuid"], r["attempt"] + i * n): r for i in range(select.attempts) for r in rows}
  return dataclasses.replace(select, attempts=n * select.attempts), given


def threshold_of(config, workdir, select, models):
  """The highest score of a winner, in nats, for an arm's Select; infinite when it is off."""
  if select.threshold == "calibrated":
    return _calibrate(config, workdir, select, models)
  return math.inf if select.threshold == "off" else select.threshold


def _calibrate(config, workdir, select, models):
  """The threshold: a quantile of the student's chunk scores on held-out cold-start problems.

  They are written as the teacher wrote the cold start, one candidate a chunk, so this is what the
  student finds in ordinary text.
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
    after="",
    cut=config_lib.Select.cut,
  )
  base = select.chooser == "base"
  home = workdir / "cold_start" if base else folders.path(models.chooser).parent
  rows = collect(
    config,
    plain,
    home / f"calibration-{workdir_lib.short_hash(plain)}",
    problems,
    models._replace(given=None),
    "calibrate",
  )
  found = [c["score"] for r in rows for c in r["chunks"] if c["score"] is not None]
  if not found:
    raise UserError(
      f"problems.held_out is {config.problems.held_out}: no chunk of their traces has a score that "
      "could calibrate the threshold; take more problems, or set a threshold"
    )
  return float(np.quantile(found, select.quantile))


def best(config, chooser, select, rows):
  """The best whole trace of each problem.

  For some scorers the student at the path `chooser` reads all of them again.
  """
  options, difficulty = {}, None
  if posthoc.reads_again(select.scorer):
    student, tokenizer = inputs.load(config, "student", chooser)
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


def cold_kept(config, rows):
  """The traces of the cold start that the student learns."""
  return traces.kept(rows, keep=config.cold_start.keep, pruned=config.cold_start.pruned)


def cold_rows(config, workdir):
  """The traces of the cold start's training. UserError when they are gone."""
  rows = workdir_lib.finished_rows(workdir / "cold_start" / "traces")
  if not rows:
    raise UserError(
      f"{workdir / 'cold_start' / 'traces'} holds no traces of the cold start, which "
      "are wanted for training: remove cold_start/student to make both anew"
    )
  return cold_kept(config, rows)
