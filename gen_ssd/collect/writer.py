"""Who writes traces, and the settings of a collection as the compiled step takes them."""

from collections.abc import Mapping
import dataclasses
import functools
import math
import typing

import jax
from jax.sharding import PartitionSpec as P
import numpy as np

from gen_ssd import config as config_lib
from gen_ssd import mesh as mesh_lib
from gen_ssd.config import Select
from gen_ssd.engine import ring as ring_lib
from gen_ssd.engine import sampling
from gen_ssd.engine import scores
from gen_ssd.engine import selectors
from gen_ssd.engine import state as state_lib
from gen_ssd.engine import step as step_lib
from gen_ssd.errors import UserError
from gen_ssd.models import decoder
from gen_ssd.models import tokenization
from gen_ssd.models.architecture import Spec
from gen_ssd.problems.problem import Problem
from gen_ssd.rows import Row

# By uuid and first attempt of the new trace; it is written again from the same one.
Given = Mapping[tuple[str, int], Row] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Writer:
  """Who writes and who chooses: models (unstacked when they unroll) with their tokenizers."""

  teacher: decoder.Transformer
  teacher_tokenizer: typing.Any
  ends: tuple[int, ...]  # ids that end a trace
  student: decoder.Transformer | None = None
  student_tokenizer: typing.Any = None
  system: str | None = None  # system message of every prompt
  examples: tuple[tuple[str, str], ...] = ()  # (problem, solution) that every prompt shows
  translate: bool = False  # their tokenizers differ: see translate.py
  given: Given = None  # traces to go on from; None: every trace starts at its prompt

  @property
  def tokenizers(self) -> tuple:
    return self.teacher_tokenizer, self.student_tokenizer or self.teacher_tokenizer


def knobs(writer: Writer, select: Select, threshold: float) -> state_lib.Knobs:
  """The traced settings of a collection, on the mesh; ids unknown to a tokenizer are never drawn."""
  size = writer.teacher.arch.vocab
  if writer.student is None or writer.translate:
    shared = min(size, len(writer.teacher_tokenizer))
  else:
    shared = tokenization.shared_vocabulary(writer.teacher_tokenizer, writer.student_tokenizer)
  mask = functools.partial(tokenization.delimiter_mask, writer.teacher_tokenizer, size=size)
  kind = np.zeros(size, np.int8)
  if select.delimiters:
    kind[mask(select.delimiters)] = state_lib.DELIMITER
  kind[list(writer.ends)] = state_lib.EOS
  off = lambda value, otherwise: np.float32(otherwise if value == "off" else value)
  place = lambda x: jax.tree.map(mesh_lib.place, x)
  return state_lib.Knobs(
    filters=sampling.Filters(
      temperature=mesh_lib.place(np.float32(select.temperature)),
      top_k=mesh_lib.place(np.int32(select.top_k)),
      top_p=mesh_lib.place(np.float32(select.top_p)),
      vocab=mesh_lib.place(np.int32(shared)),
    ),
    limits=place(
      selectors.Limits(
        threshold=np.array(threshold, np.float32),
        margin=np.array(off(select.margin, -math.inf)),
        running_margin=np.array(off(select.running_margin, math.inf)),
        beta=np.array(select.beta, np.float32),
        teacher_share=np.array(select.teacher_share, np.float32),
      )
    ),
    branch_entropy=mesh_lib.place(np.float32(select.branch_entropy)),
    resamples=mesh_lib.place(np.int32(select.resamples)),
    context=mesh_lib.place(np.int32(select.context * select.c)),
    closing=mesh_lib.place(np.int32(closing(writer.teacher_tokenizer, select))),
    token_kind=mesh_lib.place(kind),
    step_end=mesh_lib.place(mask(select.step_delimiters)),
  )


def round_of(select: Select, ring_slots: int) -> state_lib.Round:
  """The static settings of a collection whose ring has this many ring slots."""
  return state_lib.Round(
    k=select.k,
    c=select.c,
    block=select.block or ring_slots,
    window=select.loop_window,
    scorer=scores.SCORERS[select.scorer],
    selector=selectors.SELECTORS[select.selector],
    short_context=select.context > 0,
  )


class Entries(typing.NamedTuple):
  """The entries of an Admission: a few for each part of the devices that holds slots of its own."""

  slots: int
  parts: int  # into which the devices divide the slots
  each: int  # entries of a part

  @property
  def number(self) -> int:
    return self.parts * self.each

  def groups(self, length: Mapping[int, int]) -> list[dict[int, int]]:
    """[{entry: slot}] of the admissions that read the slots {slot: tokens}.

    An entry lies where its slot does. The longest come first, so that the texts of an admission
    are of about equal lengths: the longest sets its time.
    """
    waiting: list[list[int]] = [[] for _ in range(self.parts)]
    for slot in sorted(length, key=lambda i: (-length[i], i)):
      waiting[slot * self.parts // self.slots].append(slot)
    return [
      {
        part * self.each + place: slot
        for part, own in enumerate(waiting)
        for place, slot in enumerate(own[at : at + self.each])
      }
      for at in range(0, max(map(len, waiting)), self.each)
    ]


def entries(select: Select, *models: decoder.Transformer | Spec | None) -> Entries:
  """The entries of an Admission for these models: an eighth of the slots where devices allow it."""
  sizes = jax.sharding.get_mesh().shape
  axes = [m.layout.batch_axes for m in models if m is not None]
  parts = max(math.prod(sizes[n] for n in ((a,) if isinstance(a, str) else a or ())) for a in axes)
  return Entries(select.slots, parts, max(1, select.slots // parts // 8))


def blank_admission(select: Select, number: int) -> state_lib.Admission:
  """An Admission of `number` entries on the host that starts nothing."""
  size = config_lib.ring_slots(select) + 1
  zeros = lambda *tail, dtype=np.int32: np.zeros((number, *tail), dtype)
  text = lambda: ring_lib.Text(tokens=zeros(size), length=zeros() + 1)
  return state_lib.Admission(
    slot=zeros() + select.slots,
    teacher=text(),
    student=text(),
    key=zeros(2, dtype=np.uint32),
    chunk=zeros(),
    resample=zeros(),
    budget=zeros(),
    recent=zeros(select.loop_window - 1) - 1,
    score_sum=zeros(dtype=np.float32),
    prompt_length=zeros(),
    after_thinking=zeros(dtype=bool),
  )


def shapes(
  teacher: decoder.Transformer, student: decoder.Transformer | None, select: Select
) -> tuple[state_lib.State, state_lib.Admission, state_lib.Knobs]:
  """(state, admission, knobs) of a collection as shapes: what `Engine` and `knobs` make of values."""
  batch = teacher.layout.batch_axes
  state = mesh_lib.shapes(
    step_lib.blank_state,
    teacher=teacher.spec,
    student=student and student.spec,
    b=select.slots,
    s=config_lib.ring_slots(select),
    window=select.loop_window,
  )
  row = lambda x: mesh_lib.shape(x.shape, x.dtype, P(batch, *[None] * (x.ndim - 1)))
  number, vocabulary = functools.partial(mesh_lib.shape, ()), (teacher.arch.vocab,)
  limits = {f.name: number(np.float32) for f in dataclasses.fields(selectors.Limits)}
  return (
    state,
    jax.tree.map(row, blank_admission(select, entries(select, teacher, student).number)),
    state_lib.Knobs(
      filters=sampling.Filters(
        temperature=number(np.float32),
        top_k=number(np.int32),
        top_p=number(np.float32),
        vocab=number(np.int32),
      ),
      limits=selectors.Limits(**limits),
      branch_entropy=number(np.float32),
      resamples=number(np.int32),
      context=number(np.int32),
      closing=number(np.int32),
      token_kind=mesh_lib.shape(vocabulary, np.int8),
      step_end=mesh_lib.shape(vocabulary, bool),
    ),
  )


def closing(teacher_tokenizer: typing.Any, select: Select) -> int:
  """The id after which nothing is chosen, -1 for none. UserError when there must be one."""
  return tokenization.closing_id(teacher_tokenizer) if select.covers == "thinking" else -1


def check_prompts(
  problems: list[Problem],
  tokenizers: typing.Sequence,
  select: Select,
  system: str | None,
  examples: tokenization.Examples = (),
) -> dict[str, tuple]:
  """{uuid: (teacher's prompt ids, student's)}; UserError names the first that does not fit."""
  found = {}
  for p in problems:
    found[p.uuid] = tokenization.prompts(tokenizers, p.problem, system, examples)
    if select.scoring_prompt == "teacher":
      found[p.uuid] = (found[p.uuid][0],) * 2
    longest = max(map(len, found[p.uuid]))
    if longest > select.prompt + 1:  # the newest token is not in the ring yet
      raise UserError(
        f"select.prompt is {select.prompt}: problem {p.uuid} has {longest} prompt "
        f"tokens; {-(-(longest - 1) // select.c) * select.c} would hold it"
      )
  return found


class Engine:
  """The compiled step and its state; both models read the same tokens (else see translate.py)."""

  def __init__(self, writer: Writer, select: Select, traced: state_lib.Knobs):
    self.writer, self.select, self.knobs = writer, select, traced
    self.ring_slots = config_lib.ring_slots(select)
    self.static = round_of(select, self.ring_slots)
    self.entries = entries(select, writer.teacher, writer.student)

  def reset(self) -> None:
    """Empty slots: a fence, after which a resumed run is in the same state."""
    w = self.writer
    self.state = step_lib.blank_state(
      teacher=w.teacher.spec,
      student=w.student and w.student.spec,
      b=self.select.slots,
      s=self.ring_slots,
      window=self.select.loop_window,
    )

  def admit(self, admission: state_lib.Admission) -> None:
    w, static = self.writer, self.static
    self.state = step_lib.admit(
      w.teacher, w.student, self.state, admission, c=static.c, block=static.block
    )

  def round(self, slots: typing.Any) -> state_lib.Report:
    """Dispatches one round; returns its Report, which is not waited for."""
    w = self.writer
    self.state, report = step_lib.select_step(
      w.teacher, w.student, self.state, self.knobs, round=self.static
    )
    return report
