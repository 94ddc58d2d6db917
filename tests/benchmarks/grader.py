"""Pairs per second of the grader: by rule, by math-verify with one child and all, and long answers.

  python tests/benchmarks/grader.py --json

Each figure is of the wall clock, with children already started. `long` are answers of 32,000
characters for a gold of one; `slow` are fractions of pi, no two of them equal.
"""

import argparse
import json
import os
import pathlib
import sys
import time

ROOT = pathlib.Path(__file__).parent.parent.parent
LONG = 32_000
EASY = [
  *(("18", r"\$18.00"), ("1234", "x = 1{,}234"), ("7/2", r"3\frac{1}{2}"), ("10", r"10\%")),
  *(("5", r"5\text{ dollars}"), ("x>3", r"(3,\infty)"), ("Evelyn", r"\text{evelyn}"), ("5", "6")),
]
PARTS = ["9", "{", "}", "\\", r"\sqrt{", r"\frac{1}{", r"\text{ is", "so 5, ", "\u0301\u0316", "５"]


def rate(call, pairs):
  begin = time.perf_counter()
  call(pairs)
  return len(pairs) / (time.perf_counter() - begin)


def boxed(pairs):
  return [(gold, rf"so \boxed{{{answer}}}") for gold, answer in pairs]


def hard(first, count):
  return boxed([(rf"\frac{{\pi}}{{{n}}}", rf"2\pi/{2 * n}") for n in range(first, first + count)])


def slow(workers, count):
  """Pairs per second of math-verify in `workers` children."""
  from gen_ssd.problems import answers

  with answers.Grader(workers=workers) as grader:
    pool = grader._children
    while len(pool._children) < workers or not all(c.ready for c in pool._children):
      grader.grades(hard(10**6 + grader.counts["slow"], 8 * workers))  # all have started
    return rate(grader.grades, hard(3, count))


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
  parser.add_argument("--pairs", type=int, default=400, help="that math-verify grades")
  args = parser.parse_args()
  sys.path.insert(0, str(ROOT))
  from gen_ssd.problems import answers

  workers = os.cpu_count() or 1
  long = boxed([("5", (part * LONG)[:LONG]) for part in PARTS])
  with answers.Grader() as grader:
    found = {
      "fast": rate(grader.grades, boxed(EASY) * 2000),
      "long": rate(grader.grades, long * 10),
      "slow_1": slow(1, args.pairs),
      "workers": workers,
      "slow_all": slow(workers, args.pairs),
    }
    assert not grader.counts["slow"], "what is timed as a rule's was left to math-verify"
  if args.json:
    print(json.dumps({k: round(x, 1) if isinstance(x, float) else x for k, x in found.items()}))
    return
  print(f"by rule              {found['fast']:10,.0f} pairs/s")
  print(f"32,000 characters    {found['long']:10,.0f} pairs/s")
  print(f"math-verify, 1 child {found['slow_1']:10,.0f} pairs/s")
  print(f"with {workers:3} children    {found['slow_all']:10,.0f} pairs/s")


if __name__ == "__main__":
  main()
