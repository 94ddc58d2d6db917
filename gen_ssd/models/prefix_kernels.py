"""Attention of branches to the prefix they share, by a kernel on every device of the mesh.

branch_kernel.py is for GPUs and branch_kernel_tpu.py for TPUs. Devices hold different slots and heads,
and do not communicate.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int

from gen_ssd.arrays import Array
from gen_ssd.models.attention import GPU

UNSEEN = -(1 << 30)  # position of a ring slot that nobody attends to: out of every window


def attend(
  q: Float[Array, "b k t n g h"],
  kv: tuple[Float[Array, "*L b n h s"], Float[Array, "*L b n s h"]],
  l: Int[Array, ""] | None,
  visible: Bool[Array, "b s"],
  position: Int[Array, "b s"],
  end: Int[Array, ""],
  near: tuple | None,
  implementation: str,
) -> tuple[Float[Array, "b n k t g h"], Float[Array, "b n k t g"], Float[Array, "b n k t g"]]:
  """Attention to the first `end` ring slots: (sums of values, maxima, sums of weights), float32.

  Args:
    q: scaled queries.
    kv: keys and values; of all layers, of which `l` is read, or of one layer when `l` is None.
    visible, position: of ring slots.
    end: ring slots from here on are not read.
    near: (window, positions of the queries [b,k,t], equal over k), or None: see attend_branches.
    implementation: Layout.attention, for which attention.by_kernel is true.

  Weights are exp(score - maximum). A query that sees nothing has the maximum NEVER; its sums are finite
  and mean nothing.
  """
  if implementation in GPU:  # imported only here: not every jax has Pallas for both
    from gen_ssd.models import branch_kernel as kernel
  else:
    from gen_ssd.models import branch_kernel_tpu as kernel

  if l is None:
    kv, l = (kv[0][None], kv[1][None]), jnp.int32(0)
  window, positions = near or (0, None)
  numbers = jnp.stack([jnp.asarray(x, jnp.int32) for x in (end, l, window)])
  places = jnp.where(visible, position, UNSEEN)
  given = (q, *kv, numbers, places) + (() if positions is None else (positions[:, 0],))
  spec = jax.typeof(q).sharding.spec
  b, n = (spec[0], spec[3]) if len(spec) else (None, None)
  rows = P(b, n, None, None, None)
  return jax.shard_map(
    functools.partial(kernel.on_one_device, interpret=implementation.endswith("interpret")),
    in_specs=tuple(jax.typeof(x).sharding.spec for x in given),
    out_specs=(P(*rows, None), rows, rows),
    check_vma=False,
  )(*given)
