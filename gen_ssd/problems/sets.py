"""Problem sets: the bundled family, local JSONL, JSON and Parquet files, and the public sets by name.

A source is `bundled`, a FILE, `NAME:FILE` or `NAME`, where NAME is one of SETS. A FILE is a path or
`hf://datasets/OWNER/NAME[@REVISION]/PATTERN`. With a NAME, the layout and the number of rows are
checked; without a FILE, the set comes from its usual place on the Hugging Face hub. The licenses of
MATH, AIME, AMC and OlympiadBench do not allow redistribution, so this project has no text of theirs.
"""

from collections.abc import Callable
import dataclasses
import fnmatch
import functools
import json
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq

from gen_ssd.problems import answers
from gen_ssd.problems import bundled
from gen_ssd.problems import problem as problem_lib

HUB = "hf://datasets/"
Row = dict  # as the file has it
Parsed = tuple[str, str, int]  # problem, answer, level


@dataclasses.dataclass(frozen=True)
class Set:
  """One public set: how many rows it has, how to read one, and where to find it."""

  rows: dict[int, str]  # number of rows -> the part of the set that has it
  parse: Callable[[Row], Parsed]
  hub: str  # its usual place; {split} is train or test
  wrong: dict[int, str] = dataclasses.field(default_factory=dict)  # other numbers -> what is wrong


class Layout(ValueError):
  """A row does not have the layout of its set; `read` adds file and line to the message."""


# ---------------------------------------------------------------- rows of other layouts


def _field(row, *names):
  """The value of the first of `names` that the row has."""
  for name in names:
    if row.get(name) is not None:
      return row[name]
  others = f" (or {', '.join(names[1:])})" if names[1:] else ""
  raise Layout(f" has no field {names[0]}{others}; it has {sorted(row)}")


def _text(row, *names):
  """`_field`, which must be text."""
  text = _field(row, *names)
  if not isinstance(text, str):
    raise Layout(f": {names[0]} is {text!r:.60}: it must be text")
  return text


def _number(value, name, low=None, high=None):
  """A number as short text: 145.0 is "145". Raises Layout for what is no number in low..high."""
  try:
    number = float(str(value).replace(",", "").strip().strip("$"))
  except ValueError:
    raise Layout(f": {name} is {value!r:.60}: it must be a number") from None
  if low is not None and not (number.is_integer() and low <= number <= high):
    raise Layout(f": {name} is {value!r:.60}: it must be a whole number from {low} to {high}")
  return str(int(number)) if number.is_integer() else str(number)


def _answer(row, *names):
  """The answer field, or else the boxed answer of the solution, as in MATH and its subsets."""
  if all(row.get(name) is None for name in names):
    boxed = answers.extract_boxed(str(row.get("solution") or ""))
    if boxed is not None:
      return boxed
    if row.get("solution") is not None:
      raise Layout(f": its solution has no \\boxed answer, and there is no field {names[0]}")
  return str(_field(row, *names)).strip()


def _level(row):
  """3 for `3` and `Level 3`; 0, which is unknown, for anything else."""
  digits = str(row.get("level")).removeprefix("Level ")
  return int(digits) if digits.isdecimal() else 0


def plain(row: Row) -> Parsed:
  """Any row with `problem` (or `question`) and `answer`, which may end in GSM8K's `#### N`."""
  text = _text(row, "problem", "question")
  _, mark, answer = str(_field(row, "answer")).rpartition("####")
  return text, answer.strip().replace(",", "") if mark else answer.strip(), _level(row)


def gsm8k(row: Row) -> Parsed:
  """GSM8K: the answer is a solution that ends in `#### N`."""
  text, answer = _text(row, "question"), _text(row, "answer")
  if "####" not in answer:
    raise Layout(f": answer is {answer!r:.60}: it must end in '#### N'")
  return text, _number(answer.rpartition("####")[2], "answer"), 0


def svamp(row: Row) -> Parsed:
  """SVAMP: the problem is in two fields."""
  body, question = _text(row, "Body").strip(), _text(row, "Question").strip()
  stop = "" if body.endswith((".", "?", "!", ",")) else "."
  return f"{body}{stop} {question}", _number(_field(row, "Answer"), "Answer"), 0


def math(row: Row) -> Parsed:
  """MATH and MATH-500: the answer is LaTeX."""
  return _text(row, "problem"), _answer(row, "answer"), _level(row)


def aime(row: Row) -> Parsed:
  """AIME: the answer is a whole number from 0 to 999."""
  text = _text(row, "problem", "question", "Problem")
  return text, _number(_answer(row, "answer", "Answer").strip("$"), "answer", 0, 999), 0


def amc(row: Row) -> Parsed:
  """AMC: the answer is a number."""
  return _text(row, "question", "problem"), _number(_field(row, "answer"), "answer"), 0


def olympiadbench(row: Row) -> Parsed:
  """OlympiadBench, open-ended English mathematics without pictures: a list of answers."""
  text = _text(row, "question", "problem")
  if "TNYWR" in text:
    raise Layout(
      ": a relay problem that asks for 'the number you will receive', so it cannot be "
      "answered; take the file of 674 rows, where that number is filled in"
    )
  values = _field(row, "final_answer", "answer")
  values = [values] if isinstance(values, str) else list(values)
  if not values or not all(isinstance(x, str) for x in values):
    raise Layout(f": final_answer is {values!r:.60}: it must be a list of texts")
  context = row.get("context") or ""
  text = f"{context}\n\n{text}" if context else text
  return text, ", ".join(x.replace("$", "").strip() for x in values), 0


def minerva(row: Row) -> Parsed:
  """Minerva mathematics: the answer is LaTeX."""
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


def parts(source: str) -> tuple[str | None, str | None]:
  """(name in SETS or None, path or hub address of the file) of a source; both None for `bundled`.

  Raises ValueError when the file does not exist or the name is unknown. The message completes the
  sentence `FIELD is VALUE: it must be`.
  """
  if source == "bundled":
    return None, None
  if source in SETS:
    return source, HUB + SETS[source].hub
  name, colon, file = source.partition(":")
  if not colon or source.startswith(HUB):
    name, file = None, source
  elif name not in SETS:
    raise ValueError(f"a known set before the colon: {', '.join(SETS)}")
  if file.startswith(HUB):
    if file.count("/") < 5:
      raise ValueError(f"{HUB}OWNER/NAME/PATTERN, with a pattern such as data/test*.parquet")
  elif not pathlib.Path(file).is_file():
    raise ValueError(
      "bundled, the path of a .jsonl, .json or .parquet file that exists, "
      f"{HUB}OWNER/NAME/PATTERN, or one of {', '.join(SETS)}, alone or as NAME:FILE"
    )
  elif not file.endswith((".jsonl", ".json", ".parquet")):
    raise ValueError("a .jsonl, .json or .parquet file")
  return name, file


def load(
  source: str, split: str, count: int = 0, seed: int = 0, skip: int = 0
) -> list[problem_lib.Problem]:
  """Problems of a source: `count` of them after the first `skip`, or all after those when 0.

  Files are often sorted by subject, so problems are drawn in a random order that depends on `seed`;
  they are returned in the order of the file. Raises ValueError as `read` does.
  """
  if source == "bundled":
    return bundled.problems(split, count, seed)
  problems = read(source, split=split)
  order = sorted(problems, key=lambda p: problem_lib.digest(f"{seed} {p.uuid}"))
  chosen = {p.uuid for p in order[skip : skip + count if count else None]}
  return [p for p in problems if p.uuid in chosen]


def read(source: str, *, split: str = "train") -> list[problem_lib.Problem]:
  """All problems of a source that is a file. A problem that occurs twice is returned once.

  Raises ValueError with file, line and the missing field, or with the number of rows that a known
  set should have.
  """
  name, file = parts(source)
  paths = [file]
  if file.startswith(HUB):
    paths = _download(file.format(split="test" if split == "test" else "train"))
  rows = [pair for path in paths for pair in _rows(path)]
  if name:
    _check_count(name, file, len(rows))
  parse = SETS[name].parse if name else plain
  problems = {}
  for line, row in rows:
    if not isinstance(row, dict):
      raise ValueError(
        f"{line} is {row!r:.60}: it must be an object with fields problem (or question) and answer"
      )
    try:
      text, answer, level = parse(row)
    except Layout as error:
      raise ValueError(f"{line}{error}" + (f" (read as {name})" if name else "")) from None
    uuid = str(row.get("uuid") or problem_lib.digest(text)[:16])
    if uuid in problems and problems[uuid].problem != text:
      raise ValueError(f"{line}: uuid is {uuid!r}, which another problem above has")
    origin = str(name or row.get("source") or file)
    problems.setdefault(uuid, problem_lib.Problem(uuid, origin, split, text, answer, level))
  return list(problems.values())


def _check_count(name, file, rows):
  """ValueError when a file of the set `name` has a number of rows that no part of the set has."""
  known = SETS[name]
  if rows in known.rows:
    return
  right = " or ".join(f"{n} ({part})" for n, part in known.rows.items())
  if rows in known.wrong:
    hint = f": that {known.wrong[rows]}"
  else:
    hint = "; leave out the name for a part of a set or for a file of your own"
  raise ValueError(f"{file} has {rows} rows, {name} has {right}{hint}")


def _rows(path):
  """[("path:line", row), ...] of one file; for Parquet and JSON, line is the number of the row."""
  path = str(path)
  if path.endswith(".parquet"):
    try:
      rows = pq.read_table(path).to_pylist()
    except pa.ArrowException as error:
      raise ValueError(f"{path} is not Parquet: {error}") from None
    return [(f"{path}:{i}", row) for i, row in enumerate(rows, 1)]
  text = pathlib.Path(path).read_text(encoding="utf-8")
  if path.endswith(".json"):
    rows = _json(text, f"{path}:1") if text.strip() else []
    if not isinstance(rows, list):
      raise ValueError(f"{path} is one JSON {type(rows).__name__}: it must be a list of rows")
    return [(f"{path}:{i}", row) for i, row in enumerate(rows, 1)]
  # Not splitlines, which splits at characters that JSON allows inside of texts.
  lines = [(f"{path}:{i}", line) for i, line in enumerate(text.split("\n"), 1)]
  return [(place, _json(line, place)) for place, line in lines if line.strip()]


def _json(text, place):
  try:
    return json.loads(text)
  except json.JSONDecodeError as error:
    raise ValueError(f"{place} is not JSON: {error}") from None


@functools.cache  # every stage asks for the same files
def _download(place):
  """Paths of the files of `hf://datasets/OWNER/NAME[@REVISION]/PATTERN`, downloaded if need be."""
  import huggingface_hub as hub  # takes a second
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
      f"{place}: accept the terms of {repo} on the hub first (they are required), then run "
      "`hf auth login` here"
    ) from None
  except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
    raise ValueError(
      f"{place}: the hub has no dataset {repo}"
      f"{f' at {revision}' if revision else ''}, or you have no access to it"
    ) from None
  except (OSError, errors.CachedRepoTreeNotFoundError):
    raise ValueError(
      f"{place}: the hub cannot be reached and {repo} is not in the local cache. On a "
      f"machine with a network run `hf download {repo} --repo-type dataset --local-dir DIR`, "
      "and give the path of the file"
    ) from None
  files = sorted(
    str(p)
    for p in pathlib.Path(folder).rglob("*")
    if p.suffix in (".parquet", ".jsonl")
    and any(fnmatch.fnmatch(p.relative_to(folder).as_posix(), w) for w in wanted)
  )
  if not files:
    raise ValueError(f"{place}: {repo} has no .parquet or .jsonl file of that pattern")
  return files
