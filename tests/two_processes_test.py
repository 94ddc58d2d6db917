"""Two processes, as on a pod: the same files and weights as in one process, and one end."""

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests import bucket
from tests import paths
from tests.models.decoder_test import golden

pytestmark = pytest.mark.usefixtures("shared_programs")

SCRIPT = paths.ROOT / "tests" / "one_of_two_processes.py"


def start(command, devices, place=None):
  """Starts a Python process with so many devices; `place` is (its index, port) as one of two."""
  env = {
    **os.environ,
    "XLA_FLAGS": re.sub(r"count=\d+", f"count={devices}", os.environ["XLA_FLAGS"]),
    "NPROC": "16",
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": str(paths.ROOT),
  }
  if place is not None:
    env["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{place[1]}"
    env |= {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(place[0])}
  command = [sys.executable, *map(str, command)]
  return subprocess.Popen(
    command, env=env, cwd=paths.ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
  )


def free_port():
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]


def test_two_processes_write_what_one_writes(tmp_path):
  source, _, _ = golden("gemma3", tmp_path / "source")
  port, command = free_port(), lambda folder: [SCRIPT, tmp_path / folder, source]
  for folder in ("one", "two"):
    (tmp_path / folder).mkdir()
  pair = [start(command("two"), devices=4, place=(i, port)) for i in range(2)]
  errors = [p.communicate(timeout=400)[1] for p in pair]
  assert [p.returncode for p in pair] == [0, 0], errors[0][-3000:] + errors[1][-3000:]
  alone = start(command("one"), devices=8)
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


def command(workdir, *flags):
  sizes = ("problems.train=32", "problems.test=16", "problems.cold_start=40", "problems.held_out=8")
  return [
    "-m",
    "gen_ssd.main",
    "--config=configs/quickstart.py",
    f"--workdir={workdir}",
    *(f"--config.{flag}" for flag in (*sizes, *flags)),
  ]


def test_a_mistake_ends_both_processes_with_the_same_message(tmp_path):
  port = free_port()
  (tmp_path / "config.json").write_text('{"name": "other"}')
  pair = [start(command(tmp_path), devices=2, place=(i, port)) for i in range(2)]
  for process in pair:
    said = process.communicate(timeout=200)[1]
    assert process.returncode == 2 and "belongs to another config: " in said, said


@pytest.mark.slow
@pytest.mark.parametrize("place", ["a disk", "a bucket"])
def test_a_whole_run_of_two_processes_writes_the_traces_and_answers_of_one(
  tmp_path, monkeypatch, place
):
  port, flags = free_port(), ("train.steps=40", "warm_up.steps=30")
  with bucket.serving() as server:
    for name, value in bucket.environment(server.url).items():
      monkeypatch.setenv(name, value)
    workdir = tmp_path / "two" if place == "a disk" else f"gs://{bucket.NAME}/two"
    pair = [start(command(workdir, *flags), 2, (i, port)) for i in range(2)]
    for process in (*pair, start(command(tmp_path / "one", *flags), 4)):
      said = process.communicate(timeout=900)[1]
      assert process.returncode == 0, said[-3000:]
  for name, (_, data) in server.objects.items():
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(data)
  assert bool(server.objects) == (place == "a bucket")
  one, two = tmp_path / "one", tmp_path / "two"
  cold = "cold_start/traces/traces-00000.jsonl"  # nothing that two processes trained took part
  assert (one / cold).read_bytes() == (two / cold).read_bytes()
  digest = lambda data: hashlib.sha256(data).hexdigest()[:16]
  files = sorted(p.relative_to(one) for p in one.rglob("traces-*.jsonl"))
  assert len(files) >= 9  # four collections, four arms' answers, calibration
  for file in files:
    rows = [[json.loads(x) for x in (w / file).read_text().splitlines()] for w in (one, two)]
    key = lambda r: (r["uuid"], r["attempt"], r["ids"], r["verdict"])
    assert [*map(key, rows[0])] == [*map(key, rows[1])], file
    print(f"{file!s:53}", *(digest(repr([*map(key, r)]).encode()) for r in rows))
  for path in sorted(one.glob("arms/*/kept.json")):
    theirs = two / path.relative_to(one)
    assert path.read_bytes() == theirs.read_bytes()
    print(f"{path.relative_to(one)!s:53}", digest(path.read_bytes()), digest(theirs.read_bytes()))
  students = sorted(one.rglob("model.safetensors"))
  assert len(students) == 5 and (two / "report.html").exists()
  for path in students:  # sums of gradients over processes differ by rounding
    mine, theirs = load_file(path), load_file(two / path.relative_to(one))
    for name in mine:
      np.testing.assert_allclose(mine[name], theirs[name], atol=1e-3, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("dead", [0, 1])
def test_when_a_process_dies_the_other_ends_and_names_it(tmp_path, dead):
  port = free_port()
  pair = [
    start(command(tmp_path, "warm_up.steps=100000"), devices=2, place=(i, port)) for i in range(2)
  ]
  metrics = tmp_path / "cold_start" / "checkpoints" / "metrics.jsonl"
  end = time.monotonic() + 300
  while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < end:
    time.sleep(0.5)
  pair[dead].kill()
  pair[dead].wait()
  start_of_silence = time.monotonic()
  said = pair[1 - dead].communicate(timeout=100)[1]
  assert time.monotonic() - start_of_silence < 30
  assert pair[1 - dead].returncode != 0
  named = "leader" if dead == 0 else r"Task 1 heartbeat timeout|stopped sending heartbeats\):\n1\n"
  assert re.search(named, said), said[-3000:]
