"""Extracts answers from texts and grades them: 'right', 'wrong' or 'unverifiable'."""

from collections import Counter
from collections.abc import Iterable
import contextlib
import json
import math
from multiprocessing.connection import wait
from pathlib import Path
import re
import signal
from subprocess import PIPE
from subprocess import Popen
import sys
from typing import Literal, NamedTuple
import weakref

from gen_ssd.problems import forms

Verdict = forms.Verdict
GradedBy = Literal["rule", "math-verify", "timeout", "crash"]


class Grade(NamedTuple):
  """A verdict and what it comes from; after a timeout or a crash it is 'unverifiable'."""

  verdict: Verdict
  graded_by: GradedBy


# The net under the limit on CPU time, for a child that hangs without computing. Generous: a busy
# machine, on which a child gets little of a CPU, must not change a verdict.
WALL_SECONDS = 60  # per CPU second
START_SECONDS = 600  # wall-clock, for the imports of a child

CHILD = str(Path(__file__).resolve().with_name("math_verify_child.py"))
# A minus after a word or a closing bracket is a subtraction, not a sign.
LAST_NUMBER = re.compile(rf"((?<![\w)\]}}])-)?(?:\\?\$)?({forms.DIGITS})", re.ASCII)
# Escapes, boxes with braces, boxes without (`\boxed 5`), and single braces.
BOX_TOKENS = re.compile(
  r"\\\\|\\[{}]|(?P<box>\\f?box(?:ed)?\s*\{)"
  r"|\\f?box(?:ed)?(?![A-Za-z])\s*(?P<bare>(?=[-+.\d\\])(?:[^\s${}]|\{[^{}]*\})+)|[{}]"
)


def _after_thinking(text):
  """The text after the last `</think>`; empty when a `<think>` is still open."""
  tail = text.rpartition("</think>")[2]
  return "" if "<think>" in tail else tail


def extract_boxed(text: str) -> str | None:
  r"""Content of the last complete, non-empty \boxed{} or \fbox{} after the thinking, or None.

  Of nested boxes it is the inner one.
  """
  text, stack, last, content = _after_thinking(text), [], -1, None
  for token in BOX_TOKENS.finditer(text):
    start, found = token.start(), ""
    if token["bare"]:
      found = token["bare"].rstrip(".,;:!?\\")
    elif token["box"] or token[0] == "{":
      stack.append((start, token.end(), bool(token["box"])))
    elif token[0] == "}" and stack:
      start, inside, boxed = stack.pop()
      found = text[inside : token.start()].strip() if boxed and start > last else ""
    if found:
      last, content = start, found
  return content


def _join_thousands(text):
  """Replaces LaTeX's thousands separators by commas, and the Unicode minus by a hyphen."""
  return re.sub(r"\{,\}|,\\!|(?<=\d)\\,(?=\d{3}(?!\d))", ",", text).replace("\u2212", "-")


def extract_last_number(text: str) -> str | None:
  """The last number after the thinking as plain digits ('-1234.5'), or None; 4 for `3/4`."""
  numbers = LAST_NUMBER.findall(_join_thousands(_after_thinking(text)))
  return "".join(numbers[-1]).replace(",", "") if numbers else None


def _normal(answer):
  """The answer without boxes, spacing commands, dollar signs and final full stop; one \\frac."""
  answer = forms.plain((extract_boxed(answer) if "box" in answer else None) or answer)
  answer = re.sub(r"\\!|\\?\$|\\(?:left|right)(?![A-Za-z])\.?", "", _join_thousands(answer))
  answer = re.sub(r"\\[dt]frac", r"\\frac", re.sub(r"(?<!\\)\\[,;: ]|~", " ", answer))
  # Keep spaces that separate: `3 1/2` is not `31/2`, `1, 200` is not `1,200`.
  answer = re.sub(r"(?<![A-Za-z0-9,])\s+|\s+(?![A-Za-z0-9])", "", answer)
  return answer.removesuffix(".")


def _is_number(answer):
  return bool(forms.NUMBER.fullmatch(_normal(answer)))


def compare(gold: str, answer: str) -> Verdict | None:
  """Verdict on two bare answers, or None when only math-verify can tell. Starts no process."""
  gold, answer = _normal(gold), _normal(answer)
  if not gold or not answer:
    return "wrong" if gold else "unverifiable"
  return forms.decide(gold, answer)


def verdict(gold: str, text: str) -> Verdict | None:
  """Verdict on a text by its boxed answer, or None when only math-verify can tell.

  This is the rule for keeping traces: a text without a complete box is 'wrong', whatever its last
  number is. So is a text that was cut off at the length limit; count those separately.
  """
  return compare(gold, extract_boxed(text) or "")


def last_number_right(gold: str, text: str) -> bool | None:
  """Whether the boxed number, or else the last number, equals gold; None if gold is no number.

  More lenient than `verdict`; use it to measure models, not to keep traces.
  """
  if not _is_number(gold):
    return None
  box = extract_boxed(text) or ""
  number = box if _is_number(box) else extract_last_number(box) or extract_last_number(text)
  return compare(gold, number or "") == "right"


def _kill(child):
  with contextlib.suppress(OSError), child:  # __exit__ of Popen closes its pipes and reaps it
    child.kill()


class Grader:
  """Grades answers. math-verify, in a child process, decides what `compare` cannot.

  The child is a fresh interpreter without JAX, not a fork. It starts when it is first needed. Use
  `with` or call `close`; use it from one thread at a time.

  A verdict depends on the pair, not on how busy the machine is. `seconds` is the CPU time for a
  pair. One that needs more is a timeout: 'unverifiable', and not tried again. A child that dies
  otherwise, or that is still silent after a long time of the wall clock, is a crash, for which the
  pair may not be to blame: the machine was short of memory, for example. The pair is tried once more
  in a fresh child, and only a second crash makes it 'unverifiable'. Everything but a crash is
  remembered for equal pairs, which need not be wrong because the machine once was in trouble.

  `counts` has the number of pairs decided by `compare` (fast) and given to the child (slow), of
  timeouts, and of crashes, those included after which a second child had an answer.

  Raises ValueError when `seconds` is not above 0.
  """

  def __init__(self, seconds: float = 10.0):
    if not seconds > 0:
      raise ValueError(f"seconds is {seconds}; it must be above 0")
    self.seconds, self.counts, self._cache, self._child = seconds, Counter(), {}, None

  def __enter__(self) -> "Grader":
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def close(self) -> None:
    """Kills and reaps the child, if there is one. The grader can still be used."""
    if self._child:
      self._child = None
      self._end()

  def grade(self, gold: str, text: str) -> Grade:
    """Grade of a text by its boxed answer; 'wrong' without a complete box, see `verdict`."""
    return self._grade(gold, extract_boxed(text) or "")

  def equivalent(self, a: str, b: str) -> bool:
    """Whether two bare answers are equal in either order: math-verify is not symmetric."""
    return self.compare(a, b) == "right" or self.compare(b, a) == "right"

  def compare(self, gold: str, answer: str) -> Verdict:
    """Verdict on two bare answers. Raises RuntimeError when math-verify does not start."""
    return self._grade(gold, answer).verdict

  def _grade(self, gold, answer):
    if result := compare(gold, answer):
      self.counts["fast"] += 1
      return Grade(result, "rule")
    pair = _normal(gold), _normal(answer)
    if found := self._cache.get(pair):
      return found
    self.counts["slow"] += 1
    found = self._ask(pair)
    if found.graded_by != "crash":
      self._cache[pair] = found
    return found

  def _ask(self, pair):
    for _ in range(2):
      reply, code = self._reply(pair)
      if reply:
        return Grade(reply, "math-verify")
      if code == -signal.SIGPROF:
        self.counts["timeouts"] += 1
        return Grade("unverifiable", "timeout")
      self.counts["crashes"] += 1
    return Grade("unverifiable", "crash")

  def _reply(self, pair):
    """What the child says of the pair, and its return code; without a reply, it has ended."""
    child, reply = self._child or self._start(), b""
    try:
      with contextlib.suppress(BrokenPipeError):  # the child has died
        child.stdin.write(json.dumps([*pair, self.seconds]).encode() + b"\n")
        child.stdin.flush()
      if wait([child.stdout], WALL_SECONDS * self.seconds):
        reply = child.stdout.readline()
        if not reply:
          child.wait()  # before close kills it: the return code tells a timeout
    finally:  # after Ctrl-C too: a late reply must not be taken for that to the next pair
      if not reply:
        self.close()
    return reply.decode().strip(), child.returncode

  def _start(self):
    # -P: modules in its folder must not shadow the standard library. A new session: Ctrl-C must
    # reach this process only.
    command = [sys.executable, "-P", "-W", "ignore", CHILD]
    for _ in range(2):  # the first may have been killed, for want of memory for example
      child = self._child = Popen(command, stdin=PIPE, stdout=PIPE, start_new_session=True)
      self._end = weakref.finalize(self, _kill, child)  # without close, and at exit
      if wait([child.stdout], START_SECONDS) and child.stdout.readline() == b"ready\n":
        return child
      self.close()
    raise RuntimeError(f"math-verify did not start; is it installed for {sys.executable}?")


def majority(answers: Iterable[str | None], grader: Grader) -> str | None:
  """Majority vote (self-consistency, Wang et al., 2023, arXiv:2203.11171) over equal answers.

  Returns the first answer of the largest class of equal ones; of several largest, the one seen
  first. Answers that are None do not vote. None when nothing votes.
  """
  votes = Counter()
  for answer in (a for a in answers if a is not None):
    votes[next((seen for seen in votes if grader.equivalent(seen, answer)), answer)] += 1
  return max(votes, key=votes.get, default=None)


def pass_at_k(n: int, c: int, k: int) -> float:
  """Unbiased estimate of P(at least one of k samples is right), from c right ones of n.

  Chen et al., 2021, arXiv:2107.03374, equation 1. Raises ValueError unless 0 <= c <= n and
  1 <= k <= n.
  """
  if not (0 <= c <= n and 1 <= k <= n):
    raise ValueError(f"n={n}, c={c}, k={k}: need 0 <= c <= n and 1 <= k <= n")
  return 1 - math.prod(1 - k / i for i in range(n - c + 1, n + 1)) if n - c >= k else 1.0
