"""Problem sets: the bundled family, local JSONL, JSON and Parquet files, and the public sets by name.

A source is `bundled`, a FILE, `NAME:FILE` or `NAME`, where NAME is one of SETS. A FILE is a path or
`hf://datasets/OWNER/NAME[@REVISION]/PATTERN`. With a NAME, the layout and the number of rows are
checked; without a FILE, the set comes from its usual place on the Hugging Face hub. The licenses of
MATH, AIME, AMC and OlympiadBench do not allow redistribution, so this project has no text of theirs.
"""

from collections.abc import Callable
import dataclasses
import functools
import os
import pathlib
import re

from gen_ssd import errors
from gen_ssd.errors import UserError
from gen_ssd.problems import answers
from gen_ssd.problems import bundled
from gen_ssd.problems import fields
from gen_ssd.problems import files
from gen_ssd.problems import problem as problem_lib

Row = dict  # as the file has it
Parsed = tuple[str, str, int]  # problem, answer, level


@dataclasses.dataclass(frozen=True)
class Set:
  """One public set: how many rows it has, how to read one, and where to find it."""

  rows: dict[int, str]  # number of rows -> the part of the set that has it
  parse: Callable[[Row], Parsed]
  hub: str  # its usual place; {split} is train or test
  wrong: dict[int, str] = dataclasses.field(default_factory=dict)  # other numbers -> what is wrong


# ---------------------------------------------------------------- layouts


def plain(row: Row) -> Parsed:
  """Any row with `problem` (or `question`) and `answer`, which may end in GSM8K's `#### N`."""
  text = fields.text(row, "problem", "question")
  _, mark, answer = fields.answer(row, "answer").rpartition("####")
  if mark and fields.WRITTEN.fullmatch(answer.strip()):
    answer = answer.replace(",", "")
  return text, answer.strip(), fields.level(row)


def gsm8k(row: Row) -> Parsed:
  """GSM8K: the answer is a solution that ends in `#### N`."""
  text, answer = fields.text(row, "question"), fields.text(row, "answer")
  if "####" not in answer:
    raise fields.Layout(f": answer is {files.show(answer)}: it must end in '#### N'")
  return text, fields.number(answer.rpartition("####")[2], "answer"), 0


def svamp(row: Row) -> Parsed:
  """SVAMP: the problem is in two fields."""
  body, question = fields.text(row, "Body").strip(), fields.text(row, "Question").strip()
  stop = "" if body.endswith((".", "?", "!", ",")) else "."
  return f"{body}{stop} {question}", fields.number(fields.answer(row, "Answer"), "Answer"), 0


def math(row: Row) -> Parsed:
  """MATH and MATH-500: the answer is LaTeX."""
  return fields.text(row, "problem"), fields.answer_or_box(row, "answer"), fields.level(row)


def aime(row: Row) -> Parsed:
  """AIME: the answer is a whole number from 0 to 999."""
  text = fields.text(row, "problem", "question", "Problem")
  return text, fields.number(fields.answer_or_box(row, "answer", "Answer"), "answer", 0, 999), 0


def amc(row: Row) -> Parsed:
  """AMC: the answer is a number."""
  return (
    fields.text(row, "question", "problem"),
    fields.number(fields.answer(row, "answer"), "answer"),
    0,
  )


def olympiadbench(row: Row) -> Parsed:
  """OlympiadBench, open-ended English mathematics without pictures: a list of answers."""
  text = fields.text(row, "question", "problem")
  if "TNYWR" in text:
    raise fields.Layout(
      ": a relay problem that asks for 'the number you will receive', so it cannot be "
      "answered; take the file of 674 rows, where that number is filled in"
    )
  name, values = fields.field(row, "final_answer", "answer")
  values = [values] if isinstance(values, str) else values
  if not isinstance(values, list) or not values or not all(isinstance(x, str) for x in values):
    raise fields.Layout(f": {name} is {files.show(values)}: it must be a list of texts")
  for value in values:
    fields.check_text(value.replace("$", ""), name)
  if row.get("context"):
    text = f"{fields.text(row, 'context')}\n\n{text}"
  return text, ", ".join(x.replace("$", "").strip() for x in values), 0


def minerva(row: Row) -> Parsed:
  """Minerva mathematics: the answer is LaTeX."""
  return fields.text(row, "problem", "question"), fields.answer_or_box(row, "answer"), 0


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

  Raises UserError when the file does not exist or the name is unknown. The message completes the
  sentence `FIELD is VALUE: it must be`.
  """
  if source == "bundled":
    return None, None
  if source in SETS:
    return source, files.HUB + SETS[source].hub
  name, colon, file = source.partition(":")
  if not colon or source.startswith("hf:"):
    name, file = None, source
  elif name not in SETS:
    raise UserError(f"a known set before the colon: {', '.join(SETS)}")
  if file.startswith("hf:"):
    files.address(file)
  elif os.path.isdir(file):
    raise UserError("a .jsonl, .json or .parquet file, not a folder")
  elif not (os.path.isfile(file) and errors.encodable(file)):
    raise UserError(
      "bundled, the path of a .jsonl, .json or .parquet file that exists, "
      f"{files.HUB}OWNER/NAME/PATTERN, or one of {', '.join(SETS)}, alone or as NAME:FILE"
    )
  elif not file.endswith((".jsonl", ".json", ".parquet")):
    raise UserError("a .jsonl, .json or .parquet file")
  return name, file


def name(source: str) -> str:
  """A short name for a test, from the set or the file that it comes from."""
  first = source if source.startswith("hf:") else source.partition(":")[0]
  return re.sub(r"[^\w.=-]+", "-", pathlib.PurePath(first).stem).strip(".-") or "test"


def load(
  source: str, split: str, count: int = 0, seed: int = 0, skip: int = 0
) -> list[problem_lib.Problem]:
  """Problems of a source: `count` of them after the first `skip`, or all after those when 0.

  Files are often sorted by subject, so problems are drawn in a random order that depends on `seed`;
  they are returned in the order of the file. Raises UserError as `read` and `bundled.problems` do,
  and for a seed that is negative or has more than 32 bits.
  """
  if not 0 <= seed < 2**32:
    errors.fail("problems.seed", seed, "0 to 2**32 - 1")
  if source == "bundled":
    return bundled.problems(split, count, seed)
  problems = read(source, split=split)
  order = sorted(problems, key=lambda p: problem_lib.digest(f"{seed} {p.uuid}"))
  chosen = {p.uuid for p in order[skip : skip + count if count else None]}
  return [p for p in problems if p.uuid in chosen]


def read(source: str, *, split: str = "train") -> list[problem_lib.Problem]:
  """All problems of a source that is a file. A problem that occurs twice is returned once.

  Raises UserError with file, line, field and value for whatever is wrong in a row: a missing or
  empty field, another type, another answer to the same problem. Problems are the same when their
  texts differ in spaces and upper case only. Raises it with the number of rows that a known set
  should have.
  """
  try:
    name, file = parts(source)
  except UserError as right:
    errors.fail("source", source, right)
  if not file:
    errors.fail("source", source, "a file or a known set")
  paths = [file]
  if file.startswith(files.HUB):
    paths = files.download(file.replace("{split}", "test" if split == "test" else "train"))
  stamps = tuple((s.st_mtime_ns, s.st_size) for s in map(os.stat, filter(os.path.exists, paths)))
  return [*_read(tuple(paths), stamps, name, file, split)]


@functools.lru_cache(maxsize=8)  # every stage asks for the same; files may change meanwhile
def _read(paths, stamps, name, file, split):
  """The problems of files, whose `stamps` say which version of them is meant."""
  del stamps
  rows = [pair for path in paths for pair in files.rows(path)]
  if not rows:
    raise UserError(f"{file} has no rows: it must have at least one problem")
  if name:
    _check_count(name, file, len(rows))
  found = []
  for line, row in rows:
    try:
      found.append((line, _problem(row, name, file, split)))
    except fields.Layout as error:
      raise UserError(f"{line}{error}" + (f" (read as {name})" if name else "")) from None
  return _unique(found, name)


def _problem(row, name, file, split):
  """The Problem of one row."""
  if not isinstance(row, dict):
    raise fields.Layout(
      f" is {files.show(row)}: it must be an object with fields problem (or question) and answer"
    )
  text, answer, level = (SETS[name].parse if name else plain)(row)
  fields.check_text(answer, "answer")
  if answers.compare(answer, answer) != "right":
    raise fields.Layout(f": answer is {files.show(answer)}: it must not be empty")
  uuid, origin = row.get("uuid"), row.get("source")
  if uuid is None or uuid == "":
    uuid = problem_lib.digest(text)[:16]
  elif isinstance(uuid, bool) or not isinstance(uuid, (str, int)):
    raise fields.Layout(f": uuid is {files.show(uuid)}: it must be text or a whole number")
  fields.check_text(str(uuid), "uuid")
  origin = name or (origin if isinstance(origin, str) and origin else file)
  fields.check_text(origin, "source")
  return problem_lib.Problem(str(uuid), origin, split, text, answer, level)


def _unique(found, name):
  """The problems of [(line, Problem), ...], each once; UserError when one has two answers.

  A known set cannot be corrected, so of its answers only numbers must agree: two formulas may well
  be the same for its authors and not for math-verify.
  """
  by_uuid, by_text = {}, {}
  with answers.Grader() as grader:  # it starts a process only for answers that are hard to compare
    for line, p in found:
      text = problem_lib.normal(p.problem)
      other, same = by_uuid.setdefault(p.uuid, (line, text))
      if same != text:
        raise UserError(
          f"{line}: uuid is {files.show(p.uuid)}, which {other} has for another problem"
        )
      first, kept = by_text.setdefault(text, (line, p))
      verdict = answers.compare(kept.answer, p.answer)
      if verdict == "wrong" or not (verdict or name or grader.equivalent(kept.answer, p.answer)):
        raise UserError(
          f"{line}: answer is {files.show(p.answer)}, but {first} has the same problem with the "
          f"answer {files.show(kept.answer)}: leave the wrong one out"
        )
  return [p for _, p in by_text.values()]


def _check_count(name, file, rows):
  """UserError when a file of the set `name` has a number of rows that no part of the set has."""
  known = SETS[name]
  if rows in known.rows:
    return
  right = " or ".join(f"{n} ({part})" for n, part in known.rows.items())
  if rows in known.wrong:
    hint = f": that {known.wrong[rows]}"
  else:
    hint = "; leave out the name for a part of a set or for a file of your own"
  raise UserError(f"{file} has {rows} rows, {name} has {right}{hint}")
