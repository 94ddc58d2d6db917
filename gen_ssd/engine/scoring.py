"""The student's half of a round: one forward over all candidates, read into statistics."""

import dataclasses
import typing

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.sharding import reshard
from jaxtyping import Bool

from gen_ssd.arrays import Array
from gen_ssd.engine import ring as ring_lib
from gen_ssd.engine import scores as scores_lib
from gen_ssd.engine.state import Candidates
from gen_ssd.engine.state import Scored
from gen_ssd.models import attention
from gen_ssd.models import decoder
from gen_ssd.models.architecture import Spec

# Attention scores that a device holds while it scores chunks, by Layout.unroll: what its memory
# takes, or on a CPU what its cache takes.
ATTENTION_SCORES = {False: 1 << 26, True: 1 << 21}
# Fewest rows of a product, which take precedence: a CPU reads ring and weights again for each tile.
ROWS = {False: 1, True: 1024}
READ = ("nll", "rank", "entropy")  # the Statistics that a student forward gives


def score(
  student: decoder.Transformer,
  ring: ring_lib.Ring,
  candidates: Candidates,
  running: Bool[Array, " b"],
  scorer: typing.Callable,
  block: int,
  near: tuple | None = None,
) -> Scored:
  """Scores candidates by student statistics, a tile of tokens at a time.

  With near = (prompt tokens int32[b], context int32[]) the score, and nothing else, comes from a
  second forward that attends to the prompt and the newest `context` tokens only: LALP (arXiv
  2510.03988). It is approximate above the first layer: the tokens attended to were themselves
  read with all the text before them, where LALP reads a shortened text.
  """
  local = lambda x: reshard(x, P(student.layout.batch_axes, *[None] * (x.ndim - 1)))
  candidates, running = jax.tree.map(local, candidates), local(running)
  prefix = ring_lib.prefix(ring, running, block)
  found, cache = _read_candidates(student, ring, candidates, prefix)
  live = candidates.live
  rank = jnp.where(live, jnp.minimum(found.rank, 100), 0).astype(jnp.int32)
  seen = found
  if near is not None:
    prompt_length, context = local(near[0]), near[1]
    old = ring.position <= (ring.length - context)[:, None]  # `last` is the newest token
    hidden = old & (ring.position >= prompt_length[:, None])
    shortened = dataclasses.replace(prefix, visible=prefix.visible & ~hidden)
    seen, _ = _read_candidates(student, ring, candidates, shortened)
  return Scored(
    nll=jnp.where(live, found.nll, 0),
    rank=rank,
    score=scorer(seen, live, candidates.noise),
    cache=cache,
  )


def _read_candidates(student, ring, candidates, prefix):
  """(Statistics, cache) of one student forward with inputs [last, tokens[:-1]]."""
  b, k, c = candidates.tokens.shape
  index = jnp.arange(c, dtype=jnp.int32)
  last = jnp.broadcast_to(ring.last[:, None, None], (b, k, 1))
  inputs = jnp.concatenate([last, candidates.tokens[..., :-1]], -1)
  shape = jax.typeof(candidates.tokens).sharding.shard_shape((b, k, c))
  size = tile_size(student.spec, shape, prefix.position.shape[1], prefix.block)

  def tile(i, carry):
    (cache, known), at = carry, i * size
    cut = lambda x: lax.dynamic_slice_in_dim(x, at, size, 2)
    places = lax.dynamic_slice_in_dim(index, at, size)
    positions = jnp.broadcast_to(ring.length[:, None, None] + places, (b, k, size))
    causal = index[None] <= places[:, None]
    hidden, cache = decoder.forward(student, cut(inputs), positions, cache, at, prefix, causal)
    found = scores_lib.token_statistics(student, hidden, cut(candidates.tokens))
    put = lambda to, x: lax.dynamic_update_slice_in_dim(to, x, at, 2)
    known = tuple(put(to, getattr(found, name)) for name, to in zip(READ, known))
    return cache, known

  tiles = (jnp.max(candidates.count) + size - 1) // size  # what is behind the longest is not read
  nothing = jnp.zeros_like(candidates.teacher_nll)
  start = attention.blank_chunk(student.spec, b, k, c), (nothing,) * len(READ)
  cache, known = lax.fori_loop(0, tiles, tile, start)
  return scores_lib.Statistics(
    **dict(zip(READ, known)),
    teacher_nll=candidates.teacher_nll,
    step_start=candidates.step_start,
  ), cache


def tile_size(spec: Spec, shape: tuple[int, ...], slots: int, block: int) -> int:
  """Tokens of a chunk to score at a time, a divisor of c: as ATTENTION_SCORES and ROWS say.

  `shape` is (b, k, c) on one device; `slots` and `block` are those of the ring.
  """
  arch, layout = spec
  b, k, c = shape
  # Scores that are in memory: of a block of the ring, or by the kernel of the chunk alone.
  wide = c if attention.by_kernel(layout.attention, arch.head, slots) else block
  most = ATTENTION_SCORES[layout.unroll] // (b * k * arch.kv_heads * arch.groups * wide)
  most = max(most, ROWS[layout.unroll] // (b * k), 1)
  return max(n for n in range(1, c + 1) if c % n == 0 and n <= most)
