"""Rounds of a teacher and a student whose tokenizers differ: text goes between them, on the host.

A round is two programs instead of one. Between them the host writes out the candidates and cuts them
into the student's tokens. Text may be cut otherwise once more of it is there, so the student is first
rolled back over the tokens that changed. Only the end of a trace is cut again: a round costs the host
the same however long the trace is. What it finds is spread over the teacher's tokens by their
characters: sums are kept, scorers and files see one number a teacher token, and with equal
tokenizers it is what the fused step finds (which is what they get: see stages).
"""

import bisect
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.sharding import reshard
import numpy as np

from gen_ssd import config as config_lib
from gen_ssd import mesh as mesh_lib
from gen_ssd.engine import ring as ring_lib
from gen_ssd.engine import scores
from gen_ssd.engine import selectors
from gen_ssd.engine import step as step_lib

TAIL = 48  # newest student tokens of a row that are cut again with every candidate
AGREE = 8  # tokens in a row that must come out as before, for the older ones to stay
TURN = 8  # newest teacher tokens that a decoder is given before new ones


@dataclasses.dataclass
class Held:
  """What the student has been given of a row."""

  ids: list  # its tokens of the prompt and the trace
  first: int  # how many are the prompt's
  text: str  # of the trace
  ends: list  # where in it each of the trace's tokens ends


@dataclasses.dataclass
class Branch:
  """A row's tokens when a candidate follows: the first `stay` that are held, and these."""

  stay: int
  ids: list
  ends: list
  homes: list  # teacher token of the candidate that each ends in, -1 for none
  text: str


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Moved:
  """Candidates in the student's tokens, behind what it keeps of the row."""

  tokens: jax.Array  # int32[b,k,e]
  count: jax.Array  # int32[b,k]
  home: jax.Array  # int32[b,k,e] teacher token of the chunk that a token ends in, -1 for none
  length: jax.Array  # int32[b] tokens of the row before `last`; later ones are taken back
  last: jax.Array  # int32[b]


@functools.partial(jax.jit, static_argnames=("k", "c", "block"))
def propose(teacher, state, knobs, *, k, c, block):
  """(Proposal, its tokens, counts and ends for the host); `state` is not donated."""
  p = step_lib.propose(teacher, state, knobs, k, c, block)
  return p, jax.tree.map(lambda x: reshard(x, P(*[None] * x.ndim)), (p.tokens, p.count, p.ended))


@functools.partial(jax.jit, static_argnames=("c", "block"), donate_argnums=1)
def read(student, prefix, new, tokens, length, slot, *, c, block):
  """The student reads int32[b,p] `tokens` into the rows marked new, as select.admit does."""
  pieces = (jnp.max(jnp.where(new, length - 1, 0)) + c - 1) // c
  return ring_lib.read(student, prefix, new, tokens, length, slot - pieces * c, pieces, c, block)


@functools.partial(
  jax.jit, static_argnames=("scorer", "selector", "block", "window", "local"), donate_argnums=(1, 2)
)
def settle(
  student, state, prefix, knobs, proposal, moved, slot, *, scorer, selector, block, window, local
):
  """Rolls the student back, scores, chooses, commits: (State, Prefix, Report).

  `slot` is where the student's own ring goes on; knobs.context counts its tokens here.
  """
  c = proposal.tokens.shape[2]
  there = lambda x: reshard(x, P(student.shape.rows, *[None] * (x.ndim - 1)))
  running = there(state.why == step_lib.RUNNING)
  length = jnp.where(running, moved.length, prefix.length)
  position = jnp.where(prefix.position < length[:, None], prefix.position, -1)
  prefix = ring_lib.Prefix(prefix.kv, position, length, jnp.where(running, moved.last, prefix.last))

  hot = moved.home[..., None] == jnp.arange(c)  # [b,k,e,c]
  spread = lambda x: jnp.sum(jnp.where(hot, x[..., None], 0), 2)
  top = lambda x: jnp.max(jnp.where(hot, x[..., None], 0), 2)
  live = there(jnp.arange(c) < proposal.count[..., None])
  teacher_nll, start = there(proposal.teacher_nll), there(proposal.start)

  def by_teacher_token(found, _, noise):
    return scorer(
      scores.Statistics(
        spread(found.nll), top(found.rank), spread(found.entropy), teacher_nll, start
      ),
      live,
      noise,
    )

  nothing = jnp.zeros_like(moved.tokens)
  nll, rank, score, branches = step_lib.score(
    student,
    prefix,
    moved.tokens,
    moved.count,
    running,
    there(proposal.noise),
    by_teacher_token,
    block,
    nothing.astype(jnp.float32),
    nothing.astype(bool),
    (state.question, knobs.context) if local else None,
  )
  seen = jnp.any(moved.home >= 0, -1)  # else it has no character of its own: as good as empty
  seen = reshard(seen, P(jax.typeof(proposal.count).sharding.spec[0], None))
  state, report = step_lib.settle(
    state, knobs, proposal, spread(nll), top(rank), score, None, selector, window, seen
  )
  choice = there(report.choice)
  pick = lambda x: jnp.take_along_axis(
    x, jnp.maximum(choice, 0).reshape((-1,) + (1,) * (x.ndim - 1)), 1
  )[:, 0]
  kept = jnp.where(running & (choice >= 0), pick(moved.count), 0)
  prefix = ring_lib.grow(prefix, branches, jnp.maximum(choice, 0), kept, pick(moved.tokens), slot)
  return state, prefix, report


class Translator:
  """The student's side of a collection: its ring and the tokens it has read, a row."""

  def __init__(self, writer, select, prompts):
    self.writer, self.select, self.prompts = writer, select, prompts
    self.reset()

  def reset(self):
    """As at the start: a fence, after which a resumed run is in the same state."""
    # Most tokens of a candidate, and ring slots: two to a teacher token at first, and they grow.
    self.wide, self.ring_slots = 2 * self.select.c, 0
    self.names = [None] * self.select.slots  # which trace a row writes
    self.held = [None] * self.select.slots  # its Held
    self._resize(2 * config_lib.ring_slots(self.select))

  def _resize(self, slots):
    unit = math.lcm(self.wide, self.select.block or 1)
    self.ring_slots = -(-max(slots, self.ring_slots) // unit) * unit
    self._empty()

  def _empty(self):
    """A blank ring: every row has to be read again."""
    s, self.slot, self.inside = self.select, 0, set()
    self.age = np.zeros(s.slots, int)  # ring slots passed since the row was read
    self.prefix = _blank(shape=self.writer.student.shape, b=s.slots, s=self.ring_slots)

  def round(self, state, knob, traces):
    """One round of the running `traces` (a Trace or None a row): (State, Report)."""
    s, w = self.select, self.writer
    proposal, found = propose(
      w.teacher, state, knob, k=s.k, c=s.c, block=s.block or config_lib.ring_slots(s)
    )
    for i, trace in enumerate(traces):
      name = trace and (trace.uuid, trace.attempt)
      if name != self.names[i]:
        self.names[i], self.held[i] = name, None
        self.inside.discard(i)
    cut = self._cut(traces, *mesh_lib.host(found))
    stay = {
      i: min(b.stay + _same(self.held[i].ids[b.stay :], b.ids) for b in branches)
      for i, branches in cut.items()
    }
    self._make_room(cut, stay)
    self._read(cut)
    state, self.prefix, report = settle(
      w.student,
      state,
      self.prefix,
      knob,
      proposal,
      self._moved(cut, stay),
      mesh_lib.place(np.int32(self.slot)),
      scorer=scores.SCORERS[s.scorer],
      selector=selectors.SELECTORS[s.selector],
      block=s.block or self.ring_slots,
      window=s.loop_window,
      local=s.context > 0,
    )
    for i, at in enumerate(mesh_lib.host(report.choice)):
      if i in cut:
        self._keep(i, cut[i][at] if at >= 0 else Branch(stay[i], [], [], [], self.held[i].text))
    self.slot = (self.slot + self.wide) % self.ring_slots
    self.age += self.wide
    return state, report

  # ---------------------------------------------------------------- text

  def _text(self, many):
    """Texts of many lists of teacher ids; a character that is only begun waits for its rest."""
    found = self.writer.teacher_tokenizer.batch_decode(
      many, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return [text.rstrip("\ufffd") for text in found]

  def _encode(self, texts):
    """[(ids, end of each token in the text)] in the student's tokens."""
    if not texts:
      return []
    found = self.writer.student_tokenizer(
      texts, add_special_tokens=False, return_offsets_mapping=True
    )
    return [
      (ids, [end for _, end in offsets])
      for ids, offsets in zip(found["input_ids"], found["offset_mapping"])
    ]

  def _hold(self, trace):
    """What the student has to be given of a trace."""
    prompt = self.prompts[trace.uuid][1]
    text = self._text([trace.ids])[0]
    ids, ends = self._encode([text])[0]
    return Held([*prompt, *ids], len(prompt), text, ends)

  def _cut(self, traces, tokens, count, ended):
    """{row: [Branch of each candidate]}."""
    running = {i: t for i, t in enumerate(traces) if t is not None}
    mine = lambda i, j: tokens[i, j, : count[i, j]].tolist()
    k = range(self.select.k)
    for i, trace in running.items():
      self.held[i] = self.held[i] or self._hold(trace)
    body = {(i, j): mine(i, j)[: count[i, j] - int(ended[i, j])] for i in running for j in k}
    last = {i: t.ids[-TURN:] for i, t in running.items()}
    start = dict(zip(running, self._text(list(last.values()))))
    for i in running:
      if not (start[i] and self.held[i].text.endswith(start[i])):  # they begin inside a character
        last[i], start[i] = running[i].ids, self.held[i].text
    new = dict(zip(body, self._text([[*last[i], *ids] for (i, _), ids in body.items()])))
    texts = {
      (i, j): self.held[i].text + text[len(start[i]) :]
      if text.startswith(start[i])
      else self._text([[*running[i].ids, *body[i, j]]])[0]
      for (i, j), text in new.items()
    }
    cut = dict(zip(texts, self._again(texts)))
    # Where each teacher token ends.
    steps = iter(
      self._text(
        [[*last[i], *ids[: n + 1]] for (i, _), ids in body.items() for n in range(len(ids))]
      )
    )
    own = self.writer.student_tokenizer.eos_token_id
    found = {i: [] for i in running}
    for (i, j), ids in body.items():
      base = len(self.held[i].text)
      stops = [base + len(next(steps)) - len(start[i]) for _ in ids]
      stay, student, ends = cut[i, j]
      homes = [
        min(bisect.bisect_left(stops, e), len(ids) - 1) if e > base and ids else -1 for e in ends
      ]
      if ended[i, j]:
        student, ends = [*student, own], [*ends, len(texts[i, j])]
        homes = [*homes, int(count[i, j]) - 1]
      found[i].append(Branch(stay, student, ends, homes, texts[i, j]))
    return found

  def _keep(self, row, branch):
    held = self.held[row]
    held.ids[branch.stay :], held.ends[branch.stay - held.first :] = branch.ids, branch.ends
    held.text = branch.text

  def _again(self, texts):
    """[(how many held tokens stay, ids, ends)] of texts {(row, branch): text}.

    The tail of a text is cut; where it comes out as it is held, AGREE tokens long, the cuts have met
    and what is before stays. Where they do not meet, the whole text is cut.
    """
    at = {i: max(len(self.held[i].ids) - TAIL, self.held[i].first) for i, _ in texts}
    begin = {
      i: self.held[i].ends[n - self.held[i].first - 1] if n > self.held[i].first else 0
      for i, n in at.items()
    }
    tails = self._encode([text[begin[i] :] for (i, _), text in texts.items()])
    for ((i, _), text), (ids, ends) in zip(texts.items(), tails):
      held, ends = self.held[i], [begin[i] + e for e in ends]
      if at[i] > held.first:
        met = _meet(held, at[i], ids, ends)
        yield (
          (met[0], ids[met[1] :], ends[met[1] :]) if met else (held.first, *self._encode([text])[0])
        )
      else:
        yield held.first, ids, ends

  # ---------------------------------------------------------------- the student's ring

  def _make_room(self, cut, stay):
    tail = max(
      (b.stay + len(b.ids) - stay[i] for i, branches in cut.items() for b in branches), default=0
    )
    wide = self.wide
    while wide < tail:
      wide *= 2
    longest = max((len(self.held[i].ids) for i in cut), default=1)
    need = -(-longest // self.select.c) * self.select.c + wide
    if wide > self.wide or need > self.ring_slots:
      self.wide = wide
      self._resize(2 * need)
    elif any(self.age[i] + wide > self.ring_slots for i in self.inside & cut.keys()):
      self._empty()

  def _read(self, cut):
    """Reads the rows that are not inside the ring."""
    rows, c = sorted(cut.keys() - self.inside), self.select.c
    if not rows:
      return
    text = np.zeros((self.select.slots, self.ring_slots + 1), np.int32)
    new, length = np.zeros(self.select.slots, bool), np.ones(self.select.slots, np.int32)
    for i in rows:
      new[i], length[i] = True, len(self.held[i].ids)
      text[i, : length[i]] = self.held[i].ids
    self.prefix = read(
      self.writer.student,
      self.prefix,
      *map(self._place, (new, text, length)),
      mesh_lib.place(np.int32(self.slot)),
      c=c,
      block=self.select.block or self.ring_slots,
    )
    self.age[rows] = -(-(max(length) - 1) // c) * c
    self.inside |= {*rows}

  def _moved(self, cut, stay):
    b, k, e = self.select.slots, self.select.k, self.wide
    tokens, home = np.zeros((b, k, e), np.int32), np.full((b, k, e), -1, np.int32)
    count, length, last = np.zeros((b, k), np.int32), *np.zeros((2, b), np.int32)
    for i, branches in cut.items():
      held, common = self.held[i].ids, stay[i]
      length[i], last[i] = common - 1, held[common - 1]
      for j, branch in enumerate(branches):
        here = max(branch.stay, common)  # what is held between the two comes first
        ids = [*held[common:here], *branch.ids[here - branch.stay :]]
        n = count[i, j] = len(ids)
        tokens[i, j, :n] = ids
        home[i, j, here - common : n] = branch.homes[here - branch.stay :]
    return Moved(*map(self._place, (tokens, count, home, length, last)))

  def _place(self, x):
    return mesh_lib.place(x, P(self.writer.student.shape.rows, *[None] * (x.ndim - 1)))


@functools.partial(jax.jit, static_argnames=("shape", "b", "s"))
def _blank(*, shape, b, s):
  return ring_lib.blank(shape, b, s)


def _meet(held, at, ids, ends):
  """(n, j): the held tokens before n, and ids from j on, cut the text; None where cuts disagree."""
  place = {end: n for n, end in enumerate(held.ends[at - held.first :], at + 1)}
  for j in range(AGREE, len(ids) + 1):
    n = place.get(ends[j - 1], 0)
    if n - AGREE >= at and held.ids[n - AGREE : n] == ids[j - AGREE : j]:
      return n, j
  return None


def _same(a, b):
  """Length of the common start of two lists."""
  n = min(len(a), len(b))
  return next((i for i in range(n) if a[i] != b[i]), n)
