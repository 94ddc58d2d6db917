"""Causal attention in packed sequences by loops over blocks: on CPUs, and where no kernel fits.

FlashAttention-2 (arXiv:2307.08691) in plain jax: scores exist for one block of queries and keys at a
time, also in the backward pass, and memory is linear in t. Blocks of keys that no query sees, because
they come later, belong to other segments or lie out of the window, cost nothing.

Within this module arrays have heads before tokens, and r is the rows [g,q] of a block of queries.
"""

import functools

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Float
from jaxtyping import Int

from gen_ssd.arrays import Array
from gen_ssd.models.attention import NEVER
from gen_ssd.models.attention import f32_einsum

PADDING = -1  # the segment of positions that fill the last block


def on_one_device(
  q: Float[Array, "b 1 t n g h"],
  k: Float[Array, "b 1 t n h"],
  v: Float[Array, "b 1 t n h"],
  segments: Int[Array, "b t"],
  window: Int[Array, ""],
  *,
  block: int,
) -> Float[Array, "b 1 t n g h"]:
  """attention.attend_packed for the sequences of one device, in blocks of at most `block` tokens."""
  t = q.shape[2]
  count = -(-t // block)
  size = -(-t // count)
  more = count * size - t
  pad = lambda x, value=0: jnp.pad(
    x, [(0, 0), (0, more), *[(0, 0)] * (x.ndim - 2)], constant_values=value
  )
  q = q[:, 0] * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
  q = jnp.einsum("btngh->bngth", pad(q))
  k, v = (jnp.einsum("btnh->bnth", pad(x[:, 0])) for x in (k, v))
  out = _attend(size, q, k, v, pad(segments, PADDING), window)
  return jnp.einsum("bngth->btngh", out)[:, None, :t]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(size, q, k, v, segments, window):
  """Attention of scaled queries [b,n,g,t,h] over keys and values [b,n,t,h]."""
  return _forward(size, q, k, v, segments, window)[0]


def _forward(size, q, k, v, segments, window):
  """(output, what `_backward` wants)."""
  keys = jnp.swapaxes(k, 2, 3)
  first = _first_blocks(size, segments, window)

  def queries(_, i):
    own = _cut(q, i, size, 3)
    b, n, g, _, h = own.shape

    def body(j, carry):
      m, z, o = carry
      s = _scores(size, own, keys, segments, window, i, j)
      top = jnp.maximum(m, s.max(-1))
      e, r = jnp.exp(s - top[..., None]), jnp.exp(m - top)
      return top, z * r + e.sum(-1), o * r[..., None] + _dot_rows(e, _cut(v, j, size, 2))

    m = jnp.full((b, n, g, size), NEVER, jnp.float32)
    start = m, jnp.zeros_like(m), jnp.zeros((b, n, g, size, h), jnp.float32)
    m, z, o = lax.fori_loop(first[i], i + 1, body, start)
    return None, ((o / z[..., None]).astype(q.dtype), m + jnp.log(z))

  _, found = lax.scan(queries, None, jnp.arange(len(first)))
  out, total = (_joined(x) for x in found)
  return out, (q, k, v, segments, window, first, out, total)


def _backward(size, kept, gradient):
  """The gradients of q, k and v, from probabilities that are computed again."""
  q, k, v, segments, window, first, out, total = kept
  keys, values = jnp.swapaxes(k, 2, 3), jnp.swapaxes(v, 2, 3)
  inner = jnp.sum(out.astype(jnp.float32) * gradient.astype(jnp.float32), -1)

  def queries(carry, i):
    own, mine = _cut(q, i, size, 3), _cut(gradient, i, size, 3)
    log_z, shift = (_cut(x, i, size, 3)[..., None] for x in (total, inner))

    def body(j, carry):
      dq, dk, dv = carry
      p = jnp.exp(_scores(size, own, keys, segments, window, i, j) - log_z)
      ds = p * (_dot_rows(mine, _cut(values, j, size, 3)) - shift)
      return (
        dq + _dot_rows(ds, _cut(k, j, size, 2)),
        _add(dk, _dot_columns(ds, own), j, size),
        _add(dv, _dot_columns(p, mine), j, size),
      )

    dq = jnp.zeros(own.shape, jnp.float32)
    dq, *carry = lax.fori_loop(first[i], i + 1, body, (dq, *carry))
    return tuple(carry), dq

  start = tuple(jnp.zeros(x.shape, jnp.float32) for x in (k, v))
  (dk, dv), dq = lax.scan(queries, start, jnp.arange(len(first)))
  return _joined(dq).astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None, None


_attend.defvjp(_forward, _backward)


def _first_blocks(size, segments, window):
  """int32[i]: the first block of keys that a query of block i sees."""
  index = jnp.arange(segments.shape[1])
  begins = (segments != jnp.roll(segments, 1, 1)) | (index == 0)
  start = lax.cummax(jnp.where(begins, index, 0), axis=1).min(0)
  return jnp.maximum(start, index - (window - 1))[::size] // size


def _scores(size, own, keys, segments, window, i, j):
  """Scores f32[b,n,g,q,k] of block i of the queries for block j of the keys [b,n,h,t]."""
  row = jnp.arange(size)
  ago = (i * size + row)[:, None] - (j * size + row)[None, :]
  here, there = (_cut(segments, x, size, 1) for x in (i, j))
  ok = (ago >= 0) & (ago < window) & (here[:, :, None] == there[:, None, :])
  return jnp.where(ok[:, None, None], _dot_rows(own, _cut(keys, j, size, 3)), NEVER)


def _cut(x, i, size, axis):
  return lax.dynamic_slice_in_dim(x, i * size, size, axis)


def _add(x, y, i, size):
  """x [b,n,t,h] with y added to its block i."""
  return lax.dynamic_update_slice_in_dim(x, _cut(x, i, size, 2) + y, i * size, 2)


def _rows(x):
  """[b,n,g,q,*] as [b,n,r,*]: the heads of a group read the same keys, so one product serves all."""
  return x.reshape(*x.shape[:2], -1, x.shape[-1])


def _dot_rows(x, y):
  """x [b,n,g,q,c] times y [b,n,c,d], in the dtype of y: f32[b,n,g,q,d]."""
  found = f32_einsum("bnrc,bncd->bnrd", _rows(x).astype(y.dtype), y)
  return found.reshape(*x.shape[:-1], y.shape[-1])


def _dot_columns(x, y):
  """x [b,n,g,q,k] and y [b,n,g,q,h], summed over all queries in the dtype of y: f32[b,n,k,h]."""
  return f32_einsum("bnrk,bnrh->bnkh", _rows(x).astype(y.dtype), _rows(y))


def _joined(x):
  """Blocks [i,b,n,g,q,*] put together: [b,n,g,t,*]."""
  x = jnp.moveaxis(x, 0, 3)
  return x.reshape(*x.shape[:3], -1, *x.shape[5:])
