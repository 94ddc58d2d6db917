"""Reads GGUF files: their facts, and rows of their tensors under Hugging Face's names.

The layout of the file is that of ggml's docs/gguf.md. Types, block sizes, dequantisation and names of
tensors come from the package `gguf`. Its GGUFReader is not used: it makes several arrays of each
word of a vocabulary, which takes many times the time and memory of what is done here, and it neither
notices that a header is cut off nor bounds what a damaged one makes it allocate.
"""

import functools
import hashlib
import math
import os
import re
import struct
import typing

import gguf
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType
from gguf.constants import GGUFValueType
import numpy as np

from gen_ssd.errors import UserError
from gen_ssd.errors import clip
from gen_ssd.models import architecture
from gen_ssd.models import safetensors_io
from gen_ssd.models.architecture import Architecture

NAME = "model.gguf"  # of the link to the file in a folder made for it
FAMILIES = {  # general.architecture -> model_type of config.json
  "llama": "llama",
  "qwen2": "qwen2",
  "qwen3": "qwen3",
  "gemma3": "gemma3_text",
}
TYPES = "F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K Q4_K Q5_K Q6_K".split()
FREQUENCIES = "rope_freqs.weight"  # of Llama 3.1 and later: by what each frequency is divided
SCALARS = {
  GGUFValueType.UINT8: "B",
  GGUFValueType.INT8: "b",
  GGUFValueType.UINT16: "H",
  GGUFValueType.INT16: "h",
  GGUFValueType.UINT32: "I",
  GGUFValueType.INT32: "i",
  GGUFValueType.UINT64: "Q",
  GGUFValueType.INT64: "q",
  GGUFValueType.FLOAT32: "f",
  GGUFValueType.FLOAT64: "d",
  GGUFValueType.BOOL: "?",
}
# The most that a header may hold: Gemma 3 has 262,144 tokens, and no text is longer than a template.
MOST_ENTRIES, MOST_ITEMS, MOST_BYTES = 1 << 16, 1 << 22, 1 << 26


class Tensor(typing.NamedTuple):
  """The location of one tensor in a file."""

  type: str
  dims: tuple[int, ...]
  start: int  # in bytes


class Header(typing.NamedTuple):
  """What a file says before its tensors."""

  file: str
  facts: dict[str, typing.Any]
  tensors: dict[str, Tensor]
  digest: str


class Entry(typing.NamedTuple):
  """The location of one tensor, and how it becomes that of a Hugging Face checkpoint."""

  file: str
  name: str
  dtype: str  # a GGML type
  dims: tuple[int, ...]
  start: int
  heads: int = 0  # whose rows are interleaved: each pair that RoPE rotates lies side by side
  offset: float = 0.0  # that was added


# ---------------------------------------------------------------- header


def read(file: str) -> Header:
  """The header of a GGUF file.

  Raises UserError, which names the file, when it cannot be read, is not GGUF, is cut off or damaged,
  or has tensors of types that are not supported.
  """
  shown = clip(file)
  if not os.path.isfile(file):  # also what only looks like a file: opening a pipe would wait
    raise UserError(f"{shown}: there is no such file")
  try:
    found = os.stat(file)
    return _read(file, found.st_size, found.st_mtime_ns)
  except OSError as error:
    raise UserError(f"{shown}: cannot be read: {error.strerror or error}") from None
  except _Refused as error:
    raise UserError(f"{shown}: {error}") from None


class _Refused(Exception):
  """What is wrong with a file; the message does not name it."""


class _Stream:
  """Reads the parts of a header from an open file."""

  def __init__(self, f, size):
    self.f, self.size = f, size

  def take(self, n, what):
    """The next n bytes."""
    if n > MOST_BYTES:
      at = f"at byte {self.f.tell():,}"
      raise _Refused(f"it is damaged: {what}, {at}, takes {n:,} bytes, wanted up to {MOST_BYTES:,}")
    fits = n < 1 << 12 or n <= self.size - self.f.tell()  # before room for it is made
    data = self.f.read(n) if fits else b""
    if len(data) < n:
      raise _Refused(f"it is cut off: it ends at byte {self.size:,}, within {what}")
    return data

  def numbers(self, kinds, what):
    return struct.unpack("<" + kinds, self.take(struct.calcsize("<" + kinds), what))

  def count(self, kind, most, what):
    (n,) = self.numbers(kind, what)
    if n > most:
      raise _Refused(f"it is damaged: {what} is {n:,}, wanted at most {most:,}")
    return n

  def text(self, what):
    data = self.take(int.from_bytes(self.take(8, what), "little"), what)
    try:
      return data.decode()
    except UnicodeDecodeError:
      raise _Refused(f"it is damaged: {what} is not UTF-8: {clip(repr(data[:40]), 40)}") from None

  def value(self, kind, what):
    """A value: a number, a bool, a text, or a list of one of these."""
    if kind == GGUFValueType.STRING:
      return self.text(what)
    if kind in SCALARS:
      return self.numbers(SCALARS[kind], what)[0]
    if kind != GGUFValueType.ARRAY:
      raise _Refused(f"it is damaged: {what} has type {kind}, which GGUF does not have")
    (kind,) = self.numbers("I", what)
    n = self.count("Q", MOST_ITEMS, f"the length of {what}")
    if kind == GGUFValueType.STRING:
      return [self.text(what) for _ in range(n)]
    if kind in SCALARS:
      return list(self.numbers(f"{n}{SCALARS[kind]}", what))
    raise _Refused(f"{what} is a list of type {kind}, which is neither text nor a number")


@functools.lru_cache(maxsize=4)  # a vocabulary takes a second; files may change meanwhile
def _read(file, size, changed):
  del changed
  with open(file, "rb") as f:
    return _header(f, file, size)


def _header(f, file, size):
  stream = _Stream(f, size)
  if size < 4 or stream.take(4, "the first word") != b"GGUF":
    raise _Refused("it is not a GGUF file: it does not start with the word GGUF")
  (version,) = stream.numbers("I", "the version")
  if version not in (2, 3):
    raise _Refused(f"its GGUF version is {version}, wanted 2 or 3, little-endian")
  count = stream.count("Q", MOST_ENTRIES, "the number of tensors")
  facts, tensors = {}, {}
  for _ in range(stream.count("Q", MOST_ENTRIES, "the number of facts")):
    name = stream.text("the name of a fact")
    if name in facts:
      raise _Refused(f"it is damaged: {clip(name)} is in it twice")
    facts[name] = stream.value(stream.numbers("I", clip(name))[0], clip(name))
  for _ in range(count):
    name = stream.text("the name of a tensor")
    if name in tensors:
      raise _Refused(f"it is damaged: tensor {clip(name)} is in it twice")
    rank = stream.count("I", 4, f"the rank of {clip(name)}")
    dims = stream.numbers(f"{rank}Q", clip(name))
    tensors[name] = dims[::-1], *stream.numbers("IQ", clip(name))
  align = facts.get("general.alignment", 32)
  if type(align) is not int or not 1 <= align <= 1 << 20:
    raise _Refused(f"general.alignment is {clip(repr(align))}, wanted 1 to {1 << 20:,}")
  end, digest = f.tell(), hashlib.sha256()
  f.seek(0)
  for at in range(0, end, MOST_BYTES):
    digest.update(f.read(min(MOST_BYTES, end - at)))
  start = -(-end // align) * align
  return Header(file, facts, _located(tensors, start, size), digest.hexdigest())


def _located(tensors, start, size):
  """{name: Tensor} of {name: (dims, type, offset)}. Raises _Refused for what cannot be read."""
  names = {int(x): x.name for x in GGMLQuantizationType}
  kinds = {name: names.get(kind, f"number {kind}") for name, (_, kind, _) in tensors.items()}
  if unknown := {kind: name for name, kind in kinds.items() if kind not in TYPES}:
    said = ", ".join(f"{kind} ({clip(name)})" for kind, name in sorted(unknown.items()))
    raise _Refused(f"tensors of type {said} are not supported, only {', '.join(TYPES)}")
  found = {}
  for name, (dims, _, offset) in tensors.items():
    per_block, block = GGML_QUANT_SIZES[GGMLQuantizationType[kinds[name]]]
    if not dims or 0 in dims or math.prod(dims[1:]) % per_block:
      raise _Refused(
        f"it is damaged: tensor {clip(name)} is {list(dims)} of type {kinds[name]}, whose rows are "
        f"blocks of {per_block}"
      )
    end = start + offset + math.prod(dims) // per_block * block
    if end > size:
      raise _Refused(
        f"it is cut off: tensor {clip(name)} ends at byte {end:,}, the file at {size:,}"
      )
    found[name] = Tensor(kinds[name], dims, start + offset)
  return found


# ---------------------------------------------------------------- tensors


def is_folder(path: str | os.PathLike) -> bool:
  """Was this folder made for a GGUF file? See gguf_folder.py."""
  return os.path.lexists(os.path.join(path, NAME))


def family(header: Header) -> str:
  """Its model_type in config.json. Raises UserError for one that is not supported."""
  arch = header.facts.get("general.architecture")
  if not isinstance(arch, str) or arch not in FAMILIES:
    raise UserError(
      f"{clip(header.file)}: general.architecture {clip(repr(arch), 40)} is not supported, only "
      f"{', '.join(FAMILIES)}"
    )
  return FAMILIES[arch]


def headers(folder: str | os.PathLike) -> dict[str, Entry]:
  """{Hugging Face's name: Entry} of all tensors of the file in a folder that was made for it.

  Tensors without such a name keep their own. Raises UserError when the file has changed meanwhile.
  """
  return entries(header(folder))


def header(folder: str | os.PathLike) -> Header:
  """The header of the file that a folder was made for."""
  return read(os.path.realpath(os.path.join(folder, NAME)))


def entries(header: Header) -> dict[str, Entry]:
  """{Hugging Face's name: Entry} of all tensors of a model; those without such a name keep theirs."""
  kind, heads = family(header), {}
  if kind == "llama":  # llama.cpp rotates neighbours, Hugging Face the two halves of a head
    heads = {"attn_q.weight": head_counts(header)[0], "attn_k.weight": head_counts(header)[1]}
  found, added = {}, architecture.FAMILIES[kind].get("norm_offset", 0.0)
  for name, tensor in header.tensors.items():
    if name == FREQUENCIES:  # a fact, in truth: see gguf_folder.py
      continue
    layer, part = name.split(".", 2)[1:] if re.match(r"blk\.\d+\.", name) else ("", name)
    theirs = _names(kind).get(f"blk.0.{part}" if layer else part, name)
    n = heads.get(part, 0)
    if n and tensor.dims[0] % (2 * n):
      raise UserError(
        f"{clip(header.file)}: {n} heads cannot share the {tensor.dims[0]} rows of {name}"
      )
    found[theirs.replace(".0.", f".{layer}.", 1) if layer else theirs] = Entry(
      header.file,
      name,
      *tensor,
      heads=n,
      offset=added * part.endswith("norm.weight"),
    )
  return found


def head_counts(header: Header) -> tuple[int, int]:
  """Numbers of query heads and of key-value heads. Raises UserError for anything but numbers."""
  heads = fact(header, "attention.head_count", int)
  return heads, fact(header, "attention.head_count_kv", int, heads)


def fact(header: Header, name: str, kind: type, default: typing.Any = None) -> typing.Any:
  """The fact `name` of the header's architecture: a number above 0, or a bool or text.

  A list of one value for each layer is that value. Raises UserError when the fact is lacking and
  there is no default, and when it is of another kind.
  """
  name = f"{header.facts['general.architecture']}.{name}"
  if name not in header.facts and default is not None:
    return default
  value = header.facts.get(name)
  if isinstance(value, list) and value and value.count(value[0]) == len(value):
    value = value[0]
  number = isinstance(value, int | float)
  if type(value) is not kind or (number and not 0 < value < math.inf):
    said = "lacks" if value is None else f"says {clip(repr(value), 40)} for"
    raise UserError(f"{clip(header.file)}: it {said} {name}: wanted one {kind.__name__}, above 0")
  return value


@functools.cache
def _names(kind):
  """{name in GGUF: name in Hugging Face's files} of the tensors of a model of one layer."""
  flags = Architecture(*[1] * 7, **architecture.FAMILIES[kind])
  table = gguf.get_tensor_name_map(
    next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if FAMILIES.get(name) == kind), 1
  )
  names = {}
  for leaf in [leaf for part in architecture.leaves(flags) for leaf in part]:
    name = architecture.file_name(flags, leaf).format(0)
    stem, _, suffix = name.rpartition(".")
    names[f"{table.get_name(stem)}.{suffix}"] = name
  return names


def rows(entry: Entry, start: int, stop: int, *cuts: slice) -> np.ndarray:
  """Rows start to stop of a tensor, and columns as a cut says where one is given: float32.

  Only blocks that hold some of them become numbers. Raises UserError when the file has changed.
  """
  kind = GGMLQuantizationType[entry.dtype]
  per_block, block = GGML_QUANT_SIZES[kind]
  width = math.prod(entry.dims[1:])
  a, b = cuts[0].indices(width)[:2] if cuts else (0, width)
  first, last = a // per_block, -(-b // per_block)  # blocks of a row
  group = entry.dims[0] // entry.heads if entry.heads else 1  # rows that are interleaved
  step = max(1, safetensors_io.BLOCK // (width * group)) * group
  out = np.empty((stop - start, b - a), np.float32)
  for i in range(start // group * group, stop, step):
    j = min(i + step, -(-stop // group) * group)
    raw = _bytes(entry, i, j, width // per_block * block)
    if entry.heads:
      raw = raw.reshape(-1, group // 2, 2, raw.shape[1]).swapaxes(1, 2).reshape(raw.shape)
    raw = raw[max(start - i, 0) : stop - i, first * block : last * block]
    with np.errstate(all="ignore"):  # what is not finite is reported by whoever reads it
      x = gguf.dequantize(raw.reshape(1, -1), kind).reshape(len(raw), -1)
    at = max(i, start) - start
    out[at : at + len(raw)] = x[:, a - first * per_block : b - first * per_block]
  if entry.offset:
    out -= np.float32(entry.offset)
  return out.reshape(stop - start, *([b - a] if cuts else entry.dims[1:]))


def _bytes(entry, start, stop, size):
  """The bytes of rows start to stop, each of `size` bytes."""
  try:
    found = np.fromfile(
      entry.file, np.uint8, (stop - start) * size, offset=entry.start + start * size
    )
  except OSError as error:
    raise UserError(f"{entry.file}: cannot be read: {error.strerror or error}") from None
  if found.size < (stop - start) * size:
    raise UserError(f"{entry.file}: it became shorter while {entry.name} was read")
  return found.reshape(stop - start, size)
