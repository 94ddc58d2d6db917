"""The child process that runs math-verify. children.Children starts it as a script; never import it.

It reads lines of JSON, [gold, answer, seconds], from stdin, and writes one verdict per line to
stdout. It ends when stdin ends, and by SIGPROF when a pair needs more than its seconds of CPU time.
"""

import contextlib
import json
import logging
import resource
import signal
import sys

from math_verify import parse
from math_verify import verify


def _differ(gold, answer):
  """Are both small numbers, and different ones? math-verify rounds to six places, which hides that."""
  if not all(getattr(x, "is_number", False) for x in (gold, answer)):
    return False
  a, b = gold.evalf(30), answer.evalf(30)
  largest = max(abs(a), abs(b))
  return bool(largest < 1e-3 and abs(a - b) > 1e-5 * largest)


def grade(gold: str, answer: str) -> str:
  """Verdict of math-verify on two bare answers; 'unverifiable' when it cannot parse the gold."""
  # The time limits of math-verify are off: it applies three in turn, and returns False at each.
  try:
    golds = parse(rf"\boxed{{{gold}}}", parsing_timeout=None, raise_on_error=True)
    answers = parse(rf"\boxed{{{answer}}}", parsing_timeout=None, raise_on_error=True)
    # It returns what it cannot parse as a string, which is often only part of the answer.
    golds = [g for g in golds if not isinstance(g, str)]
    if not golds:
      return "unverifiable"
    same = verify(golds, answers, timeout_seconds=None, raise_on_error=True)
    return "right" if same and not _differ(golds[0], answers[0]) else "wrong"
  except Exception:  # sympy raises many types of exception on malformed input
    return "unverifiable"


def main() -> None:
  """Answers requests until stdin ends."""
  out, sys.stdout = sys.stdout, sys.stderr  # what libraries print must not be read as a verdict
  logging.disable(logging.CRITICAL)
  signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process, also within C code
  # What would need more memory than this raises MemoryError, and leaves the process as it was, so
  # that the verdict depends on the pair only. Not every system has this limit.
  with contextlib.suppress(ValueError, OSError):
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
  grade("1/2", "0.5")  # triggers lazy imports before the first time limit starts
  print("ready", file=out, flush=True)
  for line in sys.stdin:
    gold, answer, seconds = json.loads(line)
    signal.setitimer(signal.ITIMER_PROF, seconds)  # CPU time: a busy machine changes no verdict
    result = grade(gold, answer)
    signal.setitimer(signal.ITIMER_PROF, 0)
    print(result, file=out, flush=True)


if __name__ == "__main__":
  main()
