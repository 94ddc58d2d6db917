"""The process around math-verify: limits, crashes, interrupts, and what is left behind."""

import os
from pathlib import Path
import signal
import subprocess
import sys
import threading

import pytest

from gen_ssd.problems import answers
from gen_ssd.problems.answers import Grade
from gen_ssd.problems.answers import Grader
from tests import paths

HALF = (r"\frac{\pi}{2}", r"so \boxed{2\pi/4}")
RIGHT = Grade("right", "math-verify")


@pytest.fixture
def started(monkeypatch):
  """The children started in a test, in order."""
  children, real = [], answers.Popen
  monkeypatch.setattr(
    answers, "Popen", lambda *a, **k: children.append(real(*a, **k)) or children[-1]
  )
  return children


@pytest.fixture
def sigprof_ignored():
  """As in a program that was started so: a child inherits it."""
  before = signal.signal(signal.SIGPROF, signal.SIG_IGN)
  yield
  signal.signal(signal.SIGPROF, before)


def test_time_limit_kills_and_the_grader_goes_on(started, sigprof_ignored):
  with Grader(seconds=0.3) as v:
    for n, gold in enumerate(["9^{9^{9^9}}", "7^{7^9}"], 1):
      for _ in range(2):
        assert v.grade(gold, r"\boxed{5}") == ("unverifiable", "timeout")
      assert v._child is None and v.counts == {"slow": n, "timeouts": n}, "asked again"
      assert [c.returncode for c in started] == [-signal.SIGPROF] * n
    assert v.grade(*HALF) == RIGHT
  assert started[-1].returncode == -signal.SIGKILL, "not reaped"
  with pytest.raises(ValueError, match="seconds is 0"):
    Grader(seconds=0)


def _later(child, number):
  """Stops the child now, as a busy machine does, and sends it a signal in half a second."""
  child.send_signal(signal.SIGSTOP)
  timer = threading.Timer(0.5, child.send_signal, [number])
  timer.start()
  return timer


def test_time_in_which_the_child_does_not_run_does_not_count(started):
  with Grader(seconds=0.2) as v:
    assert v.compare(r"\frac{\pi}{3}", r"2\pi/6") == "right"
    timer = _later(started[0], signal.SIGCONT)
    assert v.grade(*HALF) == RIGHT
    timer.join()
    assert v.counts == {"slow": 2} and len(started) == 1


@pytest.mark.parametrize("when", ["before", "while asked"])
def test_a_pair_whose_child_was_killed_is_tried_once_more(started, when):
  with Grader() as v:
    assert v.compare(r"\frac{\pi}{3}", r"2\pi/6") == "right"
    if when == "before":
      started[0].kill()
      started[0].wait()
    else:
      _later(started[0], signal.SIGKILL)
    assert v.grade(*HALF) == RIGHT
    assert v.counts == {"slow": 2, "crashes": 1} and len(started) == 2
    assert v.grade(*HALF) == RIGHT
    assert v.counts["slow"] == 2, "asked again"


def test_a_second_crash_is_unverifiable_until_the_pair_comes_again(started, monkeypatch):
  def start(grader, real=Grader._start):
    child = real(grader)
    child.kill()
    return child

  with Grader() as v:
    with monkeypatch.context() as patch:
      patch.setattr(Grader, "_start", start)
      assert v.grade(*HALF) == ("unverifiable", "crash")
    assert v.counts == {"slow": 1, "crashes": 2} and len(started) == 2
    assert v.grade(*HALF) == RIGHT


def test_a_child_that_hangs_without_computing_is_a_crash(started, monkeypatch):
  with Grader(seconds=3) as v:
    assert v.compare(r"\frac{\pi}{3}", r"2\pi/6") == "right"
    started[0].send_signal(signal.SIGSTOP)
    limits, real = [], answers.wait

    def wait(objects, seconds):
      limits.append(seconds)
      return real(objects, 0.1 if len(limits) == 1 else seconds)

    monkeypatch.setattr(answers, "wait", wait)
    assert v.grade(*HALF) == RIGHT
    assert v.counts == {"slow": 2, "crashes": 1}
    assert [c.poll() for c in started] == [-signal.SIGKILL, None]
    assert min(limits) > 10 * v.seconds, "too short for a busy machine"


def test_an_interrupt_leaves_no_stale_reply(monkeypatch):
  def interrupt(*_):
    raise KeyboardInterrupt

  with Grader() as v:
    assert v.compare(r"\frac{\pi}{2}", r"2\pi/4") == "right"
    with monkeypatch.context() as patch:
      patch.setattr(answers, "wait", interrupt)
      with pytest.raises(KeyboardInterrupt):
        v.compare(r"\frac{\pi}{2}", r"5\pi/10")
    assert v._child is None
    assert v.compare(r"\frac{\pi}{2}", r"\pi/3") == "wrong"


def test_start_failure_says_so(monkeypatch, started):
  monkeypatch.setattr(sys, "executable", "/bin/false")
  with Grader() as v, pytest.raises(RuntimeError, match="math-verify did not start"):
    v.compare(r"\frac{\pi}{2}", r"2\pi/4")
  assert [c.returncode for c in started] == [1, 1]


def test_a_child_that_was_killed_while_it_started_is_started_again(monkeypatch, started):
  real = answers.wait

  def wait(objects, seconds):
    if len(started) == 1:
      started[0].kill()
    return real(objects, seconds)

  monkeypatch.setattr(answers, "wait", wait)
  with Grader() as v:
    assert v.grade(*HALF) == RIGHT
    assert len(started) == 2


def test_script_without_main_guard_exits_and_leaves_nothing(tmp_path):
  script = tmp_path / "script.py"
  script.write_text(
    "from gen_ssd.problems.answers import Grader\n"
    "v = Grader()\n"
    r"print(v.compare('\\frac{\\pi}{2}', '2\\pi/4'), v._child.pid)"  # never closed
  )
  env = {**os.environ, "PYTHONPATH": str(paths.ROOT)}
  run = subprocess.run(
    [sys.executable, script], env=env, capture_output=True, timeout=60, text=True
  )
  result, pid = run.stdout.split()
  assert (result, run.returncode, run.stderr) == ("right", 0, "")
  assert not Path(f"/proc/{pid}").exists()
