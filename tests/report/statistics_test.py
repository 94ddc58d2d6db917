"""Accuracy and its uncertainty, on cases worked out by hand."""

import numpy as np
import pytest

from gen_ssd.report import statistics


def rows(*verdicts, stop="ended", size=10):
  """One row per verdict; a verdict is (uuid, verdict), or the verdict on a problem of its own."""
  pairs = [v if isinstance(v, tuple) else (f"p{i}", v) for i, v in enumerate(verdicts)]
  more = {"stop": stop, "num_tokens": size, "given_tokens": 0, "graded_by": "rule"}
  return [{"uuid": u, "verdict": v, **more} for u, v in pairs]


def accuracy(rows, total, **options):
  return statistics.accuracy([rows], total, **options)


def paired(mine, theirs):
  return statistics.paired([mine], [theirs])


def half(n):
  return rows(*["right", "wrong"] * (n // 2))


def test_problems_without_a_trace_are_wrong():
  found = accuracy(rows("right", "right", "wrong"), 8)
  assert found["accuracy"] == 2 / 8 and found["n"] == 8
  low, high = found["ci"]
  assert 0 <= low < 2 / 8 < high < 1


def test_several_answers_count_as_their_mean():
  found = accuracy(
    rows(
      ("a", "right"), ("a", "wrong"), ("a", "wrong"), ("a", "right"), ("b", "right"), ("c", "wrong")
    ),
    4,
  )
  assert found["accuracy"] == (0.5 + 1 + 0 + 0) / 4  # b has one answer, d none
  assert statistics.per_problem(rows(("a", "right"), ("a", "unverifiable"))) == {"a": 0.5}


def test_the_other_figures():
  found = accuracy(
    [
      *rows("right", size=4),
      *rows("wrong", stop="length", size=8),
      *rows("unverifiable", size=6),
      *rows(("z", "unverifiable"), size=6),
    ],
    5,
  )
  assert (found["mean_tokens"], found["truncated"], found["unverifiable"]) == (6, 0.25, 2)
  nothing = accuracy([], 5)
  assert nothing["accuracy"] == 0 and nothing["mean_tokens"] is None
  assert (nothing["truncated"], nothing["unverifiable"]) == (0, 0)


def _graded_by(*causes, **more):
  return [
    {**r, "graded_by": c, **more} for r, c in zip(rows(*["unverifiable"] * len(causes)), causes)
  ]


def test_timeouts_and_crashes_are_counted_and_named_below_the_table():
  answered = {
    "standard_kd": [rows("right"), rows("wrong")],
    "gen_ssd": [_graded_by("crash", "math-verify", "timeout"), _graded_by("timeout", "rule")],
  }
  traced = _graded_by("crash", "rule", "crash", "timeout", chunks=[], teacher_tokens=1)
  costs = {
    "standard_kd": statistics.collected([], [], 5),
    "gen_ssd": statistics.collected(traced, [], 5),
  }

  def results(total):
    arms = {n: {**statistics.accuracy(x, total), **costs[n]} for n, x in answered.items()}
    return {"models": {}, **statistics.results(arms, answered)}

  found = results(1)
  counts = lambda arm: {
    k: v for k, v in found["arms"][arm].items() if "timeouts" in k or "crash" in k
  }
  assert counts("gen_ssd") == {
    "answer_timeouts": 2,
    "answer_crashes": 1,
    "trace_timeouts": 1,
    "trace_crashes": 2,
  }
  assert found["arms"]["gen_ssd"]["unverifiable"] == 5
  assert [*counts("standard_kd").values()] == [0, 0, 0, 0]
  *_, paired_line, last = statistics.table(found).splitlines()
  assert paired_line.startswith("gen_ssd-standard_kd")
  assert last == (
    "gen_ssd: unverifiable because math-verify did not finish: "
    "trace timeouts 1, trace crashes 2, answer timeouts 2, answer crashes 1"
  )
  del answered["gen_ssd"], costs["gen_ssd"]
  assert "math-verify" not in statistics.table(results(1))


def test_the_interval_contains_the_mean_and_narrows_as_it_should():
  widths = []
  for n in (20, 80, 320, 1280):
    found = accuracy(half(n), n)
    low, high = found["ci"]
    assert low < found["accuracy"] == 0.5 < high
    widths.append(high - low)
    assert abs(high - low - 2 * 1.96 * 0.5 / np.sqrt(n)) < 0.25 * (high - low)
  assert widths == sorted(widths, reverse=True)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
  rng = np.random.default_rng(0)
  inside = 0
  for _ in range(200):
    right = rng.random(100) < 0.7
    low, high = accuracy(rows(*np.where(right, "right", "wrong")), 100, draws=300)["ci"]
    inside += low <= 0.7 <= high
  assert 180 <= inside <= 199


def test_answers_to_one_problem_are_not_independent_evidence():
  """The bootstrap is over problems: asking each four times must not halve the interval."""
  once = accuracy(half(100), 100)["ci"]
  again = accuracy(half(100) * 4, 100)["ci"]
  np.testing.assert_allclose(np.diff(again), np.diff(once), rtol=0.1)


@pytest.mark.parametrize("n", [1, 10, 400])
def test_all_right_and_all_wrong_are_not_certain(n):
  """Wilson's score interval: 1 / (1 + 1.96^2 / n) is its lower end when all are right."""
  wrong, right = (accuracy(rows(*[v] * n), n)["ci"] for v in ("wrong", "right"))
  assert right[1] == 1 and abs(right[0] - 1 / (1 + 1.96**2 / n)) < 1e-12
  assert wrong[0] == 0 and abs(wrong[1] - (1 - right[0])) < 1e-12
  assert accuracy([], n)["ci"] == wrong


def test_same_rows_same_interval():
  assert accuracy(half(50), 50) == accuracy(half(50), 50)


# ---------------------------------------------------------------- paired


def test_paired_difference_by_hand():
  mine = rows(("a", "right"), ("b", "right"), ("c", "wrong"), ("d", "right"), ("x", "right"))
  theirs = rows(("d", "right"), ("c", "right"), ("b", "wrong"), ("a", "wrong"), ("y", "wrong"))
  found = paired(mine, theirs)
  # x and y are answered by one side only, and wrong on the other
  assert found["difference"] == (1 + 1 - 1 + 0 + 1 + 0) / 6 and found["n"] == 6
  back = paired(theirs, mine)
  assert back["difference"] == -found["difference"]
  assert found["ci"][0] < 2 / 6 < found["ci"][1]


def test_pairing_takes_the_difficulty_of_problems_out():
  """Equal on nine of ten problems: far narrower than two accuracies apart."""
  easy = rows(*["right", "wrong"] * 90, *["right"] * 20)
  hard = rows(*["right", "wrong"] * 90, *["wrong"] * 20)
  found = paired(easy, hard)
  assert found["difference"] == pytest.approx(0.1)
  assert 0.05 < found["ci"][0] < 0.1 < found["ci"][1] < 0.15
  apart = accuracy(easy, 200)["ci"]
  assert np.diff(found["ci"]) < 0.7 * np.diff(apart)


@pytest.mark.parametrize(
  "mine,theirs,difference",
  [("right", "right", 0), ("wrong", "wrong", 0), ("right", "wrong", 1), ("wrong", "right", -1)],
)
def test_equal_pairs_are_not_certain_to_either_side(mine, theirs, difference):
  found = paired(rows(*[mine] * 50), rows(*[theirs] * 50))
  edge = 1.96**2 / (50 + 1.96**2)
  assert found["difference"] == difference
  np.testing.assert_allclose(found["ci"], [max(difference - edge, -1), min(difference + edge, 1)])


@pytest.mark.parametrize("count", [1, 3])
def test_arms_that_answer_alike_are_not_certainly_equal(count):
  same = [rows(*["right"] * 4, *["wrong"] * 26)] * count
  found, edge = statistics.paired(same, same), 1.96**2 / (30 + 1.96**2)
  np.testing.assert_allclose([found["difference"], *found["ci"]], [0, -edge, edge], atol=1e-12)


# ---------------------------------------------------------------- seeds


def seeds(*shares, n=200):
  """Answers of one student per share: right on that share of n problems, drawn for each student."""
  rng = np.random.default_rng(0)
  return [rows(*np.where(rng.random(n) < p, "right", "wrong")) for p in shares]


def test_the_mean_of_seeds_and_each():
  found = statistics.accuracy(
    [
      rows("right", "right", "wrong", "wrong"),
      rows(("p0", "right"), ("p3", "right"), ("p9", "right")),
    ],
    10,
  )
  assert found["seeds"] == [0.2, 0.3] and found["accuracy"] == 0.25 and found["n"] == 10
  both = statistics.paired(
    [rows("right", "wrong"), rows("right", "right")], [rows("wrong", "wrong")]
  )
  assert both["difference"] == 0.75 and both["n"] == 2


def test_seeds_that_disagree_widen_the_interval():
  agree, apart = (
    statistics.accuracy(seeds(*p), 200) for p in ([0.5] * 5, [0.1, 0.3, 0.5, 0.7, 0.9])
  )
  assert np.diff(apart["ci"]) > 3 * np.diff(agree["ci"])
  assert np.isclose(apart["accuracy"], 0.5, atol=0.05)
  theirs = seeds(0.4, 0.4, 0.4)
  close, wide = (
    statistics.paired(seeds(*p), theirs) for p in ([0.5] * 5, [0.1, 0.3, 0.5, 0.7, 0.9])
  )
  assert close["ci"][0] > 0 > wide["ci"][0]


def test_several_seeds_that_are_the_same_are_one():
  one = seeds(0.5)
  np.testing.assert_allclose(
    statistics.accuracy(one * 3, 200)["ci"], statistics.accuracy(one, 200)["ci"], atol=0.012
  )


def test_the_interval_over_seeds_covers_the_truth_about_as_often_as_it_says():
  """Seeds spread by 0.1 around 0.5: an interval over problems alone would miss it half the time."""
  rng, inside = np.random.default_rng(1), 0
  for _ in range(100):
    shares = np.clip(rng.normal(0.5, 0.1, 8), 0, 1)
    answers = [rows(*np.where(rng.random(200) < p, "right", "wrong")) for p in shares]
    low, high = statistics.accuracy(answers, 200, draws=300)["ci"]
    inside += low <= 0.5 <= high
  assert 82 <= inside <= 100
