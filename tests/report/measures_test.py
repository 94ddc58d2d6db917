"""pass@k, majority votes, last numbers, diversity and picks of rows worked out by hand."""

import numpy as np
import pytest

from gen_ssd.problems import answers
from gen_ssd.report import measures


@pytest.fixture(scope="module")
def grader():
  with answers.Grader() as found:
    yield found


def row(uuid, attempt, text, gold="4"):
  right = answers.verdict(gold, text) == "right"
  return {
    "uuid": uuid,
    "attempt": attempt,
    "text": text,
    "answer": gold,
    "verdict": "right" if right else "wrong",
  }


def samples(uuid, *found, gold="4"):
  return [row(uuid, i, rf"so \boxed{{{x}}}", gold) for i, x in enumerate(found)]


def test_pass_at_k_is_the_mean_of_the_unbiased_estimates(grader):
  rows = samples("a", "4", "5", "6", "7") + samples("b", "4", "4", "5", "6")
  found = measures.sampled([rows], 2, grader)
  at = {k: x["value"] for k, x in found["pass_at_k"].items()}
  assert found["samples"] == 4 and [*at] == ["1", "2", "4"]
  assert at["1"] == pytest.approx((1 / 4 + 2 / 4) / 2)
  assert at["2"] == pytest.approx((1 - 3 / 6 + 1 - 1 / 6) / 2)
  assert at["4"] == 1.0


def test_a_problem_without_answers_fails_at_every_k(grader):
  found = measures.sampled([samples("a", "4", "4")], 2, grader)
  assert [x["value"] for x in found["pass_at_k"].values()] == [0.5, 0.5]
  assert [x["value"] for x in found["maj_at_k"].values()] == [0.5, 0.5]


def test_equal_answers_vote_together_whatever_their_form(grader):
  rows = samples("a", "5", "1/2", r"\frac{1}{2}", "5", "0.5", gold="0.5")
  assert measures.sampled([rows], 1, grader)["maj_at_k"]["5"]["value"] == 1.0
  rows = samples("a", "5", "1/2", "5", r"\frac{1}{2}", gold="0.5")  # a tie: the first seen wins
  assert measures.sampled([rows], 1, grader)["maj_at_k"]["4"]["value"] == 0.0


def test_texts_without_an_answer_do_not_vote(grader):
  rows = [row("a", i, "no box") for i in range(3)] + samples("a", "4")
  for attempt, r in enumerate(rows):
    r["attempt"] = attempt
  found = measures.sampled([rows], 1, grader)
  assert found["maj_at_k"]["4"]["value"] == 1.0
  assert found["maj_at_k"]["1"]["value"] == pytest.approx(1 / 4, abs=0.15)  # of 64 subsets


def test_one_sample_has_no_pass_at_k(grader):
  found = measures.sampled([samples("a", "4")], 1, grader)
  assert found.keys() == {"samples", "last_number"}


def test_last_numbers_count_only_where_the_answer_is_a_number(grader):
  rows = [row("a", 0, "the result is 4"), row("b", 0, "so x + 1", gold="x+1")]
  found = measures.sampled([rows], 2, grader)["last_number"]
  assert (found["value"], found["n"]) == (1.0, 1)
  assert measures.sampled([rows[1:]], 1, grader)["last_number"] is None


def test_intervals_resample_problems_not_samples(grader):
  few = sum((samples(f"p{i}", *["4" if i % 2 else "5"] * 2) for i in range(16)), [])
  many = sum((samples(f"p{i}", *["4" if i % 2 else "5"] * 8) for i in range(16)), [])
  ci = lambda rows: measures.sampled([rows], 16, grader)["pass_at_k"]["1"]["ci"]
  assert ci(few) == ci(many)  # equal samples of a problem say nothing new


def test_diversity_by_hand():
  words = "a b c d e"
  found = measures.diversity([row("a", 0, words), row("b", 0, words)])
  assert found == {"distinct_ngrams": 2 / 4, "distinct_texts": 1 / 2, "shared_ngrams": None}
  found = measures.diversity([row("a", 0, words), row("a", 1, "a b c d f")])
  assert found["distinct_ngrams"] == 3 / 4 and found["shared_ngrams"] == 1 / 2


def test_numbers_do_not_make_texts_different():
  rows = [row("a", 0, "then 3 + 4 = 7"), row("b", 0, "then 30 + 1,400 = 1,430")]
  assert measures.diversity(rows)["distinct_texts"] == 1 / 2


def test_diversity_looks_at_equally_much_of_long_and_short_lists():
  some = lambda n: [row(f"p{i}", 0, f"w{chr(97 + i % 26)}x " * 40) for i in range(n)]
  few, many = measures.diversity(some(400)), measures.diversity(some(4000))
  assert few["distinct_ngrams"] == pytest.approx(many["distinct_ngrams"], rel=0.3)


def test_nothing_has_no_diversity():
  found = measures.diversity([])
  assert all(x is None for x in found.values())


def test_shares_of_ways_by_hand():
  problem = "Ann has 20 eggs. She buys 7, drops 3 and wins 9. How many eggs does she have now?"
  texts = ("20 + 7 - 3 = 24. 24 + 9 = 33.", "20 + 7 = 27. 27 - 1 = 26. 26 - 2 = 24. 1 + 1 = 2.")
  rows = [{"problem": problem, "text": text} for text in texts]
  shares = {"fine": 2 / 5, "coarse": 1 / 5, "detour": 1 / 5, "other": 1 / 5}
  assert measures.ways(rows) == {"steps": 5, **shares}
  assert measures.ways([{"problem": "What is 20 + 7?", "text": "20 + 7 = 27."}]) is None


def chunk(text, count, resamples=0):
  return {"text": text, "count": count, "resamples": resamples}


def loser(chunk, text, count, resample=0):
  return dict(uuid="a", attempt=0, chunk=chunk, resample=resample, text=text, count=count)


def test_picks_by_hand():
  chunks = [chunk("1 + 1.", 4), chunk(" 1 + 1.", 4, resamples=1), chunk(" So 2.", 3)]
  lost = [
    loser(0, "1.", 2),
    loser(0, "1 + 1 + 0.", 6),
    loser(1, "drawn again", 9),
    loser(1, "2.", 2, resample=1),
    loser(2, "So 2.", 3),  # all candidates are equal: nothing was picked
  ]
  found = measures.picks([{"uuid": "a", "attempt": 0, "chunks": chunks}], lost)
  chance = {"longest": (1 / 3 + 1 / 2) / 2, "shortest": (1 / 3 + 1 / 2) / 2, "repeated": 1 / 4}
  assert found.pop("chance") == pytest.approx(chance)
  assert found == {"rounds": 2, "longest": 1 / 2, "shortest": 0, "repeated": 1 / 2}


def test_chance_picks_what_a_random_rule_picks():
  rng = np.random.default_rng(0)
  rows, lost = [], []
  for i in range(400):
    counts = rng.integers(1, 9, 4).tolist()
    own, *others = [{**loser(0, "x" * n, n), "uuid": f"{i}"} for n in counts]
    rows.append({"uuid": f"{i}", "attempt": 0, "chunks": [chunk(own["text"], own["count"])]})
    lost += others
  found = measures.picks(rows, lost)
  for name in ("longest", "shortest"):
    assert found[name] == pytest.approx(found["chance"][name], abs=0.06)


def test_without_candidates_nothing_was_picked():
  assert measures.picks([{"uuid": "a", "attempt": 0, "chunks": [chunk("1.", 2)]}], []) is None
