"""The bundled family of problems."""

import collections
import itertools
import re

import numpy as np
import pytest

from gen_ssd.errors import UserError
from gen_ssd.models import word_level
from gen_ssd.problems import bundled


def stream(split, count, **options):
  return list(itertools.islice(bundled.stories(split, **options), count))


def check_sums(text, ledger=False):
  """Every `a + b - c = d.` of a text is right; returns [(a, [changes], d)].

  In a ledger a sum may go on from the one before: `20 + 7 = 27. - 3 = 24.`
  """
  found = []
  for start, terms, right in re.findall(r"(\d+)?((?: [+-] \d+)+) = (\d+)\.", text):
    assert start or ledger, text
    start = int(start) if start else found[-1][-1]
    terms = [int(x.replace(" ", "")) for x in re.findall(r"[+-] \d+", terms)]
    assert start + sum(terms) == int(right), text
    found.append((start, terms, int(right)))
  assert text.count("=") == len(found)
  return found


# ---------------------------------------------------------------- stories


def test_splits_are_disjoint_and_without_repeats():
  texts = {split: [p.problem for p in bundled.problems(split, 1500)] for split in bundled.SPLITS}
  for split, found in texts.items():
    assert len(set(found)) == 1500
    assert {bundled.split_of(t) for t in found} == {split}
  assert len(set().union(*texts.values())) == 4500


def test_splits_cover_everything_in_their_shares():
  rng = np.random.default_rng(0)
  found = [bundled.split_of(bundled.draw_story(rng, 3).text()) for _ in range(2000)]
  assert abs(found.count("train") / 2000 - 0.70) < 0.04
  assert abs(found.count("cold_start") / 2000 - 0.15) < 0.03
  assert abs(found.count("test") / 2000 - 0.15) < 0.03


def test_same_seed_same_stream_and_more_go_on():
  assert bundled.problems("test", 40, seed=3) == bundled.problems("test", 60, seed=3)[:40]
  assert bundled.problems("test", 40, seed=3) != bundled.problems("test", 40, seed=4)


def test_unknown_split():
  with pytest.raises(ValueError, match="problems.split is 'dev'.*cold_start.*test.*train"):
    bundled.problems("dev", 1)


@pytest.mark.parametrize("levels", [(), (1,), (2, 7), (0,)])
def test_unknown_levels(levels):
  with pytest.raises(ValueError, match="levels is .*: it must be some of"):
    bundled.problems("train", 1, levels=levels)


@pytest.mark.parametrize("split", bundled.SPLITS)
def test_more_problems_than_there_are_is_refused_at_once(split):
  most = bundled.MOST[split]
  for count in (most + 1, 300_000_000, 10**30):
    message = f"^{count} bundled problems of the split {split} are asked for.*has only {most}$"
    with pytest.raises(UserError, match=message):
      bundled.problems(split, count)


def test_the_stream_ends(monkeypatch):
  monkeypatch.setitem(bundled.MOST, "test", 5)
  assert len(list(bundled.stories("test"))) == len(bundled.problems("test", 5)) == 5


def test_totals_stay_between_10_and_99_and_levels_count_the_changes():
  levels = []
  for story, problem in stream("train", 1000):
    totals = list(itertools.accumulate([story.start, *(a for _, a in story.changes)]))
    assert all(10 <= t <= 99 for t in totals)
    assert problem.answer == str(totals[-1]) == str(story.total)
    assert problem.level == len(story.changes) and problem.problem == story.text()
    assert (problem.source, problem.split) == ("bundled", "train")
    amounts = [abs(a) for _, a in story.changes]
    assert len(set(amounts)) == len(amounts) and set(amounts) <= set(range(2, 10))
    assert all(verb in (bundled.GAINS if a > 0 else bundled.LOSSES) for verb, a in story.changes)
    numbers = [int(x) for x in re.findall(r"\d+", problem.problem)]
    assert numbers == [story.start, *amounts]  # the text tells the story, and nothing else
    levels.append(problem.level)
  assert set(levels) == set(bundled.LEVELS)
  assert all(levels.count(level) > 100 for level in bundled.LEVELS)


def test_only_the_levels_asked_for():
  assert {p.level for p in bundled.problems("train", 50, levels=(3, 5))} == {3, 5}


def test_a_story_by_hand():
  story = bundled.Story("Ann", "eggs", 20, (("buys", 7), ("drops", -3), ("wins", 9)))
  assert story.total == 33
  assert story.text() == (
    "Ann has 20 eggs. She buys 7, drops 3 and wins 9. How many eggs does she have now?"
  )


# ---------------------------------------------------------------- solutions

MIXED = [{"fine": 1}, {"coarse": 1}, {"detour": 1}, {"fine": 1, "detour": 3}, None]


@pytest.mark.parametrize("ways", MIXED, ids=str)
def test_every_solution_is_right_in_every_step(ways):
  rng = np.random.default_rng(0)
  for story, problem in stream("train", 300):
    text = bundled.solution(story, rng, ways)
    steps = check_sums(text)
    assert re.findall(r"\\boxed\{(.*?)\}", text) == [problem.answer]
    assert text.endswith(bundled.LAST.format(problem.answer))
    totals = [story.start, *(end for *_, end in steps)]
    assert [start for start, *_ in steps] == totals[:-1] and totals[-1] == story.total
    assert all(10 <= t <= 99 for t in totals)
    amounts = [a for _, a in story.changes]
    written = [x for _, changes, _ in steps for x in changes]
    if ways == {"fine": 1}:
      assert written == amounts and len(steps) == len(amounts)
    elif ways == {"coarse": 1}:
      assert written == amounts and len(steps) == -(-len(amounts) // 2)
    elif ways == {"detour": 1}:
      assert len(steps) == 2 * len(amounts)
      assert [a + b for a, b in zip(written[::2], written[1::2])] == amounts
      assert all(a * b > 0 for a, b in zip(written[::2], written[1::2]))  # both the same way


def test_the_ways_are_mixed_within_one_solution():
  rng = np.random.default_rng(0)
  story = bundled.Story("Ann", "eggs", 50, tuple(("buys", 4) for _ in range(6)))
  counts = {len(check_sums(bundled.solution(story, rng))) for _ in range(200)}
  assert len(counts) > 4


@pytest.mark.parametrize(
  "text,ways",
  [
    ("20 + 7 = 27. 27 - 3 = 24. 24 + 9 = 33. So \\boxed{33}.", "fine fine fine"),
    ("20 + 7 - 3 = 24. 24 + 9 = 33. So \\boxed{33}.", "coarse fine"),
    ("20 + 7 = 27. 27 - 3 + 9 = 33.", "fine coarse"),
    ("20 + 4 = 24. 24 + 3 = 27. 27 - 1 = 26. 26 - 2 = 24. 24 + 9 = 33.", "detour detour fine"),
    ("20 + 7 = 28. 28 - 3 = 1.", "fine fine"),  # the operations are right
    ("20 + 7 = 27. 27 + 9 = 36.", "fine fine"),  # one is left out
    ("20 + 7 = 27. 27 + 7 = 34. 34 - 3 = 31.", "fine other fine"),  # one is done twice
    ("20 + 7 - 3 + 9 = 33.", "other"),
    ("20 + 9 - 3 = 26.", "other"),  # in another order
    ("20 + 8 = 28. 28 - 1 = 27. 27 - 3 = 24.", "other other fine"),  # no detour turns round
    ("20 + 4 = 24. So", "other"),
    ("So \\boxed{33}.", ""),
    ("", ""),
  ],
)
def test_the_ways_of_a_text_by_hand(text, ways):
  story = bundled.Story("Ann", "eggs", 20, (("buys", 7), ("drops", -3), ("wins", 9)))
  assert bundled.ways(story.text(), text) == ways.split()


def test_a_problem_of_another_family_has_no_ways():
  for problem in (
    "What is 20 + 7?",
    "Ann has 20 eggs. She eyes 7. How many eggs does she have now?",
  ):
    assert bundled.ways(problem, "20 + 7 = 27.") is None


def test_solutions_of_one_way_are_recognised_and_mixed_ones_have_their_shares():
  rng, counts = np.random.default_rng(0), collections.Counter()
  for story, problem in stream("train", 1000):
    for way in ("fine", "detour"):
      found = bundled.ways(problem.problem, bundled.solution(story, rng, {way: 1}))
      assert found == [way] * len(story.changes)
    coarse = bundled.ways(problem.problem, bundled.solution(story, rng, {"coarse": 1}))
    pairs, left = divmod(len(story.changes), 2)
    assert coarse == ["coarse"] * pairs + ["fine"] * left
    counts.update(bundled.ways(problem.problem, bundled.solution(story, rng)))
  assert counts.keys() == {"fine", "coarse", "detour"}
  share = counts["detour"] / counts.total()  # a last change alone cannot be coarse
  assert share == pytest.approx(bundled.WAYS["detour"], abs=0.03)


def test_plain_texts_are_right_and_never_solve():
  rng = np.random.default_rng(0)
  texts = [bundled.plain_text(rng) for _ in range(600)]
  assert not any("boxed" in t or "So" in t.split() for t in texts)
  for text in texts:
    check_sums(text, ledger=True)
  assert 100 < sum("How many" in t for t in texts) < 500


def test_lessons_never_show_a_problem_of_another_split():
  rng = np.random.default_rng(0)
  lessons = [bundled.lesson(rng) for _ in range(400)]
  asked = [(p, t) for p, t in lessons if p is not None]
  assert 120 < len(asked) < 280
  assert all(bundled.split_of(p) == "train" and "\\boxed{" in t for p, t in asked)
  for _, text in lessons:
    assert check_sums(text)


def test_sums_have_at_most_so_many_operations_and_stay_in_range():
  rng = np.random.default_rng(0)
  for most in (1, 2):
    found = [one for _ in range(200) for one in check_sums(bundled.sums(rng, most))]
    assert {len(changes) for _, changes, _ in found} == set(range(1, most + 1))
    for start, changes, _ in found:
      assert all(10 <= t <= 99 for t in itertools.accumulate([start, *changes]))


def test_the_vocabulary_covers_every_text(tmp_path):
  words = [*bundled.vocabulary(), "+", "-", "=", "\\boxed{"]
  tokenizer = word_level.word_level_tokenizer(words, tmp_path)
  rng = np.random.default_rng(0)
  texts = [bundled.plain_text(rng) for _ in range(300)]
  texts += [t for pair in (bundled.lesson(rng) for _ in range(300)) for t in pair if t]
  texts += [p.problem for p in bundled.problems("test", 300)]
  for text in texts:
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.unk_token_id not in ids and tokenizer.decode(ids) == text
  written = {w.strip(".,?") for text in texts for w in text.split()}
  assert set(bundled.vocabulary()) <= written  # and no word is there for nothing
