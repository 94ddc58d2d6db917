"""What one model has read of every slot's trace: a ring of chunks, shared by the branches of a slot.

A chunk goes in at the cursor, at the same place for every slot, so that one scalar index writes all
of them. The order of ring slots does not matter to attention, which goes by positions.

    cursor -> 8        | chunk 0 | chunk 1 | . . . . |     every round: cursor += c (around the end)
    slot 0  position   | 0 1 2 3 | 4 5 6 - | - - - - |     last = token 7, not read yet; length 7
    slot 1  position   | - - - - | 0 1 2 - | - - - - |     last = token 3; length 3
"""

import dataclasses
import functools
import typing

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.sharding import reshard
from jaxtyping import Bool
from jaxtyping import Int

from gen_ssd.arrays import Array
from gen_ssd.arrays import pytree
from gen_ssd.models import attention
from gen_ssd.models import decoder
from gen_ssd.models.architecture import Spec


@pytree
class Ring:
  """One model's cache of every slot, and the newest token of each, which it has not read yet."""

  kv: attention.Cache  # [L,b,n,*], or a tuple of layers when they are unrolled
  position: Int[Array, "b s"]  # of the token in each ring slot, -1 where there is none
  length: Int[Array, " b"]  # tokens in the ring, which is the position of `last`
  last: Int[Array, " b"]  # newest token, not yet in the ring
  age: Int[Array, " b"]  # ring slots the cursor has passed since the trace was admitted
  cursor: Int[Array, ""]  # where the next chunk goes


@pytree
class Text:
  """What one model is to read of the traces that are admitted."""

  tokens: Int[Array, "r p"]  # prompt and kept tokens
  length: Int[Array, " r"]


def blank(spec: Spec, b: int, s: int) -> Ring:
  """An empty ring of s ring slots for b batch slots."""
  sharding = P(spec.layout.batch_axes)
  zeros = functools.partial(jnp.zeros, dtype=jnp.int32, out_sharding=sharding)
  return Ring(
    kv=attention.blank_prefix(spec, b, s),
    position=jnp.full((b, s), -1, jnp.int32, out_sharding=P(spec.layout.batch_axes, None)),
    length=zeros((b,)),
    last=zeros((b,)),
    age=zeros((b,)),
    cursor=jnp.zeros((), jnp.int32, out_sharding=P()),
  )


def prefix(
  ring: Ring,
  attending: Bool[Array, " b"],
  block: int,
  visible: Bool[Array, "b s"] | None = None,
) -> attention.Prefix:
  """The ring as branches attend to it; blocks count as used where an `attending` slot has tokens.

  `visible` is which ring slots are seen (default: all that hold a token).
  """
  held = ring.position >= 0
  return attention.Prefix(
    kv=ring.kv,
    position=ring.position,
    visible=held if visible is None else visible,
    used=used_blocks(held & attending[:, None], block),
    block=block,
  )


def used_blocks(held: Bool[Array, "b s"], block: int) -> Int[Array, ""]:
  """Blocks of the ring up to the last one that holds anything."""
  top = jnp.max(jnp.where(held, jnp.arange(1, held.shape[1] + 1, dtype=jnp.int32), 0))
  return (top + block - 1) // block


def put_rows(old: typing.Any, fresh: typing.Any, slot: Int[Array, " r"]) -> typing.Any:
  """The tree `old` with row i of `fresh` in place of row `slot[i]`, in every array.

  A `slot[i]` equal to the number of rows of `old` changes nothing. Rows are the first axis, and the
  fourth from the end of keys and values. A row of `fresh` must lie on the device of the row that it
  replaces: nothing moves between devices.
  """
  specs = jax.tree.map(lambda x: jax.typeof(x).sharding.spec, old)
  batch = jax.typeof(slot).sharding.spec
  axis = lambda x: max(x.ndim - 4, 0)

  def local(old, fresh, slot):
    any_of = jax.tree.leaves(old)[0]
    count = any_of.shape[axis(any_of)]
    at = slot - (count * lax.axis_index(batch[0]) if batch[0] else 0)

    def put(i, old):
      there = jnp.clip(at[i], 0, count - 1)

      def one(to, x):
        row = lax.dynamic_index_in_dim(x, i, axis(x))
        held = lax.dynamic_index_in_dim(to, there, axis(to))
        row = jnp.where(at[i] == there, row, held)
        return lax.dynamic_update_slice_in_dim(to, row, there, axis(to))

      return jax.tree.map(one, old, fresh)

    return lax.fori_loop(0, slot.shape[0], put, old)

  put = jax.shard_map(local, in_specs=(specs, specs, batch), out_specs=specs, check_vma=False)
  return put(old, fresh, slot)


def read(
  model: decoder.Transformer,
  ring: Ring,
  slot: Int[Array, " r"],
  text: Text,
  c: int,
  block: int,
) -> Ring:
  """The ring after `model` has read text i into slot `slot[i]`; other slots stay as they are.

  A text fills as many chunks of c tokens before the cursor as it needs, and the longest sets the
  number of forward passes; the cursor does not move. The newest token is not read but kept as `last`.
  `length - 1` tokens must fit the ring. The texts are read into a ring of r slots first, so that the
  model computes r sequences instead of b. For `slot`, see put_rows.
  """
  axes = model.layout.batch_axes
  slot, length = reshard(slot, P(axes)), reshard(text.length, P(axes))
  tokens = reshard(text.tokens, P(axes, None))
  b, slots = ring.position.shape
  used = slot < b
  start = blank(model.spec, length.shape[0], slots)
  index = jnp.arange(c, dtype=jnp.int32)
  causal = index[None, :] <= index[:, None]
  own = (length - 1 + c - 1) // c  # chunks of each text
  chunks = jnp.max(jnp.where(used, own, 0))
  first = ring.cursor - chunks * c
  place = lambda i: ((i - chunks + own) * c)[:, None] + index  # [b,c]: where in each text

  def read_chunk(i, carry):
    position, kv = carry
    places = place(i)
    at = (first + i * c) % slots
    seen = prefix(dataclasses.replace(start, kv=kv, position=position), used, block)
    _, chunk = decoder.forward(
      model,
      jnp.take_along_axis(tokens, jnp.clip(places, 0, tokens.shape[1] - 1), 1)[:, None],
      jnp.maximum(places, 0)[:, None],
      attention.blank_chunk(model.spec, length.shape[0], 1, c),
      jnp.int32(0),
      seen,
      causal,
    )

    def put(axis, buffer, fresh):  # [(L),b,n,*], [(L),b,1,n,*]
      fresh = lax.squeeze(fresh, [fresh.ndim - 4])
      return lax.dynamic_update_slice_in_dim(buffer, fresh, at, axis)

    kv = attention.each(put, kv, chunk)
    fresh = jnp.where((places >= 0) & (places < (length - 1)[:, None]), places, -1)
    return lax.dynamic_update_slice_in_dim(position, fresh, at, 1), kv

  position, kv = lax.fori_loop(0, chunks, read_chunk, (start.position, start.kv))
  newest = jnp.arange(tokens.shape[1]) == (length - 1)[:, None]
  found = dict(
    kv=kv,
    position=position,
    length=length - 1,
    last=jnp.sum(jnp.where(newest, tokens, 0), 1),
    age=own * c,
  )
  held = {name: getattr(ring, name) for name in found}
  return dataclasses.replace(ring, **put_rows(held, found, slot))


def rewind(
  ring: Ring, running: Bool[Array, " b"], length: Int[Array, " b"], last: Int[Array, " b"]
) -> Ring:
  """The ring of running slots without the tokens from position `length` on; `last` follows it."""
  length = jnp.where(running, length, ring.length)
  position = jnp.where(ring.position < length[:, None], ring.position, -1)
  return dataclasses.replace(
    ring, position=position, length=length, last=jnp.where(running, last, ring.last)
  )


def advance(
  ring: Ring,
  running: Bool[Array, " b"],
  branches: attention.Cache,
  choice: Int[Array, " b"],
  kept: Int[Array, " b"],
  won: Int[Array, "b c"],
) -> Ring:
  """The ring one chunk further: the only place where the cursor and the age of slots move.

  The first `kept` tokens of `won` join each slot, with the keys and values that its branch `choice`
  left in `branches`. Where kept is 0 nothing joins, but the cursor passes all the same.
  """
  batch = P(jax.typeof(ring.last).sharding.spec[0])
  choice, kept, running = (reshard(x, batch) for x in (choice, kept, running))
  won = reshard(won, P(batch[0], None))
  c, slots = won.shape[1], ring.position.shape[1]

  def put(axis, buffer, branches):  # [(L),b,n,*], [(L),b,k,n,*]
    lead = branches.ndim - 5
    winner = choice.reshape((1,) * lead + (-1, 1, 1, 1, 1))
    mine = jnp.take_along_axis(branches, winner, lead + 1)
    mine = lax.squeeze(mine, [lead + 1])
    return lax.dynamic_update_slice_in_dim(buffer, mine, ring.cursor, axis)

  index = jnp.arange(c, dtype=jnp.int32)
  fresh = jnp.where(index < kept[:, None], ring.length[:, None] + index, -1)
  newest = index == (kept - 1)[:, None]
  return Ring(
    kv=attention.each(put, ring.kv, branches),
    position=lax.dynamic_update_slice_in_dim(ring.position, fresh, ring.cursor, 1),
    length=ring.length + kept,
    last=jnp.where(kept > 0, jnp.sum(jnp.where(newest, won, 0), 1), ring.last),
    age=jnp.where(running, ring.age + c, ring.age),
    cursor=(ring.cursor + c) % slots,
  )
