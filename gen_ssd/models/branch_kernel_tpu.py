"""Attention of branches to the prefix they share, as one kernel for a TPU (Pallas, Mosaic).

    rows of one (slot, key-value head): branches x tokens x groups      ring, in tiles
    | k=0 t=0 g=0 | k=0 t=0 g=1 | ... | padding |                 | tile | tile | tile | .... |

The interface is that of branch_kernel.py. A step of the grid attends with one tile of rows to one tile
of the ring; steps over tiles come one after another, and sums stay in the memory of the core between
them. The grid ends where the used part of the ring does, so the rest of the ring costs nothing.
"""

import functools

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int

from gen_ssd.arrays import Array
from gen_ssd.models.attention import NEVER

UNSEEN = -(1 << 30)  # position of a ring slot that nobody attends to: out of every window

LANES = 128  # of a vector register: a tile of the ring has a multiple of it
SUBLANES = 16  # of a packed register of bfloat16: a tile of rows has a multiple of it
ROWS = 512  # most rows of a step
TILE_BYTES = 1 << 20  # most of the keys, or of the values, of one tile
SCORES = 1 << 19  # most scores of a step, each of 4 bytes


def attend(
  q: Float[Array, "b k t n g h"],
  kv: tuple[Float[Array, "*L b n h s"], Float[Array, "*L b n s h"]],
  l: Int[Array, ""] | None,
  visible: Bool[Array, "b s"],
  position: Int[Array, "b s"],
  end: Int[Array, ""],
  near: tuple | None,
  interpret: bool = False,
) -> tuple[Float[Array, "b n k t g h"], Float[Array, "b n k t g"], Float[Array, "b n k t g"]]:
  """Attention to the first `end` ring slots: branch_kernel.attend, on a TPU."""
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
    functools.partial(_on_one_device, interpret=interpret),
    in_specs=tuple(jax.typeof(x).sharding.spec for x in given),
    out_specs=(P(*rows, None), rows, rows),
    check_vma=False,
  )(*given)


def sizes(m: int, h: int, slots: int, itemsize: int) -> tuple[int, int, int]:
  """(tiles of rows, rows of a tile, ring slots of a tile) for `m` rows; padding is fewest."""
  count = pl.cdiv(m, ROWS)
  size = pl.cdiv(pl.cdiv(m, count), SUBLANES) * SUBLANES
  most = min(TILE_BYTES // (h * itemsize), SCORES // size, pl.cdiv(slots, LANES) * LANES)
  return count, size, most // LANES * LANES


def _on_one_device(q, k, v, numbers, places, positions=None, *, interpret):
  """`attend` of the slots and heads of one device; `positions` is [b,t]."""
  b, branches, t, n, g, h = q.shape
  m, slots = branches * t * g, k.shape[-1]
  count, size, tile = sizes(m, h, slots, k.dtype.itemsize)
  flat = h < LANES  # XLA lays such values out like keys, [h,s], so that they need no padding
  pad = lambda x, axis: jnp.pad(
    x, [(0, count * size - m if a == axis else 0) for a in range(x.ndim)]
  )
  rows = pad(jnp.moveaxis(q, 3, 1).reshape(b, n, m, h), 2)
  given = [rows, k, jnp.swapaxes(v, 3, 4) if flat else v, places[:, None]]
  row = lambda width: pl.BlockSpec((None, None, size, width), lambda b, n, i, j, x: (b, n, i, 0))
  line = pl.BlockSpec((None, None, None, h, tile), lambda b, n, i, j, x: (x[1], b, n, 0, j))
  column = pl.BlockSpec((None, None, None, tile, h), lambda b, n, i, j, x: (x[1], b, n, j, 0))
  place = pl.BlockSpec((None, 1, tile), lambda b, n, i, j, x: (b, 0, j))
  specs = [row(h), line, line if flat else column, place]
  if positions is not None:
    each = jnp.broadcast_to(positions[:, None, :, None], (b, branches, t, g)).reshape(b, m, 1)
    given.append(pad(each, 1))
    specs.append(pl.BlockSpec((None, size, 1), lambda b, n, i, j, x: (b, i, 0)))
  out = lambda width: jax.ShapeDtypeStruct((b, n, count * size, width), jnp.float32)
  tiles = jnp.maximum(lax.div(numbers[0] + (tile - 1), jnp.int32(tile)), 1)
  found = pl.pallas_call(
    functools.partial(_step, slots=slots, flat=flat),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=1,
      grid=(b, n, count, tiles),
      in_specs=specs,
      out_specs=[row(h), row(1), row(1)],
    ),
    out_shape=[out(h), out(1), out(1)],
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")
    ),
    cost_estimate=_cost(rows, k, count),
    interpret=interpret,
    name="attend_prefix",
  )(numbers, *given)
  o, top, z = (x[:, :, :m].reshape(b, n, branches, t, g, x.shape[3]) for x in found)
  return o, top[..., 0], z[..., 0]


def _cost(rows, k, count):
  """What a call costs at a full ring, for the compiler and for `gen-ssd plan`."""
  b, n, m, h = rows.shape
  slots = k.shape[-1]
  ring = count * 2 * b * n * slots * h * k.dtype.itemsize
  return pl.CostEstimate(
    flops=4 * b * n * m * slots * h,
    transcendentals=b * n * m * slots,
    bytes_accessed=ring + rows.size * (rows.dtype.itemsize + 4),
  )


def _step(numbers, q, k, v, places, *rest, slots, flat):
  """One tile of rows and one tile of the ring. The first tile starts the sums, which stay in place.

  `numbers` are (end, layer, window). `rest` are the rows' positions, when there is a window, and the
  outputs. Values are [h,tile] when `flat`, else [tile,h].
  """
  *own, o, m, z = rest
  end, window, first = numbers[0], numbers[2], pl.program_id(3) == 0
  tile = k.shape[1]
  start = pl.program_id(3) * tile

  @pl.when(first)
  def _():
    o[...], m[...], z[...] = (
      jnp.zeros_like(o),
      jnp.full_like(m, NEVER),
      jnp.zeros_like(z),
    )

  s = jnp.dot(q[...], k[...], preferred_element_type=jnp.float32)
  index = start + lax.broadcasted_iota(jnp.int32, (1, tile), 1)
  ok = (index < end) & (places[...] > UNSEEN)
  if own:
    ok = ok & (own[0][...] - places[...] < window)
  s = jnp.where(ok, s, NEVER)
  top = jnp.maximum(m[...], jnp.max(s, 1, keepdims=True))
  e, r = jnp.exp(s - top), jnp.exp(m[...] - top)
  values = v[...]
  if slots % tile:  # what lies beyond the ring may be anything, and 0 x NaN is NaN
    at = start + lax.broadcasted_iota(jnp.int32, values.shape, 1 if flat else 0)
    values = jnp.where(at < slots, values, jnp.zeros_like(values))
  more = lax.dot_general(
    e.astype(values.dtype),
    values,
    (((1,), (1 if flat else 0,)), ((), ())),
    preferred_element_type=jnp.float32,
  )
  m[...] = top
  z[...] = z[...] * r + jnp.sum(e, 1, keepdims=True)
  o[...] = o[...] * r + more
