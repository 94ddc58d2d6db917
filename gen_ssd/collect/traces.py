"""Traces on disk: immutable JSONL shards; tables.py makes Parquet of them."""

import dataclasses
import json
import sys

import numpy as np

from gen_ssd import folders
from gen_ssd import rows as rows_lib
from gen_ssd import workdir as workdir_lib
from gen_ssd.engine import state as state_lib
from gen_ssd.problems.answers import Grade
from gen_ssd.problems.problem import Problem
from gen_ssd.rows import Chunk
from gen_ssd.rows import Lost
from gen_ssd.rows import Row

KINDS = ("traces", "candidates")
SCHEMA = 1  # of the rows of both kinds; a reader of other files can tell


@dataclasses.dataclass
class Trace:
  """One chain of thought under way; the fields are those of Row and Lost."""

  uuid: str
  attempt: int
  ids: list[int] = dataclasses.field(default_factory=list)
  given_tokens: int = 0  # of ids; the others were written here
  teacher_nlls: list[float] = dataclasses.field(default_factory=list)
  student_nlls: list[float] = dataclasses.field(default_factory=list)
  student_ranks: list[int] = dataclasses.field(default_factory=list)
  step_starts: list[int] = dataclasses.field(default_factory=list)
  chunks: list[rows_lib.Drawn] = dataclasses.field(default_factory=list)
  lost: list[rows_lib.Candidate] = dataclasses.field(default_factory=list)
  score_sum: float = 0.0  # of the kept chunks, exactly as the engine has it
  resample: int = 0  # how often the coming chunk was drawn and found unsuitable
  teacher_tokens: int = 0
  rounds: int = 0

  def add_round(self, report: state_lib.Report, slot: int, scored: bool) -> None:
    """Adds what a round did in `slot`; `scored` says whether there is a student."""
    count, choice = report.count[slot], int(report.choice[slot])
    drawn = np.count_nonzero(count)  # one where nothing is chosen, else k
    pairs = zip(report.score[slot, :drawn], report.valid[slot])
    score = [_rounded(x) if valid else None for x, valid in pairs]
    self.teacher_tokens += int(count.sum())
    self.rounds += 1
    for k in range(drawn):
      if k != choice:
        self.lost.append(
          {
            "chunk": len(self.chunks),
            "branch": k,
            "resample": self.resample,
            "ids": report.tokens[slot, k, : count[k]].tolist(),
            "count": int(count[k]),
            "score": score[k],
            "student_nll": _mean(report.student_nll[slot, k, : count[k]]),
          }
        )
    if choice < 0:
      self.resample += 1
      return
    n = int(count[choice])
    kept = slot, choice, slice(n)
    self.chunks.append(
      {
        "count": n,
        "choice": choice,
        "score": score[choice],
        "scores": score,
        "resamples": self.resample,
      }
    )
    self.step_starts += (len(self.ids) + np.flatnonzero(report.step_start[kept])).tolist()
    self.ids += report.tokens[kept].tolist()
    self.teacher_nlls += [float(x) for x in report.teacher_nll[kept]]
    if scored:
      self.student_nlls += [float(x) for x in report.student_nll[kept]]
      self.student_ranks += report.student_rank[kept].tolist()
    self.resample, self.score_sum = 0, float(report.score_sum[slot])


def row(
  trace: Trace,
  problem: Problem,
  chunks: list[Chunk],
  text: str,
  stop: str,
  grade: Grade,
  opened: str = "",
) -> Row:
  """The finished trace as a line of a shard."""
  mean = lambda x: sum(x) / len(x) if x else None
  return {
    "schema": SCHEMA,
    "uuid": trace.uuid,
    "source": problem.source,
    "split": problem.split,
    "level": problem.level,
    "attempt": trace.attempt,
    "problem": problem.problem,
    "answer": problem.answer,
    "text": text,
    "opened": opened,
    "ids": trace.ids,
    "num_tokens": len(trace.ids),
    "given_tokens": trace.given_tokens,
    "stop": stop,
    "verdict": grade.verdict,
    "graded_by": grade.graded_by,
    "student_nll": mean(trace.student_nlls),
    "teacher_nll": mean(trace.teacher_nlls),
    "teacher_nlls": [round(x, 5) for x in trace.teacher_nlls],
    "student_nlls": [round(x, 5) for x in trace.student_nlls],
    "student_ranks": trace.student_ranks,
    "step_starts": trace.step_starts,
    "chunks": chunks,
    "teacher_tokens": trace.teacher_tokens,
    "rounds": trace.rounds,
  }


def _rounded(x):
  return round(float(x), 5)


def _mean(x):
  return _rounded(np.mean(x)) if len(x) else None


class Shards:
  """The files of one collection in `folder`: finished shards and what is in flight.

  A shard is written whole at a fence, followed by `in_flight.json`, which names how many shards
  count. Whatever a killed run left after its last fence is written again, identically.
  """

  def __init__(self, folder: folders.Path):
    self.folder = folder
    self.count = 0

  def path(self, kind: str, index: int) -> folders.Path:
    return self.folder / f"{kind}-{index:05d}.jsonl"

  def write(self, finished: list[Row], lost: list[Lost], in_flight: list[Trace | None]) -> None:
    """One fence: rows of finished traces, their lost candidates, and the traces under way."""
    self.folder.mkdir(parents=True, exist_ok=True)
    for kind, rows in zip(KINDS, (finished, lost)):
      lines = "".join(json.dumps(r) + "\n" for r in rows)
      folders.write(self.path(kind, self.count), lines)
    self.count += 1
    state = {"shards": self.count, "slots": [t and dataclasses.asdict(t) for t in in_flight]}
    folders.write(self.folder / "in_flight.json", json.dumps(state))

  def resume(self, slots: int | None = None) -> tuple[list[Row], list[Trace | None] | None]:
    """(finished rows, the trace under way in each slot or None) of an earlier run.

    ([], None) when there was none. `slots` is the number of slots the run has now; None: any.

    Only well-formed rows are returned. A shard with other lines is named on stderr and mended; the
    traces of those lines are missing from the result, so that they are written again. Where
    in_flight.json is damaged, that is said, too, and the traces under way are None.
    """
    try:
      self.count, state = workdir_lib.fence(self.folder)
    except FileNotFoundError:
      return [], None
    finished = []
    for index in range(self.count):
      finished += self._repair(self.path("traces", index))
    if state == []:  # mended
      return finished, None
    in_flight = _in_flight(state, slots)
    if in_flight is None:
      self._mend_in_flight()
    return finished, in_flight

  def _mend_in_flight(self):
    path = self.folder / "in_flight.json"
    print(
      f"{path} is damaged: the traces under way start again; "
      f"the damaged file is kept as {path.name}.damaged",
      file=sys.stderr,
    )
    path.replace(path.with_name(path.name + ".damaged"))
    folders.write(path, json.dumps({"shards": self.count, "slots": []}))

  def _repair(self, path):
    good, bad = workdir_lib.read_jsonl(path, rows_lib.is_row)
    if bad:
      print(
        f"trace shard {path} is damaged in {bad} line(s): their problems are written again; "
        f"the damaged file is kept as {path.name}.damaged",
        file=sys.stderr,
      )
      if path.exists():
        path.replace(path.with_name(path.name + ".damaged"))
      folders.write(path, "".join(json.dumps(r) + "\n" for r in good))
    return good


def _in_flight(state, slots):
  """The Trace or None of every slot, of in_flight.json; None where that is damaged."""
  if type(state) is not list or slots not in (None, len(state)):
    return None
  fields = {f.name for f in dataclasses.fields(Trace)}
  for t in state:
    if t is None:
      continue
    if not (rows_lib.fits(t, Trace) and t.keys() == fields and rows_lib.is_trace(t)):
      return None
    if t["resample"] < 0 or not rows_lib.are_candidates(t["lost"], len(t["chunks"])):
      return None
  return [t and Trace(**t) for t in state]


def kept(rows: list[Row], *, keep: str, pruned: str = "drop") -> list[Row]:
  """The traces to train on, ordered by problem: `right` (verified) or `all` that ended.

  With pruned = "keep" also what was written of pruned ones, which no answer verifies.
  """
  good = [
    r
    for r in rows
    if r["stop"] == "ended"
    and (keep == "all" or r["verdict"] == "right")
    or r["stop"] == "pruned"
    and pruned == "keep"
    and r["ids"]
  ]
  return sorted(good, key=lambda r: (r["uuid"], r["attempt"]))
