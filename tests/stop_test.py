"""SIGTERM: a training saves and ends at once in every process, and goes on to the same result."""

import json

import pytest

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
  """{path: bytes}, without the insides of checkpoints: of these the names."""
  return {
    str(p.relative_to(folder)): p.is_file() and p.read_bytes()
    for p in folder.rglob("*")
    if not any(x.isdigit() for x in p.relative_to(folder).parts[:-1])
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


@pytest.mark.slow
@pytest.mark.parametrize("what", ["training", "collection"])
@pytest.mark.parametrize("who", [0, 1])
def test_if_one_of_two_processes_gets_sigterm_both_stop_at_the_same_point(tmp_path, what, who):
  check(tmp_path, run(tmp_path, what, who, 2), what, who, 2)
