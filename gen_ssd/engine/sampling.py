"""Drawing one token a candidate: temperature, top-k and top-p, exact, without a sort.

Everything is a reduction over the vocabulary, so it works on vocabulary shards, and every knob
is traced, so a sweep never recompiles. Two uniforms a token come from counter-based keys.
"""

import hashlib
import string

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from gen_ssd.models import attention

WIDTH = 128  # the vocabulary is searched as blocks of this many ids


def row_key(seed, problem, attempt):
  """Typed key of one trace of the problem of that id; a sample depends on nothing of its batch."""
  if not {*problem[:8]} <= {*string.hexdigits}:  # not one of ours: any text will do
    problem = hashlib.sha256(problem.encode()).hexdigest()
  key = jax.random.fold_in(jax.random.key(seed), int(problem[:8], 16))
  return jax.random.fold_in(key, attempt)


def uniforms(keys, chunk, retry, k, c):
  """f32[b,k,c,2] in [0,1) of row keys [b], chunk and retry int32[b]; `c` does not change values."""

  def row(key, chunk, retry):
    key = jax.random.fold_in(jax.random.fold_in(key, chunk), retry)
    branch = lambda i: jax.random.uniform(jax.random.fold_in(key, i), (c, 2))
    return jax.vmap(branch)(jnp.arange(k))

  return jax.vmap(row)(keys, chunk, retry)


def draw(u, logits, *, temperature, top_k, top_p, vocab, shape):
  """Samples one id per branch.

  Args:
    u: f32[b,k,2] uniforms.
    logits: f32[b,k,v], possibly split on v.
    temperature: f32 scalar; 0 takes the most likely id.
    top_k: int32 scalar, 0 for off. top_p: f32 scalar, 1 for off. Ties at the edge are all kept.
    vocab: int32 scalar; ids from here on are padding rows and never drawn.
    shape: the model's Shape (for shardings).
  Returns:
    (id int32[b,k], log-probability f32[b,k] at temperature 1 before any filter).
  """
  ids = jnp.arange(logits.shape[-1], dtype=jnp.int32)
  logits = jnp.where(ids < vocab, logits, attention.NEVER)
  top = jnp.max(logits, -1, keepdims=True)

  def sampled(logits):
    p = jnp.exp((logits - top) / temperature)
    p = lax.cond(
      (top_k > 0) | (top_p < 1),
      lambda p: jnp.where(p >= floor(p, top_k, top_p), p, 0),
      lambda p: p,
      p,
    )
    return invert(u, p, shape)

  greedy = lambda logits: jnp.argmax(logits, -1).astype(jnp.int32)
  token = lax.cond(temperature > 0, sampled, greedy, logits)
  chosen = jnp.sum(jnp.where(ids == token[..., None], logits - top, 0), -1)
  return token, chosen - jnp.log(jnp.sum(jnp.exp(logits - top), -1))


def floor(p, top_k, top_p):
  """The smallest kept value of p f32[...,v] (peak 1): top-k first, then top-p of what is left."""
  reach = lambda mass, x: jnp.sum(jnp.where(p >= x, mass, 0), -1, keepdims=True)
  ones = jnp.ones_like(p)
  low = jnp.where(top_k > 0, _largest(lambda x: reach(ones, x) >= top_k, p), 0)
  total = reach(p, low)
  best = _largest(lambda x: reach(p, jnp.maximum(x, low)) >= top_p * total, p)
  return jnp.where(top_p < 1, jnp.maximum(best, low), low)


def _largest(holds, p):
  """The largest x in [0, 1] with `holds(x)`: bisection over the bits of f32, exact in 31 steps."""
  low = jnp.zeros_like(jnp.max(p, -1, keepdims=True), dtype=jnp.int32)
  high = low + jnp.int32(0x3F800001)  # one past the bits of 1.0
  value = lambda bits: lax.bitcast_convert_type(bits, jnp.float32)

  def step(_, ends):
    low, high = ends
    middle = low + (high - low) // 2
    ok = holds(value(middle))
    return jnp.where(ok, middle, low), jnp.where(ok, high, middle)

  return value(lax.fori_loop(0, 31, step, (low, high))[0])


def invert(u, p, shape):
  """Inverse-CDF draw from unnormalised p [b,k,v]: first a block of ids, then an id inside it."""
  b, k, v = p.shape
  shards = jax.sharding.get_abstract_mesh().shape[shape.tensor] if shape.tensor else 1
  pad = -v % (WIDTH * shards)  # whole blocks a shard; empty blocks change no draw
  if pad:
    p = jnp.pad(p, ((0, 0), (0, 0), (0, pad)))
  blocks = (v + pad) // WIDTH
  p = lax.reshape(p, (b, k, blocks, WIDTH), out_sharding=P(shape.rows, None, shape.tensor, None))
  sums = jax.sharding.reshard(jnp.sum(p, -1), P(shape.rows, None, None))
  block = _first_above(u[..., 0], sums)
  here = (jnp.arange(blocks, dtype=jnp.int32) == block[..., None]).astype(p.dtype)
  inside = jnp.einsum(
    "bkn,bknw->bkw",
    here,
    p,
    precision=lax.Precision.HIGHEST,
    out_sharding=P(shape.rows, None, None),
  )
  return block * WIDTH + _first_above(u[..., 1], inside)


def _first_above(u, p):
  """First index whose running sum of p exceeds u times the total."""
  n = p.shape[-1]
  sums = jnp.einsum(
    "bki,ij->bkj", p, jnp.triu(jnp.ones((n, n), p.dtype)), precision=lax.Precision.HIGHEST
  )
  return jnp.argmax(sums > u[..., None] * sums[..., -1:], -1).astype(jnp.int32)
