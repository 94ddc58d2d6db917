"""The compiled heart: expand, score, select, commit as one jitted step over donated state."""

import dataclasses
import functools

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.sharding import reshard
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int

from gen_ssd.arrays import Array
from gen_ssd.arrays import pytree
from gen_ssd.engine import ring as ring_lib
from gen_ssd.engine import sampling
from gen_ssd.engine import scores as scores_lib
from gen_ssd.engine import scoring
from gen_ssd.engine import selectors
from gen_ssd.engine.state import CONTINUES
from gen_ssd.engine.state import DELIMITER
from gen_ssd.engine.state import ENDED
from gen_ssd.engine.state import EOS
from gen_ssd.engine.state import IDLE
from gen_ssd.engine.state import LENGTH
from gen_ssd.engine.state import PRUNED
from gen_ssd.engine.state import RUNNING
from gen_ssd.engine.state import Admission
from gen_ssd.engine.state import Candidates
from gen_ssd.engine.state import Knobs
from gen_ssd.engine.state import Proposal
from gen_ssd.engine.state import Report
from gen_ssd.engine.state import Round
from gen_ssd.engine.state import Scored
from gen_ssd.engine.state import State
from gen_ssd.models import attention
from gen_ssd.models import decoder
from gen_ssd.models.architecture import Spec

# ---------------------------------------------------------------- start


@functools.partial(jax.jit, static_argnames=("teacher", "student", "b", "s", "window"))
def blank_state(*, teacher: Spec, student: Spec | None, b: int, s: int, window: int) -> State:
  """Idle slots for a teacher and a student (or None): b batch slots, s ring slots."""
  batch = teacher.layout.batch_axes
  zeros = lambda dtype=jnp.int32, *tail: jnp.zeros(
    (b, *tail), dtype, out_sharding=P(batch, *[None] * len(tail))
  )
  return State(
    teacher=ring_lib.blank(teacher, b, s),
    student=ring_lib.blank(student, b, s) if student else None,
    key=jax.random.wrap_key_data(zeros(jnp.uint32, 2)),
    chunk=zeros(),
    resample=zeros(),
    budget=zeros(),
    recent=zeros(jnp.int32, window - 1) - 1,
    score_sum=zeros(jnp.float32),
    prompt_length=zeros(),
    after_thinking=zeros(bool),
    status=zeros() + IDLE,
  )


@functools.partial(jax.jit, static_argnames=("c", "block"), donate_argnums=2)
def admit(
  teacher: decoder.Transformer,
  student: decoder.Transformer | None,
  state: State,
  admission: Admission,
  *,
  c: int,
  block: int,
) -> State:
  """Reads the admission into its slots, a chunk of c tokens at a time; others stay as they are.

  The tokens end right before the cursor. The trip count follows the longest, so one program
  serves prompts and half-written traces. All but the newest token must fit the ring.
  """
  slot = admission.slot
  names = {f.name for f in dataclasses.fields(admission)} - {"slot", "teacher", "student"}
  found = {name: getattr(admission, name) for name in sorted(names)}
  found["status"] = jnp.full_like(slot, RUNNING)
  held = {name: getattr(state, name) for name in found} | {"key": jax.random.key_data(state.key)}
  found = ring_lib.put_rows(held, found, slot)
  found["key"] = jax.random.wrap_key_data(found["key"])
  student_ring = state.student
  if student_ring is not None:
    student_ring = ring_lib.read(student, student_ring, slot, admission.student, c, block)
  return State(
    teacher=ring_lib.read(teacher, state.teacher, slot, admission.teacher, c, block),
    student=student_ring,
    **found,
  )


# ---------------------------------------------------------------- a round


@functools.partial(jax.jit, static_argnames="round", donate_argnums=2)
def select_step(
  teacher: decoder.Transformer,
  student: decoder.Transformer | None,
  state: State,
  knobs: Knobs,
  *,
  round: Round,
) -> tuple[State, Report]:
  """One round for every running slot: expand, score, select, commit.

  Both models lie on the current mesh; without a student (then k is 1) this is plain sampling. A slot
  that the last Report calls full must be admitted anew first.
  `state` is donated. Raises ValueError for k > 1 without a student.
  """
  if student is None and round.k > 1:
    raise ValueError(f"select.k is {round.k}: choosing among candidates needs a student")
  proposal = propose(teacher, state, knobs, round)
  found = proposal.candidates
  if student is None or state.student is None:
    nothing = jnp.zeros_like(found.teacher_nll)
    scored = Scored(
      nll=nothing,
      rank=jnp.zeros_like(found.tokens),
      score=jnp.zeros_like(found.count, dtype=jnp.float32),
      cache=None,
    )
  else:
    near = (state.prompt_length, knobs.context) if round.short_context else None
    running = state.status == RUNNING
    scored = scoring.score(student, state.student, found, running, round.scorer, round.block, near)
  return settle(state, knobs, proposal, scored, round)


def propose(teacher: decoder.Transformer, state: State, knobs: Knobs, round: Round) -> Proposal:
  """The first half of a round: k candidates per slot."""
  u = sampling.uniforms(state.key, state.chunk, state.resample, round.k, round.c + 1)
  branches = _expand(teacher, state, knobs, u[:, :, 1:], round)
  candidates = Candidates(
    tokens=branches.tokens,
    count=branches.count,
    teacher_nll=branches.nll,
    step_start=_step_starts(state, knobs, branches.tokens),
    noise=u[:, :, 0, 0],
  )
  return Proposal(
    candidates=dataclasses.replace(candidates, step_start=candidates.live & candidates.step_start),
    ended=branches.end == EOS,
    cache=branches.cache,
    noise=u[:, 0, 0, 1],
    not_finite=branches.not_finite,
    decoded=branches.t,
  )


def settle(
  state: State,
  knobs: Knobs,
  proposal: Proposal,
  scored: Scored,
  round: Round,
  allowed: Bool[Array, "b k"] | bool = True,
) -> tuple[State, Report]:
  """The second half: choose by score, commit, report. Candidates not `allowed` are not valid."""
  found = proposal.candidates
  batch, running = jax.typeof(found.count).sharding.spec[0], state.status == RUNNING
  nll, rank = (reshard(x, P(batch, None, None)) for x in (scored.nll, scored.rank))
  score = reshard(scored.score, P(batch, None))
  unusable = jnp.any(jnp.where(found.live, ~jnp.isfinite(nll), False), (1, 2))
  valid = (found.count > 0) & allowed
  valid &= ~selectors.loops(state.recent, found.tokens, found.count, round.window)
  valid &= ~state.after_thinking[:, None]
  teacher_nll = scores_lib.mean(found.teacher_nll, found.live)
  likely = selectors.likeliest(teacher_nll, valid, knobs.limits.teacher_share)
  choice = round.selector(score, likely, knobs.limits, proposal.noise)
  choice = jnp.where(state.after_thinking, 0, choice)
  average = jnp.where(state.chunk > 0, state.score_sum / jnp.maximum(state.chunk, 1), jnp.inf)
  suitable = selectors.suitable(score, valid, choice, knobs.limits, average)
  suitable = running & (state.after_thinking | suitable)
  state = _commit(
    state, knobs, proposal, dataclasses.replace(scored, score=score), choice, suitable
  )
  report = Report(
    tokens=found.tokens,
    count=found.count,
    score=score,
    valid=valid,
    student_nll=nll,
    student_rank=rank,
    step_start=found.step_start,
    teacher_nll=found.teacher_nll,
    choice=jnp.where(suitable, choice, -1),
    score_sum=state.score_sum,
    status=state.status,
    full=_full(state, found.tokens.shape[2], batch),
    not_finite=proposal.not_finite | running & unusable,
    decoded=proposal.decoded,
  )
  return state, jax.tree.map(lambda x: reshard(x, P(*[None] * x.ndim)), report)


def _full(state, c, batch):
  """bool[b]: running slots whose rings have no room for another chunk."""
  slots, age = state.teacher.position.shape[1], state.teacher.age
  if state.student is not None:
    age = jnp.maximum(age, reshard(state.student.age, P(batch)))
  return (state.status == RUNNING) & (age + c > slots)


# ---------------------------------------------------------------- expand


@pytree
class _Branches:
  """Candidates while the teacher writes them."""

  t: Int[Array, ""]  # tokens so far
  last: Int[Array, "b k"]
  tokens: Int[Array, "b k c"]
  count: Int[Array, "b k"]
  end: Int[Array, "b k"]  # CONTINUES, or what ended the branch
  nll: Float[Array, "b k c"]
  not_finite: Bool[Array, " b"]
  cache: attention.Cache


def _expand(teacher, state, knobs, u, round):
  """At most c teacher tokens for k branches per slot, one where nothing is chosen or certain.

  Stops when every branch has ended.
  """
  ring, running, c = state.teacher, state.status == RUNNING, round.c
  b, batch = ring.last.shape[0], teacher.layout.batch_axes
  per_branch = lambda x: jnp.broadcast_to(x[:, None], (b, round.k))
  zeros = lambda dtype, *tail: jnp.zeros(
    (b, round.k, *tail), dtype, out_sharding=P(batch, None, *[None] * len(tail))
  )
  prefix = ring_lib.prefix(ring, running, round.block)

  def body(x):
    causal = (jnp.arange(c) <= x.t)[None]
    positions = (per_branch(ring.length) + x.t)[..., None]
    hidden, cache = decoder.forward(
      teacher, x.last[..., None], positions, x.cache, x.t, prefix, causal
    )
    logits = decoder.logits(teacher, hidden)[:, :, 0]
    now = lax.dynamic_index_in_dim(u, x.t, 2, keepdims=False)
    token, nll = sampling.draw(now, logits, knobs.filters, teacher.layout)
    goes_on = round.k == 1 or _going_on(state, knobs, logits, x)
    end = jnp.where(goes_on | (x.end != CONTINUES), x.end, DELIMITER)
    on = end == CONTINUES
    token = jnp.where(on, token, 0)
    put = lambda to, y: lax.dynamic_update_slice(to, y[..., None], (0, 0, x.t))
    kind = knobs.token_kind.at[token].get(out_sharding=P(batch, None)).astype(jnp.int32)
    spent = per_branch(x.t + 1 >= state.budget)
    kind = jnp.where((kind == CONTINUES) & spent, DELIMITER, kind)
    return _Branches(
      t=x.t + 1,
      last=token,
      tokens=put(x.tokens, token),
      count=x.count + on,
      end=jnp.where(on, kind, end),
      nll=put(x.nll, jnp.where(on, nll, 0)),
      not_finite=x.not_finite | jnp.any(on & ~jnp.isfinite(nll), -1),
      cache=cache,
    )

  alone = per_branch(state.after_thinking) & (jnp.arange(round.k) > 0)
  on = per_branch(running) & ~alone
  start = _Branches(
    t=jnp.int32(0),
    last=per_branch(ring.last),
    tokens=zeros(jnp.int32, c),
    count=zeros(jnp.int32),
    end=jnp.where(on, CONTINUES, DELIMITER),
    nll=zeros(jnp.float32, c),
    not_finite=jnp.zeros_like(running),
    cache=attention.blank_chunk(teacher.spec, b, round.k, c),
  )
  return lax.while_loop(lambda x: (x.t < c) & jnp.any(x.end == CONTINUES), body, start)


def _going_on(state, knobs, logits, x):
  """bool[b,k]: branches that draw one more token: those that branching at entropy peaks does not end.

  A chunk that starts at less teacher entropy than knobs.branch_entropy is one candidate, which ends
  before the next peak: there k candidates start. OmniOPD (arXiv 2606.01476) and LGR (2605.30833)
  act at peaks alone, too. That saves teacher tokens but no time: a program has its k branches.
  """
  peak = sampling.at_peak(logits, knobs.filters, knobs.branch_entropy)
  alone = (x.count[:, 1:2] == 0) & ~state.after_thinking[:, None]
  first = jnp.arange(logits.shape[1]) == 0
  return jnp.where(x.t == 0, peak | first, ~(peak & alone))


def _step_starts(state, knobs, tokens):
  """bool[b,k,c]: tokens of candidates that come first in a step (or chunk, without step ends)."""
  b, k, c = tokens.shape
  sharding = P(jax.typeof(tokens).sharding.spec[0], None, None)
  before = jnp.broadcast_to(state.teacher.last[:, None, None], (b, k, 1))
  before = jnp.concatenate([before, tokens[..., :-1]], -1)
  first = (state.chunk == 0) | ~jnp.any(knobs.step_end)
  return knobs.step_end.at[before].get(out_sharding=sharding) | (
    first[:, None, None] & (jnp.arange(c) == 0)
  )


# ---------------------------------------------------------------- commit


def _commit(state, knobs, proposal, scored, choice, suitable):
  """The chosen chunk joins both rings where it is suitable; every slot's clock advances."""
  pick = lambda x: jnp.take_along_axis(x, choice.reshape((-1,) + (1,) * (x.ndim - 1)), 1)[:, 0]
  running, found = state.status == RUNNING, proposal.candidates
  kept = jnp.where(suitable, pick(found.count), 0)
  won = pick(found.tokens)
  c = won.shape[1]
  again = running & ~suitable & (state.resample < knobs.resamples)
  budget = state.budget - kept
  join = lambda ring, cache: ring_lib.advance(ring, running, cache, choice, kept, won)
  teacher = join(state.teacher, proposal.cache)

  status = jnp.where(
    suitable & pick(proposal.ended), ENDED, jnp.where(budget <= 0, LENGTH, RUNNING)
  )
  status = jnp.where(running, jnp.where(suitable | again, status, PRUNED), state.status)
  text = jnp.concatenate([state.recent, won], 1)
  newest = kept[:, None] + jnp.arange(state.recent.shape[1])
  closed = (won == knobs.closing) & (jnp.arange(c) < kept[:, None])
  return dataclasses.replace(
    state,
    teacher=teacher,
    student=state.student and join(state.student, scored.cache),
    chunk=state.chunk + suitable,
    resample=jnp.where(again, state.resample + 1, 0),
    budget=budget,
    recent=jnp.take_along_axis(text, newest, 1),
    score_sum=state.score_sum + jnp.where(suitable, pick(scored.score), 0),
    after_thinking=state.after_thinking | jnp.any(closed, 1),
    status=status,
  )
