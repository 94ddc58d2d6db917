"""Safetensors files as the library that defines them reads them."""

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from gen_ssd.models import safetensors_io
from gen_ssd.models import stored


def some(dtype):
  return {
    "b": np.arange(6, dtype=dtype).reshape(2, 3),
    "a": np.full((5,), -1.5, dtype),
    "c": np.arange(24, dtype=dtype).reshape(4, 3, 2),
  }


def write(folder, arrays, dtype, **dims):
  file = folder / "model.safetensors"
  safetensors_io.write(
    file, dtype, {n: dims.get(n, x.shape) for n, x in arrays.items()}, arrays.values()
  )
  return file


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_what_is_written_is_what_safetensors_reads(dtype, tmp_path):
  file = write(tmp_path, some(dtype), dtype)
  found = load_file(file)
  for name, x in some(dtype).items():
    assert found[name].dtype == dtype
    np.testing.assert_array_equal(found[name], x)
  with safe_open(file, "numpy") as f:
    assert f.metadata() == {"format": "pt"}


def test_rows_and_the_middle_of_a_tensor(tmp_path):
  arrays = some(np.float32)
  write(tmp_path, arrays, np.float32)
  found = safetensors_io.headers(tmp_path)
  assert (found["c"].dtype, found["c"].dims) == ("F32", (4, 3, 2))
  np.testing.assert_array_equal(safetensors_io.rows(found["c"], 1, 3), arrays["c"][1:3])
  cut = safetensors_io.rows(found["c"], 1, 3, slice(1, 2))
  np.testing.assert_array_equal(cut, arrays["c"][1:3, 1:2])
  assert stored.middle(found["c"], 13) == arrays["c"][1:3].tobytes()
  assert stored.middle(found["a"], 4096) == arrays["a"].tobytes()


def test_a_tensor_that_is_not_as_said_is_not_written_on(tmp_path):
  with pytest.raises(ValueError, match=r"a is float32\[5\], it must be float32\[4\]"):
    write(tmp_path, some(np.float32), np.float32, a=(4,))
