"""Problem sets: the bundled family, local JSONL, JSON and Parquet files, and the public sets by name.

A source is `bundled`, a file, or `NAME:FILE` for one of SETS, whose layout and number of rows are then
checked; a file is a path or `hf://datasets/OWNER/NAME[@REVISION]/PATTERN`, and `NAME` alone takes the
set from its usual place on the hub. MATH, AIME, AMC and OlympiadBench may not be handed on, so no
text of theirs is in this project.
"""

import dataclasses
import fnmatch
import functools
import json
import pathlib
import typing

import pyarrow as pa
import pyarrow.parquet as pq

from gen_ssd.problems import answers
from gen_ssd.problems import bundled
from gen_ssd.problems import problem as problem_lib

HUB = "hf://datasets/"


@dataclasses.dataclass(frozen=True)
class Set:
  """One public set. `normal(row) -> (problem, answer, level)`; `wrong` explains other row counts."""

  rows: dict  # number of rows -> which part that is
  normal: typing.Callable
  hub: str  # where it usually is; {split} is train or test
  wrong: dict = dataclasses.field(default_factory=dict)  # number of rows -> why not


class Layout(ValueError):
  """A row is not as its set should be; the reader adds file and line."""


# ---------------------------------------------------------------- rows of other layouts


def _field(row, *names):
  """The first of these fields that the row has."""
  for name in names:
    if row.get(name) is not None:
      return row[name]
  others = f" (or {', '.join(names[1:])})" if names[1:] else ""
  raise Layout(f" has no field {names[0]}{others}; it has {sorted(row)}")


def _text(row, *names):
  text = _field(row, *names)
  if not isinstance(text, str):
    raise Layout(f": {names[0]} is {text!r:.60}: it must be text")
  return text


def _number(value, name, low=None, high=None):
  """A number as short text: 145.0 is "145". Raises Layout for other text."""
  try:
    number = float(str(value).replace(",", "").strip().strip("$"))
  except ValueError:
    raise Layout(f": {name} is {value!r:.60}: it must be a number") from None
  if low is not None and not (number.is_integer() and low <= number <= high):
    raise Layout(f": {name} is {value!r:.60}: it must be a whole number of {low} to {high}")
  return str(int(number)) if number.is_integer() else str(number)


def _answer(row, *names):
  """The answer field, or what the solution puts in a box: the layouts of MATH's family."""
  if all(row.get(name) is None for name in names):
    boxed = answers.extract_boxed(str(row.get("solution") or ""))
    if boxed is not None:
      return boxed
    if row.get("solution") is not None:
      raise Layout(f": its solution has no \\boxed answer, and there is no field {names[0]}")
  return str(_field(row, *names)).strip()


def _level(row):
  """`3` and `Level 3` are 3; anything else is 0, unknown."""
  digits = str(row.get("level")).removeprefix("Level ")
  return int(digits) if digits.isdecimal() else 0


def plain(row):
  """Any file with `problem` (or `question`) and `answer`; GSM8K's `#### N` is understood."""
  text = _text(row, "problem", "question")
  _, mark, answer = str(_field(row, "answer")).rpartition("####")
  return text, answer.strip().replace(",", "") if mark else answer.strip(), _level(row)


def gsm8k(row):
  text, answer = _text(row, "question"), _text(row, "answer")
  if "####" not in answer:
    raise Layout(f": answer is {answer!r:.60}: it must end in '#### N'")
  return text, _number(answer.rpartition("####")[2], "answer"), 0


def svamp(row):
  body, question = _text(row, "Body").strip(), _text(row, "Question").strip()
  stop = "" if body.endswith((".", "?", "!", ",")) else "."
  return f"{body}{stop} {question}", _number(_field(row, "Answer"), "Answer"), 0


def math(row):
  return _text(row, "problem"), _answer(row, "answer"), _level(row)


def aime(row):
  text = _text(row, "problem", "question", "Problem")
  return text, _number(_answer(row, "answer", "Answer").strip("$"), "answer", 0, 999), 0


def amc(row):
  return _text(row, "question", "problem"), _number(_field(row, "answer"), "answer"), 0


def olympiadbench(row):
  """English open-ended mathematics without pictures; several answers stand in one list."""
  text = _text(row, "question", "problem")
  if "TNYWR" in text:
    raise Layout(
      ": a relay problem that asks for 'the number you will receive', so it cannot be "
      "answered; take the file of 674 rows, where that number is filled in"
    )
  found = _field(row, "final_answer", "answer")
  found = [found] if isinstance(found, str) else list(found)
  if not found or not all(isinstance(x, str) for x in found):
    raise Layout(f": final_answer is {found!r:.60}: it must be a list of texts")
  context = row.get("context") or ""
  return (
    (f"{context}\n\n{text}" if context else text),
    ", ".join(x.replace("$", "").strip() for x in found),
    0,
  )


def minerva(row):
  return _text(row, "problem", "question"), _answer(row, "answer"), 0


SETS = {
  "gsm8k": Set({1319: "test", 7473: "train"}, gsm8k, "openai/gsm8k/main/{split}*"),
  "svamp": Set(
    {1000: "all"},
    svamp,
    "ChilleD/SVAMP/data/*",
    {300: "is the test part alone", 700: "is the training part alone"},
  ),
  "math": Set(
    {5000: "test", 7500: "train"}, math, "DigitalLearningGmbH/MATH-lighteval/data/{split}*"
  ),
  "math500": Set({500: "test"}, math, "HuggingFaceH4/MATH-500/test*"),
  "aime24": Set({30: "test"}, aime, "HuggingFaceH4/aime_2024/data/train*", {90: "is 2022 to 2024"}),
  "aime25": Set({30: "test"}, aime, "math-ai/aime25/*test*", {15: "is one of its two papers"}),
  "amc23": Set(
    {40: "test"}, amc, "math-ai/amc23/*test*", {83: "is another benchmark, of 2022 and 2023"}
  ),
  "olympiadbench": Set(
    {674: "test"},
    olympiadbench,
    "Hothan/OlympiadBench/OE_TO_maths_en_COMP/*",
    {675: "is a copy with 15 relay problems that cannot be answered ('Let T = TNYWR')"},
  ),
  "minerva": Set({272: "test"}, minerva, "math-ai/minervamath/*test*"),
}


# ---------------------------------------------------------------- sources


def parts(source):
  """(name in SETS or None, file, local or on the hub) of a source; the file is None for `bundled`.

  Raises ValueError, to be read behind `FIELD is VALUE: it must be`, when the file is not there or
  the name is unknown.
  """
  if source == "bundled":
    return None, None
  if source in SETS:
    return source, HUB + SETS[source].hub
  name, colon, place = source.partition(":")
  if not colon or source.startswith(HUB):
    name, place = None, source
  elif name not in SETS:
    raise ValueError(f"a known set before the colon: {', '.join(SETS)}")
  if place.startswith(HUB):
    if place.count("/") < 5:
      raise ValueError(f"{HUB}OWNER/NAME/PATTERN, with a pattern such as data/test*.parquet")
  elif not pathlib.Path(place).is_file():
    raise ValueError(
      "bundled, the path of a .jsonl, .json or .parquet file that exists, "
      f"{HUB}OWNER/NAME/PATTERN, or one of {', '.join(SETS)}, alone or as NAME:FILE"
    )
  elif not place.endswith((".jsonl", ".json", ".parquet")):
    raise ValueError("a .jsonl, .json or .parquet file")
  return name, place


def load(source, split, count=0, seed=0, skip=0):
  """Problems of a source: `count` of them after the first `skip`, or all that are left for 0.

  A part of a file is drawn at random by `seed`, because files are sorted by subject; it comes in
  the file's order. Raises ValueError as `read` does.
  """
  if source == "bundled":
    return bundled.problems(split, count, seed)
  found = read(source, split=split)
  order = sorted(found, key=lambda p: problem_lib.digest(f"{seed} {p.uuid}"))
  chosen = {p.uuid for p in order[skip : skip + count if count else None]}
  return [p for p in found if p.uuid in chosen]


def read(source, *, split="train"):
  """All problems of a source that is a file; a problem that comes twice counts once.

  Raises ValueError naming file, line and the missing field, or the number of rows that a known set
  should have.
  """
  name, place = parts(source)
  files = [place]
  if place.startswith(HUB):
    files = _download(place.format(split="test" if split == "test" else "train"))
  rows = [pair for file in files for pair in _rows(file)]
  normal = plain
  if name:
    _count(name, place, len(rows))
    normal = SETS[name].normal
  found = {}
  for where, row in rows:
    if not isinstance(row, dict):
      raise ValueError(
        f"{where} is {row!r:.60}: it must be an object with fields problem (or question) and answer"
      )
    try:
      text, answer, level = normal(row)
    except Layout as error:
      raise ValueError(f"{where}{error}" + (f" (read as {name})" if name else "")) from None
    uuid = str(row.get("uuid") or problem_lib.digest(text)[:16])
    if uuid in found and found[uuid].problem != text:
      raise ValueError(f"{where}: uuid is {uuid!r}, which names another problem above")
    found.setdefault(
      uuid,
      problem_lib.Problem(
        uuid, str(name or row.get("source") or place), split, text, answer, level
      ),
    )
  return list(found.values())


def _count(name, place, rows):
  known = SETS[name]
  if rows not in known.rows:
    right = " or ".join(f"{n} ({part})" for n, part in known.rows.items())
    why = (
      f": that {known.wrong[rows]}"
      if rows in known.wrong
      else ("; a part of a set, or your own file, goes without the name")
    )
    raise ValueError(f"{place} has {rows} rows, {name} has {right}{why}")


def _rows(path):
  """[("path:line", row), ...] of one file; rows of Parquet and JSON are counted from 1."""
  path = str(path)
  if path.endswith(".parquet"):
    try:
      table = pq.read_table(path)
    except pa.ArrowException as error:
      raise ValueError(f"{path} is not Parquet: {error}") from None
    return [(f"{path}:{i}", row) for i, row in enumerate(table.to_pylist(), 1)]
  text = pathlib.Path(path).read_text(encoding="utf-8")
  # Whole for .json; by line otherwise, where splitlines would cut inside a JSON text.
  lines = [(1, text)] if path.endswith(".json") else enumerate(text.split("\n"), 1)
  found = []
  for number, line in lines:
    if line.strip():
      try:
        found.append((f"{path}:{number}", json.loads(line)))
      except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{number} is not JSON: {error}") from None
  if path.endswith(".json"):
    whole = found[0][1] if found else []
    if not isinstance(whole, list):
      raise ValueError(f"{path} is one JSON {type(whole).__name__}: it must be a list of rows")
    found = [(f"{path}:{i}", row) for i, row in enumerate(whole, 1)]
  return found


@functools.cache  # asked again by every stage
def _download(place):
  """Files of `hf://datasets/OWNER/NAME[@REVISION]/PATTERN`, from the cache of the hub or the hub."""
  import huggingface_hub as hub  # a second to import
  from huggingface_hub import errors

  owner, name, pattern = place.removeprefix(HUB).split("/", 2)
  name, _, revision = name.partition("@")
  repo, wanted = f"{owner}/{name}", [pattern, f"{pattern}.parquet", f"{pattern}.jsonl"]
  try:
    folder = hub.snapshot_download(
      repo, repo_type="dataset", revision=revision or None, allow_patterns=wanted
    )
  except errors.GatedRepoError:
    raise ValueError(
      f"{place}: the owner of {repo} wants its terms accepted on the hub first, and "
      "`hf auth login` here"
    ) from None
  except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
    raise ValueError(
      f"{place}: the hub has no dataset {repo}"
      f"{f' at {revision}' if revision else ''}, or it is not open to you"
    ) from None
  except (OSError, errors.CachedRepoTreeNotFoundError):
    raise ValueError(
      f"{place}: the hub cannot be reached and {repo} is not in its cache. Where there "
      f"is a network, `hf download {repo} --repo-type dataset --local-dir DIR` "
      "fetches it; then give the file's path"
    ) from None
  found = sorted(
    str(p)
    for p in pathlib.Path(folder).rglob("*")
    if p.suffix in (".parquet", ".jsonl")
    and any(fnmatch.fnmatch(p.relative_to(folder).as_posix(), w) for w in wanted)
  )
  if not found:
    raise ValueError(f"{place}: {repo} has no .parquet or .jsonl file of that pattern")
  return found
