"""Recipes: good configs for the bundled pair and for real ones, and what they say of the papers."""

import inspect

import pytest

from configs import qwen25_7b_1p5b
from configs import recipes
from gen_ssd import checks
from gen_ssd import config as config_lib
from gen_ssd import config_checks


def arms(name):
  return dict(config_lib.parse(recipes.get_config(name)).arms)


@pytest.mark.parametrize("name", recipes.RUNS)
def test_a_recipe_is_a_good_config(name):
  config = config_lib.parse(recipes.get_config(name))
  checks.check(config)
  traces = {config_lib.collection(arm.select) for arm in arms(name).values()}
  # Most are of one collection: a teacher writes them once.
  assert len(traces) == {"baselines": 4, "dasd": 5}.get(name, 1)


@pytest.mark.parametrize("name", recipes.TABLE)
def test_a_recipe_is_short_and_fits_a_real_pair(name):
  lines = inspect.getsource(recipes.TABLE[name]).splitlines()
  assert len(lines) <= 20 and "ours" not in lines[0]
  config = config_lib.parse(qwen25_7b_1p5b.get_config(name))
  config_checks.check(config)
  assert "standard_kd" in dict(config.arms)


def test_numbers_of_the_papers():
  gkd, tsd = arms("gkd")["gkd"].train, dict(arms("tsd_kd")["tsd_kd"].train.terms)
  assert gkd.samples == 0.5 and dict(gkd.terms)["kd"].beta == 0.5
  assert (tsd["direct"].beta, tsd["direct"].gate, tsd["order"].top_k) == (0.9, "entropy_gap", 10)
  assert (tsd["order"].scale, tsd["order"].share, tsd["sure"].share) == (0.1, 0.1, 0.1)
  assert arms("redi")["redi"].train.alpha == 0.8
  dasd = {name: arm.select for name, arm in arms("dasd").items()}
  assert (dasd["t06"].temperature, dasd["t10"].temperature, dasd["mixed"].cut) == (
    0.6,
    1.0,
    (0.5, 1.0),
  )
  assert arms("curiosft")["curiosft"].train.lag == 5
  assert (
    arms("minillm")["minillm"].train.discount == 1.0 and arms("grpo")["grpo"].train.answers == 8
  )
