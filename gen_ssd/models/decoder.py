"""One decoder for Llama, Mistral, Qwen2/2.5, Qwen3, OLMo 2 and Gemma 3, by an Architecture.

Dimension letters: see arrays.py.
"""

import dataclasses
import functools
import math
import typing

from flax import nnx
import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.sharding import reshard
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int
from jaxtyping import Key

from gen_ssd.arrays import Array
from gen_ssd.models import architecture
from gen_ssd.models import attention
from gen_ssd.models import products
from gen_ssd.models import quantization
from gen_ssd.models import rope
from gen_ssd.models.architecture import Architecture
from gen_ssd.models.architecture import Layout
from gen_ssd.models.architecture import Spec
from gen_ssd.models.quantization import Int8Weight


class Blocks(nnx.Module):
  """Weights of all layers, stacked on a leading L; or of one layer, without it."""

  def __init__(self, arrays: dict[str, typing.Any]):
    for name, x in arrays.items():
      setattr(self, name, nnx.Param(x))


class Transformer(nnx.Module):
  """Named weights with their Architecture and Layout; the functions below do the work."""

  embed: nnx.Param
  norm: nnx.Param
  head: nnx.Param  # absent when the embeddings are tied

  def __init__(
    self,
    arch: Architecture,
    layout: Layout,
    make: typing.Callable[[str, tuple], typing.Any],
  ):
    """`make(name, dims)` gives the array of one leaf; layer leaves come with a leading L."""
    self.arch, self.layout = arch, layout
    top, layer = architecture.leaves(arch)
    for name, dims in top.items():
      setattr(self, name, nnx.Param(make(name, dims)))
    self.blocks: typing.Any = Blocks({n: make(n, (arch.layers, *d)) for n, d in layer.items()})

  @property
  def spec(self) -> Spec:
    return Spec(self.arch, self.layout)


def initialise(arch: Architecture, layout: Layout, key: Key[Array, ""]) -> Transformer:
  """Random weights on the current mesh: normal of std 1/sqrt(fan in), ones for norms.

  What writes into the residual stream (o, down) is scaled by 1/sqrt(2 L) more, as in GPT-2.
  """
  top, layer = architecture.leaves(arch)
  keys = dict(zip([*top, *layer], jax.random.split(key, len(top) + len(layer))))

  def make(name, dims):
    if name in architecture.NORMS:
      x = jnp.full(dims, 1 - arch.norm_offset, jnp.float32)
    elif name in ("qb", "kb", "vb"):
      x = jnp.zeros(dims, layout.dtype)
    else:
      fan = {"down": arch.hidden, "o": arch.kv_heads * arch.groups * arch.head}
      x = jax.random.normal(keys[name], dims, jnp.float32) / math.sqrt(fan.get(name, arch.width))
      if name in ("o", "down"):
        x = x / math.sqrt(2 * arch.layers)
      x = x.astype(layout.dtype)
    return quantization.stored(layout, name, reshard(x, architecture.partition_spec(layout, name)))

  return jax.jit(lambda: Transformer(arch, layout, make))()


def replace(
  model: Transformer, *, arch: Architecture | None = None, layout: Layout | None = None
) -> Transformer:
  """The same weights under another Architecture or Layout; no array is copied."""
  graph, state = nnx.split(model)
  other = nnx.merge(graph, state)
  other.arch, other.layout = arch or model.arch, layout or model.layout
  return other


def unstacked(model: Transformer) -> Transformer:
  """The model as generation loops want it: where its layout unrolls, layers are separate leaves.

  These, and the output layer, are OutputsFirst where the layout says so.
  """
  if not model.layout.unroll or isinstance(model.blocks, nnx.List):
    return model

  other = replace(model)
  first = model.layout.outputs_first
  layers = _split(_arrays(model.blocks), model.arch.layers, first)
  other.blocks = nnx.List([Blocks(w) for w in layers])
  if first and not model.arch.tied:
    other.head = nnx.Param(_outputs_first({"head": model.head[...]})["head"])
  return other


@functools.partial(jax.jit, static_argnums=(1, 2))
def _split(blocks, layers, outputs_first=False):
  """The weights of each layer.

  The gradient of a split is a concatenation; that of indices would be a sum of padded layers.
  """
  stacked, tree = jax.tree.flatten(blocks)
  parts = [lax.split(x, [1] * layers) for x in stacked]
  found = [tree.unflatten(jnp.squeeze(x[l], 0) for x in parts) for l in range(layers)]
  return [_outputs_first(w) for w in found] if outputs_first else found


@jax.jit
def _outputs_first(weights):
  def stored(name, w):
    is_plain = architecture.summed(name) and not isinstance(w, Int8Weight)
    return products.outputs_first(w, architecture.summed(name)) if is_plain else w

  return {name: stored(name, w) for name, w in weights.items()}


def _params(blocks):
  names = architecture.LAYER_LEAVES.keys() & vars(blocks).keys()
  return {n: getattr(blocks, n) for n in sorted(names)}


def _arrays(blocks):
  return {n: p[...] for n, p in _params(blocks).items()}


# ---------------------------------------------------------------- pieces of a layer

ACTS = {"silu": jax.nn.silu, "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True)}


def rms_norm(
  arch: Architecture, x: Float[Array, "..."], weight: Float[Array, "*axes"]
) -> Float[Array, "..."]:
  """RMSNorm over the last axes, as many as the weight has, computed in f32."""
  y, weight = x.astype(jnp.float32), weight.astype(jnp.float32)
  axes = tuple(range(-weight.ndim, 0))
  y = y * lax.rsqrt(jnp.mean(y * y, axes, keepdims=True) + arch.eps)
  return (y * (weight + arch.norm_offset if arch.norm_offset else weight)).astype(x.dtype)


def views(arch: Architecture, positions: Int[Array, "b k t"]) -> typing.Callable:
  """`of(sliding) -> (rope angles, window or None)` of a layer; `sliding` is traced in a scan."""
  full = rope.angles(arch, positions)
  if not any(arch.sliding):
    return lambda sliding: (full, None)
  own = dataclasses.replace(arch, theta=arch.sliding_theta, rope=arch.sliding_rope)
  near = rope.angles(own, positions)

  def of(sliding):
    if isinstance(sliding, bool):
      return (near, arch.window) if sliding else (full, None)
    pick = lambda a, b: jnp.where(sliding, a, b)
    return jax.tree.map(pick, near, full), pick(arch.window, attention.EVERYTHING)

  return of


def _sliding(arch):
  return arch.sliding or (False,) * arch.layers


def _scanned_sliding(arch):
  return jnp.array(arch.sliding) if any(arch.sliding) else None


def embed(
  spec: Spec, table: Float[Array, "v d"] | Int8Weight, tokens: Int[Array, "b k t"]
) -> Float[Array, "b k t d"]:
  """Token embeddings in the layout's dtype, times the scale, which is rounded to it first."""
  arch, layout = spec
  split = lambda x: P(layout.batch_axes, None, layout.sequence_axis, *[None] * (x.ndim - 1))
  look_up = lambda x: x.at[tokens].get(out_sharding=split(x))
  x = quantization.rows(look_up, table).astype(layout.dtype)
  return x if arch.embed_scale == 1 else x * jnp.asarray(arch.embed_scale, x.dtype)


def layer(
  spec: Spec,
  w: dict[str, typing.Any],
  x: Float[Array, "b k t d"],
  angles: tuple[Float[Array, "b k t _"], Float[Array, "b k t _"]],
  attend: typing.Callable,
) -> tuple[Float[Array, "b k t d"], typing.Any]:
  """One decoder layer.

  `attend(q [b,k,t,n,g,h], k [b,k,t,n,h], v) -> (out [b,k,t,n,g,h], extra)` owns caches and
  masks, so that generation and training share everything else. Returns (x, extra).
  """
  arch, layout = spec
  replicated = P(layout.batch_axes, None, layout.sequence_axis, None)

  def dot(x, name, summed=(0,), out_sharding=None):
    multiply = lambda x, w: products.dot(x, w, summed, None, out_sharding)
    return quantization.product(multiply, x, w[name])

  y = rms_norm(arch, x, w["ln1"]) if arch.pre_norms else x
  q, k, v = (dot(y, name) for name in ("q", "k", "v"))
  if arch.bias:
    q, k, v = (a + w[name].astype(a.dtype) for a, name in ((q, "qb"), (k, "kb"), (v, "vb")))
  if arch.qk_norm:
    q, k = rms_norm(arch, q, w["qn"]), rms_norm(arch, k, w["kn"])
  if arch.projection_norm:
    q, k = rms_norm(arch, q, w["qpn"]), rms_norm(arch, k, w["kpn"])
  if arch.query_scale != 1:
    q = q * jnp.asarray(arch.query_scale, q.dtype)
  out, extra = attend(rope.rotate(q, *angles), rope.rotate(k, *angles), v)
  y = dot(out, "o", (0, 1, 2), replicated)
  x = x + (rms_norm(arch, y, w["ln1b"]) if arch.post_norms else y)
  y = rms_norm(arch, x, w["ln2"]) if arch.pre_norms else x
  y = dot(ACTS[arch.act](dot(y, "gate")) * dot(y, "up"), "down", out_sharding=replicated)
  return x + (rms_norm(arch, y, w["ln2b"]) if arch.post_norms else y), extra


def logits(model: Transformer, x: Float[Array, "b k t d"]) -> Float[Array, "b k t v"]:
  """f32 logits of normed hidden states."""
  arch, layout = model.spec
  summed, head = (1, model.embed[...]) if arch.tied else (0, model.head[...])
  if arch.tied and layout.outputs_first and not isinstance(head, Int8Weight):
    head = products.outputs_first(head, (summed,))
  return quantization.product(lambda x, w: products.dot(x, w, (summed,), "float32"), x, head)


# ---------------------------------------------------------------- forward, two uses


def forward(
  model: Transformer,
  tokens: Int[Array, "b k t"],
  positions: Int[Array, "b k t"],
  chunk: attention.Cache,
  at: Int[Array, ""],
  prefix: attention.Prefix,
  causal: Bool[Array, "t c"],
) -> tuple[Float[Array, "b k t d"], attention.Cache]:
  """Normed hidden states over a cache: prefill, decode and scoring are this one function.

  Args:
    model: a Transformer; one that unrolls has separate layers (see `unstacked`).
    tokens, positions: `t` tokens of each branch, written at `at` of its chunk.
    chunk: this chunk's keys and values, KV of [L,b,k,n,*].
    at: where in the chunk the first token goes.
    prefix: what the branches of a slot share; read only.
    causal: which tokens of the chunk each token sees.

  Returns:
    (hidden states, the chunk with the new keys and values).
  """
  arch, layout = model.spec
  x = embed(model.spec, model.embed[...], tokens)
  view = views(arch, positions)

  def run(x, w, chunk, prefix_kv, l, sliding):
    angles, window = view(sliding)
    near = None if window is None else (window, positions)

    def attend(q, k, v):
      chunk_after, own = attention.write(chunk, k, v, at, l)
      shared = attention.LayerPrefix(prefix_kv, l, prefix)
      out = attention.attend_branches(q, own, shared, causal, near, layout.attention)
      return out, chunk_after

    return layer(model.spec, w, x, angles, attend)

  if layout.unroll:
    fresh = []
    for blocks, own, shared, sliding in zip(model.blocks, chunk, prefix.kv, _sliding(arch)):
      x, own = run(x, _arrays(blocks), own, shared, None, sliding)
      fresh.append(own)
    chunk = tuple(fresh)
  else:

    def body(carry, weights_and_sliding):
      x, chunk, l = carry
      w, sliding = weights_and_sliding
      x, chunk = run(x, w, chunk, prefix.kv, l, sliding)
      return (x, chunk, l + 1), None

    start = (x, chunk, jnp.int32(0))
    (x, chunk, _), _ = lax.scan(body, start, (_arrays(model.blocks), _scanned_sliding(arch)))
  return rms_norm(arch, x, model.norm[...]), chunk


def forward_packed(
  model: Transformer,
  tokens: Int[Array, "b t"],
  positions: Int[Array, "b t"],
  attend: typing.Callable,
  *,
  gather: typing.Callable = lambda w: w,
  remat: bool = False,
) -> Float[Array, "b 1 t d"]:
  """Normed hidden states of packed sequences.

  `attend(q, k, v) -> out` masks across segments; layers that slide pass `window` to it, too.
  `gather` brings the weights of one layer together where FSDP splits them. With `remat`, it and
  the layer are computed again in the backward pass.
  """
  arch, layout = model.spec
  x = embed(model.spec, gather({"embed": model.embed[...]})["embed"], tokens[:, None])
  view = views(arch, positions[:, None])

  def body(x, weights_and_sliding):
    w, sliding = weights_and_sliding
    angles, window = view(sliding)
    near = {} if window is None else {"window": window}
    x, _ = layer(model.spec, gather(w), x, angles, lambda q, k, v: (attend(q, k, v, **near), None))
    return x, None

  body = jax.checkpoint(body) if remat else body
  stacked = _arrays(model.blocks)
  if layout.unroll:
    for weights_and_sliding in zip(_split(stacked, arch.layers), _sliding(arch)):
      x, _ = body(x, weights_and_sliding)
  else:
    x, _ = lax.scan(body, x, (stacked, _scanned_sliding(arch)))
  return rms_norm(arch, x, gather({"norm": model.norm[...]})["norm"])
