"""The order of arms and the look of each: one for the page, the tables and the figures."""

from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any

# These keep their colour and shape in every run and every sweep.
KNOWN_ARMS = (
  "standard_kd",
  "random",
  "posthoc",
  "gen_ssd",
  "rejection",
  "morsd",
  "gen_ssd_no_stop",
  "gen_ssd_no_cold_start",
  "standard_kd_all",
  "unverified_kd",
  "posthoc_rsr",
  "gen_ssd_rsr",
  "shortest",
  "mix_long",
  "anti",
)
BASES = ("standard_kd", "random", "posthoc", "morsd")  # a sweep compares every arm with these


def looks(names: Iterable[str]) -> dict[str, int]:
  """{arm: number of its colour and shape}, see figures.mark.

  The arms of KNOWN_ARMS have the first numbers, whether they are among `names` or not. The others
  follow by name.
  """
  names = set(names)
  return {
    name: look
    for look, name in enumerate((*KNOWN_ARMS, *sorted(names.difference(KNOWN_ARMS))))
    if name in names
  }


def order(accuracies: Mapping[str, Any]) -> list[str]:
  """The arms in ascending order of their accuracy; those without one (None) come last.

  Arms of equal accuracy, and arms without one, stay in the order in which they are given.
  """
  known = [name for name, x in accuracies.items() if x is not None]
  return sorted(known, key=accuracies.__getitem__) + [
    name for name, x in accuracies.items() if x is None
  ]
