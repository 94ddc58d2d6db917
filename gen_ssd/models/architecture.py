"""What a checkpoint is, how a process runs it, and the weights it has: one table for all of them."""

import dataclasses
import math
import typing

import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

Axes = str | tuple[str, ...] | None  # names of mesh axes; None for replicated


@dataclasses.dataclass(frozen=True)
class Architecture:
  """Facts of a checkpoint that the compiled code depends on: hashable, static under `jax.jit`."""

  vocab: int
  width: int
  layers: int
  kv_heads: int
  groups: int  # query heads per key-value head
  head: int  # dimension of one head
  hidden: int
  theta: float = 10000.0
  rope: tuple = ("default",)  # ("default",) or (type, (name, value), ...) sorted by name
  eps: float = 1e-6
  tied: bool = False  # the embeddings are the output head, too
  bias: bool = False  # on q, k and v
  qk_norm: bool = False  # RMSNorm of every query and key head
  act: str = "silu"  # or gelu_tanh
  projection_norm: bool = False  # RMSNorm of all queries, and of all keys, of a token at once
  pre_norms: bool = True  # norms before attention and before the MLP
  post_norms: bool = False  # norms after attention and after the MLP
  norm_offset: float = 0.0  # added to the weights of norms
  embed_scale: float = 1.0  # multiplies token embeddings
  query_scale: float = 1.0  # multiplies queries, beside 1 / sqrt(head)
  sliding: tuple = ()  # one bool per layer: which see `window` tokens; () for none
  window: int = 0
  sliding_theta: float = 10000.0  # theta and rope of sliding layers
  sliding_rope: tuple = ("default",)


@dataclasses.dataclass(frozen=True)
class Layout:
  """How this process runs a checkpoint: hashable, static under `jax.jit`.

  With `unroll`, layers are separate leaves and separate code, which avoids slice copies on a CPU;
  without it, a `lax.scan` over stacked leaves gives the small program that a TPU wants.
  """

  dtype: str = "float32"  # of activations and caches, and of weights that are not norms
  quantization: str = "off"  # or int8, of matrices: see quantization.py
  batch_axes: Axes = "data"  # mesh axes that split the batch
  sequence_axis: str | None = None  # mesh axis that splits the tokens of packed sequences
  tensor_axis: str | None = "model"  # mesh axis that splits heads, hidden and vocabulary
  fsdp_axes: Axes = None  # mesh axes that split the width of weights while training
  unroll: bool = False
  outputs_first: bool = False  # of the weights of unstacked layers: see products.py
  # einsum; by kernels for a GPU (kernel, cudnn) or for a TPU (tpu_kernel); for tests on a CPU,
  # interpret or tpu_interpret
  attention: str = "einsum"


class Spec(typing.NamedTuple):
  """All that is static of a model."""

  arch: Architecture
  layout: Layout


class Leaf(typing.NamedTuple):
  """One kind of weight.

  Roles, one per axis: 't' is split over `Layout.tensor_axis`, 'd' over `Layout.fsdp_axes`, '.' over
  nothing. In a file, the axes stand in another order, and groups such as "ngh" are flattened; only
  the first axis of a group may be split on the mesh.
  """

  axes: str
  roles: str
  decay: bool  # is weight decay applied?
  name: str  # in a Hugging Face file, behind `model.layers.N.` for leaves of a layer
  file_axes: str
  present: typing.Callable[[Architecture], bool] = lambda arch: True


# Leaves of a layer are stacked on a leading L.
LAYER_LEAVES = {
  "ln1": Leaf("d", ".", False, "input_layernorm.weight", "d", lambda arch: arch.pre_norms),
  "ln2": Leaf("d", ".", False, "post_attention_layernorm.weight", "d", lambda arch: arch.pre_norms),
  "q": Leaf("dngh", "dt..", True, "self_attn.q_proj.weight", "ngh d"),
  "k": Leaf("dnh", "dt.", True, "self_attn.k_proj.weight", "nh d"),
  "v": Leaf("dnh", "dt.", True, "self_attn.v_proj.weight", "nh d"),
  "o": Leaf("nghd", "t..d", True, "self_attn.o_proj.weight", "d ngh"),
  "gate": Leaf("df", "dt", True, "mlp.gate_proj.weight", "f d"),
  "up": Leaf("df", "dt", True, "mlp.up_proj.weight", "f d"),
  "down": Leaf("fd", "td", True, "mlp.down_proj.weight", "d f"),
  "qb": Leaf("ngh", "t..", False, "self_attn.q_proj.bias", "ngh", lambda arch: arch.bias),
  "kb": Leaf("nh", "t.", False, "self_attn.k_proj.bias", "nh", lambda arch: arch.bias),
  "vb": Leaf("nh", "t.", False, "self_attn.v_proj.bias", "nh", lambda arch: arch.bias),
  "qn": Leaf("h", ".", False, "self_attn.q_norm.weight", "h", lambda arch: arch.qk_norm),
  "kn": Leaf("h", ".", False, "self_attn.k_norm.weight", "h", lambda arch: arch.qk_norm),
  "qpn": Leaf(
    "ngh", "t..", False, "self_attn.q_norm.weight", "ngh", lambda arch: arch.projection_norm
  ),
  "kpn": Leaf(
    "nh", "t.", False, "self_attn.k_norm.weight", "nh", lambda arch: arch.projection_norm
  ),
  "ln1b": Leaf(
    "d", ".", False, "post_attention_layernorm.weight", "d", lambda arch: arch.post_norms
  ),
  "ln2b": Leaf(
    "d", ".", False, "post_feedforward_layernorm.weight", "d", lambda arch: arch.post_norms
  ),
}
TOP_LEAVES = {
  "embed": Leaf("vd", ".d", True, "model.embed_tokens.weight", "v d"),
  "norm": Leaf("d", ".", False, "model.norm.weight", "d"),
  "head": Leaf("dv", "dt", True, "lm_head.weight", "v d", lambda arch: not arch.tied),
}
LEAVES = {**TOP_LEAVES, **LAYER_LEAVES}
NORMS = tuple(n for n, leaf in LEAVES.items() if leaf.name.endswith("norm.weight"))  # float32


# What a model_type of config.json means for the Architecture, beside the numbers there.
FAMILIES: dict[str, dict] = {
  "llama": {},
  "mistral": {},
  "qwen2": dict(bias=True),
  "qwen3": dict(qk_norm=True),
  "olmo2": dict(projection_norm=True, pre_norms=False, post_norms=True),
  "gemma3_text": dict(qk_norm=True, post_norms=True, norm_offset=1.0),
}


def file_name(arch: Architecture, leaf: str) -> str:
  """Name of a leaf in a Hugging Face file, with `{}` for the layer."""
  if leaf not in LAYER_LEAVES:
    return LEAVES[leaf].name
  name = LEAVES[leaf].name
  if leaf == "ln2" and arch.post_norms:  # its usual name is that of the norm after attention
    name = "pre_feedforward_layernorm.weight"
  return "model.layers.{}." + name


def leaves(arch: Architecture) -> tuple[dict[str, tuple], dict[str, tuple]]:
  """Dimensions of the top leaves and of the layer leaves (without L) that this model has, by name."""
  sizes = dict(
    d=arch.width, n=arch.kv_heads, g=arch.groups, h=arch.head, f=arch.hidden, v=arch.vocab
  )
  top, layer = (
    {name: tuple(sizes[a] for a in leaf.axes) for name, leaf in table.items() if leaf.present(arch)}
    for table in (TOP_LEAVES, LAYER_LEAVES)
  )
  return top, layer


def partition_spec(layout: Layout, name: str) -> P:
  """How leaf `name` lies on the mesh: tensor parallel, or FSDP where the layout has `fsdp_axes`."""
  role, axes = ("d", layout.fsdp_axes) if layout.fsdp_axes else ("t", layout.tensor_axis)
  parts = [axes if r == role else None for r in LEAVES[name].roles]
  return P(*([None] if name in LAYER_LEAVES else []), *parts)


def summed(name: str) -> tuple[int, ...]:
  """The axes of a matrix, counted from the last, that a product sums over; () for other leaves."""
  leaf = LEAVES[name]
  _, *inputs = leaf.file_axes.split()  # a file has a matrix as [outputs, inputs]
  return tuple(leaf.axes.index(axis) - len(leaf.axes) for axis in "".join(inputs))


def is_quantised(layout: Layout, name: str) -> bool:
  """Does the layout keep leaf `name` as int8?"""
  return layout.quantization == "int8" and bool(summed(name))


def parameters(arch: Architecture) -> int:
  """Number of parameters; a tied head counts once."""
  top, layer = leaves(arch)
  return sum(map(math.prod, top.values())) + arch.layers * sum(map(math.prod, layer.values()))


def leaf_bytes(spec: Spec) -> dict[str, int]:
  """Bytes of each leaf as the layout keeps it, of all layers, over all devices that split it."""
  top, layer = leaves(spec.arch)
  stacked = {name: (spec.arch.layers, *dims) for name, dims in layer.items()}

  def size(name, dims):
    if not is_quantised(spec.layout, name):
      dtype = "float32" if name in NORMS else spec.layout.dtype
      return math.prod(dims) * jnp.dtype(dtype).itemsize
    return math.prod(dims) + 4 * math.prod(dims) // math.prod(dims[axis] for axis in summed(name))

  return {name: size(name, dims) for name, dims in {**top, **stacked}.items()}
