"""Traces on disk: immutable JSONL shards while running, one Parquet table at the end."""

import dataclasses
import json
import pathlib
import sys

import pyarrow as pa
import pyarrow.parquet as pq

from gen_ssd import workdir as workdir_lib

KINDS = ("traces", "candidates")


@dataclasses.dataclass
class Trace:
  """One chain of thought, being written or finished. Scores and nll in the units of scores.py."""

  uuid: str
  attempt: int
  ids: list = dataclasses.field(default_factory=list)  # kept tokens
  teacher_logprobs: list = dataclasses.field(default_factory=list)  # one a kept token, nats
  student_nlls: list = dataclasses.field(default_factory=list)  # one a kept token, nats
  student_ranks: list = dataclasses.field(default_factory=list)  # one a kept token, at most 100
  starts: list = dataclasses.field(default_factory=list)  # places of ids where a step begins
  chunks: list = dataclasses.field(default_factory=list)  # a dict a round that kept a chunk
  losers: list = dataclasses.field(default_factory=list)  # a dict a candidate that lost
  total: float = 0.0  # sum of the kept chunks' scores, exactly as the engine has it
  retry: int = 0  # times the coming chunk was drawn and found unsuitable
  teacher_tokens: int = 0  # proposed for it, kept or not
  rounds: int = 0  # rounds it was in, kept or not


def row(trace, problem, text, stop, verdict, opened=""):
  """The finished trace as a JSON-ready dict: a line of a shard.

  `opened` is the start of `text` that the prompt wrote (tokens.opening): it is not among the ids.
  """
  mean = lambda x: sum(x) / len(x) if x else None
  return {
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
    "stop": stop,
    "verdict": verdict,
    "student_nll": mean(trace.student_nlls),
    "teacher_nll": mean([-x for x in trace.teacher_logprobs]),
    "teacher_logprobs": [round(x, 5) for x in trace.teacher_logprobs],
    "student_nlls": [round(x, 5) for x in trace.student_nlls],
    "student_ranks": trace.student_ranks,
    "starts": trace.starts,
    "chunks": trace.chunks,
    "teacher_tokens": trace.teacher_tokens,
    "rounds": trace.rounds,
  }


class Shards:
  """The files of one collection in `folder`: finished shards and what is in flight.

  A shard is written whole at a fence, followed by `in_flight.json`, which names how many shards
  count. Whatever a killed run left after its last fence is written again, identically.
  """

  def __init__(self, folder):
    self.folder = pathlib.Path(folder)
    self.count = 0

  def path(self, kind, index):
    return self.folder / f"{kind}-{index:05d}.jsonl"

  def write(self, finished, losers, in_flight):
    """One fence: rows of finished traces, their losing candidates, and the traces under way."""
    self.folder.mkdir(parents=True, exist_ok=True)
    for kind, rows in zip(KINDS, (finished, losers)):
      lines = "".join(json.dumps(r) + "\n" for r in rows)
      workdir_lib.write_atomically(self.path(kind, self.count), lines)
    self.count += 1
    state = {"shards": self.count, "rows": [t and dataclasses.asdict(t) for t in in_flight]}
    workdir_lib.write_atomically(self.folder / "in_flight.json", json.dumps(state))

  def resume(self):
    """(finished rows, traces in flight a row or None) of an earlier run; ([], None) at first.

    A shard with lines that are not readable is named, its good lines are kept, and the others'
    problems are missing from the result, so that they are written again.
    """
    try:
      state = json.loads((self.folder / "in_flight.json").read_text())
      self.count, in_flight = state["shards"], [t and Trace(**t) for t in state["rows"]]
    except FileNotFoundError:
      return [], None
    except (ValueError, KeyError, TypeError):  # bytes that are no text are a ValueError too
      print(
        f"{self.folder / 'in_flight.json'} is damaged: the traces under way start again",
        file=sys.stderr,
      )
      self.count, in_flight = len(list(self.folder.glob("traces-*.jsonl"))), None
    finished = []
    for index in range(self.count):
      finished += self._repair(self.path("traces", index))
    return finished, in_flight

  def _repair(self, path):
    good, bad = workdir_lib.read_jsonl(path)
    if bad:
      print(
        f"trace shard {path} is damaged in {bad} line(s): their problems are written again; "
        f"the damaged file is kept as {path.name}.damaged",
        file=sys.stderr,
      )
      if path.exists():
        path.replace(path.with_name(path.name + ".damaged"))
      workdir_lib.write_atomically(path, "".join(json.dumps(r) + "\n" for r in good))
    return good


def kept(rows, *, keep, pruned="drop"):
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


def write_parquet(path, rows, *, kept=(), system=""):
  """One row a problem, with the columns OpenR1-Math readers expect and ours beside them.

  The completion is the first of `kept`, (uuid, attempt) pairs; of others the first right one.
  """
  kept = {*map(tuple, kept)}
  by_problem = {}
  for r in sorted(rows, key=lambda r: (r["uuid"], r["attempt"])):
    by_problem.setdefault(r["uuid"], []).append(r)
  table = []
  for group in by_problem.values():
    first = group[0]
    prompt = ([{"role": "system", "content": system}] if system else []) + [
      {"role": "user", "content": first["problem"]}
    ]
    best = min(
      group,
      key=lambda r: ((r["uuid"], r["attempt"]) not in kept, r["verdict"] != "right", r["attempt"]),
    )
    right = [r["verdict"] == "right" for r in group]
    table.append(
      {
        **{name: first[name] for name in ("uuid", "source", "split", "level", "problem", "answer")},
        "prompt": prompt,
        "completion": best["text"],
        "messages": [*prompt, {"role": "assistant", "content": best["text"]}],
        "generations": [r["text"] for r in group],
        "correctness_math_verify": right,
        "correctness_count": sum(right),
        "verdict": [r["verdict"] for r in group],
        "is_reasoning_complete": [r["stop"] == "ended" for r in group],
        "finish_reasons": [{"ended": "stop"}.get(r["stop"], r["stop"]) for r in group],
        "num_tokens": [r["num_tokens"] for r in group],
        "student_nll": [r["student_nll"] for r in group],
        "teacher_nll": [r["teacher_nll"] for r in group],
        "teacher_tokens": [r["teacher_tokens"] for r in group],
        "chunks": [
          [
            {name: c[name] for name in ("count", "text", "choice", "score", "scores", "resamples")}
            for c in r["chunks"]
          ]
          for r in group
        ],
      }
    )
  partial = path.with_name(path.name + ".partial")
  pq.write_table(pa.Table.from_pylist(table), partial)
  partial.replace(path)
