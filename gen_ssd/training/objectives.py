"""Losses as pure functions of log-probabilities and masks."""

import jax
from jax import lax
import jax.numpy as jnp

from gen_ssd.models import decoder


def shift_targets(tokens, mask, segments):
  """Next-token targets of packed rows: (targets int32[b,t], weights f32[b,t]).

  `mask[b,t]` marks tokens to be learned; position t predicts t+1 inside the same segment only.
  """
  nxt = lambda x: jnp.roll(x, -1, axis=1)
  same = (segments == nxt(segments)) & (segments > 0)
  inside = jnp.arange(tokens.shape[1]) < tokens.shape[1] - 1
  return nxt(tokens), jnp.where(same & inside, nxt(mask), 0).astype(jnp.float32)


def nll_sum(model, hidden, targets, weights, *, block):
  """Weighted sum of -log p(target), f32 scalar; and the sum of weights.

  hidden [b,1,t,d] normed; targets, weights [b,t]. Logits exist for `block` positions at a time
  and are recomputed in the backward pass, so [b,t,v] is never in memory when block < t.
  """
  t = targets.shape[1]

  def part(i):
    cut = lambda x, axis=1: lax.dynamic_slice_in_dim(x, i * block, block, axis)
    scores = decoder.logits(model, cut(hidden, 2))[:, 0]
    return jnp.sum(token_nll(scores, cut(targets)) * cut(weights))

  if block == t:
    total = part(0)
  else:
    part = jax.checkpoint(part)
    total, _ = lax.scan(
      lambda total, i: (total + part(i), None), jnp.float32(0), jnp.arange(t // block)
    )
  return total, jnp.sum(weights)


def token_nll(scores, targets):
  """-log softmax(scores)[target] in f32: scores [...,v], targets int32[...] -> [...]."""
  hit = targets[..., None] == jnp.arange(scores.shape[-1], dtype=targets.dtype)
  return jax.nn.logsumexp(scores, -1) - jnp.sum(jnp.where(hit, scores, 0), -1)
