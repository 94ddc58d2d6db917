"""Token statistics of a student forward -> one number a candidate. Lower is better, always.

A scorer is a function `(statistics, live, noise) -> f32[b,k]`. To try another rule, write one
and name it in SCORERS; nothing else changes.
"""
import dataclasses

import jax
from jax import lax
import jax.numpy as jnp

from gen_ssd import model as model_lib


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Statistics:
  """Per token, all f32[b,k,t]: nll (nats), rank (1 is the student's first choice), entropy (nats)."""
  nll: jax.Array
  rank: jax.Array
  entropy: jax.Array


def token_statistics(model, hidden, targets, *, limit=1 << 26):
  """Statistics of targets int32[b,k,t] under normed hidden states [b,k,t,d].

  At most `limit` logits are in memory at a time. What a scorer leaves unused is not computed.
  """
  b, k, t = targets.shape
  step = next(n for n in range(t, 0, -1) if t % n == 0 and (b * k * n * model.shape.vocab <= limit
                                                           or n == 1))

  def part(hidden, targets):
    scores = model_lib.logits(model, hidden)
    top = jnp.max(scores, -1, keepdims=True)
    p = jnp.exp(scores - top)
    total = jnp.sum(p, -1)
    hit = targets[..., None] == jnp.arange(scores.shape[-1], dtype=targets.dtype)
    chosen = jnp.sum(jnp.where(hit, scores - top, 0), -1)
    rank = 1 + jnp.sum(scores - top > chosen[..., None], -1).astype(jnp.float32)
    entropy = jnp.log(total) - jnp.sum(p * (scores - top), -1) / total
    return Statistics(jnp.log(total) - chosen, rank, entropy)

  if step == t:
    return part(hidden, targets)
  fold = lambda x: jnp.moveaxis(
      lax.reshape(x, (b, k, t // step, step, *x.shape[3:])), 2, 0)
  found = lax.map(lambda xs: part(*xs), (fold(hidden), fold(targets)))
  return jax.tree.map(lambda x: lax.reshape(jnp.moveaxis(x, 0, 2), (b, k, t)), found)


def mean(x, live):
  """Mean of x [b,k,t] over the live tokens; 0 where none is."""
  return jnp.sum(jnp.where(live, x, 0), -1) / jnp.maximum(jnp.sum(live, -1), 1)


def perplexity(statistics, live, noise):
  """Mean nll in nats, the log of the student's perplexity: Gen-SSD (arXiv 2604.02819)."""
  return mean(statistics.nll, live)


def anti(statistics, live, noise):
  """The least likely candidate wins: a control."""
  return -mean(statistics.nll, live)


def random(statistics, live, noise):
  """Any candidate wins: exactly plain teacher sampling, the honest control."""
  return noise


def rsr(statistics, live, noise):
  """Rank-Surprisal Ratio, eq. 7 of arXiv 2601.14249: sum min(rank, 100) / sum nll."""
  rank = jnp.sum(jnp.where(live, jnp.minimum(statistics.rank, 100.0), 0), -1)
  return rank / jnp.maximum(jnp.sum(jnp.where(live, statistics.nll, 0), -1), 1e-6)


SCORERS = {f.__name__: f for f in (perplexity, random, anti, rsr)}
