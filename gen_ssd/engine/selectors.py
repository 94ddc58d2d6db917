"""Candidate scores -> the candidate that is kept, or none. All thresholds are traced knobs.

A selector is a function `(scores f32[b,k], valid bool[b,k], knobs, noise f32[b]) -> int32[b]`;
lower scores are better, noise is uniform in [0,1). What it takes must be `suitable` to be kept.
"""

import jax.numpy as jnp


def argmin(scores, valid, knobs, noise):
  """The lowest score wins; ties go to the lowest index."""
  return jnp.argmin(jnp.where(valid, scores, jnp.inf), -1).astype(jnp.int32)


def softmin(scores, valid, knobs, noise):
  """A candidate is drawn with probability proportional to exp(-beta score)."""
  best = jnp.min(jnp.where(valid, scores, jnp.inf), -1, keepdims=True)
  p = jnp.where(valid, jnp.exp(-knobs.beta * jnp.where(valid, scores - best, 0)), 0)
  mass = jnp.cumsum(p, -1)
  return jnp.argmax(mass > noise[:, None] * mass[:, -1:], -1).astype(jnp.int32)


def suitable(scores, valid, choice, knobs, average):
  """bool[b]: the chosen candidate may be kept.

  It is valid, at most `knobs.threshold` (absolute or calibrated on cold-start traces; inf is off),
  at least `knobs.margin` below the mean of the valid candidates (nats; -inf is off), and at most
  1 + `knobs.running` times `average` f32[b], the mean score of the trace's kept chunks (inf in
  either is off: a first chunk has no chunks before it).
  """
  score = jnp.take_along_axis(scores, choice[:, None], -1)[:, 0]
  mean = jnp.sum(jnp.where(valid, scores, 0), -1) / jnp.maximum(jnp.sum(valid, -1), 1)
  limit = jnp.where(jnp.isfinite(knobs.running), (1 + knobs.running) * average, jnp.inf)
  return (
    jnp.take_along_axis(valid, choice[:, None], -1)[:, 0]
    & (score <= knobs.threshold)
    & (score <= mean - knobs.margin)
    & (score <= limit)
  )


def loops(recent, tokens, count, window):
  """bool[b,k]: candidates that end in a repetition: low perplexity loves these.

  True when the last `window` tokens of row and candidate repeat with some period of at most
  window / 4, i.e. four times or more. recent int32[b,window-1] are the row's newest tokens (-1
  before its start), tokens int32[b,k,c], count int32[b,k].
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
