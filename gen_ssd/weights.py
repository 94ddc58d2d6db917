"""Hugging Face directories <-> Transformer: one table of names and layouts, for both directions.

    python -m gen_ssd.weights --check DIR
"""
import contextlib
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
from safetensors import safe_open
from safetensors.numpy import save_file

from gen_ssd import mesh as meshes
from gen_ssd import model as models

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
}
AXES = {name: axes for name, (axes, _) in {**models.TOP_LEAVES, **models.LAYER_LEAVES}.items()}
NORMS = ("ln1", "ln2", "norm", "qn", "kn")  # kept in float32
MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
ROPE = {  # type -> the parameters that matter to it
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings", "attention_factor", "beta_fast",
             "beta_slow", "mscale", "mscale_all_dim", "truncate"),
}
COMPANIONS = ("generation_config.json", "tokenizer*", "special_tokens_map.json", "vocab.*",
              "added_tokens.json", "merges.txt", "chat_template*", "LICENSE*", "NOTICE*")
FLOATS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}


# ---------------------------------------------------------------- config.json -> Shape

def _config(path):
  file = os.path.join(path, "config.json")
  if not os.path.isfile(file):
    raise ValueError(f"{path}: no config.json there. A local Hugging Face directory is needed; "
                     "`hf download NAME --local-dir DIR` makes one")
  with open(file, encoding="utf-8") as f:
    return json.load(f)


def read_shape(path, *, dtype="float32", rows="data", tensor="model", unroll=False):
  """Shape of the model in Hugging Face directory `path`, from its config.json.

  Raises ValueError for what would silently compute something else: another architecture or rope
  type, sliding windows in use, biases beyond Qwen2's, another activation, quantised weights.
  """
  from transformers import AutoConfig  # seconds to import, and most of this module does without

  def refuse(what, instead):
    raise ValueError(f"{path}: {what} is not supported, only {instead}")

  kind = _config(path).get("model_type")
  if kind not in MODEL_TYPES:  # before transformers, which does not know every type either
    refuse(f"model_type {kind!r}", ", ".join(MODEL_TYPES))
  config = AutoConfig.from_pretrained(path, local_files_only=True)
  has = lambda name: getattr(config, name, None)
  layers = set(has("layer_types") or ()) - {"full_attention"}
  window = has("use_sliding_window") or (kind == "mistral" and has("sliding_window"))
  for wrong, what, instead in (
      (has("hidden_act") not in ("silu", "swish"), f"hidden_act {has('hidden_act')!r}", "silu"),
      (has("quantization_config"), "a quantised checkpoint", "float32, bfloat16 or float16"),
      (window, "a sliding window in use", "full attention in every layer"),
      (layers, f"layer_types {sorted(layers)}", "full_attention in every layer"),
      (has("attention_bias"), "attention_bias (it biases o_proj too)", "qwen2's on q, k and v"),
      (has("mlp_bias"), "mlp_bias", "mlp without biases")):
    if wrong:
      refuse(what, instead)
  heads = config.num_attention_heads
  kv_heads = has("num_key_value_heads") or heads
  if heads % kv_heads:
    refuse(f"{heads} heads over {kv_heads} key-value heads", "a multiple")
  theta, rope = _rope(config, refuse)
  return models.Shape(
      vocab=config.vocab_size, width=config.hidden_size, layers=config.num_hidden_layers,
      kv_heads=kv_heads, groups=heads // kv_heads,
      head=has("head_dim") or config.hidden_size // heads, hidden=config.intermediate_size,
      theta=theta, rope=rope, eps=float(config.rms_norm_eps),
      tied=bool(has("tie_word_embeddings")), bias=kind == "qwen2", qk_norm=kind == "qwen3",
      dtype=jnp.dtype(dtype).name, rows=rows, tensor=tensor, unroll=unroll)


def _rope(config, refuse):
  p = dict(config.rope_parameters or {})
  if any(isinstance(x, dict) for x in p.values()):
    refuse("rope parameters that differ by layer type", "one set for every layer")
  kind = p.get("rope_type") or p.get("type") or "default"
  if kind not in ROPE:
    refuse(f"rope type {kind!r}", ", ".join(ROPE))
  if p.get("partial_rotary_factor") not in (None, 1.0):
    refuse(f"partial_rotary_factor {p['partial_rotary_factor']}", "rotation of the whole head")
  if kind == "yarn" and p.get("factor") is None:
    p["factor"] = config.max_position_embeddings / p["original_max_position_embeddings"]
  kept = sorted((name, p[name]) for name in ROPE[kind] if p.get(name) is not None)
  return float(p.get("rope_theta") or config.default_theta), (kind, *kept)


# ---------------------------------------------------------------- reading

def _tensors(shape):
  """[(name in the file, leaf, layer or None, dims in the file)], in Hugging Face's order."""
  top, layer = models.leaves(shape)

  def one(leaf, l=None):
    name, groups = TABLE[leaf]
    size = dict(zip(AXES[leaf], {**top, **layer}[leaf]))
    return (name.format(l), leaf, l,
            tuple(math.prod(size[a] for a in group) for group in groups.split()))

  return ([one("embed")] + [one(leaf, l) for l in range(shape.layers) for leaf in layer]
          + [one(leaf) for leaf in top if leaf != "embed"])


def _headers(path):
  """{name: (file, dtype, dims, whole)} of the safetensors in `path`, and a list of broken files."""
  index = os.path.join(path, "model.safetensors.index.json")
  if os.path.isfile(index):
    with open(index, encoding="utf-8") as f:
      files = sorted(set(json.load(f)["weight_map"].values()))
  elif os.path.isfile(os.path.join(path, "model.safetensors")):
    files = ["model.safetensors"]
  else:
    pickles = os.path.join(glob.escape(path), "pytorch_model*.bin*")
    raise ValueError(
        f"{path}: only .bin weights. Those are pickles, which can run code when read; convert once "
        "where you trust them: transformers' AutoModelForCausalLM.from_pretrained(DIR)"
        ".save_pretrained(NEW) writes safetensors" if glob.glob(pickles) else
        f"{path}: no model.safetensors or model.safetensors.index.json there")
  found, broken = {}, []
  for file in files:
    full = os.path.join(path, file)
    try:
      with open(full, "rb") as f:
        length = int.from_bytes(f.read(8), "little")
        header = json.loads(f.read(length)) if length < 100 << 20 else None
        entries = {name: (full, e["dtype"], tuple(e["shape"]),
                          8 + length + e["data_offsets"][1] <= os.path.getsize(full))
                   for name, e in header.items() if name != "__metadata__"}
    except FileNotFoundError:
      broken.append(f"{file}: the index names it, it is not there")
    except (ValueError, KeyError, AttributeError, TypeError):
      broken.append(f"{file}: not a safetensors file, or truncated inside its header")
    else:
      found.update(entries)
  return found, broken


def check_files(path, shape):
  """{name: file} after comparing headers with `shape`; one ValueError lists all that is wrong."""
  found, problems = _headers(path)
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
    file, dtype, have, whole = found[name]
    if have != dims:
      problems.append(f"shape: {name} has {list(have)}, wanted {list(dims)}")
    if dtype not in FLOATS:
      problems.append(f"dtype: {name} is {dtype}, wanted one of {', '.join(FLOATS)}")
    if not whole:
      problems.append(f"truncated: {name} {list(have)} reaches past the end of "
                      f"{os.path.basename(file)}")
  problems += [f"unexpected: {name} {list(found[name][2])}"
               for name in sorted(found.keys() - want.keys() - spare)]
  if problems:
    problems[20:] = [f"... and {len(problems) - 20} more"] if len(problems) > 20 else []
    raise ValueError("\n  ".join([f"{path}: the weights are not those asked for", *problems]))
  return {name: found[name][0] for name in want if name in found}


def load(path, shape, fsdp=None):
  """Transformer from the safetensors in `path`, each shard of each leaf read from its byte range.

  Norms are float32, all else `shape.dtype`; leaves lie on the current mesh as `model.spec` says.
  The host holds about one stacked leaf at a time. Raises ValueError, before reading any weight,
  with the name, shape found and shape wanted of every tensor that is missing, unexpected,
  truncated or mis-shaped.
  """
  where = check_files(path, shape)
  mesh = jax.sharding.get_mesh()
  with contextlib.ExitStack() as stack:
    handle = functools.cache(lambda file: stack.enter_context(safe_open(file, "numpy")))
    view = lambda name: handle(where[name]).get_slice(name)
    if shape.tied and "lm_head.weight" in where:
      head, embed = view("lm_head.weight"), view("model.embed_tokens.weight")
      cuts = (slice(i, min(i + 4096, shape.vocab)) for i in range(0, shape.vocab, 4096))
      if any((head[cut] != embed[cut]).any() for cut in cuts):
        raise ValueError(f"{path}: config.json ties the embeddings, but lm_head.weight is not "
                         "model.embed_tokens.weight: set tie_word_embeddings to false")

    def make(leaf, dims):
      name, stacked = TABLE[leaf][0], leaf in models.LAYER_LEAVES
      dtype = np.float32 if leaf in NORMS else jnp.dtype(shape.dtype)
      parts = {}  # replicas share one copy on the host

      def part(index):
        bounds = tuple(s.indices(n)[:2] for s, n in zip(index, dims))
        if bounds not in parts:
          out = parts[bounds] = np.empty([b - a for a, b in bounds], dtype)
          if stacked:
            for i, l in enumerate(range(*bounds[0])):
              out[i] = _cut(view(name.format(l)), leaf, bounds[1:], dims[1:])
          else:
            out[...] = _cut(view(name), leaf, bounds, dims)
        return parts[bounds]

      sharding = NamedSharding(mesh, models.spec(shape, leaf, fsdp))
      try:
        sharding.shard_shape(dims)
      except ValueError as error:
        raise ValueError(f"{path}: leaf {leaf} {dims} cannot be split as {sharding.spec} over a "
                         f"mesh of {dict(mesh.shape)}: choose mesh.model (or the FSDP axes) to "
                         f"divide its {shape.kv_heads} key-value heads and other sizes") from error
      return jax.block_until_ready(jax.make_array_from_callback(dims, sharding, part))

    return models.Transformer(shape, make)


def _cut(view, leaf, bounds, dims):
  """Our part (start, stop an axis) of one tensor in a file, in our axes."""
  size, want = dict(zip(AXES[leaf], dims)), dict(zip(AXES[leaf], bounds))
  cuts = []
  for group in TABLE[leaf][1].split():
    inner = math.prod(size[a] for a in group[1:])
    cuts.append(slice(want[group[0]][0] * inner, want[group[0]][1] * inner))
  order = TABLE[leaf][1].replace(" ", "")
  x = view[tuple(cuts)].reshape([want[a][1] - want[a][0] for a in order])
  return x.transpose([order.index(a) for a in AXES[leaf]])


# ---------------------------------------------------------------- writing

def save(path, model, source, dtype=None, shard_bytes=5 * 10**9):
  """Writes `model` as a Hugging Face directory that transformers and vLLM load.

  config.json, generation_config and tokenizer come from directory `source`. Weights are written as
  `dtype` (default: the Shape's), in several files when more than `shard_bytes`. The directory
  appears whole or not at all; an earlier export there is replaced. Every process must call this;
  process 0 writes. Raises ValueError when `source` describes another model or `path` holds
  something else.
  """
  shape = model.shape
  dtype = jnp.dtype(dtype or shape.dtype)
  path = os.path.normpath(path)
  here, there = dataclasses.asdict(shape), dataclasses.asdict(read_shape(source))
  differ = [f"{name}: {there[name]!r} there, {here[name]!r} here" for name in here
            if name not in ("dtype", "rows", "tensor", "unroll") and here[name] != there[name]]
  if differ:
    raise ValueError(f"{source}: its config.json describes another model. " + "; ".join(differ))
  if os.path.exists(path) and (os.path.samefile(path, source)
                               or not os.path.isfile(os.path.join(path, "config.json"))):
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
  names = {}
  for i, tensors in enumerate(files):
    file = "model.safetensors" if len(files) == 1 else (
        f"model-{i + 1:05d}-of-{len(files):05d}.safetensors")
    arrays = {name: _gather(model, leaf, l, dims, dtype) for name, leaf, l, dims in tensors}
    names.update(dict.fromkeys(arrays, file))
    if first:
      save_file(arrays, os.path.join(partial, file), metadata={"format": "pt"})
      # save_file makes files that only their owner can read
      shutil.copymode(os.path.join(partial, "config.json"), os.path.join(partial, file))
  if first:
    if len(files) > 1:
      total = sum(math.prod(t[3]) for t in _tensors(shape)) * dtype.itemsize
      _write_json(os.path.join(partial, "model.safetensors.index.json"),
                  {"metadata": {"total_size": total}, "weight_map": names})
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


def _gather(model, leaf, l, dims, dtype):
  """One tensor as the file has it, on the host."""
  owner = model if l is None else model.blocks
  x = np.asarray(_whole(getattr(owner, leaf)[...], None if l is None else jnp.int32(l), dtype))
  order = TABLE[leaf][1].replace(" ", "")
  x = x.transpose([AXES[leaf].index(a) for a in order]).reshape(dims)
  return np.ascontiguousarray(x)  # save_file writes memory as it lies, whatever the strides


def _copy_companions(source, folder, dtype):
  for pattern in COMPANIONS:
    for file in glob.glob(os.path.join(glob.escape(source), pattern)):
      if os.path.isfile(file):
        shutil.copyfile(file, os.path.join(folder, os.path.basename(file)))
  config, target = _config(source), os.path.join(folder, "config.json")
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
  from gen_ssd import attention
  tokens = np.asarray(ids, np.int32)[None]
  segments, t = jnp.ones_like(tokens), tokens.shape[1]

  @jax.jit
  def ours(model):
    x = models.forward_packed(
        model, tokens, jnp.arange(t)[None],
        lambda q, k, v: attention.attend_packed(q, k, v, segments, block=t))
    return models.logits(model, x)[0, 0]

  mine = np.asarray(ours(load(path, shape)))
  theirs = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
  with torch.no_grad():
    return float(np.abs(mine - theirs(torch.tensor(tokens).long()).logits[0].numpy()).max())


def check(path):
  """Prints what is in a directory, and how far our logits are from transformers' on a prompt."""
  meshes.start(devices=jax.local_devices()[:1])
  shape = read_shape(path, rows=None)
  check_files(path, shape)
  dtypes = sorted({FLOATS[e[1]] for e in _headers(path)[0].values()})
  print(f"architecture  {_config(path)['model_type']}: {shape}")
  print(f"parameters    {models.parameters(shape):,}")
  print(f"dtype         {', '.join(dtypes)}")
  file, ids = os.path.join(path, "tokenizer.json"), np.arange(16) % shape.vocab
  if os.path.isfile(file):
    from gen_ssd import tokens
    tokenizer = tokens.load_tokenizer(path)
    ids = tokenizer.encode("Tom has 57 apples. He buys 8 more. How many are there now?")
    with open(file, "rb") as f:
      digest = hashlib.sha256(f.read()).hexdigest()
    print(f"tokenizer     {digest[:16]}, {len(tokenizer):,} ids")
  else:
    print("tokenizer     none (no tokenizer.json)")
  far = _difference(path, shape, ids)
  print("logits        " + ("torch is not installed: not compared" if far is None else
                            f"at most {far:.2e} from transformers on {len(ids)} tokens (float32)"))


if __name__ == "__main__":
  import argparse
  parser = argparse.ArgumentParser(prog="python -m gen_ssd.weights")
  parser.add_argument("--check", metavar="DIR", required=True, help="a Hugging Face directory")
  check(parser.parse_args().check)
