"""Problem files of every layout; the texts here are made up, only their layouts are real.

Long, because it is a table of layouts and of what is refused.
"""

import json
import pathlib
import re

import huggingface_hub
from huggingface_hub import errors
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gen_ssd.errors import UserError
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
    ({"problem": "One?", "answer": None}, "answer is null"),
    ({"text": "One?", "answer": "1"}, r"no field problem \(or question\); .*'answer', 'text'"),
    (["One?", "1"], "must be an object with fields problem"),
    ({"problem": 5, "answer": "1"}, "problem is 5: it must be text"),
    (
      {"problem": "Else?", "answer": "1", "uuid": "aa"},
      "uuid is 'aa', which .*p.jsonl:1 has for another problem",
    ),
  ],
)
def test_errors_name_file_and_line_and_field(tmp_path, row, message):
  path = write(tmp_path / "p.jsonl", {"problem": "Fine?", "answer": "1", "uuid": "aa"}, "", row)
  with pytest.raises(UserError, match=message) as caught:
    sets.read(path)
  assert str(caught.value).startswith(f"{path}:3")


BAD_ROWS = {  # what stands in the file -> what the message says
  '{"problem": "One?", "answer": ["1"]}': "answer is ['1']: it must be text or a finite number",
  '{"problem": "One?", "answer": {"a": 1}}': "answer is {'a': 1}: it must be text or a finite",
  '{"problem": "One?", "answer": true}': "answer is True: it must be text or a finite number",
  '{"problem": "One?", "answer": NaN}': "answer is nan: it must be text or a finite number",
  '{"problem": "One?", "answer": -Infinity}': "answer is -inf: it must be",
  '{"problem": "One?", "answer": 1e999}': "answer is inf: it must be",
  '{"problem": "One?", "answer": ""}': "answer is '': it must not be empty",
  '{"problem": "One?", "answer": " \\n"}': r"answer is ' \n': it must not be empty",
  '{"problem": "One?", "answer": "so ####"}': "answer is '': it must not be empty",
  '{"problem": "One?", "answer": "$$"}': "answer is '$$': it must not be empty",
  '{"problem": " \\u200b\\t", "answer": 1}': r"problem is ' \u200b\t': it must not be empty",
  '{"problem": null, "question": [], "answer": 1}': "question is []: it must be text",
  '{"problem": "One\\ud800?", "answer": 1}': r"problem is 'One\ud800?': it must be Unicode",
  '{"problem": "One?", "answer": "\\udfff"}': r"answer is '\udfff': it must",
  '{"problem": "One?", "answer": 1, "uuid": "a\\ud800"}': r"uuid is 'a\ud800': it must be Unicode",
  '{"problem": "One?", "answer": 1, "uuid": ["a"]}': "uuid is ['a']: it must be text or a whole",
  '{"problem": "One?", "answer": 1, "uuid": true}': "uuid is True: it must be text or a whole",
  '{"problem": "One?", "answer": 1, "uuid": "  "}': "uuid is '  ': it must not be empty",
  '{"problem": "One?", "answer": 1, "source": "\\ud800"}': r"source is '\ud800': it must be Unicode",
  '{"problem": "\\u001b[2J\\u0000", "answer": []}': "answer is []: it must be text",
  '{"problem": ["\\u001b[2J"], "answer": 1}': r"problem is ['\x1b[2J']: it must be text",
  '{"problem": "One?", "answer": 1, "answer": 2}': "an object has the field 'answer' twice",
  '{"problem": "One?", "answer": ' + "[" * 100_000: "is nested too deeply",
  '{"problem": "One?", "answer": ' + "1" * 5000 + "}": "Exceeds the limit (4300 digits)",
}


@pytest.mark.parametrize("row", BAD_ROWS)
def test_whatever_stands_in_a_row_there_is_a_message(tmp_path, row):
  path = write(tmp_path / "p.jsonl", {"problem": "Fine?", "answer": "1"}, row)
  with pytest.raises(UserError, match=re.escape(BAD_ROWS[row])) as caught:
    sets.read(path)
  assert str(caught.value).startswith(f"{path}:2") and str(caught.value).isprintable()


@pytest.mark.parametrize(
  "level,want",
  [
    *((3, 3), ("3", 3), ("Level 3", 3), (3.0, 3), (0, 0), (None, 0), (True, 0), (-1, 0), ([3], 0)),
    *(
      ({"a": 1}, 0),
      (2.5, 0),
      (float("nan"), 0),
      (float("inf"), 0),
      (10**4000, 0),
      ("9" * 5000, 0),
    ),
  ],
)
def test_a_level_of_any_type_is_a_number(tmp_path, level, want):
  path = write(tmp_path / "p.jsonl", {"problem": "One?", "answer": "1", "level": level})
  assert [p.level for p in sets.read(path)] == [want]


@pytest.mark.parametrize(
  "answer,want",
  [
    *((7, "7"), (7.0, "7"), (2.5, "2.5"), (1e22, "1" + "0" * 22), (1e-7, "0.0000001")),
    *((12345678901234567890, "12345678901234567890"), ("#### 1,234", "1234")),
    *(("#### (1, 2)", "(1, 2)"), (" 7 ", "7"), ("True", "True")),
  ],
)
def test_an_answer_is_kept_as_it_is_meant(tmp_path, answer, want):
  path = write(tmp_path / "p.jsonl", {"problem": "One?", "answer": answer})
  assert [p.answer for p in sets.read(path)] == [want]


@pytest.mark.parametrize(
  "first,second,uuid",
  [
    ("7", "8", None),
    ("7", "8", "aa"),
    ("$x+1$", "$x+2$", None),  # math-verify decides
    ("7", "seven", None),
  ],
)
def test_a_problem_with_two_answers_is_refused(tmp_path, first, second, uuid):
  row = {"problem": "How many apples?", "answer": first, "uuid": uuid}
  other = {"problem": " how  many\nAPPLES?", "answer": second, "uuid": uuid}
  path = write(tmp_path / "p.jsonl", row, {"problem": "Else?", "answer": "1"}, other)
  message = f"answer is '{second}', but {path}:1 has the same problem with the answer '{first}'"
  with pytest.raises(UserError, match=re.escape(message)) as caught:
    sets.read(path)
  assert str(caught.value).startswith(f"{path}:3: ")


def test_the_same_answer_may_be_written_in_two_ways(tmp_path):
  row = {"problem": "How many apples?", "answer": "1,000", "uuid": "aa"}
  again = {"problem": "how many  apples?", "answer": "$1000.0$", "uuid": "bb"}
  half = {"problem": "Half?", "answer": r"\frac{1}{2}"}
  path = write(tmp_path / "p.jsonl", row, again, half, {**half, "answer": "0.5"})
  assert [(p.uuid, p.answer) for p in sets.read(path)][0] == ("aa", "1,000")
  assert [p.answer for p in sets.read(path)] == ["1,000", r"\frac{1}{2}"]


def test_in_a_known_set_only_numbers_must_agree(tmp_path, monkeypatch):
  monkeypatch.setitem(sets.SETS["math"].rows, 2, "for this test")
  row = {"problem": "One?", "answer": "$x$"}
  path = write(tmp_path / "p.jsonl", row, {**row, "answer": r"x \text{ apples}"})
  assert [p.answer for p in sets.read(f"math:{path}")] == ["$x$"]
  path = write(tmp_path / "p.jsonl", {**row, "answer": "1"}, {**row, "answer": "2"})
  with pytest.raises(UserError, match="answer is '2', but .*:1 has the same problem"):
    sets.read(f"math:{path}")


# ---------------------------------------------------------------- files as a whole


@pytest.mark.parametrize(
  "name,content,message",
  [
    ("p.jsonl", b'{"a": 1}\n\n{"a": "\xff"}', ":3 is not UTF-8: byte 8 of the line is 0xff"),
    ("p.json", b'[{"a": "\xe9"}]', ":1 is not UTF-8: byte 9 of the line is 0xe9; save the file"),
    ("p.jsonl", "[1]".encode("utf-16"), ":1 is not UTF-8: byte 1 of the line"),
    ("p.jsonl", b"", " has no rows: it must have at least one problem"),
    ("p.jsonl", b" \n\n", " has no rows"),
    ("p.json", b"", " has no rows"),
    ("p.json", b"[]", " has no rows"),
    ("p.json", b'{"problem": "One?", "answer": 1}', " is one JSON dict: it must be a list"),
    ("p.json", b"7", " is one JSON int: it must be a list"),
    ("p.json", b'{"a": 1}\n{"a": 2}', "a file of one object a line is named .jsonl"),
    ("p.json", b'["One?"]', ":1 is 'One?': it must be an object with fields problem"),
    ("p.jsonl", b"null", ":1 is None: it must be an object with fields problem"),
    ("p.json", b"[" * 100_000, " is nested too deeply"),
    ("p.json", b'[{"answer": ' + b"1" * 5000 + b"}]", " is not JSON: Exceeds the limit"),
    ("p.parquet", b"", " is not Parquet: "),
    ("p.parquet", b"PAR1 no PAR1", " is not Parquet: "),
  ],
)
def test_a_file_of_another_content_is_refused(tmp_path, name, content, message):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(UserError) as caught:
    sets.read(str(tmp_path / name))
  assert str(caught.value).startswith(f"{tmp_path / name}{message}") or (
    str(caught.value).endswith(message) and name in str(caught.value)
  )


@pytest.mark.parametrize("name", ["p.jsonl", "p.json"])
def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path, name):
  text = json.dumps({"problem": "One?", "answer": "1"})
  content = f"[{text}]" if name == "p.json" else text
  (tmp_path / name).write_text(content, encoding="utf-8-sig")
  assert [p.problem for p in sets.read(str(tmp_path / name))] == ["One?"]


@pytest.mark.parametrize(
  "column,message",
  [
    (pa.array([b"1"]), ":1: answer is b'1': it must be text or a finite number"),
    (pa.array([["1"]]), ":1: answer is ['1']: it must be"),
    (pa.array([{"a": "1"}]), ":1: answer is {'a': '1'}: it must be"),
    (pa.array([float("nan")]), ":1: answer is nan: it must be"),
    (pa.array([None], pa.string()), ":1: answer is null"),
    (pa.array([True]), ":1: answer is True"),
    (pa.array([b"\xff"]).view(pa.string()), ":1: answer is UnicodeDecodeError("),
  ],
)
def test_a_parquet_column_of_another_type_is_refused(tmp_path, column, message):
  path = str(tmp_path / "p.parquet")
  pq.write_table(pa.table({"problem": ["One?"], "answer": column}), path)
  with pytest.raises(UserError, match=re.escape(path + message)):
    sets.read(path)


def test_only_the_columns_that_count_must_be_readable(tmp_path):
  path = str(tmp_path / "answer=3" / "p.parquet")  # a folder is no column
  (tmp_path / "answer=3").mkdir()
  when = pa.array([1], pa.timestamp("us", "No/Where"))
  pq.write_table(pa.table({"problem": ["One?"], "answer": [1], "when": when}), path)
  assert [p.answer for p in sets.read(path)] == ["1"]
  pq.write_table(pa.Table.from_arrays([when, when], ["a", "a"]), path)
  with pytest.raises(UserError, match="p.parquet has two columns 'a'"):
    sets.read(path)


def test_a_file_that_may_not_be_read_is_refused(tmp_path, monkeypatch):
  path = write(tmp_path / "p.jsonl", {"problem": "One?", "answer": "1"})

  def refuse(self):
    raise PermissionError(13, "Permission denied", str(self))

  monkeypatch.setattr(pathlib.Path, "read_bytes", refuse)  # root may read everything
  with pytest.raises(UserError, match="p.jsonl cannot be read: Permission denied"):
    sets.read(path)


def test_jsonl_json_and_parquet_are_the_same(tmp_path):
  rows = [{"problem": f"{i}?", "answer": i, "level": f"Level {i}"} for i in range(4)]
  lines, table = (write(tmp_path / f"p.{kind}", *rows) for kind in ("jsonl", "parquet"))
  whole = write(tmp_path / "p.json", json.dumps(rows))
  plain = lambda path: [(p.problem, p.answer, p.level, p.uuid) for p in sets.read(path)]
  assert plain(lines) == plain(table) == plain(whole) and len(plain(lines)) == 4
  with pytest.raises(UserError, match="p.json is one JSON dict: it must be a list of rows"):
    sets.read(write(tmp_path / "p.json", json.dumps(rows[0])))
  pathlib.Path(table).write_text("nothing")
  with pytest.raises(UserError, match="p.parquet is not Parquet"):
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
  with pytest.raises(UserError, match=re.escape(message)) as caught:
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
  with pytest.raises(UserError, match=re.escape(f"{path} has {rows} rows, {message}")):
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
    (str(tmp_path), "file, not a folder"),
    (f"math500:{tmp_path}", "file, not a folder"),
    ("", "that exists"),
    ("\ud800\0", "that exists"),
    ("x" * 5000, "that exists"),
    ("hf://datasets/owner/name", "with a pattern such as"),
    ("hf://datasets/owner/name/", "with a pattern such as"),
    ("hf://datasets/owner/name/data/", "with a pattern such as"),
    ("hf://datasets//name/data", "with a pattern such as"),
    ("hf://models/owner/name/data", "with a pattern such as"),
    ("hf://datasets/ow ner/name/data", "OWNER and NAME are made of letters"),
    ("hf://datasets/owner/na--me/data", "OWNER and NAME are made of letters"),
    ("hf://datasets/owner/name@/data", "a branch, a tag or a commit"),
    ("hf://datasets/owner/name@a b/data", "a branch, a tag or a commit"),
    ("hf://datasets/owner/name@../data", "a branch, a tag or a commit"),
    ("hf://datasets/owner/name/../data", "the only braces are {split}"),
    ("hf://datasets/owner/name/{x}", "the only braces are {split}"),
    ("hf://datasets/owner/name/{split", "the only braces are {split}"),
    ("hf://datasets/owner/name/a\0", "the only braces are {split}"),
  ):
    with pytest.raises(UserError, match=message):
      sets.parts(wrong)


@pytest.mark.parametrize("seed", [-1, 2**32, 2**64 + 1, -(10**30)])
@pytest.mark.parametrize("source", ["bundled", "FILE"])
def test_a_seed_of_other_sizes_is_refused(tmp_path, source, seed):
  path = write(tmp_path / "p.jsonl", {"problem": "One?", "answer": "1"})
  with pytest.raises(UserError, match=rf"problems.seed is {seed}: it must be 0 to 2\*\*32 - 1"):
    sets.load(source.replace("FILE", path), "test", 1, seed)
  assert sets.load(source.replace("FILE", path), "test", 1, 2**32 - 1)


def test_reading_nothing_says_what_a_source_must_be():
  with pytest.raises(UserError, match="source is 'no.jsonl': it must be bundled, the path of"):
    sets.read("no.jsonl")
  with pytest.raises(UserError, match="source is 'bundled': it must be a file or a known set"):
    sets.read("bundled")


@pytest.mark.parametrize("pattern", ["[", "[a", "**/*", "a?b", "[!]", "[z-a]*"])
def test_any_pattern_without_a_network_is_one_message(monkeypatch, pattern):
  monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
  place = f"hf://datasets/no-owner/no-name@v1/{pattern}"
  with pytest.raises(UserError, match=re.escape(f"{place}: the hub cannot be reached")):
    sets.load(place, "test")


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
    UserError, match="openai/gsm8k has no .parquet or .jsonl file of that pattern"
  ):
    sets.load("gsm8k", "cold_start", 5)
  with pytest.raises(UserError, match="owner/name has no"):
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
    (errors.HTTPError, "cannot be reached and .*HTTPError"),  # a network that is down
  ],
)
def test_errors_of_the_hub_are_told_in_plain_words(hub, kind, message):
  _, answer = hub
  answer["error"] = kind.__new__(kind)
  with pytest.raises(UserError, match=message):
    sets.read("aime25")
