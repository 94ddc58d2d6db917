"""The branch trees of the page: equal candidates, pruned traces and false equations."""

import random

import pytest

from tests.report import made_run
from tests.report.made_run import K
from tests.report.made_run import page_of


def _tree(path, texts, scores, choice, **changes):
  """The page of a run with one tree of one round of candidates."""
  made_run.make(path, problems=1)
  folder = path / "traces" / "genssd"
  trace, _ = made_run.trace(random.Random(0), "gen_ssd", 0, K, 0.5)
  chunk = {
    "text": texts[choice],
    "count": 3,
    "choice": choice,
    "score": scores[choice],
    "scores": scores,
    "resamples": 0,
  }
  trace.update({"chunks": [chunk], **changes})
  place = {"uuid": trace["uuid"], "attempt": trace["attempt"], "chunk": 0, "count": 3}
  lost = [
    {**place, "resample": 0, "branch": b, "text": text, "score": score}
    for b, (text, score) in enumerate(zip(texts, scores))
    if b != choice
  ]
  made_run.write_lines(folder / "traces-00000.jsonl", [trace])
  made_run.write_lines(folder / "candidates-00000.jsonl", lost)
  return page_of(path)


def test_equal_candidates_share_a_card_with_their_numbers_and_the_kept_one_wins(tmp_path):
  texts, scores = ["one", "two", "one", "one"], [0.5, 0.9, 0.5, 0.5]
  text = _tree(tmp_path, texts, scores, choice=2)
  assert "#1, #3, #4 · ✓ kept · 3 × same text · 3 tok" in text
  assert "#2 · lost · 3 tok" in text and text.count('<div class="cell ') == 2
  assert text.count('<div class="cell kept">') == 1 and 'style="--k:2"' in text


def test_equal_lost_candidates_share_a_card_but_not_with_an_invalid_one(tmp_path):
  text = _tree(tmp_path, ["a", "b", "b", "b"], [0.5, 0.9, None, 0.7], choice=0)
  assert "#2, #4 · lost · 2 × same text · scores 0.70 to 0.90" in text
  assert "#3 · lost" in text and text.count('<div class="cell ') == 3
  assert ">0.70</span>" in text


def test_what_was_kept_without_a_score_is_not_called_invalid(tmp_path):
  chunk = {
    "count": 1,
    "choice": 0,
    "score": 0.1,
    "scores": [0.1, 0.2],
    "resamples": 0,
    "text": "a.",
  }
  given = {**chunk, "score": None, "scores": [None]}
  text = _tree(tmp_path, ["x", "y"], [0.1, 0.2], 0, chunks=[given, chunk])
  assert "#1 · ✓ kept" in text and text.count("✕ invalid</span>") == 1, "the legend's"


def test_candidates_whose_text_is_not_stored_stay_apart(tmp_path):
  made_run.make(tmp_path, problems=1)
  (tmp_path / "traces" / "genssd" / "candidates-00000.jsonl").unlink()
  text = page_of(tmp_path)
  assert "same text" not in text and "text not stored" in text


@pytest.mark.parametrize(
  "verdict,stop,said",
  [("wrong", "ended", 1), ("right", "ended", 0), ("unverifiable", "pruned", 0)],
)
def test_the_card_with_the_first_false_equation_of_a_wrong_trace_is_marked(
  tmp_path, verdict, stop, said
):
  text = _tree(
    tmp_path, ["So 3 + 4 = 8 .", "fine"], [0.1, 0.2], choice=0, verdict=verdict, stop=stop
  )
  assert text.count("first false equation: <b>3 + 4 = 8</b>") == 2 * said  # and in the list


def test_an_equation_across_two_chunks_is_marked_where_it_ends(tmp_path):
  chunk = {"count": 1, "choice": 0, "score": 0.1, "scores": [0.1, 0.2], "resamples": 0}
  chunks = [{**chunk, "text": text} for text in ("2 + 2 = 4 . 3 +", " 4 = 8", " . done")]
  text = _tree(tmp_path, ["x", "y"], [0.1, 0.2], 0, verdict="wrong", stop="ended", chunks=chunks)
  mark = text.index("first false equation: <b>3 + 4 = 8</b>")
  assert text.index("Round 2") < mark < text.index("Round 3")


def test_a_wrong_trace_without_a_false_equation_has_no_mark(tmp_path):
  text = _tree(tmp_path, ["3 + 4 = 7", "y"], [0.1, 0.2], 0, verdict="wrong", stop="ended")
  assert "first false" not in text
