"""Damaged safetensors files: read exactly as the library that defines them reads them, or refused."""

import json
import math
import pathlib
import tempfile

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from gen_ssd.errors import UserError
from gen_ssd.models import safetensors_io

OFFSETS = st.sampled_from([0, 4, 8, 12, 16, 24, -4, 2**31, 2**63, 2**64, 1.5, "8", None])
DIMS = st.lists(st.sampled_from([0, 1, 2, 3, -1, 2**40, 2**63, 1.0, "2", None]), max_size=3)
TENSORS = st.fixed_dictionaries(
  {
    "dtype": st.sampled_from(["F32", "BF16", "F64", "I8", "F8_E4M3", "F4", "X", 3]),
    "shape": DIMS,
    "data_offsets": st.lists(OFFSETS, min_size=1, max_size=3),
  }
)
GOOD = {  # of 24 bytes
  "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
  "b": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [8, 16]},
  "c": {"dtype": "F64", "shape": [1], "data_offsets": [16, 24]},
}


KINDS = ("entry", "drop", "offset", "double", "length", "bytes", "byte", "cut")


KINDS = ("entry", "drop", "offset", "double", "length", "bytes", "byte", "cut")
SOUND = st.tuples(
  st.sampled_from(["F32", "BF16", "F16", "F64"]), st.lists(st.integers(0, 3), max_size=3)
)


@st.composite
def files(draw):
  """A sound file of three tensors, with up to two kinds of damage."""
  kinds = draw(st.sets(st.sampled_from(KINDS), max_size=2))
  pick = lambda kind, damage, sound: draw(st.sampled_from(damage)) if kind in kinds else sound
  header, at = {}, 0
  for name in "abc":
    dtype, dims = draw(SOUND)
    size = math.prod(dims) * safetensors_io.FLOATS[dtype].itemsize
    header[name] = {"dtype": dtype, "shape": dims, "data_offsets": [at, at + size]}
    at += size
  if "entry" in kinds:
    header[draw(st.sampled_from("abcd"))] = draw(TENSORS)
  if "offset" in kinds:
    name, one = draw(st.sampled_from("abc")), draw(OFFSETS)
    start, stop = (*header[name]["data_offsets"], 0, 0)[:2]
    bounds = draw(st.sampled_from([[one, stop], [start, one], [one, one], [stop, start]]))
    header[name] = {**header[name], "data_offsets": bounds}
  if "drop" in kinds:
    header.pop(draw(st.sampled_from("abc")))
  text = json.dumps(header).encode()
  text = text.replace(b'"b"', pick("double", [b'"a"', b'"__metadata__"', b'"\\u0061"'], b'"b"'))
  length = len(text) + pick("length", [1, -1, 2**30, 2**62], 0)
  whole = bytearray(length.to_bytes(8, "little") + text)
  whole += bytes(i % 251 for i in range(max(0, at + pick("bytes", [-1, 1, -8, -at], 0))))
  if "byte" in kinds:
    whole[draw(st.integers(0, len(whole) - 1))] = draw(st.integers(0, 255))
  return bytes(whole[: draw(st.integers(0, len(whole))) if "cut" in kinds else len(whole)])


def library(file):
  """{name: bytes} as the library reads a file, or None if it refuses."""
  try:
    return {n: (x.shape, x.tobytes()) for n, x in load_file(file).items()}
  except (SafetensorError, AttributeError, KeyError):  # the last two: numpy has no such type
    return None


def ours(folder):
  try:
    found = safetensors_io.headers(folder)
    whole = {n: safetensors_io.rows(e, 0, e.dims[0]) for n, e in found.items() if e.dims}
    return {n: (x.shape, x.tobytes()) for n, x in whole.items()}
  except UserError:
    return None


SEEN = {"read": 0, "refused": 0}


@settings(max_examples=600, derandomize=True, deadline=None)
@given(files())
def damaged_files(content):
  with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder, "model.safetensors")
    file.write_bytes(content)
    found = ours(folder)
    SEEN["refused" if found is None else "read"] += 1
    if found is None:
      return
    theirs = library(file)
    assert theirs is not None, "we read what the library refuses"
    assert found == {n: x for n, x in theirs.items() if x[0]}


def test_a_damaged_file_is_read_as_the_library_reads_it_or_refused():
  damaged_files()
  assert min(SEEN.values()) > 50, SEEN  # neither all sound nor all refused


def test_what_the_library_refuses_and_what_it_reads():
  refused = []
  for change in (
    {"b": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [4, 12]}},
    {"b": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [8, 16]}},
    {"b": {"dtype": "F32", "shape": [2, 2], "data_offsets": [8, 16]}},
    {"d": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [28, 36]}},
    {"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}},
    {"a": {"dtype": "F32", "shape": [2], "data_offsets": [2**63, 2**63 + 8]}},
    {},
  ):
    text = json.dumps({**GOOD, **change}).encode()
    with tempfile.TemporaryDirectory() as folder:
      whole = len(text).to_bytes(8, "little") + text + bytes(range(24))
      pathlib.Path(folder, "model.safetensors").write_bytes(whole)
      refused.append(ours(folder) is None)
  assert refused == [True] * 6 + [False]


def test_a_name_twice_in_a_header_is_refused_though_the_library_keeps_the_last(tmp_path):
  one = '"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
  text = ("{" + one + "," + one + "}").encode()
  file = tmp_path / "model.safetensors"
  file.write_bytes(len(text).to_bytes(8, "little") + text + np.float32(1).tobytes())
  assert library(file) and ours(tmp_path) is None
