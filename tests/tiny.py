"""A tiny random pair and the engine driven by hand, for tests."""

import functools

import jax
from jax.sharding import PartitionSpec as P
import numpy as np

from gen_ssd import mesh
from gen_ssd.engine import sampling
from gen_ssd.engine import scores
from gen_ssd.engine import step as step_lib
from gen_ssd.models import decoder

EOS = 5
TEACHER = decoder.Shape(
  vocab=192, width=32, layers=2, kv_heads=2, groups=2, head=8, hidden=64, theta=5e4, qk_norm=True
)
STUDENT = decoder.Shape(
  vocab=256,
  width=16,
  layers=2,
  kv_heads=2,
  groups=1,
  head=8,
  hidden=32,
  tied=True,
  bias=True,
  rows=("data", "model"),
  tensor=None,
)
PROMPT, WINDOW = 12, 8


@functools.cache
def arrays(shape):
  """Random weights on the host: {leaf: array}, the same on every mesh."""
  rng = np.random.default_rng(shape.width)
  top, layer = decoder.leaves(shape)

  def draw(name, dims):
    if name in ("ln1", "ln2", "norm", "qn", "kn"):
      return 1 + 0.1 * rng.normal(size=dims).astype(np.float32)
    return (0.25 * rng.normal(size=dims)).astype(np.float32)

  return {
    **{n: draw(n, d) for n, d in top.items()},
    **{n: draw(n, (shape.layers, *d)) for n, d in layer.items()},
  }


def build(shape, change=lambda name, x: x):
  """The tiny model on the current mesh."""
  found = arrays(
    shape.__class__(**{**shape.__dict__, "unroll": False, "rows": None, "tensor": None})
  )
  return decoder.unstacked(
    decoder.Transformer(
      shape, lambda name, dims: mesh.place(change(name, found[name]), decoder.spec(shape, name))
    )
  )


def prompts(n, seed=0):
  rng = np.random.default_rng(seed)
  return [rng.integers(6, 180, rng.integers(2, PROMPT + 1)).tolist() for _ in range(n)]


def knobs(**changes):
  ends = np.zeros(TEACHER.vocab, np.int8)
  ends[EOS] = step_lib.EOS
  steps = np.zeros(TEACHER.vocab, bool)
  values = dict(
    temperature=np.float32(1),
    top_k=np.int32(0),
    top_p=np.float32(1),
    threshold=np.float32(np.inf),
    margin=np.float32(-np.inf),
    resamples=np.int32(0),
    running=np.float32(np.inf),
    beta=np.float32(1),
    context=np.int32(0),
    vocab=np.int32(180),
    closing=np.int32(-1),
    ends=ends,
    steps=steps,
  )
  return step_lib.Knobs(**{k: mesh.place(v) for k, v in {**values, **changes}.items()})


def put(x):
  x = np.asarray(x)
  return mesh.place(x, P("data", *[None] * (x.ndim - 1)))


def admission(b, size, entries, *, room=1000, student=None):
  """An Admission of {row: (prompt ids, name, chunks kept)}; `student` maps ids to its prompt."""
  text, length = np.zeros((2, b, size), np.int32), np.ones((2, b), np.int32)
  new, key = np.zeros(b, bool), np.zeros((b, 2), np.uint32)
  chunk = np.zeros(b, np.int32)
  for i, (ids, name, kept) in entries.items():
    for m, own in enumerate((ids, (student or list)(ids))):
      text[m, i, : len(own)], length[m, i] = own, len(own)
    new[i], chunk[i] = True, kept
    key[i] = jax.random.key_data(sampling.row_key(0, f"{name:08x}", 0))
  zeros = np.zeros(b, np.int32)
  return step_lib.Admission(
    *map(
      put,
      (
        new,
        text[0],
        length[0],
        text[1],
        length[1],
        key,
        chunk,
        zeros,
        np.full(b, room, np.int32),
        np.full((b, WINDOW - 1), -1, np.int32),
        np.zeros(b, np.float32),
        length[1],
        np.zeros(b, bool),
      ),
    )
  )


class Engine:
  """Rows of the tiny pair; `texts` are prompt and kept tokens, by problem name."""

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
    **static,
  ):
    shapes = [s.__class__(**{**s.__dict__, "unroll": unroll}) for s in (TEACHER, STUDENT)]
    self.teacher = teacher or build(shapes[0])
    self.student = build(shapes[1]) if student == "tiny" else student
    self.state = step_lib.blank_state(
      teacher=self.teacher.shape,
      student=self.student and self.student.shape,
      b=b,
      s=slots,
      window=WINDOW,
    )
    self.knob = knob or knobs()
    self.b, self.c, self.slots, self.room = b, c, slots, room
    self.block = block or slots
    self.static = dict(k=k, c=c, scorer=scorer, block=self.block, window=WINDOW, **static)
    self.texts, self.names, self.nll = {}, [None] * b, {}

  def admit(self, entries, kept=0, student=None):
    """Starts {row: (ids, name)}."""
    start = admission(
      self.b,
      self.slots,
      {i: (ids, name, kept) for i, (ids, name) in entries.items()},
      room=self.room,
      student=student,
    )
    self.state = step_lib.admit(
      self.teacher, self.student, self.state, start, c=self.c, block=self.block
    )
    for i, (ids, name) in entries.items():
      self.names[i], self.texts[name], self.nll[name] = name, list(ids), []

  def round(self):
    """One round; returns its Report on the host."""
    self.state, report = step_lib.select_step(
      self.teacher, self.student, self.state, self.knob, **self.static
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
