"""What one model has read: a ring of chunk slots, shared by the branches of a row."""

import dataclasses
import functools

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.sharding import reshard

from gen_ssd.models import attention
from gen_ssd.models import decoder


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Prefix:
  """One model's view of the rows: what it has read, and the newest token, which it has not."""

  kv: attention.KV  # ring of chunk slots [L,b,n,*] (a tuple a layer when unrolled)
  position: jax.Array  # int32[b,s] position of the token in each slot, -1 where there is none
  length: jax.Array  # int32[b]   tokens in the ring, which is the position of `last`
  last: jax.Array  # int32[b]   newest token, not yet in the ring

  @property
  def valid(self):
    return self.position >= 0


def blank(shape, b, s):
  spec = P(shape.rows)
  zeros = functools.partial(jnp.zeros, dtype=jnp.int32, out_sharding=spec)
  return Prefix(
    attention.blank_prefix(shape, b, s),
    jnp.full((b, s), -1, jnp.int32, out_sharding=P(shape.rows, None)),
    zeros((b,)),
    zeros((b,)),
  )


def used_blocks(valid, block):
  """Blocks of the ring that hold anything: int32 scalar."""
  top = jnp.max(jnp.where(valid, jnp.arange(1, valid.shape[1] + 1, dtype=jnp.int32), 0))
  return (top + block - 1) // block


def read(model, prefix, new, tokens, length, first, pieces, c, block):
  """`select.admit` for one model: `pieces` chunks of tokens int32[b,p] from ring slot `first` on."""
  shape = model.shape
  new, length = reshard(new, P(shape.rows)), reshard(length, P(shape.rows))
  tokens = reshard(tokens, P(shape.rows, None))
  b, slots = prefix.position.shape
  position = jnp.where(new[:, None], -1, prefix.position)
  index = jnp.arange(c, dtype=jnp.int32)
  causal = index[None, :] <= index[:, None]

  def piece(i, carry):
    position, kv = carry
    valid = position >= 0
    at = (first + i * c) % slots
    text = lax.dynamic_slice_in_dim(tokens, i * c, c, 1)[:, None]
    positions = jnp.broadcast_to(i * c + index, (b, 1, c))
    used = used_blocks(valid & new[:, None], block)
    attend = functools.partial(
      attention.attend_branches,
      causal=causal,
      valid=valid,
      used=used,
      block=block,
      position=position,
    )
    _, chunk = decoder.forward(
      model, text, positions, attention.blank_chunk(shape, b, 1, c), jnp.int32(0), kv, attend
    )

    def put(axis, buffer, fresh):  # [(L),b,n,*], [(L),b,1,n,*]
      fresh = lax.squeeze(fresh, [fresh.ndim - 4])
      old = lax.dynamic_slice_in_dim(buffer, at, c, axis)
      mine = new.reshape((1,) * (buffer.ndim - 4) + (b, 1, 1, 1))
      return lax.dynamic_update_slice_in_dim(buffer, jnp.where(mine, fresh, old), at, axis)

    kv = attention.each(put, kv, chunk)
    here = (i * c + index)[None]
    fresh = jnp.where(here < (length - 1)[:, None], here, -1)
    old = lax.dynamic_slice_in_dim(position, at, c, 1)
    position = lax.dynamic_update_slice_in_dim(position, jnp.where(new[:, None], fresh, old), at, 1)
    return position, kv

  position, kv = lax.fori_loop(0, pieces, piece, (position, prefix.kv))
  newest = jnp.arange(tokens.shape[1]) == (length - 1)[:, None]
  last = jnp.sum(jnp.where(newest, tokens, 0), 1)
  return Prefix(
    kv, position, jnp.where(new, length - 1, prefix.length), jnp.where(new, last, prefix.last)
  )


def grow(prefix, branches, choice, kept, won, slot):
  """The Prefix with the first kept int32[b] of won int32[b,c]: branch `choice` of the chunk's KV."""
  rows = P(jax.typeof(prefix.last).sharding.spec[0])
  at, n, fresh = reshard(choice, rows), reshard(kept, rows), reshard(won, P(rows[0], None))

  def put(axis, buffer, branches):  # [(L),b,n,*], [(L),b,k,n,*]
    lead = branches.ndim - 5
    index = at.reshape((1,) * lead + (-1, 1, 1, 1, 1))
    mine = jnp.take_along_axis(branches, index, lead + 1)
    return lax.dynamic_update_slice_in_dim(buffer, lax.squeeze(mine, [lead + 1]), slot, axis)

  index = jnp.arange(won.shape[1], dtype=jnp.int32)
  fresh_position = jnp.where(index < n[:, None], prefix.length[:, None] + index, -1)
  position = lax.dynamic_update_slice_in_dim(prefix.position, fresh_position, slot, 1)
  newest = index == (n - 1)[:, None]
  last = jnp.where(n > 0, jnp.sum(jnp.where(newest, fresh, 0), 1), prefix.last)
  return Prefix(attention.each(put, prefix.kv, branches), position, prefix.length + n, last)
