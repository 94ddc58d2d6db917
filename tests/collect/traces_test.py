"""Trace files: fences, damage, resume, the filter for training and the table."""

import dataclasses
import json

import pytest

from gen_ssd import rows as rows_lib
from gen_ssd import workdir as workdir_lib
from gen_ssd.collect import traces
from gen_ssd.problems import answers
from gen_ssd.problems import problem as problem_lib


def row(uuid, attempt=0, verdict="right", stop="ended", nll=1.0, text="text", graded_by="rule"):
  """A finished row as traces.row makes it."""
  problem = problem_lib.Problem(uuid, "made", "train", f"What is {uuid}?", "7", 2)
  trace = traces.Trace(
    uuid,
    attempt,
    ids=[4, 5, 6],
    teacher_nlls=[0.5, 1.5, 1.0],
    student_nlls=[nll] * 3,
    chunks=[
      {
        "count": 2,
        "choice": 1,
        "score": 0.25,
        "scores": [0.5, 0.25, None],
        "resamples": 1,
        "text": "4 5",
      },
      {
        "count": 1,
        "choice": 0,
        "score": 0.5,
        "scores": [0.5, 0.75, 0.75],
        "resamples": 0,
        "text": " 6",
      },
    ],
    teacher_tokens=14,
    rounds=3,
  )
  return traces.row(trace, problem, trace.chunks, text, stop, answers.Grade(verdict, graded_by))


# ---------------------------------------------------------------- rows


def test_a_row_by_hand():
  found = row("ab", 1, nll=2.0)
  assert (found["uuid"], found["attempt"], found["level"], found["answer"]) == ("ab", 1, 2, "7")
  assert (found["num_tokens"], found["teacher_tokens"], found["rounds"]) == (3, 14, 3)
  assert (found["student_nll"], found["teacher_nll"]) == (2.0, 1.0)
  assert (found["verdict"], found["graded_by"]) == ("right", "rule")
  assert row("ab", verdict="unverifiable", graded_by="crash")["graded_by"] == "crash"
  assert json.loads(json.dumps(found)) == found


def test_a_row_without_student_or_tokens():
  problem = problem_lib.Problem("ab", "made", "train", "?", "7")
  found = traces.row(
    traces.Trace("ab", 0), problem, [], "", "pruned", answers.Grade("wrong", "rule")
  )
  assert (found["student_nll"], found["teacher_nll"], found["num_tokens"]) == (None, None, 0)


# ---------------------------------------------------------------- what is trained on

ROWS = [
  row("b", 1, nll=2.0),
  row("b", 0, nll=3.0),
  row("a", 1, nll=1.0, verdict="wrong"),
  row("a", 0, nll=4.0),
  row("c", 0, verdict="unverifiable"),
  row("d", 0, stop="length"),
  row("e", 0, stop="pruned", verdict="wrong"),
  row("f", 1, nll=5.0),
  row("f", 0, nll=5.0),
]


@pytest.mark.parametrize(
  "keep,want",
  [("right", ["a0", "b0", "b1", "f0", "f1"]), ("all", ["a0", "a1", "b0", "b1", "c0", "f0", "f1"])],
)  # only what ended by itself
@pytest.mark.parametrize("order", [1, -1])
def test_kept(keep, want, order):
  found = traces.kept(ROWS[::order], keep=keep)
  assert [f"{r['uuid']}{r['attempt']}" for r in found] == want


def test_prefixes_of_pruned_traces_are_kept_when_asked_for():
  empty = {**row("g", stop="pruned", verdict="wrong"), "ids": []}
  names = lambda **how: [f"{r['uuid']}{r['attempt']}" for r in traces.kept([empty, *ROWS], **how)]
  assert names(keep="right", pruned="keep") == ["a0", "b0", "b1", "e0", "f0", "f1"]
  for pruned in ("drop", "retry"):
    assert names(keep="right", pruned=pruned) == names(keep="right")


# ---------------------------------------------------------------- files

FLIGHT = [
  traces.Trace(
    "cd",
    2,
    ids=[4, 9],
    teacher_nlls=[0.125, 2.5],
    student_nlls=[0.1, 0.30000001],
    student_ranks=[1, 100],
    step_starts=[0],
    chunks=[{"count": 2, "choice": 0, "score": 0.2, "scores": [0.2], "resamples": 0}],
    lost=[
      {
        "chunk": 0,
        "branch": 1,
        "resample": 0,
        "ids": [4],
        "count": 1,
        "score": None,
        "student_nll": 0.5,
      }
    ],
    score_sum=0.2,
    resample=1,
    teacher_tokens=12,
    rounds=3,
  ),
  None,
]


def written(folder):
  """Two fences: rows a, b, c and d (the last two of the second), one trace in flight."""
  shards = traces.Shards(folder)
  rows = [row("a"), row("b", text="tränen\u2028"), row("c"), row("d")]
  shards.write(rows[:2], [{"uuid": "a", "branch": 1}], [None, None])
  shards.write(rows[2:], [], FLIGHT)
  return rows


def test_a_resumed_collection_is_what_was_written(tmp_path):
  want = written(tmp_path / "new")
  shards = traces.Shards(tmp_path / "new")
  assert shards.resume() == (want, FLIGHT) and shards.count == 2
  assert all(isinstance(t, traces.Trace) for t in FLIGHT if t)
  shards.write([row("e")], [], [None, None])  # and it goes on behind
  assert traces.Shards(tmp_path / "new").resume() == ([*want, row("e")], [None, None])
  assert not list((tmp_path / "new").glob("*.partial"))


def test_nothing_there_yet(tmp_path):
  assert traces.Shards(tmp_path / "nowhere").resume() == ([], None)
  assert traces.Shards(tmp_path).resume() == ([], None)


def test_lost_candidates_are_beside_the_traces(tmp_path):
  written(tmp_path)
  assert (tmp_path / "candidates-00000.jsonl").read_text() == '{"uuid": "a", "branch": 1}\n'
  assert (tmp_path / "candidates-00001.jsonl").read_text() == ""


def test_what_a_kill_left_after_the_last_fence_does_not_count_and_is_overwritten(tmp_path, capsys):
  want = written(tmp_path)
  (tmp_path / "traces-00002.jsonl").write_text(json.dumps(row("late")) + "\n")
  (tmp_path / "traces-00003.jsonl.partial").write_text("half a li")
  shards = traces.Shards(tmp_path)
  assert shards.resume() == (want, FLIGHT)
  shards.write([row("e")], [], [None, None])
  assert traces.Shards(tmp_path).resume()[0] == [*want, row("e")]
  assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
  "damage,lost",
  [
    (lambda lines: [lines[0], lines[1][:40]], "d"),  # cut off by a full disk
    (lambda lines: [b"\x00\xff\xfe\x80 garbage", lines[1]], "c"),
    (lambda lines: [b"17", lines[1]], "c"),  # JSON, but no trace
    (lambda lines: [b'{"uuid": "c"}', lines[1]], "c"),
    (lambda lines: [b"\xff", b"\xfe"], "cd"),
  ],
)
def test_a_damaged_shard_is_named_kept_and_mended(tmp_path, capsys, damage, lost):
  want = written(tmp_path)
  path = tmp_path / "traces-00001.jsonl"
  bad = b"\n".join(damage(path.read_bytes().splitlines()))
  path.write_bytes(bad)
  found, flight = traces.Shards(tmp_path).resume()
  assert found == [r for r in want if r["uuid"] not in lost] and flight == FLIGHT
  said = capsys.readouterr().err
  assert f"{path} is damaged in {len(lost)} line" in said and "traces-00000" not in said
  assert (tmp_path / "traces-00001.jsonl.damaged").read_bytes() == bad
  assert traces.Shards(tmp_path).resume() == (found, FLIGHT)  # said once: it is mended
  assert capsys.readouterr().err == ""


def test_a_missing_shard_is_named(tmp_path, capsys):
  want = written(tmp_path)
  (tmp_path / "traces-00000.jsonl").unlink()
  assert traces.Shards(tmp_path).resume()[0] == want[2:]
  assert "traces-00000.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize(
  "text",
  [
    b"",
    b'{"shards": 2, "ro',
    b"\xff\xfe\x00 garbage",
    b"[]",
    b"[" * 10**5,
    b"{}",
    b'{"shards": 2, "rows": [{"uuid": "a", "colour": 3}]}',
  ],
)
def test_a_damaged_in_flight_file_loses_only_what_was_under_way(tmp_path, capsys, text):
  want = written(tmp_path)
  (tmp_path / "in_flight.json").write_bytes(text)
  shards = traces.Shards(tmp_path)
  assert shards.resume() == (want, None) and shards.count == 2
  said = capsys.readouterr().err
  assert f"{tmp_path / 'in_flight.json'} is damaged" in said


def drop(name):
  return lambda r: r.pop(name)


def put(name, value):
  return lambda r: r.update({name: value})


BAD_ROWS = {
  **{f"no {name}": drop(name) for name in sorted(traces.Row.__required_keys__)},
  "a text for a number": put("level", "2"),
  "true for a number": put("attempt", True),
  "a number for a text": put("uuid", 7),
  "a negative attempt": put("attempt", -1),
  "a number beyond 64 bits": put("level", 2**63),
  "half a character": put("text", "\ud83d"),
  "a text for a list": put("ids", "456"),
  "a float among ids": put("ids", [4, 5.0, 6]),
  "a negative id": put("ids", [4, -5, 6]),
  "an id beyond 32 bits": put("ids", [4, 5, 2**31]),
  "an id too few": put("ids", [4, 5]),
  "a count too many": put("num_tokens", 4),
  "given tokens with an nll": put("given_tokens", 1),
  "more given tokens than there are": lambda r: r.update(EMPTY, given_tokens=4),
  "a text for given tokens": put("given_tokens", "0"),
  "an nll too few": put("teacher_nlls", [0.5, 1.0]),
  "an nll that is none": put("teacher_nlls", [0.5, None, 1.0]),
  "an nll too many of the student": put("student_nlls", [1.0] * 4),
  "a rank too many": put("student_ranks", [1] * 4),
  "a step behind the end": put("step_starts", [0, 3]),
  "no chunks": put("chunks", []),
  "a chunk that is none": lambda r: r["chunks"].append(None),
  "a chunk without text": lambda r: r["chunks"][0].pop("text"),
  "a choice that no candidate has": lambda r: r["chunks"][0].update(choice=3),
  "a score that is a text": lambda r: r["chunks"][0]["scores"].append("0.5"),
  "a score that is huge": lambda r: r["chunks"][0]["scores"].append(10**400),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_row_that_is_not_well_formed_is_a_damaged_line(tmp_path, capsys, name):
  want = written(tmp_path)
  path = tmp_path / "traces-00001.jsonl"
  bad = json.loads(path.read_text().splitlines()[0])
  BAD_ROWS[name](bad)
  path.write_text(json.dumps(bad) + "\n" + json.dumps(want[3]) + "\n")
  assert traces.Shards(tmp_path).resume() == ([*want[:2], want[3]], FLIGHT)
  assert f"{path} is damaged in 1 line" in capsys.readouterr().err


def test_what_a_run_writes_is_well_formed():
  assert rows_lib.is_row({**row("a"), "ids": [], "num_tokens": 0} | EMPTY)
  one = {**FLIGHT[0].lost[0], "uuid": "a", "attempt": 0, "text": ""}
  assert rows_lib.is_row(row("tränen 👩")) and rows_lib.is_lost(one)
  for name in one:
    assert not rows_lib.is_lost({k: v for k, v in one.items() if k != name})
    assert not rows_lib.is_lost({**one, name: {}})
  assert not rows_lib.is_lost({**one, "count": 2}) and not rows_lib.is_lost({**one, "branch": -1})


EMPTY = {"teacher_nlls": [], "student_nlls": [], "chunks": []}


@pytest.mark.parametrize("count", [-1, 0, 1, 4, 10**9, True, "2", 2.0, None, [2]])
def test_a_number_of_shards_that_cannot_be_is_noticed(tmp_path, capsys, count):
  want = written(tmp_path)
  state = json.loads((tmp_path / "in_flight.json").read_text())
  (tmp_path / "traces-00002.jsonl").write_text("")
  (tmp_path / "in_flight.json").write_text(json.dumps({**state, "shards": count}))
  assert workdir_lib.finished_rows(tmp_path) == want
  shards = traces.Shards(tmp_path)
  assert shards.resume() == (want, None) and shards.count == 3
  assert "in_flight.json is damaged" in capsys.readouterr().err


def slot(name, value):
  return lambda slots: slots[0].update({name: value})


BAD_SLOTS = {
  "not a list": lambda slots: {},
  "one too many": lambda slots: slots.append(None),
  "one too few": lambda slots: slots.pop(),
  "a number": lambda slots: slots.__setitem__(1, 3),
  **{f"another kind of {f.name}": slot(f.name, {}) for f in dataclasses.fields(traces.Trace)},
  "a field of another": slot("colour", 3),
  "a negative resample": slot("resample", -1),
  "ids and nlls of other lengths": slot("ids", [4]),
  "a candidate of a later chunk": lambda slots: slots[0]["lost"][0].update(chunk=2),
  "a candidate without ids": lambda slots: slots[0]["lost"][0].pop("ids"),
}


@pytest.mark.parametrize("name", BAD_SLOTS)
def test_damaged_slots_start_again_and_that_is_said_once(tmp_path, capsys, name):
  want = written(tmp_path)
  path = tmp_path / "in_flight.json"
  state = json.loads(path.read_text())
  other = BAD_SLOTS[name](state["slots"])
  bad = json.dumps({**state, "slots": other} if other == {} else state)
  path.write_text(bad)
  assert traces.Shards(tmp_path).resume(2) == (want, None)
  assert f"{path} is damaged" in capsys.readouterr().err
  assert (tmp_path / "in_flight.json.damaged").read_text() == bad
  assert traces.Shards(tmp_path).resume(2) == (want, None)
  assert capsys.readouterr().err == ""


def test_trace_fields_survive_json():
  assert traces.Trace(**json.loads(json.dumps(dataclasses.asdict(FLIGHT[0])))) == FLIGHT[0]
