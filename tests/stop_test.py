"""SIGTERM: a training saves and ends at once in every process, and goes on to the same result."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import types

import pytest

from gen_ssd.training import checkpoints
from tests import paths
from tests import two_processes_test

SCRIPT = paths.ROOT / "tests" / "stopped_process.py"
HERE = "\ngen_ssd: stopped by SIGTERM; the same command continues\n"
ELSEWHERE = "\ngen_ssd: stopped with another process; the same command continues\n"


def run(folder, what, who=0, processes=1):
  """[(exit code, stderr)] of each process."""
  port = two_processes_test.free_port()
  places = [None] if processes == 1 else [(i, port) for i in range(processes)]
  running = [
    two_processes_test.start([SCRIPT, folder, what, who], 4 // processes, place) for place in places
  ]
  return [(p.returncode, said) for p in running for said in [p.communicate(timeout=300)[1]]]


def files(folder):
  """{path: bytes}, without times.csv and the insides of checkpoints: of these the names."""
  return {
    str(p.relative_to(folder)): p.is_file() and p.read_bytes()
    for p in folder.rglob("*")
    if p.name != "times.csv" and not any(x.isdigit() for x in p.relative_to(folder).parts[:-1])
  }


def saved(folder):
  return sorted(int(p.name) for p in folder.iterdir() if p.is_dir())


def check(folder, ends, what, who, processes):
  """What of a training or collection that ended so when it was stopped, and how it goes on."""
  assert [code for code, _ in ends] == [143] * processes, ends
  for i, (_, said) in enumerate(ends):
    assert said.endswith(HERE if i == who else ELSEWHERE) and "Traceback" not in said
  if what == "training":
    assert saved(folder / "stopped") == [5]
    rows = (folder / "stopped" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [2, 4]
  ends = run(folder, what, who, processes)
  assert [code for code, _ in ends] == [0] * processes, ends
  found, want = files(folder / "stopped"), files(folder / "whole")
  assert found == want and len(want) >= 4
  if what == "training":
    assert saved(folder / "stopped") == [8, 12]


def test_a_training_that_gets_sigterm_saves_and_goes_on_to_the_same_result(tmp_path):
  check(tmp_path, run(tmp_path, "training"), "training", 0, 1)


def test_a_checkpoint_of_a_stop_goes_with_the_next_one():
  policy = checkpoints._Newest(8)

  def left(steps):
    found = [types.SimpleNamespace(step=step) for step in steps]
    return [s for s, keep in zip(steps, policy.should_preserve(found, context=None)) if keep]

  assert left([]) == [] and left([5]) == [5]
  assert left([8, 16, 21]) == [16, 21]  # the older one stands in if the newest is damaged
  assert left([16, 21, 23]) == [16, 23]
  assert left([16, 21, 24]) == [16, 24]  # as without a stop
  assert left([16, 24, 30]) == [24, 30]  # the end of a training


@contextlib.contextmanager
def command(body):
  """A process inside of errors.command, from when its `body` has printed something."""
  script = f"import time\nfrom gen_ssd import errors\nwith errors.command():\n{body}"
  with subprocess.Popen(
    [sys.executable, "-c", script],
    cwd=paths.ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  ) as process:
    try:
      assert process.stdout.readline()
      yield process
    finally:
      process.kill()


@pytest.mark.parametrize("number,code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_process_that_is_deep_in_jax(number, code):
  body = """
  import jax
  endless = jax.jit(lambda x: jax.lax.while_loop(lambda x: x >= 0, lambda x: x * 3 & 255, x))
  print("computes", flush=True)
  jax.block_until_ready(endless(jax.numpy.int32(1)))
"""
  with command(body) as process:
    time.sleep(2)  # it is compiled
    process.send_signal(number)
    assert process.wait(20) == code
    assert "; the same command continues\n" in process.stderr.read()


def test_what_takes_longer_than_the_grace_ends_without_saving():
  body = """
  errors.GRACE = 0.5
  with errors.grace():
    print("saves", flush=True)
    time.sleep(600)
"""
  with command(body) as process:
    process.terminate()
    time.sleep(0.1)
    assert process.poll() is None
    assert process.wait(20) == 143
    assert process.stderr.read() == HERE


def test_after_a_command_sigterm_ends_its_process_as_before():
  with command("  pass\nprint('done', flush=True)\ntime.sleep(600)") as process:
    process.terminate()
    assert process.wait(20) == 143
    assert process.stderr.read() == HERE


def test_sigterm_to_a_process_that_is_leaving_does_not_change_how_it_ends():
  body = """
  class Slow:
    def __del__(self, write=errors.os.write, sleep=time.sleep):
      write(1, b"leaves\\n")
      sleep(1)
  errors.kept = Slow()  # Python deletes modules last
  raise errors.UserError("k is 0")
"""
  with command(body) as process:
    process.terminate()
    assert process.wait(20) == 2
    assert process.stderr.read() == "gen_ssd: k is 0\n"


def test_ctrl_c_does_not_wait_for_a_training():
  body = "  with errors.grace():\n    print('saves', flush=True)\n    time.sleep(600)\n"
  with command(body) as process:
    process.terminate()
    process.send_signal(signal.SIGINT)
    assert process.wait(15) == 130


@pytest.mark.slow
@pytest.mark.parametrize("what", ["training", "collection"])
@pytest.mark.parametrize("who", [0, 1])
def test_if_one_of_two_processes_gets_sigterm_both_stop_at_the_same_point(tmp_path, what, who):
  check(tmp_path, run(tmp_path, what, who, 2), what, who, 2)


@pytest.mark.slow
@pytest.mark.parametrize("who", [0, 1])
def test_elsewhere_a_process_that_gets_sigterm_ends_at_once_and_the_other_loses_it(tmp_path, who):
  start = time.monotonic()
  ends = run(tmp_path, "waiting", who, 2)
  assert ends[who][0] == 143 and ends[who][1].endswith(HERE)
  assert ends[1 - who][0] not in (0, 1) and time.monotonic() - start < 60
