"""Attention: K branches over one shared prefix cache, and packed causal rows for training.

    prefix (ring of chunk slots, one a row)          chunks (one a branch, this round only)
    row 0  | p p p p | a a a . | . . . . | b b b b |   k=0  x x x .
                                                       k=1  x x .
    valid    1 1 1 1   1 1 1 0   0 0 0 0   1 1 1 1     ...

Every branch reads its row's one prefix. Order in the ring is free: RoPE uses positions.
"""

import dataclasses
import functools

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

NEVER = -1e30  # a masked score: finite, so that an all-masked block stays NaN-free


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class KV:
  """Keys and values: prefix [L,b,n,*] or chunk [L,b,k,n,*]; one layer's have no L.

  Keys end in [h,s] (or [h,c]) and values in [s,h]: each is then the right-hand side of its
  product as it lies, which on a CPU is three times faster, and a head of 64 pads nothing on a TPU.
  """

  k: jax.Array
  v: jax.Array


def each(f, *caches):
  """KV of `f(slot axis, buffers)` for keys and values, layer by layer when unrolled."""
  if isinstance(caches[0], tuple):
    return tuple(each(f, *layer) for layer in zip(*caches))
  return KV(f(-1, *(c.k for c in caches)), f(-2, *(c.v for c in caches)))


def blank(shape, dims, slots, spec):
  """Zeroed KV of `slots` slots: stacked on L, or a tuple a layer when unrolled.

  Two buffers each, never one twice: a donated buffer must appear once.
  """

  def layer(*lead):
    zeros = lambda *tail: jnp.zeros(
      (*lead, *dims, *tail), shape.dtype, out_sharding=P(*[None] * len(lead), *spec, None, None)
    )
    return KV(zeros(shape.head, slots), zeros(slots, shape.head))

  return tuple(layer() for _ in range(shape.layers)) if shape.unroll else layer(shape.layers)


def blank_chunk(shape, b, k, c):
  return blank(shape, (b, k, shape.kv_heads), c, (shape.rows, None, shape.tensor))


def blank_prefix(shape, b, s):
  return blank(shape, (b, shape.kv_heads), s, (shape.rows, shape.tensor))


def write(chunk, k, v, at, l):
  """Puts k, v [b,k,t,n,h] at token `at` of the chunk; returns (chunk, this layer's KV)."""

  def put(axis, buffer, y):
    starts = [jnp.int32(0)] * buffer.ndim
    starts[axis] = at
    if l is not None:
      starts[0], y = l, y[None]
    return lax.dynamic_update_slice(buffer, y, starts)

  chunk = each(put, chunk, KV(jnp.moveaxis(k, 2, 4), jnp.moveaxis(v, 2, 3)))
  if l is None:
    return chunk, chunk
  return chunk, jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, l, 0, keepdims=False), chunk)


def attend_branches(q, own, prefix, l, *, causal, valid, used, block, position=None, near=None):
  """Online-softmax attention of branches over [shared prefix, own chunk].

  Args:
    q: [b,k,t,n,g,h], rotated.
    own: KV of this layer's chunk, [b,k,n,*].
    prefix: KV [b,n,*] (`l` None) or stacked [L,b,n,*] read at layer `l`; None for no prefix.
    causal: bool[t,c], which chunk tokens a query sees.
    valid: bool[b,s], which slots hold a token of the row.
    used: int32 scalar, how many blocks of `block` slots hold anything: cost follows length.
    position: int32[b,s], position of the token in each slot; read for `near` only.
    near: (window, positions int32[b,k,t] of the queries, equal over k) for a layer in which a query
      sees the `window` newest tokens, itself included; None when it sees all.
  Returns:
    [b,k,t,n,g,h] in q's dtype.
  """
  q = q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
  dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  if near is not None:  # a query's own slot is the last it sees of its chunk
    causal &= causal.sum(-1, keepdims=True) - 1 - jnp.arange(causal.shape[1]) < near[0]

  def seen(valid, position):  # [b,s] -> [b,n,k,t,g,s]
    ok = valid[:, None, None, None, None, :]
    if near is None:
      return ok
    ago = near[1][:, 0, :, None] - position[:, None]
    return ok & (ago < near[0])[:, None, None, :, None, :]

  # Batch axes first and in the order of the cache: any other order transposes the cache.
  s = jnp.where(causal[:, None, :], dot("bktngh,bknhc->bkntgc", q, own.k), NEVER)
  if prefix is None:
    m = s.max(-1, keepdims=True)
    e = jnp.exp(s - m)
    o = dot("bkntgc,bknch->bkntgh", e.astype(q.dtype), own.v)
    return jnp.swapaxes((o / e.sum(-1, keepdims=True)).astype(q.dtype), 2, 3)
  outer = lambda x: jnp.swapaxes(x, 1, 2)  # [b,n,k,...] <-> [b,k,n,...]
  slots = valid.shape[1]
  if slots == block:  # one block: no slice of the cache, nothing to loop over
    pk, pv = (
      (prefix.k, prefix.v)
      if l is None
      else (lax.dynamic_index_in_dim(x, l, 0, keepdims=False) for x in (prefix.k, prefix.v))
    )
    p = jnp.where(seen(valid, position), dot("bktngh,bnhs->bnktgs", q, pk), NEVER)
    m = jnp.maximum(s.max(-1, keepdims=True), outer(p.max(-1, keepdims=True)))
    e, f = jnp.exp(s - m), jnp.exp(p - outer(m))
    z = e.sum(-1, keepdims=True) + outer(f.sum(-1, keepdims=True))
    o = dot("bkntgc,bknch->bkntgh", e.astype(q.dtype), own.v) + outer(
      dot("bnktgs,bnsh->bnktgh", f.astype(q.dtype), pv)
    )
    return jnp.swapaxes((o / z).astype(q.dtype), 2, 3)

  def body(i, carry):
    m, z, o = carry

    def cut(axis, x):
      starts, sizes = [jnp.int32(0)] * x.ndim, list(x.shape)
      starts[axis], sizes[axis] = i * block, block
      if l is None:
        return lax.dynamic_slice(x, starts, sizes)
      starts[0], sizes[0] = l, 1
      return lax.dynamic_slice(x, starts, sizes)[0]

    here = lambda x: x if x is None else lax.dynamic_slice_in_dim(x, i * block, block, 1)
    ok = seen(here(valid), here(position))
    p = jnp.where(ok, dot("bktngh,bnhs->bnktgs", q, cut(-1, prefix.k)), NEVER)
    top = jnp.maximum(m, p.max(-1, keepdims=True))
    e, r = jnp.exp(p - top), jnp.exp(m - top)
    return (
      top,
      z * r + e.sum(-1, keepdims=True),
      o * r + dot("bnktgs,bnsh->bnktgh", e.astype(q.dtype), cut(-2, prefix.v)),
    )

  m = s.max(-1, keepdims=True)
  e = jnp.exp(s - m)
  start = (m, e.sum(-1, keepdims=True), dot("bkntgc,bknch->bkntgh", e.astype(q.dtype), own.v))
  _, z, o = lax.fori_loop(0, used, body, tuple(map(outer, start)))
  return jnp.moveaxis((o / z).astype(q.dtype), 1, 3)


def attend_packed(q, k, v, segments, *, block, window=None):
  """Causal attention inside segments of packed rows, one block of keys at a time.

  q [b,1,t,n,g,h], k and v [b,1,t,n,h], segments int32[b,t] (0 is padding) -> [b,1,t,n,g,h].
  Blocks are recomputed in the backward pass, so memory is linear in t. `block` divides t.
  With a `window`, a query sees that many tokens, itself included.
  """
  t = q.shape[2]
  q, k, v = (x[:, 0] for x in (q, k, v))
  q = q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
  dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  index = jnp.arange(t)

  def scores(i):
    cut = lambda x, axis=1: lax.dynamic_slice_in_dim(x, i * block, block, axis)
    ago = index[:, None] - cut(index, 0)[None, :]
    seen = ago >= 0 if window is None else (ago >= 0) & (ago < window)
    ok = seen & (cut(segments)[:, None, :] == segments[:, :, None])
    return jnp.where(ok[:, None, None], dot("btngh,bsnh->bngts", q, cut(k)), NEVER), cut(v)

  if block == t:
    s, _ = scores(0)
    out = dot("bngts,bsnh->btngh", jax.nn.softmax(s, -1).astype(q.dtype), v)
    return out.astype(q.dtype)[:, None]

  @jax.checkpoint
  def body(carry, i):
    m, z, o = carry
    s, values = scores(i)
    top = jnp.maximum(m, s.max(-1))
    e, r = jnp.exp(s - top[..., None]), jnp.exp(m - top)
    o = o * r[..., None] + dot("bngts,bsnh->bngth", e.astype(q.dtype), values)
    return (top, z * r + e.sum(-1), o), None

  like = jnp.einsum("btngh->bngth", q).astype(jnp.float32) * 0  # carries q's sharding
  (_, z, o), _ = lax.scan(body, (like[..., 0] + NEVER, like[..., 0], like), jnp.arange(t // block))
  return jnp.moveaxis((o / z[..., None]).astype(q.dtype), 3, 1)[:, None]
