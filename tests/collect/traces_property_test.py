"""Whatever becomes of the files of a run: a collection resumes, and its page is drawn."""

import contextlib
import copy
import io
import json
import pathlib
import shutil
import tempfile

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import pytest

from gen_ssd import rows as rows_lib
from gen_ssd.collect import tables
from gen_ssd.collect import traces
from gen_ssd.errors import UserError
from gen_ssd.problems.answers import Grade
from gen_ssd.problems.problem import Problem
from gen_ssd.report import page

QUICK = settings(max_examples=120, derandomize=True, deadline=None)
JSON = st.recursive(
  st.none()
  | st.booleans()
  | st.integers()
  | st.sampled_from([-1, 10**9, 2**63, 10**400, "\ud800", "\x1b[2J", "3", 1e308, 1e-320])
  | st.floats()
  | st.text(max_size=6),
  lambda inner: (
    st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
  ),
  max_leaves=8,
)


def _trace(uuid, attempt=0):
  chunk = {"count": 2, "choice": 1, "score": 0.2, "scores": [0.4, 0.2], "resamples": 0}
  lost = {"chunk": 0, "branch": 0, "resample": 0, "ids": [7], "count": 1, "score": 0.4}
  return traces.Trace(
    uuid,
    attempt,
    ids=[4, 5],
    teacher_nlls=[0.5, 1.5],
    student_nlls=[0.25, 0.5],
    student_ranks=[1, 2],
    step_starts=[0],
    chunks=[chunk],
    lost=[{**lost, "student_nll": 0.5}],
    score_sum=0.2,
    teacher_tokens=4,
    rounds=1,
  )


def _run(folder):
  """A run with one arm, of two shards."""
  home = folder / "traces" / "abc"
  shards = traces.Shards(home)
  for names in ("ab", "cd"):
    rows, lost = [], []
    for uuid in names:
      trace, problem = _trace(uuid), Problem(uuid, "made", "train", f"What is {uuid}?", "7", 2)
      chunks = [{**c, "text": "4 5"} for c in trace.chunks]
      verdict = "right" if uuid in "ad" else "wrong"
      rows.append(traces.row(trace, problem, chunks, "4 5", "ended", Grade(verdict, "rule")))
      lost += [{"uuid": uuid, "attempt": 0, **x, "text": "7"} for x in trace.lost]
    shards.write(rows, lost, [_trace("e"), None])
  arm = folder / "arms" / "gen_ssd"
  arm.mkdir(parents=True)
  result = {"accuracy": 0.5, "ci": [0.4, 0.6], "n": 4, "seeds": [0.4, 0.6], "kept": 2}
  files = {
    folder / "config.json": {"name": "run", "select": {"k": 2, "c": 8}, "arms": {"gen_ssd": {}}},
    folder / "results.json": {
      "arms": {"gen_ssd": result, "random": result},
      "paired": {"gen_ssd-random": {"difference": 0.1, "ci": [-0.1, 0.2], "n": 4}},
      "tests": {"one": {"arms": {"gen_ssd": result}}},
    },
    arm / "traces.json": {"collection": "abc"},
    arm / "kept.json": [["a", 0], ["d", 0]],
  }
  for path, value in files.items():
    path.write_text(json.dumps(value))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  _run(home := tmp_path_factory.mktemp("run"))
  return home


@contextlib.contextmanager
def copied(made):
  with tempfile.TemporaryDirectory() as folder:
    yield pathlib.Path(shutil.copytree(made, pathlib.Path(folder) / "run"))


def _places(value, place=()):
  """The places of all values within a JSON value."""
  yield place
  inner = enumerate(value) if isinstance(value, list) else ()
  for key, x in value.items() if isinstance(value, dict) else inner:
    yield from _places(x, (*place, key))


def _changed(draw, value):
  """The JSON value with one value within it removed, or replaced by another."""
  place = draw(st.sampled_from([*_places(value)]))
  if not place:
    return draw(JSON)
  value = copy.deepcopy(value)
  at = value
  for key in place[:-1]:
    at = at[key]
  if draw(st.booleans()):
    del at[place[-1]]
  else:
    at[place[-1]] = draw(JSON)
  return value


def _mutate(draw, path):
  """Damages a file: bytes, lines, or values in its JSON."""
  data = path.read_bytes()
  lines = data.splitlines(keepends=True)
  how = draw(st.sampled_from(["bytes", "cut", "lines", "json", "json", "json", "deep", "gone"]))
  if how == "bytes":
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 5))):
      data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
  elif how == "cut":
    data = data[: draw(st.integers(0, len(data)))]
  elif how == "lines":
    lines = draw(st.lists(st.sampled_from([*lines, b"\xff\n", b"null\n"]), max_size=4))
    data = b"".join(lines)
  elif how == "json":
    i = draw(st.integers(0, len(lines) - 1))
    lines[i] = json.dumps(_changed(draw, json.loads(lines[i]))).encode() + b"\n"
    data = b"".join(lines)
  elif how == "deep":
    data = b"[" * 5000 + b"]" * 5000 + b"\n" + data
  path.unlink() if how == "gone" else path.write_bytes(data)


@QUICK
@given(st.data())
def test_a_damaged_collection_resumes_with_sound_rows_and_complains_once(made, data):
  with copied(made) as run:
    folder = run / "traces" / "abc"
    names = data.draw(
      st.sets(st.sampled_from(sorted(p.name for p in folder.iterdir())), min_size=1)
    )
    for name in sorted(names):
      _mutate(data.draw, folder / name)
    with contextlib.redirect_stderr(io.StringIO()):
      found, in_flight = traces.Shards(folder).resume(2)
    assert all(map(rows_lib.is_row, found))
    assert in_flight is None or all(t is None or isinstance(t, traces.Trace) for t in in_flight)
    with contextlib.redirect_stderr(io.StringIO()) as said:
      assert json.dumps(traces.Shards(folder).resume(2)[0]) == json.dumps(found)
    assert said.getvalue() == ""
    tables.write(run, found, found, [])  # rows are fit for what reads them


@QUICK
@given(st.data())
def test_the_page_of_a_damaged_run_is_drawn_or_its_config_is_named(made, data):
  with copied(made) as run:
    files = sorted(str(p.relative_to(run)) for p in run.rglob("*") if p.is_file())
    for name in sorted(data.draw(st.sets(st.sampled_from(files), min_size=1, max_size=4))):
      _mutate(data.draw, run / name)
    try:
      text = page.write_report(run).read_text(encoding="utf-8")
      assert text.isprintable() or not {*text} & {*"\x00\x1b\x07\u202e"}
      assert len(text) < 200_000
    except UserError as error:
      assert "config.json" in str(error)
