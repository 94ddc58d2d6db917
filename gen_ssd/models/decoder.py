"""One decoder for Llama, Mistral, Qwen2/2.5, Qwen3 and Gemma 3, by facts of the Hugging Face config.

Dimension letters, here and everywhere: b rows, k branches, t tokens, s slots, n kv heads,
g query groups, h head dim, d width, f hidden, v vocab, L layers.
"""

import dataclasses
import functools
import math

from flax import nnx
import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.sharding import reshard

from gen_ssd.models import attention
from gen_ssd.models import rope


@dataclasses.dataclass(frozen=True)
class Shape:
  """Everything the compiled code may branch on: hashable, static under `jax.jit`.

  The first group are facts of the checkpoint, the second says how this process runs it:
  dtype of weights and caches, the mesh axes that split batch rows (`rows`) and heads, hidden
  and vocabulary (`tensor`), and whether layers are a `lax.scan` over stacked leaves (one small
  program, what a TPU wants) or unrolled over separate leaves (no slice copies on a CPU).
  """

  vocab: int
  width: int
  layers: int
  kv_heads: int
  groups: int
  head: int
  hidden: int
  theta: float = 10000.0
  rope: tuple = ("default",)  # ("default",) or (type, (name, value), ...) sorted by name
  eps: float = 1e-6
  tied: bool = False
  bias: bool = False
  qk_norm: bool = False
  act: str = "silu"  # or gelu_tanh
  post_norms: bool = False  # norms after attention and after the MLP, too
  norm_offset: float = 0.0  # added to the weights of norms
  embed_scale: float = 1.0  # of token embeddings
  query_scale: float = 1.0  # of queries, beside 1 / sqrt(head)
  local: tuple = ()  # one bool a layer: which see `window` tokens; () for none
  window: int = 0
  local_theta: float = 10000.0  # theta and rope of local layers
  local_rope: tuple = ("default",)

  dtype: str = "float32"
  rows: str | tuple | None = "data"
  tensor: str | None = "model"
  unroll: bool = False


# One line a leaf: name -> (axes, mesh axis roles, when present). Stacked leaves get a leading L.
# Roles: 't' is split over `Shape.tensor`, 'd' may be split by FSDP training, '.' stays whole.
LAYER_LEAVES = {
  "ln1": ("d", "."),
  "ln2": ("d", "."),
  "q": ("dngh", "dt.."),
  "k": ("dnh", "dt."),
  "v": ("dnh", "dt."),
  "o": ("nghd", "t..d"),
  "gate": ("df", "dt"),
  "up": ("df", "dt"),
  "down": ("fd", "td"),
  "qb": ("ngh", "t.."),
  "kb": ("nh", "t."),
  "vb": ("nh", "t."),
  "qn": ("h", "."),
  "kn": ("h", "."),
  "ln1b": ("d", "."),
  "ln2b": ("d", "."),
}
NORMS = ("ln1", "ln2", "ln1b", "ln2b", "qn", "kn", "norm")  # kept in float32
TOP_LEAVES = {"embed": ("vd", ".d"), "norm": ("d", "."), "head": ("dv", "dt")}


def decays(name: str) -> bool:
  """Whether weight decay applies to leaf `name`: to matrices, not to norms and biases."""
  return name in ("embed", "head", "q", "k", "v", "o", "gate", "up", "down")


def leaves(shape):
  """(top, layer) dicts of name -> dims of the leaves this architecture has, without L."""
  sizes = dict(
    d=shape.width, n=shape.kv_heads, g=shape.groups, h=shape.head, f=shape.hidden, v=shape.vocab
  )
  absent = set()
  if shape.tied:
    absent.add("head")
  if not shape.bias:
    absent |= {"qb", "kb", "vb"}
  if not shape.qk_norm:
    absent |= {"qn", "kn"}
  if not shape.post_norms:
    absent |= {"ln1b", "ln2b"}
  dims = lambda table: {
    name: tuple(sizes[a] for a in axes) for name, (axes, _) in table.items() if name not in absent
  }
  return dims(TOP_LEAVES), dims(LAYER_LEAVES)


def spec(shape, name, fsdp=None):
  """PartitionSpec of leaf `name`: tensor parallel for generation, or FSDP over mesh axes `fsdp`."""
  stacked = name in LAYER_LEAVES
  _, roles = (LAYER_LEAVES if stacked else TOP_LEAVES)[name]
  if fsdp:
    parts = [fsdp if r == "d" else None for r in roles]
  else:
    parts = [shape.tensor if r == "t" else None for r in roles]
  return P(*([None] if stacked else []), *parts)


class Blocks(nnx.Module):
  """Weights of all layers, stacked on a leading L (or of one layer, without it)."""

  def __init__(self, arrays):
    for name, x in arrays.items():
      setattr(self, name, nnx.Param(x))


class Transformer(nnx.Module):
  """A named pytree of weights; the functions below do the work. f32 norms, `dtype` elsewhere."""

  def __init__(self, shape, make):
    """`make(name, dims) -> array` is called once a leaf; layer leaves come with a leading L."""
    self.shape = shape
    top, layer = leaves(shape)
    for name, dims in top.items():
      setattr(self, name, nnx.Param(make(name, dims)))
    self.blocks = Blocks({n: make(n, (shape.layers, *dims)) for n, dims in layer.items()})


def parameters(shape):
  """Number of parameters (a tied head counts once)."""
  top, layer = leaves(shape)
  return sum(map(math.prod, top.values())) + shape.layers * sum(map(math.prod, layer.values()))


def initialise(shape, key, fsdp=None):
  """Random weights placed on the current mesh: normal of std 1/sqrt(fan in), ones for norms."""
  top, layer = leaves(shape)
  keys = dict(zip([*top, *layer], jax.random.split(key, len(top) + len(layer))))

  def make(name, dims):
    if name in NORMS:
      x = jnp.full(dims, 1 - shape.norm_offset, jnp.float32)
    elif name in ("qb", "kb", "vb"):
      x = jnp.zeros(dims, shape.dtype)
    else:
      fan = {
        "embed": shape.width,
        "down": shape.hidden,
        "o": shape.kv_heads * shape.groups * shape.head,
      }.get(name, shape.width)
      x = jax.random.normal(keys[name], dims, jnp.float32) / math.sqrt(fan)
      if name in ("o", "down"):
        x = x / math.sqrt(2 * shape.layers)
      x = x.astype(shape.dtype)
    return reshard(x, spec(shape, name, fsdp))

  return jax.jit(lambda: Transformer(shape, make))()


def replace_shape(model, **changes):
  """The same weights under a changed Shape."""
  graph, state = nnx.split(model)
  other = nnx.merge(graph, state)
  other.shape = dataclasses.replace(model.shape, **changes)
  return other


def unstacked(model):
  """Layers as a tuple of separate leaves when `shape.unroll`, for the generation loops."""
  if not model.shape.unroll or isinstance(model.blocks, nnx.List):
    return model

  @jax.jit
  def split(blocks):
    return [{n: x[...][l] for n, x in _named(blocks).items()} for l in range(model.shape.layers)]

  other = replace_shape(model)
  other.blocks = nnx.List([Blocks(w) for w in split(model.blocks)])
  return other


def _named(blocks):
  names = LAYER_LEAVES.keys() & vars(blocks).keys()
  return {n: getattr(blocks, n) for n in sorted(names)}


def _local(shape):
  return shape.local or (False,) * shape.layers


def _scanned_local(shape):
  return jnp.array(shape.local) if any(shape.local) else None


# ---------------------------------------------------------------- pieces of a layer

ACTS = {"silu": jax.nn.silu, "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True)}
EVERYTHING = 1 << 30  # window of a layer that is not local


def rms_norm(shape, x, weight):
  y, weight = x.astype(jnp.float32), weight.astype(jnp.float32)
  y = y * lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + shape.eps)
  return (y * (weight + shape.norm_offset if shape.norm_offset else weight)).astype(x.dtype)


def views(shape, positions):
  """`of(local) -> (rope angles, window or None)` of a layer; `local` is a bool, traced in a scan."""
  full = rope.angles(shape, positions)
  if not any(shape.local):
    return lambda local: (full, None)
  own = dataclasses.replace(shape, theta=shape.local_theta, rope=shape.local_rope)
  near = rope.angles(own, positions)

  def of(local):
    if isinstance(local, bool):
      return (near, shape.window) if local else (full, None)
    pick = lambda a, b: jnp.where(local, a, b)
    return jax.tree.map(pick, near, full), pick(shape.window, EVERYTHING)

  return of


def embed(model, tokens):
  """Token embeddings [b,k,t,d], rows split as the Shape says."""
  shape = model.shape
  table = model.embed[...]
  return scaled(shape, table.at[tokens].get(out_sharding=P(shape.rows, None, None, None)))


def scaled(shape, x):
  """Embeddings in `dtype`, times the scale, which is rounded to it first (Gemma)."""
  x = x.astype(shape.dtype)
  return x if shape.embed_scale == 1 else x * jnp.asarray(shape.embed_scale, x.dtype)


def layer(shape, w, x, angles, attend):
  """One decoder layer on x [b,k,t,d].

  `attend(q [b,k,t,n,g,h], k [b,k,t,n,h], v) -> (out [b,k,t,n,g,h], extra)` owns caches and
  masks, so generation and training share everything else. Returns (x, extra).
  """
  whole = P(shape.rows, None, None, None)
  dot = lambda eq, a, b: jnp.einsum(eq, a, b.astype(a.dtype))
  y = rms_norm(shape, x, w["ln1"])
  q, k, v = (
    dot("bktd,dngh->bktngh", y, w["q"]),
    dot("bktd,dnh->bktnh", y, w["k"]),
    dot("bktd,dnh->bktnh", y, w["v"]),
  )
  if shape.bias:
    q, k, v = q + w["qb"].astype(q.dtype), k + w["kb"].astype(k.dtype), v + w["vb"].astype(v.dtype)
  if shape.qk_norm:
    q, k = rms_norm(shape, q, w["qn"]), rms_norm(shape, k, w["kn"])
  if shape.query_scale != 1:
    q = q * jnp.asarray(shape.query_scale, q.dtype)
  out, extra = attend(rope.rotate(q, *angles), rope.rotate(k, *angles), v)
  # Not einsum, which orders the contracted axes in its own way and transposes the weight.
  y = lax.dot_general(
    out, w["o"].astype(x.dtype), (((3, 4, 5), (0, 1, 2)), ((), ())), out_sharding=whole
  )
  x = x + (rms_norm(shape, y, w["ln1b"]) if shape.post_norms else y)
  y = rms_norm(shape, x, w["ln2"])
  y = ACTS[shape.act](dot("bktd,df->bktf", y, w["gate"])) * dot("bktd,df->bktf", y, w["up"])
  y = jnp.einsum("bktf,fd->bktd", y, w["down"].astype(x.dtype), out_sharding=whole)
  return x + (rms_norm(shape, y, w["ln2b"]) if shape.post_norms else y), extra


def logits(model, x):
  """f32 logits [b,k,t,v] of normed hidden states x [b,k,t,d]."""
  if model.shape.tied:
    return jnp.einsum(
      "bktd,vd->bktv", x, model.embed[...].astype(x.dtype), preferred_element_type=jnp.float32
    )
  return jnp.einsum(
    "bktd,dv->bktv", x, model.head[...].astype(x.dtype), preferred_element_type=jnp.float32
  )


# ---------------------------------------------------------------- forward, two uses


def forward(model, tokens, positions, chunk, at, prefix, attend):
  """Hidden states over a cache: prefill, decode and scoring are this one function.

  Args:
    tokens, positions: int32[b,k,t]; `t` tokens of each branch, written at `at` of its chunk.
    chunk: this chunk's keys and values, `attention.KV` of [L,b,k,n,*] (a tuple a layer when
      unrolled).
    at: int32 scalar, where in the chunk the first token goes.
    prefix: `attention.KV` of [L,b,n,*], read only, shared by the branches of a row.
    attend: `attend(q, chunk_l, prefix, l) -> out`, with masks closed over; see attention.py. It
      is given `near` too in models that have local layers.
  Returns:
    (normed hidden [b,k,t,d], chunk with the new keys and values).
  """
  shape = model.shape
  x = embed(model, tokens)
  view = views(shape, positions)

  def run(x, w, chunk, l, prefix, local):
    angles, window = view(local)
    near = {} if window is None else {"near": (window, positions)}

    def attend_layer(q, k, v):
      own, mine = attention.write(chunk, k, v, at, l)
      return attend(q, mine, prefix, l, **near), own

    return layer(shape, w, x, angles, attend_layer)

  if shape.unroll:
    fresh = []
    for blocks, own, shared, local in zip(model.blocks, chunk, prefix, _local(shape)):
      w = {n: p[...] for n, p in _named(blocks).items()}
      x, own = run(x, w, own, None, shared, local)
      fresh.append(own)
    chunk = tuple(fresh)
  else:
    w = {n: p[...] for n, p in _named(model.blocks).items()}

    def body(carry, layer_and_local):
      x, chunk, l = carry
      w, local = layer_and_local
      x, chunk = run(x, w, chunk, l, prefix, local)
      return (x, chunk, l + 1), None

    (x, chunk, _), _ = lax.scan(body, (x, chunk, jnp.int32(0)), (w, _scanned_local(shape)))
  return rms_norm(shape, x, model.norm[...]), chunk


def forward_packed(model, tokens, positions, attend, *, gather=lambda w: w, remat=False):
  """Hidden states of packed training rows: tokens, positions int32[b,t] -> [b,1,t,d].

  `attend(q, k, v) -> out` masks across segments; it is given `window` too in models that have local
  layers. `gather` brings one layer's (FSDP-split)
  weights together; with `remat` it and the layer are recomputed in the backward pass.
  """
  shape = model.shape
  top = gather({"embed": model.embed[...]})
  x = top["embed"].at[tokens[:, None]].get(out_sharding=P(shape.rows, None, None, None))
  x = scaled(shape, x)
  view = views(shape, positions[:, None])

  def body(x, layer_and_local):
    w, local = layer_and_local
    angles, window = view(local)
    near = {} if window is None else {"window": window}
    x, _ = layer(shape, gather(w), x, angles, lambda q, k, v: (attend(q, k, v, **near), None))
    return x, None

  body = jax.checkpoint(body) if remat else body
  stacked = {n: p[...] for n, p in _named(model.blocks).items()}
  if shape.unroll:
    for l, local in enumerate(_local(shape)):
      x, _ = body(x, ({n: w[l] for n, w in stacked.items()}, local))
  else:
    x, _ = lax.scan(body, x, (stacked, _scanned_local(shape)))
  return rms_norm(shape, x, gather({"norm": model.norm[...]})["norm"])
