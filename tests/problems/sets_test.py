"""Problem files of every layout; the texts here are made up, only their layouts are real.

Long, because it is a table of layouts.
"""

import json
import pathlib
import re

import huggingface_hub
from huggingface_hub import errors
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gen_ssd.problems import bundled
from gen_ssd.problems import files
from gen_ssd.problems import problem as problem_lib
from gen_ssd.problems import sets
from tests import paths

DATA = paths.DATA


def write(path, *rows):
  if path.suffix == ".parquet":
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
  else:
    path.write_text(
      "".join(
        (r if isinstance(r, str) else json.dumps(r, ensure_ascii=False)) + "\n" for r in rows
      ),
      encoding="utf-8",
    )
  return str(path)


# ---------------------------------------------------------------- any file


def test_read_takes_what_files_offer(tmp_path):
  path = write(
    tmp_path / "p.jsonl",
    {"question": "One?", "answer": "work\n#### 1,234"},
    "",
    {
      "problem": "A pair?\u2028Yes.",
      "answer": "(1, 2)",
      "level": "3",
      "uuid": "ab12",
      "source": "math",
    },
    {"problem": "Level in words?", "answer": 7, "level": "Level 5"},
    {"problem": "None?", "answer": 7, "level": "hard"},
  )
  one, pair, words, hard = sets.read(path, split="test")
  assert (one.problem, one.answer, one.level, one.split) == ("One?", "1234", 0, "test")
  assert one.source == path and one.uuid == problem_lib.digest("One?")[:16]
  assert (pair.problem, pair.answer) == ("A pair?\u2028Yes.", "(1, 2)")  # no thousands
  assert (pair.level, pair.uuid, pair.source) == (3, "ab12", "math")
  assert (words.answer, words.level, hard.level) == ("7", 5, 0)


def test_a_problem_that_comes_twice_counts_once(tmp_path):
  row = {"problem": "One?", "answer": "1"}
  assert len(sets.read(write(tmp_path / "p.jsonl", row, row, {**row, "problem": "Two?"}))) == 2


@pytest.mark.parametrize(
  "row,message",
  [
    ('{"problem": "One?", "ans', "is not JSON"),
    ({"problem": "One?"}, r"no field answer; it has \['problem'\]"),
    ({"problem": "One?", "answer": None}, "no field answer"),
    ({"text": "One?", "answer": "1"}, r"no field problem \(or question\); .*'answer', 'text'"),
    (["One?", "1"], "must be an object with fields problem"),
    ({"problem": 5, "answer": "1"}, "problem is 5: it must be text"),
    (
      {"problem": "Else?", "answer": "1", "uuid": "aa"},
      "uuid is 'aa', which another problem above",
    ),
  ],
)
def test_errors_name_file_and_line_and_field(tmp_path, row, message):
  path = write(tmp_path / "p.jsonl", {"problem": "Fine?", "answer": "1", "uuid": "aa"}, "", row)
  with pytest.raises(ValueError, match=message) as caught:
    sets.read(path)
  assert str(caught.value).startswith(f"{path}:3")


def test_jsonl_json_and_parquet_are_the_same(tmp_path):
  rows = [{"problem": f"{i}?", "answer": i, "level": f"Level {i}"} for i in range(4)]
  lines, table = (write(tmp_path / f"p.{kind}", *rows) for kind in ("jsonl", "parquet"))
  whole = write(tmp_path / "p.json", json.dumps(rows))
  plain = lambda path: [(p.problem, p.answer, p.level, p.uuid) for p in sets.read(path)]
  assert plain(lines) == plain(table) == plain(whole) and len(plain(lines)) == 4
  with pytest.raises(ValueError, match="p.json is one JSON dict: it must be a list of rows"):
    sets.read(write(tmp_path / "p.json", json.dumps(rows[0])))
  pathlib.Path(table).write_text("nothing")
  with pytest.raises(ValueError, match="p.parquet is not Parquet"):
    sets.read(table)


def test_a_part_of_a_file_is_drawn_by_seed_and_parts_are_disjoint(tmp_path):
  path = write(tmp_path / "p.jsonl", *({"problem": f"{i}?", "answer": i} for i in range(50)))
  number = lambda *args: [int(p.answer) for p in sets.load(path, "train", *args)]
  assert number(0) == number(50) == list(range(50))
  cold, rest, others = number(20, 3), number(20, 3, 20), number(20, 4)
  assert len(cold) == len(rest) == 20 and not {*cold} & {*rest}
  assert cold == sorted(cold) and cold != list(range(20)) and cold != others
  assert sorted(cold + number(0, 3, 20)) == list(range(50))
  assert number(60) == list(range(50))  # fewer than asked: the caller's to notice
  assert sets.load("bundled", "test", 3, 5) == bundled.problems("test", 3, 5)


# ---------------------------------------------------------------- known sets

LAYOUTS = {  # set -> [(a row, what becomes of it)], all made up
  "gsm8k": [
    (
      {"question": "Ann has 3 pens and buys 4?", "answer": "3 + 4 = <<3+4=7>>7\n#### 1,007"},
      ("Ann has 3 pens and buys 4?", "1007", 0),
    )
  ],
  "svamp": [
    (
      {
        "Body": "Ben had 9 jars. He broke 2",
        "Question": "How many are left?",
        "Equation": "( 9.0 - 2.0 )",
        "Answer": "7.0",
        "ID": "x",
      },
      ("Ben had 9 jars. He broke 2. How many are left?", "7", 0),
    ),
    (
      {"Body": "Two cups hold 5 dl.", "Question": "And one?", "Answer": 2.5},
      ("Two cups hold 5 dl. And one?", "2.5", 0),
    ),
  ],
  "math": [
    (
      {
        "problem": "Half of $x$?",
        "level": "Level 4",
        "type": "Algebra",
        "solution": r"First \boxed{2}, then $\boxed{\frac{x}{2}}$.",
      },
      ("Half of $x$?", r"\frac{x}{2}", 4),
    )
  ],
  "math500": [
    (
      {
        "problem": "Half of $x$?",
        "solution": "...",
        "answer": r"\frac{x}{2}",
        "level": 2,
        "subject": "Algebra",
        "unique_id": "test/a.json",
      },
      ("Half of $x$?", r"\frac{x}{2}", 2),
    )
  ],
  "aime24": [
    (
      {"id": 60, "problem": "Find n.", "solution": "so", "answer": "073", "year": "2024"},
      ("Find n.", "73", 0),
    ),
    (
      {"ID": "2024-I-1", "Problem": "Find n.", "Solution": "so", "Answer": 204},
      ("Find n.", "204", 0),
    ),
    (
      {"id": 1, "problem": "Find n.", "solution": r"\boxed{540}", "url": "u"},
      ("Find n.", "540", 0),
    ),
  ],
  "aime25": [
    ({"problem": "Find m.", "answer": "70", "id": "0"}, ("Find m.", "70", 0)),
    ({"question": "Find m.", "answer": "588"}, ("Find m.", "588", 0)),
  ],
  "amc23": [
    ({"id": 0, "question": "How far?", "answer": 27.0, "url": "u"}, ("How far?", "27", 0)),
    ({"id": 0, "question": "How far?", "answer": "3159"}, ("How far?", "3159", 0)),
  ],
  "olympiadbench": [
    (
      {
        "id": 1,
        "question": "Find all $x$.",
        "solution": ["so"],
        "final_answer": ["$2$, $-1$"],
        "context": None,
        "is_multiple_answer": True,
        "unit": None,
      },
      ("Find all $x$.", "2, -1", 0),
    ),
    (
      {"question": "Find all.", "final_answer": ["$2$", "$-1$"], "context": "Let $x>0$."},
      ("Let $x>0$.\n\nFind all.", "2, -1", 0),
    ),
  ],
  "minerva": [
    (
      {
        "problem": "Find the flux.",
        "solution": r"It is \boxed{3.5 e4} W.",
        "type": "astro",
        "idx": 0,
      },
      ("Find the flux.", "3.5 e4", 0),
    ),
    ({"question": "Find the flux.", "answer": "3.5e4"}, ("Find the flux.", "3.5e4", 0)),
  ],
}


@pytest.mark.parametrize(
  "name,row,want", [(n, *case) for n, cases in LAYOUTS.items() for case in cases]
)
def test_each_layout(name, row, want):
  assert sets.SETS[name].parse(row) == want


def test_every_known_set_is_tested_and_has_the_rows_of_the_literature():
  assert LAYOUTS.keys() == sets.SETS.keys()
  counts = {name: sorted(known.rows) for name, known in sets.SETS.items()}
  assert counts == {
    "gsm8k": [1319, 7473],
    "svamp": [1000],
    "math": [5000, 7500],
    "math500": [500],
    "aime24": [30],
    "aime25": [30],
    "amc23": [40],
    "olympiadbench": [674],
    "minerva": [272],
  }


@pytest.mark.parametrize(
  "name,row,message",
  [
    ("gsm8k", {"question": "Q?", "answer": "7"}, "answer is '7': it must end in '#### N'"),
    ("gsm8k", {"problem": "Q?", "answer": "#### 7"}, "no field question; it has"),
    (
      "gsm8k",
      {"question": "Q?", "answer": "#### seven"},
      "answer is ' seven': it must be a number",
    ),
    ("svamp", {"Body": "B.", "Answer": 1}, "has no field Question; it has"),
    ("math", {"problem": "P?", "solution": "It is 4."}, r"its solution has no \boxed answer"),
    ("math", {"problem": "P?"}, "has no field answer; it has ['problem']"),
    ("aime24", {"problem": "P?", "answer": "1000"}, "it must be a whole number from 0 to 999"),
    ("aime25", {"problem": "P?", "answer": "n+1"}, "it must be a number"),
    ("amc23", {"question": "P?"}, "has no field answer"),
    (
      "olympiadbench",
      {"question": "P?", "answer_type": "x"},
      "has no field final_answer (or answer)",
    ),
    ("olympiadbench", {"question": "P?", "final_answer": []}, "it must be a list of texts"),
    (
      "olympiadbench",
      {"question": "Let $T=TNYWR$. Find T.", "final_answer": ["2"]},
      "a relay problem",
    ),
    ("minerva", {"type": "astro"}, "has no field problem (or question)"),
  ],
)
def test_a_wrong_layout_is_refused_with_the_missing_field(
  tmp_path, monkeypatch, name, row, message
):
  good = LAYOUTS[name][0][0]
  monkeypatch.setitem(sets.SETS[name].rows, 2, "for this test")
  path = write(tmp_path / "p.jsonl", good, row)
  with pytest.raises(ValueError, match=re.escape(message)) as caught:
    sets.read(f"{name}:{path}")
  assert str(caught.value).startswith(f"{path}:2") and f"(read as {name})" in str(caught.value)


@pytest.mark.parametrize(
  "name,rows,message",
  [
    ("olympiadbench", 675, "olympiadbench has 674 (test): that is a copy with 15 relay problems"),
    ("amc23", 83, "amc23 has 40 (test): that is another benchmark"),
    ("gsm8k", 1318, "gsm8k has 1319 (test) or 7473 (train); leave out the name for a part"),
    ("aime24", 90, "aime24 has 30 (test): that is 2022 to 2024"),
  ],
)
def test_a_wrong_number_of_rows_is_refused_with_the_reason(tmp_path, name, rows, message):
  path = write(tmp_path / "p.parquet", *[LAYOUTS[name][0][0]] * rows)
  with pytest.raises(ValueError, match=re.escape(f"{path} has {rows} rows, {message}")):
    sets.read(f"{name}:{path}")


def test_the_right_number_of_rows_is_read(tmp_path):
  question = LAYOUTS["olympiadbench"][1][0]
  path = write(
    tmp_path / "p.parquet", *({**question, "question": f"Find {i}."} for i in range(674))
  )
  found = sets.read(f"olympiadbench:{path}", split="test")
  assert len(found) == 674 and {p.source for p in found} == {"olympiadbench"}


@pytest.mark.parametrize(
  "source,count,split",
  [
    ("gsm8k:gsm8k/train.jsonl", 7473, "train"),
    ("gsm8k:gsm8k/test.jsonl", 1319, "test"),
    ("svamp:svamp/SVAMP.json", 1000, "test"),
    ("svamp:svamp/test.jsonl", 1000, "test"),
  ],
)
def test_real_files(source, count, split):
  name, _, file = source.partition(":")
  if not (DATA / file).is_file():
    pytest.skip(f"{file} is not in {DATA}")
  found = sets.read(f"{name}:{DATA / file}", split=split)
  assert len(found) == count and len({p.uuid for p in found}) == count
  assert all(re.fullmatch(r"-?\d+(\.\d+)?", p.answer) and p.problem.strip() for p in found)


# ---------------------------------------------------------------- sources


def test_sources(tmp_path):
  path = write(tmp_path / "p.jsonl", {"problem": "One?", "answer": "1"})
  assert sets.parts("bundled") == (None, None)
  assert sets.parts(path) == (None, path)
  assert sets.parts(f"math500:{path}") == ("math500", path)
  assert sets.parts("aime25") == ("aime25", "hf://datasets/math-ai/aime25/*test*")
  here = "hf://datasets/owner/name@v1/data/test*"
  assert sets.parts(here) == (None, here) and sets.parts(f"minerva:{here}") == ("minerva", here)
  other = write(tmp_path / "p.csv", "a,b")
  for wrong, message in (
    ("no.jsonl", "that exists"),
    ("aime26", "one of gsm8k, svamp"),
    (f"aime26:{path}", "known set before the colon: gsm8k"),
    ("math500:no.jsonl", "that exists"),
    (other, "a .jsonl, .json or .parquet"),
    ("hf://datasets/owner/name", "with a pattern such as"),
  ):
    with pytest.raises(ValueError, match=message):
      sets.parts(wrong)


@pytest.fixture
def hub(monkeypatch):
  """Calls of the hub's download, answered by what a test puts in `answer`."""
  calls, answer = [], {}

  def download(repo, **options):
    calls.append((repo, options["revision"], options["allow_patterns"]))
    if "error" in answer:
      raise answer["error"]
    return str(answer["folder"])

  monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
  files.download.cache_clear()
  return calls, answer


def test_a_set_of_the_hub_comes_from_its_usual_place(hub, tmp_path):
  calls, answer = hub
  answer["folder"] = tmp_path
  (tmp_path / "data").mkdir()
  row = lambda i: {"problem": f"Find {i}.", "answer": str(i)}
  for part in range(2):
    write(
      tmp_path / "data" / f"train-0000{part}-of-00002.parquet",
      *map(row, range(15 * part, 15 * part + 15)),
    )
  write(tmp_path / "data" / "other.parquet", row(99))
  assert [p.answer for p in sets.load("aime24", "test")] == [str(i) for i in range(30)]
  assert len(sets.load("aime24", "test", 4)) == 4
  pattern = "data/train*"
  assert calls == [
    ("HuggingFaceH4/aime_2024", None, [pattern, pattern + ".parquet", pattern + ".jsonl"])
  ]  # once


def test_the_split_and_the_revision_reach_the_hub(hub, tmp_path):
  calls, answer = hub
  answer["folder"] = tmp_path
  with pytest.raises(
    ValueError, match="openai/gsm8k has no .parquet or .jsonl file of that pattern"
  ):
    sets.load("gsm8k", "cold_start", 5)
  with pytest.raises(ValueError, match="owner/name has no"):
    sets.load("hf://datasets/owner/name@v1/data/test*", "test")
  assert [(repo, revision, patterns[0]) for repo, revision, patterns in calls] == [
    ("openai/gsm8k", None, "main/train*"),
    ("owner/name", "v1", "data/test*"),
  ]


@pytest.mark.parametrize(
  "kind,message",
  [
    (
      errors.LocalEntryNotFoundError,
      "cannot be reached and math-ai/aime25 is not in the local cache.*hf download",
    ),
    (errors.OfflineModeIsEnabled, "cannot be reached"),
    (
      errors.RepositoryNotFoundError,
      "the hub has no dataset math-ai/aime25, or you have no access",
    ),
    (errors.GatedRepoError, "accept the terms of math-ai/aime25"),
  ],
)
def test_errors_of_the_hub_are_told_in_plain_words(hub, kind, message):
  _, answer = hub
  answer["error"] = kind.__new__(kind)
  with pytest.raises(ValueError, match=message):
    sets.read("aime25")
