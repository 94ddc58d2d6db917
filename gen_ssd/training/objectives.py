"""Training objectives: what one target token costs, in nats, and its sum over a packed batch.

An objective is a function

  objective(logits f32[b,t,v], targets int32[b,t], **columns) -> nats f32[b,t]

of a block of positions. `train.objective` names one of OBJECTIVES. Its parameters after the first
two are names of per-token columns of the training examples, for instance `weights`; a parameter
with a default is optional. To add an objective, write the function and add it to OBJECTIVES.
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
from gen_ssd.models import decoder

Objective = typing.Callable[..., Float[Array, "b t"]]


def nll(
  logits: Float[Array, "b t v"],
  targets: Int[Array, "b t"],
  weights: Float[Array, "b t"] | float = 1.0,
) -> Float[Array, "b t"]:
  """Negative log-likelihood of the targets, times the column `weights` where the data has it.

  Weights may be negative. Without the column every weight is 1: supervised fine-tuning.
  """
  return token_nll(logits, targets) * weights


OBJECTIVES: dict[str, Objective] = {f.__name__: f for f in (nll,)}


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


def shift_columns(
  objective: Objective, columns: dict[str, Shaped[Array, "b t"]]
) -> dict[str, Shaped[Array, "b t"]]:
  """The columns that `objective` takes, shifted so that they stand beside their targets.

  Raises UserError when a column is missing that the objective has no default for.
  """
  wanted = list(inspect.signature(objective).parameters.values())[2:]
  for p in wanted:
    if p.name not in columns and p.default is p.empty:
      raise errors.UserError(
        f"train.objective is {objective.__name__!r}: it needs the column {p.name!r}, "
        f"and the training data has {', '.join(sorted(columns))}"
      )
  return {p.name: next_token(columns[p.name]) for p in wanted if p.name in columns}


def objective_sum(
  objective: Objective,
  model: decoder.Transformer,
  hidden: Float[Array, "b 1 t d"],
  targets: Int[Array, "b t"],
  live: Float[Array, "b t"],
  columns: dict[str, Shaped[Array, "b t"]],
  *,
  block: int,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """Sum of an objective over live positions in nats, and the number of live positions.

  `hidden` is normed, `columns` are as `shift_columns` returns them, and `block` divides t.
  Logits exist for `block` positions at a time and are recomputed in the backward pass, so
  [b,t,v] is never in memory when block < t.
  """
  t = targets.shape[1]

  def block_sum(i):
    cut = lambda x, axis=1: lax.dynamic_slice_in_dim(x, i * block, block, axis)
    logits = decoder.logits(model, cut(hidden, 2))[:, 0]
    nats = objective(logits, cut(targets), **{name: cut(x) for name, x in columns.items()})
    return jnp.sum(nats * cut(live))

  if block == t:
    total = block_sum(0)
  else:
    block_sum = jax.checkpoint(block_sum)
    total, _ = lax.scan(
      lambda total, i: (total + block_sum(i), None), jnp.float32(0), jnp.arange(t // block)
    )
  return total, jnp.sum(live)
