"""A round as two programs, for a teacher and a student whose tokenizers differ.

Between them the host turns the candidates into the student's tokens: see collect/translate.py.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.sharding import reshard
from jaxtyping import Int

from gen_ssd.arrays import Array
from gen_ssd.arrays import pytree
from gen_ssd.engine import ring as ring_lib
from gen_ssd.engine import scores
from gen_ssd.engine import scoring
from gen_ssd.engine import state as state_lib
from gen_ssd.engine import step as step_lib
from gen_ssd.models import decoder
from gen_ssd.models.architecture import Spec


@pytree
class Moved:
  """Candidates in the student's tokens, behind what it keeps of the trace."""

  tokens: Int[Array, "b k e"]
  count: Int[Array, "b k"]
  home: Int[Array, "b k e"]  # teacher token of the chunk that a token ends in, -1 for none
  length: Int[Array, " b"]  # tokens of the slot before `last`; later ones are taken back
  last: Int[Array, " b"]


@functools.partial(jax.jit, static_argnames="round")
def propose(
  teacher: decoder.Transformer,
  state: state_lib.State,
  knobs: state_lib.Knobs,
  *,
  round: state_lib.Round,
) -> tuple[state_lib.Proposal, tuple]:
  """(Proposal, its tokens, counts and ends for the host); `state` is not donated."""
  p = step_lib.propose(teacher, state, knobs, round)
  replicate = lambda x: reshard(x, P(*[None] * x.ndim))
  return p, tuple(map(replicate, (p.candidates.tokens, p.candidates.count, p.ended)))


@functools.partial(jax.jit, static_argnames=("c", "block"), donate_argnums=1)
def read(
  student: decoder.Transformer,
  ring: ring_lib.Ring,
  slot: Int[Array, " r"],
  text: ring_lib.Text,
  *,
  c: int,
  block: int,
) -> ring_lib.Ring:
  """The student reads text i into slot `slot[i]`, as step.admit does."""
  return ring_lib.read(student, ring, slot, text, c, block)


@functools.partial(jax.jit, static_argnames="round", donate_argnums=(1, 2))
def settle(
  student: decoder.Transformer,
  state: state_lib.State,
  ring: ring_lib.Ring,
  knobs: state_lib.Knobs,
  proposal: state_lib.Proposal,
  moved: Moved,
  *,
  round: state_lib.Round,
) -> tuple[state_lib.State, ring_lib.Ring, state_lib.Report, Int[Array, " b"]]:
  """Rewinds the student's ring, scores, chooses and commits.

  `round.block` is that of the student's ring; knobs.context counts the student's tokens. Returns
  (State, Ring, Report, the age of the slots in the student's ring).
  """
  c = proposal.candidates.tokens.shape[2]
  local = lambda x: reshard(x, P(student.layout.batch_axes, *[None] * (x.ndim - 1)))
  running = local(state.status == state_lib.RUNNING)
  ring = ring_lib.rewind(ring, running, moved.length, moved.last)

  belongs = moved.home[..., None] == jnp.arange(c)  # [b,k,e,c]
  total = lambda x: jnp.sum(jnp.where(belongs, x[..., None], 0), 2)
  highest = lambda x: jnp.max(jnp.where(belongs, x[..., None], 0), 2)
  theirs = jax.tree.map(local, proposal.candidates)

  def by_teacher_token(found, _, noise):
    statistics = scores.Statistics(
      nll=total(found.nll),
      rank=highest(found.rank),
      entropy=total(found.entropy),
      teacher_nll=theirs.teacher_nll,
      step_start=theirs.step_start,
    )
    return round.scorer(statistics, theirs.live, noise)

  nothing = jnp.zeros_like(moved.tokens)
  candidates = state_lib.Candidates(
    tokens=moved.tokens,
    count=moved.count,
    teacher_nll=nothing.astype(jnp.float32),
    step_start=nothing.astype(bool),
    noise=theirs.noise,
  )
  near = (state.prompt_length, knobs.context) if round.short_context else None
  scored = scoring.score(student, ring, candidates, running, by_teacher_token, round.block, near)
  seen = jnp.any(moved.home >= 0, -1)  # else it has no character of its own: as good as empty
  seen = reshard(seen, P(jax.typeof(proposal.candidates.count).sharding.spec[0], None))
  found = state_lib.Scored(
    nll=total(scored.nll), rank=highest(scored.rank), score=scored.score, cache=None
  )
  state, report = step_lib.settle(state, knobs, proposal, found, round, seen)
  choice = local(report.choice)
  winner = jnp.maximum(choice, 0)
  pick = lambda x: jnp.take_along_axis(x, winner.reshape((-1,) + (1,) * (x.ndim - 1)), 1)[:, 0]
  kept = jnp.where(running & (choice >= 0), pick(moved.count), 0)
  ring = ring_lib.advance(ring, running, scored.cache, winner, kept, pick(moved.tokens))
  return state, ring, report, reshard(ring.age, P(None))


@functools.partial(jax.jit, static_argnames=("spec", "b", "s"))
def blank_ring(*, spec: Spec, b: int, s: int) -> ring_lib.Ring:
  """An empty ring for the student: s ring slots for b batch slots."""
  return ring_lib.blank(spec, b, s)
