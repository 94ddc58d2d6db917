"""Whatever a config or a command line holds: a Config, or one message that names the field."""

import dataclasses

import hypothesis
from hypothesis import strategies as st
import ml_collections
import pytest

from gen_ssd import config
from gen_ssd import config_checks
from gen_ssd import config_files
from gen_ssd.errors import UserError
from tests import paths

EXAMPLES = hypothesis.settings(max_examples=300, deadline=None, derandomize=True, database=None)

FIELDS = [
  (f.name, g.name) if dataclasses.is_dataclass(f.default) else (f.name,)
  for f in dataclasses.fields(config.Config)
  for g in (dataclasses.fields(f.default) if dataclasses.is_dataclass(f.default) else [f])
]
LEAVES = st.one_of(
  st.none(),
  st.booleans(),
  st.integers(),
  st.floats(),
  st.text(),
  st.sampled_from(["off", "calibrated", "bundled", "trace", "\ud800", "1e999", "nan"]),
)
VALUES = st.recursive(
  LEAVES,
  lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=4), x, max_size=3),
  max_leaves=6,
)


@EXAMPLES
@hypothesis.given(st.sampled_from(FIELDS), VALUES)
def test_any_value_of_any_field_is_taken_or_refused_by_name(field, value):
  raw = {"teacher": {"path": "t"}, "student": {"path": "s"}, "arms": {"gen_ssd": {}}}
  node = raw
  for name in field[:-1]:
    node = node.setdefault(name, {})
  node[field[-1]] = value
  try:
    found = config.parse(raw)
    config_checks.check(found)
  except UserError as error:
    assert len(str(error)) < 2000 and "Traceback" not in str(error)
  else:
    assert hash(found) == hash(config.parse(raw))  # static under jit
    assert config.parse(config.settings(found)) == found  # config.json holds all of it


@EXAMPLES
@hypothesis.given(st.dictionaries(st.text(max_size=8), VALUES, max_size=3))
def test_any_dict_is_a_config_or_is_refused(raw):
  try:
    assert isinstance(config.parse(raw), config.Config)
  except UserError:
    pass


@EXAMPLES
@hypothesis.given(
  st.sampled_from([".".join(f) for f in FIELDS] + ["arms.gen_ssd.k", "arms.x.k", "x", ""]),
  st.text(max_size=20) | LEAVES.map(str),
)
def test_any_override_is_applied_or_refused(field, value):
  try:
    found = config_files.load(
      str(paths.ROOT / "configs" / "quickstart.py"), [f"--config.{field}={value}"]
    )
  except UserError as error:
    assert len(str(error)) < 2000
  else:
    assert isinstance(found, ml_collections.ConfigDict)


def test_an_override_reaches_one_arm_only():
  path = str(paths.ROOT / "configs" / "quickstart.py")
  found = config.parse(config_files.load(path, ["--config.arms.gen_ssd.k=7"]))
  assert {n: arm.select.k for n, arm in found.arms} == {
    "standard_kd": 1, "random": 4, "posthoc": 4, "gen_ssd": 7,
  }  # fmt: skip
  both = ["--config.arms.posthoc.k=3", "--config.select.k=9"]
  found = config.parse(config_files.load(path, both))
  assert {n: arm.select.k for n, arm in found.arms} == {
    "standard_kd": 1, "random": 9, "posthoc": 3, "gen_ssd": 9,
  }  # fmt: skip
  with pytest.raises(UserError, match="tests.aime is not a field"):
    config_files.load(path, ["--config.tests.aime.samples=3"])
