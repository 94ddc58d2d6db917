"""Which items of a sweep are the points of which lines."""

from collections.abc import Mapping
import math
from typing import Any

from gen_ssd import config as config_lib
from gen_ssd.report import comparison

Changes = Mapping[str, Mapping[str, Any]]  # {item: {field: value}}


def lines(changes: Changes, configs: Mapping[str, config_lib.Config]) -> comparison.Sweeps:
  """The sweeps of those finished `configs` that change the same setting: a line per arm.

  An item is a point of the sweep of the first setting that it changes. An item without changes is a
  point of every sweep. A sweep whose items change more, so that two have the same value, has no
  line. Numbers are in ascending order, after all other values, which are in the order of the items.
  """
  fields: dict[str, dict[str, Any]] = {}
  finished = {name: its for name, its in changes.items() if name in configs}
  for name, its in finished.items():
    for field, value in [*its.items()][:1]:
      fields.setdefault(field, {})[name] = value
  base = next((name for name, its in finished.items() if not its), None)
  made = {}
  for field, points in fields.items():
    if base is not None and (value := _setting(configs[base], field)) not in points.values():
      points = {base: value, **points}
    arms = [{arm for arm, _ in configs[name].arms} for name in points]
    shared = [a for a, _ in configs[next(iter(points))].arms if all(a in names for names in arms)]
    ordered = sorted(points.items(), key=lambda point: _place(point[1]))
    if len(points) > 1 and len({*points.values()}) == len(points) and shared:
      made[field] = {arm: [(value, name, arm) for name, value in ordered] for arm in shared}
  return made


def _setting(config, field):
  """The value of a field such as select.k or arms.NAME.k."""
  arms = {name: config_lib.arm_settings(arm) for name, arm in config.arms}
  at = {**config_lib.plain(config), "arms": arms, "tests": dict(config.tests)}
  for part in field.split("."):
    at = at[part] if isinstance(at, dict) else getattr(at, part)
  return at


def _place(value):
  is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
  return value if is_number else -math.inf
