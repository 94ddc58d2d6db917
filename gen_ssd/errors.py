"""Errors that a user can correct, and how a command ends.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | a bug: please report the traceback |
| 2 | something given is wrong: one message says what and how to correct it |
| 130, 143 | stopped by Ctrl-C or SIGTERM: the same command continues the run |
| 141 | stopped because nobody reads its output any more: the same command continues the run |
"""

from collections.abc import Iterator
import contextlib
import errno
import os
import signal
import sys
import threading

# What the machine lacks, not the program: these errors are messages, too.
MACHINE = {
  errno.ENOSPC: "the disk is full: free some space, and the same command continues",
  errno.EDQUOT: "the disk quota is used up: free some space, and the same command continues",
  errno.EROFS: "the file system is read-only",
  errno.EACCES: "this user may not do that",
  errno.EPERM: "this user may not do that",
  errno.EIO: "the disk reports an error",
  errno.EMFILE: "too many open files: raise the limit, for example with ulimit -n 4096",
}


UNREAD = 141  # what a shell says of SIGPIPE
SIGNALS = {signal.SIGINT: ("Ctrl-C", 130), signal.SIGTERM: ("SIGTERM", 143)}


class UserError(ValueError):
  """Something a user gave is wrong. The message names it, its value, and what would be right."""


def fail(field: str, value: object, right: object) -> None:
  """Raises the UserError for a setting: its field, its value, and which values are valid."""
  try:
    shown = clip(repr(value))
  except ValueError:  # Python writes no integer of thousands of digits
    shown = "a number of thousands of digits"
  raise UserError(f"{field} is {shown}: it must be {right}")


def clip(text: str, most: int = 200) -> str:
  """The text with control characters shown, cut to `most` characters; what is cut is counted."""
  text = "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
  return text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"


def one_line(error: object, most: int = 200) -> str:
  """What an exception of a library says, as a part of a message; its type where it says nothing."""
  return clip(" ".join(str(error).split()) or type(error).__name__, most)


def encodable(text: str) -> bool:
  """Can a text be written as UTF-8? Not with half of a surrogate pair."""
  try:
    text.encode()
  except UnicodeEncodeError:
    return False
  return True


@contextlib.contextmanager
def command() -> Iterator[None]:
  """What is around every command: mistakes and signals end it in one line and an exit code.

  Any other exception is a bug and keeps its traceback. A signal ends the process at once, as a kill
  would, because a library that is interrupted may wait for itself for ever; a run continues after both.
  """
  before = {}
  # A closed stdout or stderr would give its number to a file of the run, with all that is printed.
  while (number := os.open(os.devnull, os.O_RDWR)) < 3:
    pass
  os.close(number)
  if threading.current_thread() is threading.main_thread():
    before = {number: signal.signal(number, _stop) for number in SIGNALS}
  try:
    yield
    print(end="", flush=True)
  except BrokenPipeError:
    _unread()
  except (UserError, FloatingPointError) as error:
    _end(str(error), 2)
  except OSError as error:
    if error.errno not in MACHINE:
      raise
    where = f"{error.filename}: " if error.filename else ""
    _end(f"{where}{MACHINE[error.errno]}", 2)
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def _stop(number, frame):
  name, code = SIGNALS[number]
  with contextlib.suppress(Exception):
    sys.stdout.flush()
  os.write(2, f"\ngen_ssd: stopped by {name}; the same command continues\n".encode())
  os._exit(code)


def _unread():
  """Ends a command whose output nobody reads any more, as of `gen-ssd ... | head`."""
  with contextlib.suppress(OSError):
    os.write(2, b"\ngen_ssd: stopped, nobody reads what it prints; the same command continues\n")
  os._exit(UNREAD)


def _end(message, code):
  """Prints the message and exits, without the traceback of what was under way."""
  print(f"gen_ssd: {message}", file=sys.stderr, flush=True)
  sys.exit(code)
