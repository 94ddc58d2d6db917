"""The compiled heart: expand, score, select, commit as one jitted step over donated state."""

import dataclasses
import functools

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.sharding import reshard

from gen_ssd.engine import ring as ring_lib
from gen_ssd.engine import sampling
from gen_ssd.engine import scores as scores_lib
from gen_ssd.engine import selectors as selectors_lib
from gen_ssd.models import attention
from gen_ssd.models import decoder

IDLE, RUNNING, ENDED, PRUNED, LENGTH = range(5)  # State.why
STOPS = {ENDED: "ended", PRUNED: "pruned", LENGTH: "length"}
CONTINUES, DELIMITER, EOS = range(3)  # Knobs.ends
# Attention scores a device holds while it scores chunks, by Shape.unroll: what its memory takes,
# or on a CPU what its cache takes.
SCORES = {False: 1 << 26, True: 1 << 21}


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
  """Everything a round needs and returns; donated. Rows advance one ring slot range together."""

  teacher: ring_lib.Prefix
  student: ring_lib.Prefix | None
  key: jax.Array  # typed keys [b], of (seed, problem, attempt)
  chunk: jax.Array  # int32[b]   chunks kept so far
  retry: jax.Array  # int32[b]   times this chunk was drawn again
  room: jax.Array  # int32[b]   tokens the trace may still grow
  age: jax.Array  # int32[b]   ring slots passed since the row was admitted
  recent: jax.Array  # int32[b,w-1] newest tokens of the trace, -1 before its start
  total: jax.Array  # f32[b]     sum of the kept chunks' scores
  question: jax.Array  # int32[b] the student's prompt tokens
  free: jax.Array  # bool[b]    the teacher writes on alone: knobs.closing was kept
  why: jax.Array  # int32[b]   IDLE, RUNNING or why it stopped
  slot: jax.Array  # int32[]    next ring slot, the same for every row


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Knobs:
  """What a sweep may change without compiling again."""

  temperature: jax.Array  # f32[]
  top_k: jax.Array  # int32[], 0 is off
  top_p: jax.Array  # f32[], 1 is off
  threshold: jax.Array  # f32[], inf is off
  margin: jax.Array  # f32[] nats, -inf is off
  running: jax.Array  # f32[], inf is off: see selectors.suitable
  beta: jax.Array  # f32[] per nat, of softmin
  context: jax.Array  # int32[] newest tokens seen when scoring; read by local steps only
  resamples: jax.Array  # int32[], draws again before a row is pruned
  vocab: jax.Array  # int32[], ids both models share
  closing: jax.Array  # int32[], id after which nothing is chosen or pruned; -1 for none
  ends: jax.Array  # int8[v] CONTINUES, DELIMITER or EOS
  steps: jax.Array  # bool[v] a step ends with this token; none: steps are chunks


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Report:
  """What the host reads of a round; small and replicated."""

  tokens: jax.Array  # int32[b,k,c] all candidates
  count: jax.Array  # int32[b,k]   their lengths
  score: jax.Array  # f32[b,k]     the scorer's, lower is better
  valid: jax.Array  # bool[b,k]    not empty, not a repetition; False where nothing is chosen
  student_nll: jax.Array  # f32[b,k,c]   nats (zeros without a student)
  student_rank: jax.Array  # int32[b,k,c] 1 is the student's first choice; at most 100
  start: jax.Array  # bool[b,k,c]  first token of a step
  teacher_nll: jax.Array  # f32[b,k,c]   nats at temperature 1, before filters
  choice: jax.Array  # int32[b]     winner, -1 when nothing was kept
  total: jax.Array  # f32[b]       State.total
  why: jax.Array  # int32[b]     state of the row after the round
  bad: jax.Array  # bool[b]      a logit was not finite
  steps: jax.Array  # int32[]      teacher token steps taken (early exit)


@functools.partial(jax.jit, static_argnames=("teacher", "student", "b", "s", "window"))
def blank_state(*, teacher, student, b, s, window):
  """Idle rows for model Shapes `teacher` and `student` (or None): b rows, s ring slots."""
  rows = teacher.rows
  zeros = lambda *tail: jnp.zeros((b, *tail), jnp.int32, out_sharding=P(rows, *[None] * len(tail)))
  key = jax.random.wrap_key_data(jnp.zeros((b, 2), jnp.uint32, out_sharding=P(rows, None)))
  return State(
    ring_lib.blank(teacher, b, s),
    student and ring_lib.blank(student, b, s),
    key,
    zeros(),
    zeros(),
    zeros(),
    zeros(),
    zeros(window - 1) - 1,
    zeros().astype(jnp.float32),
    zeros(),
    zeros().astype(bool),
    zeros() + IDLE,
    jnp.zeros((), jnp.int32, out_sharding=P()),
  )


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Admission:
  """Traces that start, or go on, in the rows marked `new`; the other rows' entries are ignored."""

  new: jax.Array  # bool[b]
  teacher: jax.Array  # int32[b,p] prompt and kept tokens in the teacher's template
  teacher_length: jax.Array  # int32[b]
  student: jax.Array  # int32[b,p], the same in the student's
  student_length: jax.Array  # int32[b]
  key: jax.Array  # uint32[b,2] key data
  chunk: jax.Array  # int32[b] chunks already kept
  retry: jax.Array  # int32[b] draws of the coming chunk that were not suitable
  room: jax.Array  # int32[b] tokens that may follow
  recent: jax.Array  # int32[b,w-1]
  total: jax.Array  # f32[b] sum of the kept chunks' scores
  question: jax.Array  # int32[b] prompt tokens among `student`
  free: jax.Array  # bool[b] knobs.closing is among the kept tokens


@functools.partial(jax.jit, static_argnames=("c", "block"), donate_argnums=2)
def admit(teacher, student, state, start, *, c, block):
  """Reads `start` into the rows marked new, a chunk of `c` tokens at a time; others stay as is.

  The tokens end right before the current ring slot. The trip count follows the longest, so one
  program serves prompts and half-written traces. `teacher_length - 1` tokens must fit the ring.
  """
  pieces = (jnp.max(jnp.where(start.new, start.teacher_length - 1, 0)) + c - 1) // c
  if state.student is not None:
    other = jnp.max(jnp.where(start.new, start.student_length - 1, 0))
    pieces = jnp.maximum(pieces, (other + c - 1) // c)
  first = state.slot - pieces * c
  rows = lambda old, fresh: _where(start.new, fresh, old)
  return State(
    ring_lib.read(
      teacher,
      state.teacher,
      start.new,
      start.teacher,
      start.teacher_length,
      first,
      pieces,
      c,
      block,
    ),
    state.student
    and ring_lib.read(
      student,
      state.student,
      start.new,
      start.student,
      start.student_length,
      first,
      pieces,
      c,
      block,
    ),
    jax.random.wrap_key_data(rows(jax.random.key_data(state.key), start.key)),
    rows(state.chunk, start.chunk),
    rows(state.retry, start.retry),
    rows(state.room, start.room),
    rows(state.age, jnp.zeros_like(state.age) + pieces * c),
    rows(state.recent, start.recent),
    rows(state.total, start.total),
    rows(state.question, start.question),
    rows(state.free, start.free),
    rows(state.why, jnp.zeros_like(state.why) + RUNNING),
    state.slot,
  )


def _where(new, fresh, old):
  return jnp.where(new.reshape(new.shape + (1,) * (old.ndim - 1)), fresh, old)


@functools.partial(
  jax.jit,
  static_argnames=("k", "c", "scorer", "selector", "block", "window", "local"),
  donate_argnums=2,
)
def select_step(
  teacher,
  student,
  state,
  knobs,
  *,
  k,
  c,
  scorer,
  selector=selectors_lib.argmin,
  block,
  window,
  local=False,
):
  """One round for every running row: expand, score, select, commit.

  Args:
    teacher, student: Transformers on the current mesh; student None is plain sampling (k = 1).
    state: State, donated. knobs: Knobs, traced.
    k, c: candidates a row and most tokens of each. scorer, selector: see scores, selectors.
    block: ring slots attended at a time; divides the ring. window: see selectors.loops.
    local: the scorer sees the prompt and the newest knobs.context tokens only: see score.
  Returns:
    (State, Report).
  """
  if student is None and k > 1:
    raise ValueError(f"select.k is {k}: choosing among candidates needs a student")
  p = propose(teacher, state, knobs, k, c, block)
  if student is None:
    nll, rank, read = jnp.zeros_like(p.teacher_nll), jnp.zeros_like(p.tokens), None
    found = jnp.zeros_like(p.count, dtype=jnp.float32)
  else:
    nll, rank, found, read = score(
      student,
      state.student,
      p.tokens,
      p.count,
      state.why == RUNNING,
      p.noise[..., 0],
      scorer,
      block,
      p.teacher_nll,
      p.start,
      (state.question, knobs.context) if local else None,
    )
  return settle(state, knobs, p, nll, rank, found, read, selector, window)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Proposal:
  """The teacher's half of a round: candidates, with the keys and values they left."""

  tokens: jax.Array  # int32[b,k,c]
  count: jax.Array  # int32[b,k]
  ended: jax.Array  # bool[b,k]  by an end token
  teacher_nll: jax.Array  # f32[b,k,c]
  start: jax.Array  # bool[b,k,c] first token of a step
  chunk: attention.KV
  noise: jax.Array  # f32[b,k,2] uniform: for scorers and for selectors
  bad: jax.Array  # bool[b]
  steps: jax.Array  # int32[]


def propose(teacher, state, knobs, k, c, block):
  """The first half of a round: a Proposal of k candidates a row."""
  u = sampling.uniforms(state.key, state.chunk, state.retry, k, c + 1)
  tokens, count, ended, nll, chunk, bad, steps = _expand(
    teacher, state, knobs, state.why == RUNNING, u[:, :, 1:], k, c, block
  )
  live = jnp.arange(c) < count[..., None]
  return Proposal(
    tokens, count, ended, nll, live & _starts(state, knobs, tokens), chunk, u[:, :, 0], bad, steps
  )


def settle(state, knobs, p, nll, rank, score, read, selector, window, allowed=True):
  """The second half: choose by score f32[b,k], commit, report.

  nll, rank [b,k,c] are the student's statistics of the Proposal `p`, `read` its keys and values (or
  None); candidates that are not `allowed` bool[b,k] are not valid.
  """
  rows, running, c = jax.typeof(p.count).sharding.spec[0], state.why == RUNNING, p.tokens.shape[2]
  nll, rank = (reshard(x, P(rows, None, None)) for x in (nll, rank))
  score = reshard(score, P(rows, None))
  live = jnp.arange(c) < p.count[..., None]
  bad = p.bad | running & jnp.any(jnp.where(live, ~jnp.isfinite(nll), False), (1, 2))
  valid = (p.count > 0) & allowed & ~selectors_lib.loops(state.recent, p.tokens, p.count, window)
  valid &= ~state.free[:, None]
  choice = jnp.where(state.free, 0, selector(score, valid, knobs, p.noise[:, 0, 1]))
  average = jnp.where(state.chunk > 0, state.total / jnp.maximum(state.chunk, 1), jnp.inf)
  suitable = running & (state.free | selectors_lib.suitable(score, valid, choice, knobs, average))
  state = _commit(
    state,
    knobs,
    p.chunk,
    read,
    running,
    suitable,
    choice,
    score,
    p.tokens,
    p.count,
    p.ended,
    window,
    c,
  )
  whole = lambda x: reshard(x, P(*[None] * x.ndim))
  report = Report(
    p.tokens,
    p.count,
    score,
    valid,
    nll,
    rank,
    p.start,
    p.teacher_nll,
    jnp.where(suitable, choice, -1),
    state.total,
    state.why,
    bad,
    p.steps,
  )
  return state, jax.tree.map(whole, report)


def _expand(teacher, state, knobs, running, u, k, c, block):
  """At most c teacher tokens for k branches a row, one where nothing is chosen.

  Stops when every branch ended.
  """
  shape, prefix = teacher.shape, state.teacher
  b, rows = prefix.last.shape[0], teacher.shape.rows
  spread = lambda x: jnp.broadcast_to(x[:, None], (b, k))
  used = ring_lib.used_blocks(prefix.valid & running[:, None], block)
  zeros = lambda dtype, *tail: jnp.zeros(
    (b, k, *tail), dtype, out_sharding=P(rows, None, *[None] * len(tail))
  )

  def body(carry):
    t, last, tokens, count, end, nll, bad, chunk = carry
    causal = (jnp.arange(c) <= t)[None]
    attend = functools.partial(
      attention.attend_branches,
      causal=causal,
      valid=prefix.valid,
      used=used,
      block=block,
      position=prefix.position,
    )
    positions = (spread(prefix.length) + t)[..., None]
    hidden, chunk = decoder.forward(
      teacher, last[..., None], positions, chunk, t, prefix.kv, attend
    )
    scores = decoder.logits(teacher, hidden)[:, :, 0]
    now = lax.dynamic_index_in_dim(u, t, 2, keepdims=False)
    token, logp = sampling.draw(
      now,
      scores,
      temperature=knobs.temperature,
      top_k=knobs.top_k,
      top_p=knobs.top_p,
      vocab=knobs.vocab,
      shape=shape,
    )
    on = end == CONTINUES
    token = jnp.where(on, token, 0)
    bad |= jnp.any(on & ~jnp.isfinite(logp), -1)
    put = lambda x, y: lax.dynamic_update_slice(x, y[..., None], (0, 0, t))
    tokens, nll = put(tokens, token), put(nll, jnp.where(on, -logp, 0))
    count = count + on
    code = knobs.ends.at[token].get(out_sharding=P(rows, None)).astype(jnp.int32)
    code = jnp.where((code == CONTINUES) & spread(t + 1 >= state.room), DELIMITER, code)
    return t + 1, token, tokens, count, jnp.where(on, code, end), nll, bad, chunk

  def unfinished(carry):
    return (carry[0] < c) & jnp.any(carry[4] == CONTINUES)

  on = spread(running) & (~spread(state.free) | (jnp.arange(k) == 0))
  start = (
    jnp.int32(0),
    spread(prefix.last),
    zeros(jnp.int32, c),
    zeros(jnp.int32),
    jnp.where(on, CONTINUES, DELIMITER),
    zeros(jnp.float32, c),
    jnp.zeros_like(running),
    attention.blank_chunk(shape, b, k, c),
  )
  t, _, tokens, count, end, nll, bad, chunk = lax.while_loop(unfinished, body, start)
  return tokens, count, end == EOS, nll, chunk, bad, t


def _starts(state, knobs, tokens):
  """bool[b,k,c]: candidates' tokens that come first in a step (or in the chunk, without steps)."""
  b, k, c = tokens.shape
  rows = P(jax.typeof(tokens).sharding.spec[0], None, None)
  before = jnp.broadcast_to(state.teacher.last[:, None, None], (b, k, 1))
  before = jnp.concatenate([before, tokens[..., :-1]], -1)
  first = (state.chunk == 0) | ~jnp.any(knobs.steps)
  return knobs.steps.at[before].get(out_sharding=rows) | (
    first[:, None, None] & (jnp.arange(c) == 0)
  )


def score(
  student, prefix, tokens, count, running, noise, scorer, block, teacher_nll, start, near=None
):
  """Student statistics of candidates, a tile of tokens at a time: inputs are [last, tokens[:-1]].

  With near = (prompt tokens int32[b], context int32[]) the score, and nothing else, comes from a
  second forward that attends to the prompt and the newest `context` tokens only: LALP (arXiv
  2510.03988). It is approximate above the first layer: the tokens attended to have themselves been
  read with all that was before them, where LALP reads a shortened text.
  """
  shape = student.shape
  there = lambda x: reshard(x, P(shape.rows, *[None] * (x.ndim - 1)))
  tokens, count, running, noise, teacher_nll, start = map(
    there, (tokens, count, running, noise, teacher_nll, start)
  )
  b, k, c = tokens.shape
  index = jnp.arange(c, dtype=jnp.int32)
  last = jnp.broadcast_to(prefix.last[:, None, None], (b, k, 1))
  inputs = jnp.concatenate([last, tokens[..., :-1]], -1)
  used = ring_lib.used_blocks(prefix.valid & running[:, None], block)
  step = _tile(shape, tokens, block)

  def look(valid):
    def part(chunk, at):
      cut = lambda x: lax.dynamic_slice_in_dim(x, at, step, 2)
      here = lax.dynamic_slice_in_dim(index, at, step)
      positions = jnp.broadcast_to(prefix.length[:, None, None] + here, (b, k, step))
      attend = functools.partial(
        attention.attend_branches,
        causal=index[None] <= here[:, None],
        valid=valid,
        used=used,
        block=block,
        position=prefix.position,
      )
      hidden, chunk = decoder.forward(student, cut(inputs), positions, chunk, at, prefix.kv, attend)
      return chunk, scores_lib.token_statistics(student, hidden, cut(tokens))

    chunk, found = lax.scan(part, attention.blank_chunk(shape, b, k, c), index[::step])
    found = jax.tree.map(lambda x: lax.reshape(jnp.moveaxis(x, 0, 2), (b, k, c)), found)
    return dataclasses.replace(found, teacher_nll=teacher_nll, start=start), chunk

  found, chunk = look(prefix.valid)
  live = index < count[..., None]
  rank = jnp.where(live, jnp.minimum(found.rank, 100), 0).astype(jnp.int32)
  seen = found
  if near is not None:
    question, context = there(near[0]), near[1]
    old = prefix.position <= (prefix.length - context)[:, None]  # `last` is the newest token
    seen, _ = look(prefix.valid & ~(old & (prefix.position >= question[:, None])))
  return jnp.where(live, found.nll, 0), rank, scorer(seen, live, noise), chunk


def _tile(student, tokens, block):
  """Tokens of a chunk to score at a time: as many as divide it and keep to SCORES, at least one."""
  b, k, c = jax.typeof(tokens).sharding.shard_shape(tokens.shape)
  most = SCORES[student.unroll] // (b * k * student.kv_heads * student.groups * block)
  return max(n for n in range(1, c + 1) if c % n == 0 and n <= max(most, 1))


def _commit(
  state, knobs, chunk, read, running, suitable, choice, score, tokens, count, ended, window, c
):
  """The winner's tokens go into both rings at the shared slot; every row's clock advances."""
  pick = lambda x: jnp.take_along_axis(x, choice.reshape((-1,) + (1,) * (x.ndim - 1)), 1)[:, 0]
  slots = state.teacher.position.shape[1]
  kept = jnp.where(suitable, pick(count), 0)
  won = pick(tokens)
  again = running & ~suitable & (state.retry < knobs.resamples)
  room = state.room - kept
  age = jnp.where(running, state.age + c, state.age)
  why = jnp.where(
    suitable & pick(ended), ENDED, jnp.where((room <= 0) | (age + c > slots), LENGTH, RUNNING)
  )
  why = jnp.where(running, jnp.where(suitable | again, why, PRUNED), state.why)
  text = jnp.concatenate([state.recent, won], 1)
  recent = jnp.take_along_axis(text, kept[:, None] + jnp.arange(window - 1), 1)
  closed = (won == knobs.closing) & (jnp.arange(c) < kept[:, None])

  more = lambda prefix, branches: ring_lib.grow(prefix, branches, choice, kept, won, state.slot)
  return State(
    more(state.teacher, chunk),
    state.student and more(state.student, read),
    state.key,
    state.chunk + suitable,
    jnp.where(again, state.retry + 1, 0),
    room,
    age,
    recent,
    state.total + jnp.where(suitable, pick(score), 0),
    state.question,
    state.free | jnp.any(closed, 1),
    why,
    (state.slot + c) % slots,
  )
