"""What tokens count, by hand; and that the weights do to gradients what the papers' losses do."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_ssd import config
from gen_ssd.training import credit
from gen_ssd.training import objectives

TRAIN = config.Train(alpha=0.8)


def row(uuid, verdict, tokens=4, stop="ended", nll=1.0):
  return dict(uuid=uuid, verdict=verdict, num_tokens=tokens, stop=stop, student_nll=nll)


def weights(name, rows, **changes):
  return credit.CREDITS[name](rows, dataclasses.replace(TRAIN, **changes))


def test_right_and_wrong_traces_of_a_problem_share_a_vote_each():
  rows = [
    row("b", "right", 10),
    row("a", "right", 8),
    row("a", "wrong", 2),
    row("a", "right", 4),
    row("b", "right", 6),
    row("a", "unverifiable"),
    row("a", "wrong", 2, stop="pruned"),
  ]
  found = weights("signed", rows)
  assert [found[i] for i in (0, 4, 5, 6)] == [
    0
  ] * 4  # no wrong one beside them; not judged; cut off
  mean = (8 + 2 + 4) / 3
  assert found[1] == pytest.approx(mean / 8 / 2) and found[3] == pytest.approx(mean / 4 / 2)
  assert found[2] == pytest.approx(-0.8 * mean / 2)
  assert weights("signed", rows, alpha=0.0)[2] == 0
  swapped = [
    {**r, "verdict": {"right": "wrong", "wrong": "right"}.get(r["verdict"], "")} for r in rows
  ]
  assert weights("signed", swapped, alpha=1.0) == [-x for x in weights("signed", rows, alpha=1.0)]
  assert weights("signed", rows[:1]) == [0] and weights("signed", []) == []


def test_signed_credit_has_the_gradient_of_redi():
  """Equation 5 of the paper: the mean nll of the right trace - alpha * that of the wrong one."""
  rows = [row("a", "right", 5), row("a", "wrong", 3)]
  logits = jax.random.normal(jax.random.key(0), (2, 5, 7))
  targets = jax.random.randint(jax.random.key(1), (2, 5), 0, 7)
  live = jnp.arange(5) < jnp.array([[5], [3]])

  def redi(logits):
    nll = jnp.where(live, objectives.token_nll(logits, targets), 0)
    return nll[0].sum() / 5 - 0.8 * nll[1].sum() / 3

  columns = credit.columns(weights("signed", rows), [[0] * 5, [0] * 3])
  w = jnp.stack([jnp.asarray(c) if len(c) == 5 else jnp.pad(c, (0, 2)) for c in columns])
  ours = jax.grad(lambda x: jnp.sum(objectives.nll(x, targets, w) * live))(logits)
  np.testing.assert_allclose(ours, jax.grad(redi)(logits) * 4, atol=1e-6)  # 4: the mean length


def test_advantage_is_that_of_grpo():
  rows = [row("a", v) for v in ("right", "wrong", "wrong", "wrong", "unverifiable")]
  rows += [
    row("b", "right"),
    row("b", "right"),
    row("c", "wrong"),
    row("a", "right", stop="pruned"),
  ]
  np.testing.assert_allclose(
    weights("advantage", rows), [3**0.5, *[-(3**-0.5)] * 3, 0, 0, 0, 0, 0], atol=1e-6
  )
  # With one update for each batch the ratio form has the gradient of the weighted nll.
  logits = jax.random.normal(jax.random.key(0), (4, 3, 7))
  targets = jax.random.randint(jax.random.key(1), (4, 3), 0, 7)
  w = jnp.repeat(jnp.asarray(weights("advantage", rows[:4]))[:, None], 3, 1)
  log_prob = lambda x: -objectives.token_nll(x, targets)
  ratio = jax.grad(lambda x: -jnp.sum(w * jnp.exp(log_prob(x) - log_prob(logits))))(logits)
  ours = jax.grad(lambda x: jnp.sum(objectives.nll(x, targets, w)))(logits)
  np.testing.assert_allclose(ours, ratio, atol=1e-6)


def test_an_answer_that_was_cut_off_is_not_right():
  found = weights("advantage", [row("a", "right"), row("a", "unverifiable", stop="length")])
  np.testing.assert_allclose(found, [1, -1])


def test_the_gap_has_the_gradient_of_the_reverse_divergence_in_expectation():
  p, q = (jax.nn.log_softmax(jax.random.normal(jax.random.key(i), (1, 1, 5))) for i in (0, 1))
  written = [
    dict(teacher_nlls=[-float(p[0, 0, v])], student_nlls=[-float(q[0, 0, v])]) for v in range(5)
  ]
  w = weights("gap", written)

  def surrogate(logits):  # each token as often as the student writes it
    log_p = jax.nn.log_softmax(logits)[0, 0]
    return -sum(jnp.exp(p[0, 0, v]) * w[v][0] * log_p[v] for v in range(5))

  want = jax.grad(lambda x: objectives.rkl(x, jnp.zeros((1, 1), int), q).sum())(p)
  np.testing.assert_allclose(jax.grad(surrogate)(p), want, atol=1e-6)


def test_the_discount_is_relative_to_each_token():
  rows = [dict(teacher_nlls=[3.0, 2.0, 5.0], student_nlls=[1.0, 1.0, 1.0])]
  assert weights("gap", rows)[0].tolist() == [2, 1, 4]
  assert weights("gap", rows, discount=0.5)[0].tolist() == [2 + 0.5 + 1, 1 + 2, 4]
  assert weights("gap", rows, discount=1.0)[0].tolist() == [7, 5, 4]


def test_support_prefers_what_the_student_finds_likely():
  found = weights("support", [row("a", "right", nll=x) for x in (0.5, 2.0, None)])
  assert found[0] / found[1] == pytest.approx(np.exp(1.5)) and found[2] == 0
  assert np.mean(found) == pytest.approx(1)


def test_weights_stand_beside_the_tokens_of_the_trace():
  """A prompt may have opened the trace; those tokens are learned but no trace wrote them."""
  one, each = credit.columns([0.5, np.array([1.0, 2.0])], [[7, 8, 9], [7, 8, 9]])
  assert one.tolist() == [0.5] * 3 and each.tolist() == [0, 1, 2]
  assert one.dtype == each.dtype == np.float32
  assert weights("one", [row("a", "wrong")] * 2) == [1.0, 1.0]
