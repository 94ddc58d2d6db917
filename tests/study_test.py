"""The study: its runs are well formed; a small one ends in figures a person can read."""

import jax
import pytest

from configs import study as study_config
from gen_ssd import config as config_lib
from gen_ssd import study
from gen_ssd.engine import step as step_lib

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
    c.warm_up.update(steps=4, batch_size=4)
    c.train.update(steps=3, batch_size=4)
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
  return workdir, configs, study.read(workdir, configs, File.SWEEPS)


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
  _, here = found["sweeps"]["cold_start"]["gen_ssd"]
  assert here == {"value": 16, **found["arms"]["gen_ssd"]}
  assert "not done" not in found["sweeps"]


def test_figures_stand_alone_and_examples_show_every_candidate(finished, tmp_path):
  import xml.etree.ElementTree as xml

  workdir, _, found = finished
  study.draw(found, tmp_path)
  for name in ("arms.svg", "paired.svg", "sweeps.svg"):
    root = xml.fromstring((tmp_path / name).read_text())
    words = " ".join(root.itertext())
    assert "gen_ssd" in words or name == "sweeps.svg"
    assert "href" not in (tmp_path / name).read_text()
  text = study.examples(workdir / "arms", count=100)
  assert "Where choosing helped" in text and "Where choosing hurt" in text
  for line in text.splitlines():
    if line[:1].isdigit() and "none suitable" not in line:
      assert line.count(" · ") == 3 and line.count("**") == 2  # four candidates, one kept
  assert "| gen_ssd | **" in study.table(found)


def test_a_study_again_computes_nothing(finished, monkeypatch):
  workdir, _, found = finished
  monkeypatch.setattr(step_lib, "select_step", None)
  configs = study.run(File, workdir, File.RUNS, jax.devices()[:1])
  assert study.read(workdir, configs, File.SWEEPS) == found


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
