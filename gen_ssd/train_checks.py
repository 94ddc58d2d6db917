"""Checks of one Train: what a student learns, in the order of config.py."""

import re

from gen_ssd.errors import fail
from gen_ssd.select_checks import check_seed
from gen_ssd.training import credit
from gen_ssd.training import objectives
from gen_ssd.training import terms


def check(t, where):
  """Raises UserError for the first invalid setting of a Train, which stands at `where`."""
  for name in ("steps", "batch_size", "accumulate", "block", "save_every", "log_every"):
    if getattr(t, name) < 1:
      fail(f"{where}.{name}", getattr(t, name), "at least 1")
  if t.length < 2:
    fail(f"{where}.length", t.length, "at least 2")
  if t.length % min(t.block, t.length):
    fail(f"{where}.block", t.block, f"a divisor of {where}.length ({t.length})")
  if t.dtype not in ("float32", "bfloat16"):
    fail(f"{where}.dtype", t.dtype, "float32 or bfloat16")
  _check_terms(t, where)
  if t.credit not in credit.CREDITS:
    fail(f"{where}.credit", t.credit, f"one of {', '.join(credit.CREDITS)}")
  weighted = [n for n, f in objectives.OBJECTIVES.items() if objectives.takes(f, "weights")]
  if t.credit != "one" and not any(term.objective in weighted for _, term in t.terms):
    able = f"one unless a term of {where}.terms has the objective {' or '.join(weighted)}"
    fail(f"{where}.credit", t.credit, able)
  if not 0 <= t.samples <= 1:
    fail(f"{where}.samples", t.samples, "0 to 1")
  for name, least in (("every", 1), ("answers", 1), ("asked", 0)):
    if getattr(t, name) < least:
      fail(f"{where}.{name}", getattr(t, name), f"at least {least}")
  if not 0 <= t.discount <= 1:
    fail(f"{where}.discount", t.discount, "0 to 1")
  if t.credit == "gap" and t.samples < 1:
    fail(f"{where}.samples", t.samples, f"1 when {where}.credit is gap, which is of own text")
  if t.credit == "support" and t.samples:
    fail(f"{where}.samples", t.samples, f"0 when {where}.credit is support")
  if t.credit in credit.VERDICTS and t.samples and t.answers == 1:
    able = f"above 1 when {where}.credit is {t.credit}, which compares the answers to a problem"
    fail(f"{where}.answers", 1, able)
  if t.credit != "one" and t.cold_traces:
    fail(f"{where}.cold_traces", True, f"False unless {where}.credit is one")
  if t.credit != "one" and t.also:
    fail(f"{where}.also", t.also, f"empty unless {where}.credit is one")
  if t.samples == 1 and t.also:
    fail(
      f"{where}.also", t.also, f"empty when {where}.samples is 1: all examples are the student's"
    )
  if not 0 < t.also_share < 1:
    fail(f"{where}.also_share", t.also_share, "above 0 and below 1")
  if not 0 <= t.alpha <= 1e3:
    fail(f"{where}.alpha", t.alpha, "0 to 1000")
  if t.too_long not in ("cut", "drop", "refuse"):
    fail(f"{where}.too_long", t.too_long, "cut, drop or refuse")
  if t.given not in ("learn", "mask"):
    fail(f"{where}.given", t.given, "learn or mask")
  for name, high in (("learning_rate", 1e3), ("clip", 1e30)):
    if not 1e-30 <= getattr(t, name) <= high:
      fail(f"{where}.{name}", getattr(t, name), f"above 0 and at most {high:g}")
  for name in ("weight_decay", "final_rate"):
    if not 0 <= getattr(t, name) <= 1e3:
      fail(f"{where}.{name}", getattr(t, name), "0 to 1000")
  for name in ("beta1", "beta2"):
    if not 0 <= getattr(t, name) < 1:
      fail(f"{where}.{name}", getattr(t, name), "at least 0 and below 1")
  if not 0 <= t.warmup_steps <= t.steps:
    fail(f"{where}.warmup_steps", t.warmup_steps, f"0 to {where}.steps ({t.steps})")
  if t.steps >= 1 << 31:
    fail(f"{where}.steps", t.steps, f"at most {(1 << 31) - 1}")
  check_seed(f"{where}.seed", t.seed)


def _check_terms(t, where):
  if not t.terms:
    fail(f"{where}.terms", {}, "a dict of at least one term, such as {'sft': {}}")
  for name, term in t.terms:
    at = f"{where}.terms.{name}"
    if not re.fullmatch(r"\w+", name):
      fail(at, name, "a name of letters, digits and _")
    for field, words in (
      ("objective", objectives.OBJECTIVES),
      ("whom", ("teacher", "base", "start", "lagged")),
      ("where", terms.WHERES),
      ("gate", ("off", *terms.GATES)),
    ):
      if getattr(term, field) not in words:
        fail(f"{at}.{field}", getattr(term, field), f"one of {', '.join(words)}")
    if not 0 <= term.scale <= 1e6:
      fail(f"{at}.scale", term.scale, "0 to 1000000")
    if not 0 <= term.beta <= 1:
      fail(f"{at}.beta", term.beta, "0 (fkl) to 1 (rkl)")
    if not 0 < term.share <= 1:
      fail(f"{at}.share", term.share, "above 0 and at most 1")
    numbers = [x for x in term.temperature if type(x) in (int, float) and 0.01 <= x <= 100]
    if len(term.temperature) != 2 or len(numbers) != 2:
      fail(f"{at}.temperature", term.temperature, "two numbers from 0.01 to 100")
    least = 2 if objectives.takes(objectives.OBJECTIVES[term.objective], "top_k") else 0
    if term.top_k < least:
      fail(f"{at}.top_k", term.top_k, f"at least {least} with the objective {term.objective}")
    others = ", ".join(objectives.DIVERGENCES)
    if term.top_k and not least and term.objective not in objectives.DIVERGENCES:
      fail(f"{at}.top_k", term.top_k, f"0 unless the objective is one of rank, pld, {others}")
  if t.lag < 1:
    fail(f"{where}.lag", t.lag, "at least 1")


def check_credit(arm, where, attempts):
  """Raises UserError when an arm's traces have nothing to mask, or nothing that its credit compares.

  attempts: traces of a problem in its collection.
  """
  s, t = arm.select, arm.train
  if t.given != "learn" and not s.after:
    fail(f"{where}.train.given", t.given, f"learn unless {where}.after is set")
  if t.credit in credit.VERDICTS and t.samples < 1:
    if s.keep != "all":
      fail(
        f"{where}.keep",
        s.keep,
        f"all, because {where}.train.credit, {t.credit}, needs wrong traces",
      )
    if s.granularity == "trace" or attempts == 1:
      fail(
        f"{where}.train.credit",
        t.credit,
        f"another one unless {where}.attempts is above 1 and {where}.granularity is chunk, because it "
        "compares the traces of a problem",
      )
