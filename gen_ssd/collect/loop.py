"""The host loop around the compiled step: admit, run a round, harvest, write, resume."""

import dataclasses
import functools
import math
import time

import jax
from jax.sharding import PartitionSpec as P
import numpy as np

from gen_ssd import config as config_lib
from gen_ssd import mesh as mesh_lib
from gen_ssd import progress
from gen_ssd.collect import traces as traces_lib
from gen_ssd.collect import translate
from gen_ssd.engine import sampling
from gen_ssd.engine import scores
from gen_ssd.engine import selectors
from gen_ssd.engine import step as step_lib
from gen_ssd.models import decoder
from gen_ssd.models import tokenization


@dataclasses.dataclass(frozen=True)
class Writer:
  """Who writes and who chooses: models (unstacked when they unroll) with their tokenizers."""

  teacher: decoder.Transformer
  teacher_tokenizer: object
  ends: tuple  # ids that end a trace
  student: decoder.Transformer | None = None
  student_tokenizer: object = None
  system: str | None = None
  translate: bool = False  # their tokenizers differ: see translate.py


def knobs(writer, select, threshold):
  """The traced settings of a collection on the mesh; ids both tokenizers lack are never drawn."""
  size = writer.teacher.shape.vocab
  if writer.student is None or writer.translate:
    shared = min(size, len(writer.teacher_tokenizer))
  else:
    shared = tokenization.shared_vocabulary(writer.teacher_tokenizer, writer.student_tokenizer)
  ends = np.zeros(size, np.int8)
  if select.delimiters:
    ends[tokenization.delimiter_mask(writer.teacher_tokenizer, select.delimiters, size)] = (
      step_lib.DELIMITER
    )
  ends[list(writer.ends)] = step_lib.EOS
  steps = tokenization.delimiter_mask(writer.teacher_tokenizer, select.step_delimiters, size)
  margin = -math.inf if select.margin == "off" else select.margin
  running = math.inf if select.running_margin == "off" else select.running_margin
  values = (
    np.float32(select.temperature),
    np.int32(select.top_k),
    np.float32(select.top_p),
    np.float32(threshold),
    np.float32(margin),
    np.float32(running),
    np.float32(select.beta),
    np.int32(select.context * select.c),
    np.int32(select.resamples),
    np.int32(shared),
    np.int32(closing(writer.teacher_tokenizer, select)),
    ends,
    steps,
  )
  return step_lib.Knobs(*map(mesh_lib.place, values))


def closing(teacher_tokenizer, select):
  """The id after which nothing is chosen, -1 for none. ValueError when there must be one."""
  return tokenization.closing_id(teacher_tokenizer) if select.covers == "thinking" else -1


def check_prompts(problems, tokenizers, select, system):
  """{uuid: (teacher's prompt ids, student's)}; ValueError names the first that does not fit."""
  found = {}
  for p in problems:
    found[p.uuid] = tokenization.prompts(tokenizers, p.problem, system)
    if select.scoring_prompt == "teacher":
      found[p.uuid] = (found[p.uuid][0],) * 2
    longest = max(map(len, found[p.uuid]))
    if longest > select.prompt + 1:  # the newest token is not in the ring yet
      raise ValueError(
        f"select.prompt is {select.prompt}: problem {p.uuid} has {longest} prompt "
        f"tokens; {-(-(longest - 1) // select.c) * select.c} would hold it"
      )
  return found


def finished(problems, select, folder):
  """The rows of a collection in `folder` that has nothing left to do, as `collect` returns them.

  None when there is something: then models are needed.
  """
  rows, in_flight = traces_lib.Shards(folder).resume()
  done = {(r["uuid"], r["attempt"]) for r in rows}
  if any(in_flight or ()) or any(job not in done for job in _jobs(problems, select, rows)):
    return None
  return _ordered(problems, rows)


def collect(writer, problems, select, folder, *, grader, threshold=math.inf, title="collect"):
  """Writes `select.attempts` traces for every problem and returns their rows (see traces.row).

  With `select.pruned` = "retry" a pruned trace is written anew, at most `select.retries` times, as
  attempt n + attempts: later, when every problem has had its first attempts.

  Killed at any instant and called again, it continues to the same files: the loop has fences
  every `select.shard_rounds` rounds where finished traces are written and every trace under way
  is read again from its tokens, so a resumed run starts from what a fence leaves.
  Raises ValueError for a prompt that does not fit, FloatingPointError (problem and round named)
  when a model's numbers are not finite.
  """
  loop = _Loop(writer, problems, select, folder, grader, threshold, title)
  if loop.pending or any(loop.rows):
    loop.run()
  return _ordered(problems, loop.finished)


def _jobs(problems, select, rows):
  """[(uuid, attempt)]: the traces that problems need, also because of those that ended as `rows`."""
  wanted = {p.uuid for p in problems}
  return [
    *((p.uuid, a) for p in problems for a in range(select.attempts)),
    *(
      job
      for r in rows
      if r["uuid"] in wanted
      for job in _again(select, r["uuid"], r["attempt"], r["stop"])
    ),
  ]


def _again(select, uuid, attempt, stop):
  """The (uuid, attempt) that is written because this one was pruned: a list of one or none."""
  if select.pruned != "retry" or stop != "pruned" or attempt // select.attempts >= select.retries:
    return []
  return [(uuid, attempt + select.attempts)]


def _ordered(problems, rows):
  order = {p.uuid: i for i, p in enumerate(problems)}
  return sorted(
    (r for r in rows if r["uuid"] in order), key=lambda r: (order[r["uuid"]], r["attempt"])
  )


class _Loop:
  """State of one collection on the host."""

  def __init__(self, writer, problems, select, folder, grader, threshold, title):
    self.writer, self.select, self.grader = writer, select, grader
    self.problems = {p.uuid: p for p in problems}
    self.threshold, self.title = threshold, title
    self.closing = closing(writer.teacher_tokenizer, select)
    self.shards = traces_lib.Shards(folder)
    found, in_flight = self.shards.resume()
    self.finished = [r for r in found if r["uuid"] in self.problems]
    self.right = sum(r["verdict"] == "right" for r in self.finished)
    self.slots = in_flight or [None] * select.slots
    jobs = _jobs(problems, select, self.finished)
    gone = {(r["uuid"], r["attempt"]) for r in self.finished}
    gone |= {(t.uuid, t.attempt) for t in self.slots if t}
    self.pending = [j for j in jobs if j not in gone][::-1]
    self.jobs = {*jobs} | gone
    self.prompts = check_prompts(
      problems,
      (writer.teacher_tokenizer, writer.student_tokenizer or writer.teacher_tokenizer),
      select,
      writer.system,
    )
    self.new_rows, self.new_losers = [], []  # since the last fence

  def run(self):
    s, w = self.select, self.writer
    student = None if w.translate else w.student  # else another keeps the student's ring
    translator = translate.Translator(w, s, self.prompts) if w.translate and w.student else None
    shapes = dict(teacher=w.teacher.shape, student=student and student.shape)
    slots = config_lib.ring_slots(s)
    blank = lambda: step_lib.blank_state(**shapes, b=s.slots, s=slots, window=s.loop_window)
    knob = knobs(w, s, self.threshold)
    title = self.title + " (translated: slower)" * bool(translator)
    line = progress.Progress(title, len(self.jobs))
    start, proposed, rounds, state = time.monotonic(), 0, 0, None
    first, harvest = len(self.finished), []
    while True:
      fence = state is None or rounds % s.shard_rounds == 0
      if fence:
        if state is not None:
          self._write()
        state = blank()
        if translator:
          translator.reset()
      free = [i for i, t in enumerate(self.slots) if t is None]
      new = [i for i, t in enumerate(self.slots) if t] if fence else []
      if self.pending and (fence or len(free) >= max(1, s.slots // 4)):
        for i in free[: len(self.pending)]:
          self.slots[i] = traces_lib.Trace(*self.pending.pop())
          new.append(i)
      if not any(self.slots):
        break
      if new:
        state = step_lib.admit(
          w.teacher, student, state, self._admission(new), c=s.c, block=s.block or slots
        )
      if translator:
        state, report = translator.round(state, knob, self.slots)
      else:
        state, report = step_lib.select_step(
          w.teacher,
          student,
          state,
          knob,
          k=s.k,
          c=s.c,
          scorer=scores.SCORERS[s.scorer],
          selector=selectors.SELECTORS[s.selector],
          block=s.block or slots,
          window=s.loop_window,
          local=s.context > 0,
        )
      self._finish(harvest)  # verified and put into words while the devices work
      report = mesh_lib.host(report)
      rounds += 1
      harvest = self._advance(report)
      if rounds % s.shard_rounds == 0 or not (self.pending or any(self.slots)):
        self._finish(harvest)  # a fence, or the end, writes all that is finished
        harvest = []
      proposed += int(report.count.sum())
      done, line.total = len(self.finished), len(self.jobs)
      good = self.right / max(done, 1)
      rate = proposed / (time.monotonic() - start)
      line.show(
        done, f"right {good:.0%}  {rate:,.0f} tok/s  scoring {self._share(report):.0%} of FLOPs "
      )
    self._write()
    line.show(
      len(self.finished),
      f"right {good:.0%}  {rate:,.0f} tok/s ({len(self.finished) - first} traces, {rounds} rounds)",
      final=True,
    )

  def _share(self, report):
    """The student's part of the round's multiplications."""
    if self.writer.student is None:
      return 0.0
    mine, theirs = (decoder.parameters(m.shape) for m in (self.writer.teacher, self.writer.student))
    spent = mine * max(int(report.steps), 1)
    return theirs * self.select.c / (spent + theirs * self.select.c)

  def _admission(self, new):
    """The Admission of rows `new`, on the mesh."""
    s = self.select
    size = config_lib.ring_slots(s) + 1
    text = np.zeros((2, s.slots, size), np.int32)
    length, key = np.ones((2, s.slots), np.int32), np.zeros((s.slots, 2), np.uint32)
    mark, free = np.zeros((2, s.slots), bool)
    chunk, retry, room, question = (np.zeros(s.slots, np.int32) for _ in range(4))
    total = np.zeros(s.slots, np.float32)
    recent = np.full((s.slots, s.loop_window - 1), -1, np.int32)
    for i in new:
      trace = self.slots[i]
      mark[i] = True
      for m, prompt in enumerate(self.prompts[trace.uuid]):
        ids = [*prompt, *trace.ids]
        text[m, i, : len(ids)], length[m, i] = ids, len(ids)
      key[i] = jax.random.key_data(sampling.row_key(s.seed, trace.uuid, trace.attempt))
      chunk[i], retry[i], total[i] = len(trace.chunks), trace.retry, trace.total
      question[i], free[i] = len(self.prompts[trace.uuid][1]), self.closing in trace.ids
      room[i] = s.max_tokens - len(trace.ids)
      tail = trace.ids[-(s.loop_window - 1) :]
      if tail:
        recent[i, -len(tail) :] = tail
    rows = self.writer.teacher.shape.rows
    put = lambda x: mesh_lib.place(x, P(rows, *[None] * (x.ndim - 1)))
    return step_lib.Admission(
      *map(
        put,
        (
          mark,
          text[0],
          length[0],
          text[1],
          length[1],
          key,
          chunk,
          retry,
          room,
          recent,
          total,
          question,
          free,
        ),
      )
    )

  def _advance(self, report):
    """Adds a round to every running trace; returns those that stopped, with the cause."""
    stopped = []
    for i, trace in enumerate(self.slots):
      if trace is None:
        continue
      if report.bad[i]:
        raise FloatingPointError(
          f"problem {trace.uuid}, round {trace.rounds}: a model's numbers are "
          "not finite; try dtype float32, or check the weights"
        )
      count, choice = report.count[i], int(report.choice[i])
      drawn = np.count_nonzero(count)  # one where nothing is chosen, else k
      score = [
        _number(x) if ok else None for x, ok in zip(report.score[i, :drawn], report.valid[i])
      ]
      trace.teacher_tokens += int(count.sum())
      trace.rounds += 1
      for k in range(drawn):
        if k != choice:
          trace.losers.append(
            {
              "chunk": len(trace.chunks),
              "branch": k,
              "retry": trace.retry,
              "ids": report.tokens[i, k, : count[k]].tolist(),
              "count": int(count[k]),
              "score": score[k],
              "student_nll": _mean(report.student_nll[i, k, : count[k]]),
            }
          )
      if choice < 0:
        trace.retry += 1
      else:
        n, kept = int(count[choice]), (i, choice, slice(int(count[choice])))
        trace.chunks.append(
          {
            "count": n,
            "choice": choice,
            "score": score[choice],
            "scores": score,
            "resamples": trace.retry,
          }
        )
        trace.starts += (len(trace.ids) + np.flatnonzero(report.start[kept])).tolist()
        trace.ids += report.tokens[kept].tolist()
        trace.teacher_logprobs += [-float(x) for x in report.teacher_nll[kept]]
        if self.writer.student is not None:
          trace.student_nlls += [float(x) for x in report.student_nll[kept]]
          trace.student_ranks += report.student_rank[kept].tolist()
        trace.retry, trace.total = 0, float(report.total[i])
      if report.why[i] != step_lib.RUNNING:
        stop = step_lib.STOPS[int(report.why[i])]
        stopped.append((trace, stop))
        self.slots[i] = None
        again = _again(self.select, trace.uuid, trace.attempt, stop)
        again = [j for j in again if j not in self.jobs]
        self.pending = again + self.pending  # last, as a resumed run has them
        self.jobs |= {*again}
    return stopped

  def _finish(self, stopped):
    """(trace, cause) pairs become rows: decoded, verified."""
    for trace, stop in stopped:
      self._row(trace, stop)

  def _row(self, trace, stop):
    problem, tokenizer = self.problems[trace.uuid], self.writer.teacher_tokenizer
    opened = tokenizer.decode(tokenization.opening(tokenizer, self.prompts[trace.uuid][0]))
    text = opened + tokenizer.decode(trace.ids, skip_special_tokens=True)
    verdict = self.grader.grade(problem.answer, text) if stop == "ended" else "wrong"
    at = 0
    starts = []
    for chunk in trace.chunks:
      starts.append(at)
      chunk["text"] = self._words(trace, at, trace.ids[at : at + chunk["count"]])
      at += chunk["count"]
    starts.append(at)
    row = traces_lib.row(trace, problem, text, stop, verdict, opened)
    self.finished.append(row)
    self.right += verdict == "right"
    self.new_rows.append(row)
    for loser in trace.losers:
      self.new_losers.append(
        {
          "uuid": trace.uuid,
          "attempt": trace.attempt,
          **loser,
          "text": self._words(trace, starts[loser["chunk"]], loser["ids"]),
        }
      )

  def _words(self, trace, at, ids):
    """Text of `ids` that follow the trace's first `at` tokens, spaces in front included."""
    decode = functools.partial(self.writer.teacher_tokenizer.decode, skip_special_tokens=True)
    before = trace.ids[max(at - 4, 0) : at] or self.prompts[trace.uuid][0][-1:]
    return decode([*before, *ids])[len(decode(before)) :]

  def _write(self):
    if jax.process_index() == 0:
      self.shards.write(self.new_rows, self.new_losers, self.slots)
    self.new_rows, self.new_losers = [], []


def _number(x):
  return round(float(x), 5)


def _mean(x):
  return _number(np.mean(x)) if len(x) else None
