"""Two processes of four devices, as on a pod: the same files and weights as in one process."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
from safetensors.numpy import load_file

from tests import paths
from tests.models.decoder_test import golden

SCRIPT = paths.ROOT / "tests" / "one_of_two_processes.py"


def run(folder, *args, devices):
  folder.mkdir(exist_ok=True)
  env = {
    **os.environ,
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    "NPROC": "16",
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": str(paths.ROOT),
  }
  return subprocess.Popen(
    [sys.executable, str(SCRIPT), str(folder), *map(str, args)],
    env=env,
    stderr=subprocess.PIPE,
    text=True,
  )


def test_two_processes_write_what_one_writes(tmp_path):
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = s.getsockname()[1]
  source, _, _ = golden("gemma3", tmp_path / "source")
  pair = [run(tmp_path / "two", i, port, source, devices=4) for i in range(2)]
  errors = [p.communicate(timeout=400)[1] for p in pair]
  assert [p.returncode for p in pair] == [0, 0], errors[0][-3000:] + errors[1][-3000:]
  alone = run(tmp_path / "one", "alone", source, devices=8)
  error = alone.communicate(timeout=400)[1]
  assert alone.returncode == 0, error[-3000:]
  says = f"removed the damaged checkpoint {tmp_path}/two/train/3"
  assert (says in errors[0], says in errors[1]) == (True, False)
  for kind in ("traces", "translated"):
    one, two = (
      {p.name: p.read_bytes() for p in (tmp_path / n / kind).iterdir()} for n in ("one", "two")
    )
    assert one.keys() == two.keys() and len(one) >= 5
    for name in one:
      if name.startswith("traces"):
        ids = [[json.loads(line)["ids"] for line in f[name].splitlines()] for f in (one, two)]
        assert ids[0] == ids[1]
  total = sum(x.size for x in load_file(source / "model.safetensors").values())
  mine = [int((tmp_path / "two" / f"read-{i}").read_text()) for i in range(2)]
  assert (tmp_path / "one" / "read-0").read_text() == str(total)
  assert sum(mine) >= total and max(mine) < 0.55 * total  # its half, and the small ones of all
  for folder in ("one", "two"):
    found, want = (
      load_file(f / "model.safetensors") for f in (tmp_path / folder / "export", source)
    )
    assert found.keys() == want.keys()
    for name in want:
      np.testing.assert_array_equal(found[name], want[name], err_msg=name)
  np.testing.assert_allclose(
    np.load(tmp_path / "one" / "embed.npy"), np.load(tmp_path / "two" / "embed.npy"), atol=1e-5
  )
