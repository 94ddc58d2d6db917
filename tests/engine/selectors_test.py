"""Choosing and pruning by hand, and repetitions found and not found."""

import jax
import numpy as np
import pytest

from gen_ssd.engine import selectors

NOISE = np.zeros(1, np.float32)


def limits(threshold=np.inf, margin=-np.inf, running_margin=np.inf, beta=1.0, teacher_share=1.0):
  return selectors.Limits(
    threshold=np.array(threshold, np.float32),
    margin=np.array(margin, np.float32),
    running_margin=np.array(running_margin, np.float32),
    beta=np.array(beta, np.float32),
    teacher_share=np.array(teacher_share, np.float32),
  )


def choose(scores, valid=None, average=np.inf, **options):
  """(choice, suitable) of one row, as plain values."""
  scores = np.float32([scores])
  valid = np.ones(scores.shape, bool) if valid is None else np.array([valid], bool)
  choice = selectors.argmin(scores, valid, limits(**options), NOISE)
  suitable = selectors.suitable(scores, valid, choice, limits(**options), np.float32([average]))
  return int(choice[0]), bool(suitable[0])


@pytest.mark.parametrize(
  "scores,valid,want",
  [
    ([3, 1, 2], [1, 1, 1], 1),
    ([3, 1, 1], [1, 1, 1], 1),  # ties go to the lowest index
    ([2, 2, 2], [1, 1, 1], 0),
    ([2, 2, 2], [0, 1, 1], 1),
    ([3, 1, 2], [1, 0, 1], 2),  # an invalid candidate never wins
    ([-9, -1, -2], [0, 1, 1], 2),  # nor among negative scores
    ([7, 1, 1], [1, 0, 0], 0),
    ([5], [1], 0),
  ],
)
def test_the_lowest_valid_score_wins(scores, valid, want):
  assert choose(scores, valid) == (want, True)


@pytest.mark.parametrize("options", [{}, dict(threshold=5), dict(margin=-5)])
def test_no_valid_candidate_is_not_suitable(options):
  assert not choose([1, 2, 3], [0, 0, 0], **options)[1]


@pytest.mark.parametrize(
  "threshold,suitable", [(np.inf, True), (2.5, True), (2, True), (1.99, False), (-1, False)]
)
def test_the_winner_must_be_at_most_the_threshold(threshold, suitable):
  assert choose([4, 2, 3], threshold=threshold) == (1, suitable)


def test_a_threshold_does_not_look_at_invalid_candidates():
  assert choose([1, 6], [0, 1], threshold=5) == (1, False)


@pytest.mark.parametrize(
  "scores,valid,margin,suitable",
  [
    ([4, 1, 4], [1, 1, 1], 2, True),  # the mean is 3: the winner is 2 below
    ([4, 1, 4], [1, 1, 1], 2.01, False),
    ([4, 1, 40], [1, 1, 0], 1.5, True),  # the mean of the valid ones is 2.5
    ([4, 1, 40], [1, 1, 0], 1.6, False),
    ([2, 2, 2], [1, 1, 1], 0, True),
    ([2, 2, 2], [1, 1, 1], 0.5, False),
    ([9, 2, 9], [0, 1, 0], 0.5, False),  # alone: nothing to be better than
    ([9, 2, 9], [0, 1, 0], -np.inf, True),
  ],
)
def test_the_winner_must_be_a_margin_below_the_mean(scores, valid, margin, suitable):
  assert choose(scores, valid, margin=margin)[1] == suitable


def test_threshold_and_margin_must_both_hold():
  assert choose([4, 1, 4], threshold=1, margin=2) == (1, True)
  assert choose([4, 1, 4], threshold=0.9, margin=2) == (1, False)
  assert choose([4, 1, 4], threshold=1, margin=2.1) == (1, False)


def test_slots_do_not_touch_each_other():
  noise = np.zeros(3, np.float32)
  scores = np.float32([[1, 2], [2, 1], [1, 1]])
  valid = np.array([[True, True], [True, True], [False, False]])
  choice = selectors.argmin(scores, valid, limits(threshold=5), noise)
  suitable = selectors.suitable(
    scores, valid, choice, limits(threshold=5), np.float32([np.inf] * 3)
  )
  assert choice.tolist()[:2] == [0, 1] and suitable.tolist() == [True, True, False]
  assert choice.dtype == np.int32


@pytest.mark.parametrize(
  "running,average,suitable",
  [
    (0.5, 2, True),
    (0.5, 1.34, True),
    (0.5, 1.33, False),
    (0, 2, True),
    (0, 1.9, False),
    (0, np.inf, True),
    (np.inf, 0, True),
    (np.inf, 0.1, True),
  ],
)
def test_the_winner_must_be_at_most_a_multiple_of_the_running_mean(running, average, suitable):
  assert choose([4, 2, 3], running_margin=running, average=average) == (1, suitable)


def softmin(scores, valid, beta, n=20000):
  """Share of n evenly spread uniforms that each candidate wins."""
  tile = lambda x, dtype: np.broadcast_to(np.array(x, dtype), (n, len(x)))
  noise = ((np.arange(n) + 0.5) / n).astype(np.float32)
  found = selectors.softmin(tile(scores, np.float32), tile(valid, bool), limits(beta=beta), noise)
  return np.bincount(np.asarray(found), minlength=len(scores)) / n


def test_softmin_draws_by_exp_of_minus_beta_times_the_score():
  scores, valid = [2.0, 1.0, 0.5, 3.0], [1, 1, 0, 1]
  want = np.exp(-0.7 * np.array(scores)) * valid
  np.testing.assert_allclose(softmin(scores, valid, 0.7), want / want.sum(), atol=1e-3)
  np.testing.assert_allclose(softmin(scores, valid, 0), np.array(valid) / 3, atol=1e-3)
  assert softmin(scores, valid, 1e6).tolist() == [0, 1, 0, 0]  # argmin
  assert softmin([1e30, 2e30], [1, 1], 1.0).tolist() == [1, 0]


def test_softmin_of_nothing_valid_is_not_suitable():
  scores, valid = np.float32([[1, 2]]), np.zeros((1, 2), bool)
  choice = selectors.softmin(scores, valid, limits(), np.float32([0.9]))
  assert not selectors.suitable(scores, valid, choice, limits(), np.float32([9]))[0]


@pytest.mark.parametrize(
  "nll,valid,share,want",
  [
    ([3, 1, 2, 4], [1, 1, 1, 1], 0.5, [0, 1, 1, 0]),  # the median is 2.5
    ([3, 1, 2], [1, 1, 1], 0.5, [0, 1, 1]),  # the median itself counts
    ([2, 2, 1, 3], [1, 1, 1, 1], 0.5, [1, 1, 1, 0]),  # and all that tie with it
    ([1, 2, 3, 3], [1, 1, 1, 1], 0.5, [1, 1, 0, 0]),
    ([1, 2, 3, 4], [0, 1, 1, 1], 0.5, [0, 1, 1, 0]),  # the median of the valid ones is 3
    ([1, 2, 3, 4], [0, 0, 0, 1], 0.5, [0, 0, 0, 1]),
    ([1, 2], [0, 0], 0.5, [0, 0]),
    ([3, 1, 2, 4], [1, 1, 1, 1], 0.25, [0, 1, 0, 0]),
    ([3, 1, 2, 4], [1, 1, 1, 1], 0.26, [0, 1, 1, 0]),
    ([3, 1, 2, 4], [1, 1, 1, 1], 1e-6, [0, 1, 0, 0]),  # never nobody
    ([3, 1, 2, 4], [1, 1, 0, 1], 1, [1, 1, 0, 1]),
  ],
)
def test_the_likeliest_to_the_teacher_by_hand(nll, valid, share, want):
  other = [9 - x for x in nll]  # another slot, which does not count
  found = selectors.likeliest(
    np.float32([nll, other]), np.array([valid] * 2, bool), np.array(share, np.float32)
  )
  assert found[0].tolist() == [bool(x) for x in want]


# ---------------------------------------------------------------- repetitions

WINDOW = 16
look = jax.jit(selectors.loops, static_argnames="window")


def loops(text, new, window=WINDOW, c=20):
  """Whether a candidate of the last `new` tokens of `text` repeats; dirt follows them."""
  recent, tokens = np.full((1, window - 1), -1), np.full((1, 1, c), 3)
  past = text[: len(text) - new][-(window - 1) :]
  if past:
    recent[0, -len(past) :] = past
  tokens[0, 0, :new] = text[len(text) - new :]
  return bool(look(np.int32(recent), np.int32(tokens), np.int32([[new]]), window=window)[0, 0])


def periodic(period, length, start=50):
  return [start + i % period for i in range(length)]


@pytest.mark.parametrize("period", [1, 2, 3, 4])
@pytest.mark.parametrize("new", [1, 7, 16, 20])
def test_periods_up_to_a_quarter_of_the_window_are_found(period, new):
  assert loops(list(range(100, 110)) + periodic(period, 40), new)


@pytest.mark.parametrize("period", [5, 6, 8, 16])
def test_longer_periods_are_not(period):
  assert not loops(periodic(period, 40), 16)


@pytest.mark.parametrize("place", [0, 1, 8, 15])
def test_the_whole_window_must_repeat(place):
  text = periodic(3, 40)
  text[len(text) - WINDOW + place] = 99
  assert not loops(text, 16)
  text = periodic(3, 40)
  text[len(text) - WINDOW - 1] = 99  # just outside
  assert loops(text, 16)


@pytest.mark.parametrize("period", [1, 2, 4])
def test_text_before_the_start_does_not_count(period):
  assert not loops(periodic(period, WINDOW - 1), 5)
  assert not loops(periodic(period, WINDOW - 1), WINDOW - 1)
  assert loops(periodic(period, WINDOW), 5)
  assert loops(periodic(period, WINDOW), WINDOW)


def test_history_counts():
  """A short candidate that only goes on with the row's repetition is one."""
  text = periodic(2, 30)
  assert loops(text, 1) and loops(text, 2)
  assert not loops([*text[:-1], 99], 1) and not loops([*text[:-2], 99, 99], 2)


def test_tokens_after_the_end_do_not_count():
  assert not loops([1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 3, 3], 2)  # dirt is 3 as well
  assert loops([3] * 16, 4)


def test_an_empty_candidate_is_no_repetition():
  assert not loops(periodic(1, 40), 0)


def test_candidates_and_rows_do_not_touch_each_other():
  recent = np.full((2, 7), 5)
  recent[1] = range(7)
  tokens = np.stack([np.full((3, 4), 5), np.full((3, 4), 6)])
  count = np.array([[4, 0, 1], [4, 4, 4]])
  tokens[0, 2] = 8
  found = look(np.int32(recent), np.int32(tokens), np.int32(count), window=8)
  assert found.tolist() == [[True, False, False], [False] * 3]
