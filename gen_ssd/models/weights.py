"""Hugging Face directories <-> Transformer: one table of names and layouts, for both directions.

python -m gen_ssd.weights --check DIR
"""

import dataclasses
import functools
import glob
import hashlib
import json
import math
import os
import shutil

import jax
from jax import lax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jax.sharding import reshard
import numpy as np

from gen_ssd import mesh as meshes
from gen_ssd.models import decoder
from gen_ssd.models import hf
from gen_ssd.models import safetensors_io

# Leaf -> (name, axes of the tensor in the file). A group such as "ngh" is flattened there; our axes
# are in model.LAYER_LEAVES and TOP_LEAVES. Only the first axis of a group may be split on the mesh.
TABLE = {
  "embed": ("model.embed_tokens.weight", "v d"),
  "norm": ("model.norm.weight", "d"),
  "head": ("lm_head.weight", "v d"),
  "ln1": ("model.layers.{}.input_layernorm.weight", "d"),
  "ln2": ("model.layers.{}.post_attention_layernorm.weight", "d"),
  "q": ("model.layers.{}.self_attn.q_proj.weight", "ngh d"),
  "k": ("model.layers.{}.self_attn.k_proj.weight", "nh d"),
  "v": ("model.layers.{}.self_attn.v_proj.weight", "nh d"),
  "o": ("model.layers.{}.self_attn.o_proj.weight", "d ngh"),
  "gate": ("model.layers.{}.mlp.gate_proj.weight", "f d"),
  "up": ("model.layers.{}.mlp.up_proj.weight", "f d"),
  "down": ("model.layers.{}.mlp.down_proj.weight", "d f"),
  "qb": ("model.layers.{}.self_attn.q_proj.bias", "ngh"),
  "kb": ("model.layers.{}.self_attn.k_proj.bias", "nh"),
  "vb": ("model.layers.{}.self_attn.v_proj.bias", "nh"),
  "qn": ("model.layers.{}.self_attn.q_norm.weight", "h"),
  "kn": ("model.layers.{}.self_attn.k_norm.weight", "h"),
  "ln1b": ("model.layers.{}.post_attention_layernorm.weight", "d"),
  "ln2b": ("model.layers.{}.post_feedforward_layernorm.weight", "d"),
}
SANDWICH = {"ln2": "model.layers.{}.pre_feedforward_layernorm.weight"}  # with norms after, too
AXES = {name: axes for name, (axes, _) in {**decoder.TOP_LEAVES, **decoder.LAYER_LEAVES}.items()}
PIECE = 1 << 26  # bytes that may be staged on the host, however small the tensors are
COMPANIONS = (
  "generation_config.json",
  "tokenizer*",
  "special_tokens_map.json",
  "vocab.*",
  "added_tokens.json",
  "merges.txt",
  "chat_template*",
  "LICENSE*",
  "NOTICE*",
)
read_shape = hf.read_shape


# ---------------------------------------------------------------- reading


def names(shape):
  """{leaf: name in the file}."""
  return {
    **{leaf: name for leaf, (name, _) in TABLE.items()},
    **(SANDWICH if shape.post_norms else {}),
  }


def _tensors(shape):
  """[(name in the file, leaf, layer or None, dims in the file)], in Hugging Face's order."""
  top, layer = decoder.leaves(shape)

  def one(leaf, l=None):
    name, groups = names(shape)[leaf], TABLE[leaf][1]
    size = dict(zip(AXES[leaf], {**top, **layer}[leaf]))
    return (
      name.format(l),
      leaf,
      l,
      tuple(math.prod(size[a] for a in group) for group in groups.split()),
    )

  return (
    [one("embed")]
    + [one(leaf, l) for l in range(shape.layers) for leaf in layer]
    + [one(leaf) for leaf in top if leaf != "embed"]
  )


def check_files(path, shape):
  """{name: Entry} after comparing headers with `shape`; one ValueError lists all that is wrong."""
  found, problems = safetensors_io.headers(path)
  want = {name: dims for name, _, _, dims in _tensors(shape)}
  spare = {n for n in found if n.endswith(".rotary_emb.inv_freq")}  # old Llama files; computed here
  if shape.tied:
    want.setdefault("lm_head.weight", (shape.vocab, shape.width))
    spare.add("lm_head.weight")
  for name, dims in want.items():
    if name not in found:
      if name not in spare:
        problems.append(f"missing: {name}, wanted {list(dims)}")
      continue
    e = found[name]
    if e.dims != dims:
      problems.append(f"shape: {name} has {list(e.dims)}, wanted {list(dims)}")
    if e.dtype not in safetensors_io.FLOATS:
      problems.append(
        f"dtype: {name} is {e.dtype}, wanted one of {', '.join(safetensors_io.FLOATS)}"
      )
    if not e.whole:
      problems.append(
        f"truncated: {name} {list(e.dims)} reaches past the end of {os.path.basename(e.file)}"
      )
  problems += [
    f"unexpected: {name} {list(found[name].dims)}"
    for name in sorted(found.keys() - want.keys() - spare)
  ]
  if problems:
    problems[20:] = [f"... and {len(problems) - 20} more"] if len(problems) > 20 else []
    raise ValueError("\n  ".join([f"{path}: the weights are not those asked for", *problems]))
  return {name: found[name] for name in want if name in found}


def load(path, shape, fsdp=None):
  """Transformer from the safetensors in `path`, each shard of each leaf read from its byte range.

  Norms are float32, all else `shape.dtype`; leaves lie on the current mesh as `model.spec` says.
  Beside the arrays the host holds about one tensor at a time: layers go to the devices a few
  tensors at a time, where they join their stacked leaf. Raises ValueError, before reading any
  weight, with the name, shape found and shape wanted of every tensor that is missing, unexpected,
  truncated or mis-shaped.
  """
  where = check_files(path, shape)
  mesh = jax.sharding.get_mesh()
  if shape.tied and "lm_head.weight" in where:
    _check_tied(path, where, shape.vocab)
  size = jnp.dtype(shape.dtype).itemsize
  most = max(PIECE, max(math.prod(dims) for *_, dims in _tensors(shape)) * size)

  def make(leaf, dims):
    name, stacked = names(shape)[leaf], leaf in decoder.LAYER_LEAVES
    dtype = np.float32 if leaf in decoder.NORMS else jnp.dtype(shape.dtype)
    spec = decoder.spec(shape, leaf, fsdp)
    sharding = NamedSharding(mesh, spec)
    try:
      sharding.shard_shape(dims)
    except ValueError as error:
      raise ValueError(
        f"{path}: leaf {leaf} {dims} cannot be split as {spec} over a mesh of "
        f"{dict(mesh.shape)}: choose mesh.model (or the FSDP axes) to divide its "
        f"{shape.kv_heads} key-value heads and other sizes"
      ) from error

    def read(dims, first):
      parts = {}  # replicas share one copy on the host

      def part(index):
        bounds = tuple(s.indices(n)[:2] for s, n in zip(index, dims))
        if bounds not in parts:
          out = parts[bounds] = np.empty([b - a for a, b in bounds], dtype)
          if stacked:
            for i, l in enumerate(range(*bounds[0])):
              _fill(out[i], where[name.format(first + l)], leaf, bounds[1:], dims[1:])
          else:
            _fill(out, where[name], leaf, bounds, dims)
        return parts[bounds]

      return jax.block_until_ready(jax.make_array_from_callback(dims, sharding, part))

    if not stacked or math.prod(dims) * size <= most:
      return read(dims, 0)
    some = max(1, most // 4 // (math.prod(dims[1:]) * size))  # layers: both copies stay below half
    out = jnp.zeros(dims, dtype, out_sharding=spec)
    for l in range(0, dims[0], some):
      piece = read((min(some, dims[0] - l), *dims[1:]), l)
      out = jax.block_until_ready(_put(out, piece, jnp.int32(l)))
    return out

  return decoder.Transformer(shape, make)


@functools.partial(jax.jit, donate_argnums=0)
def _put(stack, piece, l):
  return lax.dynamic_update_slice_in_dim(stack, piece, l, 0)


def _fill(out, entry, leaf, bounds, dims):
  """Our part (start, stop an axis) of one tensor in a file, in our axes, into `out`."""
  size, want = dict(zip(AXES[leaf], dims)), dict(zip(AXES[leaf], bounds))
  groups = TABLE[leaf][1].split()
  rest = lambda group: math.prod(size[a] for a in group[1:])
  cuts = tuple(slice(want[g[0]][0] * rest(g), want[g[0]][1] * rest(g)) for g in groups[1:])
  order, lead, inner = "".join(groups), groups[0][0], rest(groups[0])
  start, stop = want[lead]
  step = max(1, safetensors_io.BLOCK // (inner * math.prod(entry.dims[1:])))
  out = np.moveaxis(out, [AXES[leaf].index(a) for a in order], range(len(order)))
  for i in range(start, stop, step):
    n = min(step, stop - i)
    x = safetensors_io.rows(entry, i * inner, (i + n) * inner)[(slice(None), *cuts)]
    out[i - start : i - start + n] = x.reshape(n, *out.shape[1:])


def _check_tied(path, where, vocab):
  head, embed = where["lm_head.weight"], where["model.embed_tokens.weight"]
  for i in range(0, vocab, 4096):
    j = min(i + 4096, vocab)
    if (safetensors_io.rows(head, i, j) != safetensors_io.rows(embed, i, j)).any():
      raise ValueError(
        f"{path}: config.json ties the embeddings, but lm_head.weight is not "
        "model.embed_tokens.weight: set tie_word_embeddings to false"
      )


# ---------------------------------------------------------------- writing


def save(path, model, source, dtype=None, shard_bytes=5 * 10**9, chat_template=""):
  """Writes `model` as a Hugging Face directory that transformers and vLLM load.

  config.json, generation_config and tokenizer come from directory `source`, the chat template too
  when none is given. Weights are written as
  `dtype` (default: the Shape's), in several files when more than `shard_bytes`. The directory
  appears whole or not at all; an earlier export there is replaced. Every process must call this;
  process 0 writes. Raises ValueError when `source` describes another model or `path` holds
  something else.
  """
  shape = model.shape
  dtype = jnp.dtype(dtype or shape.dtype)
  path = os.path.normpath(path)
  here, there = dataclasses.asdict(shape), dataclasses.asdict(read_shape(source))
  differ = [
    f"{name}: {there[name]!r} there, {here[name]!r} here"
    for name in here
    if name not in ("dtype", "rows", "tensor", "unroll") and here[name] != there[name]
  ]
  if differ:
    raise ValueError(f"{source}: its config.json describes another model. " + "; ".join(differ))
  if os.path.exists(path) and (
    os.path.samefile(path, source) or not os.path.isfile(os.path.join(path, "config.json"))
  ):
    raise ValueError(f"{path}: is the source, or exists and is not an earlier export; not replaced")

  files, room = [[]], 0
  for tensor in _tensors(shape):
    size = math.prod(tensor[3]) * dtype.itemsize
    if files[-1] and room + size > shard_bytes:
      files.append([])
      room = 0
    files[-1].append(tensor)
    room += size

  first, partial = jax.process_index() == 0, path + ".partial"
  if first:
    shutil.rmtree(partial, ignore_errors=True)
    os.makedirs(partial)
    _copy_companions(source, partial, dtype)
    if chat_template:  # this file goes before what tokenizer_config.json says
      with open(os.path.join(partial, "chat_template.jinja"), "w", encoding="utf-8") as f:
        f.write(chat_template)
  weight_map = {}
  for i, part in enumerate(files):
    file = (
      "model.safetensors"
      if len(files) == 1
      else (f"model-{i + 1:05d}-of-{len(files):05d}.safetensors")
    )
    arrays = (_gather(model, leaf, l, dtype, dims) for _, leaf, l, dims in part)
    weight_map.update((name, file) for name, *_ in part)
    if first:
      safetensors_io.write(
        os.path.join(partial, file), dtype, {name: dims for name, *_, dims in part}, arrays
      )
    else:
      for _ in arrays:  # every process takes part in bringing each tensor together
        pass
  if first:
    if len(files) > 1:
      total = sum(math.prod(t[3]) for t in _tensors(shape)) * dtype.itemsize
      _write_json(
        os.path.join(partial, "model.safetensors.index.json"),
        {"metadata": {"total_size": total}, "weight_map": weight_map},
      )
    shutil.rmtree(path + ".old", ignore_errors=True)
    if os.path.exists(path):
      os.rename(path, path + ".old")
    os.rename(partial, path)
    shutil.rmtree(path + ".old", ignore_errors=True)
  multihost_utils.sync_global_devices(f"gen_ssd.weights.save {path}")


@functools.partial(jax.jit, static_argnames="dtype")
def _whole(x, l, dtype):
  x = x if l is None else lax.dynamic_index_in_dim(x, l, 0, keepdims=False)
  return reshard(x.astype(dtype), P())


def _gather(model, leaf, l, dtype, dims):
  """One tensor on the host, seen as the file has it; nothing is copied into that order."""
  owner = model if l is None else model.blocks
  x = np.asarray(_whole(getattr(owner, leaf)[...], None if l is None else jnp.int32(l), dtype))
  order = TABLE[leaf][1].replace(" ", "")
  return x.transpose([AXES[leaf].index(a) for a in order]).reshape(dims)


def _copy_companions(source, folder, dtype):
  for pattern in COMPANIONS:
    for file in glob.glob(os.path.join(glob.escape(source), pattern)):
      if os.path.isfile(file):
        shutil.copyfile(file, os.path.join(folder, os.path.basename(file)))
  config, target = hf.read_config(source), os.path.join(folder, "config.json")
  key = "torch_dtype" if "torch_dtype" in config else "dtype"
  if config.get(key, dtype.name) == dtype.name:
    shutil.copyfile(os.path.join(source, "config.json"), target)
  else:  # transformers loads in the dtype written here
    _write_json(target, {**config, key: dtype.name})


def _write_json(path, value):
  with open(path, "w", encoding="utf-8") as f:
    json.dump(value, f, indent=2, ensure_ascii=False)
    f.write("\n")


# ---------------------------------------------------------------- python -m gen_ssd.weights


def _difference(path, shape, ids):
  """Largest logit difference against transformers on `ids`, or None without torch."""
  try:
    import torch
    from transformers import AutoModelForCausalLM
  except ImportError:
    return None
  from gen_ssd.models import attention

  tokens = np.asarray(ids, np.int32)[None]
  segments, t = jnp.ones_like(tokens), tokens.shape[1]

  @jax.jit
  def ours(model):
    x = decoder.forward_packed(
      model,
      tokens,
      jnp.arange(t)[None],
      functools.partial(attention.attend_packed, segments=segments, block=t),
    )
    return decoder.logits(model, x)[0, 0]

  mine = np.asarray(ours(load(path, shape)))
  theirs = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
  with torch.no_grad():
    return float(np.abs(mine - theirs(torch.tensor(tokens).long()).logits[0].numpy()).max())


def _free_memory():
  with open("/proc/meminfo", encoding="utf-8") as f:
    return next(int(line.split()[1]) * 1024 for line in f if line.startswith("MemAvailable"))


def check(path):
  """Prints what is in a directory, and how far our logits are from transformers' on a prompt."""
  meshes.start(devices=jax.local_devices()[:1])
  path = hf.locate(path)
  shape = read_shape(path, rows=None)
  check_files(path, shape)
  dtypes = sorted(
    {str(safetensors_io.FLOATS[e.dtype]) for e in safetensors_io.headers(path)[0].values()}
  )
  print(
    f"architecture  {hf.read_config(path)['model_type']}: "
    + ", ".join(
      f"{f.name} {getattr(shape, f.name)}"
      for f in dataclasses.fields(shape)
      if getattr(shape, f.name) != f.default and f.name != "rows"
    )
  )
  print(f"identity      {hf.identity(path)}")
  print(f"parameters    {decoder.parameters(shape):,}")
  print(f"dtype         {', '.join(dtypes)}")
  file, ids = os.path.join(path, "tokenizer.json"), np.arange(16) % shape.vocab
  if os.path.isfile(file):
    from gen_ssd.models import tokenization

    tokenizer = tokenization.load_tokenizer(path)
    ids = tokenizer.encode("Tom has 57 apples. He buys 8 more. How many are there now?")
    with open(file, "rb") as f:
      digest = hashlib.sha256(f.read()).hexdigest()
    print(f"tokenizer     {digest[:16]}, {len(tokenizer):,} ids")
  else:
    print("tokenizer     none (no tokenizer.json)")
  needed, free = 8 * decoder.parameters(shape), _free_memory()
  if needed > free:
    print(
      f"logits        not compared: both models in float32 need {needed / 1e9:.0f} GB of memory, "
      f"{free / 1e9:.0f} are free"
    )
    return
  far = _difference(path, shape, ids)
  print(
    "logits        "
    + (
      "torch is not installed: not compared"
      if far is None
      else f"at most {far:.2e} from transformers on {len(ids)} tokens (float32)"
    )
  )


if __name__ == "__main__":
  import argparse

  parser = argparse.ArgumentParser(prog="python -m gen_ssd.weights")
  parser.add_argument(
    "--check", metavar="DIR", required=True, help="a Hugging Face directory or hub name"
  )
  try:
    check(parser.parse_args().check)
  except ValueError as error:  # the user's to mend: one message, no traceback
    raise SystemExit(f"gen_ssd.weights: {error}") from None
