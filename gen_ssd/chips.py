"""What chips can do, and the least time that the programs of a run need on them."""

import math
import typing

import jax.numpy as jnp

from gen_ssd import config as config_lib
from gen_ssd.models import architecture
from gen_ssd.models.architecture import Architecture
from gen_ssd.models.architecture import Layout
from gen_ssd.models.architecture import Spec

GIB = 1 << 30


class Chip(typing.NamedTuple):
  """One device as JAX counts them: a chip, or one of the two of a TPU7x."""

  hbm: float  # GiB
  flops: float  # 1e12 per second, bfloat16
  bandwidth: float  # 1e9 bytes per second, of HBM
  ghz: float  # of the core, for estimates in cycles
  per_chip: int = 1  # devices of one chip


# Published figures: cloud.google.com/tpu/docs/v4, v5e, v5p, v6e, tpu7x.
CHIPS = {
  "v4": Chip(32, 275, 1228, 1.05),
  "v5e": Chip(16, 197, 819, 1.5),
  "v5p": Chip(95, 459, 2765, 1.75),
  "v6e": Chip(32, 918, 1640, 1.75),
  "tpu7x": Chip(96, 1153, 3690, 2.2, 2),
}


class Model(typing.NamedTuple):
  """A model as the roofline sees it, on one device of a mesh."""

  weights: float  # bytes read for one token
  flops: float  # of one token, without attention
  cache: float  # bytes of one cached token
  attention: float  # flops of one query with one cached token
  parts: int = 1  # devices that share it


def model(spec: Spec, parts: int = 1) -> Model:
  """`parts` devices share the model's weights, heads and cache."""
  arch, size = spec.arch, jnp.dtype(spec.layout.dtype).itemsize
  read, used = architecture.leaf_bytes(spec), architecture.parameters(arch)
  if not arch.tied:  # the embedding is a lookup, and not read for the output layer
    del read["embed"]
    used -= arch.vocab * arch.width
  heads = arch.kv_heads * arch.groups * arch.head
  return Model(
    weights=sum(read.values()) / parts,
    flops=2 * used / parts,
    cache=2 * arch.layers * arch.kv_heads * arch.head * size / parts,
    attention=4 * arch.layers * heads / parts,
    parts=parts,
  )


def milliseconds(chip: Chip, parts: typing.Iterable[tuple[float, float]]) -> float:
  """The time of parts (bytes, flops) one after another, each bound by the slower of the two."""
  slower = (max(n / chip.bandwidth / 1e9, f / chip.flops / 1e12) for n, f in parts)
  return 1e3 * sum(slower)


def round_ms(
  chip: Chip,
  select: config_lib.Select,
  pair: tuple[Model, Model | None],
  mesh: tuple[int, int],
  filled: float,
) -> tuple[float, float]:
  """(ms of the teacher, ms of the student) in a round of full chunks.

  `mesh` is (data, model) devices, `filled` the mean number of tokens in the ring of a slot.
  """
  teacher, student = pair
  slots = select.slots / mesh[0]
  branches = slots * select.k
  own = (select.c + 1) / 2  # of the chunk, on average
  token = [
    (teacher.weights, branches * teacher.flops),
    (slots * filled * teacher.cache, branches * filled * teacher.attention),
    (branches * own * teacher.cache, branches * own * teacher.attention),
  ]
  if student is None:
    return select.c * milliseconds(chip, token), 0.0
  slots *= student.parts / mesh[1]  # over both axes, if it is not split
  tokens = slots * select.k * select.c
  scoring = [
    (student.weights, tokens * student.flops),
    (slots * filled * student.cache, tokens * (filled + own) * student.attention),
  ]
  return select.c * milliseconds(chip, token), milliseconds(chip, scoring)


def admit_ms(
  chip: Chip,
  select: config_lib.Select,
  pair: tuple[Model, Model],
  mesh: tuple[int, int],
  tokens: float,
  slots: int,
) -> float:
  """ms to read `tokens` tokens into `slots` slots, a chunk at a time."""
  chunks, parts = math.ceil(tokens / select.c), []
  for m in pair:
    own = slots * m.parts / math.prod(mesh)
    n = own * select.c
    parts += [
      (m.weights, n * m.flops),
      (own * tokens / 2 * m.cache, n * tokens / 2 * m.attention),
    ]
  return chunks * milliseconds(chip, parts)


def update_ms(chip: Chip, train: config_lib.Train, arch: Architecture, devices: int) -> float:
  """ms of one update: forward and backward, and the forward once more with `remat`."""
  m = model(Spec(arch, Layout(dtype=train.dtype)))
  tokens = train.batch_size * train.length * train.accumulate / devices
  passes = 4 if train.remat else 3
  flops = passes * tokens * (m.flops + train.length / 2 * m.attention)
  return milliseconds(chip, [(16 * architecture.parameters(arch) / devices, flops)])
