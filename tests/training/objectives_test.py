"""The loss by hand, and in blocks."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from gen_ssd import mesh
from gen_ssd.training import objectives
from tests import tiny

#                      a prompt and its response | another      | padding
TOKENS = np.int32([[10, 11, 12, 13, 20, 21, 22, 0]])
MASK = np.int32([[0, 0, 1, 1, 0, 1, 1, 0]])
SEGMENTS = np.int32([[1, 1, 1, 1, 2, 2, 2, 0]])


def test_targets_by_hand():
  targets, weights = objectives.shift_targets(TOKENS, MASK, SEGMENTS)
  np.testing.assert_array_equal(targets[0, :7], [11, 12, 13, 20, 21, 22, 0])
  np.testing.assert_array_equal(weights, [[0, 1, 1, 0, 1, 1, 0, 0]])
  assert weights.dtype == jnp.float32


def test_nothing_is_predicted_across_examples_or_the_end():
  """An example that is all response: its first token belongs to no one."""
  ones = np.ones_like(TOKENS)
  np.testing.assert_array_equal(
    objectives.shift_targets(TOKENS, ones, SEGMENTS)[1], [[1, 1, 1, 0, 1, 1, 0, 0]]
  )  # 3 of 4, 2 of 3, no padding
  np.testing.assert_array_equal(
    objectives.shift_targets(TOKENS, ones, ones)[1], [[1, 1, 1, 1, 1, 1, 1, 0]]
  )  # the last has nothing to predict
  np.testing.assert_array_equal(objectives.shift_targets(TOKENS, ones, 0 * ones)[1], 0 * ones)


def test_rows_do_not_touch_each_other():
  both = [np.concatenate([x, x[:, ::-1]]) for x in (TOKENS, MASK, SEGMENTS)]
  for got, want in zip(
    objectives.shift_targets(*both), objectives.shift_targets(TOKENS, MASK, SEGMENTS)
  ):
    np.testing.assert_array_equal(got[0], want[0])


def test_token_nll_by_hand():
  scores = np.log(np.float32([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]])) + 3  # any constant
  np.testing.assert_allclose(
    objectives.token_nll(scores, np.int32([1, 2])), -np.log([0.25, 0.7]), rtol=1e-5
  )


def test_token_nll_of_large_scores_is_finite():
  found = objectives.token_nll(np.float32([[1e4, -1e4, 0]]), np.int32([1]))
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


@functools.cache
def program(block):
  return jax.jit(
    jax.value_and_grad(
      functools.partial(objectives.nll_sum, block=block), argnums=(0, 1), has_aux=True
    )
  )


def loss(net, hidden, targets, weights, block):
  """((sum, weights), gradients of model and hidden), and the program's text."""
  run = program(block)
  args = net, *(mesh.place(x, P(("data", "model"))) for x in (hidden, targets, weights))
  return run(*args), run.lower(*args).as_text()


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
