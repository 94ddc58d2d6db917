"""Checks of the settings of a Config; checks.py looks at what they name.

Every check raises a UserError that names the field, its value, and which values are valid. The file
is long because it is one list, in the order of config.py.
"""

import math
import pathlib
import re

from gen_ssd import config as config_lib
from gen_ssd import trackers
from gen_ssd.engine import scores
from gen_ssd.engine import selectors
from gen_ssd.errors import fail
from gen_ssd.problems import sets
from gen_ssd.training import credit
from gen_ssd.training import objectives
from gen_ssd.training import terms

FEWEST_SLOTS = 2  # JAX cannot gather from an array whose only slot is on an axis of the mesh
ATTENTION = ("auto", "einsum", "kernel", "cudnn")
REFERENCES = ("teacher", "base", "cold_start")
STAGES = ("cold_start", "collect", "train", "evaluate", "report", "pretrain")


def check(config):
  """Raises UserError for the first invalid setting. Reads no model and no problem."""
  for stage in config.stages:
    if stage not in STAGES:
      fail("stages", config.stages, f"made of {', '.join(STAGES)}")
  if not config.stages or len({*config.stages}) < len(config.stages):
    fail("stages", config.stages, f"at least one of {', '.join(STAGES)}, and each only once")
  if "pretrain" in config.stages and len(config.stages) > 1:
    fail("stages", config.stages, "pretrain alone, or the others without it")
  known = [*trackers.TABLE]
  if any(config.trackers.count(x) > 1 or x not in known for x in config.trackers):
    fail("trackers", config.trackers, f"made of {', '.join(known)}, each at most once")
  if not config.name.isprintable() or len(config.name) > 100:
    fail("name", config.name, "at most 100 printable characters")
  for kind, named in (("arms", config.arms), ("tests", config.tests)):
    for name, _ in named:
      if not re.fullmatch(r"[\w.=-]+", name) or name.startswith("."):
        fail(f"{kind}.{name}", name, "a name of letters, digits, _, -, = and ., for a folder")
  if config.model_parallel < 1:
    fail("model_parallel", config.model_parallel, "at least 1")
  if config.attention not in ATTENTION:
    fail("attention", config.attention, f"one of {', '.join(ATTENTION)}")
  if not 1 <= config.seeds <= 1000:
    fail("seeds", config.seeds, "1 to 1000")
  for who in ("teacher", "student"):
    model = getattr(config, who)
    if model.dtype not in ("float32", "bfloat16"):
      fail(f"{who}.dtype", model.dtype, "float32 or bfloat16")
    if model.thinking not in ("", "on", "off"):
      fail(f"{who}.thinking", model.thinking, "on, off or empty")
    if model.chat_template and not pathlib.Path(model.chat_template).is_file():
      fail(f"{who}.chat_template", model.chat_template, "the path of a Jinja file that exists")
    if not model.path and "pretrain" not in config.stages:
      fail(f"{who}.path", model.path, "a Hugging Face directory, a .gguf file or a hub name")
  needed = {"cold_start", "collect", "train"} & {*config.stages}
  if not config.arms and (needed or "evaluate" in config.stages and not config.references):
    fail("arms", {}, "a dict of at least one arm, such as {'gen_ssd': {}}")
  given = config.references
  if any(x not in REFERENCES or given.count(x) > 1 for x in given):
    fail("references", given, f"made of {', '.join(REFERENCES)}, each at most once")
  _check_problems(config)
  for where, select in [
    ("select", config.select),
    ("cold_start", config.cold_start),
    *[(f"arms.{n}", arm.select) for n, arm in config.arms],
  ]:
    _check_select(select, where)
  for name, plain in (
    ("granularity", "chunk"),
    ("k", 1),
    ("covers", "everything"),
    ("refresh", 0),
    ("writer", "teacher"),
    ("threshold", "off"),
    ("margin", "off"),
    ("running_margin", "off"),
    ("teacher_share", 1.0),
    ("branch_entropy", 0.0),
  ):
    if getattr(config.cold_start, name) != plain:
      fail(
        f"cold_start.{name}",
        getattr(config.cold_start, name),
        f"{plain}: in the cold start there is no student yet that could choose",
      )
  shared = {"warm_up": config.warm_up, "train": config.train}
  for where, train in (shared | config_lib.trainings(config)).items():
    _check_train(train, where)
  _check_names(config)
  for name, arm in config.arms:
    _check_credit(arm, f"arms.{name}")
  for name in ("start", "cold_traces", "samples"):
    plain = getattr(type(config.warm_up)(), name)
    if getattr(config.warm_up, name) != plain:
      fail(
        f"warm_up.{name}",
        getattr(config.warm_up, name),
        f"{plain}: warm_up trains the student of the cold start",
      )
  for name, test in config.tests or (("", config.evaluate),):
    _check_evaluate(test, f"tests.{name}" if name else "evaluate", config)
  _check_calibrated(config)
  _check_pretrain(config.pretrain)


def _check_names(config):
  """What arms say of each other: each model that they name is there, and none waits for itself."""
  arms = [name for name, _ in config.arms]
  for name in arms:
    if name in REFERENCES:
      fail(f"arms.{name}", name, f"another name than {', '.join(REFERENCES)}, which are models")
  shared = config_lib.Arm(config.select, config.train)
  places = [(f"arms.{name}.{field}", name, field, x) for name, arm in config.arms
            for field, x in config_lib.references(arm).items()]  # fmt: skip
  for where, name, field, value in [
    *[("select." * (field != "train.start") + field, "", field, x)
      for field, x in config_lib.references(shared).items()],
    ("cold_start.chooser", "", "chooser", config.cold_start.chooser),
    *places,
  ]:  # fmt: skip
    models = REFERENCES[field != "writer" :]
    able = [*models, *(x for x in arms if x != name)]
    if value not in able:
      fail(where, value, f"one of {', '.join(able)}")
  config_lib.ordered(config.arms)


def _check_credit(arm, where):
  """The traces that an arm keeps must give its credit something to compare."""
  s, t = arm.select, arm.train
  if t.credit in credit.VERDICTS and t.samples < 1:
    if s.keep != "all":
      fail(
        f"{where}.keep",
        s.keep,
        f"all, because {where}.train.credit, {t.credit}, needs wrong traces",
      )
    if s.granularity == "trace" or s.attempts == 1:
      fail(
        f"{where}.train.credit",
        t.credit,
        f"another one unless {where}.attempts is above 1 and {where}.granularity is chunk, because it "
        "compares the traces of a problem",
      )


def _check_calibrated(config):
  users = [n for n, arm in config.arms if arm.select.threshold == "calibrated"]
  if users and not config.problems.held_out:
    fail(
      "problems.held_out",
      0,
      f"at least 1, because the threshold of arms.{users[0]} is calibrated on these problems",
    )


def _check_pretrain(p):
  if p.documents not in ("lessons", "plain"):
    fail("pretrain.documents", p.documents, "lessons or plain")
  for name in ("width", "layers", "heads", "head", "hidden"):
    if not 1 <= getattr(p, name) <= 1 << 16:
      fail(f"pretrain.{name}", getattr(p, name), f"1 to {1 << 16}")
  if p.head % 2:
    fail("pretrain.head", p.head, "even, because positions rotate pairs of numbers")
  if p.out and pathlib.Path(p.out).exists() and not pathlib.Path(p.out, "config.json").is_file():
    fail("pretrain.out", p.out, "a folder that does not exist, or that holds a model")


def _check_seed(field, seed):
  if not 0 <= seed < 1 << 32:
    fail(field, seed, f"0 to {(1 << 32) - 1}")


def _check_problems(config):
  p = config.problems
  _check_seed("problems.seed", p.seed)
  for name, source in (
    ("train", p.source),
    ("cold_start", "bundled"),
    ("test", p.test_source or p.source),
  ):
    if getattr(p, name) < (source == "bundled"):
      fail(
        f"problems.{name}",
        getattr(p, name),
        "at least 1" + ("" if source == "bundled" else ", or 0 for all of a file"),
      )
  if not 0 <= p.held_out < p.cold_start:
    fail("problems.held_out", p.held_out, f"0 to {p.cold_start - 1} (problems.cold_start - 1)")
  if not 0 <= p.held_out_samples <= 64:
    fail("problems.held_out_samples", p.held_out_samples, "0 (none) to 64")
  if not 0 < p.overlap <= 1:
    fail("problems.overlap", p.overlap, "above 0 and at most 1 (only equal problems are left out)")
  for name in ("source", "cold_start_source", "test_source"):
    _check_source(f"problems.{name}", getattr(p, name))
  named = config.tests and all(test.source for _, test in config.tests)
  if p.source != "bundled" and not (p.test_source or config.evaluate.source or named):
    fail(
      "problems.test_source",
      "",
      "set when problems.source is a file, so that test problems are not training problems",
    )


def _check_source(field, source):
  try:
    if source:
      sets.parts(source)
  except ValueError as error:
    fail(field, source, error)


def _check_evaluate(e, where, config):
  for name, least in (("slots", FEWEST_SLOTS), ("samples", 1)):
    if getattr(e, name) < least:
      fail(f"{where}.{name}", getattr(e, name), f"at least {least}")
  _check_temperature(f"{where}.temperature", e.temperature)
  _check_seed(f"{where}.seed", e.seed)
  if not 0 < e.top_p <= 1:
    fail(f"{where}.top_p", e.top_p, "above 0 and at most 1 (off)")
  if e.samples > 1 and e.temperature == 0:
    fail(f"{where}.samples", e.samples, f"1 when {where}.temperature is 0")
  _check_source(f"{where}.source", e.source)
  if e.examples and not pathlib.Path(e.examples).is_file():
    fail(
      f"{where}.examples", e.examples, "the path of a .jsonl, .json or .parquet file that exists"
    )
  if e.limit < (e.source == "bundled"):
    fail(f"{where}.limit", e.limit, "at least 1 for bundled problems, else 0 (all) or more")
  if e.max_tokens < 0 or e.max_tokens % config.select.c:
    fail(
      f"{where}.max_tokens",
      e.max_tokens,
      f"0 (as select.max_tokens), or a multiple of select.c ({config.select.c})",
    )


def _check_select(s, where):
  _check_sizes(s, where)
  _check_sampling(s, where)
  _check_words(s, where)
  _check_choice(s, where)
  if s.granularity == "trace":
    _check_whole_traces(s, where)


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
  _check_temperature(f"{where}.temperature", s.temperature)
  _check_seed(f"{where}.seed", s.seed)
  if s.top_k < 0:
    fail(f"{where}.top_k", s.top_k, "0 (off) or more")
  if not 0 < s.top_p <= 1:
    fail(f"{where}.top_p", s.top_p, "above 0 and at most 1 (off)")


def _check_temperature(field, x):
  if x and not 1e-3 <= x <= 1e3:
    fail(field, x, "0 (greedy), or 0.001 to 1000")


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


def _check_train(t, where):
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
  if not 0 <= t.alpha <= 1e3:
    fail(f"{where}.alpha", t.alpha, "0 to 1000")
  if t.too_long not in ("cut", "drop", "refuse"):
    fail(f"{where}.too_long", t.too_long, "cut, drop or refuse")
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
  _check_seed(f"{where}.seed", t.seed)
