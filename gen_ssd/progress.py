"""Metrics files, with one JSON object per line, and a progress line on the screen."""

import json
import sys
import time

import jax


class Metrics:
  """Appends rows to the JSONL file `path`, in process 0 only. Values are plain numbers or text.

  Rows have a `step` that rises. What a stopped run wrote after step `done` is cut off first, because
  it will be written again.
  """

  def __init__(self, path, done=0):
    self.file = None
    if jax.process_index() == 0:
      path.parent.mkdir(parents=True, exist_ok=True)
      self.file = open(path, "a", buffering=1)
      self.file.truncate(_size_of_steps(path, done))

  def write(self, **row):
    if self.file:
      self.file.write(json.dumps(row) + "\n")

  def close(self):
    if self.file:
      self.file.close()


def _size_of_steps(path, done):
  """Bytes of the whole lines of `path` before the first of a step after `done`."""
  size = 0
  with open(path, "rb") as file:
    for line in file:
      try:
        kept = line.endswith(b"\n") and json.loads(line)["step"] <= done
      except (ValueError, KeyError, TypeError, RecursionError):  # torn
        kept = False
      if not kept:
        break
      size += len(line)
  return size


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
