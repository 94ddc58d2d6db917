"""The compiled heart: expand, score, select, commit as one jitted step over donated state."""

import dataclasses
import functools
import typing

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.sharding import reshard
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int
from jaxtyping import Key
from jaxtyping import UInt32

from gen_ssd.arrays import Array
from gen_ssd.arrays import pytree
from gen_ssd.engine import ring as ring_lib
from gen_ssd.engine import sampling
from gen_ssd.engine import scores as scores_lib
from gen_ssd.engine import selectors
from gen_ssd.models import attention
from gen_ssd.models import decoder
from gen_ssd.models.architecture import Spec

IDLE, RUNNING, ENDED, PRUNED, LENGTH = range(5)  # State.status
STOPS = {ENDED: "ended", PRUNED: "pruned", LENGTH: "length"}
CONTINUES, DELIMITER, EOS = range(3)  # Knobs.token_kind
# Attention scores that a device holds while it scores chunks, by Layout.unroll: what its memory
# takes, or on a CPU what its cache takes.
ATTENTION_SCORES = {False: 1 << 26, True: 1 << 21}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Round:
  """What is static of a round: sizes and rules. Another Round is another compiled program."""

  k: int  # candidates per slot
  c: int  # most tokens of a candidate
  block: int  # ring slots attended to at a time; divides the ring
  window: int  # tokens looked at for repetitions: see selectors.loops
  scorer: scores_lib.Scorer
  selector: typing.Callable = selectors.argmin
  short_context: bool = False  # score after the prompt and the newest knobs.context tokens only


@pytree
class Knobs:
  """What a sweep may change without compiling again."""

  filters: sampling.Filters
  limits: selectors.Limits
  resamples: Int[Array, ""]  # how often a chunk is drawn again before its trace is pruned
  context: Int[Array, ""]  # newest tokens seen when scoring; read by short-context rounds only
  closing: Int[Array, ""]  # id after which nothing is chosen or pruned; -1 for none
  token_kind: Int[Array, " v"]  # int8: CONTINUES, DELIMITER or EOS
  step_end: Bool[Array, " v"]  # does a step end with this token? All false: steps are chunks


@pytree
class State:
  """Everything a round needs and returns; donated. One batch slot holds one trace under way."""

  teacher: ring_lib.Ring
  student: ring_lib.Ring | None
  key: Key[Array, " b"]  # of (seed, problem, attempt)
  chunk: Int[Array, " b"]  # chunks kept so far
  resample: Int[Array, " b"]  # how often the coming chunk was drawn and found unsuitable
  budget: Int[Array, " b"]  # tokens the trace may still grow
  recent: Int[Array, "b w"]  # newest window - 1 tokens of the trace, -1 before its start
  score_sum: Float[Array, " b"]  # of the kept chunks
  prompt_length: Int[Array, " b"]  # tokens of the student's prompt
  after_thinking: Bool[Array, " b"]  # the teacher goes on alone: knobs.closing was kept
  status: Int[Array, " b"]  # IDLE, RUNNING, or why the trace stopped


@pytree
class Admission:
  """Traces that start, or go on, in the slots marked `new`; entries of other slots are ignored."""

  new: Bool[Array, " b"]
  teacher: ring_lib.Text  # in the teacher's template
  student: ring_lib.Text  # in the student's
  key: UInt32[Array, "b 2"]  # key data
  chunk: Int[Array, " b"]
  resample: Int[Array, " b"]
  budget: Int[Array, " b"]
  recent: Int[Array, "b w"]
  score_sum: Float[Array, " b"]
  prompt_length: Int[Array, " b"]
  after_thinking: Bool[Array, " b"]


@pytree
class Candidates:
  """Chunks to be scored."""

  tokens: Int[Array, "b k c"]
  count: Int[Array, "b k"]  # tokens of each
  teacher_nll: Float[Array, "b k c"]  # nats at temperature 1, before filters
  step_start: Bool[Array, "b k c"]  # first token of a step
  noise: Float[Array, "b k"]  # uniform in [0,1), for scorers

  @property
  def live(self) -> Bool[Array, "b k c"]:
    return jnp.arange(self.tokens.shape[2]) < self.count[..., None]


@pytree
class Proposal:
  """The teacher's half of a round."""

  candidates: Candidates
  ended: Bool[Array, "b k"]  # by an end token
  cache: attention.Cache  # keys and values that the candidates left
  noise: Float[Array, " b"]  # uniform in [0,1), for selectors
  not_finite: Bool[Array, " b"]  # a logit was not finite
  decoded: Int[Array, ""]  # teacher tokens decoded one after another; fewer than c: early exit


@pytree
class Scored:
  """The student's half of a round."""

  nll: Float[Array, "b k c"]  # nats
  rank: Int[Array, "b k c"]  # 1 is the student's first choice; at most 100
  score: Float[Array, "b k"]
  cache: attention.Cache | None  # None without a student, or where another keeps its ring


@pytree
class Report:
  """What the host reads of a round; small and replicated."""

  tokens: Int[Array, "b k c"]  # all candidates
  count: Int[Array, "b k"]  # their lengths
  score: Float[Array, "b k"]  # the scorer's, lower is better
  valid: Bool[Array, "b k"]  # not empty, not a repetition; False where nothing is chosen
  student_nll: Float[Array, "b k c"]  # nats; zeros without a student
  student_rank: Int[Array, "b k c"]  # 1 is the student's first choice; at most 100
  step_start: Bool[Array, "b k c"]  # first token of a step
  teacher_nll: Float[Array, "b k c"]  # nats at temperature 1, before filters
  choice: Int[Array, " b"]  # the winner, -1 when nothing was kept
  score_sum: Float[Array, " b"]  # State.score_sum after the round
  status: Int[Array, " b"]  # State.status after the round
  not_finite: Bool[Array, " b"]
  decoded: Int[Array, ""]  # see Proposal


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
  """Reads the admission into its new slots, a chunk of c tokens at a time; others stay as they are.

  The tokens end right before the cursor. The trip count follows the longest, so one program
  serves prompts and half-written traces. All but the newest token must fit the ring.
  """
  new = admission.new
  needed = lambda text: (jnp.max(jnp.where(new, text.length - 1, 0)) + c - 1) // c
  chunks = needed(admission.teacher)
  if state.student is not None:
    chunks = jnp.maximum(chunks, needed(admission.student))
  update = lambda name: _where(new, getattr(admission, name), getattr(state, name))
  key = _where(new, admission.key, jax.random.key_data(state.key))
  student_ring = state.student
  if student_ring is not None:
    student_ring = ring_lib.read(student, student_ring, new, admission.student, chunks, c, block)
  return State(
    teacher=ring_lib.read(teacher, state.teacher, new, admission.teacher, chunks, c, block),
    student=student_ring,
    key=jax.random.wrap_key_data(key),
    status=_where(new, jnp.zeros_like(state.status) + RUNNING, state.status),
    **{
      name: update(name)
      for name in (
        "chunk",
        "resample",
        "budget",
        "recent",
        "score_sum",
        "prompt_length",
        "after_thinking",
      )
    },
  )


def _where(new, fresh, old):
  return jnp.where(new.reshape(new.shape + (1,) * (old.ndim - 1)), fresh, old)


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

  Both models lie on the current mesh; without a student (then k is 1) this is plain sampling.
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
    scored = score(student, state.student, found, running, round.scorer, round.block, near)
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
  choice = round.selector(score, valid, knobs.limits, proposal.noise)
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
    not_finite=proposal.not_finite | running & unusable,
    decoded=proposal.decoded,
  )
  return state, jax.tree.map(lambda x: reshard(x, P(*[None] * x.ndim)), report)


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
  """At most c teacher tokens for k branches per slot, one where nothing is chosen.

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
    on = x.end == CONTINUES
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
      end=jnp.where(on, kind, x.end),
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


# ---------------------------------------------------------------- score


def score(
  student: decoder.Transformer,
  ring: ring_lib.Ring,
  candidates: Candidates,
  running: Bool[Array, " b"],
  scorer: typing.Callable,
  block: int,
  near: tuple | None = None,
) -> Scored:
  """Scores candidates by student statistics, a tile of tokens at a time.

  With near = (prompt tokens int32[b], context int32[]) the score, and nothing else, comes from a
  second forward that attends to the prompt and the newest `context` tokens only: LALP (arXiv
  2510.03988). It is approximate above the first layer: the tokens attended to were themselves
  read with all the text before them, where LALP reads a shortened text.
  """
  local = lambda x: reshard(x, P(student.layout.batch_axes, *[None] * (x.ndim - 1)))
  candidates, running = jax.tree.map(local, candidates), local(running)
  prefix = ring_lib.prefix(ring, running, block)
  found, cache = _read_candidates(student, ring, candidates, prefix)
  live = candidates.live
  rank = jnp.where(live, jnp.minimum(found.rank, 100), 0).astype(jnp.int32)
  seen = found
  if near is not None:
    prompt_length, context = local(near[0]), near[1]
    old = ring.position <= (ring.length - context)[:, None]  # `last` is the newest token
    hidden = old & (ring.position >= prompt_length[:, None])
    shortened = dataclasses.replace(prefix, visible=prefix.visible & ~hidden)
    seen, _ = _read_candidates(student, ring, candidates, shortened)
  return Scored(
    nll=jnp.where(live, found.nll, 0),
    rank=rank,
    score=scorer(seen, live, candidates.noise),
    cache=cache,
  )


def _read_candidates(student, ring, candidates, prefix):
  """(Statistics, cache) of one student forward with inputs [last, tokens[:-1]]."""
  b, k, c = candidates.tokens.shape
  index = jnp.arange(c, dtype=jnp.int32)
  last = jnp.broadcast_to(ring.last[:, None, None], (b, k, 1))
  inputs = jnp.concatenate([last, candidates.tokens[..., :-1]], -1)
  size = _tile(student, candidates.tokens, prefix.block)

  def tile(cache, at):
    cut = lambda x: lax.dynamic_slice_in_dim(x, at, size, 2)
    places = lax.dynamic_slice_in_dim(index, at, size)
    positions = jnp.broadcast_to(ring.length[:, None, None] + places, (b, k, size))
    causal = index[None] <= places[:, None]
    hidden, cache = decoder.forward(student, cut(inputs), positions, cache, at, prefix, causal)
    found = scores_lib.token_statistics(student, hidden, cut(candidates.tokens))
    return cache, {"nll": found.nll, "rank": found.rank, "entropy": found.entropy}

  blank = attention.blank_chunk(student.spec, b, k, c)
  cache, found = lax.scan(tile, blank, index[::size])
  return scores_lib.Statistics(
    **{name: scores_lib.unfold(x) for name, x in found.items()},
    teacher_nll=candidates.teacher_nll,
    step_start=candidates.step_start,
  ), cache


def _tile(student, tokens, block):
  """Tokens of a chunk to score at a time: they divide it and keep to ATTENTION_SCORES."""
  b, k, c = jax.typeof(tokens).sharding.shard_shape(tokens.shape)
  heads = student.arch.kv_heads * student.arch.groups
  most = ATTENTION_SCORES[student.layout.unroll] // (b * k * heads * block)
  return max(n for n in range(1, c + 1) if c % n == 0 and n <= max(most, 1))


# ---------------------------------------------------------------- commit


def _commit(state, knobs, proposal, scored, choice, suitable):
  """The chosen chunk joins both rings where it is suitable; every slot's clock advances."""
  pick = lambda x: jnp.take_along_axis(x, choice.reshape((-1,) + (1,) * (x.ndim - 1)), 1)[:, 0]
  running, found = state.status == RUNNING, proposal.candidates
  kept = jnp.where(suitable, pick(found.count), 0)
  won = pick(found.tokens)
  c, slots = won.shape[1], state.teacher.position.shape[1]
  again = running & ~suitable & (state.resample < knobs.resamples)
  budget = state.budget - kept
  join = lambda ring, cache: ring_lib.advance(ring, running, cache, choice, kept, won)
  teacher = join(state.teacher, proposal.cache)

  full = (budget <= 0) | (teacher.age + c > slots)
  status = jnp.where(suitable & pick(proposal.ended), ENDED, jnp.where(full, LENGTH, RUNNING))
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
