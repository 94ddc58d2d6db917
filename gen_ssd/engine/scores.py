"""Token statistics of a student forward -> one number a candidate. Lower is better, always.

A scorer is a function `(statistics, live, noise) -> f32[b,k]`: `live` bool[b,k,t] marks a
candidate's tokens, `noise` f32[b,k] is uniform in [0,1). A candidate is a chunk inside the
compiled step, or a whole trace afterwards (posthoc.py): the function is the same. To try another
rule, write one and name it in SCORERS; nothing else changes.
"""

import dataclasses

import jax
from jax import lax
import jax.numpy as jnp

from gen_ssd.models import decoder


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Statistics:
  """What is known of a candidate's tokens [b,k,t], and of whole traces [b,k]."""

  nll: jax.Array  # f32 nats, the student's
  rank: jax.Array  # f32, 1 is the student's first choice
  entropy: jax.Array | None = None  # f32 nats, the student's; not of traces read from disk
  teacher_nll: jax.Array | None = None  # f32 nats at temperature 1
  start: jax.Array | None = None  # bool, the first token of a step
  difficulty: jax.Array | None = None  # f32[b,k], traces only: see morsd
  long: jax.Array | None = None  # bool[b,k], traces only: see mix_long


def token_statistics(model, hidden, targets, *, limit=1 << 26):
  """Statistics of targets int32[b,k,t] under normed hidden states [b,k,t,d].

  At most `limit` logits are in memory at a time. What a scorer leaves unused is not computed.
  """
  b, k, t = targets.shape
  step = next(
    n for n in range(t, 0, -1) if t % n == 0 and (b * k * n * model.shape.vocab <= limit or n == 1)
  )

  def part(hidden, targets):
    scores = decoder.logits(model, hidden)
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
  fold = lambda x: jnp.moveaxis(lax.reshape(x, (b, k, t // step, step, *x.shape[3:])), 2, 0)
  found = lax.map(lambda xs: part(*xs), (fold(hidden), fold(targets)))
  return jax.tree.map(lambda x: lax.reshape(jnp.moveaxis(x, 0, 2), (b, k, t)), found)


def mean(x, live):
  """Mean of x [b,k,t] over the live tokens; 0 where none is."""
  return jnp.sum(jnp.where(live, x, 0), -1) / jnp.maximum(jnp.sum(live, -1), 1)


def perplexity(statistics, live, noise):
  """Mean nll in nats, the log of the student's perplexity: Gen-SSD (arXiv 2604.02819)."""
  return mean(statistics.nll, live)


def local(statistics, live, noise):
  """perplexity from statistics under a short context: LALP (arXiv 2510.03988); see
  select.score, and posthoc.nearby for whole traces."""
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


def longest(statistics, live, noise):
  """Most tokens win: a control."""
  return -jnp.sum(live, -1).astype(jnp.float32)


def shortest(statistics, live, noise):
  """Fewest tokens win; among whole right traces, the length-matched control."""
  return jnp.sum(live, -1).astype(jnp.float32)


def drop_first(statistics, live, noise):
  """Mean nll without each step's first token, which long steps dilute: ASLEC (arXiv 2604.06834).

  A candidate of nothing but first tokens keeps them.
  """
  rest = live & ~statistics.start
  return mean(statistics.nll, jnp.where(jnp.any(rest, -1, keepdims=True), rest, live))


def teacher_gap(statistics, live, noise):
  """Minus the share of teacher sentences: provenance (arXiv 2512.20908), the opposite preference.

  A sentence (here: step) is the teacher's when its geometric-mean probability is more than 0.1
  higher under the teacher than under the student. A candidate that begins inside a step counts
  that part as one.
  """
  first = live & (statistics.start | (jnp.arange(live.shape[-1]) == 0))

  def add(a, b):  # sums that start anew at every first token
    fresh = b[0]
    return (a[0] | fresh, *(jnp.where(fresh, y, x + y) for x, y in zip(a[1:], b[1:])))

  zero = lambda x: jnp.where(live, x, 0).astype(jnp.float32)
  _, count, mine, theirs = lax.associative_scan(
    add, (first, zero(live), zero(statistics.teacher_nll), zero(statistics.nll)), axis=-1
  )
  after = jnp.concatenate([(first | ~live)[..., 1:], jnp.ones_like(live[..., :1])], -1)
  last = live & after
  count = jnp.maximum(count, 1)
  teachers = last & (jnp.exp(-mine / count) - jnp.exp(-theirs / count) > 0.1)
  return -jnp.sum(teachers, -1) / jnp.maximum(jnp.sum(last, -1), 1)


def morsd(statistics, live, noise):
  """Rationale Difficulty PPL(answer | q, r) / PPL(answer | q): MoRSD (arXiv 2509.23574)."""
  return statistics.difficulty


def mix_long(statistics, live, noise):
  """Mix-Long 1:4 (arXiv 2502.12143): the longest trace of one problem in five, else the shortest."""
  return jnp.where(
    statistics.long, longest(statistics, live, noise), shortest(statistics, live, noise)
  )


SCORERS = {
  f.__name__: f
  for f in (
    perplexity,
    local,
    random,
    anti,
    rsr,
    longest,
    shortest,
    drop_first,
    teacher_gap,
    morsd,
    mix_long,
  )
}
WHOLE = ("morsd", "mix_long")  # only for whole traces
NEGATIVE = ("anti", "longest", "teacher_gap")  # scores may be below 0: no multiple is a limit
