"""Causal attention in packed sequences by the kernel for TPUs that comes with jax, SplashAttention.

It skips blocks of keys that come after the queries or lie out of their window, and keeps no scores in
memory. Its backward pass is two kernels: one for queries, and one for keys and values. (A third does
both and saves two of seven products, but it writes a gradient of the queries for each block of keys.)
"""

import typing

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
import jax.numpy as jnp
from jaxtyping import Float
from jaxtyping import Int

from gen_ssd.arrays import Array
from gen_ssd.models.attention import LANES
from gen_ssd.models.attention import by_kernel

BLOCK = 512  # most queries, and most keys, of a step


def takes(q: Float[Array, "b 1 t n g h"], window: typing.Any, implementation: str) -> bool:
  """Can the kernel compute it? A window must be known before the program runs."""
  t, h = q.shape[2], q.shape[-1]
  static = window is None or isinstance(window, int)
  return static and t % LANES == 0 and by_kernel(implementation, h, t)


def on_one_device(
  q: Float[Array, "b 1 t n g h"],
  k: Float[Array, "b 1 t n h"],
  v: Float[Array, "b 1 t n h"],
  segments: Int[Array, "b t"],
  *,
  window: int | None,
  implementation: str,
) -> Float[Array, "b 1 t n g h"]:
  """attention.attend_packed for the sequences of one device."""
  t, g, h = q.shape[2], *q.shape[4:]
  attend = splash.make_splash_mqa_single_device(
    masks.MultiHeadMask([mask(t, window)] * g),
    block_sizes=block_sizes(t),
    interpret=implementation == "tpu_interpret",
  )
  heads = jax.vmap(attend, (0, 0, 0, None))  # of keys and values: [n,g,t,h] and [n,t,h]
  sequences = jax.vmap(lambda q, k, v, s: heads(q, k, v, splash.SegmentIds(s, s)))
  q = q * jnp.asarray(h**-0.5, q.dtype)  # the kernel does not
  q = jnp.einsum("btngh->bngth", q[:, 0])
  k, v = (jnp.einsum("btnh->bnth", x[:, 0]) for x in (k, v))
  return jnp.einsum("bngth->btngh", sequences(q, k, v, segments))[:, None]


def mask(t: int, window: int | None) -> masks.Mask:
  """A query sees the keys up to its own, or the `window` newest of them."""
  if window is None:
    return masks.CausalMask((t, t))
  return masks.LocalMask((t, t), (window - 1, 0), 0)


def block_sizes(t: int) -> splash.BlockSizes:
  """Blocks that divide t, which is a multiple of LANES."""
  size = min(BLOCK, t & -t)  # the largest power of two that divides t
  names = "block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq"
  return splash.BlockSizes(**dict.fromkeys(names, size))
