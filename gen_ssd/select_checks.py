"""Checks of one Select: how traces are written and chosen, in the order of config.py."""

import math

from gen_ssd.engine import scores
from gen_ssd.engine import selectors
from gen_ssd.errors import fail

FEWEST_SLOTS = 2  # JAX cannot gather from an array whose only slot is on an axis of the mesh


def check(s, where):
  """Raises UserError for the first invalid setting of a Select, which stands at `where`."""
  _check_sizes(s, where)
  _check_sampling(s, where)
  _check_words(s, where)
  _check_choice(s, where)
  _check_cut(s, where)
  if s.granularity == "trace":
    _check_whole_traces(s, where)


def check_seed(field, seed):
  """Raises UserError for a seed that is negative or has more than 32 bits."""
  if not 0 <= seed < 1 << 32:
    fail(field, seed, f"0 to {(1 << 32) - 1}")


def check_temperature(field, x):
  """Raises UserError for a temperature at which logits would overflow."""
  if x and not 1e-3 <= x <= 1e3:
    fail(field, x, "0 (greedy), or 0.001 to 1000")


def _check_sizes(s, where):
  positive = ("k", "c", "prompt", "max_tokens", "attempts", "retries", "shard_rounds")
  for name, least in (("slots", FEWEST_SLOTS), *((name, 1) for name in positive)):
    if getattr(s, name) < least:
      fail(f"{where}.{name}", getattr(s, name), f"at least {least}")
  for name in ("prompt", "max_tokens"):
    if getattr(s, name) % s.c:
      fail(f"{where}.{name}", getattr(s, name), f"a multiple of {where}.c ({s.c})")
  if s.block < 0 or s.block % s.c:
    fail(f"{where}.block", s.block, f"0 (the whole ring), or a multiple of {where}.c ({s.c})")
  for name in ("resamples", "refresh"):
    if getattr(s, name) < 0:
      fail(f"{where}.{name}", getattr(s, name), "0 or more")
  if s.loop_window < 8 or s.loop_window % 4:
    fail(f"{where}.loop_window", s.loop_window, "a multiple of 4, at least 8")


def _check_sampling(s, where):
  if not s.temperature > 0 and s.k > 1:
    fail(
      f"{where}.temperature",
      s.temperature,
      "above 0 when k > 1, because greedy candidates are all equal",
    )
  check_temperature(f"{where}.temperature", s.temperature)
  check_seed(f"{where}.seed", s.seed)
  if s.top_k < 0:
    fail(f"{where}.top_k", s.top_k, "0 (off) or more")
  if not 0 < s.top_p <= 1:
    fail(f"{where}.top_p", s.top_p, "above 0 and at most 1 (off)")


def _check_words(s, where):
  for name, table in (("scorer", scores.SCORERS), ("selector", selectors.SELECTORS)):
    if getattr(s, name) not in table:
      fail(f"{where}.{name}", getattr(s, name), f"one of {', '.join(table)}")
  for name in ("delimiters", "step_delimiters"):
    if not all(isinstance(text, str) and text for text in getattr(s, name)):
      fail(f"{where}.{name}", getattr(s, name), "a tuple of texts that are not empty")
  for name, words in (
    ("keep", ("right", "all")),
    ("granularity", ("chunk", "trace")),
    ("pruned", ("drop", "retry", "keep")),
    ("covers", ("everything", "thinking")),
    ("scoring_prompt", ("student", "teacher")),
  ):
    if getattr(s, name) not in words:
      fail(f"{where}.{name}", getattr(s, name), " or ".join(words))


def _check_choice(s, where):
  if s.refresh and (s.granularity, s.chooser) != ("chunk", "cold_start"):
    fail(
      f"{where}.refresh",
      s.refresh,
      f"0 (never) unless {where}.granularity is chunk and {where}.chooser cold_start",
    )
  for name, words in (
    ("threshold", ("off", "calibrated")),
    ("margin", ("off",)),
    ("running_margin", ("off",)),
  ):
    value = getattr(s, name)
    if isinstance(value, str) and value not in words:
      fail(f"{where}.{name}", value, f"{' or '.join(words)}, or a number of nats")
    if isinstance(value, float) and not math.isfinite(value):
      fail(f"{where}.{name}", value, "off or a finite number")
  if s.k == 1 and s.margin != "off":
    fail(f"{where}.margin", s.margin, "off when k is 1, because a margin compares candidates")
  if s.branch_entropy and s.margin != "off":
    fail(
      f"{where}.margin",
      s.margin,
      f"off when {where}.branch_entropy is above 0, because a margin compares candidates",
    )
  if not 0 <= s.branch_entropy <= 100:
    fail(f"{where}.branch_entropy", s.branch_entropy, "0 (always k candidates) to 100 nats")
  if not 0 < s.teacher_share <= 1:
    fail(f"{where}.teacher_share", s.teacher_share, "above 0 and at most 1 (off)")
  if not 0 < s.quantile <= 1:
    fail(f"{where}.quantile", s.quantile, "above 0 and at most 1")
  if not 0 <= s.beta <= 1e6:
    fail(f"{where}.beta", s.beta, "0 (uniform) to 1000000")
  _check_scorer(s, where)


def _check_cut(s, where):
  numbers = [x for x in s.cut if type(x) in (int, float) and 0 <= x <= 1]
  if len(s.cut) != 2 or len(numbers) != 2 or s.cut[0] > s.cut[1]:
    fail(f"{where}.cut", s.cut, "two numbers from 0 to 1, the smaller one first")
  for name, off in (("granularity", "chunk"), ("running_margin", "off")):
    if s.after and getattr(s, name) != off:
      fail(
        f"{where}.{name}",
        getattr(s, name),
        f"{off} when {where}.after is set, because the given part of a trace has no scores",
      )


def _check_scorer(s, where):
  rule = scores.SCORERS[s.scorer]
  if missing := sorted(rule.needs - scores.AVAILABLE[s.granularity]):
    able = [n for n, r in scores.SCORERS.items() if r.needs <= scores.AVAILABLE[s.granularity]]
    fail(
      f"{where}.scorer",
      s.scorer,
      f"one of {', '.join(able)} when {where}.granularity is {s.granularity}: "
      f"it needs {' and '.join(missing)}",
    )
  if s.running_margin != "off" and (s.running_margin < 0 or rule.negative):
    signed = [n for n, r in scores.SCORERS.items() if r.negative]
    fail(
      f"{where}.running_margin",
      s.running_margin,
      f"off, or 0 or more; and off when {where}.scorer is one of {', '.join(signed)}, "
      "because their scores may be below 0",
    )
  if s.context < 0 or (s.context and s.granularity == "trace" and not rule.short_context):
    fail(
      f"{where}.context",
      s.context,
      f"0 (everything) or more; and 0 when {where}.granularity is trace, unless {where}.scorer is "
      "local",
    )
  if rule.short_context and not s.context:
    fail(f"{where}.context", s.context, f"at least 1 when {where}.scorer is {s.scorer}")


def _check_whole_traces(s, where):
  for name in ("threshold", "margin", "running_margin"):
    if getattr(s, name) != "off":
      fail(
        f"{where}.{name}",
        getattr(s, name),
        f"off when {where}.granularity is trace, because only chunks are pruned",
      )
  for name, off in (("teacher_share", 1.0), ("branch_entropy", 0.0)):
    if getattr(s, name) != off:
      fail(
        f"{where}.{name}",
        getattr(s, name),
        f"{off} (off) when {where}.granularity is trace, because it is a rule of chunks",
      )
  if s.covers != "everything":
    fail(
      f"{where}.covers",
      s.covers,
      f"everything when {where}.granularity is trace, because whole traces are compared",
    )
  if s.pruned == "keep":
    fail(
      f"{where}.pruned",
      s.pruned,
      f"drop or retry when {where}.granularity is trace, because a prefix is not a whole trace",
    )
