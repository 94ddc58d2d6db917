"""Chat templates: programs that others wrote, run within limits."""

from collections.abc import Iterator
import contextlib
import os
import signal
import threading
import time
import typing

import jinja2

from gen_ssd.errors import UserError
from gen_ssd.errors import clip
from gen_ssd.errors import one_line

SECONDS = 10.0  # that one rendering may take; it takes milliseconds


class _TooLong(Exception):
  """Rendering took longer than its time limit."""


def render(tokenizer: typing.Any, messages: list[dict[str, str]], generate: bool) -> str:
  """The text of a dialogue by the tokenizer's chat template; `generate` starts an answer.

  Raises UserError when there is no template, when it fails, and when it takes too long.
  """
  name = f"the chat template of {name_of(tokenizer)}"
  if not tokenizer.chat_template:
    raise UserError(
      f"{name_of(tokenizer)} has no chat template: use the tokenizer of an "
      "instruction-tuned model, or set chat_template to a Jinja file"
    )
  with _time_limit(SECONDS):
    try:
      return tokenizer.apply_chat_template(messages, add_generation_prompt=generate, tokenize=False)
    except _TooLong:
      raise UserError(f"{name} takes more than {SECONDS:g} seconds for one dialogue") from None
    except Exception as error:  # of any kind, because the template is a program of the user
      why = one_line(error)
      if isinstance(error, jinja2.TemplateSyntaxError):
        why = f"line {error.lineno}: {why}"
      elif not isinstance(error, jinja2.TemplateError):
        why = f"{type(error).__name__}: {why}"
      roles = ", ".join(
        m["role"] for m in messages
      )  # Gemma's, for example, refuses system messages
      raise UserError(f"{name} fails on roles {roles}: {why}") from None


def choose(path: str | os.PathLike, own: typing.Any, file: str | os.PathLike) -> str | None:
  """The chat template in a file, or else a tokenizer's own: its default one if it has several.

  Raises UserError when the file cannot be read or is empty, and when the tokenizer's is no text.
  """
  if file:
    try:
      with open(file, encoding="utf-8-sig") as f:
        text = f.read().rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
      why = one_line(error)
      raise UserError(f"chat_template is {clip(str(file))}: it cannot be read: {why}") from None
    if not text.strip():
      raise UserError(f"chat_template is {clip(str(file))}: the file is empty")
    return text
  if isinstance(own, dict):
    own = own.get("default")
  if not isinstance(own, str | None):
    raise UserError(f"{clip(str(path))}: chat_template is {clip(repr(own), 40)}, wanted a text")
  return own


def name_of(tokenizer: typing.Any) -> str:
  """How messages call a tokenizer: its directory, where it came from one."""
  return tokenizer.name_or_path or type(tokenizer).__name__


def contains(text: str, part: str) -> bool:
  """Is `part` in `text`, apart from whitespace?"""
  return "".join(part.split()) in "".join(text.split())


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
  """Raises _TooLong after `seconds`, where signals can: in the main thread, and not on Windows."""
  if not hasattr(signal, "setitimer") or threading.current_thread() != threading.main_thread():
    yield
    return

  def stop(number, frame):
    raise _TooLong

  start, handler = time.monotonic(), signal.signal(signal.SIGALRM, stop)
  remaining, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, handler or signal.SIG_DFL)
    if remaining:  # a timer of whoever called goes on
      left = max(remaining - (time.monotonic() - start), 1e-3)
      signal.setitimer(signal.ITIMER_REAL, left, interval)
