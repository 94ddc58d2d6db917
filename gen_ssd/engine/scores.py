"""Token statistics of a student forward -> one score per candidate. Lower is better, always.

A candidate is a chunk inside the compiled step, or a whole trace afterwards (collect/posthoc.py):
the rule is the same. To try another one, write a function here under `@scorer` and name it in
`select.scorer`; nothing else changes. The decorator says which Statistics the rule reads, so that a
setting which cannot provide them is refused before any compute.
"""

import dataclasses
import math
import typing

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int

from gen_ssd.arrays import Array
from gen_ssd.arrays import pytree
from gen_ssd.models import decoder

# Most logits that a device holds at a time, by Layout.unroll: they fit its memory, or a CPU's cache.
LOGITS = {False: 1 << 26, True: 1 << 23}


@pytree
class Statistics:
  """What is known of the tokens of candidates, and of whole traces."""

  nll: Float[Array, "b k t"]  # nats, the student's
  rank: Float[Array, "b k t"]  # 1 is the student's first choice
  entropy: Float[Array, "b k t"] | None = None  # nats, the student's
  teacher_nll: Float[Array, "b k t"] | None = None  # nats at temperature 1
  step_start: Bool[Array, "b k t"] | None = None  # the first token of a step
  difficulty: Float[Array, "b k"] | None = None  # see morsd
  long: Bool[Array, "b k"] | None = None  # see mix_long


# Which statistics exist, by select.granularity: in the compiled step, and of traces read from disk.
AVAILABLE = {
  "chunk": {"nll", "rank", "entropy", "teacher_nll", "step_start"},
  "trace": {"nll", "rank", "teacher_nll", "step_start", "difficulty", "long"},
}

Live = Bool[Array, "b k t"]  # marks the tokens of each candidate
Noise = Float[Array, "b k"]  # uniform in [0,1)
Scores = Float[Array, "b k"]


@dataclasses.dataclass(frozen=True)
class Scorer:
  """A rule `(statistics, live, noise) -> scores` and what it needs."""

  rule: typing.Callable[[Statistics, Live, Noise], Scores]
  needs: frozenset[str]  # fields of Statistics
  negative: bool  # scores may be below 0: no multiple of a mean is a limit
  short_context: bool  # scores a text after the prompt and select.context tokens alone

  def __call__(self, statistics: Statistics, live: Live, noise: Noise) -> Scores:
    return self.rule(statistics, live, noise)


SCORERS: dict[str, Scorer] = {}


def scorer(*needs: str, negative: bool = False, short_context: bool = False):
  """Makes the function below it a Scorer that `select.scorer` can name."""

  def named(rule):
    SCORERS[rule.__name__] = Scorer(rule, frozenset(needs), negative, short_context)
    return SCORERS[rule.__name__]

  return named


def mean(x: Float[Array, "b k t"], live: Live) -> Scores:
  """Mean of x over the live tokens; 0 where there are none."""
  return jnp.sum(jnp.where(live, x, 0), -1) / jnp.maximum(jnp.sum(live, -1), 1)


@scorer("nll")
def perplexity(statistics: Statistics, live: Live, noise: Noise) -> Scores:
  """Mean nll in nats, the log of the student's perplexity: Gen-SSD (arXiv 2604.02819)."""
  return mean(statistics.nll, live)


@scorer("nll")
def perplexity_sum(statistics: Statistics, live: Live, noise: Noise) -> Scores:
  """Sum of nll in nats: minus the log-probability of the whole candidate under the student.

  With the softmin selector, many candidates and no limits, the kept chunk is distributed as
  p_T(chunk) p_S(chunk)^beta / Z: self-normalized importance resampling, the argument of GSI (arXiv
  2506.04118). With the mean it is no such tilt. The lowest sum (argmin) favours short candidates.
  """
  return jnp.sum(jnp.where(live, statistics.nll, 0), -1)


@scorer("nll", short_context=True)
def local(statistics: Statistics, live: Live, noise: Noise) -> Scores:
  """Mean nll under a short context: LALP (arXiv 2510.03988).

  See step.score for chunks, and posthoc.short_context for whole traces.
  """
  return mean(statistics.nll, live)


@scorer("nll", negative=True)
def anti(statistics: Statistics, live: Live, noise: Noise) -> Scores:
  """The least likely candidate wins: a control."""
  return -mean(statistics.nll, live)


@scorer()
def random(statistics: Statistics, live: Live, noise: Noise) -> Scores:
  """Any candidate wins: exactly plain teacher sampling, the honest control."""
  return noise


@scorer("rank", "nll")
def rsr(statistics: Statistics, live: Live, noise: Noise) -> Scores:
  """Rank-Surprisal Ratio, eq. 7 of arXiv 2601.14249: sum min(rank, 100) / sum nll."""
  rank = jnp.sum(jnp.where(live, jnp.minimum(statistics.rank, 100.0), 0), -1)
  return rank / jnp.maximum(jnp.sum(jnp.where(live, statistics.nll, 0), -1), 1e-6)


@scorer(negative=True)
def longest(statistics: Statistics, live: Live, noise: Noise) -> Scores:
  """Most tokens win: a control."""
  return -jnp.sum(live, -1).astype(jnp.float32)


@scorer()
def shortest(statistics: Statistics, live: Live, noise: Noise) -> Scores:
  """Fewest tokens win; among whole right traces, the length-matched control."""
  return jnp.sum(live, -1).astype(jnp.float32)


@scorer("nll", "step_start")
def drop_first(statistics: Statistics, live: Live, noise: Noise) -> Scores:
  """Mean nll without the first token of each step, which long steps dilute: ASLEC (2604.06834).

  A candidate that consists of first tokens only keeps them.
  """
  rest = live & ~statistics.step_start
  return mean(statistics.nll, jnp.where(jnp.any(rest, -1, keepdims=True), rest, live))


@scorer("nll", "teacher_nll", "step_start", negative=True)
def teacher_count(statistics: Statistics, live: Live, noise: Noise) -> Scores:
  """Minus the number of teacher sentences: the published rule of provenance (arXiv 2512.20908).

  A sentence (here: a step) is the teacher's when its geometric-mean probability is more than 0.1
  higher under the teacher than under the student. Where a candidate begins inside a step, that
  part counts as one. This prefers what the student does not know yet: the opposite of perplexity.
  """
  teachers, _ = _sentences(statistics, live)
  return -jnp.sum(teachers, -1).astype(jnp.float32)


@scorer("nll", "teacher_nll", "step_start", negative=True)
def teacher_gap(statistics: Statistics, live: Live, noise: Noise) -> Scores:
  """Minus the share of teacher sentences (see teacher_count), which does not grow with length."""
  teachers, sentences = _sentences(statistics, live)
  return -jnp.sum(teachers, -1) / jnp.maximum(jnp.sum(sentences, -1), 1)


def _sentences(statistics: Statistics, live: Live) -> tuple[Live, Live]:
  """(the last tokens of teacher sentences, of all sentences)."""
  first = live & (statistics.step_start | (jnp.arange(live.shape[-1]) == 0))

  def add(a, b):  # sums that start anew at every first token
    fresh = b[0]
    return (a[0] | fresh, *(jnp.where(fresh, y, x + y) for x, y in zip(a[1:], b[1:])))

  zeroed = lambda x: jnp.where(live, x, 0).astype(jnp.float32)
  sums = (first, zeroed(live), zeroed(statistics.teacher_nll), zeroed(statistics.nll))
  _, count, teacher, student = lax.associative_scan(add, sums, axis=-1)
  after = jnp.concatenate([(first | ~live)[..., 1:], jnp.ones_like(live[..., :1])], -1)
  last = live & after
  count = jnp.maximum(count, 1)
  teachers = last & (jnp.exp(-teacher / count) - jnp.exp(-student / count) > 0.1)
  return teachers, last


@scorer("difficulty")
def morsd(statistics: Statistics, live: Live, noise: Noise) -> Scores:
  """Rationale Difficulty PPL(answer | q, r) / PPL(answer | q): MoRSD (arXiv 2509.23574)."""
  return statistics.difficulty  # pyright: ignore[reportReturnType]: declared, so not None


@scorer("long", negative=True)
def mix_long(statistics: Statistics, live: Live, noise: Noise) -> Scores:
  """Mix-Long 1:4 (arXiv 2502.12143): the longest trace of one problem in five, else the shortest."""
  return jnp.where(
    statistics.long, longest(statistics, live, noise), shortest(statistics, live, noise)
  )


# ---------------------------------------------------------------- the statistics


def token_statistics(
  model: decoder.Transformer,
  hidden: Float[Array, "b k t d"],
  targets: Int[Array, "b k t"],
  *,
  limit: int | None = None,
) -> Statistics:
  """Statistics (nll, rank, entropy) of targets under normed hidden states.

  A device holds at most `limit` logits at a time (by default, see LOGITS). What a scorer leaves unused
  is not computed.
  """
  b, k, t = targets.shape
  limit = LOGITS[model.layout.unroll] if limit is None else limit
  rows = math.prod(jax.typeof(targets).sharding.shard_shape((b, k, t))[:2])
  fits = lambda n: rows * n * model.arch.vocab <= limit
  step = next(n for n in range(t, 0, -1) if t % n == 0 and (fits(n) or n == 1))
  if step == t:
    return Statistics(**_statistics(model, hidden, targets))
  fold = lambda x: jnp.moveaxis(lax.reshape(x, (b, k, t // step, step, *x.shape[3:])), 2, 0)
  found = lax.map(lambda xs: _statistics(model, *xs), (fold(hidden), fold(targets)))
  unfold = lambda x: lax.reshape(jnp.moveaxis(x, 0, 2), (b, k, t))
  return Statistics(**{name: unfold(x) for name, x in found.items()})


def _statistics(model, hidden, targets):
  """{name: f32[b,k,t]} of the statistics that a student forward gives."""
  scores = decoder.logits(model, hidden)
  top = jnp.max(scores, -1, keepdims=True)
  p = jnp.exp(scores - top)
  total = jnp.sum(p, -1)
  hit = targets[..., None] == jnp.arange(scores.shape[-1], dtype=targets.dtype)
  chosen = jnp.sum(jnp.where(hit, scores - top, 0), -1)
  rank = 1 + jnp.sum(scores - top > chosen[..., None], -1).astype(jnp.float32)
  entropy = jnp.log(total) - jnp.sum(p * (scores - top), -1) / total
  return {"nll": jnp.log(total) - chosen, "rank": rank, "entropy": entropy}
