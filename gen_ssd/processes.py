"""Runs commands as processes, a few at a time, each with its own log, under one progress line."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

from gen_ssd import errors
from gen_ssd import progress
from gen_ssd.errors import clip

SIGNALS = {**errors.SIGNALS, signal.SIGHUP: ("the end of the terminal", 129)}
PATIENCE = errors.GRACE + 5  # seconds that processes have to end after SIGTERM


def run(
  commands: Mapping[str, Sequence[str]], logs: pathlib.Path, parallel: int, done: int = 0
) -> tuple[dict[str, int], list[int]]:
  """Runs the named commands in order, `parallel` at a time, with their output in logs/NAME.log.

  `done` commands count as finished before. Returns the exit code of each that failed, in the order
  in which they did, 128 + N for signal N; and the signals that this process received: after the
  first, no process is left. Raises OSError where a log cannot be written.
  """
  waiting, running, failed = list(commands), {}, {}
  bar = progress.Progress("items", done + len(waiting), every=60.0)
  logs.mkdir(parents=True, exist_ok=True)
  with _signals() as signals:
    try:
      bar.show(done)
      while (waiting or running) and not signals:
        for name in waiting[: parallel - len(running)]:
          running[name] = _start(commands[name], logs / f"{name}.log")
          waiting.remove(name)
        time.sleep(0.1)
        for name, process in [*running.items()]:
          if (code := process.poll()) is not None:
            del running[name]
            done += 1
            if code:
              failed[name] = code if code > 0 else 128 - code
              _tell(f"{name} failed with exit code {failed[name]}: {_last(logs / f'{name}.log')}")
        count = f"{len(failed)} failed, " if failed else ""
        final = not waiting and not running
        bar.show(done, f"{count}running: {clip(', '.join(running) or 'none', 120)}", final=final)
    finally:
      _end([*running.values()])
  return failed, signals


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
  """A list of the signals that arrive, which end nothing; those that were ignored stay ignored."""
  found: list[int] = []
  before = {n: signal.getsignal(n) for n in SIGNALS if signal.getsignal(n) is not signal.SIG_IGN}
  for number in before:
    signal.signal(number, lambda number, frame: found.append(number))
  try:
    yield found
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def _start(command, log):
  """A process in a group of its own: a signal of the terminal does not reach it."""
  with open(log, "ab") as file:
    return subprocess.Popen(
      command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, process_group=0
    )


def _end(processes):
  """Ends processes and what they started: asks first, and waits PATIENCE seconds at most."""
  until = time.monotonic() + PATIENCE
  for process in processes:
    _send(process, signal.SIGTERM)
  for process in processes:
    with contextlib.suppress(subprocess.TimeoutExpired):
      process.wait(max(0.0, until - time.monotonic()))
    _send(process, signal.SIGKILL)
    process.wait()


def _send(process, number):
  with contextlib.suppress(ProcessLookupError):
    os.killpg(process.pid, number)


def _tell(line):
  clear = "\r\x1b[K" if sys.stderr.isatty() else ""  # the progress line
  print(f"{clear}{line}", file=sys.stderr, flush=True)


def _last(log):
  """The last line of a log that is not empty, and where the log is."""
  with open(log, "rb") as file:
    file.seek(max(0, log.stat().st_size - 4096))
    found = [x.strip() for x in re.split(r"[\r\n]", file.read().decode(errors="replace"))]
  return f"{clip(next(filter(None, reversed(found)), 'no output'))} ({log})"
