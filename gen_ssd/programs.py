"""The compiled programs of a run, from the facts of its config alone: no weights, no data."""

import typing

import jax

from gen_ssd import config as config_lib
from gen_ssd import inputs
from gen_ssd.collect import writer as writer_lib
from gen_ssd.config import Config
from gen_ssd.engine import step as step_lib
from gen_ssd.models import hf
from gen_ssd.models import weights
from gen_ssd.models.architecture import Architecture
from gen_ssd.models.architecture import Layout
from gen_ssd.training import train as train_lib

NAMES = ("step", "admit", "train")


class Pair(typing.NamedTuple):
  """The architectures of teacher and student."""

  teacher: Architecture
  student: Architecture


def architectures(config: Config) -> Pair:
  """What config.json of both models says. Downloads nothing else. Raises UserError."""
  only = ("config.json",)
  read = lambda model: hf.read_architecture(hf.locate(model.path, only))
  return Pair(read(config.teacher), read(config.student))


def lower(config: Config, select: config_lib.Select, pair: Pair, name: str) -> jax.stages.Lowered:
  """One of NAMES on the current mesh: a round, an admission of collection `select`, or an update."""
  if name == "train":
    state, batch = train_lib.shapes(pair.student, config.train)
    return train_lib.train_step.lower(state, batch, config=train_lib.static(config.train))
  teacher = weights.shapes(
    pair.teacher, Layout(dtype=config.teacher.dtype, unroll=config.teacher.unroll)
  )
  layout = Layout(dtype=config.student.dtype, unroll=config.student.unroll, **inputs.ALONE)
  student = weights.shapes(pair.student, layout)
  state, admission, knobs = writer_lib.shapes(teacher, student, select)
  static = writer_lib.round_of(select, config_lib.ring_slots(select))
  if name == "admit":
    return step_lib.admit.lower(teacher, student, state, admission, c=static.c, block=static.block)
  return step_lib.select_step.lower(teacher, student, state, knobs, round=static)
