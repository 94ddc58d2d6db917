"""Reads and writes safetensors files.

Files are read by the library that defines them, some rows of a tensor at a time, and writing needs
one tensor at a time, so neither needs memory for a complete model. A file contains the length of the
header (8 bytes), a JSON header, and the bytes of all tensors.
"""

import collections
import glob
import json
import math
import os
import typing

import ml_dtypes
import numpy as np
from safetensors import SafetensorError
from safetensors import safe_open

from gen_ssd.errors import UserError
from gen_ssd.errors import clip
from gen_ssd.errors import one_line
from gen_ssd.models import json_files

FLOATS = {
  "F32": np.dtype("float32"),
  "BF16": np.dtype(ml_dtypes.bfloat16),
  "F16": np.dtype("float16"),
  "F64": np.dtype("float64"),
}
BLOCK = 1 << 18  # numbers copied at a time: they fit in a CPU cache while they are transposed
INDEX = "model.safetensors.index.json"


class Entry(typing.NamedTuple):
  """The location of one tensor."""

  file: str
  name: str
  dtype: str  # the name in the header, for example BF16
  dims: tuple


def headers(path: str | os.PathLike) -> dict[str, Entry]:
  """{name: Entry} of all tensors in directory `path`.

  Raises UserError when there are no safetensors files, and lists all that is wrong with them: files
  that the safetensors library refuses, names that occur twice, and an index that says otherwise.
  """
  index = os.path.join(path, INDEX)
  where = {}
  if os.path.isfile(index):
    where = _index(index)
    files = sorted({*where.values()})
  elif os.path.isfile(os.path.join(path, "model.safetensors")):
    files = ["model.safetensors"]
  else:
    pickles = glob.glob(os.path.join(glob.escape(path), "pytorch_model*.bin*"))
    raise UserError(
      f"{path}: "
      + ("it has only .bin weights" if pickles else f"it has no model.safetensors and no {INDEX}")
      + ". Files that end in .bin are pickles, which can run code when they are read. If you trust "
      "them, convert them once: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW) of "
      "transformers writes safetensors"
    )
  found, broken = {}, []
  for file in files:
    try:
      entries = _header(os.path.join(path, file))
    except UserError as error:
      broken.append(f"{file}: {error}")
      continue
    broken += [
      f"{file}: {clip(name)} is in {os.path.basename(found[name].file)}, too"
      for name in sorted(entries.keys() & found.keys())
    ]
    broken += [
      f"{file}: {INDEX} says that {clip(name)} is in it, but it is not"
      for name, said in where.items()
      if said == file and name not in entries
    ]
    found.update(entries)
  if broken:
    raise UserError("\n  ".join([f"{path}: the weights cannot be read", *first(broken)]))
  return found


def first(lines: list[str], most: int = 20) -> list[str]:
  """The first lines of a long list, and how many more there are."""
  return lines if len(lines) <= most else [*lines[:most], f"... and {len(lines) - most} more"]


def _index(file):
  """{tensor: name of its file} from an index file. Names never lead out of its directory."""
  where = json_files.read_object(file).get("weight_map")
  if not isinstance(where, dict) or not where:
    raise UserError(f"{file}: weight_map is {clip(repr(where), 40)}, wanted {{tensor: file name}}")
  for name, value in where.items():
    plain = isinstance(value, str) and value.isprintable() and value == os.path.basename(value)
    if not (plain and value.endswith(".safetensors")):
      raise UserError(
        f"{file}: the file of {clip(name)} is {clip(repr(value))}, wanted the name of a "
        ".safetensors file beside the index"
      )
  return where


def _header(file):
  """{name: Entry} of one file. Raises UserError, which does not name the file."""
  if not os.path.isfile(file):  # also what only looks like a file: opening a pipe would wait
    raise UserError("the index names this file, but it does not exist")
  try:
    with safe_open(file, "numpy") as f:
      parts = {name: f.get_slice(name) for name in f.keys()}
      found = {n: Entry(file, n, p.get_dtype(), tuple(p.get_shape())) for n, p in parts.items()}
    with open(file, "rb") as f:
      text = f.read(int.from_bytes(f.read(8), "little"))
    pairs = json.loads(text, object_pairs_hook=list, parse_int=str)  # of any length
  except SafetensorError as error:
    raise UserError(f"not a whole safetensors file: {one_line(error)}") from None
  except OSError as error:
    raise UserError(f"cannot be read: {error.strerror or error}") from None
  for name, times in collections.Counter(name for name, _ in pairs).items():
    if times > 1:  # the library keeps the last
      raise UserError(f"{clip(name)} is in its header {times} times")
  return found


def rows(entry: Entry, start: int, stop: int, *cuts: slice) -> np.ndarray:
  """Rows start to stop of a tensor, of which `cuts` are the other axes.

  Raises UserError when the file has changed since its header was read.
  """
  try:
    with safe_open(entry.file, "numpy") as f:  # opened each time: what is mapped counts as memory
      return f.get_slice(entry.name)[(slice(start, stop), *cuts)]
  except (SafetensorError, OSError, AttributeError) as error:  # Attribute: an 8-bit float type
    why = one_line(error)
    raise UserError(f"{entry.file}: {entry.name} cannot be read: {why}") from None


def finite(x: np.ndarray) -> bool:
  """Are all numbers of an array finite? Reads bits: several times faster than numpy's isfinite."""
  bits = np.dtype(f"u{x.dtype.itemsize}")
  infinity = np.array(np.inf, x.dtype).view(bits)  # the bits that infinities and NaNs share
  return not ((x.view(bits) & infinity) == infinity).any()


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
