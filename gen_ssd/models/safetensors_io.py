"""Reads and writes safetensors files.

Reading maps some rows of a tensor at a time and writing needs one tensor at a time, so neither needs
memory for a complete model. A file contains the length of the header (8 bytes), a JSON header, and
the bytes of all tensors.
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
BLOCK = 1 << 18  # numbers copied at a time: they fit in a CPU cache while they are transposed


class Entry(typing.NamedTuple):
  """The location of one tensor in a file."""

  file: str
  dtype: str  # the name in the header, for example BF16
  dims: tuple
  start: int  # first byte in the file
  stop: int  # the byte after its last
  whole: bool  # does the file contain all of it?


def headers(path: str | os.PathLike) -> tuple[dict[str, Entry], list[str]]:
  """({name: Entry} of all tensors in directory `path`, errors in its files as a list of strings).

  Raises ValueError when there are no safetensors files.
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
        "it has only .bin weights"
        if pickles
        else "it has no model.safetensors and no model.safetensors.index.json"
      )
      + ". Files that end in .bin are pickles, which can run code when they are read. If you trust "
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
      for name, e in header.items():  # pyright: ignore[reportOptionalMemberAccess]: caught below
        if name != "__metadata__":
          start, stop = (8 + length + x for x in e["data_offsets"])
          found[name] = Entry(full, e["dtype"], tuple(e["shape"]), start, stop, stop <= size)
    except FileNotFoundError:
      broken.append(f"{file}: the index names this file, but it does not exist")
    except (ValueError, KeyError, AttributeError, TypeError):
      broken.append(f"{file}: not a safetensors file, or truncated inside its header")
  return found, broken


def rows(entry: Entry, start: int, stop: int) -> np.ndarray:
  """Rows start to stop of a tensor, as a memory map: the file is read only where it is used."""
  dtype = FLOATS[entry.dtype]
  row = math.prod(entry.dims[1:]) * dtype.itemsize
  return np.memmap(
    entry.file, dtype, "r", entry.start + start * row, (stop - start, *entry.dims[1:])
  )


def middle(entry: Entry, most: int) -> bytes:
  """Up to `most` bytes from the middle of a tensor."""
  size = min(most, entry.stop - entry.start)
  with open(entry.file, "rb") as f:
    f.seek((entry.start + entry.stop - size) // 2)
    return f.read(size)


def write(
  file: str | os.PathLike,
  dtype: typing.Any,
  dims: dict[str, tuple[int, ...]],
  arrays: typing.Iterable[np.ndarray],
) -> None:
  """Writes a safetensors file of tensors of one dtype.

  `dims` is {name: dims}, and `arrays` yields the tensors in the same order, in any memory layout.
  Raises ValueError when an array has another shape or dtype.
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
          f"{name} is {array.dtype}{list(array.shape)}, it must be {dtype}{list(size)}"
        )
      step = max(1, BLOCK // math.prod(size[1:]))
      for i in range(0, size[0], step):
        f.write(np.ascontiguousarray(array[i : i + step]).view(np.uint8))
