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
  """Keys and values: prefix [L,b,n,s,h] or chunk [L,b,k,n,c,h]; one layer's have no L."""
  k: jax.Array
  v: jax.Array


def blank(shape, dims, spec):
  """Zeroed KV of per-layer `dims`: stacked on L, or a tuple a layer when unrolled.

  Two buffers each, never one twice: a donated buffer must appear once.
  """
  zeros = lambda lead: KV(*(jnp.zeros((*lead, *dims), shape.dtype,
                                      out_sharding=P(*[None] * len(lead), *spec))
                            for _ in range(2)))
  if shape.unroll:
    return tuple(zeros(()) for _ in range(shape.layers))
  return zeros((shape.layers,))


def blank_chunk(shape, b, k, c):
  return blank(shape, (b, k, shape.kv_heads, c, shape.head),
               (shape.rows, None, shape.tensor, None, None))


def blank_prefix(shape, b, s):
  return blank(shape, (b, shape.kv_heads, s, shape.head), (shape.rows, shape.tensor, None, None))


def write(chunk, k, v, at, l):
  """Puts k, v [b,k,t,n,h] at token `at` of the chunk; returns (chunk, this layer's KV)."""
  zero = jnp.int32(0)

  def put(buffer, y):
    y = jnp.swapaxes(y, 2, 3)
    if l is None:
      return lax.dynamic_update_slice(buffer, y, (zero, zero, zero, at, zero))
    return lax.dynamic_update_slice(buffer, y[None], (l, zero, zero, zero, at, zero))

  chunk = KV(put(chunk.k, k), put(chunk.v, v))
  if l is None:
    return chunk, chunk
  return chunk, jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, l, 0, keepdims=False), chunk)


def attend_branches(q, own, prefix, l, *, causal, valid, used, block):
  """Online-softmax attention of branches over [shared prefix, own chunk].

  Args:
    q: [b,k,t,n,g,h], rotated.
    own: KV of this layer's chunk [b,k,n,c,h].
    prefix: KV [b,n,s,h] (`l` None) or stacked [L,b,n,s,h] read at layer `l`; None for no prefix.
    causal: bool[t,c], which chunk tokens a query sees.
    valid: bool[b,s], which slots hold a token of the row.
    used: int32 scalar, how many blocks of `block` slots hold anything: cost follows length.
  Returns:
    [b,k,t,n,g,h] in q's dtype.
  """
  q = q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
  dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  s = jnp.where(causal[:, None, :], dot("bktngh,bknch->bnktgc", q, own.k), NEVER)
  if prefix is None:
    return _normalise(*_start(dot, s, own.v, q.dtype), q.dtype)
  slots = valid.shape[1]
  if slots == block:  # one block: no slice of the cache, nothing to loop over
    pk, pv = ((prefix.k, prefix.v) if l is None else
              (lax.dynamic_index_in_dim(x, l, 0, keepdims=False) for x in (prefix.k, prefix.v)))
    p = jnp.where(valid[:, None, None, None, None, :], dot("bktngh,bnsh->bnktgs", q, pk), NEVER)
    m = jnp.maximum(s.max(-1), p.max(-1))
    e, f = jnp.exp(s - m[..., None]), jnp.exp(p - m[..., None])
    out = (dot("bnktgc,bknch->bnktgh", e.astype(q.dtype), own.v)
           + dot("bnktgs,bnsh->bnktgh", f.astype(q.dtype), pv))
    return _normalise(None, e.sum(-1) + f.sum(-1), out, q.dtype)

  def body(i, carry):
    m, z, o = carry
    zero = jnp.int32(0)

    def cut(x):
      if l is None:
        return lax.dynamic_slice_in_dim(x, i * block, block, 2)
      return lax.dynamic_slice(x, (l, zero, zero, i * block, zero),
                               (1, *x.shape[1:3], block, x.shape[4]))[0]

    ok = lax.dynamic_slice_in_dim(valid, i * block, block, 1)[:, None, None, None, None, :]
    p = jnp.where(ok, dot("bktngh,bnsh->bnktgs", q, cut(prefix.k)), NEVER)
    top = jnp.maximum(m, p.max(-1))
    e, r = jnp.exp(p - top[..., None]), jnp.exp(m - top)
    return (top, z * r + e.sum(-1),
            o * r[..., None] + dot("bnktgs,bnsh->bnktgh", e.astype(q.dtype), cut(prefix.v)))

  return _normalise(*lax.fori_loop(0, used, body, _start(dot, s, own.v, q.dtype)), q.dtype)


def _start(dot, s, v, dtype):
  m = s.max(-1)
  e = jnp.exp(s - m[..., None])
  return m, e.sum(-1), dot("bnktgc,bknch->bnktgh", e.astype(dtype), v)


def _normalise(_, z, o, dtype):
  return jnp.moveaxis((o / z[..., None]).astype(dtype), 1, 3)


def attend_packed(q, k, v, segments, *, block):
  """Causal attention inside segments of packed rows, one block of keys at a time.

  q [b,1,t,n,g,h], k and v [b,1,t,n,h], segments int32[b,t] (0 is padding) -> [b,1,t,n,g,h].
  Blocks are recomputed in the backward pass, so memory is linear in t. `block` divides t.
  """
  t = q.shape[2]
  q, k, v = (x[:, 0] for x in (q, k, v))
  q = q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
  dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  index = jnp.arange(t)

  def scores(i):
    cut = lambda x, axis=1: lax.dynamic_slice_in_dim(x, i * block, block, axis)
    seen = cut(index, 0)[None, :] <= index[:, None]
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
