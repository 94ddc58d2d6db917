"""Choosing among whole traces: every rule by hand."""
import math

import pytest

from gen_ssd import posthoc


def row(uuid, attempt, nll, ranks=None, teacher=None, starts=(0,)):
  return {"uuid": uuid, "attempt": attempt, "num_tokens": len(nll), "student_nlls": nll,
          "student_ranks": ranks or [1] * len(nll), "teacher_logprobs": teacher or [-4.0] * len(nll),
          "starts": list(starts)}


EASY = -math.log(0.9)
ROWS = [row("a", 0, [1.0, 1.0, 4.0], [1, 2, 300]), row("a", 1, [3.0], [3]),
        row("a", 2, [1.5, 1.5, 1.5, 1.9], [4, 5, 6, 7], [-EASY] * 4, [0, 2]),
        row("b", 1, [2.0, 2.0]), row("b", 0, [2.0, 2.0])]


@pytest.mark.parametrize("scorer,a,b", [
    ("perplexity", 2, 0),   # 2, 3, 1.6; ties go to the first attempt
    ("anti", 1, 0),
    ("rsr", 1, 0),          # 103/6 (300 counts as 100), 3/3, 22/6.4
    ("longest", 2, 0), ("shortest", 1, 0),
    ("drop_first", 2, 0),   # 2.5, 3 (nothing else), (1.5 + 1.9) / 2
    ("teacher_gap", 2, 0)])  # under the teacher 0.9 a token in both of its steps
@pytest.mark.parametrize("order", [1, -1])
def test_the_best_trace_of_each_problem(scorer, a, b, order):
  found = posthoc.best(ROWS[::order], scorer)
  assert [(r["uuid"], r["attempt"]) for r in found] == [("a", a), ("b", b)]


def test_nothing_kept_is_nothing_chosen():
  assert posthoc.best([], "perplexity") == []


def test_random_is_uniform_over_attempts_and_depends_on_the_seed_alone():
  rows = [row(f"{i:04x}", a, [1.0]) for i in range(600) for a in range(3)]
  one, two = (posthoc.best(rows, "random", seed=s) for s in (0, 1))
  assert one == posthoc.best(rows[::-1], "random", seed=0) != two
  for found in (one, two):
    for attempt in range(3):
      assert 150 < sum(r["attempt"] == attempt for r in found) < 250


def test_mix_long_takes_the_longest_of_one_problem_in_five():
  rows = [row(f"{i:04x}", a, [1.0] * n) for i in range(1000) for a, n in enumerate((2, 5, 3))]
  lengths = [r["num_tokens"] for r in posthoc.best(rows, "mix_long")]
  assert {*lengths} == {2, 5} and 160 < lengths.count(5) < 240
