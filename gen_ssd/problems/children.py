"""The child processes that run math-verify: started, asked, limited, killed. `answers` uses them."""

from collections import deque
from collections.abc import Iterable
import contextlib
import dataclasses
import json
from multiprocessing.connection import wait
from pathlib import Path
import signal
from subprocess import PIPE
from subprocess import Popen
import sys
from time import monotonic
import weakref

# The net under the limit on CPU time, for a child that hangs without computing. Generous: a busy
# machine, on which a child gets little of a CPU, must not change a verdict.
WALL_SECONDS = 60  # per CPU second
START_SECONDS = 600  # wall-clock, for the imports of a child
SCRIPT = str(Path(__file__).resolve().with_name("math_verify_child.py"))


@dataclasses.dataclass(eq=False)
class Asked:
  """A pair of bare answers, and what became of it."""

  gold: str
  answer: str
  said: str = ""  # a verdict, 'timeout' or 'crash'
  crashes: int = 0  # of children that had it


@dataclasses.dataclass(eq=False)
class _Child:
  process: Popen
  end: weakref.finalize  # kills and reaps it, once
  deadline: float  # of `monotonic`; of no meaning while it is idle
  ready: bool = False
  asked: Asked | None = None  # before it is ready: what it will be asked first
  last_start: bool = False  # was another that it replaces lost before it was ready?

  @property
  def idle(self):
    return self.ready and not self.asked


def _kill(process):
  with contextlib.suppress(OSError), process:  # __exit__ of Popen closes its pipes and reaps it
    process.kill()


class Children:
  """At most `workers` children, of which each pair may use `seconds` of CPU time.

  They are fresh interpreters without JAX, not forks. One starts when there is a pair that no idle
  child can have, and then stays. Not for several threads at once.
  """

  def __init__(self, seconds: float, workers: int):
    self.seconds, self.workers, self._children = seconds, workers, []

  def close(self) -> None:
    """Kills and reaps all children. More can be asked: that starts new ones."""
    while self._children:
      self._children.pop().end()

  def ask(self, pairs: Iterable[tuple[str, str]]) -> list[Asked]:
    """Hands each (gold, answer) to the first child that is free; returns when all have replies.

    A pair whose child dies, or is silent too long, is asked once more, in a fresh child.

    Raises RuntimeError when no child starts. Then, and after Ctrl-C, no child is left.
    """
    found = [Asked(*pair) for pair in pairs]
    todo = deque(found)
    try:
      while todo or any(c.asked for c in self._children):
        coming = sum(not c.asked for c in self._children)
        for _ in range(min(self.workers - len(self._children), len(todo) - coming)):
          self._start()
        for child in self._children:
          if child.idle and todo:
            self._tell(child, todo.popleft())
        self._listen(todo)
    except BaseException:  # Ctrl-C too: a late reply must not be taken for that to the next pair
      self.close()
      raise
    return found

  def _start(self, asked=None, last_start=False):
    # -P: modules in its folder must not shadow the standard library. A new session: Ctrl-C must
    # reach this process only.
    command = [sys.executable, "-P", "-W", "ignore", SCRIPT]
    process = Popen(command, stdin=PIPE, stdout=PIPE, start_new_session=True)
    end = weakref.finalize(self, _kill, process)  # without close, and at exit
    deadline = monotonic() + START_SECONDS
    self._children.append(_Child(process, end, deadline, asked=asked, last_start=last_start))

  def _tell(self, child, asked):
    child.asked, child.deadline = asked, monotonic() + WALL_SECONDS * self.seconds
    line = json.dumps([asked.gold, asked.answer, self.seconds])
    with contextlib.suppress(BrokenPipeError):  # it has died, as its stdout will tell
      child.process.stdin.write(line.encode() + b"\n")
      child.process.stdin.flush()

  def _listen(self, todo):
    """Waits until a child says something, ends or is late, and deals with all that did."""
    busy = [c for c in self._children if not c.idle]
    heard = wait(
      [c.process.stdout for c in busy], max(0, min(c.deadline for c in busy) - monotonic())
    )
    for child in busy:
      if child.process.stdout in heard:
        line = child.process.stdout.readline()
        if not line:
          self._lost(child, todo, child.process.wait())  # the return code tells a timeout
        elif child.ready:
          child.asked.said, child.asked = line.decode().strip(), None
        elif line == b"ready\n":
          child.ready = True
          if child.asked:
            self._tell(child, child.asked)
        else:
          self._lost(child, todo)
      elif monotonic() >= child.deadline:
        self._lost(child, todo)

  def _lost(self, child, todo, code=None):
    """Deals with a child that has ended with a return code, or that is late."""
    self._children.remove(child)
    child.end()
    asked = child.asked
    if not child.ready:
      self._not_started(child, todo)
    elif code == -signal.SIGPROF:
      asked.said = "timeout"
    else:
      asked.crashes += 1
      if asked.crashes == 1:
        self._start(asked)
      else:
        asked.said = "crash"

  def _not_started(self, child, todo):
    """Starts another: it may have been killed, for want of memory for example. Not a third one."""
    if not child.last_start:
      self._start(child.asked, last_start=True)
    elif any(c.ready for c in self._children):
      self.workers = len(self._children)  # the machine has no room for more
      todo.extendleft([child.asked] if child.asked else [])
    else:
      raise RuntimeError(f"math-verify did not start; is it installed for {sys.executable}?")
