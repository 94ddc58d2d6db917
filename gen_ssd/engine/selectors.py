"""Candidate scores -> the candidate that is kept, or none. All thresholds are traced knobs.

A selector is a function `(scores, valid, knobs, noise) -> index`; lower scores are better, noise is
uniform in [0,1). The candidate it picks must be `suitable` to be kept.
"""

import jax.numpy as jnp
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int

from gen_ssd.arrays import Array
from gen_ssd.arrays import pytree


@pytree
class Limits:
  """What makes a candidate suitable; all traced scalars."""

  threshold: Float[Array, ""]  # the highest score, in the scorer's unit; inf is off
  margin: Float[Array, ""]  # least distance below the mean of the candidates, nats; -inf is off
  running_margin: Float[Array, ""]  # m: at most 1 + m times the trace's mean score; inf is off
  beta: Float[Array, ""]  # of softmin, per nat
  teacher_share: Float[Array, ""]  # of the valid candidates that may win: see likeliest; 1 is off


def argmin(
  scores: Float[Array, "b k"], valid: Bool[Array, "b k"], limits: Limits, noise: Float[Array, " b"]
) -> Int[Array, " b"]:
  """The lowest score wins; ties go to the lowest index."""
  return jnp.argmin(jnp.where(valid, scores, jnp.inf), -1).astype(jnp.int32)


def softmin(
  scores: Float[Array, "b k"], valid: Bool[Array, "b k"], limits: Limits, noise: Float[Array, " b"]
) -> Int[Array, " b"]:
  """A candidate is drawn with probability proportional to exp(-beta score)."""
  best = jnp.min(jnp.where(valid, scores, jnp.inf), -1, keepdims=True)
  p = jnp.where(valid, jnp.exp(-limits.beta * jnp.where(valid, scores - best, 0)), 0)
  mass = jnp.cumsum(p, -1)
  return jnp.argmax(mass > noise[:, None] * mass[:, -1:], -1).astype(jnp.int32)


def likeliest(
  teacher_nll: Float[Array, "b k"], valid: Bool[Array, "b k"], share: Float[Array, ""]
) -> Bool[Array, "b k"]:
  """The valid candidates that the teacher itself finds likely; the student chooses among these.

  A candidate is one of them when fewer than `share` of the valid ones have a lower teacher nll
  (mean, nats). So 0.5 keeps those at or below the median, and at least one is kept.

  Two signals, so that what is easy to learn does not become what is wrong. The rule is ours:
  SpecGuard (arXiv 2604.15244) finds that one likelihood is fooled, and combines others.
  """
  lower = valid[:, None, :] & (teacher_nll[:, None, :] < teacher_nll[:, :, None])
  return valid & (jnp.sum(lower, -1) < share * jnp.sum(valid, -1, keepdims=True))


def suitable(
  scores: Float[Array, "b k"],
  valid: Bool[Array, "b k"],
  choice: Int[Array, " b"],
  limits: Limits,
  average: Float[Array, " b"],
) -> Bool[Array, " b"]:
  """Whether the chosen candidate may be kept.

  It is valid, scores at most `threshold` (absolute or calibrated on cold-start traces), lies at
  least `margin` below the mean of the valid candidates, and scores at most 1 + `running_margin`
  times `average`, the mean score of the trace's kept chunks. An infinite average switches the last
  rule off: a first chunk has no chunks before it.
  """
  score = jnp.take_along_axis(scores, choice[:, None], -1)[:, 0]
  mean = jnp.sum(jnp.where(valid, scores, 0), -1) / jnp.maximum(jnp.sum(valid, -1), 1)
  bounded = jnp.isfinite(limits.running_margin)
  highest = jnp.where(bounded, (1 + limits.running_margin) * average, jnp.inf)
  return (
    jnp.take_along_axis(valid, choice[:, None], -1)[:, 0]
    & (score <= limits.threshold)
    & (score <= mean - limits.margin)
    & (score <= highest)
  )


def loops(
  recent: Int[Array, "b w"], tokens: Int[Array, "b k c"], count: Int[Array, "b k"], window: int
) -> Bool[Array, "b k"]:
  """Candidates that end in a repetition, which low perplexity favours.

  True when the last `window` tokens of trace and candidate repeat with some period of at most
  window / 4, i.e. four times or more. `recent` are the newest window - 1 tokens of the trace, -1
  before its start; `count` are the tokens of each candidate.
  """
  b, k, c = tokens.shape
  past = jnp.broadcast_to(recent[:, None], (b, k, recent.shape[1]))
  text = jnp.concatenate([past, tokens], -1)
  at = (count + recent.shape[1])[..., None] - window + jnp.arange(window)
  last = jnp.take_along_axis(text, jnp.maximum(at, 0), -1)
  found = jnp.zeros_like(count, dtype=bool)
  for period in range(1, window // 4 + 1):
    found |= jnp.all(last[..., period:] == last[..., :-period], -1)
  return found & (last[..., 0] >= 0) & (count > 0)


SELECTORS = {f.__name__: f for f in (argmin, softmin)}
