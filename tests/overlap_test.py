"""A run whose training file has near duplicates of its test problems: dropped, recorded, not used."""

import html
import json
import re

import jax
import pytest

from configs import quickstart
from gen_ssd import checks
from gen_ssd import config as config_lib
from gen_ssd import inputs
from gen_ssd import stages
from gen_ssd import workdir as workdir_lib
from gen_ssd.problems import bundled

pytestmark = pytest.mark.usefixtures("shared_programs")


def write(path, problems, changes=lambda text: text):
  rows = ({"problem": changes(p.problem), "answer": p.answer} for p in problems)
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def long(split, count):
  return bundled.problems(split, count, levels=(6,))


def another_start(text):
  """A near duplicate: one number changes, and all n-grams but three of the first stay."""
  return re.sub(r"has \d+", "has 10", text)


@pytest.fixture
def config(tmp_path):
  """Builds a tiny config whose files are made of bundled problems, some of them near duplicates."""
  tests = long("test", 6)

  def build(train=(0, 3), cold_start=(3, 4), **problems):
    files = {}
    for name, (first, last) in (("train", train), ("cold_start", cold_start)):
      write(tmp_path / f"{name}.jsonl", tests[first:last], another_start)
      with (tmp_path / f"{name}.jsonl").open("a") as file:
        file.writelines(
          json.dumps({"problem": p.problem, "answer": p.answer}) + "\n" for p in long(name, 6)
        )
      files[name] = str(tmp_path / f"{name}.jsonl")
    c = quickstart.get_config()
    c.problems.update(source=files["train"], cold_start_source=files["cold_start"])
    c.problems.update(test_source=write(tmp_path / "test.jsonl", tests), seed=0)
    c.problems.update(train=0, cold_start=6 + cold_start[1] - cold_start[0], held_out=2, test=0)
    c.problems.update(**problems)
    for node in (c.select, c.cold_start):
      node.update(slots=8, keep="all")
    for node in (c.warm_up, c.train):
      node.update(steps=2, batch_size=2, warmup_steps=1, unroll=False)
    for node in (c.teacher, c.student):
      node.unroll = False
    c.evaluate.slots = 8
    c.arms = {"standard_kd": dict(k=1, threshold="off")}
    return config_lib.parse(c)

  return build


def test_near_duplicates_are_dropped_recorded_and_not_trained_on(config, tmp_path, capsys):
  c, workdir = config(), tmp_path / "run"
  stages.run(c, workdir, jax.devices()[:1])
  rows = json.loads((workdir / "overlap.json").read_text())
  assert [row["split"] for row in rows] == ["cold_start", "train", "train", "train"]
  assert {row["test_problem"] for row in rows} == {p.problem for p in long("test", 4)}
  for row in rows:
    assert row["problem"] == another_start(row["test_problem"]) and 0.5 < row["share"] < 1
    assert row["test"] == "test" and row["test_uuid"] and row["reason"].endswith("word 8-grams")
  left_out = {row["uuid"] for row in rows}
  used = {
    row["uuid"]
    for folder in (workdir / "cold_start" / "traces", *workdir.glob("traces/*"))
    for row in workdir_lib.finished_rows(folder)
  }
  assert len(used) == 4 + 6 and not used & left_out
  results = json.loads((workdir / "results.json").read_text())["arms"]["standard_kd"]
  assert (results["problems"], results["n"]) == (6, 6)
  lines = [x for x in capsys.readouterr().out.splitlines() if "near duplicates" in x]
  assert len(lines) == 1
  assert "overlap is 0.5: 3 training and 1 cold-start problems are left out" in lines[0]
  page = html.unescape((workdir / "report.html").read_text())
  assert "Problems left out" in page and rows[0]["problem"] in page and rows[0]["reason"] in page
  stages.run(c, workdir, jax.devices()[:1])  # it is the same run
  assert json.loads((workdir / "overlap.json").read_text()) == rows


def test_without_near_duplicates_the_record_is_empty(config, tmp_path, capsys):
  c = config(train=(0, 0), cold_start=(0, 0))
  checks.check(c)
  tmp_path.joinpath("run").mkdir()
  stages._write_overlap(c, tmp_path / "run")
  assert json.loads((tmp_path / "run" / "overlap.json").read_text()) == []
  assert capsys.readouterr().out == ""


def test_every_test_set_counts_and_a_setting_decides(config, tmp_path):
  c = config()
  other = write(tmp_path / "other.jsonl", long("train", 2), lambda text: text + " Why?")
  named = dict(tests={"own": {}, "more": dict(source=other)})
  both = config_lib.parse({**config_lib.settings(c), **named})
  found = [(name, m.training.split) for name, m in inputs.near_duplicates(both)]
  assert sorted(found) == [("more", "train")] * 2 + [("own", "cold_start")] + [("own", "train")] * 3
  assert len(inputs.problems(both, "train")) == 9 - 5 and len(inputs.drawn(both, "train")) == 9
  assert [m.training.split for _, m in inputs.near_duplicates(config(overlap=1.0))] == []


def test_the_closest_problem_of_all_test_sets_is_named(config, tmp_path):
  nearer = write(
    tmp_path / "nearer.jsonl", long("test", 6), lambda text: another_start(text) + " Now?"
  )
  c = config_lib.parse(
    {
      **config_lib.settings(config()),
      "tests": {"own": {}, "nearer": dict(source=nearer), "again": {}},
    }
  )
  assert {(name, m.share > 0.9) for name, m in inputs.near_duplicates(c)} == {("nearer", True)}


def test_equal_test_problems_are_still_refused(config, tmp_path):
  c = config()
  write(tmp_path / "train.jsonl", long("train", 6) + long("test", 1))
  with pytest.raises(ValueError, match="problems.test and problems.train share problem"):
    checks.check(c)


@pytest.mark.parametrize(
  "name,says",
  [
    ("train", "0 problems of problems.train are left; it must leave more than 0"),
    ("cold_start", "0 problems of problems.cold_start are left; it must leave more than 2"),
  ],
)
def test_too_few_problems_left_are_refused(config, tmp_path, name, says):
  c = config(train=(0, 0), cold_start=(0, 0))
  write(tmp_path / f"{name}.jsonl", long("test", 6), another_start)
  with pytest.raises(ValueError, match=f"problems.overlap is 0.5: .*{says}"):
    checks.check(c)
