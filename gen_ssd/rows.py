"""What the rows of a run's JSONL files hold, and whether a value that was read back is such a row."""

from collections.abc import Callable
from collections.abc import Sequence
import functools
import types
import typing
from typing import Any

from gen_ssd.errors import encodable

LARGEST = 2**63  # integers are below, as in a Parquet table


class Drawn(typing.TypedDict):
  """A round that kept a chunk, without the chunk's text."""

  count: int  # tokens
  choice: int  # branch that was kept
  score: float | None  # of the chunk; None where nothing was chosen
  scores: list[float | None]  # of every candidate; None where it was not valid, or kept unscored
  resamples: int  # how often the chunk was drawn again


class Chunk(Drawn):
  """A round that kept a chunk."""

  text: str


class Candidate(typing.TypedDict):
  """A candidate of a trace that was not kept, without its text."""

  chunk: int  # place of the chunk in its trace
  branch: int
  resample: int  # how often the chunk had been drawn before
  ids: list[int]
  count: int
  score: float | None
  student_nll: float | None  # mean, nats


class Lost(Candidate):
  """A row of a candidates shard: a candidate that was not kept."""

  uuid: str
  attempt: int
  text: str


class Row(typing.TypedDict):
  """A row of a traces shard: a finished trace.

  Lists of nlls and ranks hold one number per kept token, and the two means are of these. Given tokens
  come first in `ids`, `text` and `chunks`; they have no such numbers and no step starts.
  """

  schema: int
  uuid: str
  source: str
  split: str
  level: int
  attempt: int
  problem: str
  answer: str
  text: str
  opened: str  # the start of text that the prompt wrote (tokenization.opening): not among the ids
  ids: list[int]
  num_tokens: int
  given_tokens: int  # of them: those that `after` gave
  stop: str  # ended, pruned or length
  verdict: str  # right, wrong or unverifiable
  graded_by: str  # rule, math-verify, or what ended math-verify: timeout or crash
  student_nll: float | None  # mean, nats
  teacher_nll: float | None
  teacher_nlls: list[float]  # nats at temperature 1
  student_nlls: list[float]  # nats
  student_ranks: list[int]  # at most 100
  step_starts: list[int]  # places in ids where a step begins
  chunks: list[Chunk]
  teacher_tokens: int  # proposed for it, kept or not
  rounds: int  # it was in, kept or not


def is_row(x: Any) -> bool:
  """Is x, of JSON, a well-formed Row?"""
  return fits(x, Row) and x["num_tokens"] == len(x["ids"]) and is_trace(x)


def is_lost(x: Any) -> bool:
  """Is x, of JSON, a well-formed Lost?"""
  return fits(x, Lost) and x["attempt"] >= 0 and are_candidates([x])


def is_trace(x: Any) -> bool:
  """Do the lists of a trace go together? x: a Row, or the fields of traces.Trace, of their types."""
  chunks, given = x["chunks"], x["given_tokens"]
  n = len(x["ids"]) - given
  return (
    min(x["attempt"], given, n) >= 0
    and len(x["teacher_nlls"]) == n
    and len(x["student_nlls"]) in (0, n)  # without a student there are none
    and len(x["student_ranks"]) in (0, n)
    and max(x["step_starts"], default=-1) < n + given
    and all(c["count"] >= 0 and c["resamples"] >= 0 for c in chunks)
    and all(0 <= c["choice"] < len(c["scores"]) for c in chunks)
    and sum(c["count"] for c in chunks) == n + given
  )


def are_candidates(lost: Sequence[Candidate], chunks: float = float("inf")) -> bool:
  """Are the numbers of lost candidates possible, in a trace that has kept this many chunks?"""
  return all(
    c["count"] == len(c["ids"])
    and 0 <= c["chunk"] <= chunks
    and min(c["branch"], c["resample"]) >= 0
    for c in lost
  )


def fits(x: Any, kind: type) -> bool:
  """Has x, of JSON, every annotated field of the class `kind`, each of its type?

  An integer is also a float. Text is Unicode, without lone surrogates. The integers of a list are
  token ids, ranks or places: from 0 to 2^31 - 1.
  """
  if type(x) is not dict:
    return False
  return all(name in x and check(x[name]) for name, check in _checks(kind).items())


@functools.cache
def _checks(kind):
  return {name: _check(hint) for name, hint in typing.get_type_hints(kind).items()}


def _check(hint) -> Callable[[Any], bool]:
  """The check of one annotation: int, float, str, a TypedDict, a union of them, or a list."""
  if typing.get_origin(hint) is list:
    (item,) = typing.get_args(hint)
    if typing.is_typeddict(item):
      return lambda x: type(x) is list and all(fits(v, item) for v in x)
    return functools.partial(_is_list, allowed=_types(item))
  allowed = _types(hint)
  return lambda x: type(x) in allowed and _is_sound(x)


def _types(hint):
  """The types of JSON values that an annotation allows."""
  options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
  return {*options, int} if float in options else {*options}


def _is_list(x, allowed):
  """For long lists: a set of types takes a quarter of the time of a test of every number."""
  if type(x) is not list or not (found := {*map(type, x)}) <= allowed:
    return False
  if int not in found:
    return True
  if allowed == {int}:
    return min(x) >= 0 and max(x) < 2**31
  return all(_is_sound(v) for v in x if type(v) is int)


def _is_sound(x):
  if type(x) is int:
    return -LARGEST <= x < LARGEST
  return type(x) is not str or encodable(x)
