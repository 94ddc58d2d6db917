"""Checks of a Config, before any compute.

Every check raises a UserError that names the field, its value, and which values are valid. The file
is long because it is one list, in the order of config.py.
"""

import math
import pathlib
import re

from gen_ssd import inputs
from gen_ssd.collect import posthoc
from gen_ssd.collect import writer as writer_lib
from gen_ssd.engine import scores
from gen_ssd.engine import selectors
from gen_ssd.errors import UserError
from gen_ssd.errors import fail
from gen_ssd.models import hf
from gen_ssd.models import tokenization
from gen_ssd.models import weights
from gen_ssd.problems import sets
from gen_ssd.training import objectives

STAGES = ("cold_start", "collect", "train", "evaluate", "report", "pretrain")


def check(config):
  """Raises UserError for the first invalid setting, model, vocabulary or problem file."""
  check_settings(config)
  check_inputs(config)


def check_settings(config):
  """Raises UserError for the first invalid setting. Reads no model and no problem."""
  for stage in config.stages:
    if stage not in STAGES:
      fail("stages", stage, f"made of {', '.join(STAGES)}")
  for kind, named in (("arms", config.arms), ("tests", config.tests)):
    for name, _ in named:
      if not re.fullmatch(r"[\w.=-]+", name) or name.startswith("."):
        fail(f"{kind}.{name}", name, "a name of letters, digits, _, -, = and ., for a folder")
  for name in ("model_parallel", "seeds"):
    if getattr(config, name) < 1:
      fail(name, getattr(config, name), "at least 1")
  for who in ("teacher", "student"):
    model = getattr(config, who)
    if model.dtype not in ("float32", "bfloat16"):
      fail(f"{who}.dtype", model.dtype, "float32 or bfloat16")
    if model.thinking not in ("", "on", "off"):
      fail(f"{who}.thinking", model.thinking, "on, off or empty")
    if model.chat_template and not pathlib.Path(model.chat_template).is_file():
      fail(f"{who}.chat_template", model.chat_template, "the path of a Jinja file that exists")
    if not model.path and "pretrain" not in config.stages:
      fail(f"{who}.path", model.path, "a Hugging Face directory or hub name")
  if not config.arms and {"collect", "train", "evaluate"} & {*config.stages}:
    fail("arms", {}, "a dict of at least one arm, such as {'gen_ssd': {}}")
  _check_problems(config)
  for where, select in [
    ("select", config.select),
    ("cold_start", config.cold_start),
    *[(f"arms.{n}", s) for n, s in config.arms],
  ]:
    _check_select(select, where)
  for name, plain in (
    ("granularity", "chunk"),
    ("k", 1),
    ("covers", "everything"),
    ("refresh", 0),
    ("threshold", "off"),
    ("margin", "off"),
    ("running_margin", "off"),
  ):
    if getattr(config.cold_start, name) != plain:
      fail(
        f"cold_start.{name}",
        getattr(config.cold_start, name),
        f"{plain}: in the cold start there is no student yet that could choose",
      )
  for where, train in (("warm_up", config.warm_up), ("train", config.train)):
    _check_train(train, where)
  for name in ("start", "cold_traces"):
    plain = getattr(type(config.warm_up)(), name)
    if getattr(config.warm_up, name) != plain:
      fail(
        f"warm_up.{name}",
        getattr(config.warm_up, name),
        f"{plain}: warm_up trains the student of the cold start",
      )
  for name, test in config.tests or (("", config.evaluate),):
    _check_evaluate(test, f"tests.{name}" if name else "evaluate", config)
  if config.pretrain.documents not in ("lessons", "plain"):
    fail("pretrain.documents", config.pretrain.documents, "lessons or plain")


def _check_problems(config):
  p = config.problems
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
  for name in ("slots", "samples"):
    if getattr(e, name) < 1:
      fail(f"{where}.{name}", getattr(e, name), "at least 1")
  if not e.temperature >= 0:
    fail(f"{where}.temperature", e.temperature, "0 (greedy) or more")
  if not 0 < e.top_p <= 1:
    fail(f"{where}.top_p", e.top_p, "above 0 and at most 1 (off)")
  if e.samples > 1 and e.temperature == 0:
    fail(f"{where}.samples", e.samples, f"1 when {where}.temperature is 0")
  _check_source(f"{where}.source", e.source)
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
  positive = ("k", "c", "slots", "prompt", "max_tokens", "attempts", "retries", "shard_rounds")
  for name in positive:
    if getattr(s, name) < 1:
      fail(f"{where}.{name}", getattr(s, name), "at least 1")
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
  if not s.temperature >= 0:
    fail(f"{where}.temperature", s.temperature, "0 (greedy) or more")
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
    ("chooser", ("cold_start", "base")),
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
  if not 0 < s.quantile <= 1:
    fail(f"{where}.quantile", s.quantile, "above 0 and at most 1")
  if not 0 <= s.beta < math.inf:
    fail(f"{where}.beta", s.beta, "0 (uniform) or more")
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
  if t.objective not in objectives.OBJECTIVES:
    fail(f"{where}.objective", t.objective, f"one of {', '.join(objectives.OBJECTIVES)}")
  if t.start not in ("base", "cold_start"):
    fail(f"{where}.start", t.start, "base or cold_start")
  if t.too_long not in ("cut", "drop", "refuse"):
    fail(f"{where}.too_long", t.too_long, "cut, drop or refuse")
  for name in ("learning_rate", "clip"):
    if not 0 < getattr(t, name) < math.inf:
      fail(f"{where}.{name}", getattr(t, name), "above 0 and finite")
  for name in ("weight_decay", "final_rate"):
    if not 0 <= getattr(t, name) < math.inf:
      fail(f"{where}.{name}", getattr(t, name), "0 or more, and finite")
  for name in ("beta1", "beta2"):
    if not 0 <= getattr(t, name) < 1:
      fail(f"{where}.{name}", getattr(t, name), "at least 0 and below 1")
  if t.warmup_steps < 0:
    fail(f"{where}.warmup_steps", t.warmup_steps, "0 or more")


def check_inputs(config):
  """Raises UserError for the first model, vocabulary or problem file that is invalid or missing."""
  if config.stages == ("pretrain",):
    return
  for who in ("teacher", "student"):
    model = getattr(config, who)
    path = hf.locate(model.path)
    weights.check_files(path, hf.read_architecture(path))
  pair = [inputs.tokenizer(config.teacher), inputs.tokenizer(config.student)]
  if not config.translate:
    tokenization.shared_vocabulary(*pair)
  elif tokenization.differences(*pair):
    for name, s in config.arms:
      again = s.granularity == "trace" and posthoc.reads_again(s.scorer)
      for field, wrong in (("scorer", again), ("scoring_prompt", s.scoring_prompt == "teacher")):
        if wrong:  # both give the teacher's token ids to the student
          fail(f"arms.{name}.{field}", getattr(s, field), "another one when the tokenizers differ")
  tokenization.check_thoughts(*pair, "1 + 0?", config.problems.system or None)
  for name, select in config.arms:
    try:
      writer_lib.closing(pair[0], select)
    except ValueError as error:
      raise UserError(f"arms.{name}.covers is 'thinking': {error}; set it to everything") from None
  tightest = min(
    [config.cold_start, config.select, *(s for _, s in config.arms)], key=lambda s: s.prompt
  )
  home = {}
  wanted = [
    ("problems.cold_start", "cold_start", None),
    ("problems.train", "train", None),
    *(
      (f"tests.{name}.limit" if name else "problems.test", "test", e)
      for name, e in inputs.tests(config)
    ),
  ]
  for field, split, e in wanted:
    problems, count = inputs.problems(config, split, e), inputs.part(config, split, e)[1]
    if len(problems) < max(count, 1):
      raise UserError(f"{field} is {count}: the source has only {len(problems)} problems")
    writer_lib.check_prompts(problems, pair, tightest, config.problems.system or None)
    for p in problems:
      text = " ".join(p.problem.split()).casefold()  # a problem may have another uuid elsewhere
      owners = [home.setdefault(key, (split, field)) for key in (p.uuid, text)]
      other = next((f for s, f in owners if s != split), None)
      if other:  # test sets may share problems with each other
        raise UserError(
          f"{field} and {other} share problem {p.uuid}: {p.problem[:60]!r}; use "
          "different problems for them"
        )


def check_devices(config, mesh):
  """Raises UserError for the first batch size that is not a multiple of the devices that split it."""
  refreshed = "collect" in config.stages and any(s.refresh for _, s in config.arms)
  training = ("warm_up", "train") if refreshed or {"cold_start", "train"} & {*config.stages} else ()
  rows = [(f"{name}.batch_size", getattr(config, name).batch_size, mesh.size) for name in training]
  if "pretrain" in config.stages:
    rows = [("train.batch_size", config.train.batch_size, mesh.size)]
  elif {"collect", "cold_start"} & {*config.stages}:
    rows += [("cold_start.slots", config.cold_start.slots, mesh.shape["data"])]  # without a student
    rows += [(f"arms.{name}.slots", s.slots, mesh.size) for name, s in config.arms]
  if "evaluate" in config.stages:
    rows += [
      (f"tests.{name}.slots" if name else "evaluate.slots", e.slots, mesh.shape["data"])
      for name, e in inputs.tests(config)
    ]
  for field, value, size in rows:
    if value % size:
      raise UserError(
        f"{field} is {value}: it must be a multiple of {size}, the number of devices that split it"
      )
