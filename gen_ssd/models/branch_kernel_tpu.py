"""Attention of branches to the prefix they share, as one kernel for a TPU (Pallas, Mosaic).

    rows of one (slot, key-value head): branches x tokens x groups      ring, in tiles
    | k=0 t=0 g=0 | k=0 t=0 g=1 | ... | padding |                 | tile | tile | tile | .... |

A step of the grid attends with one tile of rows to one tile of the ring. Steps over tiles come one
after another, and the sums stay in the memory of the core between them. The grid ends where the used
part of the ring does, so the rest costs nothing. The ring of all layers goes in as it is stored: no
layer of it is copied or sliced for a call.
"""

import functools

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from gen_ssd.models.attention import LANES
from gen_ssd.models.attention import NEVER
from gen_ssd.models.prefix_kernels import UNSEEN

SUBLANES = 16  # of a packed register of bfloat16: a tile of rows has a multiple of it
ROWS = 512  # most rows of a step
TILE_BYTES = 1 << 19  # most of the keys, or of the values, of one tile
SCORES = 1 << 19  # most scores of a step, each of 4 bytes


def sizes(m: int, h: int, slots: int, itemsize: int) -> tuple[int, int, int]:
  """(tiles of rows, rows of a tile, ring slots of a tile) for `m` rows; padding is fewest."""
  count = pl.cdiv(m, ROWS)
  size = pl.cdiv(pl.cdiv(m, count), SUBLANES) * SUBLANES
  most = min(TILE_BYTES // (h * itemsize), SCORES // size, pl.cdiv(slots, LANES) * LANES)
  return count, size, most // LANES * LANES


def on_one_device(q, k, v, numbers, places, positions=None, *, interpret):
  """prefix_kernels.attend for the slots and heads of one device; `positions` is [b,t]."""
  b, branches, t, n, g, h = q.shape
  m, slots = branches * t * g, k.shape[-1]
  count, size, tile = sizes(m, h, slots, k.dtype.itemsize)
  turn = h < LANES  # XLA stores such values as [h,s], which takes least room: as stored, no copy
  pad = lambda x, axis: jnp.pad(
    x, [(0, count * size - m if a == axis else 0) for a in range(x.ndim)]
  )
  rows = pad(jnp.moveaxis(q, 3, 1).reshape(b, n, m, h), 2)
  given = [rows, k, jnp.swapaxes(v, 3, 4) if turn else v, places]
  row = lambda width: pl.BlockSpec((None, None, size, width), lambda b, n, i, j, x: (b, n, i, 0))
  wide = pl.BlockSpec((None, None, None, h, tile), lambda b, n, i, j, x: (x[1], b, n, 0, j))
  long = pl.BlockSpec((None, None, None, tile, h), lambda b, n, i, j, x: (x[1], b, n, j, 0))
  near = min(b, 8)  # slots of a register: one alone would need another layout, in every layer
  place = pl.BlockSpec((near, tile), lambda b, n, i, j, x: (b // near, j))
  specs = [row(h), wide, wide if turn else long, place]
  if positions is not None:
    each = jnp.broadcast_to(positions[:, None, :, None], (b, branches, t, g)).reshape(b, m, 1)
    given.append(pad(each, 1))
    specs.append(pl.BlockSpec((None, size, 1), lambda b, n, i, j, x: (b, i, 0)))
  out = lambda width: jax.ShapeDtypeStruct((b, n, count * size, width), jnp.float32)
  tiles = jnp.maximum(lax.div(numbers[0] + (tile - 1), jnp.int32(tile)), 1)
  found = pl.pallas_call(
    functools.partial(_step, slots=slots, turn=turn),
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
    cost_estimate=_cost(rows, k, count, near),
    interpret=interpret,
    name="attend_prefix",
  )(numbers, *given)
  o, top, z = (x[:, :, :m].reshape(b, n, branches, t, g, x.shape[3]) for x in found)
  return o, top[..., 0], z[..., 0]


def _cost(rows, k, count, near):
  """What a call costs at a full ring, for the compiler and for `gen-ssd plan`."""
  b, n, m, h = rows.shape
  slots = k.shape[-1]
  ring = count * b * n * slots * (2 * h * k.dtype.itemsize + 4 * near)
  return pl.CostEstimate(
    flops=4 * b * n * m * slots * h,
    transcendentals=b * n * m * slots,
    bytes_accessed=ring + rows.size * (rows.dtype.itemsize + 4),
  )


def _dot(x, y, axis):
  """x [a,b] times y, whose `axis` is b, in float32."""
  return lax.dot_general(x, y, (((1,), (axis,)), ((), ())), preferred_element_type=jnp.float32)


def _step(numbers, q, k, v, places, *rest, slots, turn):
  """One tile of rows and one tile of the ring. The first tile starts the sums, which stay in place.

  `numbers` are (end, layer, window), and `places` those of this slot and its neighbours. `rest` are the
  rows' positions, when there is a window, and the outputs. Keys are [h,tile]. Values are [tile,h], or
  [h,tile] with `turn`.
  """
  *own, o, m, z = rest
  end, window = numbers[0], numbers[2]
  tile = places.shape[1]
  start = pl.program_id(3) * tile
  place = places[pl.ds(pl.program_id(0) % places.shape[0], 1), :]

  @pl.when(start == 0)
  def _():
    o[...], z[...] = jnp.zeros_like(o), jnp.zeros_like(z)
    m[...] = jnp.full_like(m, NEVER)

  index = lambda shape, axis: start + lax.broadcasted_iota(jnp.int32, shape, axis)
  ok = (index((1, tile), 1) < end) & (place > UNSEEN)
  if own:
    ok = ok & (own[0][...] - place < window)
  s = jnp.where(ok, _dot(q[...], k[...], 0), NEVER)
  top = jnp.maximum(m[...], jnp.max(s, 1, keepdims=True))
  e, r = jnp.exp(s - top), jnp.exp(m[...] - top)
  values = v[...]
  if slots % tile:  # what lies beyond the ring may be NaN, and 0 x NaN is NaN
    inside = index(values.shape, 1 if turn else 0) < slots
    values = jnp.where(inside, values, jnp.zeros_like(values))
  m[...] = top
  z[...] = z[...] * r + jnp.sum(e, 1, keepdims=True)
  o[...] = o[...] * r + _dot(e.astype(values.dtype), values, 1 if turn else 0)
