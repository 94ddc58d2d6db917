"""Transformer -> a Hugging Face directory, a tensor at a time."""

import dataclasses
import functools
import glob
import json
import math
import os
import shutil
import tempfile
import typing

import jax
from jax import lax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.sharding import reshard
import numpy as np

from gen_ssd import folders
from gen_ssd.errors import UserError
from gen_ssd.errors import clip
from gen_ssd.models import architecture
from gen_ssd.models import decoder
from gen_ssd.models import hf
from gen_ssd.models import safetensors_io
from gen_ssd.models import stored
from gen_ssd.models import weights

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


def save(
  path: hf.PathLike,
  model: decoder.Transformer,
  source: hf.PathLike,
  dtype: typing.Any = None,
  shard_bytes: int = 5 * 10**9,
  chat_template: str = "",
  card: str = "",
) -> None:
  """Writes `model` as a Hugging Face directory that transformers and vLLM load.

  config.json, generation_config and tokenizer come from directory `source`, and so does the chat
  template when none is given. `card` becomes README.md. Weights are written as `dtype` (default: the
  layout's), in several files when they take more than `shard_bytes`. The directory appears whole or
  not at all; an earlier export there is replaced. In a bucket, config.json appears last: it is the
  sign that the others are there. Every process must call this; process 0 writes.

  Raises UserError when `source` describes another model or `path` holds something else, and
  FloatingPointError when a weight is not finite; what was at `path` is still there then.
  """
  if model.layout.quantization != "off":
    raise ValueError("a quantised model is not exported: its files are at its source")
  path, kind = os.fspath(path), jnp.dtype(dtype or model.layout.dtype)
  first, partial = jax.process_index() == 0, ""
  if not folders.in_bucket(path):
    path = os.path.normpath(path)
    partial = path + ".partial"
  _check_target(path, model.arch, source)
  if first:
    partial = partial or tempfile.mkdtemp(prefix="gen_ssd-export-")
    shutil.rmtree(partial, ignore_errors=True)
    os.makedirs(partial)
    _copy_companions(source, partial, kind)
    # The file of the template goes before what tokenizer_config.json says.
    for name, text in (("chat_template.jinja", chat_template), ("README.md", card)):
      if text:
        with open(os.path.join(partial, name), "w", encoding="utf-8") as f:
          f.write(text)
  read = functools.partial(_gather, model, kind)
  _write_weights(partial, model.arch, read, kind, shard_bytes)
  if first and folders.in_bucket(path):
    folders.send(partial, folders.path(path), last="config.json")
    shutil.rmtree(partial)
  elif first:
    shutil.rmtree(path + ".old", ignore_errors=True)
    if os.path.exists(path):
      os.rename(path, path + ".old")
    os.rename(partial, path)
    shutil.rmtree(path + ".old", ignore_errors=True)
  multihost_utils.sync_global_devices(f"gen_ssd.export.save {path}")


def _check_target(path, arch, source):
  mine, theirs = dataclasses.asdict(arch), dataclasses.asdict(hf.read_architecture(source))
  differ = [f"{n}: {theirs[n]!r} there, {mine[n]!r} here" for n in mine if mine[n] != theirs[n]]
  if differ:
    raise UserError(f"{source}: its config.json describes another model. " + "; ".join(differ))
  if os.path.exists(path) and (
    os.path.samefile(path, source) or not os.path.isfile(os.path.join(path, "config.json"))
  ):
    raise UserError(f"{path}: is the source, or exists and is not an earlier export; not replaced")


def convert(source: hf.PathLike, path: hf.PathLike, shard_bytes: int = 5 * 10**9) -> None:
  """Writes the model in directory `source`, which may be that of a GGUF file, to a new one at `path`.

  It is an ordinary Hugging Face directory with float32 weights in safetensors files. One tensor at a
  time is in memory. The directory appears whole or not at all.

  Raises UserError when there is something at `path`, and when a weight is not finite.
  """
  path, kind = os.path.normpath(path), np.dtype("float32")
  if os.path.lexists(path):
    raise UserError(f"{clip(path)}: exists already; give a directory that is to be made")
  arch = hf.read_architecture(source)
  entries, partial = weights.check_files(source, arch), path + ".partial"

  def read(name, leaf, l, dims):
    x = stored.rows(entries[name], 0, dims[0]).astype(kind, copy=False)
    if not safetensors_io.finite(x):
      raise UserError(f"{entries[name].file}: {entries[name].name} holds NaN or infinity")
    return x

  shutil.rmtree(partial, ignore_errors=True)
  os.makedirs(partial)
  _copy_companions(source, partial, kind)
  if os.path.isfile(card := os.path.join(source, "README.md")):
    shutil.copyfile(card, os.path.join(partial, "README.md"))
  _write_weights(partial, arch, read, kind, shard_bytes)
  os.rename(partial, path)


def _write_weights(folder, arch, read, dtype, shard_bytes):
  """Writes the safetensors files, and their index when there are several.

  `read` gives each tensor as file_tensors describes it.
  """
  tensors = weights.file_tensors(arch)
  files, room = [[]], 0
  for tensor in tensors:
    size = math.prod(tensor[3]) * dtype.itemsize
    if files[-1] and room + size > shard_bytes:
      files.append([])
      room = 0
    files[-1].append(tensor)
    room += size
  several, weight_map = len(files) > 1, {}
  for i, part in enumerate(files):
    number = f"-{i + 1:05d}-of-{len(files):05d}" if several else ""
    file = f"model{number}.safetensors"
    arrays = (read(*tensor) for tensor in part)
    weight_map.update((name, file) for name, *_ in part)
    if jax.process_index() == 0:
      dims = {name: dims for name, *_, dims in part}
      safetensors_io.write(os.path.join(folder, file), dtype, dims, arrays)
    else:
      for _ in arrays:  # every process takes part in bringing each tensor together
        pass
  if several and jax.process_index() == 0:
    total = sum(math.prod(t[3]) for t in tensors) * dtype.itemsize
    _write_json(
      os.path.join(folder, "model.safetensors.index.json"),
      {"metadata": {"total_size": total}, "weight_map": weight_map},
    )


@functools.partial(jax.jit, static_argnames="dtype")
def _replicated(x, l, dtype):
  x = x if l is None else lax.dynamic_index_in_dim(x, l, 0, keepdims=False)
  return reshard(x.astype(dtype), P())


def _gather(model, dtype, name, leaf, l, dims):
  """One tensor on the host, seen as the file has it; nothing is copied into that order."""
  owner = model if l is None else model.blocks
  x = np.asarray(_replicated(getattr(owner, leaf)[...], None if l is None else jnp.int32(l), dtype))
  if not safetensors_io.finite(x):
    raise FloatingPointError(f"{name} holds NaN or infinity as {dtype}: no model is written")
  entry = architecture.LEAVES[leaf]
  order = entry.file_axes.replace(" ", "")
  return x.transpose([entry.axes.index(a) for a in order]).reshape(dims)


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
