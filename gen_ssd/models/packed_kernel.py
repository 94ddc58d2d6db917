"""Causal attention in packed sequences by the kernels for GPUs that come with jax.

`kernel` is the FlashAttention of jax.experimental.pallas (Triton), and `cudnn` that of NVIDIA's cuDNN.
Both have a backward pass, and memory that is linear in t, but for the mask of `cudnn`.
"""

import typing

import jax
from jax.experimental.pallas.ops.gpu import attention as pallas_attention
import jax.numpy as jnp
from jaxtyping import Float
from jaxtyping import Int

from gen_ssd.arrays import Array
from gen_ssd.models.attention import KERNEL_HEADS

FORWARD = {64: (128, 64), 128: (128, 64), 256: (64, 32)}  # queries and keys of a block, by head
BACKWARD = {64: 64, 128: 32, 256: 16}  # queries of a block, as many as keys
WARPS = None  # None: what the kernel thinks best
STAGES = 2  # blocks in flight


def takes(q: Float[Array, "b 1 t n g h"], window: typing.Any, implementation: str) -> bool:
  """Can the kernels of this Layout.attention compute it?"""
  t, h = q.shape[2], q.shape[-1]
  if window is not None or h not in KERNEL_HEADS or (h > 128 and implementation == "cudnn"):
    return False
  return t % 16 == 0 and (q.dtype == jnp.bfloat16 or implementation == "interpret")


def on_one_device(
  q: Float[Array, "b 1 t n g h"],
  k: Float[Array, "b 1 t n h"],
  v: Float[Array, "b 1 t n h"],
  segments: Int[Array, "b t"],
  *,
  window: None,
  implementation: str,
) -> Float[Array, "b 1 t n g h"]:
  """attention.attend_packed for the sequences of one device; there is no window."""
  if implementation == "cudnn":
    return masked(q, k, v, segments)
  return _pallas(implementation, q, k, v, segments)


def _pallas(implementation, q, k, v, segments):
  """The kernel wants one key and value head for each query head."""
  b, _, t, n, g, h = q.shape
  k, v = (jnp.repeat(x[:, 0], g, 2) for x in (k, v))
  out: typing.Any = pallas_attention.mha(
    q.reshape(b, t, n * g, h),
    k,
    v,
    segments,
    h**-0.5,
    True,
    block_sizes(t, h),
    "triton",
    WARPS,
    STAGES,
    None,
    implementation == "interpret",
  )
  return out.reshape(q.shape)


def block_sizes(t: int, h: int) -> pallas_attention.BlockSizes:
  """Blocks that divide t."""
  fit = lambda size: min(size, t & -t)  # the largest power of two that divides t
  queries, keys = FORWARD[max(h, 64)]
  back = fit(BACKWARD[max(h, 64)])
  return pallas_attention.BlockSizes(
    block_q=fit(queries),
    block_k=fit(keys),
    block_q_dkv=back,
    block_kv_dkv=back,
    block_q_dq=back,
    block_kv_dq=back,
  )


def masked(
  q: Float[Array, "b 1 t n g h"],
  k: Float[Array, "b 1 t n h"],
  v: Float[Array, "b 1 t n h"],
  segments: Int[Array, "b t"],
  kind: typing.Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "b 1 t n g h"]:
  """jax.nn.dot_product_attention: causality is known to the kernel, and segments are a mask."""
  b, _, t, n, g, h = q.shape
  same = segments[:, None, :, None] == segments[:, None, None, :]
  out = jax.nn.dot_product_attention(
    q.reshape(b, t, n * g, h), k[:, 0], v[:, 0], mask=same, is_causal=True, implementation=kind
  )
  return out.reshape(q.shape)
