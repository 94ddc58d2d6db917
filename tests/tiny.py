"""A tiny random pair and the engine driven by hand, for tests."""

import dataclasses
import functools
import math

import jax
from jax.sharding import PartitionSpec as P
import numpy as np

from gen_ssd import claims
from gen_ssd import mesh
from gen_ssd.collect import writer as writer_lib
from gen_ssd.engine import ring as ring_lib
from gen_ssd.engine import sampling
from gen_ssd.engine import scores
from gen_ssd.engine import selectors
from gen_ssd.engine import state as state_lib
from gen_ssd.engine import step as step_lib
from gen_ssd.models import architecture
from gen_ssd.models import decoder
from gen_ssd.models import hf
from gen_ssd.models import quantization
from gen_ssd.models import tokenization
from gen_ssd.models.architecture import Architecture
from gen_ssd.models.architecture import Layout

EOS = 5
TEACHER = Architecture(
  vocab=192, width=32, layers=2, kv_heads=2, groups=2, head=8, hidden=64, theta=5e4, qk_norm=True
)
STUDENT = Architecture(
  vocab=256, width=16, layers=2, kv_heads=2, groups=1, head=8, hidden=32, tied=True, bias=True
)
SHARED = Layout()  # a teacher's: slots over `data`, heads over `model`
ALONE = Layout(batch_axes=("data", "model"), tensor_axis=None)  # a student's: replicated
PROMPT, WINDOW = 12, 8


@functools.cache
def arrays(arch):
  """Random weights on the host: {leaf: array}, the same on every mesh."""
  rng = np.random.default_rng(arch.width)
  top, layer = architecture.leaves(arch)

  def draw(name, dims):
    if name in ("ln1", "ln2", "norm", "qn", "kn"):
      return 1 + 0.1 * rng.normal(size=dims).astype(np.float32)
    return (0.25 * rng.normal(size=dims)).astype(np.float32)

  return {
    **{n: draw(n, d) for n, d in top.items()},
    **{n: draw(n, (arch.layers, *d)) for n, d in layer.items()},
  }


def build(arch, layout=None, change=lambda name, x: x):
  """The tiny model on the current mesh, ready to generate: unstacked when its layout unrolls."""
  return decoder.unstacked(stacked(arch, layout, change))


def stacked(arch, layout=None, change=lambda name, x: x):
  """The tiny model on the current mesh, ready to train."""
  layout = layout or (SHARED if arch == TEACHER else ALONE)

  def place(name, dims):
    spec = architecture.partition_spec(layout, name)
    return quantization.stored(layout, name, mesh.place(change(name, arrays(arch)[name]), spec))

  return decoder.Transformer(arch, layout, place)


def prompts(n, seed=0):
  rng = np.random.default_rng(seed)
  return [rng.integers(6, 180, rng.integers(2, PROMPT + 1)).tolist() for _ in range(n)]


FILTERS = dict(
  temperature=np.float32(1), top_k=np.int32(0), top_p=np.float32(1), vocab=np.int32(180)
)
LIMITS = dict(
  threshold=np.float32(np.inf),
  margin=np.float32(-np.inf),
  running_margin=np.float32(np.inf),
  beta=np.float32(1),
  teacher_share=np.float32(1),
)


def knobs(**changes):
  """Knobs with everything off but what is given, by the names of Knobs, Filters and Limits."""
  kind = np.zeros(TEACHER.vocab, np.int8)
  kind[EOS] = state_lib.EOS
  own = dict(
    branch_entropy=np.float32(0),
    resamples=np.int32(0),
    context=np.int32(0),
    closing=np.int32(-1),
    token_kind=kind,
    step_end=np.zeros(TEACHER.vocab, bool),
  )
  assert changes.keys() <= {*own, *FILTERS, *LIMITS}
  pick = lambda base: {n: mesh.place(np.asarray(changes.get(n, x))) for n, x in base.items()}
  return state_lib.Knobs(
    filters=sampling.Filters(**pick(FILTERS)), limits=selectors.Limits(**pick(LIMITS)), **pick(own)
  )


def put(x):
  x = np.asarray(x)
  return mesh.place(x, P("data", *[None] * (x.ndim - 1)))


def admission(b, size, entries, *, places=None, number=0, room=1000, student=None):
  """An Admission of {slot: (prompt ids, name, chunks kept)} to b slots, in `number` entries or b.

  `places` is {entry: slot} (default: entries are slots); `student` maps ids to its prompt.
  """
  number, places = number or b, places or {i: i for i in entries}
  text, length = np.zeros((2, number, size), np.int32), np.ones((2, number), np.int32)
  slot, key = np.full(number, b, np.int32), np.zeros((number, 2), np.uint32)
  chunk = np.zeros(number, np.int32)
  for n, i in places.items():
    ids, name, kept = entries[i]
    for m, own in enumerate((ids, (student or list)(ids))):
      text[m, n, : len(own)], length[m, n] = own, len(own)
    slot[n], chunk[n] = i, kept
    key[n] = jax.random.key_data(sampling.trace_key(0, f"{name:08x}", 0))
  return jax.tree.map(
    put,
    state_lib.Admission(
      slot=slot,
      teacher=ring_lib.Text(tokens=text[0], length=length[0]),
      student=ring_lib.Text(tokens=text[1], length=length[1]),
      key=key,
      chunk=chunk,
      resample=np.zeros(number, np.int32),
      budget=np.full(number, room, np.int32),
      recent=np.full((number, WINDOW - 1), -1, np.int32),
      score_sum=np.zeros(number, np.float32),
      prompt_length=length[1],
      after_thinking=np.zeros(number, bool),
    ),
  )


class Engine:
  """Slots of the tiny pair; `texts` are prompt and kept tokens, by problem name."""

  def __init__(
    self,
    *,
    b=8,
    k=3,
    c=4,
    slots=48,
    block=None,
    scorer=scores.perplexity,
    unroll=False,
    teacher=None,
    student="tiny",
    knob=None,
    room=1000,
    entries=None,
    **static,
  ):
    layouts = [dataclasses.replace(layout, unroll=unroll) for layout in (SHARED, ALONE)]
    self.teacher = teacher or build(TEACHER, layouts[0])
    self.student = build(STUDENT, layouts[1]) if student == "tiny" else student
    self.state = step_lib.blank_state(
      teacher=self.teacher.spec,
      student=self.student and self.student.spec,
      b=b,
      s=slots,
      window=WINDOW,
    )
    self.knob = knob or knobs()
    self.b, self.slots, self.room = b, slots, room
    parts = math.gcd(b, jax.sharding.get_mesh().size)
    self.entries = entries or writer_lib.Entries(b, parts, b // parts)
    self.static = state_lib.Round(
      k=k, c=c, scorer=scorer, block=block or slots, window=WINDOW, **static
    )
    self.texts, self.names, self.nll = {}, [None] * b, {}

  def admit(self, entries, kept=0, student=None):
    """Starts {slot: (ids, name)}."""
    for places in self.entries.groups({i: len(ids) for i, (ids, _) in entries.items()}):
      start = admission(
        self.b,
        self.slots,
        {i: (*entries[i], kept) for i in places.values()},
        places=places,
        number=self.entries.number,
        room=self.room,
        student=student,
      )
      self.state = step_lib.admit(
        self.teacher, self.student, self.state, start, c=self.static.c, block=self.static.block
      )
    for i, (ids, name) in entries.items():
      self.names[i], self.texts[name], self.nll[name] = name, list(ids), []

  def round(self):
    """One round; returns its Report on the host."""
    self.state, report = step_lib.select_step(
      self.teacher, self.student, self.state, self.knob, round=self.static
    )
    report = mesh.host(report)
    for i, name in enumerate(self.names):
      choice = report.choice[i]
      if name is not None and choice >= 0:
        n = report.count[i, choice]
        self.texts[name] += report.tokens[i, choice, :n].tolist()
        self.nll[name] += report.student_nll[i, choice, :n].tolist()
    return report


COMPILED = []
jax.monitoring.register_event_duration_secs_listener(
  lambda name, *_, **info: (
    COMPILED.append(info.get("fun_name")) if name.endswith("backend_compile_duration") else None
  )
)


def compiled(name):
  """How often a program of this name was compiled so far in the process."""
  return sum(name in str(x) for x in COMPILED)


def claim(*arguments):
  """Claims a workdir as a run does, and gives its lock back."""
  with claims.claimed(*arguments):
    pass


def writer():
  """A Writer of the tiny pair with the bundled tokenizer, in which some words end a trace."""
  tokenizer = tokenization.load_tokenizer(hf.locate("bundled/teacher"))
  return writer_lib.Writer(
    teacher=build(TEACHER),
    teacher_tokenizer=tokenizer,
    ends=(tokenizer.eos_token_id, 7, 9, 11),
    student=build(STUDENT),
    student_tokenizer=tokenizer,
  )
