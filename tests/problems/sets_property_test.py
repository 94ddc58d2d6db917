"""Whatever a problem file or a source is: well-formed problems, or a message that names it."""

import json
import os
import pathlib
import tempfile

from hypothesis import HealthCheck
from hypothesis import example
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gen_ssd.errors import UserError
from gen_ssd.problems import sets

NAMES = [
  *("problem", "question", "Problem", "Body", "Question", "answer", "Answer", "final_answer"),
  *("solution", "context", "level", "uuid", "source"),
]
TEXTS = st.text(st.characters(), max_size=8) | st.sampled_from(
  ["", " ", "One?", "one? ", "7", "#### 1,0", r"\boxed{2}", "\ud800", "\x00\x1b", "$", "Level 9"]
)
NUMBERS = st.integers() | st.floats() | st.sampled_from([10**400, -(10**4000), 7, 7.0])
VALUES = st.recursive(
  st.none() | st.booleans() | NUMBERS | TEXTS,
  lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
  max_leaves=6,
)
ROWS = st.lists(st.dictionaries(st.sampled_from(NAMES), VALUES) | VALUES, max_size=4)
few = lambda n: settings(
  derandomize=True,
  deadline=None,
  max_examples=n,
  suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
  monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def check(problems):
  assert problems
  for p in problems:
    for text in (p.uuid, p.source, p.problem, p.answer):
      assert isinstance(text, str) and text.strip() and text.encode()
    assert type(p.level) is int and p.level >= 0
  assert len({p.uuid for p in problems}) == len(problems)


def check_file(suffix, content, name=None):
  """Reads a file of that content, which must give problems or a message that names the file."""
  with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, f"p{suffix}")
    pathlib.Path(path).write_bytes(content)
    try:
      check(sets.read(f"{name}:{path}" if name else path))
    except UserError as error:
      message = str(error)
      assert message.startswith(path) and message.encode() and len(message) < 1000
      assert all(c.isprintable() for c in message), message


# ---------------------------------------------------------------- files


@given(ROWS, st.sampled_from([None, *sets.SETS]), st.booleans())
@few(250)
def test_any_rows_of_any_layout(rows, name, lines):
  with pytest.MonkeyPatch.context() as patch:
    if name:
      patch.setitem(sets.SETS[name].rows, len(rows), "for this test")
    text = "\n".join(map(json.dumps, rows)) if lines else json.dumps(rows)
    check_file(".jsonl" if lines else ".json", text.encode(), name)


@given(VALUES, VALUES, VALUES, VALUES)
@few(250)
def test_any_values_of_the_fields(problem, answer, uuid, level):
  row = {"problem": problem, "answer": answer, "uuid": uuid, "level": level}
  check_file(".jsonl", json.dumps(row).encode())


@given(st.binary(max_size=200) | TEXTS.map(lambda t: t.encode("utf-8", "surrogatepass")))
@example(b"\xef\xbb\xbf")
@example(b"[" * 100_000)
@example(b'{"a":' * 100_000)
@example(b"1" * 5000)
@example(b"\xff\xfe[\x00]\x00")
@few(100)
def test_any_bytes(content):
  for suffix in (".jsonl", ".json", ".parquet"):
    check_file(suffix, content)


def parquet(columns):
  sink = pa.BufferOutputStream()
  pq.write_table(pa.table(columns), sink)
  return sink.getvalue().to_pybytes()


WHOLE = parquet({"problem": ["One?", "Two?"], "answer": ["1", "2"], "level": [[1], None]})


@given(st.integers(0, len(WHOLE) - 1), st.binary(min_size=1, max_size=4), st.booleans())
@few(150)
def test_any_damage_to_a_parquet_file(place, new, cut):
  check_file(".parquet", WHOLE[:place] + new + (b"" if cut else WHOLE[place + len(new) :]))


CELLS = {
  pa.float64(): st.floats(),
  pa.int64(): st.integers(-(2**63), 2**63 - 1),
  pa.binary(): st.binary(max_size=4),
  pa.timestamp("ns"): st.integers(-(2**63), 2**63 - 1),
  pa.timestamp("us", "No/Where"): st.integers(-(2**63), 2**63 - 1),
  pa.list_(pa.float32()): st.lists(st.just(1.0), max_size=2),
  pa.bool_(): st.booleans(),
  pa.decimal128(5, 2): st.integers(-99, 99),
}


@given(st.data())
@few(100)
def test_any_columns_of_a_parquet_file(data):
  columns = {}
  for name in ("problem", "answer", "uuid", "level", "source"):
    kind = data.draw(st.sampled_from([None, *CELLS]))
    text = name in ("problem", "answer") and kind is None
    if text:
      columns[name] = pa.array([f"{name} 1", f"{name} 2"])
    elif kind is not None:
      cells = st.lists(CELLS[kind] | st.none(), min_size=2, max_size=2)
      columns[name] = pa.array(data.draw(cells), kind)
  check_file(".parquet", parquet(columns))


# ---------------------------------------------------------------- sources


ADDRESSES = st.lists(
  st.sampled_from([*"o/@.*?[]{}!-", "{split}", "/", "..", "a--b", "\x00", "\ud800", "main", "**"]),
  max_size=8,
).map(lambda parts: "hf://datasets/o/n" + "".join(parts))
SOURCES = (
  TEXTS
  | ADDRESSES
  | st.builds("{}:{}".format, st.sampled_from([*sets.SETS, "x"]), TEXTS | ADDRESSES)
  | st.sampled_from(["/", ".", "hf://", "hf://datasets/", "hf:", "bundled:", "x" * 5000])
)


@given(SOURCES, st.integers(0, 3), st.integers())
@few(300)
def test_any_source(source, count, seed):
  try:
    name, file = sets.parts(source)
  except UserError as right:
    assert str(right).isprintable()
    for name in (sets.read, lambda s: sets.load(s, "test")):
      with pytest.raises(UserError, match="source is .*: it must be "):
        name(source)
    return
  with pytest.raises(UserError) as caught:  # offline there is no file of the hub
    sets.load(source, "test", count, seed)
  known = 0 <= seed < 2**32
  assert (file.replace("{split}", "test") if known else "problems.seed is") in str(caught.value)
