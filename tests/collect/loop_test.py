"""The host loop: refill, fences, resume to the identical files, errors that name the problem.

Long, because its tests share one collection.
"""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from gen_ssd import config
from gen_ssd import folders
from gen_ssd import mesh
from gen_ssd.collect import loop
from gen_ssd.collect import posthoc
from gen_ssd.collect import writer as writer_lib
from gen_ssd.engine import step as step_lib
from gen_ssd.models import hf
from gen_ssd.models import tokenization
from gen_ssd.models.architecture import Layout
from gen_ssd.problems import answers
from gen_ssd.problems import bundled
from tests import tiny

SELECT = config.Select(
  k=3,
  c=4,
  slots=8,
  prompt=40,
  max_tokens=24,
  shard_rounds=3,
  loop_window=8,
  threshold=7.0,
  resamples=1,
)


class Killed(Exception):
  pass


@pytest.fixture(scope="module")
def setting():
  """A random-weight pair under the bundled tokenizer, and 20 problems."""
  mesh.start(devices=jax.devices()[:1])
  tokenizer = tokenization.load_tokenizer(hf.locate("bundled/teacher"))
  sharp = lambda name, x: x * 3 if name in ("head", "embed") else x
  writer = writer_lib.Writer(
    teacher=tiny.build(tiny.TEACHER, change=sharp),
    teacher_tokenizer=tokenizer,
    ends=(tokenizer.eos_token_id, 7, 9, 11, 13),
    student=tiny.build(tiny.STUDENT, Layout(tensor_axis=None)),
    student_tokenizer=tokenizer,
  )
  return writer, bundled.problems("test", 20)


def run(setting, folder, select=SELECT, writer=None, only=None, threshold=7.0):
  with answers.Grader() as grader:
    return loop.collect(
      writer or setting[0],
      (only or setting[1]),
      select,
      folder,
      grader=grader,
      threshold=threshold,
    )


def files(folder):
  return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def whole(setting, tmp_path_factory):
  folder = tmp_path_factory.mktemp("whole")
  return run(setting, folder), folder


def killed(setting, folder, monkeypatch, *args, deaths, **kwargs):
  """`run`, killed before as many rounds as `deaths` say."""
  real = step_lib.select_step
  for at in deaths:
    left = [at]

    def step(*args, **kwargs):
      left[0] -= 1
      if left[0] < 0:
        raise Killed
      return real(*args, **kwargs)

    monkeypatch.setattr(step_lib, "select_step", step)
    with pytest.raises(Killed):
      run(setting, folder, *args, **kwargs)
    monkeypatch.setattr(step_lib, "select_step", real)
  return run(setting, folder, *args, **kwargs)


@pytest.fixture(scope="module")
def retried(setting, tmp_path_factory):
  folder = tmp_path_factory.mktemp("retried")
  select_ = dataclasses.replace(SELECT, pruned="retry", attempts=2, retries=2, shard_rounds=3)
  return select_, run(setting, folder, select_, only=setting[1][:8], threshold=5.6), folder


def test_every_problem_gets_its_trace_and_every_candidate_is_kept(setting, whole):
  rows, folder = whole
  assert [r["uuid"] for r in rows] == [p.uuid for p in setting[1]]
  lost = {}
  for path in folder.glob("candidates-*.jsonl"):
    for line in path.read_text().splitlines():
      candidate = json.loads(line)
      lost.setdefault(candidate["uuid"], []).append(candidate)
  assert {r["stop"] for r in rows} >= {"ended", "length"}
  for r in rows:
    assert r["num_tokens"] == len(r["ids"]) == sum(c["count"] for c in r["chunks"])
    assert len(r["teacher_nlls"]) == r["num_tokens"] <= SELECT.max_tokens
    spent = sum(x["count"] for x in lost.get(r["uuid"], [])) + r["num_tokens"]
    assert spent == r["teacher_tokens"]
    for c in r["chunks"]:
      assert len(c["scores"]) == 3
      valid = [s for s in c["scores"] if s is not None]
      assert c["score"] == c["scores"][c["choice"]] == min(valid) <= 7.0
    joined = "".join(c["text"] for c in r["chunks"])
    assert "".join(joined.split()) == "".join(r["text"].split())
  assert any(c["resamples"] for r in rows for c in r["chunks"]) or any(
    r["stop"] == "pruned" for r in rows
  )


def test_rows_say_what_graded_them_after_a_resume_too(setting, whole, tmp_path, monkeypatch):
  late = answers.Grade("unverifiable", "timeout")
  monkeypatch.setattr(answers.Grader, "grades", lambda _, pairs: [late] * len(pairs))
  rows = run(setting, tmp_path, only=setting[1][:8])
  by_stop = {(r["stop"] == "ended", r["verdict"], r["graded_by"]) for r in rows}
  assert by_stop == {(True, *late), (False, "wrong", "rule")}
  assert loop.finished(setting[1][:8], SELECT, tmp_path) == rows
  assert {r["graded_by"] for r in whole[0]} <= {"rule", "math-verify"}


def test_killed_at_every_round_it_ends_in_identical_files(setting, whole, tmp_path, monkeypatch):
  """A kill before, at and after fences; twice in one run as well."""
  rows, folder = whole
  real = step_lib.select_step
  rounds = []
  monkeypatch.setattr(step_lib, "select_step", lambda *a, **k: rounds.append(1) or real(*a, **k))
  run(setting, tmp_path / "count")
  total = len(rounds)
  assert total > 2 * SELECT.shard_rounds
  for deaths in ([1], [SELECT.shard_rounds], [SELECT.shard_rounds + 2], [total - 1], [4, 5]):
    place = tmp_path / "-".join(map(str, deaths))
    for at in deaths:
      left = [at]

      def step(*args, **kwargs):
        if not left[0]:
          raise Killed
        left[0] -= 1
        return real(*args, **kwargs)

      monkeypatch.setattr(step_lib, "select_step", step)
      with pytest.raises(Killed):
        run(setting, place)
    monkeypatch.setattr(step_lib, "select_step", real)
    assert run(setting, place) == rows
    assert files(place) == files(folder), deaths


def test_a_running_mean_and_softmin_continue_exactly(setting, tmp_path, monkeypatch):
  select_ = dataclasses.replace(SELECT, running_margin=0.1, selector="softmin", beta=2.0)
  rows = run(setting, tmp_path / "whole", select_)
  assert any(r["stop"] == "pruned" and r["chunks"] for r in rows)
  assert any(
    c["score"] > min(s for s in c["scores"] if s is not None) for r in rows for c in r["chunks"]
  )
  assert (
    killed(setting, tmp_path / "killed", monkeypatch, select_, deaths=[SELECT.shard_rounds + 1])
    == rows
  )
  assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_candidates_at_peaks_and_of_the_teachers_half_continue_exactly(
  setting, tmp_path, monkeypatch
):
  select_ = dataclasses.replace(SELECT, teacher_share=0.3, branch_entropy=1.0)
  rows = run(setting, tmp_path / "whole", select_)
  chunks = [c for r in rows for c in r["chunks"]]
  assert {len(c["scores"]) for c in chunks} == {1, 3}  # candidates of each chunk
  assert any(c["score"] > min(s for s in c["scores"] if s is not None) for c in chunks)
  assert killed(setting, tmp_path / "killed", monkeypatch, select_, deaths=[4]) == rows
  assert files(tmp_path / "killed") == files(tmp_path / "whole")


@pytest.mark.parametrize("deaths", [[4, 7], [8, 1, 2], [12]])
def test_pruned_problems_are_tried_again_also_when_killed(
  setting, retried, deaths, tmp_path, monkeypatch
):
  select_, rows, folder = retried
  by_key = {(r["uuid"], r["attempt"]): r for r in rows}
  for (uuid, attempt), r in by_key.items():
    again = r["stop"] == "pruned" and attempt < select_.attempts * select_.retries
    assert ((uuid, attempt + select_.attempts) in by_key) == again or attempt >= 4
    assert attempt < 2 or by_key[uuid, attempt - 2]["stop"] == "pruned"
  assert {0, 2, 4} <= {r["attempt"] for r in rows} <= {0, 1, 2, 3, 4, 5}
  assert {r["stop"] == "pruned" for r in rows if r["attempt"] > 3} == {True, False}
  assert (
    killed(
      setting, tmp_path, monkeypatch, select_, only=setting[1][:8], threshold=5.6, deaths=deaths
    )
    == rows
  )
  assert files(tmp_path) == files(folder)


def test_nothing_is_chosen_after_the_thinking_part(setting, whole, tmp_path, monkeypatch):
  seen = [i for r in whole[0] for i in r["ids"][:9]]
  mark = max({*seen}, key=seen.count)
  monkeypatch.setattr(tokenization, "closing_id", lambda tokenizer: mark)
  covers = dataclasses.replace(SELECT, covers="thinking")
  rows = run(setting, tmp_path / "whole", covers)
  free = 0
  for r in rows:
    at = 0
    for c in r["chunks"]:
      if mark in r["ids"][:at]:
        assert (c["choice"], c["score"], c["scores"]) == (0, None, [None])
        free += 1
      else:
        assert len(c["scores"]) == 3 and c["score"] <= 7.0
      at += c["count"]
    assert r["stop"] != "pruned" or mark not in r["ids"]
  assert free > 4
  lost = [
    json.loads(line)
    for path in (tmp_path / "whole").glob("candidates-*.jsonl")
    for line in path.read_text().splitlines()
  ]
  assert sum(r["teacher_tokens"] - r["num_tokens"] for r in rows) == sum(x["count"] for x in lost)
  assert killed(setting, tmp_path / "killed", monkeypatch, covers, deaths=[4, 1]) == rows
  assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_the_scoring_student_reads_the_prompt_of_either_template(setting, tmp_path):
  other = tokenization.load_tokenizer(hf.locate("bundled/student"))
  other.chat_template = other.chat_template.replace("<user>", "<assistant><user>")
  writer = dataclasses.replace(setting[0], student_tokenizer=other)
  alike, teacher, student = (
    [
      r["student_nlls"]
      for r in run(
        setting,
        tmp_path / str(i),
        dataclasses.replace(SELECT, k=1, threshold="off", scoring_prompt=prompt),
        who,
        setting[1][:4],
        np.inf,
      )
    ]
    for i, (prompt, who) in enumerate((("student", None), ("teacher", writer), ("student", writer)))
  )
  assert alike == teacher != student


def test_killed_while_writing_a_fence(setting, whole, tmp_path, monkeypatch):
  rows, folder = whole
  real = folders.write
  left = [4]

  def write(path, text):
    if not left[0]:
      path.with_name(path.name + ".partial").write_text(text[: len(text) // 2])
      raise Killed
    left[0] -= 1
    real(path, text)

  monkeypatch.setattr(folders, "write", write)
  with pytest.raises(Killed):
    run(setting, tmp_path / "a")
  monkeypatch.setattr(folders, "write", real)
  assert run(setting, tmp_path / "a") == rows
  for partial in (tmp_path / "a").glob("*.partial"):
    partial.unlink()
  assert files(tmp_path / "a") == files(folder)


def test_finished_collections_are_read_and_nothing_runs(setting, whole, monkeypatch):
  rows, folder = whole
  monkeypatch.setattr(step_lib, "select_step", None)
  assert run(setting, folder) == rows
  done = lambda problems, **more: loop.finished(
    problems, dataclasses.replace(SELECT, **more), folder
  )
  assert done(setting[1]) == rows and done(setting[1][3:5]) == rows[3:5]
  assert done(bundled.problems("test", 99)) is None and done(setting[1], attempts=2) is None


def test_a_trace_does_not_depend_on_its_company_or_the_number_of_rows(setting, whole, tmp_path):
  rows, _ = whole
  some = run(
    setting,
    tmp_path / "few",
    dataclasses.replace(SELECT, slots=3, shard_rounds=50),
    only=setting[1][5:12],
  )
  for mine, theirs in zip(some, rows[5:12]):
    assert mine["ids"] == theirs["ids"] and mine["stop"] == theirs["stop"]


def test_a_corrupt_shard_is_named_and_only_its_problems_are_written_again(
  setting, whole, tmp_path, capsys
):
  rows, folder = whole
  place = tmp_path / "copy"
  shutil.copytree(folder, place)
  path = place / "traces-00001.jsonl"
  lines = path.read_bytes().splitlines(keepends=True)
  path.write_bytes(b"".join(lines[:-1]) + lines[-1][:30])
  lost = json.loads(lines[-1])["uuid"]
  before = files(place)
  again = run(setting, place)
  assert "traces-00001.jsonl is damaged" in capsys.readouterr().err
  assert [r["uuid"] for r in again] == [r["uuid"] for r in rows]
  assert [r["ids"] for r in again] == [r["ids"] for r in rows]
  after = files(place)
  assert after["traces-00000.jsonl"] == before["traces-00000.jsonl"]
  new = sorted(set(after) - set(before))
  assert "traces-00001.jsonl.damaged" in new
  written = [
    json.loads(line)["uuid"]
    for name in new
    if name.startswith("traces") and name.endswith("jsonl")
    for line in after[name].splitlines()
  ]
  assert written == [lost]


def test_several_attempts_are_different_traces(setting, tmp_path):
  rows = run(
    setting, tmp_path / "two", dataclasses.replace(SELECT, attempts=2, k=1), only=setting[1][:4]
  )
  assert [(r["uuid"], r["attempt"]) for r in rows] == [
    (p.uuid, a) for p in setting[1][:4] for a in range(2)
  ]
  assert any(a["ids"] != b["ids"] for a, b in zip(rows[::2], rows[1::2]))


@pytest.mark.parametrize(
  "scorer", ["perplexity", "perplexity_sum", "rsr", "drop_first", "teacher_gap", "shortest"]
)
def test_a_whole_trace_scores_the_same_inside_the_step_and_afterwards(setting, tmp_path, scorer):
  select = dataclasses.replace(
    SELECT,
    c=20,
    max_tokens=20,
    k=2,
    temperature=4.0,
    scorer=scorer,
    step_delimiters=(".", *"0123456789"),
  )
  rows = run(setting, tmp_path, select, only=setting[1][:6], threshold=np.inf)
  want = [r["chunks"][0]["score"] for r in rows]
  np.testing.assert_allclose(posthoc.score(rows, scorer), want, atol=2e-4)
  assert len({*want}) > 1


def test_steps_begin_behind_their_delimiters_or_with_chunks(setting, tmp_path):
  tokenizer = setting[0].teacher_tokenizer
  marks = tokenization.delimiter_mask(tokenizer, (".", " has"), 192)
  for steps in ((), (".", " has")):
    select = dataclasses.replace(SELECT, step_delimiters=steps)
    rows = run(setting, tmp_path / str(len(steps)), select, only=setting[1][:6])
    for r in rows:
      chunks = np.cumsum([0] + [c["count"] for c in r["chunks"]])[:-1]
      after = [0] + [i + 1 for i, t in enumerate(r["ids"][:-1]) if marks[t]]
      assert r["step_starts"] == (after if steps else chunks.tolist())
      assert len(r["student_ranks"]) == len(r["student_nlls"]) == r["num_tokens"]
      assert 1 <= min(r["student_ranks"]) and max(r["student_ranks"]) <= 100
    assert sum(len(r["step_starts"]) for r in rows) > len(rows)


def test_a_prompt_that_does_not_fit_is_refused_before_anything_runs(setting, tmp_path, monkeypatch):
  monkeypatch.setattr(step_lib, "select_step", None)
  with pytest.raises(ValueError, match=r"select.prompt is 8: problem \w+ has \d+ prompt tokens"):
    run(setting, tmp_path / "x", dataclasses.replace(SELECT, prompt=8))


def test_numbers_that_are_not_finite_name_problem_and_round(setting, tmp_path):
  broken = lambda name, x: (x * np.inf).astype(np.float32) if name == "norm" else x
  writer = dataclasses.replace(setting[0], teacher=tiny.build(tiny.TEACHER, change=broken))
  with pytest.raises(FloatingPointError, match=f"problem {setting[1][0].uuid}, round 0"):
    run(setting, tmp_path / "nan", writer=writer)


def test_a_student_alone_answers_the_same_on_every_mesh(setting, tmp_path):
  """As in evaluation: replicated, slots over both axes, though its heads do not divide."""
  greedy = dataclasses.replace(SELECT, k=1, threshold="off", resamples=0)
  found = []
  for parallel, devices in ((1, 1), (4, 8)):
    mesh.start(parallel, devices=jax.devices()[:devices])
    student = tiny.build(dataclasses.replace(tiny.STUDENT, vocab=192))
    writer = dataclasses.replace(setting[0], teacher=student, student=None, student_tokenizer=None)
    found.append(run(setting, tmp_path / str(devices), greedy, writer, setting[1][:10]))
  mesh.start(devices=jax.devices()[:1])
  assert [r["ids"] for r in found[0]] == [r["ids"] for r in found[1]]
  assert len({tuple(r["ids"]) for r in found[0]}) > 5
