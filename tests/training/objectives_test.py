"""Objectives by hand and in blocks, their columns, and a new one."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import jaxtyping
import numpy as np
import pytest

from gen_ssd import config
from gen_ssd import mesh
from gen_ssd.training import objectives
from gen_ssd.training import reading
from gen_ssd.training import terms
from tests import tiny

#                      a prompt and its response | another      | padding
TOKENS = jnp.array([[10, 11, 12, 13, 20, 21, 22, 0]])
MASK = jnp.array([[0, 0, 1, 1, 0, 1, 1, 0]])
SEGMENTS = jnp.array([[1, 1, 1, 1, 2, 2, 2, 0]])


def test_targets_by_hand():
  targets, weights = objectives.shift_targets(TOKENS, MASK, SEGMENTS)
  np.testing.assert_array_equal(targets[0, :7], [11, 12, 13, 20, 21, 22, 0])
  np.testing.assert_array_equal(weights, [[0, 1, 1, 0, 1, 1, 0, 0]])
  assert weights.dtype == jnp.float32


def test_nothing_is_predicted_across_examples_or_the_end():
  """An example that is all response: its first token belongs to no one."""
  ones = jnp.ones_like(TOKENS)
  np.testing.assert_array_equal(
    objectives.shift_targets(TOKENS, ones, SEGMENTS)[1], [[1, 1, 1, 0, 1, 1, 0, 0]]
  )  # 3 of 4, 2 of 3, no padding
  np.testing.assert_array_equal(
    objectives.shift_targets(TOKENS, ones, ones)[1], [[1, 1, 1, 1, 1, 1, 1, 0]]
  )  # the last has nothing to predict
  np.testing.assert_array_equal(objectives.shift_targets(TOKENS, ones, 0 * ones)[1], 0 * ones)


def test_rows_do_not_touch_each_other():
  both = [jnp.concatenate([x, x[:, ::-1]]) for x in (TOKENS, MASK, SEGMENTS)]
  for got, want in zip(
    objectives.shift_targets(*both), objectives.shift_targets(TOKENS, MASK, SEGMENTS)
  ):
    np.testing.assert_array_equal(got[0], want[0])


def test_token_nll_by_hand():
  scores = np.log(np.float32([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]])) + 3  # any constant
  np.testing.assert_allclose(
    objectives.token_nll(jnp.array(scores), jnp.array([1, 2])), -np.log([0.25, 0.7]), rtol=1e-5
  )


def test_token_nll_of_large_scores_is_finite():
  found = objectives.token_nll(jnp.array([[1e4, -1e4, 0]]), jnp.array([1]))
  np.testing.assert_allclose(found, [2e4])


@pytest.fixture(scope="module")
def case():
  mesh.start(devices=jax.devices()[:1])
  rng = np.random.default_rng(0)
  net = tiny.build(tiny.STUDENT)
  hidden = rng.normal(size=(2, 1, 8, tiny.STUDENT.width)).astype(np.float32)
  targets = rng.integers(0, tiny.STUDENT.vocab, (2, 8)).astype(np.int32)
  weights = np.float32([[0, 1, 1, 0, 1, 1, 0, 0], [1, 0, 0, 0, 0, 2, 0, 1]])
  return net, hidden, targets, weights


SFT = config.Term()


@functools.cache
def program(block, term):
  def total(net, hidden, targets, live, columns):
    student = reading.Reader(net, hidden)
    rows = jnp.ones_like(targets)
    numbers, at = terms.knobs((("", term),)), jnp.float32(0)
    parts, count = terms.sums(
      (("", term),), numbers, at, student, {}, targets, live, rows, {"": columns}, block=block
    )
    return jnp.sum(parts), count

  return jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))


def loss(net, hidden, targets, live, block, term=SFT, columns=None):
  """((sum, live positions), gradients of model and hidden), and the program's text."""
  run = program(block, term)
  args = jax.tree.map(
    lambda x: mesh.place(x, P(("data", "model"))), (hidden, targets, live, columns or {})
  )
  return run(net, *args), run.lower(net, *args).as_text()


def test_the_sum_is_that_of_the_plain_formula(case):
  net, hidden, targets, weights = case
  ((total, count), (_, pull)), _ = loss(*case, block=8)
  embed = np.float64(net.embed[...])
  x = np.float64(hidden[:, 0]) @ embed.T
  logp = x - np.log(np.exp(x).sum(-1, keepdims=True))
  nll = -np.take_along_axis(logp, targets[..., None], -1)[..., 0]
  np.testing.assert_allclose(total, (nll * weights).sum(), rtol=1e-5)
  assert float(count) == 8
  error = (np.exp(logp) - np.eye(len(embed))[targets]) * weights[..., None]
  np.testing.assert_allclose(pull[:, 0], error @ embed, atol=1e-5)


@pytest.mark.parametrize("block", [1, 2, 4])
def test_blocks_change_neither_value_nor_gradient(case, block):
  want, whole = loss(*case, block=8)
  got, text = loss(*case, block=block)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5), got, want)
  assert f"x8x{tiny.STUDENT.vocab}x" in whole  # all logits at once ...
  assert f"x8x{tiny.STUDENT.vocab}x" not in text  # ... and never


def test_tokens_without_weight_pull_on_nothing(case):
  net, hidden, targets, weights = case
  (_, (_, pull)), _ = loss(*case, block=4)
  assert (np.abs(np.asarray(pull)[:, 0]).sum(-1) > 0).tolist() == (weights > 0).tolist()
  other = np.where(weights > 0, targets, 3).astype(np.int32)
  again, _ = loss(net, hidden, other, weights, block=4)
  np.testing.assert_array_equal(again[0][0], loss(*case, block=4)[0][0][0])


# ---------------------------------------------------------------- columns


def test_a_column_stands_beside_its_target():
  columns = {"weights": TOKENS / 10, "segments": SEGMENTS, "other": MASK}
  found = objectives.shift_columns(objectives.nll, columns)
  targets, live = objectives.shift_targets(TOKENS, MASK, SEGMENTS)
  assert set(found) == {"weights"}
  np.testing.assert_array_equal(found["weights"] * live, targets / 10 * live)
  assert objectives.shift_columns(objectives.nll, {"segments": SEGMENTS}) == {}


def test_a_missing_column_is_named():
  def needs_rank(logits, targets, rank, weights=1.0):
    return rank * weights

  with pytest.raises(ValueError, match="the objective 'needs_rank' needs the column 'rank'"):
    objectives.shift_columns(needs_rank, {"weights": MASK, "tokens": TOKENS})


@pytest.mark.parametrize("block", [4, 8])
def test_weights_of_one_change_no_bit(case, block):
  want, _ = loss(*case, block=block)
  got, _ = loss(*case, block=block, columns={"weights": np.ones((2, 8), np.float32)})
  jax.tree.map(np.testing.assert_array_equal, got, want)


def test_weights_scale_each_token_and_may_be_negative(case):
  net, hidden, targets, live = case
  weights = np.random.default_rng(1).normal(size=(2, 8)).astype(np.float32)
  ((total, count), (_, pull)), _ = loss(*case, block=4, columns={"weights": weights})
  ((want, _), (_, want_pull)), _ = loss(net, hidden, targets, live * weights, block=4)
  np.testing.assert_allclose(total, want, rtol=1e-5)
  np.testing.assert_allclose(pull, want_pull, atol=1e-5)
  assert float(count) == live.sum()  # the divisor counts tokens, whatever their weights
  ((opposite, _), _), _ = loss(*case, block=4, columns={"weights": -weights})
  np.testing.assert_allclose(opposite, -total, rtol=1e-6)


def test_a_wrong_shape_fails_where_it_enters():
  with pytest.raises(jaxtyping.TypeCheckError, match="segments"):
    objectives.shift_targets(TOKENS, MASK, SEGMENTS[:, :4])
  with pytest.raises(jaxtyping.TypeCheckError, match="targets"):
    objectives.nll(jnp.zeros((1, 8, 5)), jnp.zeros((1, 8)))
