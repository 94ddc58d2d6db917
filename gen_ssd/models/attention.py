"""Attention: K branches over one shared prefix cache, and packed causal sequences for training.

    prefix (a ring of chunks, one per slot)           chunks (one per branch, this round only)
    slot 0  | p p p p | a a a . | . . . . | b b b b |   k=0  x x x .
                                                        k=1  x x .
    valid     1 1 1 1   1 1 1 0   0 0 0 0   1 1 1 1     ...

Every branch reads the one prefix of its slot. Order in the ring is free: RoPE uses positions.
"""

import dataclasses
import functools
import typing

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int

from gen_ssd.arrays import Array
from gen_ssd.arrays import pytree
from gen_ssd.models.architecture import Spec

NEVER = -1e30  # a masked score: finite, so that an all-masked block stays NaN-free
KERNEL_HEADS = (16, 32, 64, 128, 256)  # head dimensions that the kernels for GPUs take
TPU_HEADS = (64, 128, 256)  # and the kernel for TPUs: less leaves most of a register empty
LANES = 128  # of a TPU: the number of ring slots must be a multiple of it for the kernel
CPU_BLOCK = 128  # see packed_block
EVERYTHING = 1 << 30  # the window of a layer that sees all that came before
GPU = ("kernel", "cudnn", "interpret")  # values of Layout.attention with kernels for GPUs


@pytree
class KV:
  """Keys and values: prefix [L,b,n,*] or chunk [L,b,k,n,*]; those of one layer have no L.

  Keys end in [h,s] (or [h,c]) and values in [s,h]: each is then the right-hand side of its
  product as it lies, which on a CPU is three times faster, and a head of 64 pads nothing on a TPU.
  """

  k: Float[Array, "*lead h s"]
  v: Float[Array, "*lead s h"]


Cache = KV | tuple[KV, ...]  # stacked layers, or one KV per layer when they are unrolled


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prefix:
  """What the branches of every slot share during a forward pass; closed over by its layers."""

  kv: Cache
  position: Int[Array, "b s"]  # of the token in each ring slot
  visible: Bool[Array, "b s"]  # does the ring slot hold a token that is attended to?
  used: Int[Array, ""]  # blocks of the ring that hold anything: cost follows length
  block: int  # ring slots attended to at a time; divides s


class LayerPrefix(typing.NamedTuple):
  """The prefix as one layer reads it: `kv` [b,n,*], or stacked [L,b,n,*] and read at layer `l`."""

  kv: KV
  l: typing.Any
  prefix: Prefix


def each(f: typing.Callable, *caches: Cache) -> Cache:
  """KV of `f(ring-slot axis, *buffers)` for keys and for values, layer by layer when unrolled."""
  if isinstance(caches[0], tuple):
    return tuple(each(f, *layer) for layer in zip(*caches))  # pyright: ignore[reportReturnType]
  layers = typing.cast(tuple[KV, ...], caches)
  return KV(k=f(-1, *(c.k for c in layers)), v=f(-2, *(c.v for c in layers)))


def _blank(spec, dims, slots, axes):
  """Zeroed KV of `slots` tokens. Two buffers each, because one must not be donated twice."""
  arch, layout = spec

  def one(*lead):
    zeros = lambda *tail: jnp.zeros(
      (*lead, *dims, *tail),
      layout.dtype,
      out_sharding=P(*[None] * len(lead), *axes, None, None),
    )
    return KV(k=zeros(arch.head, slots), v=zeros(slots, arch.head))

  return tuple(one() for _ in range(arch.layers)) if layout.unroll else one(arch.layers)


def blank_chunk(spec: Spec, b: int, k: int, c: int) -> Cache:
  """Zeroed KV of chunks of c tokens, one per branch."""
  axes = (spec.layout.batch_axes, None, spec.layout.tensor_axis)
  return _blank(spec, (b, k, spec.arch.kv_heads), c, axes)


def blank_prefix(spec: Spec, b: int, s: int) -> Cache:
  """Zeroed KV of rings of s ring slots, one per batch slot."""
  axes = (spec.layout.batch_axes, spec.layout.tensor_axis)
  return _blank(spec, (b, spec.arch.kv_heads), s, axes)


def write(
  chunk: Cache,
  k: Float[Array, "b k t n h"],
  v: Float[Array, "b k t n h"],
  at: Int[Array, ""],
  l: typing.Any,
) -> tuple[Cache, KV]:
  """Puts keys and values at token `at` of the chunk; returns (chunk, the KV of this layer).

  `l` is the layer of a stacked chunk, None when `chunk` holds one layer.
  """

  def put(axis, buffer, y):
    starts = [jnp.int32(0)] * buffer.ndim
    starts[axis] = at
    if l is not None:
      starts[0], y = l, y[None]
    return lax.dynamic_update_slice(buffer, y, starts)

  chunk = each(put, chunk, KV(k=jnp.moveaxis(k, 2, 4), v=jnp.moveaxis(v, 2, 3)))
  if l is None:
    return chunk, typing.cast(KV, chunk)
  return chunk, jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, l, 0, keepdims=False), chunk)


f32_einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def platform() -> str:
  """The kind of devices of the current mesh, such as cpu, gpu or tpu."""
  return jax.sharding.get_mesh().devices.flat[0].platform


def implementation(setting: str) -> str:
  """The Layout.attention that a config's setting means for the devices of the current mesh."""
  kernel = {"gpu": "kernel", "tpu": "tpu_kernel"}.get(platform(), "einsum")
  return {"auto": kernel, "kernel": kernel}.get(setting, setting)


def by_kernel(kind: str, h: int, s: int) -> bool:
  """Do branches attend to a prefix of `s` ring slots by a kernel, which keeps no scores in memory?

  Args:
    kind: Layout.attention.
    h: head dimension.
  """
  if kind == "tpu_kernel":
    return h in TPU_HEADS and s % LANES == 0
  return kind != "einsum" and h in KERNEL_HEADS


def attend_branches(
  q: Float[Array, "b k t n g h"],
  own: KV,
  shared: LayerPrefix,
  causal: Bool[Array, "t c"],
  near: tuple | None = None,
  implementation: str = "einsum",
) -> Float[Array, "b k t n g h"]:
  """Online-softmax attention of branches over [shared prefix, own chunk].

  Args:
    q: rotated queries.
    own: KV of this layer's chunk, [b,k,n,*].
    shared: the prefix as this layer reads it.
    causal: which tokens of the chunk a query sees.
    near: for a sliding layer, (window, positions int32[b,k,t] of the queries, equal over k): a
      query sees the `window` newest tokens, itself included. None when it sees all.
    implementation: Layout.attention.
  """
  q = q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
  if near is not None:  # a query's own token is the last it sees of its chunk
    causal &= causal.sum(-1, keepdims=True) - 1 - jnp.arange(causal.shape[1]) < near[0]
  # Batch axes first and in the order of the cache: any other order transposes the cache.
  s = jnp.where(causal[:, None, :], f32_einsum("bktngh,bknhc->bkntgc", q, own.k), NEVER)
  if by_kernel(implementation, q.shape[-1], shared.prefix.position.shape[1]):
    return _by_kernel(q, own, shared, s, near, implementation)
  if shared.prefix.position.shape[1] == shared.prefix.block:
    return _one_block(q, own, shared, s, near)
  return _many_blocks(q, own, shared, s, near)


def _seen(visible, position, near):
  """bool[b,n,k,t,g,s]: ring slots that a query attends to, of visible and position [b,s]."""
  ok = visible[:, None, None, None, None, :]
  if near is None:
    return ok
  window, positions = near
  ago = positions[:, 0, :, None] - position[:, None]
  return ok & (ago < window)[:, None, None, :, None, :]


_swap = lambda x: jnp.swapaxes(x, 1, 2)  # [b,n,k,...] <-> [b,k,n,...]


def _one_block(q, own, shared, s, near):
  """The ring is one block: no slice of the cache, and nothing to loop over."""
  kv, l, prefix = shared
  k, v = (
    x if l is None else lax.dynamic_index_in_dim(x, l, 0, keepdims=False) for x in (kv.k, kv.v)
  )
  p = jnp.where(
    _seen(prefix.visible, prefix.position, near), f32_einsum("bktngh,bnhs->bnktgs", q, k), NEVER
  )
  m = jnp.maximum(s.max(-1, keepdims=True), _swap(p.max(-1, keepdims=True)))
  e, f = jnp.exp(s - m), jnp.exp(p - _swap(m))
  z = e.sum(-1, keepdims=True) + _swap(f.sum(-1, keepdims=True))
  o = f32_einsum("bkntgc,bknch->bkntgh", e.astype(q.dtype), own.v) + _swap(
    f32_einsum("bnktgs,bnsh->bnktgh", f.astype(q.dtype), v)
  )
  return jnp.swapaxes((o / z).astype(q.dtype), 2, 3)


def _many_blocks(q, own, shared, s, near):
  """The blocks of the ring that hold anything, one after another."""
  kv, l, prefix = shared
  block = prefix.block

  def body(i, carry):
    m, z, o = carry

    def cut(axis, x):
      starts, sizes = [jnp.int32(0)] * x.ndim, list(x.shape)
      starts[axis], sizes[axis] = i * block, block
      if l is None:
        return lax.dynamic_slice(x, starts, sizes)
      starts[0], sizes[0] = l, 1
      return lax.dynamic_slice(x, starts, sizes)[0]

    in_block = lambda x: lax.dynamic_slice_in_dim(x, i * block, block, 1)
    ok = _seen(in_block(prefix.visible), in_block(prefix.position), near)
    p = jnp.where(ok, f32_einsum("bktngh,bnhs->bnktgs", q, cut(-1, kv.k)), NEVER)
    top = jnp.maximum(m, p.max(-1, keepdims=True))
    e, r = jnp.exp(p - top), jnp.exp(m - top)
    return (
      top,
      z * r + e.sum(-1, keepdims=True),
      o * r + f32_einsum("bnktgs,bnsh->bnktgh", e.astype(q.dtype), cut(-2, kv.v)),
    )

  m = s.max(-1, keepdims=True)
  e = jnp.exp(s - m)
  start = (
    m,
    e.sum(-1, keepdims=True),
    f32_einsum("bkntgc,bknch->bkntgh", e.astype(q.dtype), own.v),
  )
  _, z, o = lax.fori_loop(0, prefix.used, body, tuple(map(_swap, start)))
  return jnp.moveaxis((o / z).astype(q.dtype), 1, 3)


def _by_kernel(q, own, shared, s, near, implementation):
  """The prefix by a kernel, and the own chunk here."""
  from gen_ssd.models import prefix_kernels  # only here: it imports this module

  kv, l, prefix = shared
  end = prefix.used * prefix.block
  o, m, z = prefix_kernels.attend(
    q, (kv.k, kv.v), l, prefix.visible, prefix.position, end, near, implementation
  )
  top = jnp.maximum(_swap(s.max(-1)), m)
  e, r = jnp.exp(s - _swap(top)[..., None]), jnp.exp(m - top)
  z = _swap(e.sum(-1)) + z * r
  o = _swap(f32_einsum("bkntgc,bknch->bkntgh", e.astype(q.dtype), own.v)) + o * r[..., None]
  return jnp.moveaxis((o / z[..., None]).astype(q.dtype), 1, 3)


def _packed_kernel(q, window, implementation):
  """The kernel for packed sequences of this Layout.attention, or None if it has none for them."""
  if implementation == "einsum":
    return None
  if implementation in GPU:  # imported only here: as above, and not every jax has Pallas for both
    from gen_ssd.models import packed_kernel as kernel
  else:
    from gen_ssd.models import packed_kernel_tpu as kernel

  if not kernel.takes(q, window, implementation):
    return None
  return functools.partial(kernel.on_one_device, window=window, implementation=implementation)


def packed_block(block: int, implementation: str) -> int:
  """Most queries, and most keys, whose scores `attend_packed` has at a time where it has no kernel.

  A CPU is fastest with scores that stay in its cache; others want fewer and larger blocks.
  """
  return min(block, CPU_BLOCK) if implementation == "einsum" else block


def attend_packed(
  q: Float[Array, "b 1 t n g h"],
  k: Float[Array, "b 1 t n h"],
  v: Float[Array, "b 1 t n h"],
  segments: Int[Array, "b t"],
  *,
  block: int,
  window: typing.Any = None,
  implementation: str = "einsum",
) -> Float[Array, "b 1 t n g h"]:
  """Causal attention inside segments of packed sequences.

  Segment 0 is padding. With a `window`, a query sees that many tokens, itself included. Memory is
  linear in t: at most `block` queries and keys have scores at a time. `implementation` is
  Layout.attention; what its kernel does not take is computed by packed_blocks.
  """
  from gen_ssd.models import packed_blocks  # only here: it imports this module

  given = (q, k, v, segments)
  attend = _packed_kernel(q, window, implementation)
  if attend is None:
    size = packed_block(block, implementation)
    attend = functools.partial(packed_blocks.on_one_device, block=size)
    given = (*given, jnp.int32(EVERYTHING if window is None else window))
  specs = tuple(jax.typeof(x).sharding.spec for x in given)
  return jax.shard_map(attend, in_specs=specs, out_specs=specs[0], check_vma=False)(*given)
