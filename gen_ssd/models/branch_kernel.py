"""Attention of branches to the prefix they share, as one kernel for a GPU (Pallas, Triton).

    rows of one (slot, key-value head): branches x tokens x groups      ring, in tiles
    | k=0 t=0 g=0 | k=0 t=0 g=1 | ... | padding |                 | tile | tile | tile | .... |
                                                                    split 0       split 1

All rows that share keys and values read them together, so K branches cost one read of the prefix. A
program attends with one tile of rows to one split of the ring's used part; XLA joins the splits.
FlashAttention: Dao, 2023 (arXiv:2307.08691).
"""

import functools

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
import jax.numpy as jnp

from gen_ssd.models.attention import NEVER
from gen_ssd.models.prefix_kernels import UNSEEN

ROWS = 64  # most rows of a program
TILE_BYTES = 1 << 14  # of the keys, or of the values, of one tile
PROGRAMS = 4 * 132  # that fill a GPU: the ring is split until there are about so many
WARPS = 4
STAGES = 3  # tiles in flight


def _power(x):
  """The smallest power of two that is at least x."""
  return 1 << (x - 1).bit_length()


def on_one_device(q, k, v, numbers, places, positions=None, *, interpret):
  """prefix_kernels.attend for the slots and heads of one device; `positions` is [b,t]."""
  b, branches, t, n, g, h = q.shape
  m, slots = branches * t * g, k.shape[-1]
  size = min(ROWS, max(16, _power(m)))
  count = pl.cdiv(m, size)
  tile = max(16, min(TILE_BYTES // (h * k.dtype.itemsize), _power(slots)))
  splits = max(1, min(pl.cdiv(PROGRAMS, b * n * count), pl.cdiv(slots, tile)))
  pad = lambda x, axis: jnp.pad(
    x, [(0, count * size - m if a == axis else 0) for a in range(x.ndim)]
  )
  rows = pad(jnp.moveaxis(q, 3, 1).reshape(b, n, m, h), 2)
  given, specs = [numbers, rows, k, v, places], _specs(k, size)
  if positions is not None:
    each = jnp.broadcast_to(positions[:, None, :, None], (b, branches, t, g)).reshape(b, m)
    given.append(pad(each, 1))
    specs.append(pl.BlockSpec((None, size), lambda i, j, n, b: (b, i)))
  out = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
  row = pl.BlockSpec((None, None, None, size), lambda i, j, n, b: (j, b, n, i))
  o, top, z = pl.pallas_call(
    functools.partial(_program, tile=tile, splits=splits),
    grid=(count, splits, n, b),  # rows of the same keys and values run next to each other
    in_specs=specs,
    out_specs=(
      pl.BlockSpec((None, None, None, size, h), lambda i, j, n, b: (j, b, n, i, 0)),
      row,
      row,
    ),
    out_shape=(
      out((splits, b, n, count * size, h)),
      out((splits, b, n, count * size)),
      out((splits, b, n, count * size)),
    ),
    compiler_params=plgpu.CompilerParams(num_warps=WARPS, num_stages=STAGES),
    interpret=interpret,
    name="attend_prefix",
  )(*given)
  found = _joined(o, top, z)
  return tuple(x[:, :, :m].reshape(b, n, branches, t, g, *x.shape[3:]) for x in found)


def _joined(o, m, z):
  """The splits [i,b,n,m,(h)] as one. XLA for the CPU gets such sums over seven axes wrong (0.10.2)."""
  top = m.max(0)
  r = jnp.exp(m - top)
  return (o * r[..., None]).sum(0), top, (z * r).sum(0)


def _specs(k, size):
  """What a program of the grid (rows, split, n, b) is given: all layers and ring slots, a few rows."""
  layers, _, _, h, slots = k.shape
  return [
    pl.BlockSpec((3,), lambda i, j, n, b: (0,)),
    pl.BlockSpec((None, None, size, h), lambda i, j, n, b: (b, n, i, 0)),
    pl.BlockSpec((layers, None, None, h, slots), lambda i, j, n, b: (0, b, n, 0, 0)),
    pl.BlockSpec((layers, None, None, slots, h), lambda i, j, n, b: (0, b, n, 0, 0)),
    pl.BlockSpec((None, slots), lambda i, j, n, b: (b, 0)),
  ]


def _program(numbers, q, k, v, places, *rest, tile, splits):
  """One tile of rows and one split of the ring, whose tiles are shared evenly among the splits.

  `numbers` are (end, layer, window). `rest` are the rows' positions, when there is a window, and the
  outputs.
  """
  *own, o_out, m_out, l_out = rest
  end, layer, window = numbers[0], numbers[1], numbers[2]
  rows, h = q.shape
  slots = places.shape[0]
  ragged = slots % tile != 0
  queries = q[...]
  tiles = lax.div(end + (tile - 1), jnp.int32(tile))
  each = lax.div(tiles + (splits - 1), jnp.int32(splits))
  first = pl.program_id(1) * each

  def body(i, carry):
    o, m, l = carry
    at = pl.ds(i * tile, tile)
    index = i * tile + jnp.arange(tile, dtype=jnp.int32)
    inside = dict(mask=index < slots) if ragged else {}
    column = dict(mask=inside["mask"][:, None], other=0.0) if ragged else {}
    line = dict(mask=inside["mask"][None, :], other=0.0) if ragged else {}
    place = plgpu.load(places.at[at], **inside)
    s = plgpu.dot(queries, plgpu.load(k.at[layer, :, at], **line))
    ok = ((index < end) & (place > UNSEEN))[None, :]
    if own:
      ok = ok & (own[0][...][:, None] - place[None, :] < window)
    s = jnp.where(ok, s, NEVER)
    top = jnp.maximum(m, jnp.max(s, 1))
    e, r = jnp.exp(s - top[:, None]), jnp.exp(m - top)
    values = plgpu.load(v.at[layer, at, :], **column)
    return o * r[:, None] + plgpu.dot(e.astype(values.dtype), values), top, l * r + jnp.sum(e, 1)

  start = (
    jnp.zeros((rows, h), jnp.float32),
    jnp.full((rows,), NEVER, jnp.float32),
    jnp.zeros((rows,), jnp.float32),
  )
  o, m, l = lax.fori_loop(first, jnp.minimum(first + each, tiles), body, start)
  o_out[...], m_out[...], l_out[...] = o, m, l
