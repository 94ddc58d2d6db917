"""Errors that a user can correct, and how a command ends.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | a bug: please report the traceback |
| 2 | something given is wrong: one message says what and how to correct it |
| 130, 143 | stopped by Ctrl-C or SIGTERM: the same command continues the run |
| 141 | stopped because nobody reads its output any more: the same command continues the run |

What SIGTERM to one process of a run does:

| when it comes | what happens |
|---|---|
| in a training | all processes save a checkpoint after the same update and end with 143 |
| in a collection of several processes | all end after the same round with 143 |
| at any other time | this process ends at once with 143; the others lose it and end with another code |

A process that does not get there within GRACE seconds ends with 143 all the same. In every case the
same command continues to the same result; a collection goes on from its last fence.
"""

import atexit
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
GRACE = 20.0  # seconds from SIGTERM to the end of a training or collection; machines give 30
SIGNALS = {signal.SIGINT: ("Ctrl-C", 130), signal.SIGTERM: ("SIGTERM", 143)}
_told: list[str] = []  # how the run was stopped: by SIGTERM here, or with another process
_graceful = threading.Event()  # is what runs now going to end by itself once it is told?
_ending = threading.RLock()  # taken by the thread that ends the process


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

  Any other exception is a bug and keeps its traceback. A signal ends the process at once (SIGTERM
  not within `grace`), as a kill would, because a library that is interrupted may wait for itself for
  ever; a run continues after both.
  """
  # A closed stdout or stderr would give its number to a file of the run, with all that is printed.
  while (number := os.open(os.devnull, os.O_RDWR)) < 3:
    pass
  os.close(number)
  _take_signals()
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


@contextlib.contextmanager
def grace() -> Iterator[None]:
  """For code that asks `told` and returns soon after SIGTERM: the process ends when it has returned.

  After GRACE seconds the process ends in any case.
  """
  _graceful.set()
  try:
    yield
  finally:
    _graceful.clear()
  if told():
    _stop(_told[0], 143)


def told() -> bool:
  """Has this process, or by `tell` another one of its run, been told to stop?"""
  return bool(_told)


def tell(how: str = "with another process") -> None:
  """Tells this process to stop: now, or in a `grace` when that ends or GRACE seconds have passed."""
  _told.append(how)
  if not _graceful.is_set():
    _stop(how, 143)
  timer = threading.Timer(GRACE, _stop, [how, 143])
  timer.daemon = True
  timer.start()


def keep_signals() -> None:
  """Takes signals back from a library that has replaced the handlers of `command`."""
  for number in SIGNALS:
    if signal.getsignal(number) is _heard:
      signal.signal(number, _heard)


def _take_signals():
  """Handles signals at once, even while the main thread is inside a library for minutes.

  They stay handled until the process has ended, which takes a while after the command has.
  """
  ours = signal.getsignal(signal.SIGTERM) is _heard
  if ours or threading.current_thread() is not threading.main_thread():
    return
  for number in SIGNALS:
    signal.signal(number, _heard)
  read, write = os.pipe()
  os.set_blocking(write, False)
  signal.set_wakeup_fd(write, warn_on_full_buffer=False)
  threading.Thread(target=_listen, args=[read], daemon=True).start()
  # After that Python has no handlers any more, and SIGTERM would change the exit code.
  atexit.register(signal.signal, signal.SIGTERM, signal.SIG_IGN)


def _listen(pipe):
  """Handles the signals whose numbers Python writes to the pipe."""
  while number := os.read(pipe, 1):
    if signal.getsignal(number[0]) is _heard:  # else somebody else deals with it meanwhile
      _heard(number[0])


def _heard(number, frame=None):
  """Deals with a signal, whichever thread is the first to hear of it."""
  name, code = SIGNALS[number]
  if number == signal.SIGTERM:
    tell(f"by {name}")
  else:
    _stop(f"by {name}", code)


def _stop(how, code):
  """Ends the process at once, in one line."""

  def say():
    with contextlib.suppress(Exception):
      sys.stdout.flush()
    os.write(2, f"\ngen_ssd: stopped {how}; the same command continues\n".encode())

  _ending.acquire()
  speaker = threading.Thread(target=say, daemon=True)  # a pipe that nobody reads may be full
  speaker.start()
  speaker.join(2)
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
