"""Training objectives: what one target token costs, in nats, and the shifts that put targets in place.

An objective is a function

  objective(logits f32[b,t,v], targets int32[b,t], ...) -> nats f32[b,t]

of a block of positions. Each further parameter has a name of SETTINGS, which a Term of the config
sets; the name `other`, for the logits f32[b,t,v] of a second model at the same positions; or the name
of a per-token column of the training examples, for instance `weights`. A column with a default is
optional. `train.terms.NAME.objective` names one of OBJECTIVES. To add an objective, write the function
and add it to OBJECTIVES; terms.py sums it up.

Below, p is the student's distribution and q the other model's.
"""

import inspect
import typing

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Float
from jaxtyping import Int
from jaxtyping import Shaped

from gen_ssd import errors
from gen_ssd.arrays import Array

Nats = Float[Array, "b t"]
Logits = Float[Array, "b t v"]
Targets = Int[Array, "b t"]
Number = Float[Array, ""] | float
Objective = typing.Callable[..., Nats]

SETTINGS = ("beta", "normalize", "top_k")
NEVER = -1e9  # a logit that no exponential function notices


def nll(logits: Logits, targets: Targets, weights: Nats | float = 1.0) -> Nats:
  """Negative log-likelihood of the targets, times the column `weights` where the data has it.

  Weights may be negative. Without the column every weight is 1: supervised fine-tuning.
  """
  return token_nll(logits, targets) * weights


def fkl(logits: Logits, targets: Targets, other: Logits) -> Nats:
  """Forward divergence KL(q || p): the student covers what the other model may write."""
  del targets
  return _kl(_log(other), _log(logits))


def rkl(logits: Logits, targets: Targets, other: Logits) -> Nats:
  """Reverse divergence KL(p || q): the student writes what the other model finds likely."""
  del targets
  return _kl(_log(logits), _log(other))


def jsd(logits: Logits, targets: Targets, other: Logits, beta: Number, normalize: bool) -> Nats:
  """Generalised Jensen-Shannon divergence (GKD, arXiv:2306.13649).

  It is beta KL(q || m) + (1 - beta) KL(p || m) with m = (1 - beta) p + beta q and beta strictly between
  0 and 1. It vanishes at both ends; with `normalize` it is divided by beta (1 - beta), and its ends are
  fkl and rkl.
  """
  del targets
  p, q, beta = _log(logits), _log(other), jnp.asarray(beta, jnp.float32)
  m = jnp.logaddexp(p + jnp.log1p(-beta), q + jnp.log(beta))
  found = beta * _kl(q, m) + (1 - beta) * _kl(p, m)
  return found / (beta * (1 - beta)) if normalize else found


def rank(logits: Logits, targets: Targets, other: Logits, top_k: int) -> Nats:
  """-log Plackett-Luce probability of the other model's order of the student's likeliest tokens.

  There are `top_k` of them. This is the indirect loss of TSD-KD (arXiv:2603.13260).
  """
  del targets
  _, ids = lax.top_k(lax.stop_gradient(logits), top_k)
  order = jnp.argsort(-_at(other, ids), axis=-1)
  z = _at(logits, _at(ids, order))
  return jnp.sum(lax.cumlogsumexp(z, axis=z.ndim - 1, reverse=True) - z, -1)


def pld(logits: Logits, targets: Targets, other: Logits, top_k: int) -> Nats:
  """Plackett-Luce distillation (arXiv:2506.12542): the target first, then the other model's order.

  Every place of the order counts as its token's q. The order holds the target and the `top_k` tokens
  that are likeliest to the other model; the paper, which has classes for tokens, takes all.
  """
  _, ids = lax.top_k(other, top_k)
  again = ids == targets[..., None]
  z = jnp.where(again, NEVER, _at(logits, ids))
  q = jnp.where(again, 0.0, jnp.exp(_at(_log(other), ids)))
  first = targets[..., None]
  z = jnp.concatenate([_at(logits, first), z], -1)
  q = jnp.concatenate([jnp.exp(_at(_log(other), first)), q], -1)
  return jnp.sum(q * (lax.cumlogsumexp(z, axis=z.ndim - 1, reverse=True) - z), -1)


def entropy(logits: Logits, targets: Targets) -> Nats:
  """The student's entropy."""
  del targets
  return token_entropy(logits)


def k2(logits: Logits, targets: Targets, other: Logits) -> Nats:
  """(log p - log q)^2 / 2 of the target, which estimates a divergence: CurioSFT (arXiv:2602.02244)."""
  return jnp.square(token_nll(logits, targets) - token_nll(other, targets)) / 2


OBJECTIVES: dict[str, Objective] = {
  f.__name__: f for f in (nll, fkl, rkl, jsd, rank, pld, entropy, k2)
}
DIVERGENCES = ("fkl", "rkl", "jsd")  # with top_k: of k tokens and one category for all the others


def _log(logits):
  return jax.nn.log_softmax(logits, -1)


def _kl(log_a, log_b):
  """KL(a || b) of log-probabilities, in nats."""
  return jnp.sum(jnp.exp(log_a) * (log_a - log_b), -1)


def _at(x, ids):
  return jnp.take_along_axis(x, ids, -1)


def token_entropy(logits: Logits) -> Nats:
  """Entropy of softmax(logits) in nats."""
  log_p = _log(logits)
  return -jnp.sum(jnp.exp(log_p) * log_p, -1)


def coarse(
  logits: Logits, other: Logits, k: int
) -> tuple[Float[Array, "b t _"], Float[Array, "b t _"]]:
  """Log-probabilities of both models for the other one's k likeliest tokens, and for all the rest.

  A divergence of these is one: at least 0, at most that of all tokens.
  """
  log_q = _log(other)
  top, ids = lax.top_k(log_q, k)
  rest = lambda x: jnp.log(-jnp.expm1(jnp.minimum(jax.nn.logsumexp(x, -1, keepdims=True), -1e-6)))
  with_rest = lambda x: jnp.concatenate([x, rest(x)], -1)
  return with_rest(_at(_log(logits), ids)), with_rest(top)


def token_nll(scores: Float[Array, "*b v"], targets: Int[Array, "*b"]) -> Float[Array, "*b"]:
  """-log softmax(scores)[target] in nats, f32: one number for each position of `targets`."""
  hit = targets[..., None] == jnp.arange(scores.shape[-1], dtype=targets.dtype)
  return jax.nn.logsumexp(scores, -1) - jnp.sum(jnp.where(hit, scores, 0), -1)


def next_token(column: Shaped[Array, "b t"]) -> Shaped[Array, "b t"]:
  """The column shifted by one: position i gets the value of token i+1, the last one that of 0."""
  return jnp.roll(column, -1, axis=1)


def shift_targets(
  tokens: Int[Array, "b t"], mask: Shaped[Array, "b t"], segments: Int[Array, "b t"]
) -> tuple[Int[Array, "b t"], Float[Array, "b t"]]:
  """Next-token targets of packed sequences: (targets int32[b,t], live f32[b,t]).

  `mask` is nonzero at tokens to be learned. Position i predicts token i+1 of the same segment;
  `live` is the mask of that token, and 0 where there is no such token. Segment 0 is padding.
  """
  same = (segments == next_token(segments)) & (segments > 0)
  has_next = jnp.arange(tokens.shape[1]) < tokens.shape[1] - 1
  return next_token(tokens), jnp.where(same & has_next, next_token(mask), 0).astype(jnp.float32)


def columns_of(objective: Objective) -> dict[str, inspect.Parameter]:
  """The columns that `objective` takes, by name."""
  parameters = [*inspect.signature(objective).parameters.items()][2:]
  return {name: p for name, p in parameters if name not in (*SETTINGS, "other")}


def takes(objective: Objective, name: str) -> bool:
  """Does `objective` have a parameter of this name?"""
  return name in inspect.signature(objective).parameters


def shift_columns(
  objective: Objective, columns: dict[str, Shaped[Array, "b t"]]
) -> dict[str, Shaped[Array, "b t"]]:
  """The columns that `objective` takes, shifted so that they stand beside their targets.

  Raises UserError when a column is missing that the objective has no default for.
  """
  for name, p in (wanted := columns_of(objective)).items():
    if name not in columns and p.default is p.empty:
      raise errors.UserError(
        f"the objective {objective.__name__!r} needs the column {name!r}, "
        f"and the training data has {', '.join(sorted(columns))}"
      )
  return {name: next_token(columns[name]) for name in wanted if name in columns}
