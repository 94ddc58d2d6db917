"""Safetensors files: reads headers and rows of tensors, and writes one tensor at a time.

Reading maps a few rows at a time and writing holds one tensor, so neither needs memory for a whole
model. The format is the header's length (8 bytes, little-endian), a JSON header, and the bytes of
the tensors one after another.
"""

import glob
import json
import math
import os
import typing

import ml_dtypes
import numpy as np

FLOATS = {
  "F32": np.dtype("float32"),
  "BF16": np.dtype(ml_dtypes.bfloat16),
  "F16": np.dtype("float16"),
  "F64": np.dtype("float64"),
}
BLOCK = 1 << 18  # numbers copied at a time, so that a transposition fits the cache of a core


class Entry(typing.NamedTuple):
  """Where one tensor is stored."""

  file: str
  dtype: str  # as in the header, for example BF16
  dims: tuple
  start: int  # offset of the first byte in the file
  stop: int  # offset after the last byte
  whole: bool  # whether the file is long enough to contain it


def headers(path):
  """({name: Entry}, list of messages about broken files) of the safetensors in directory `path`.

  Raises ValueError when there are none. The message gives advice when there are pickles.
  """
  index = os.path.join(path, "model.safetensors.index.json")
  if os.path.isfile(index):
    with open(index, encoding="utf-8") as f:
      files = sorted(set(json.load(f)["weight_map"].values()))
  elif os.path.isfile(os.path.join(path, "model.safetensors")):
    files = ["model.safetensors"]
  else:
    pickles = glob.glob(os.path.join(glob.escape(path), "pytorch_model*.bin*"))
    raise ValueError(
      f"{path}: "
      + (
        "only .bin weights"
        if pickles
        else "no model.safetensors and no model.safetensors.index.json"
      )
      + ". Files named .bin are pickles, which can run code when they are loaded. If you trust "
      "them, convert them once: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW) of "
      "transformers writes safetensors"
    )
  found, broken = {}, []
  for file in files:
    full = os.path.join(path, file)
    try:
      with open(full, "rb") as f:
        size, length = os.path.getsize(full), int.from_bytes(f.read(8), "little")
        header = json.loads(f.read(length)) if length < 100 << 20 else None
      for name, e in header.items():
        if name != "__metadata__":
          start, stop = (8 + length + x for x in e["data_offsets"])
          found[name] = Entry(full, e["dtype"], tuple(e["shape"]), start, stop, stop <= size)
    except FileNotFoundError:
      broken.append(f"{file}: named in the index, but missing")
    except (ValueError, KeyError, AttributeError, TypeError):
      broken.append(f"{file}: not a safetensors file, or truncated inside its header")
  return found, broken


def rows(entry, start, stop):
  """Rows start to stop of a tensor as a memory map: bytes are read only when they are used."""
  dtype = FLOATS[entry.dtype]
  row = math.prod(entry.dims[1:]) * dtype.itemsize
  return np.memmap(
    entry.file, dtype, "r", entry.start + start * row, (stop - start, *entry.dims[1:])
  )


def middle(entry, most):
  """At most `most` bytes from the middle of a tensor."""
  size = min(most, entry.stop - entry.start)
  with open(entry.file, "rb") as f:
    f.seek((entry.start + entry.stop - size) // 2)
    return f.read(size)


def write(file, dtype, dims, arrays):
  """Writes a safetensors file with tensors of one dtype.

  `dims` maps names to dimensions, and `arrays` yields the tensors in that order. An array may have
  any memory layout: it is copied and written a few rows at a time. Raises ValueError when an array
  does not have its dimensions or dtype.
  """
  dtype = np.dtype(dtype)
  kind = {d: name for name, d in FLOATS.items()}[dtype]
  header, at = {"__metadata__": {"format": "pt"}}, 0
  for name, size in dims.items():
    stop = at + math.prod(size) * dtype.itemsize
    header[name] = {"dtype": kind, "shape": list(size), "data_offsets": [at, stop]}
    at = stop
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)
  with open(file, "wb") as f:
    f.write(len(text).to_bytes(8, "little") + text)
    for (name, size), array in zip(dims.items(), arrays, strict=True):
      if array.shape != size or array.dtype != dtype:
        raise ValueError(
          f"{name} is {array.dtype}{list(array.shape)}: it must be {dtype}{list(size)}"
        )
      step = max(1, BLOCK // math.prod(size[1:]))
      for i in range(0, size[0], step):
        f.write(np.ascontiguousarray(array[i : i + step]).view(np.uint8))
