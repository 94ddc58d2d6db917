"""The study: its runs are well formed; a small one ends in tables and figures."""

import json
import shutil
import xml.etree.ElementTree as xml

import jax
import pytest

from configs import study as study_config
from gen_ssd import config as config_lib
from gen_ssd import study
from gen_ssd.engine import step as step_lib
from gen_ssd.report import comparison

ARMS = ("standard_kd", "standard_kd_all", "random", "posthoc", "gen_ssd")


class File:
  """A study of two small runs, as a config file would hold it."""

  RUNS = ("arms", "sweeps", "cold_start=8")
  SWEEPS = {
    "k": {"gen_ssd": [(2, "sweeps", "k=2"), (4, "sweeps", "gen_ssd")]},
    "cold_start": {"gen_ssd": [(8, "cold_start=8", "gen_ssd"), (16, "arms", "gen_ssd")]},
    "not done": {"gen_ssd": [(1, "another", "gen_ssd")]},
  }

  @staticmethod
  def get_config(name):
    c = study_config.get_config("quick")
    c.problems.update(train=24, cold_start=20, held_out=4, test=12)
    c.select.update(slots=16, shard_rounds=8)
    c.cold_start.update(slots=16)
    c.warm_up.update(steps=4, batch_size=4, warmup_steps=2)
    c.train.update(steps=3, batch_size=4, warmup_steps=2)
    c.evaluate.update(slots=16)
    c.arms = {n: study_config.ARMS[n] for n in ARMS}
    if name == "sweeps":
      c.arms = {"k=2": dict(k=2), "gen_ssd": {}}
    if name == "cold_start=8":
      c.problems.cold_start = 12
      c.arms = {"gen_ssd": {}}
    return c


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("study")
  configs = study.run(File, workdir, File.RUNS, jax.devices()[:1])
  return workdir, configs, comparison.read(workdir, configs, File.SWEEPS)


@pytest.mark.parametrize("name", study_config.RUNS + study_config.QUICK)
def test_every_run_of_the_study_is_a_good_config(name):
  config = config_lib.parse(study_config.get_config(name))
  assert config.problems.test >= (300 if name == "quick" else 1000)
  assert config.seeds >= {"arms": 5, "quick": 2}.get(name, 1)
  assert "gen_ssd" in dict(config.arms)


def test_every_sweep_names_arms_of_its_run():
  for lines in study_config.SWEEPS.values():
    for points in lines.values():
      assert len(points) >= 3 and all(run in study_config.RUNS for _, run, _ in points)
      assert all(arm in study_config.get_config(run).arms for _, run, arm in points)


def test_a_study_pools_seeds_and_pairs_every_arm(finished):
  _, _, found = finished
  assert {*found["arms"]} == {*ARMS}
  for name, arm in found["arms"].items():
    assert arm["n"] == 12 and len(arm["seeds"]) == 2
    assert sum(arm["seeds"]) / 2 == pytest.approx(arm["accuracy"])
    if name != "posthoc":
      p = found["paired"][f"{name}-posthoc"]
      want = arm["accuracy"] - found["arms"]["posthoc"]["accuracy"]
      assert p["difference"] == pytest.approx(want) and p["n"] == 12
  assert {"gen_ssd-standard_kd", "random-standard_kd"} <= found["paired"].keys()


def test_equal_teacher_tokens_compares_with_the_arm_that_spent_as_much(finished):
  _, _, found = finished
  arms = found["arms"]
  assert arms["standard_kd"]["equal_teacher_tokens"] == arms["standard_kd_all"]["accuracy"]
  assert arms["gen_ssd"]["equal_teacher_tokens"] == arms["gen_ssd"]["accuracy"]
  spent = [arms[n]["teacher_tokens"] for n in ARMS[1:]]
  assert max(spent) < 2 * min(spent)


def test_sweeps_are_read_from_arms_and_from_runs(finished):
  _, _, found = finished
  two, four = found["sweeps"]["k"]["gen_ssd"]
  assert (two["value"], four["value"]) == (2, 4)
  assert two["teacher_tokens"] < four["teacher_tokens"]
  _, sixteen = found["sweeps"]["cold_start"]["gen_ssd"]
  assert sixteen == {"value": 16, **found["arms"]["gen_ssd"]}
  assert "not done" not in found["sweeps"]


def test_all_files_are_written_and_examples_show_every_candidate(finished):
  workdir, configs, found = finished
  table, paths = comparison.write(workdir, configs, File.SWEEPS)
  names = {"study.json", "study.md", "examples.md", "arms.svg", "paired.svg", "sweeps.svg"}
  assert {p.name for p in paths} == names and all(p.parent == workdir for p in paths)
  assert json.loads((workdir / "study.json").read_text()) == found
  assert (workdir / "study.md").read_text() == table and "| gen_ssd | **" in table
  for name in ("arms.svg", "paired.svg", "sweeps.svg"):
    text = (workdir / name).read_text(encoding="utf-8")
    words = " ".join(xml.fromstring(text).itertext())
    assert "gen_ssd" in words or name == "sweeps.svg"
    assert "href" not in text
  text = comparison.examples(workdir / "arms", count=100)
  assert "Where selection helped" in text and "Where selection hurt" in text
  for line in text.splitlines():
    if line[:1].isdigit() and "none suitable" not in line:
      assert line.count(" · ") == 3 and line.count("**") == 2  # four candidates, one kept


def test_a_study_again_computes_nothing(finished, monkeypatch):
  workdir, _, found = finished
  monkeypatch.setattr(step_lib, "select_step", None)
  configs = study.run(File, workdir, File.RUNS, jax.devices()[:1])
  assert comparison.read(workdir, configs, File.SWEEPS) == found


def test_a_page_drawn_meanwhile_does_not_make_a_run_finished(finished, tmp_path):
  workdir, _, _ = finished
  shutil.copytree(workdir / "cold_start=8", tmp_path / "cold_start=8")
  (tmp_path / "cold_start=8" / "results.json").unlink()  # as where evaluation was stopped
  study.run(File, tmp_path, ["cold_start=8"], jax.devices()[:1])
  found = [json.loads((w / "cold_start=8/results.json").read_text()) for w in (workdir, tmp_path)]
  assert found[0]["arms"] == found[1]["arms"]


def test_bad_config_names_the_field_before_any_run(tmp_path):

  class Bad(File):
    @staticmethod
    def get_config(name):
      c = File.get_config(name)
      if name == "sweeps":
        c.select.k = 0
      return c

  with pytest.raises(ValueError, match="select.k is 0"):
    study.run(Bad, tmp_path, Bad.RUNS)
  assert not any(tmp_path.iterdir())


# ---------------------------------------------------------------- the config file


def _config_file(tmp_path, text):
  path = tmp_path / "mine.py"
  path.write_text(text)
  return str(path)


@pytest.mark.parametrize("name", ["missing.py", "folder.py", "study.yaml"])
def test_a_config_file_that_is_not_there_is_one_error(tmp_path, name):
  (tmp_path / "folder.py").mkdir()
  (tmp_path / "study.yaml").write_text("RUNS: []")
  with pytest.raises(ValueError, match=f"--config is .*{name}': it must be a Python file"):
    study.load(str(tmp_path / name))


@pytest.mark.parametrize(
  "text,missing",
  [
    ("", r"must define get_config\(\)"),
    ("RUNS = ('a',)", r"must define get_config\(\)"),
    ("def get_config(name): pass", "RUNS of .* is None: it must be a tuple"),
    ("RUNS = 'a'\ndef get_config(name): pass", "RUNS of .* is 'a': it must be a tuple"),
  ],
)
def test_a_config_file_of_something_else_is_one_error(tmp_path, text, missing):
  with pytest.raises(ValueError, match=missing):
    study.load(_config_file(tmp_path, text))


def test_a_config_file_is_loaded_as_a_module(tmp_path):
  file = study.load(_config_file(tmp_path, "RUNS = ('a',)\ndef get_config(name): return name * 2"))
  assert file.RUNS == ("a",) and file.get_config("a") == "aa"


def test_a_quick_study_needs_its_runs(tmp_path):
  path = _config_file(tmp_path, "RUNS = ('a',)\ndef get_config(name): pass")
  study.load(path)
  with pytest.raises(ValueError, match="QUICK of .* is None.*leave --quick out"):
    study.load(path, quick=True)
