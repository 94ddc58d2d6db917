"""The host loop around the compiled step: admit, run a round, harvest, write, resume."""

import functools
import math
import time

import jax
from jax.sharding import PartitionSpec as P
import numpy as np

from gen_ssd import folders
from gen_ssd import mesh as mesh_lib
from gen_ssd import progress
from gen_ssd import times
from gen_ssd import trackers
from gen_ssd.collect import prefixes
from gen_ssd.collect import traces as traces_lib
from gen_ssd.collect import translate
from gen_ssd.collect import writer as writer_lib
from gen_ssd.config import Select
from gen_ssd.engine import sampling
from gen_ssd.engine import state as state_lib
from gen_ssd.models import architecture
from gen_ssd.models import tokenization
from gen_ssd.problems.answers import Grade
from gen_ssd.problems.answers import Grader
from gen_ssd.problems.problem import Problem


def finished(
  problems: list[Problem],
  select: Select,
  folder: folders.Path,
  given: writer_lib.Given = None,
) -> list[traces_lib.Row] | None:
  """The rows of a collection in `folder` that has nothing left to do, as `collect` returns them.

  None when something is left to do: then models are needed. `given` is that of the Writer.
  """
  rows, in_flight = traces_lib.Shards(folder).resume(select.slots)
  done = {(r["uuid"], r["attempt"]) for r in rows}
  jobs = _jobs(problems, select, rows, given)
  under_way = {(t.uuid, t.attempt) for t in in_flight or () if t}  # maybe of other problems
  if not under_way.isdisjoint(jobs) or not done.issuperset(jobs):
    return None
  return _ordered(problems, rows)


def collect(
  writer: writer_lib.Writer,
  problems: list[Problem],
  select: Select,
  folder: folders.Path,
  *,
  grader: Grader,
  threshold: float = math.inf,
  title: str = "collect",
) -> list[traces_lib.Row]:
  """Writes `select.attempts` traces for every problem and returns their rows.

  With `writer.given`, only those that go on from a trace there.

  With `select.pruned` = "retry" a pruned trace is written again, at most `select.retries` times, as
  attempt n + attempts, after every problem has had its first attempts.

  A collection that is killed at any instant and called again ends in the same files. The loop has
  a fence every `select.shard_rounds` rounds: finished traces are written, and every trace under way
  is read again from its tokens, so that a resumed run starts from what a fence leaves.

  Raises:
    UserError: a prompt does not fit.
    FloatingPointError: a model's numbers are not finite; names the problem and the round.
  """
  loop = _Loop(writer, problems, select, folder, grader, threshold)
  if loop.pending or any(loop.slots):
    with mesh_lib.stoppable(alone=False) as stopping:
      loop.run(title, stopping)
  return _ordered(problems, loop.finished)


def _jobs(problems, select, rows, given):
  """[(uuid, attempt)]: the traces that problems need, also because of those that ended as `rows`."""
  wanted = {p.uuid for p in problems}
  first = [(p.uuid, a) for p in problems for a in range(select.attempts)]
  first = [job for job in first if given is None or job in given]
  again = (_retry(select, r["uuid"], r["attempt"], r["stop"]) for r in rows if r["uuid"] in wanted)
  return [*first, *(job for jobs in again for job in jobs)]


def _retry(select, uuid, attempt, stop):
  """The (uuid, attempt) that is written because this one was pruned: a list of one or none."""
  tried = attempt // select.attempts
  if select.pruned != "retry" or stop != "pruned" or tried >= select.retries:
    return []
  return [(uuid, attempt + select.attempts)]


def _going_on(in_flight, select, left):
  """The Trace under way in each slot, or None. A damaged file may name any; `left` is to be done."""
  slots = [None] * select.slots
  for i, t in enumerate(in_flight or ()):
    if t and (t.uuid, t.attempt) in left and len(t.ids) < select.max_tokens:
      slots[i] = t
      left.remove((t.uuid, t.attempt))
  return slots


def _ordered(problems, rows):
  order = {p.uuid: i for i, p in enumerate(problems)}
  return sorted(
    (r for r in rows if r["uuid"] in order), key=lambda r: (order[r["uuid"]], r["attempt"])
  )


class _Loop:
  """State of one collection on the host."""

  def __init__(self, writer, problems, select, folder, grader, threshold):
    self.writer, self.select, self.grader = writer, select, grader
    self.problems = {p.uuid: p for p in problems}
    self.threshold = threshold
    self.closing = writer_lib.closing(writer.teacher_tokenizer, select)
    self.shards, self.times = traces_lib.Shards(folder), times.Times(folder)
    found, in_flight = self.shards.resume(select.slots)
    self.finished = [r for r in found if r["uuid"] in self.problems]
    self.right = sum(r["verdict"] == "right" for r in self.finished)
    self.prefixes = writer.given and prefixes.Prefixes(writer, select)
    jobs = _jobs(problems, select, self.finished, writer.given)
    taken = {(r["uuid"], r["attempt"]) for r in self.finished}
    self.slots = _going_on(in_flight, select, {*jobs} - taken)
    taken |= {(t.uuid, t.attempt) for t in self.slots if t}
    self.pending = [j for j in jobs if j not in taken][::-1]
    self.jobs = {*jobs} | taken
    self.prompts = writer_lib.check_prompts(
      problems, writer.tokenizers, select, writer.system, writer.examples
    )
    self.new_rows, self.new_lost = [], []  # since the last fence
    self.harvest = []  # (trace, cause) that stopped in the last round, not yet graded
    self.full = []  # slots without room in a ring, which are read again
    self.proposed = self.rounds = 0
    self.tracked = len(self.finished)  # what the trackers know of

  def run(self, title, stopping):
    w = self.writer
    traced = writer_lib.knobs(w, self.select, self.threshold)
    if w.translate and w.student is not None:
      engine = translate.Translator(w, self.select, self.prompts, traced)
      title += " (translated: slower)"
    else:
      engine = writer_lib.Engine(w, self.select, traced)
    line = progress.Progress(title, len(self.jobs))
    start, done_before = time.monotonic(), len(self.finished)
    while True:
      fence = self.rounds % self.select.shard_rounds == 0
      if fence:
        if self.rounds:
          self._write()
        engine.reset()
      new = self._fill(fence, engine.entries.number)
      if not any(self.slots):
        break
      for places in engine.entries.groups({i: self._length(i) for i in new}):
        engine.admit(self._admission(places, engine.entries.number))
      report = engine.round(self.slots)
      self._finish()  # traces of the last round are graded while the devices work
      report = mesh_lib.host(report)
      self.rounds += 1
      self.harvest = self._advance(report)
      if self.rounds % self.select.shard_rounds == 0 or not (self.pending or any(self.slots)):
        self._finish()  # a fence, or the end, writes all that is finished
      self._show(line, start, f"scoring {self._student_share(report):.0%} of FLOPs ")
      if stopping():
        return
    self._write()
    made = len(self.finished) - done_before
    self._show(line, start, f"({made} traces, {self.rounds} rounds)", final=True)

  def _show(self, line, start, text, final=False):
    done, line.total = len(self.finished), len(self.jobs)
    rate = self.proposed / (time.monotonic() - start)
    good = self.right / max(done, 1)
    line.show(done, f"right {good:.0%}  {rate:,.0f} tok/s  {text}", final=final)
    if done > self.tracked:
      numbers = {"done": done / line.total, "right": good, "tokens_per_second": rate}
      trackers.write(line.title, done, numbers)
      self.tracked = done

  def _student_share(self, report):
    """The student's part of the round's multiplications."""
    if self.writer.student is None:
      return 0.0
    teacher, student = (
      architecture.parameters(m.arch) for m in (self.writer.teacher, self.writer.student)
    )
    spent = teacher * max(int(report.decoded), 1)
    return student * self.select.c / (spent + student * self.select.c)

  # ---------------------------------------------------------------- admit

  def _fill(self, fence, entries):
    """Gives free slots pending traces; returns the slots to read. At a fence all are read again.

    Between fences, full slots are read again, which leaves out what chunks that ended early wasted,
    and free slots are filled when there are as many as an admission has entries.
    """
    free = [i for i, t in enumerate(self.slots) if t is None]
    new = [i for i, t in enumerate(self.slots) if t and (fence or i in self.full)]
    if self.pending and (fence or len(free) >= entries):
      for i in free[: len(self.pending)]:
        self.slots[i] = self._begun(*self.pending.pop())
        new.append(i)
    return new

  def _begun(self, uuid, attempt):
    """A trace that starts, with the tokens that it is given."""
    if not self.prefixes:
      return traces_lib.Trace(uuid, attempt)
    source = self.writer.given[uuid, attempt % self.select.attempts]
    return self.prefixes.begun(source, attempt)

  def _length(self, slot):
    """Tokens to read into a slot: the longer of both models' prompts, and the trace."""
    trace = self.slots[slot]
    return max(map(len, self.prompts[trace.uuid])) + len(trace.ids)

  def _admission(self, places, number):
    """The Admission of the slots in `places`, {entry: slot}, on the mesh; it has `number` entries."""
    s, a = self.select, writer_lib.blank_admission(self.select, number)
    for i, slot in places.items():
      trace = self.slots[slot]
      a.slot[i] = slot
      prompts = self.prompts[trace.uuid]
      for to, prompt in zip((a.teacher, a.student), prompts):
        ids = [*prompt, *trace.ids]
        to.tokens[i, : len(ids)], to.length[i] = ids, len(ids)
      a.key[i] = jax.random.key_data(sampling.trace_key(s.seed, trace.uuid, trace.attempt))
      a.chunk[i], a.resample[i] = len(trace.chunks), trace.resample
      a.score_sum[i] = trace.score_sum
      a.prompt_length[i], a.after_thinking[i] = len(prompts[1]), self.closing in trace.ids
      a.budget[i] = s.max_tokens - len(trace.ids)
      if tail := trace.ids[-(s.loop_window - 1) :]:
        a.recent[i, -len(tail) :] = tail
    batch = self.writer.teacher.layout.batch_axes
    put = lambda x: mesh_lib.place(x, P(batch, *[None] * (x.ndim - 1)))
    return jax.tree.map(put, a)

  # ---------------------------------------------------------------- harvest

  def _advance(self, report):
    """Adds a round to every trace under way; returns those that stopped, with the cause."""
    self.proposed += int(report.count.sum())
    self.full = np.flatnonzero(report.full).tolist()
    stopped = []
    for i, trace in enumerate(self.slots):
      if trace is None:
        continue
      if report.not_finite[i]:
        raise FloatingPointError(
          f"problem {trace.uuid}, round {trace.rounds}: a model's numbers are "
          "not finite; try dtype float32, or check the weights"
        )
      trace.add_round(report, i, scored=self.writer.student is not None)
      if report.status[i] != state_lib.RUNNING:
        stop = state_lib.STOPS[int(report.status[i])]
        stopped.append((trace, stop))
        self.slots[i] = None
        retry = _retry(self.select, trace.uuid, trace.attempt, stop)
        retry = [j for j in retry if j not in self.jobs]
        self.pending = retry + self.pending  # last, as a resumed run has them
        self.jobs |= {*retry}
    return stopped

  def _finish(self):
    """Traces that stopped become rows: decoded and graded."""
    tokenizer, texts = self.writer.teacher_tokenizer, []
    for trace, _ in self.harvest:
      opened = tokenizer.decode(tokenization.opening(tokenizer, self.prompts[trace.uuid][0]))
      texts.append((opened, opened + tokenizer.decode(trace.ids, skip_special_tokens=True)))
    ended = [
      (self.problems[trace.uuid].answer, text)
      for (trace, stop), (_, text) in zip(self.harvest, texts)
      if stop == "ended"
    ]
    grades = iter(self.grader.grades(ended))
    for (trace, stop), (opened, text) in zip(self.harvest, texts):
      problem = self.problems[trace.uuid]
      grade = next(grades) if stop == "ended" else Grade("wrong", "rule")
      chunks, lost = self._texts(trace)
      row = traces_lib.row(trace, problem, chunks, text, stop, grade, opened)
      self.finished.append(row)
      self.right += grade.verdict == "right"
      self.new_rows.append(row)
      self.new_lost += lost
    self.harvest = []

  def _texts(self, trace):
    """The trace's chunks and its lost candidates with their texts."""
    ends = np.cumsum([0, *(c["count"] for c in trace.chunks)]).tolist()
    text = lambda start, ids: self._text_of(trace, start, ids)
    chunks = [
      {**c, "text": text(start, trace.ids[start:end])}
      for c, start, end in zip(trace.chunks, ends, ends[1:])
    ]
    lost = [
      {"uuid": trace.uuid, "attempt": trace.attempt, **x, "text": text(ends[x["chunk"]], x["ids"])}
      for x in trace.lost
    ]
    return chunks, lost

  def _text_of(self, trace, start, ids):
    """Text of `ids` that follow the trace's first `start` tokens, leading spaces included."""
    decode = functools.partial(self.writer.teacher_tokenizer.decode, skip_special_tokens=True)
    before = trace.ids[max(start - 4, 0) : start] or self.prompts[trace.uuid][0][-1:]
    return decode([*before, *ids])[len(decode(before)) :]

  def _write(self):
    if jax.process_index() == 0:
      self.shards.write(self.new_rows, self.new_lost, self.slots)
    self.times.write(self.proposed)
    self.new_rows, self.new_lost = [], []
