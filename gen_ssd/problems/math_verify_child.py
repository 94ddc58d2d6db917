"""The process around math-verify; started by answers.Verifier as a script, never imported.

Reads lines of JSON [gold, answer, seconds], writes one verdict a line, ends when stdin ends.
"""

import contextlib
import json
import logging
import math
import resource
import signal
import sys

from math_verify import parse
from math_verify import verify


def judge(gold: str, answer: str) -> str:
  """The verdict of math-verify on two bare answers; 'unverifiable' if it cannot parse the gold."""
  # Its own time limits are off: three of them add up, and they end in a silent False.
  try:
    golds = parse(rf"\boxed{{{gold}}}", parsing_timeout=None, raise_on_error=True)
    answers = parse(rf"\boxed{{{answer}}}", parsing_timeout=None, raise_on_error=True)
    # What it cannot parse it returns as a string, often only a piece of it.
    golds = [g for g in golds if not isinstance(g, str)]
    if not golds:
      return "unverifiable"
    same = verify(golds, answers, timeout_seconds=None, raise_on_error=True)
    return "right" if same else "wrong"
  except Exception:  # sympy raises anything on odd input
    return "unverifiable"


def main():
  out, sys.stdout = sys.stdout, sys.stderr  # what libraries print must not look like a verdict
  logging.disable(logging.CRITICAL)
  with contextlib.suppress(ValueError, OSError):  # not every system has this limit
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
  judge("1/2", "0.5")  # loads what is loaded late, before the clock runs
  print("ready", file=out, flush=True)
  for line in sys.stdin:
    gold, answer, seconds = json.loads(line)
    signal.alarm(math.ceil(seconds) + 5)  # in case the parent, who kills in time, has died
    print(judge(gold, answer), file=out, flush=True)
    signal.alarm(0)


if __name__ == "__main__":
  main()
