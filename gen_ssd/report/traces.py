"""The traces of a run as the page shows them, made of rows that may hold anything."""

import dataclasses
import itertools
from typing import Any, NamedTuple

from gen_ssd.problems import equations
from gen_ssd.report.values import SHORT
from gen_ssd.report.values import number
from gen_ssd.report.words import cut

TEXT = 4000  # characters that are shown of a problem or an answer
CANDIDATE = 1000  # and of a candidate
MOST_TEXT = 20_000  # characters of a trace that are searched for a false equation


@dataclasses.dataclass(kw_only=True, frozen=True)
class Round:
  """One round of a trace."""

  text: str  # of the kept candidate
  count: float | None  # its tokens
  scores: list[float | None]  # one per candidate; None: not valid, or kept without a score
  choice: int  # branch of the kept candidate; -1: none was suitable
  resamples: float | None  # times the round's candidates were drawn again


@dataclasses.dataclass(kw_only=True, frozen=True)
class Lost:
  """A lost candidate."""

  text: str
  count: float | None  # tokens
  score: float | None  # None: not a valid candidate
  resample: float | None  # index of its draw: 0 for the first candidates of a round


class FalseEquation(NamedTuple):
  """A false equation, and the round in which it was completed, from 0."""

  text: str
  round: int


@dataclasses.dataclass(kw_only=True, frozen=True)
class Trace:
  """A trace that may be drawn as a tree. Its texts are cut; `stop` is what the file has."""

  key: tuple[str, int]  # uuid of the problem, attempt
  rounds: list[Round]
  outcome: str  # pruned, or the grader's verdict
  stop: Any
  nll: float | None  # of the student, nats per token
  length: float | None  # tokens
  problem: str
  answer: str
  level: str
  source: str
  false: FalseEquation | None  # the first false equation of a wrong trace


# What a row with a value of the wrong kind raises.
ODD = (KeyError, TypeError, ValueError, OverflowError, AttributeError, RecursionError)


def key(row: dict) -> tuple[str, int]:
  """uuid of the problem, and attempt. Raises one of ODD where the row has none."""
  return str(row["uuid"]), int(row.get("attempt", 0))


def _round(chunk):
  scores, choice = [number(s) for s in chunk.get("scores") or []], int(chunk.get("choice", -1))
  if not -1 <= choice < max(len(scores), 1):
    raise ValueError(f"choice {choice} of {len(scores)} candidates")
  return Round(
    text=cut(chunk.get("text", ""), CANDIDATE),
    count=number(chunk.get("count")),
    scores=scores,
    choice=choice,
    resamples=number(chunk.get("resamples")),
  )


def trace(row: dict) -> Trace:
  """A Trace of a row. Raises one of ODD for a value of the wrong kind."""
  text = lambda name, most: "" if row.get(name) is None else cut(row[name], most)
  return Trace(
    key=key(row),
    rounds=[_round(chunk) for chunk in row["chunks"]],
    outcome="pruned" if row.get("stop") == "pruned" else cut(row.get("verdict"), SHORT),
    stop=row.get("stop"),
    nll=number(row.get("student_nll")),
    length=number(row.get("num_tokens")),
    problem=text("problem", TEXT),
    answer=text("answer", TEXT),
    level=text("level", SHORT),
    source=text("source", SHORT),
    false=_false(row) if row.get("verdict") == "wrong" else None,
  )


def _false(row):
  """The first false equation of a row's rounds, of their first MOST_TEXT characters."""
  texts = [str(chunk.get("text", "")) for chunk in row["chunks"]]
  found = equations.first_false("".join(texts)[:MOST_TEXT])
  if found:
    ends = itertools.accumulate(map(len, texts))
    place = next(i for i, end in enumerate(ends) if found.end <= end)
    return FalseEquation(cut(found.text, SHORT), place)
