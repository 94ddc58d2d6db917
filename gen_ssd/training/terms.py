"""The loss: a sum of terms, each an objective for some of the tokens, in blocks of positions.

`where` and `gate` of a Term name a function of WHERES and GATES:

  where(entropy f32[b,t], live f32[b,t], segments int32[b,t], share) -> factor f32[b,t]
  gate(logits f32[b,t,v], other f32[b,t,v]) -> factor f32[b,t]

Neither passes a gradient on. Divisors are the same for all terms: the number of tokens to be learned.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import functools
import typing

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.sharding import reshard
from jaxtyping import Float
from jaxtyping import Int
from jaxtyping import Shaped
import numpy as np

from gen_ssd import config as config_lib
from gen_ssd.arrays import Array
from gen_ssd.arrays import pytree
from gen_ssd.models import decoder
from gen_ssd.training import objectives
from gen_ssd.training import reading

Terms = tuple[tuple[str, config_lib.Term], ...]
Columns = dict[str, dict[str, Shaped[Array, "b t"]]]


@pytree
class Knobs:
  """Numbers of the terms that do not change the compiled program. A row is a term."""

  scale: Float[Array, " n"]
  beta: Float[Array, " n"]
  share: Float[Array, " n"]
  temperature: Float[Array, " n 2"]  # at the first and the last update
  vocab: Int[Array, ""]  # ids that both models know; the logits of others, which pad, do not count


def knobs(terms: Terms, vocab: int = 0) -> Knobs:
  """The Knobs of terms on the host; `vocab` matters where there is a second model."""
  row = lambda name: np.array([getattr(term, name) for _, term in terms], np.float32)
  return Knobs(
    scale=row("scale"),
    beta=row("beta"),
    share=row("share"),
    temperature=row("temperature"),
    vocab=np.array(vocab, np.int32),
  )


def static(terms: Terms) -> Terms:
  """What the compiled program depends on: `Knobs` has the rest. jsd at an end of beta is fkl or rkl."""
  plain = config_lib.Term()
  numbers = {name: getattr(plain, name) for name in ("scale", "beta", "share", "temperature")}
  ends = {0.0: "fkl", 1.0: "rkl"}
  kind = lambda term: ends.get(term.beta, "jsd") if term.objective == "jsd" else term.objective
  return tuple(
    (name, dataclasses.replace(term, objective=kind(term), **numbers)) for name, term in terms
  )


def models(train: config_lib.Train) -> tuple[str, ...]:
  """The models that training holds beside the student, by Term.whom, in the same order everywhere.

  They are those of the terms, and with credit `gap` the teacher, which reads what the student writes.
  """
  used = [t.whom for _, t in train.terms if needs_other(t)]
  return tuple(dict.fromkeys([*used, *["teacher"] * (train.credit == "gap")]))


def frozen(terms: Terms) -> tuple[str, ...]:
  """The second models that the terms compare with, without those that training itself makes."""
  used = dict.fromkeys(t.whom for _, t in terms if needs_other(t))
  return tuple(whom for whom in used if whom != "lagged")


def needs_other(term: config_lib.Term) -> bool:
  """Does the term compare the student with a second model?"""
  return objectives.takes(objectives.OBJECTIVES[term.objective], "other") or term.gate != "off"


# ---------------------------------------------------------------- which tokens


def everywhere(entropy, live, segments, share):
  """Every token."""
  del entropy, segments, share
  return jnp.ones_like(live)


def opener(entropy, live, segments, share):
  """The first tokens of a trace, up to `share` of its entropy (TSD-KD, arXiv:2603.13260)."""
  before, total = _sums(entropy * live, segments)
  return (before < share * total).astype(jnp.float32)


def uncertain(entropy, live, segments, share):
  """The `share` of a trace's tokens with the highest entropy; they count 1 / share (TSD-KD)."""
  place = jnp.cumsum(jnp.ones_like(segments), 1) - 1
  key = jnp.where(live > 0, -entropy, jnp.inf)
  by_segment, _, origin = lax.sort((segments, key, place), dimension=1, num_keys=2)
  begins = jnp.where((place == 0) | (by_segment != jnp.roll(by_segment, 1, 1)), place, 0)
  rank = place - lax.cummax(begins, axis=1)  # within the segment, the most uncertain first
  _, rank = lax.sort((origin, rank), dimension=1, num_keys=1)
  return (rank < jnp.ceil(share * _sums(live, segments)[1] - 1e-4)) / share


def _sums(x, segments):
  """(sum of x before each token within its segment, sum over its segment)."""
  size = segments.shape[1] + 1
  total = jax.vmap(lambda x, s: jax.ops.segment_sum(x, s, num_segments=size))(x, segments)
  before = jnp.cumsum(x, 1) - x
  start = jax.vmap(lambda x, s: jax.ops.segment_min(x, s, num_segments=size))(before, segments)
  at = lambda per: jnp.take_along_axis(per, segments, 1)
  return before - at(start), at(total)


def entropy_gap(logits, other):
  """sigmoid(H(p) - H(q)): tokens count where the student is less sure than the other model (TSD-KD)."""
  return jax.nn.sigmoid(objectives.token_entropy(logits) - objectives.token_entropy(other))


WHERES = {"all": everywhere, "opener": opener, "uncertain": uncertain}
GATES = {"entropy_gap": entropy_gap}


# ---------------------------------------------------------------- the sum


def sums(
  terms: Terms,
  numbers: Knobs,
  progress: Float[Array, ""],
  student: reading.Reader,
  others: Mapping[str, reading.Reader],
  targets: Int[Array, "b t"],
  live: Float[Array, "b t"],
  segments: Int[Array, "b t"],
  columns: Columns,
  *,
  block: int,
) -> tuple[Float[Array, " n"], Float[Array, ""]]:
  """Every term's sum over live positions, scaled, in nats; and the number of live positions.

  Logits of all models exist for `block` positions at a time and are recomputed in the backward pass, so
  [b,t,v] is never in memory when block < t.

  Args:
    progress: 0 at the first update and 1 at the last, for temperatures.
    others: the second models, by Term.whom.
    columns: of every term, as objectives.shift_columns returns them.
    block: divides t.
  """
  t, shards = targets.shape[1], student.shards
  cut = functools.partial(_cut, block=block, shards=shards)
  logits = lambda reader, i: decoder.logits(reader.model, cut(reader.hidden, i, axis=2))[:, 0]
  masks = {}
  if any(term.where != "all" for _, term in terms):
    entropy = blocks(lambda i: objectives.token_entropy(logits(student, i)), t, block, shards)
    entropy = reshard(entropy, P(student.split[0], None))
    for n, (name, term) in enumerate(terms):
      masks[name] = live * WHERES[term.where](entropy, live, segments, numbers.share[n])
  count = jnp.sum(live)
  targets, live, masks, columns = jax.tree.map(
    lambda x: reshard(x, student.split), (targets, live, masks, columns)
  )
  temperatures = numbers.temperature[:, 0] + progress * (
    numbers.temperature[:, 1] - numbers.temperature[:, 0]
  )

  def block_sums(i):
    mine = logits(student, i)
    theirs = {whom: lax.stop_gradient(logits(reader, i)) for whom, reader in others.items()}
    found = []
    for n, (name, term) in enumerate(terms):
      here = {column: cut(x, i) for column, x in columns[name].items()}
      nats = _nats(term, n, numbers, temperatures[n], mine, theirs, cut(targets, i), here)
      found.append(jnp.sum(nats * cut(masks.get(name, live), i)))
    return jnp.stack(found)

  if block == t:
    total = block_sums(0)
  else:
    block_sums = jax.checkpoint(block_sums)
    total, _ = lax.scan(
      lambda total, i: (total + block_sums(i), None),
      jnp.zeros(len(terms), jnp.float32),
      jnp.arange(t // block),
    )
  return total * numbers.scale, count


def _cut(x, i, block, shards, axis=1):
  """Block i of the positions, to which each shard contributes equally."""
  (*before, t), after, size = x.shape[: axis + 1], x.shape[axis + 1 :], block // shards
  x = x.reshape(*before, shards, t // shards, *after)
  x = lax.dynamic_slice_in_dim(x, i * size, size, axis + 1)
  return x.reshape(*before, block, *after)


def blocks(call: Callable[[Array], typing.Any], t: int, block: int, shards: int = 1) -> typing.Any:
  """call(i) of every block of positions, put together: a tree of [b,t]. No gradient passes."""
  parts = lax.map(lambda i: lax.stop_gradient(call(i)), jnp.arange(t // block))

  def together(x):
    x = x.reshape(*x.shape[:2], shards, block // shards)
    return jnp.transpose(x, (1, 2, 0, 3)).reshape(x.shape[1], t)

  return jax.tree.map(together, parts)


def _nats(term, n, numbers, temperature, mine, theirs, targets, columns):
  """What the tokens of a block cost by one term, before its scale and mask."""
  objective, settings = objectives.OBJECTIVES[term.objective], {}
  if needs_other(term):
    mine, other = compared(mine, theirs[term.whom], numbers.vocab, temperature)
    gate = lax.stop_gradient(GATES[term.gate](mine, other)) if term.gate != "off" else 1.0
    if term.top_k and term.objective in objectives.DIVERGENCES:
      mine, other = objectives.coarse(mine, other, term.top_k)
    settings["other"] = other
  else:
    gate = 1.0
  settings |= dict(beta=numbers.beta[n], normalize=term.normalize, top_k=term.top_k)
  wanted = {name: x for name, x in settings.items() if objectives.takes(objective, name)}
  return objective(mine, targets, **wanted, **columns) * gate


def compared(
  mine: Float[Array, "b t _"],
  other: Float[Array, "b t _"],
  vocab: Int[Array, ""],
  temperature: Float[Array, ""] | float = 1.0,
) -> tuple[Float[Array, "b t v"], Float[Array, "b t v"]]:
  """Logits of two models over the ids that both have and know, divided by the temperature."""
  size = min(mine.shape[-1], other.shape[-1])
  known = jnp.arange(size) < vocab
  cut = lambda x: jnp.where(known, x[..., :size] / temperature, objectives.NEVER)
  return cut(mine), cut(other)
