"""Rounds of a teacher and a student whose tokenizers differ: text goes between them, on the host.

A round is two programs instead of one. Between them the host decodes the candidates and encodes
them in the student's tokens. More text can change how earlier text is tokenized, so the student's
ring is first rewound over the tokens that changed. Only the end of a trace is encoded again: a
round costs the host the same however long the trace is.

Student statistics are then assigned to the teacher's tokens by their characters: nll and entropy
are summed, ranks take their maximum, so that scorers and files see one number per teacher token.
With equal tokenizers the result is that of the fused step, which is what they get (see loop.py).
"""

import bisect
import dataclasses
import math
import typing

from jax.sharding import PartitionSpec as P
import numpy as np

from gen_ssd import config as config_lib
from gen_ssd import mesh as mesh_lib
from gen_ssd.collect import writer as writer_lib
from gen_ssd.collect.traces import Trace
from gen_ssd.config import Select
from gen_ssd.engine import ring as ring_lib
from gen_ssd.engine import state as state_lib
from gen_ssd.engine import step as step_lib
from gen_ssd.engine import translated

TAIL = 48  # newest student tokens of a trace that are encoded again with every candidate
AGREE = 8  # consecutive tokens that must come out as before, for the older ones to stay
TURN = 8  # newest teacher tokens that a decoder is given before new ones


@dataclasses.dataclass
class Held:
  """What the student has been given of a slot."""

  ids: list  # its tokens of the prompt and the trace
  first: int  # how many are the prompt's
  text: str  # of the trace
  ends: list  # where in it each of the trace's tokens ends


@dataclasses.dataclass
class Branch:
  """The tokens of a slot when a candidate follows: the first `stay` that are held, and these."""

  stay: int
  ids: list
  ends: list
  homes: list  # teacher token of the candidate that each ends in, -1 for none
  text: str


class Translator:
  """A collection's engine when tokenizers differ: the teacher's state, the student's ring.

  It has the methods of writer.Engine.
  """

  def __init__(
    self,
    writer: writer_lib.Writer,
    select: Select,
    prompts: dict[str, tuple],
    traced: state_lib.Knobs,
  ):
    self.writer, self.select, self.prompts, self.knobs = writer, select, prompts, traced
    self.student: typing.Any = writer.student
    self.static = writer_lib.round_of(select, config_lib.ring_slots(select))
    self.entries = writer_lib.entries(select, writer.teacher)

  def reset(self) -> None:
    """Empty slots: a fence, after which a resumed run is in the same state."""
    s = self.select
    self.state = step_lib.blank_state(
      teacher=self.writer.teacher.spec,
      student=None,
      b=s.slots,
      s=config_lib.ring_slots(s),
      window=s.loop_window,
    )
    # Most tokens of a candidate, and ring slots: two per teacher token at first, and they grow.
    # Reading a full slot again leaves out what chunks that end early waste.
    self.wide, self.ring_slots = 2 * s.c, 0
    self.names: list = [None] * s.slots  # which trace a slot holds
    self.held: list = [None] * s.slots  # its Held
    self._resize(s.prompt + 2 * (s.max_tokens + s.resamples * s.c))

  def admit(self, admission: state_lib.Admission) -> None:
    """The teacher reads at once; the student reads in the next round, from the texts."""
    self.state = step_lib.admit(
      self.writer.teacher, None, self.state, admission, c=self.static.c, block=self.static.block
    )

  def _resize(self, slots):
    unit = math.lcm(self.wide, self.select.block or 1)
    self.ring_slots = -(-max(slots, self.ring_slots) // unit) * unit
    self._empty()

  def _empty(self):
    """A blank ring: every slot has to be read again."""
    s, self.inside = self.select, set()
    self.age = np.zeros(s.slots, int)  # Ring.age as the last round left it
    self.ring = translated.blank_ring(spec=self.student.spec, b=s.slots, s=self.ring_slots)

  def round(self, traces: list[Trace | None]) -> state_lib.Report:
    """One round of the `traces` under way (a Trace or None per slot); returns its Report."""
    proposal, found = translated.propose(
      self.writer.teacher, self.state, self.knobs, round=self.static
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
    self.state, self.ring, report, age = translated.settle(
      self.student,
      self.state,
      self.ring,
      self.knobs,
      proposal,
      self._moved(cut, stay),
      round=dataclasses.replace(self.static, block=self.select.block or self.ring_slots),
    )
    choice, self.age = mesh_lib.host((report.choice, age))
    for i, at in enumerate(choice):
      if i in cut:
        self._keep(i, cut[i][at] if at >= 0 else Branch(stay[i], [], [], [], self.held[i].text))
    return report

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
    """{slot: [Branch of each candidate]}."""
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

  def _keep(self, slot, branch):
    held = self.held[slot]
    held.ids[branch.stay :], held.ends[branch.stay - held.first :] = branch.ids, branch.ends
    held.text = branch.text

  def _again(self, texts):
    """[(how many held tokens stay, ids, ends)] of texts {(slot, branch): text}.

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
    else:  # as in the teacher's ring, a full slot is read again
      self.inside -= {i for i in self.inside if self.age[i] + wide > self.ring_slots}

  def _read(self, cut):
    """Reads the slots that are not inside the ring."""
    slots, c = sorted(cut.keys() - self.inside), self.select.c
    if not slots:
      return
    entries = writer_lib.entries(self.select, self.student)
    for places in entries.groups({i: len(self.held[i].ids) for i in slots}):
      tokens = np.zeros((entries.number, self.ring_slots + 1), np.int32)
      slot, length = np.full(entries.number, entries.slots), np.ones(entries.number, np.int32)
      for n, i in places.items():
        slot[n], length[n] = i, len(self.held[i].ids)
        tokens[n, : length[n]] = self.held[i].ids
      self.ring = translated.read(
        self.student,
        self.ring,
        self._place(slot.astype(np.int32)),
        ring_lib.Text(tokens=self._place(tokens), length=self._place(length)),
        c=c,
        block=self.select.block or self.ring_slots,
      )
    self.inside |= {*slots}

  def _moved(self, cut, stay):
    b, k, e = self.select.slots, self.select.k, self.wide
    tokens, home = np.zeros((b, k, e), np.int32), np.full((b, k, e), -1, np.int32)
    count, length, last = np.zeros((b, k), np.int32), *np.zeros((2, b), np.int32)
    for i, branches in cut.items():
      held, common = self.held[i].ids, stay[i]
      length[i], last[i] = common - 1, held[common - 1]
      for j, branch in enumerate(branches):
        begin = max(branch.stay, common)  # what is held between the two comes first
        ids = [*held[common:begin], *branch.ids[begin - branch.stay :]]
        n = count[i, j] = len(ids)
        tokens[i, j, :n] = ids
        home[i, j, begin - common : n] = branch.homes[begin - branch.stay :]
    arrays = dict(tokens=tokens, count=count, home=home, length=length, last=last)
    return translated.Moved(**{name: self._place(x) for name, x in arrays.items()})

  def _place(self, x):
    return mesh_lib.place(x, P(self.student.layout.batch_axes, *[None] * (x.ndim - 1)))


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
