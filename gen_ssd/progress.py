"""Metrics files, with one JSON object per line, and a progress line on the screen."""

import contextlib
import json
import sys
import time

import jax

from gen_ssd import folders


class Metrics:
  """The JSONL file `path`, in process 0 only. Rows have a `step` that rises, and plain values.

  The file is written whole: by `flush`, and by `write` when PAUSE seconds have passed. A run that
  goes on keeps the rows up to step `done`, because what came after will be written again.
  """

  PAUSE = 10.0

  def __init__(self, path: folders.Path, done: int = 0):
    self.path, self.rows, self.last = path, [], time.monotonic()
    self.on = jax.process_index() == 0
    if self.on:
      self.rows = _rows(path, done)
      path.parent.mkdir(parents=True, exist_ok=True)

  def write(self, **row):
    self.rows.append(json.dumps(row))
    if time.monotonic() - self.last > self.PAUSE:
      self.flush()

  def flush(self):
    if self.on:
      folders.write(self.path, "".join(f"{row}\n" for row in self.rows))
      self.last = time.monotonic()


def _rows(path, done):
  """The whole lines of `path` before the first of a step after `done`."""
  found = []
  with contextlib.suppress(FileNotFoundError):
    for line in path.read_bytes().split(b"\n")[:-1]:
      try:
        if json.loads(line)["step"] > done:
          break
      except (ValueError, KeyError, TypeError, RecursionError):  # damaged
        break
      found.append(line.decode())
  return found


class Progress:
  """A progress line on stderr: updated in place on a terminal, else printed every `every` seconds."""

  def __init__(self, title, total, every=20.0):
    self.title, self.total, self.every = title, total, every
    self.start = self.last = time.monotonic()
    self.first = None
    self.live = sys.stderr.isatty()
    self.on = jax.process_index() == 0

  def show(self, done, text="", final=False):
    """Shows `done` of `total` and the time left, or the time taken when `final`.

    The rate counts from the first call, because a resumed run does not start at 0.
    """
    now = time.monotonic()
    if self.first is None:
      self.first = done
    if not self.on or not (final or now - self.last >= (0.2 if self.live else self.every)):
      return
    self.last = now
    rate = (done - self.first) / max(now - self.start, 1e-9)
    left = (
      f"{(self.total - done) / rate:.0f}s left"
      if rate > 0 and not final
      else (f"{now - self.start:.1f}s")
    )
    line = f"{self.title} {done}/{self.total}  {text}  {left}"
    if self.live:
      sys.stderr.write(f"\r\x1b[K{line}" + ("\n" if final else ""))
    else:
      sys.stderr.write(line + "\n")
    sys.stderr.flush()
