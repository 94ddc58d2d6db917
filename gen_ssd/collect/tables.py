"""The data set of an arm as Parquet tables that other tools read: traces, kept traces, preferences.

`traces.parquet` has a row per problem with all its generations, and every column of OpenR1-Math-220k;
those that we cannot fill are null. `kept.parquet` has a row per trace that the arm trains on: give
it to trainers. `preferences.parquet` has pairs of a kept chunk and a losing candidate of the same
prefix. `prompt`, `completion`, `messages`, `chosen` and `rejected` are lists of messages, as TRL's
SFTTrainer and DPOTrainer, MaxText and `datasets.load_dataset` take them.
"""

from collections.abc import Iterable
from collections.abc import Mapping
import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gen_ssd import folders
from gen_ssd.rows import Lost
from gen_ssd.rows import Row

Key = tuple[str, int]  # uuid and attempt of a trace
MOST_PAIRS = 4  # of a trace: the prefix is in both sides of each

text, number, nats = pa.string(), pa.int64(), pa.float64()
MESSAGES = pa.list_(pa.struct([("role", text), ("content", text)]))
PROBLEM = [("uuid", text), ("source", text), ("split", text), ("level", number),
           ("problem", text), ("answer", text)]  # fmt: skip
CHUNK = pa.struct([("count", number), ("text", text), ("choice", number), ("score", nats),
                   ("scores", pa.list_(nats)), ("resamples", number)])  # fmt: skip
TRACES = pa.schema([
  *PROBLEM, ("solution", text), ("problem_type", text), ("question_type", text),
  ("prompt", MESSAGES), ("completion", MESSAGES), ("messages", MESSAGES),
  ("generations", pa.list_(text)), ("kept", pa.list_(pa.bool_())), ("verdict", pa.list_(text)),
  ("correctness_math_verify", pa.list_(pa.bool_())), ("correctness_llama", pa.list_(pa.bool_())),
  ("correctness_count", number), ("is_reasoning_complete", pa.list_(pa.bool_())),
  ("finish_reasons", pa.list_(text)), ("num_tokens", pa.list_(number)),
  ("given_tokens", pa.list_(number)), ("student_nll", pa.list_(nats)), ("teacher_nll", pa.list_(nats)),
  ("teacher_tokens", pa.list_(number)), ("chunks", pa.list_(pa.list_(CHUNK))),
])  # fmt: skip
KEPT = pa.schema([
  *PROBLEM, ("attempt", number), ("prompt", MESSAGES), ("completion", MESSAGES),
  ("messages", MESSAGES), ("verdict", text), ("finish_reason", text), ("num_tokens", number),
  ("given_tokens", number), ("student_nll", nats), ("teacher_nll", nats), ("teacher_tokens", number),
])  # fmt: skip
PREFERENCES = pa.schema([
  ("uuid", text), ("attempt", number), ("prompt", MESSAGES), ("chosen", MESSAGES),
  ("rejected", MESSAGES), ("prefix", text), ("chosen_chunk", text), ("rejected_chunk", text),
  ("chosen_score", nats), ("rejected_score", nats), ("chunk", number),
])  # fmt: skip


def write(
  folder: folders.Path,
  rows: Iterable[Row],
  kept: Iterable[Row],
  lost: Iterable[Lost],
  system: str = "",
) -> dict[str, int]:
  """Writes the three files for all rows of a collection; {file name: number of its rows}."""
  kept = [*kept]
  tables = {
    "traces.parquet": traces(rows, {(r["uuid"], r["attempt"]) for r in kept}, system),
    "kept.parquet": pa.Table.from_pylist([_kept(r, system) for r in kept], KEPT),
    "preferences.parquet": preferences(kept, lost, system),
  }
  for name, table in tables.items():
    file = io.BytesIO()
    pq.write_table(table, file)
    folders.write(folder / name, file.getvalue())
  return {name: table.num_rows for name, table in tables.items()}


def traces(rows: Iterable[Row], kept: set[Key] = frozenset(), system: str = "") -> pa.Table:
  """A row per problem. The completion is the first kept generation; without one, the first right."""
  by_problem: dict[str, list[Row]] = {}
  for r in sorted(rows, key=lambda r: (r["uuid"], r["attempt"])):
    by_problem.setdefault(r["uuid"], []).append(r)
  return pa.Table.from_pylist(
    [_problem(group, kept, system) for group in by_problem.values()], TRACES
  )


def _problem(group, kept, system):
  is_kept = [(r["uuid"], r["attempt"]) in kept for r in group]
  right = [r["verdict"] == "right" for r in group]
  best = min(range(len(group)), key=lambda i: (not is_kept[i], not right[i], i))
  each = lambda name: [r[name] for r in group]
  return {
    **_conversation(group[best], system),
    "generations": each("text"),
    "kept": is_kept,
    "verdict": each("verdict"),
    "correctness_math_verify": right,
    "correctness_count": sum(right),
    "is_reasoning_complete": [r["stop"] == "ended" for r in group],
    "finish_reasons": [_finish(r) for r in group],
    **{n: each(n) for n in ("num_tokens", "given_tokens", "teacher_tokens", "chunks")},
    **{n: each(n) for n in ("student_nll", "teacher_nll")},
  }


def _kept(r, system):
  return {**r, **_conversation(r, system), "finish_reason": _finish(r)}


def _conversation(r, system):
  """What a row of a problem and one of a trace have in common."""
  prompt, completion = _prompt(r, system), _says(r["text"])
  return {
    **{name: r[name] for name, _ in PROBLEM},
    "prompt": prompt,
    "completion": completion,
    "messages": prompt + completion,
  }


def _prompt(r, system):
  head = [{"role": "system", "content": system}] if system else []
  return [*head, {"role": "user", "content": r["problem"]}]


def _says(text):
  return [{"role": "assistant", "content": text}]


def _finish(r):
  """The word that OpenAI's interface, and so most readers, have for the end of a text."""
  return "stop" if r["stop"] == "ended" else r["stop"]


def preferences(kept: Iterable[Row], lost: Iterable[Lost], system: str = "") -> pa.Table:
  """Pairs of the chosen and the worst valid candidate of a round, which follow the same prefix.

  `chosen` and `rejected` begin with the prefix. A model finds it equally likely in both, so that it
  cancels in the difference that DPO trains. Of each trace these are the four rounds with the largest
  difference of scores.
  """
  by_key = {(r["uuid"], r["attempt"]): r for r in kept}
  worst: dict[tuple[Key, int], Mapping[str, Any]] = {}
  for c in lost:
    key, at = (c["uuid"], c["attempt"]), c["chunk"]
    chunks = by_key[key]["chunks"] if key in by_key else []
    if at >= len(chunks) or c["score"] is None or c["resample"] != chunks[at]["resamples"]:
      continue
    if chunks[at]["score"] is None or c["text"] == chunks[at]["text"]:
      continue
    if (key, at) not in worst or c["score"] > worst[key, at]["score"]:
      worst[key, at] = c
  pairs: dict[Key, list[dict[str, Any]]] = {}
  for (key, at), c in worst.items():
    pairs.setdefault(key, []).append(_pair(by_key[key], at, c, system))
  gap = lambda pair: pair["chosen_score"] - pair["rejected_score"]
  found = [p for key in sorted(pairs) for p in sorted(pairs[key], key=gap)[:MOST_PAIRS]]
  return pa.Table.from_pylist(found, PREFERENCES)


def _pair(r, at, candidate, system):
  chunk = r["chunks"][at]
  prefix = r["opened"] + "".join(c["text"] for c in r["chunks"][:at])
  return {
    "uuid": r["uuid"],
    "attempt": r["attempt"],
    "prompt": _prompt(r, system),
    "chosen": _says(prefix + chunk["text"]),
    "rejected": _says(prefix + candidate["text"]),
    "prefix": prefix,
    "chosen_chunk": chunk["text"],
    "rejected_chunk": candidate["text"],
    "chosen_score": chunk["score"],
    "rejected_score": candidate["score"],
    "chunk": at,
  }
