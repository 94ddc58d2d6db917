"""Attention where devices share the tokens of every sequence, for rows too long for one device.

Before attention, the devices exchange queries, keys and values, so that each has all tokens of some
heads instead of some tokens of all heads. Afterwards they exchange the outputs back. This is
DeepSpeed-Ulysses (arXiv:2309.14509). Everything else in a layer works on single tokens.

    between layers         device 0  tokens 0..7   heads 0 1 2 3
                           device 1  tokens 8..15  heads 0 1 2 3
    within attention       device 0  tokens 0..15  heads 0 1
                           device 1  tokens 0..15  heads 2 3
"""

import math
import typing

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.sharding import reshard
from jaxtyping import Float

from gen_ssd.arrays import Array
from gen_ssd.models.architecture import Architecture


def copies(heads: int, devices: int) -> int:
  """Devices that need the same keys and values, where `devices` share `heads` of them."""
  return devices // math.gcd(heads, devices)


def divides(arch: Architecture, devices: int) -> bool:
  """Can so many devices share the heads of a model?"""
  return arch.groups % copies(arch.kv_heads, devices) == 0


def attend(
  call: typing.Callable,
  axis: str,
  q: Float[Array, "b 1 t n g h"],
  k: Float[Array, "b 1 t n h"],
  v: Float[Array, "b 1 t n h"],
  **options: typing.Any,
) -> Float[Array, "b 1 t n g h"]:
  """`call(q, k, v, **options)`, which attends in whole sequences, where mesh axis `axis` splits tokens.

  A key-value head that several devices need is copied, and each device has some of its query heads.
  The axis must divide the heads: see `divides`.
  """
  b, _, t, n, g, h = q.shape
  sharding = jax.typeof(q).sharding
  batch, r = sharding.spec[0], copies(n, sharding.mesh.shape[axis])
  apart = lambda x: reshard(x, P(batch, None, None, axis, *[None] * (x.ndim - 4)))
  copied = lambda x: jnp.repeat(x, r, 3) if r > 1 else x
  grouped = jnp.reshape(q, (b, 1, t, n * r, g // r, h), out_sharding=sharding.spec)
  out = call(*map(apart, (grouped, copied(k), copied(v))), **options)
  return jnp.reshape(reshard(out, sharding.spec), q.shape, out_sharding=sharding.spec)
