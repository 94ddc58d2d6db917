"""The processes around math-verify: limits, crashes, interrupts, and what is left behind."""

from collections import deque
import os
from pathlib import Path
import signal
import subprocess
import sys
import threading
import time

import pytest

from gen_ssd.problems import children as children_lib
from gen_ssd.problems.answers import Grade
from gen_ssd.problems.answers import Grader
from tests import paths

HALF = (r"\frac{\pi}{2}", r"so \boxed{2\pi/4}")
RIGHT = Grade("right", "math-verify")


@pytest.fixture
def started(monkeypatch):
  """The children started in a test, in order."""
  children, real = [], children_lib.Popen
  monkeypatch.setattr(
    children_lib, "Popen", lambda *a, **k: children.append(real(*a, **k)) or children[-1]
  )
  return children


@pytest.fixture
def sigprof_ignored(monkeypatch):
  """Children start as those of a program that ignores SIGPROF do."""
  ignore, real = ["env", "--ignore-signal=PROF"], children_lib.Popen
  monkeypatch.setattr(children_lib, "Popen", lambda command, **k: real([*ignore, *command], **k))


def test_time_limit_kills_and_the_grader_goes_on(sigprof_ignored, started):
  with Grader(seconds=1) as v:
    for n, gold in enumerate(["9^{9^{9^9}}", "7^{7^9}"], 1):
      for _ in range(2):
        assert v.grade(gold, r"\boxed{5}") == ("unverifiable", "timeout")
      assert v.counts == {"slow": n, "timeouts": n}, "asked again"
      assert [c.returncode for c in started] == [-signal.SIGPROF] * n
    assert v.grade(*HALF) == RIGHT
  assert started[-1].returncode == -signal.SIGKILL, "not reaped"
  with pytest.raises(ValueError, match="seconds is 0"):
    Grader(seconds=0)
  with pytest.raises(ValueError, match="workers is 0"):
    Grader(workers=0)


def _later(child, number, seconds=0.5):
  """Stops the child now, as a busy machine does, and sends it a signal some seconds later."""
  child.send_signal(signal.SIGSTOP)
  timer = threading.Timer(seconds, child.send_signal, [number])
  timer.start()
  return timer


def test_time_in_which_the_child_does_not_run_does_not_count(started):
  with Grader(seconds=1) as v:
    assert v.compare(r"\frac{\pi}{3}", r"2\pi/6") == "right"
    timer = _later(started[0], signal.SIGCONT, seconds=2)
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
  def tell(self, child, asked, real=children_lib.Children._tell):
    child.process.kill()
    real(self, child, asked)

  with Grader() as v:
    with monkeypatch.context() as patch:
      patch.setattr(children_lib.Children, "_tell", tell)
      assert v.grade(*HALF) == ("unverifiable", "crash")
    assert v.counts == {"slow": 1, "crashes": 2} and len(started) == 2
    assert v.grade(*HALF) == RIGHT


def test_a_child_that_hangs_without_computing_is_a_crash(started, monkeypatch):
  with Grader(seconds=3) as v:
    assert v.compare(r"\frac{\pi}{3}", r"2\pi/6") == "right"
    started[0].send_signal(signal.SIGSTOP)
    limits, passed = [], [0]

    def wait(objects, seconds, real=children_lib.wait):
      limits.append(seconds)
      if len(limits) > 1:
        return real(objects, seconds)
      passed[0] = seconds  # as if it had waited
      return []

    monkeypatch.setattr(children_lib, "wait", wait)
    monkeypatch.setattr(children_lib, "monotonic", lambda: time.monotonic() + passed[0])
    assert v.grade(*HALF) == RIGHT
    assert v.counts == {"slow": 2, "crashes": 1}
    assert [c.poll() for c in started] == [-signal.SIGKILL, None]
    assert min(limits) > 10 * 3, "too short for a busy machine"


def test_an_interrupt_leaves_no_stale_reply(monkeypatch, started):
  def interrupt(*_):
    raise KeyboardInterrupt

  with Grader() as v:
    assert v.compare(r"\frac{\pi}{2}", r"2\pi/4") == "right"
    with monkeypatch.context() as patch:
      patch.setattr(children_lib, "wait", interrupt)
      with pytest.raises(KeyboardInterrupt):
        v.compare(r"\frac{\pi}{2}", r"5\pi/10")
    assert [c.returncode for c in started] == [-signal.SIGKILL]
    assert v.compare(r"\frac{\pi}{2}", r"\pi/3") == "wrong"


def _halves(count):
  """Pairs that need math-verify, no two of them equal; all are right."""
  return [(rf"\frac{{\pi}}{{{n}}}", rf"\boxed{{2\pi/{2 * n}}}") for n in range(3, 3 + count)]


def test_a_batch_has_the_grades_of_its_pairs_in_order(started):
  batch = [*_halves(5), ("5", r"\boxed{5}"), (r"\pi", r"\boxed{\pi/2}"), ("5", "6"), _halves(1)[0]]
  with Grader(workers=3) as v:
    found = v.grades(batch)
    assert found == [
      *[RIGHT] * 5,
      ("right", "rule"),
      ("wrong", "math-verify"),
      ("wrong", "rule"),
      RIGHT,
    ]
    assert v.counts == {"fast": 2, "slow": 6}, "equal pairs are asked once"
    assert len(started) == 3 and v.grades([]) == []
    assert v.grades(batch) == found == [v.grade(*pair) for pair in batch]
    assert v.counts["slow"] == 6 and len(started) == 3


def test_there_are_no_more_children_than_undecided_pairs(started):
  with Grader(workers=8) as v:
    v.grades([HALF, HALF, ("5", r"\boxed{6}")])
    assert len(started) == 1
    v.grades(_halves(2))
    assert len(started) == 2


def test_one_bad_pair_does_not_hold_up_the_others(started):
  """One child is stopped until the other has graded all pairs but one."""
  with Grader(workers=2) as v:
    v.grades(_halves(2))
    pool, left = v._children, []
    while not all(c.ready for c in pool._children):
      pool._listen(deque())
    started[0].send_signal(signal.SIGSTOP)

    def listen(todo, real=pool._listen):
      real(todo)
      left.append(len(todo) + sum(bool(c.asked) for c in pool._children))
      if left[-1] == 1:
        started[0].send_signal(signal.SIGCONT)

    pool._listen = listen
    assert v.grades(_halves(14)) == [RIGHT] * 14
    assert left == [*range(11, -1, -1)] and v.counts == {"slow": 14} and len(started) == 2


def test_timeouts_and_crashes_of_a_batch_are_those_of_their_pairs(started):
  with Grader(seconds=1, workers=2) as v:
    v.grades([HALF])
    started[0].kill()
    started[0].wait()
    batch = [_halves(1)[0], ("9^{9^{9^9}}", r"\boxed{5}"), *_halves(4)[1:]]
    late = Grade("unverifiable", "timeout")
    assert v.grades(batch) == [RIGHT, late, *[RIGHT] * 3]
    assert v.counts == {"slow": 6, "timeouts": 1, "crashes": 1}
  assert all(c.returncode is not None for c in started), "not reaped"


def test_an_interrupt_kills_all_children(monkeypatch, started):
  def interrupt(*_):
    raise KeyboardInterrupt

  with Grader(workers=3) as v:
    v.grades(_halves(3))
    monkeypatch.setattr(children_lib, "wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
      v.grades(_halves(6))
    assert [c.returncode for c in started] == [-signal.SIGKILL] * 3


def test_where_only_one_child_starts_it_does_all(monkeypatch, started):
  def start(self, *args, real=children_lib.Children._start, **kwargs):
    with monkeypatch.context() as patch:
      if any(c.ready for c in self._children):
        patch.setattr(sys, "executable", "/bin/false")
      real(self, *args, **kwargs)

  with Grader(workers=4) as v:
    v.grade(*HALF)
    monkeypatch.setattr(children_lib.Children, "_start", start)
    assert v.grades(_halves(6)) == [RIGHT] * 6
    assert v.counts == {"slow": 7}
    assert [c.returncode for c in started][0] is None and len(started) > 1


def test_start_failure_says_so(monkeypatch, started):
  monkeypatch.setattr(sys, "executable", "/bin/false")
  with Grader() as v, pytest.raises(RuntimeError, match="math-verify did not start"):
    v.compare(r"\frac{\pi}{2}", r"2\pi/4")
  assert [c.returncode for c in started] == [1, 1]


def test_a_child_that_was_killed_while_it_started_is_started_again(monkeypatch, started):
  def wait(objects, seconds, real=children_lib.wait):
    if len(started) == 1:
      started[0].kill()
    return real(objects, seconds)

  monkeypatch.setattr(children_lib, "wait", wait)
  with Grader() as v:
    assert v.grade(*HALF) == RIGHT
    assert len(started) == 2


def test_script_without_main_guard_exits_and_leaves_nothing(tmp_path):
  """The grader is never closed."""
  script = tmp_path / "script.py"
  script.write_text(
    "from gen_ssd.problems.answers import Grader\n"
    "v = Grader()\n"
    r"print(v.compare('\\frac{\\pi}{2}', '2\\pi/4'), v._children._children[0].process.pid)"
  )
  env = {**os.environ, "PYTHONPATH": str(paths.ROOT)}
  run = subprocess.run(
    [sys.executable, script], env=env, capture_output=True, timeout=60, text=True
  )
  result, pid = run.stdout.split()
  assert (result, run.returncode, run.stderr) == ("right", 0, "")
  assert not Path(f"/proc/{pid}").exists()
