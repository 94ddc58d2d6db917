"""The weights of a model directory as they are stored: safetensors, or a GGUF file."""

from collections.abc import Mapping
import math
import os

import numpy as np

from gen_ssd.models import gguf
from gen_ssd.models import safetensors_io

Entry = safetensors_io.Entry | gguf.Entry


def headers(path: str | os.PathLike) -> Mapping[str, Entry]:
  """{Hugging Face's name: Entry} of all tensors in directory `path`.

  Raises UserError as safetensors_io.headers and gguf.read do.
  """
  module = gguf if gguf.is_folder(path) else safetensors_io
  return module.headers(path)


def rows(entry: Entry, start: int, stop: int, *cuts: slice) -> np.ndarray:
  """Rows start to stop of a tensor, of which `cuts` are the other axes; float32 from GGUF.

  Raises UserError when the file has changed since its header was read.
  """
  module = gguf if isinstance(entry, gguf.Entry) else safetensors_io
  return module.rows(entry, start, stop, *cuts)


def middle(entry: Entry, most: int) -> bytes:
  """The rows in the middle of a tensor: up to `most` numbers, and at least one row."""
  if not math.prod(entry.dims) or not entry.dims:
    return b""
  n = max(1, most // math.prod(entry.dims[1:]))
  start = max(0, (entry.dims[0] - n) // 2)
  return rows(entry, start, min(start + n, entry.dims[0])).tobytes()
