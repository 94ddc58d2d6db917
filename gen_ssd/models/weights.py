"""Model directories -> Transformer, by the leaf table of architecture.py."""

import functools
import math

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import NamedSharding
import numpy as np

from gen_ssd import mesh as mesh_lib
from gen_ssd.errors import UserError
from gen_ssd.errors import clip
from gen_ssd.models import architecture
from gen_ssd.models import decoder
from gen_ssd.models import hf
from gen_ssd.models import quantization
from gen_ssd.models import safetensors_io
from gen_ssd.models import stored
from gen_ssd.models.architecture import Architecture
from gen_ssd.models.architecture import Layout

PIECE = 1 << 26  # bytes that may be staged on the host, however small the tensors are


def file_tensors(arch: Architecture) -> list[tuple]:
  """[(name in the file, leaf, layer or None, dims in the file)], in Hugging Face's order."""
  top, layer = architecture.leaves(arch)

  def one(leaf, l=None):
    entry = architecture.LEAVES[leaf]
    size = dict(zip(entry.axes, {**top, **layer}[leaf]))
    dims = tuple(math.prod(size[a] for a in group) for group in entry.file_axes.split())
    return architecture.file_name(arch, leaf).format(l), leaf, l, dims

  return (
    [one("embed")]
    + [one(leaf, l) for l in range(arch.layers) for leaf in layer]
    + [one(leaf) for leaf in top if leaf != "embed"]
  )


def check_files(path: hf.PathLike, arch: Architecture) -> dict[str, stored.Entry]:
  """{name: Entry} after comparing headers with `arch`; one UserError lists all that is wrong."""
  found, problems = stored.headers(path), []
  want = {name: dims for name, _, _, dims in file_tensors(arch)}
  spare = {n for n in found if n.endswith(".rotary_emb.inv_freq")}  # old Llama files; computed here
  if arch.tied:
    want.setdefault("lm_head.weight", (arch.vocab, arch.width))
    spare.add("lm_head.weight")
  for name, dims in want.items():
    if name not in found:
      if name not in spare:
        problems.append(f"missing: {name}, wanted {list(dims)}")
      continue
    e = found[name]
    if e.dims != dims:
      problems.append(f"shape: {name} has {list(e.dims)}, wanted {list(dims)}")
    if isinstance(e, safetensors_io.Entry) and e.dtype not in safetensors_io.FLOATS:
      problems.append(
        f"dtype: {name} is {e.dtype}, wanted one of {', '.join(safetensors_io.FLOATS)}"
      )
  problems += [
    f"unexpected: {clip(name)} {list(found[name].dims)}"
    for name in sorted(found.keys() - want.keys() - spare)
  ]
  if problems:
    problems = safetensors_io.first(problems)
    raise UserError("\n  ".join([f"{path}: the weights are not those asked for", *problems]))
  return {name: found[name] for name in want if name in found}


def load(
  path: hf.PathLike, layout: Layout = Layout(), *, arch: Architecture | None = None
) -> decoder.Transformer:
  """Transformer from the weights in `path`, each shard of each leaf read from its byte range.

  Its Architecture is `arch`, or what config.json says. Norms are float32, all else `layout.dtype`;
  leaves lie on the current mesh as architecture.partition_spec says. Beside the arrays the host
  holds about one tensor at a time: layers go to the devices a few tensors at a time, where they
  join their stacked leaf. Matrices that become int8 are read as float32, as many at a time.

  Raises UserError, before any weight is read, with the name, shape found and shape wanted of every
  tensor that is missing, unexpected or mis-shaped, and while reading for one that is not finite.
  """
  arch = arch or hf.read_architecture(path)
  entries = check_files(path, arch)
  if arch.tied and "lm_head.weight" in entries:
    _check_tied(path, entries, arch.vocab)
  size = 4 if layout.quantization == "int8" else jnp.dtype(layout.dtype).itemsize
  most = max(PIECE, max(math.prod(dims) for *_, dims in file_tensors(arch)) * size)

  def make(leaf, dims):
    name, dtype = architecture.file_name(arch, leaf), _read_as(layout, leaf)
    sharding = _sharding(path, arch, leaf, dims, architecture.partition_spec(layout, leaf))

    def read(dims, first):
      x = _read_leaf(entries, name, leaf, dtype, dims, sharding, first)
      return quantization.stored(layout, leaf, x)

    if leaf not in architecture.LAYER_LEAVES or math.prod(dims) * size <= most:
      return read(dims, 0)
    some = max(1, most // 4 // (math.prod(dims[1:]) * size))  # both copies stay below a half
    out = jax.tree.map(
      lambda x: jnp.zeros(x.shape, x.dtype, out_sharding=x.sharding),
      mesh_lib.shapes(lambda: _blank(layout, leaf, dims)),
    )
    for l in range(0, dims[0], some):
      piece = read((min(some, dims[0] - l), *dims[1:]), l)
      out = jax.block_until_ready(_put(out, piece, jnp.int32(l)))
    return out

  return decoder.Transformer(arch, layout, make)


def shapes(arch: Architecture, layout: Layout) -> decoder.Transformer:
  """What `load` returns for such a model, as shapes on the current mesh: it reads nothing."""
  make = functools.partial(_blank, layout)
  return mesh_lib.shapes(lambda: decoder.Transformer(arch, layout, make))


def _read_as(layout, leaf):
  """The dtype that a leaf is read in: float32 for norms and for what becomes int8."""
  as_float32 = leaf in architecture.NORMS or architecture.is_quantised(layout, leaf)
  return jnp.dtype("float32" if as_float32 else layout.dtype)


def _blank(layout, leaf, dims):
  """Zeros for a leaf as the layout keeps it."""
  spec = architecture.partition_spec(layout, leaf)
  return quantization.stored(
    layout, leaf, jnp.zeros(dims, _read_as(layout, leaf), out_sharding=spec)
  )


def check_split(path: hf.PathLike, arch: Architecture, layout: Layout) -> None:
  """Raises UserError when the current mesh cannot split a weight of the model as the layout says."""
  top, layer = architecture.leaves(arch)
  stacked = {leaf: (arch.layers, *dims) for leaf, dims in layer.items()}
  for leaf, dims in {**top, **stacked}.items():
    _sharding(path, arch, leaf, dims, architecture.partition_spec(layout, leaf))


def _sharding(path, arch, leaf, dims, spec):
  """NamedSharding of a leaf on the current mesh. UserError when the mesh does not divide it."""
  mesh = jax.sharding.get_mesh()
  sharding = NamedSharding(mesh, spec)
  try:
    sharding.shard_shape(dims)
  except ValueError as error:
    raise UserError(
      f"{path}: leaf {leaf} {dims} cannot be split as {spec} over a mesh of {dict(mesh.shape)}: "
      f"choose a model_parallel that divides its {arch.kv_heads} key-value heads and other sizes"
    ) from error
  return sharding


def _read_leaf(entries, name, leaf, dtype, dims, sharding, first):
  """One leaf, or its layers from `first` on, on the mesh; replicas share one copy on the host."""
  parts = {}

  def part(index):
    bounds = tuple(s.indices(n)[:2] for s, n in zip(index, dims))
    if bounds not in parts:
      out = parts[bounds] = np.empty([b - a for a, b in bounds], dtype)
      if leaf in architecture.LAYER_LEAVES:
        for i, l in enumerate(range(*bounds[0])):
          _fill(out[i], entries[name.format(first + l)], leaf, bounds[1:], dims[1:])
      else:
        _fill(out, entries[name], leaf, bounds, dims)
    return parts[bounds]

  return jax.block_until_ready(jax.make_array_from_callback(dims, sharding, part))


@functools.partial(jax.jit, donate_argnums=0)
def _put(stack, piece, l):
  put = lambda all, some: lax.dynamic_update_slice_in_dim(all, some, l, 0)
  return jax.tree.map(put, stack, piece)


def _fill(out, entry, leaf, bounds, dims):
  """Fills `out` with a part of one tensor of a file; bounds are (start, stop) of each of our axes."""
  axes, groups = architecture.LEAVES[leaf].axes, architecture.LEAVES[leaf].file_axes.split()
  size, want = dict(zip(axes, dims)), dict(zip(axes, bounds))
  rest = lambda group: math.prod(size[a] for a in group[1:])
  cuts = tuple(slice(want[g[0]][0] * rest(g), want[g[0]][1] * rest(g)) for g in groups[1:])
  order, lead, inner = "".join(groups), groups[0][0], rest(groups[0])
  start, stop = want[lead]
  step = max(1, safetensors_io.BLOCK // (inner * math.prod(entry.dims[1:])))
  out = np.moveaxis(out, [axes.index(a) for a in order], range(len(order)))
  for i in range(start, stop, step):
    n = min(step, stop - i)
    x = stored.rows(entry, i * inner, (i + n) * inner, *cuts)
    x = x.astype(out.dtype, copy=False)
    if not safetensors_io.finite(x):
      raise UserError(f"{entry.file}: {entry.name} holds NaN or infinity as {out.dtype}")
    out[i - start : i - start + n] = x.reshape(n, *out.shape[1:])


def _check_tied(path, entries, vocab):
  head, embed = entries["lm_head.weight"], entries["model.embed_tokens.weight"]
  for i in range(0, vocab, 4096):
    j = min(i + 4096, vocab)
    if (stored.rows(head, i, j) != stored.rows(embed, i, j)).any():
      raise UserError(
        f"{path}: config.json ties the embeddings, but lm_head.weight is not "
        "model.embed_tokens.weight: set tie_word_embeddings to false"
      )
