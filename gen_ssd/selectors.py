"""Candidate scores -> the candidate that is kept, or none. All thresholds are traced knobs."""
import jax.numpy as jnp


def argmin(scores, valid, knobs):
  """The lowest score wins; ties go to the lowest index.

  A winner is suitable when it is valid, at most `knobs.threshold` (absolute or calibrated on
  cold-start traces; inf is off) and at least `knobs.margin` below the mean of the valid
  candidates (nats; -inf is off).

  Args:
    scores: f32[b,k], lower is better. valid: bool[b,k].
  Returns:
    (choice int32[b], suitable bool[b]).
  """
  ranked = jnp.where(valid, scores, jnp.inf)
  choice = jnp.argmin(ranked, -1).astype(jnp.int32)
  best = jnp.min(ranked, -1)
  mean = jnp.sum(jnp.where(valid, scores, 0), -1) / jnp.maximum(jnp.sum(valid, -1), 1)
  suitable = jnp.any(valid, -1) & (best <= knobs.threshold) & (best <= mean - knobs.margin)
  return choice, suitable


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


SELECTORS = {"argmin": argmin}
