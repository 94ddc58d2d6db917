"""Several processes at a time: logs, failures, and signals that leave none of them behind."""

import contextlib
import os
import pathlib
import signal
import sys
import threading
import time

import pytest

from gen_ssd import processes


def python(text):
  return [sys.executable, "-S", "-c", text]


def test_the_output_of_every_process_goes_to_its_log_and_is_added_to(tmp_path):
  commands = {name: python(f"print({name!r})") for name in "ab"}
  for _ in range(2):
    assert processes.run(commands, tmp_path / "logs", 1) == ({}, [])
  assert {p.name: p.read_text() for p in (tmp_path / "logs").iterdir()} == {
    "a.log": "a\na\n",
    "b.log": "b\nb\n",
  }


def test_a_failure_is_named_with_the_last_line_of_its_log_and_the_others_go_on(tmp_path, capsys):
  commands = {
    "bad": python("import sys; print('first'); print('no \\x1b[2J luck\\n'); sys.exit(3)"),
    "good": python("print('fine')"),
    "killed": python("import os; os.kill(os.getpid(), 9)"),
  }
  failed, signals = processes.run(commands, tmp_path, 1)
  assert [*failed.items()] == [("bad", 3), ("killed", 137)] and not signals
  assert (tmp_path / "good.log").read_text() == "fine\n"
  said = capsys.readouterr().err
  assert f"bad failed with exit code 3: no \\x1b[2J luck ({tmp_path / 'bad.log'})" in said
  assert "killed failed with exit code 137: no output (" in said and "2 failed, " in said


def test_as_many_run_at_a_time_as_asked_for(tmp_path):
  wait = (
    "import pathlib, sys, time\n"
    "pathlib.Path(sys.argv[1], sys.argv[2]).touch()\n"
    "until = time.monotonic() + 20\n"
    "while len(list(pathlib.Path(sys.argv[1]).glob('item*'))) < 2:\n"
    "  if time.monotonic() > until: sys.exit(1)\n"
    "  time.sleep(0.02)\n"
  )
  commands = {n: [*python(wait), str(tmp_path), n] for n in ("item1", "item2")}
  assert processes.run(commands, tmp_path / "logs", 2) == ({}, [])  # each waits for the other


def test_one_at_a_time_means_in_order_and_alone(tmp_path):
  body = (
    "import os, sys\n"
    "lock = os.open(sys.argv[1], os.O_CREAT | os.O_EXCL)\n"
    "import time; time.sleep(0.2); os.unlink(sys.argv[1])\n"
  )
  commands = {str(i): [*python(body), str(tmp_path / "lock")] for i in range(3)}
  assert processes.run(commands, tmp_path / "logs", 1) == ({}, [])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_all_processes_and_what_they_started(tmp_path, number):
  child = "import time, sys; print('up', flush=True); time.sleep(300)"
  parent = f"import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', {child!r}])"
  stubborn = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {child}"
  commands = {"parent": python(parent), "stubborn": python(stubborn), "later": python("")}
  started = []

  def stop():
    until = time.monotonic() + 30
    logs = [tmp_path / f"{name}.log" for name in ("parent", "stubborn")]
    while time.monotonic() < until and not all(p.exists() and p.read_text() for p in logs):
      time.sleep(0.02)
    os.kill(os.getpid(), number)

  real, outside = processes._start, signal.getsignal(number)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(processes, "PATIENCE", 0.3)
    patch.setattr(processes, "_start", lambda *a: started.append(real(*a)) or started[-1])
    signal.signal(number, before := signal.default_int_handler)  # nohup has it ignored
    threading.Thread(target=stop).start()
    failed, signals = processes.run(commands, tmp_path, 2)
  assert signals == [number] and not failed and signal.getsignal(number) is before
  signal.signal(number, outside)
  assert len(started) == 2 and all(p.poll() is not None for p in started)
  assert not any(_living(process.pid) for process in started)
  assert not (tmp_path / "later.log").exists()


def _living(group):
  """The processes of a group, without those that ended and that init has not collected yet."""
  found = []
  for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
    with contextlib.suppress(OSError):  # it ended meanwhile
      state, _, its = path.read_text().rpartition(")")[2].split()[:3]
      found += [path] * (int(its) == group and state not in "ZX")
  return found


def test_a_hang_up_that_was_ignored_stays_ignored(tmp_path):
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
  try:
    body = f"import os; os.kill({os.getpid()}, 1)"
    assert processes.run({"a": python(body)}, tmp_path, 1) == ({}, [])
  finally:
    signal.signal(signal.SIGHUP, before)
