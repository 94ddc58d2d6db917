"""A run killed at more than thirty moments leaves the files of one that was never disturbed.

Every file of the workdir is compared byte by byte, with two exceptions. results.json and the page say
by which command and commit they were made, and the page when: the name of the workdir, commits and
that time count as equal. The insides of Orbax checkpoints hold times and random names: of those the
sums of what was saved are compared (see checkpoints.py), and the weights are the files of the students
anyway.
"""

import collections
import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp
import pytest

from tests import paths

CONFIG = """
from configs import quickstart

def get_config(arg=""):
  c = quickstart.get_config()
  c.problems.update(train=12, cold_start=16, held_out=6, test=10)
  c.select.update(slots=16, shard_rounds=4)
  c.cold_start.update(slots=16, shard_rounds=4)
  c.warm_up.update(steps=6, batch_size=4, save_every=2, log_every=1, warmup_steps=2)
  c.train.update(steps=6, batch_size=4, save_every=2, log_every=2, warmup_steps=2)
  c.evaluate.update(slots=16)
  c.arms = {n: c.arms[n] for n in ("posthoc", "gen_ssd")}
  return c
"""

# Where a run is killed, in its order: the file that tells so (it appeared or changed since the
# command began), and the longest time in seconds from then to the kill.
MOMENTS = {
  "cold start: collecting": (r"cold_start/traces/.*", 0.3),
  "cold start: a checkpoint being saved": (r"cold_start/checkpoints/\d+\.orbax-checkpoint-tmp.*", 0.02),
  "cold start: a checkpoint saved": (r"cold_start/checkpoints/\d+", 0.05),
  "cold start: the export": (r"cold_start/student\.partial.*", 0.005),
  "cold start: its end": (r"cold_start/student", 0.1),
  "arms: whole traces": (r"traces/\w+/traces-.*", 0.3),
  "arms: an arm is written": (r"arms/posthoc/(dataset/.*|traces.json|kept.json)", 0.02),
  "arms: calibration": (r"cold_start/calibration-.*", 0.3),
  "arms: chunks": (r"traces/\w+/candidates-.*", 0.2),
  "arms: the end of the stage": (r"arms/gen_ssd/(dataset/.*|traces.json|kept.json)", 0.02),
  "training: a checkpoint being saved": (r"arms/.*/checkpoints/\d+\.orbax-checkpoint-tmp.*", 0.03),
  "training: a checkpoint saved": (r"arms/\w+/seed-0/checkpoints/\d+", 0.1),
  "training: the export": (r"arms/posthoc/seed-0/student\.partial.*", 0.005),
  "training: its end": (r"arms/gen_ssd/seed-0/student", 0.1),
  "evaluation": (r"arms/posthoc/seed-0/answers/.*", 0.3),
  "evaluation of another arm": (r"arms/gen_ssd/seed-0/answers/.*", 0.1),
  "results": (r"results\.json.*", 0.1),
  "the report": (r"report\.html.*", 0.01),
}  # fmt: skip


def files(folder):
  """{path relative to `folder`: time of its last change}, of files and folders."""
  found, left = {}, [str(folder)]
  while left:
    try:
      for entry in os.scandir(left.pop()):
        found[os.path.relpath(entry.path, folder)] = entry.stat().st_mtime_ns
        if entry.is_dir():
          left.append(entry.path)
    except FileNotFoundError:  # it went while we looked
      pass
  return found


class Runs:
  """Starts the command on a workdir; all share one cache of compiled programs."""

  def __init__(self, home):
    self.home = home
    (home / "config.py").write_text(CONFIG)
    self.env = {
      **{name: x for name, x in os.environ.items() if name not in ("XLA_FLAGS", "NPROC")},
      "JAX_PLATFORMS": "cpu",
      "JAX_COMPILATION_CACHE_DIR": str(home / "programs"),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      "PYTHONPATH": str(paths.ROOT),
    }

  def start(self, workdir):
    command = ["-m", "gen_ssd.main", f"--config={self.home}/config.py", f"--workdir={workdir}"]
    with open(self.home / f"{workdir.name}.log", "a") as log:
      return subprocess.Popen(
        [sys.executable, *command], cwd=paths.ROOT, env=self.env, stdout=log, stderr=log
      )

  def finish(self, workdir):
    code = self.start(workdir).wait(timeout=600)
    assert code == 0, (self.home / f"{workdir.name}.log").read_text()[-3000:]

  def kill_at_one_of(self, moments, workdir, number, random_):
    """Kills a run with the signal `number` at the first of the moments; returns it, None at an end."""
    before, process = files(workdir), self.start(workdir)
    while process.poll() is None:
      new = [path for path, changed in files(workdir).items() if before.get(path) != changed]
      for moment in moments:
        pattern, most = MOMENTS[moment]
        if any(re.fullmatch(pattern, path) for path in new):
          time.sleep(random_.uniform(0, most))
          if process.poll() is None:
            process.send_signal(number)
            process.wait(timeout=120)
            ends = {signal.SIGKILL: (-9,), signal.SIGTERM: (143, 0)}  # 0: it had just ended
            assert process.returncode in ends[number]
            return moment
      time.sleep(0.001)
    assert process.returncode == 0, (self.home / f"{workdir.name}.log").read_text()[-3000:]
    return None


def contents(workdir):
  """What a run leaves: {path: bytes}; of a checkpoint, its name and sums."""
  found = {}
  for path in sorted(workdir.rglob("*")):
    name, parts = str(path.relative_to(workdir)), path.relative_to(workdir).parts
    if "checkpoints" in parts[:-1] and path.is_dir() and path.parent.name == "checkpoints":
      sums = {"sums": dict.fromkeys(("state", "data"), scalar())}
      found[name] = jax.tree.map(int, ocp.load_checkpointables(path, sums))
    elif path.is_file() and not any(x.isdigit() for x in parts[:-1]):
      found[name] = plain(path.read_bytes(), workdir)
  return found


def plain(data, workdir):
  """A file without what says by which run it was made, when, and how long it took."""
  if data.startswith(b"begun,seconds,tokens\n"):  # times.csv
    return b"TIMES"
  data = re.sub(rb"<h2>Time</h2>.*?</section>", b"TIMES", data, flags=re.DOTALL)
  where = f"{re.escape(str(workdir))}|{workdir.name}".encode()
  made_by = rb"Drawn [-0-9]+ [0-9:]+ UTC|[0-9a-f]{40}(-dirty)?|" + where
  return re.sub(made_by, b"MADE BY", data)


def scalar():
  """A number of a checkpoint, without its value."""
  one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.ShapeDtypeStruct((), jnp.uint32, sharding=one)


@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_in_the_same_files(tmp_path):
  runs, seeded, hits = Runs(tmp_path), random.Random(0), collections.Counter()
  runs.finish(tmp_path / "undisturbed")
  want = contents(tmp_path / "undisturbed")
  assert sum("/checkpoints/" in name and isinstance(x, dict) for name, x in want.items()) == 6
  killed = 0
  for attempt in range(5):  # a moment may pass unseen: then it is wanted again in another run
    workdir = tmp_path / f"killed-{attempt}"
    workdir.mkdir()
    left = [m for m in MOMENTS if hits[m] < 2] if attempt > 1 else [*MOMENTS]
    while left:
      number = signal.SIGTERM if killed % 7 == 6 else signal.SIGKILL
      moment = runs.kill_at_one_of(left, workdir, number, seeded)
      if moment is None:
        break
      killed += 1
      hits[moment] += 1
      left = left[left.index(moment) + 1 :]
    runs.finish(workdir)
    found = contents(workdir)
    assert found.keys() == want.keys(), attempt
    assert [name for name in want if found[name] != want[name]] == [], attempt
    if killed >= 30 and all(hits[m] for m in MOMENTS):
      break
  print(json.dumps({"killed": killed, **{m: hits[m] for m in MOMENTS}}, indent=1))
  assert killed >= 30 and all(hits[m] for m in MOMENTS), hits


@pytest.mark.slow
def test_a_run_that_fills_the_disk_again_and_again_ends_in_the_same_files(tmp_path):
  runs, disk = Runs(tmp_path), tmp_path / "disk"
  disk.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(disk)]
  if subprocess.run(mount, capture_output=True).returncode:
    pytest.skip("a small file system cannot be mounted here")
  try:
    runs.finish(tmp_path / "undisturbed")
    want, full, size = contents(tmp_path / "undisturbed"), 0, 100
    workdir = disk / "filled-again"
    while (code := runs.start(workdir).wait(timeout=600)) != 0:
      said = (tmp_path / "filled-again.log").read_text()
      (tmp_path / "filled-again.log").unlink()
      last = said.splitlines()[-1]
      assert code == 2 and "Traceback" not in said and "the disk is full: free some" in last, said
      full, size = full + 1, size * 1.3
      subprocess.run(["mount", "-o", f"remount,size={int(size)}k", str(disk)], check=True)
    found = contents(workdir)
    assert found.keys() == want.keys()
    assert [name for name in want if found[name] != want[name]] == []
    print(f"full {full} times, up to {size:.0f} kB")
    assert full >= 5
  finally:
    subprocess.run(["umount", str(disk)], check=True)
