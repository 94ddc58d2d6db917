"""Traces that go on from others: where they are cut, and what comes after the cut."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

from gen_ssd import rows as rows_lib
from gen_ssd.collect import loop
from gen_ssd.collect import prefixes
from gen_ssd.collect import tables
from gen_ssd.collect import traces
from tests.collect import loop_test

setting = loop_test.setting  # a tiny pair and its problems
SELECT = dataclasses.replace(loop_test.SELECT, after="first")
LIMIT = 5.8  # some chunks and some traces have no candidate below


@pytest.mark.parametrize(
  "share,ends,step_ends,given",
  [
    (0.0, (), (), 0),
    (0.5, (), (), 4),
    (0.99, (), (), 7),
    (1.0, (), (), 7),  # never the last token
    (1.0, (3, 5), (), 3),  # nor one that ends a trace for another writer
    (0.5, (5,), (), 4),
    (0.9, (), (2, 4), 5),
    (0.6, (), (2, 4), 3),
    (0.25, (), (2, 4), 0),  # before the first end of a step
    (1.0, (3,), (2, 4), 3),
  ],
)
def test_a_trace_is_cut_at_a_share_of_its_tokens(share, ends, step_ends, given):
  assert prefixes.cut([0, 1, 2, 3, 4, 5, 6, 7], share, ends, step_ends) == given


def test_nothing_is_given_of_a_trace_without_tokens_or_with_one():
  assert [prefixes.cut(ids, 1.0) for ids in ([], [4])] == [0, 0]


def test_places_are_drawn_uniformly_from_the_name_of_the_new_trace(setting):
  writer, _ = setting
  source = {"uuid": "p", "ids": [*range(100, 200)], "chunks": [{"count": 100}]}
  select = dataclasses.replace(SELECT, cut=(0.2, 0.6))
  places = lambda **more: [
    prefixes.Prefixes(writer, dataclasses.replace(select, **more)).begun(source, i).given_tokens
    for i in range(200)
  ]
  found = places()
  assert found == places(attempts=7, slots=2) != places(seed=1)  # nothing else counts
  assert found[::-1] == [
    prefixes.Prefixes(writer, select).begun(source, i).given_tokens for i in range(199, -1, -1)
  ]
  assert 20 <= min(found) < 24 and 56 < max(found) <= 60 and 38 < np.mean(found) < 42


def test_steps_end_a_given_part(setting):
  writer, _ = setting
  select = dataclasses.replace(SELECT, cut=(0.9, 0.9))
  ids = writer.teacher_tokenizer.encode("Tom has 3 pens . Tom has", add_special_tokens=False)
  source = {"uuid": "p", "ids": [*ids, 9], "chunks": [{"count": len(ids) + 1}]}
  begun = lambda **more: prefixes.Prefixes(writer, dataclasses.replace(select, **more)).begun(
    source, 0
  )
  stop = begun(delimiters=(".",)).ids
  assert 0 < len(stop) < len(begun().ids)
  assert writer.teacher_tokenizer.decode(stop).endswith(".")
  both = begun(delimiters=(".",), step_delimiters=(" has",)).ids  # those of steps count
  assert writer.teacher_tokenizer.decode(both).endswith("has")


@pytest.fixture(scope="module")
def whole(setting, tmp_path_factory):
  """Traces to go on from; some were pruned."""
  return loop_test.run(setting, tmp_path_factory.mktemp("whole"), threshold=LIMIT)


def given(rows):
  return {(r["uuid"], r["attempt"]): r for r in rows}


def run(setting, folder, rows, select=SELECT, **more):
  writer = dataclasses.replace(setting[0], given=given(rows))
  return loop_test.run(setting, folder, select, writer=writer, **{"threshold": LIMIT} | more)


@pytest.mark.parametrize("chunks", [0, 1, 3, 9])
def test_a_trace_continued_from_a_prefix_of_itself_is_itself(
  setting, whole, tmp_path, monkeypatch, chunks
):
  rows, size = whole, SELECT.c
  at = lambda ids, *_: min(chunks, max(len(ids) - 1, 0) // size) * size
  monkeypatch.setattr(prefixes, "cut", at)
  found = run(setting, tmp_path, rows)
  assert {r["stop"] for r in rows} >= {"ended", "length", "pruned"}
  for r, old in zip(found, rows, strict=True):
    n = r["given_tokens"]
    assert n == at(old["ids"]) and all(r[x] == old[x] for x in ("uuid", "ids", "text", "stop"))
    assert r["verdict"] == old["verdict"]
    for name in ("teacher_nlls", "student_nlls"):  # of what was written here
      np.testing.assert_allclose(r[name], old[name][n:], atol=1e-3)
    assert r["student_ranks"] == old["student_ranks"][n:]
    assert r["step_starts"] == [i for i in old["step_starts"] if i >= n]
    drawn = lambda row: [(c["count"], c["text"]) for c in row["chunks"]]
    assert drawn(r) == drawn(old)
    before = n // size
    assert [c["scores"] for c in r["chunks"][:before]] == [[None]] * before
    saved = old["teacher_tokens"] - r["teacher_tokens"]  # what was given is not counted again
    assert (saved == 0) if not before else (saved >= n)
    assert rows_lib.is_row(json.loads(json.dumps(r)))


@pytest.fixture(scope="module")
def continued(setting, whole, tmp_path_factory):
  """Traces that go on from `whole` with other draws, twice each; some are written again."""
  folder = tmp_path_factory.mktemp("continued")
  select = dataclasses.replace(SELECT, seed=1, attempts=2, pruned="retry")
  sources = [{**r, "attempt": a} for r in whole for a in range(2)]
  return select, sources, run(setting, folder, sources, select), folder


def test_new_traces_begin_with_the_given_part(continued):
  select, sources, rows, _ = continued
  ids, first = {r["uuid"]: r["ids"] for r in sources}, given(sources)
  assert {a for _, a in first} == {0, 1} and {r["attempt"] for r in rows} == {0, 1, 2, 3}
  for r in rows:
    n, old = r["given_tokens"], ids[r["uuid"]]
    assert r["ids"][:n] == old[:n] and n <= max(len(old) - 1, 0)
    assert len(old) // 2 <= n or len(old) < 2
    assert len(r["ids"]) == r["num_tokens"] == n + len(r["teacher_nlls"]) <= select.max_tokens
    mean = np.mean(r["student_nlls"]) if r["student_nlls"] else None
    assert r["student_nll"] == (mean and pytest.approx(mean, abs=1e-4))
  pairs = [[*some] for _, some in itertools.groupby(rows, lambda r: r["uuid"])]
  assert any(len({r["given_tokens"] for r in some}) > 1 for some in pairs)  # each cut elsewhere
  assert sum(r["ids"] != ids[r["uuid"]] for r in rows) > len(rows) / 2


@pytest.mark.parametrize("deaths", [[1], [3, 1], [5]])
def test_killed_it_ends_in_the_same_files(setting, continued, tmp_path, monkeypatch, deaths):
  select, sources, rows, folder = continued
  writer = dataclasses.replace(setting[0], given=given(sources))
  more = dict(writer=writer, threshold=LIMIT, deaths=deaths)
  assert loop_test.killed(setting, tmp_path, monkeypatch, select, **more) == rows
  assert loop_test.files(tmp_path) == loop_test.files(folder)


def test_only_traces_with_a_source_are_written_and_finished_ones_are_read(setting, whole, tmp_path):
  rows = [r for r in whole if r["uuid"] != whole[0]["uuid"]]
  problems = setting[1][:4]
  found = run(setting, tmp_path, rows, only=problems)
  assert [r["uuid"] for r in found] == [p.uuid for p in problems[1:]]
  assert loop.finished(problems, SELECT, tmp_path, given(rows)) == found
  assert loop.finished(problems, SELECT, tmp_path, given(whole)) is None


def test_tables_say_how_much_was_given(continued, whole):
  _, _, rows, _ = continued
  kept = traces.kept(rows, keep="all")
  file = tables.traces(rows).to_pylist()
  assert sum(sum(r["given_tokens"]) for r in file) == sum(r["given_tokens"] for r in rows) > 0
  assert tables._kept(kept[0], "")["given_tokens"] == kept[0]["given_tokens"]
  assert tables._kept(whole[0], "")["given_tokens"] == 0
  assert not rows_lib.is_row({n: x for n, x in whole[0].items() if n != "given_tokens"})
