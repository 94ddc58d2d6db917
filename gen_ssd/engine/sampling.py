"""Drawing one token per branch: temperature, top-k and top-p, exact, without a sort.

Everything is a reduction over the vocabulary, so it works on vocabulary shards. Every knob is
traced, so a sweep never compiles again. Two uniforms per token come from counter-based keys.
"""

import hashlib
import math
import string
import typing

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int
from jaxtyping import Key

from gen_ssd.arrays import Array
from gen_ssd.models import attention
from gen_ssd.models.architecture import Layout

BITS_OF_ONE = 0x3F800000  # 1.0 in f32
WIDTH = 128  # the vocabulary is searched as blocks of this many ids


class Filters(typing.NamedTuple):
  """How logits become a distribution; all traced scalars."""

  temperature: Float[Array, ""]  # 0 takes the most likely id
  top_k: Int[Array, ""]  # 0 is off
  top_p: Float[Array, ""]  # 1 is off; ties at the edge of top-k and top-p are all kept
  vocab: Int[Array, ""]  # ids from here on are padding and never drawn


def trace_key(seed: int, problem: str, attempt: int) -> Key[Array, ""]:
  """Key of one trace of the problem of that id: it does not depend on the rest of the batch."""
  if not {*problem[:8]} <= {*string.hexdigits}:  # not an id of ours: any text will do
    problem = hashlib.sha256(problem.encode()).hexdigest()
  key = jax.random.fold_in(jax.random.key(seed), int(problem[:8], 16))
  return jax.random.fold_in(key, attempt)


def uniforms(
  keys: Key[Array, " b"], chunk: Int[Array, " b"], resample: Int[Array, " b"], k: int, c: int
) -> Float[Array, "b k c 2"]:
  """Uniforms in [0,1) of each slot's key, chunk and resample; `c` does not change their values."""

  def slot(key, chunk, resample):
    key = jax.random.fold_in(jax.random.fold_in(key, chunk), resample)
    branch = lambda i: jax.random.uniform(jax.random.fold_in(key, i), (c, 2))
    return jax.vmap(branch)(jnp.arange(k))

  return jax.vmap(slot)(keys, chunk, resample)


def draw(
  u: Float[Array, "b k 2"], logits: Float[Array, "b k v"], filters: Filters, layout: Layout
) -> tuple[Int[Array, "b k"], Float[Array, "b k"]]:
  """Samples one id per branch.

  Args:
    u: uniforms in [0,1).
    logits: f32, possibly split on v as the model's `layout` says.
    filters: temperature, top-k, top-p and the size of the vocabulary.

  Returns:
    (id, its nll in nats at temperature 1, before any filter).
  """
  ids = jnp.arange(logits.shape[-1], dtype=jnp.int32)
  logits = jnp.where(ids < filters.vocab, logits, attention.NEVER)
  top = jnp.max(logits, -1, keepdims=True)

  def sampled(logits):
    p = jnp.exp((logits - top) / filters.temperature)
    p = lax.cond(
      (filters.top_k > 0) | (filters.top_p < 1),
      lambda p: jnp.where(p >= floor(p, filters.top_k, filters.top_p), p, 0),
      lambda p: p,
      p,
    )
    return invert(u, p, layout)

  greedy = lambda logits: jnp.argmax(logits, -1).astype(jnp.int32)
  token = lax.cond(filters.temperature > 0, sampled, greedy, logits)
  chosen = jnp.sum(jnp.where(ids == token[..., None], logits - top, 0), -1)
  return token, jnp.log(jnp.sum(jnp.exp(logits - top), -1)) - chosen


def entropy(logits: Float[Array, "b k v"], filters: Filters) -> Float[Array, "b k"]:
  """Entropy in nats of the distributions at temperature 1, before any filter."""
  ids = jnp.arange(logits.shape[-1], dtype=jnp.int32)
  logits = jnp.where(ids < filters.vocab, logits, attention.NEVER)
  logits -= jnp.max(logits, -1, keepdims=True)
  p = jnp.exp(logits)
  total = jnp.sum(p, -1)
  return jnp.log(total) - jnp.sum(p * logits, -1) / total


def at_peak(
  logits: Float[Array, "b k v"], filters: Filters, least: Float[Array, ""]
) -> Bool[Array, "b 1"]:
  """Whether branch 0 of each slot has an entropy of at least `least` nats; computed if that is > 0."""
  b = logits.shape[0]
  return lax.cond(
    least > 0,
    lambda x: entropy(x[:, :1], filters) >= least,
    lambda x: jnp.ones((b, 1), bool, out_sharding=P(jax.typeof(x).sharding.spec[0], None)),
    logits,
  )


def floor(
  p: Float[Array, "*b v"], top_k: Int[Array, ""], top_p: Float[Array, ""]
) -> Float[Array, "*b 1"]:
  """The smallest value of p (its peak is 1) that is kept: top-k first, then top-p of what is left."""
  zeros = jnp.zeros_like(jnp.max(p, -1, keepdims=True))
  reach = lambda mass, x: jnp.sum(jnp.where(p >= x, mass, 0), -1, keepdims=True)
  count = lambda x: reach(jnp.ones_like(p), x)
  low = lax.cond(top_k > 0, lambda: _largest(lambda x: count(x) >= top_k, zeros), lambda: zeros)

  def nucleus():
    total = reach(p, low)
    return _largest(lambda x: reach(p, jnp.maximum(x, low)) >= top_p * total, zeros)

  return jnp.maximum(low, lax.cond(top_p < 1, nucleus, lambda: zeros))


def _largest(holds, zeros):
  """The largest x in [0, 1] with `holds(x)`, exact; `holds(0)` is true. Shaped like `zeros`.

  It is a search over the bits of f32. On an accelerator, a pass over the vocabulary is bound by
  memory, so each pass tries 7 values instead of 1, and 10 passes are enough instead of 30.
  """
  search = lambda parts: lambda zeros: _search(holds, zeros, parts)
  return lax.platform_dependent(zeros, cpu=search(2), default=search(8))


def _search(holds, zeros, parts):
  """`_largest`, which divides what is left into this many parts in every step."""
  low = lax.bitcast_convert_type(zeros, jnp.int32)
  ends = low, low + jnp.int32(BITS_OF_ONE + 1)
  value = lambda bits: lax.bitcast_convert_type(bits, jnp.float32)

  def step(_, ends):
    low, high = ends
    size = (high - low + parts - 1) // parts
    found = low
    for i in range(1, parts):
      middle = low + i * size
      found = jnp.where((middle < high) & holds(value(middle)), middle, found)
    return found, jnp.minimum(found + size, high)

  steps = math.ceil(math.log(BITS_OF_ONE + 1, parts))
  return value(lax.fori_loop(0, steps, step, ends)[0])


def invert(u: Float[Array, "b k 2"], p: Float[Array, "b k v"], layout: Layout) -> Int[Array, "b k"]:
  """Inverse-CDF draw from unnormalised p: first a block of ids, then an id inside it."""
  b, k, v = p.shape
  mesh = jax.sharding.get_abstract_mesh()
  shards = mesh.shape[layout.tensor_axis] if layout.tensor_axis else 1
  pad = -v % (WIDTH * shards)  # whole blocks per shard; empty blocks change no draw
  if pad:
    p = jnp.pad(p, ((0, 0), (0, 0), (0, pad)))
  blocks = (v + pad) // WIDTH
  replicated = P(layout.batch_axes, None, None)
  p = lax.reshape(
    p, (b, k, blocks, WIDTH), out_sharding=P(layout.batch_axes, None, layout.tensor_axis, None)
  )
  block = _first_above(u[..., 0], jax.sharding.reshard(jnp.sum(p, -1), replicated))
  hit = (jnp.arange(blocks, dtype=jnp.int32) == block[..., None]).astype(p.dtype)
  inside = jnp.einsum(
    "bkn,bknw->bkw", hit, p, precision=lax.Precision.HIGHEST, out_sharding=replicated
  )
  return block * WIDTH + _first_above(u[..., 1], inside)


def _first_above(u, p):
  """First index whose running sum of p exceeds u times the total."""
  n = p.shape[-1]
  sums = jnp.einsum(
    "bki,ij->bkj", p, jnp.triu(jnp.ones((n, n), p.dtype)), precision=lax.Precision.HIGHEST
  )
  return jnp.argmax(sums > u[..., None] * sums[..., -1:], -1).astype(jnp.int32)
