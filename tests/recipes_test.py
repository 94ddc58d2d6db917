"""Recipes: good configs for the bundled pair and for real ones, and what they say of the papers."""

import inspect
import json

import jax
import pytest

from configs import quickstart
from configs import qwen25_7b_1p5b
from configs import recipes
from gen_ssd import checks
from gen_ssd import config as config_lib
from gen_ssd import config_checks
from gen_ssd import stages
from gen_ssd import workdir as workdir_lib
from tests.benchmarks import recipes as expectations


def arms(name):
  return dict(config_lib.parse(recipes.get_config(name)).arms)


@pytest.mark.parametrize("name", ("all", *recipes.TABLE))
def test_a_recipe_is_a_good_config(name):
  config = config_lib.parse(recipes.get_config(name))
  checks.check(config)
  traces = {config_lib.collection(arm.select) for arm in arms(name).values()}
  # A teacher writes most of them once.
  assert len(traces) == {"all": 8, "redi": 2, "dasd": 5}.get(name, 1)


def test_arms_of_one_name_are_one_arm():
  together = arms("all")
  for name in recipes.TABLE:
    assert arms(name).items() <= together.items(), name


@pytest.mark.parametrize("name", recipes.TABLE)
def test_a_recipe_is_short_and_fits_a_real_pair(name):
  lines = inspect.getsource(recipes.TABLE[name]).splitlines()
  assert len(lines) <= 20 and "ours" not in lines[0]
  config = config_lib.parse(qwen25_7b_1p5b.get_config(name))
  config_checks.check(config)
  assert "standard_kd" in dict(config.arms)


def test_expectations_are_of_arms_that_exist():
  for recipe, kind, _, order in expectations.EXPECTATIONS:
    together = arms(recipe).keys() | {"gen_ssd"}  # beside which all are compared
    assert kind in ("must", "paper") and {*order} <= together


@pytest.mark.parametrize(
  "values, verdict",
  [
    ((1.0, 2.0), "holds"),
    ((1.0, 1.1), "holds, not certain"),
    ((2.0, 1.0), "DOES NOT HOLD"),
    ((1.0, None), "not measured"),
  ],
)
def test_an_order_is_judged_by_values_and_intervals(values, verdict):
  arms = {name: {"kl_own": x and {"value": x, "ci": [x - 0.2, x + 0.2]}}
          for name, x in zip("ab", values)}  # fmt: skip
  assert expectations.judge(arms, "kl_own", ("a", "b"))[0] == verdict


def test_shares_of_steps_have_no_interval():
  arms = {name: {"ways": {"kept": {"fine": x}}} for name, x in zip("ab", (0.25, 0.75))}
  verdict, (low, _) = expectations.judge(arms, "ways.kept.fine", ("a", "b"))
  assert verdict == "holds, not certain" and expectations.shown(low) == "0.250"


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


@pytest.mark.slow
def test_arms_of_dasd_build_on_each_other_to_the_page(tmp_path):
  c = quickstart.get_config()
  c.problems.update(train=12, cold_start=16, held_out=4, test=8)
  c.select.update(slots=16, keep="all")  # students of a few updates are never right
  c.cold_start.update(slots=16)
  for train in (c.warm_up, c.train):
    train.update(steps=8, batch_size=4, warmup_steps=1)
  c.evaluate.slots, c.arms = 16, recipes.dasd(c)
  stages.run(config_lib.parse(c), tmp_path, jax.devices()[:1])
  found = json.loads((tmp_path / "results.json").read_text())
  assert {*found["arms"]} == {*c.arms} and (tmp_path / "report.html").exists()
  own, _ = workdir_lib.arm_rows(tmp_path, "own")
  mixed, _ = workdir_lib.arm_rows(tmp_path, "mixed")
  begun = {r["uuid"]: r["ids"] for r in own}
  assert len(mixed) == len(own) == 12 and any(r["given_tokens"] for r in mixed)
  assert all(r["ids"][: r["given_tokens"]] == begun[r["uuid"]][: r["given_tokens"]] for r in mixed)
