"""Scorers by hand, and statistics against the plain formulas."""

import dataclasses

import jax
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from gen_ssd import config
from gen_ssd import config_checks
from gen_ssd import mesh
from gen_ssd.engine import scores
from gen_ssd.models import decoder
from tests import tiny

# One row, three candidates of three tokens; the second has one token, the third none.
NLL = np.float32([[[1, 2, 6], [4, 7, 7], [9, 9, 9]]])
RANK = np.float32([[[1, 5, 300], [20, 99, 99], [8, 8, 8]]])
LIVE = np.array([[[True, True, True], [True, False, False], [False, False, False]]])
START = np.array([[[True, False, True], [True, True, True], [False, False, True]]])
TEACHER = np.float32([[[1, 1, 0.1], [4.05, 0, 0], [0, 0, 0]]])
NOISE = np.float32([[0.3, 0.1, 0.2]])


def statistics(change=lambda x: x):
  return scores.Statistics(
    nll=change(NLL),
    rank=change(RANK),
    entropy=change(NLL),
    teacher_nll=change(TEACHER),
    step_start=START,
    difficulty=np.float32([[0.5, 0.25, 2]]),
    long=np.array([[True, True, False]]),
  )


@pytest.mark.parametrize(
  "name,want",
  [
    ("perplexity", [3, 4, 0]),  # (1+2+6)/3, 4/1
    ("perplexity_sum", [9, 4, 0]),
    ("local", [3, 4, 0]),
    ("anti", [-3, -4, 0]),
    ("random", [0.3, 0.1, 0.2]),
    ("rsr", [(1 + 5 + 100) / (1 + 2 + 6), 20 / 4, 0]),  # the rank 300 counts as 100
    ("longest", [-3, -1, 0]),
    ("shortest", [3, 1, 0]),
    ("drop_first", [2, 4, 0]),  # only the 2; a lone first token counts
    ("teacher_gap", [-1, 0, 0]),  # e^-1 over e^-1.5 and e^-0.1 over e^-6; e^-4.05 under e^-4
    ("teacher_count", [-2, 0, 0]),
    ("morsd", [0.5, 0.25, 2]),
    ("mix_long", [-3, -1, 0]),
  ],
)
def test_scorers_by_hand(name, want):
  found = scores.SCORERS[name](statistics(), LIVE, NOISE)
  np.testing.assert_allclose(found, [want], rtol=1e-6)


def test_every_scorer_is_tested():
  assert {*scores.SCORERS} == {name for name, _ in test_scorers_by_hand.pytestmark[0].args[1]}


@pytest.mark.parametrize("name", scores.SCORERS)
def test_what_is_not_live_does_not_count(name):
  """Not even when it is not a number."""
  score = scores.SCORERS[name]
  dirty = statistics(lambda x: np.where(LIVE, x, np.nan))
  np.testing.assert_array_equal(score(dirty, LIVE, NOISE), score(statistics(), LIVE, NOISE))


def gap(mine, theirs, start, rule=scores.teacher_gap):
  """`rule` for one candidate of probabilities under teacher and student."""
  row = lambda x: -np.log(np.float32([[x]]))
  return float(
    rule(
      scores.Statistics(
        nll=row(theirs),
        rank=row(theirs),
        teacher_nll=row(mine),
        step_start=np.array([[start]]),
      ),
      np.ones((1, 1, len(start)), bool),
      NOISE[:, :1],
    )[0, 0]
  )


def test_a_teacher_sentence_is_likelier_under_the_teacher_by_a_tenth():
  assert gap([0.7], [0.59], [True]) == -1 and gap([0.7], [0.61], [True]) == 0
  assert gap([0.2], [0.9], [True]) == 0
  # geometric means, 0.6 and 0.42: arithmetic ones (0.65, 0.6) would not be a tenth apart
  assert gap([0.4, 0.9], [0.2, 0.9], [True, False]) == -1
  # of three sentences the second; the first began before the candidate
  assert gap([0.5, 0.9, 0.9, 0.3], [0.5, 0.5, 0.5, 0.3], [False, True, False, True]) == -np.float32(
    1 / 3
  )


def test_the_count_of_teacher_sentences_grows_with_length_and_their_share_does_not():
  short, long = ([0.9, 0.3], [0.5, 0.3], [True] * 2), ([0.9, 0.3] * 3, [0.5, 0.3] * 3, [True] * 6)
  assert [gap(*text) for text in (short, long)] == [-0.5, -0.5]
  assert [gap(*text, rule=scores.teacher_count) for text in (short, long)] == [-1, -3]


@pytest.mark.parametrize("length", [1, 7, 64])
def test_equal_models_have_no_teacher_sentences(length):
  p = np.random.default_rng(length).uniform(0.1, 1, length)
  assert gap(p, p, [True] * length) == 0


def test_rank_is_clipped_at_a_hundred_and_certain_text_does_not_divide_by_zero():
  one = lambda rank, nll: float(
    scores.rsr(
      scores.Statistics(nll=np.float32([[[nll]]]), rank=np.float32([[[rank]]])),
      np.ones((1, 1, 1), bool),
      NOISE[:, :1],
    )[0, 0]
  )
  assert one(99, 2) == 49.5
  assert one(100, 2) == one(101, 2) == one(1e5, 2) == 50
  assert np.isfinite(one(1, 0))


def test_rank_surprisal_of_a_set_is_the_ratio_of_its_means():
  """Of all tokens together, not a mean of ratios: eq. 7 holds for a token, a trace and a set."""
  rng = np.random.default_rng(0)
  nll = rng.uniform(0.1, 9, 60).astype(np.float32)
  rank = rng.integers(1, 200, 60).astype(np.float32)
  live = np.arange(60) < 55
  found = scores.rsr(
    scores.Statistics(nll=nll[None, None], rank=rank[None, None]), live[None, None], NOISE[:, :1]
  )
  want = np.minimum(rank, 100)[:55].mean() / nll[:55].mean()
  np.testing.assert_allclose(found, [[want]], rtol=1e-5)


def naive(net, hidden, targets):
  """Statistics by the textbook, in float64."""
  x = np.float64(decoder.logits(net, hidden))
  logp = (
    x
    - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))
    - x.max(-1, keepdims=True)
  )
  chosen = np.take_along_axis(logp, targets[..., None], -1)
  return -chosen[..., 0], 1 + (logp > chosen).sum(-1), -(np.exp(logp) * logp).sum(-1)


@pytest.fixture(scope="module")
def case():
  mesh.start(devices=jax.devices()[:1])
  rng = np.random.default_rng(0)
  net = tiny.build(tiny.STUDENT)
  hidden = rng.normal(size=(2, 3, 6, tiny.STUDENT.width)).astype(np.float32) * 3
  targets = rng.integers(0, tiny.STUDENT.vocab, (2, 3, 6)).astype(np.int32)
  x = np.asarray(decoder.logits(net, hidden))
  targets[0, 0] = x[0, 0].argmax(-1)  # ranks 1 and last are among them
  targets[1, 2] = x[1, 2].argmin(-1)
  return net, hidden, targets


def test_statistics_are_those_of_the_plain_formulas(case):
  net, hidden, targets = case
  found = scores.token_statistics(net, hidden, targets)
  for got, want in zip((found.nll, found.rank, found.entropy), naive(*case)):
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
  assert (np.asarray(found.rank)[0, 0] == 1).all()
  assert (np.asarray(found.rank)[1, 2] == tiny.STUDENT.vocab).all()


def test_a_shift_of_all_logits_changes_no_statistic(case, monkeypatch):
  net, hidden, targets = case
  want = scores.token_statistics(net, hidden, targets)
  plain, shift = decoder.logits, np.random.default_rng(1).normal(size=(2, 3, 6, 1)) * 20
  monkeypatch.setattr(decoder, "logits", lambda net, x: plain(net, x) + shift.astype(np.float32))
  got = scores.token_statistics(net, hidden, targets)
  for a, b in ((got.nll, want.nll), (got.entropy, want.entropy)):
    np.testing.assert_allclose(a, b, atol=1e-4)
  assert np.mean(np.asarray(got.rank) == np.asarray(want.rank)) > 0.9  # near ties may round apart
  np.testing.assert_allclose(got.rank, want.rank, atol=2)


@pytest.mark.parametrize("tokens", [0, 1, 2, 4, 6])  # 4 does not divide 6: three at a time
def test_statistics_in_blocks_are_those_of_the_whole(case, tokens):
  net, hidden, targets = case
  place = lambda x: mesh.place(x, P(("data", "model")))
  limit = 2 * 3 * tokens * tiny.STUDENT.vocab
  small = jax.jit(lambda h, t: scores.token_statistics(net, h, t, limit=limit))
  want = scores.token_statistics(net, hidden, targets)
  got = small(place(hidden), place(targets))
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
  size = {0: 1, 1: 1, 2: 2, 4: 3, 6: 6}[tokens]
  text = small.lower(place(hidden), place(targets)).as_text()
  assert f"2x3x{size}x{tiny.STUDENT.vocab}xf32" in text
  assert size == 6 or f"2x3x6x{tiny.STUDENT.vocab}x" not in text


def test_the_limit_of_logits_is_per_device(case):
  mesh.start()
  rows = mesh.AXES
  net = tiny.build(tiny.STUDENT)
  hidden = mesh.shape((8, 3, 6, tiny.STUDENT.width), np.float32, P(rows, None, None, None))
  targets = mesh.shape((8, 3, 6), np.int32, P(rows, None, None))
  limit = 3 * 2 * tiny.STUDENT.vocab  # two tokens of the one row that a device has
  read = jax.jit(lambda h, t: scores.token_statistics(net, h, t, limit=limit))
  assert f"8x3x2x{tiny.STUDENT.vocab}xf32" in read.lower(hidden, targets).as_text()


def test_ties_share_the_better_rank():
  mesh.start(devices=jax.devices()[:1])
  net = tiny.build(tiny.STUDENT)
  hidden = np.zeros((1, 1, 1, tiny.STUDENT.width), np.float32)  # all logits are 0
  found = scores.token_statistics(net, hidden, np.int32([[[77]]]))
  assert float(found.rank[0, 0, 0]) == 1
  assert abs(float(found.nll[0, 0, 0]) - np.log(tiny.STUDENT.vocab)) < 1e-6
  assert abs(float(found.entropy[0, 0, 0]) - np.log(tiny.STUDENT.vocab)) < 1e-6


def test_a_scorer_is_one_function(monkeypatch):
  """What CONTRIBUTING promises: written, named in a config, checked and run; nothing else changes."""
  monkeypatch.setattr(scores, "SCORERS", dict(scores.SCORERS))

  @scores.scorer("nll", "entropy")
  def surprise(statistics, live, noise):
    """Mean of nll above the student's own uncertainty."""
    return scores.mean(statistics.nll - statistics.entropy, live)

  raw = {"teacher": {"path": "bundled/teacher"}, "student": {"path": "bundled/student"}}
  arm = lambda **changes: config_checks.check(config.parse({**raw, "arms": {"mine": changes}}))
  arm(scorer="surprise")
  wrong = r"arms.mine.scorer is 'surprise': .* needs entropy"  # which files of traces do not hold
  with pytest.raises(ValueError, match=wrong):
    arm(scorer="surprise", granularity="trace")

  mesh.start(devices=jax.devices()[:1])
  engine = tiny.Engine(scorer=surprise)
  engine.admit({i: (ids, i) for i, ids in enumerate(tiny.prompts(8))})
  report = engine.round()
  assert (report.choice == report.score.argmin(1)).all()
  below = scores.mean(report.student_nll, np.arange(4) < report.count[..., None])
  assert (report.score < below).all()  # by the entropy, which is above 0


def test_scorers_declare_what_they_read():
  """Statistics that a rule does not declare are never asked for."""
  full = {f.name: getattr(statistics(), f.name) for f in dataclasses.fields(scores.Statistics)}
  for name, scorer in scores.SCORERS.items():
    asked = set()

    class Spy(scores.Statistics):
      def __getattribute__(self, field):
        asked.add(field)
        return super().__getattribute__(field)

    spy = Spy(**full)
    asked.clear()
    found = scorer(spy, LIVE, NOISE)
    assert asked & full.keys() == scorer.needs, name
    assert scorer.negative or (np.asarray(found) >= 0).all()
