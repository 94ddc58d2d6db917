"""`gen-ssd evaluate`: a model on problems, two evaluations compared, answers graded again."""

import json
import shutil
import sys

import pytest

from gen_ssd import evaluate
from gen_ssd import workdir as workdir_lib
from gen_ssd.collect import loop
from gen_ssd.engine import step as step_lib
from gen_ssd.problems import bundled

SMALL = ("--limit=12", "--max_tokens=64", "--slots=16", "--config.select.c=16")


def call(*arguments):
  """(exit code, nothing) of the command in this process."""
  before, sys.argv = sys.argv, ["gen-ssd evaluate", *map(str, arguments)]
  try:
    evaluate.main()
  except SystemExit as end:
    return end.code
  finally:
    sys.argv = before
  return 0


def measured(workdir, model, *flags, problems="bundled"):
  flags = (f"--model={model}", f"--problems={problems}", f"--workdir={workdir}", *SMALL, *flags)
  assert call(*flags) == 0
  return json.loads((workdir / "results.json").read_text())


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("teacher")
  measured(workdir, "bundled/teacher", "--samples=2", "--temperature=1")
  return workdir


@pytest.fixture(scope="module")
def student(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("student")
  measured(workdir, "bundled/student")
  return workdir


def answers(workdir, test="bundled"):
  return workdir_lib.finished_rows(workdir / "models" / "base" / f"answers-{test}")


def test_a_model_is_measured_without_a_run(teacher):
  found = json.loads((teacher / "results.json").read_text())
  assert found["arms"] == found["paired"] == {} and [*found["models"]] == ["base"]
  one, rows = found["models"]["base"], answers(teacher)
  assert one["n"] == 12 and one["samples"] == 2 and len(rows) == 24
  assert one["accuracy"] == sum(r["verdict"] == "right" for r in rows) / 24 > 0.5
  assert [*one["pass_at_k"]] == [*one["maj_at_k"]] == ["1", "2"]
  assert one["pass_at_k"]["1"]["value"] == pytest.approx(one["accuracy"])
  assert one["pass_at_k"]["2"]["value"] >= one["accuracy"]
  assert {r["attempt"] for r in rows} == {0, 1}
  assert one["diversity"]["answers"]["shared_ngrams"] > 0


def test_the_same_command_again_generates_nothing(teacher, monkeypatch, capsys):
  monkeypatch.setattr(step_lib, "select_step", None)
  before = (teacher / "results.json").read_text()
  after = measured(teacher, "bundled/teacher", "--samples=2", "--temperature=1")
  assert json.dumps(after["models"]) == json.dumps(json.loads(before)["models"])
  said = capsys.readouterr().out.splitlines()
  assert said[0].split()[:2] == ["model", "accuracy"] and "pass@2" in said[0]
  assert said[1].startswith("bundled/teacher ")


def test_two_evaluations_are_compared_on_what_both_answered(teacher, student, capsys):
  assert call("--compare", teacher, student) == 0
  *_, head, row = capsys.readouterr().out.splitlines()
  assert head.split()[:4] == ["test", "n", "A", "B"]
  cells = row.split()
  right = sum(r["verdict"] == "right" for r in answers(teacher)) / 24
  assert cells[:4] == ["bundled", "12", f"{right:.1%}", "0.0%"]
  assert cells[4] == f"{100 * right:+.1f}" and cells[-1] == "0"
  assert call("--compare", teacher, teacher) == 0
  assert "+0.0" in capsys.readouterr().out


def test_problems_that_only_one_answered_do_not_count(teacher, student, tmp_path, capsys):
  shutil.copytree(student, tmp_path / "half")
  (shard,) = (tmp_path / "half/models/base/answers-bundled").glob("traces-00000.jsonl")
  lines = shard.read_text().splitlines(keepends=True)
  shard.write_text("".join(lines[:3]))
  left = {r["uuid"] for r in answers(tmp_path / "half")}
  assert call("--compare", teacher, tmp_path / "half") == 0
  assert capsys.readouterr().out.splitlines()[-1].split()[1] == str(len(left)) != "12"


def test_answers_are_graded_again_without_generating(teacher, tmp_path, monkeypatch, capsys):
  workdir = tmp_path / "copy"
  shutil.copytree(teacher, workdir)
  monkeypatch.setattr(step_lib, "select_step", None)
  (first, *_) = sorted((workdir / "models/base/answers-bundled").glob("traces-*.jsonl"))
  text = first.read_text()
  first.write_text(text.replace('"verdict": "right"', '"verdict": "wrong"'))
  changed = text.count('"verdict": "right"')
  assert call(f"--regrade={workdir}") == 0
  said = capsys.readouterr().out
  assert changed and said.startswith(f"{changed} of 24 verdicts changed\n")
  assert first.read_text() == text
  models = lambda folder: json.loads((folder / "results.json").read_text())["models"]
  assert models(workdir) == models(teacher)


def test_several_sets_are_named_and_pooled(tmp_path):
  lines = [
    json.dumps({"problem": p.problem, "answer": p.answer}) for p in bundled.problems("test", 3)
  ]
  (tmp_path / "mine.jsonl").write_text("\n".join(lines))
  found = measured(tmp_path / "e", "bundled/student", problems=f"bundled,{tmp_path / 'mine.jsonl'}")
  assert [*found["tests"]] == ["bundled", "mine"]
  assert [found["tests"][t]["models"]["base"]["n"] for t in found["tests"]] == [12, 3]
  assert found["models"]["base"]["n"] == 12  # the file's three are among the other's


def test_examples_are_turns_before_the_problem(tmp_path, monkeypatch):
  from gen_ssd.models import templates

  (tmp_path / "shots.jsonl").write_text(
    json.dumps({"problem": "Tom has 1 cakes.", "solution": "It is 1."})
  )
  seen, real = [], templates.render
  monkeypatch.setattr(
    templates,
    "render",
    lambda t, messages, generate: seen.append(messages) or real(t, messages, generate),
  )
  read, collect = [], loop.collect
  monkeypatch.setattr(
    loop,
    "collect",
    lambda writer, *a, **k: (seen.clear(), collect(writer, *a, **k), read.extend(seen))[1],
  )
  measured(tmp_path / "e", "bundled/student", f"--examples={tmp_path / 'shots.jsonl'}")
  assert len(read) >= 12 and all(len(messages) == 3 for messages in read)  # what the model reads
  assert read[0][:2] == [
    {"role": "user", "content": "Tom has 1 cakes."},
    {"role": "assistant", "content": "It is 1."},
  ]


def test_prompts_may_be_longer_than_those_of_a_cold_start(tmp_path):
  one = json.dumps({"problem": "Tom has 1 cakes.", "solution": "So it is 1."})
  (tmp_path / "shots.jsonl").write_text("\n".join([one] * 6))
  measured(tmp_path / "e", "bundled/student", f"--examples={tmp_path / 'shots.jsonl'}")
  settings = json.loads((tmp_path / "e" / "config.json").read_text())
  assert settings["select"]["prompt"] > settings["cold_start"]["prompt"]


@pytest.mark.parametrize(
  "arguments, says",
  [
    ((), "no flag given: it must be one of --model, --compare and --regrade"),
    (("--model=bundled/teacher",), "--model needs --problems"),
    (("--model=bundled/teacher", "--problems=bundled"), "--model needs --workdir"),
    (("--compare", "nowhere", "nowhere"), "nowhere has no answers"),
    (("--regrade=nowhere",), "is missing: --regrade needs the workdir of a finished run"),
    (("--regrade=x", "--config.seeds=2"), "--regrade takes no other flags"),
  ],
)
def test_bad_flags_are_one_message(arguments, says, capsys):
  assert call(*arguments) == 2
  said = capsys.readouterr().err
  assert says in said and said.count("\n") == 1


@pytest.mark.parametrize(
  "flags, says",
  [
    (("--problems=gsm9k",), "tests.gsm9k.source is 'gsm9k': it must be bundled"),
    (("--problems=bundled,bundled",), "bundled comes twice"),
    (("--problems=bundled", "--samples=3", "--temperature=0"), "samples is 3: it must be 1 when"),
    (("--problems=bundled", "--max_tokens=100"), "it must be a multiple of"),
    (("--problems=bundled", "--examples=no.jsonl"), "examples is 'no.jsonl': it must be the path"),
    (("--problems=bundled", "--dtype=int8"), "dtype is 'int8': it must be float32 or bfloat16"),
    (("--problems=bundled", "--confg.seeds=2"), "confg"),
    (
      ("--problems=bundled", "--config.references=('me',)"),
      "references is ('me',): it must be made",
    ),
    (("--problems=bundled", "--config.references=()"), "arms is {}: it must be a dict of at least"),
  ],
)
def test_bad_settings_are_one_message_before_any_compute(flags, says, tmp_path, capsys):
  assert call("--model=bundled/student", f"--workdir={tmp_path / 'e'}", *flags) == 2
  said = capsys.readouterr().err
  assert says in said and said.count("\n") == 1


def test_a_run_with_several_models_must_be_named_more_closely(teacher, tmp_path, capsys):
  shutil.copytree(teacher, tmp_path / "run")
  (tmp_path / "run" / "arms").mkdir()
  assert call("--compare", tmp_path / "run", teacher) == 2
  assert "name one, such as" in capsys.readouterr().err
