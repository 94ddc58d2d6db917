"""Trains students: makes the examples of an arm, including those that the student writes."""

import dataclasses
import functools

import jax
import numpy as np

from gen_ssd import cards
from gen_ssd import collecting
from gen_ssd import config as config_lib
from gen_ssd import folders
from gen_ssd import inputs
from gen_ssd import mesh as mesh_lib
from gen_ssd import workdir as workdir_lib
from gen_ssd.collect import loop
from gen_ssd.collect import posthoc
from gen_ssd.errors import UserError
from gen_ssd.models import attention
from gen_ssd.models import export
from gen_ssd.models import hf
from gen_ssd.models import weights
from gen_ssd.training import credit
from gen_ssd.training import packing
from gen_ssd.training import terms
from gen_ssd.training import train as train_lib

OWN = "student"  # as the writer of traces: the student that learns from them


def student(config, workdir, name, seed=0):
  """Path of a student: base, cold_start, or that of an arm, which is trained here if it was not yet."""
  if name in ("base", "cold_start"):
    return hf.locate(config.student.path) if name == "base" else str(workdir / name / "student")
  home, arm = workdir / "arms" / name / f"seed-{seed}", dict(config.arms)[name]
  if not workdir_lib.has_student(home):
    settings = dataclasses.replace(arm.train, seed=arm.train.seed + seed)
    writes = functools.partial(_written, config, arm.select, settings, home)
    train(
      config,
      examples(config, workdir, name, arm),
      settings,
      home,
      field=config_lib.train_field(config, name, arm),
      title=f"train {name}" + f", seed {seed}" * (config.seeds > 1),
      own=writes if settings.samples else None,
      source=student(config, workdir, arm.train.start, seed),
    )
  return str(home / "student")


def examples(config, workdir, name, arm):
  """What an arm learns from: [(packing.Rows, their share)], its kept traces and those of train.also.

  Its own are weighted by its credit. There are none where its student writes all examples itself.
  """
  train = arm.train
  if train.samples == 1:
    return []
  found = _weighted(config, workdir_lib.arm_rows(workdir, name)[1], train, arm.select.writer)
  if train.cold_traces:
    cold = inputs.training_pairs(config, collecting.cold_rows(config, workdir))
    found = packing.Rows([*cold, *found.pairs], train.length)
  if not train.also:
    return [(found, 1.0)]
  writer = dict(config.arms)[train.also].select.writer
  pairs = inputs.training_pairs(config, workdir_lib.arm_rows(workdir, train.also)[1], writer=writer)
  also = packing.Rows(pairs, train.length)
  return [(found, 1 - train.also_share), (also, train.also_share)]


def _weighted(config, rows, train, writer):
  """packing.Rows of traces with the weights of `train.credit`, without those that pull on nothing.

  Where a student's own all do, an update with them has no gradient.
  """
  weights = credit.CREDITS[train.credit](rows, train)
  some = [i for i, w in enumerate(weights) if np.any(w)]
  if writer == OWN and not some:
    some = [*range(len(rows))]
  some = [
    i for i in some if train.given == "learn" or rows[i]["given_tokens"] < rows[i]["num_tokens"]
  ]
  pairs = inputs.training_pairs(config, [rows[i] for i in some], writer=writer)
  if train.given == "mask":
    pairs = [_masked(pair, rows[i]) for pair, i in zip(pairs, some)]
  if train.credit == "one":
    return packing.Rows(pairs, train.length)
  column = credit.columns([weights[i] for i in some], [response for _, response in pairs])
  return packing.Rows(pairs, train.length, {"weights": column})


def _masked(pair, row):
  """(prompt ids, response ids) with the given part of a trace in the prompt: it is not learned."""
  prompt, response = pair
  given = row["given_tokens"]
  at = len(response) - row["num_tokens"] + given if given else 0
  return [*prompt, *response[:at]], response[at:]


def _written(config, select, train, home, number, model, teacher):
  """What the student `model` of an arm writes in round `number` of its training: packing.Rows.

  Its traces stay in home/rounds; a finished round is read back. With credit `gap`, `teacher` reads
  them.
  """
  folder, problems = home / "rounds" / f"{number:04d}", inputs.problems(config, "train")
  size = train.asked or len(problems)
  turn = [problems[i % len(problems)] for i in range(number * size, (number + 1) * size)]
  seed = (select.seed + 1000 * train.seed + number) % 2**32
  select = config_lib.alone(select, attempts=train.answers, seed=seed)
  rows = loop.finished(turn, select, folder / "traces")
  if rows is None:
    if not workdir_lib.has_student(folder):
      _export(config, model, folder)
    title = f"round {number} of {home.parent.name}"
    models = collecting.Models(writer=str(folder / "student"))
    rows = collecting.collect(config, select, folder / "traces", turn, models, title)
    mesh_lib.barrier(f"{title} written")
  if jax.process_index() == 0:
    folders.remove(folder / "student")
  if train.credit == "gap":  # the teacher's nll of their tokens stands for that of a chooser
    pairs = inputs.training_pairs(config, rows, writer=OWN)
    nlls = posthoc.nlls(teacher, pairs, batch=4 * jax.sharding.get_mesh().size)
    rows = [{**r, "student_nlls": nll[-len(r["ids"]) :].tolist()} for r, nll in zip(rows, nlls)]
  return _weighted(config, rows, train, OWN)


def train(config, given, settings, folder, *, title, source=None, field="warm_up", own=None):
  """Fine-tunes the base student, or weights at `source`, and exports it to folder/student.

  Args:
    given: the examples: [(packing.Rows, their share)]; none where `own` makes all of them.
    settings: a Train, which stands at `field` of the config.
    own: makes the student's own examples of a round, from its number, the model, and the teacher,
      which is None if neither a term nor the credit compares with it.
  """
  path, tokenizer = hf.locate(config.student.path), inputs.tokenizer(config.student)

  def fitting(rows):
    if not len(rows):
      why = (
        "no trace was kept" if settings.credit == "one" else f"{field}.credit is 0 for all traces"
      )
      raise UserError(f"{title}: there is nothing to train on: {why}")
    rows, note = packing.fitting(rows, settings, field)
    if note and jax.process_index() == 0:
      print(f"{title}: {note}")
    return rows

  given = [(fitting(rows), share) for rows, share in given]

  def of_round(number, model):
    assert own
    rows, others = fitting(own(number, model, read.get("teacher"))), 1 - settings.samples
    return packing.Mixed([(rows, settings.samples), *[(x, others * y) for x, y in given]])

  start = hf.locate(source) if source else path
  kind = attention.implementation(config.attention)
  model = weights.load(start, train_lib.layout(hf.read_architecture(path), attention=kind))
  others = {
    "teacher": (hf.locate(config.teacher.path), config.teacher),
    "base": (path, config.student),
    "start": (start, config.student),
  }
  compared = terms.frozen(settings.terms)
  read = {
    whom: _reader(*others[whom], settings.unroll, kind)
    for whom in terms.models(settings)
    if whom != "lagged"
  }
  known = [tokenizer, *[inputs.tokenizer(config.teacher)] * ("teacher" in compared)]
  model = train_lib.fit(
    model,
    of_round if own else packing.Mixed(given),
    settings,
    folder / "checkpoints",
    others={whom: read[whom] for whom in compared},
    vocab=min(map(len, known)),
    title=title,
    field=field,
  )
  count = sum(len(rows) for rows, _ in given)
  _export(config, model, folder, cards.student(config, title, settings, count))


def _export(config, model, folder, card=""):
  """Writes a student to folder/student, with the chat template that the config gives it."""
  own_template = config.student.chat_template or config.student.thinking
  export.save(
    str(folder / "student"),
    model,
    hf.locate(config.student.path),
    dtype="float32",
    chat_template=inputs.tokenizer(config.student).chat_template if own_template else "",
    card=card,
  )


def _reader(path, model, unroll, kind):
  """A second model of the loss, placed for training; `model` is a config's Model."""
  layout = train_lib.second_layout(hf.read_architecture(path), model, unroll, kind)
  return weights.load(path, layout)
