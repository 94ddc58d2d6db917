"""How a student's distributions of next tokens differ from those of another model, on given texts."""

from collections.abc import Sequence
import functools
import typing

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np

from gen_ssd import mesh
from gen_ssd.models import decoder
from gen_ssd.models import texts
from gen_ssd.training import objectives
from gen_ssd.training import reading
from gen_ssd.training import terms

BLOCK = 64  # positions whose logits are in memory at a time


class Figures(typing.NamedTuple):
  """Means over the tokens of a response, in nats per token. p is the student, q the other model."""

  nll: float  # of p
  entropy: float  # of p
  forward: float  # KL(q || p)
  reverse: float  # KL(p || q)


def read(
  student: decoder.Transformer,
  other: decoder.Transformer | None,
  pairs: Sequence[tuple[list[int], list[int]]],
  *,
  vocab: int,
  batch: int,
) -> list[Figures]:
  """The Figures of each response, of (prompt ids, response ids) of both models.

  Divergences are those of whole distributions, over the `vocab` ids that both models know. Without
  another model they are 0.

  Args:
    student, other: placed on the current mesh as train.layout says.
    batch: texts read at a time; a multiple of the devices.
  """
  forward = functools.partial(_figures, student, other, mesh.place(np.int32(vocab)))
  whole = [[*prompt, *response] for prompt, response in pairs]
  found = texts.read(forward, whole, batch=batch, axes=mesh.AXES)
  return [
    Figures(*(float(x[len(prompt) - 1 : -1].mean()) for x in each))
    for each, (prompt, _) in zip(found, pairs)
  ]


@jax.jit
def _figures(student, other, vocab, tokens, length):
  """Figures of f32[b,t]: what each position, which predicts the next token, adds to the means."""
  b, t = tokens.shape
  index = jnp.broadcast_to(jnp.arange(t), (b, t))
  seen = (index < length[:, None]).astype(jnp.int32)
  attend = min(t, 1024)
  readers = [reading.reader(m, tokens, index, seen, block=attend) for m in (student, other) if m]
  targets = objectives.next_token(tokens)

  def block(i):
    cut = lambda x, axis: jax.lax.dynamic_slice_in_dim(x, i * BLOCK, BLOCK, axis)
    logits = [decoder.logits(r.model, cut(r.hidden, 2))[:, 0] for r in readers]
    p, q = terms.compared(logits[0], logits[-1], vocab)
    target = cut(targets, 1)
    own = objectives.nll(p, target), objectives.entropy(p, target)
    return *own, objectives.fkl(p, target, q), objectives.rkl(p, target, q)

  found = terms.blocks(block, t, BLOCK)
  return jax.tree.map(lambda x: jax.sharding.reshard(x, P(None, None)), found)
