"""Checks of the settings of a Config; checks.py looks at what they name.

Every check raises a UserError that names the field, its value, and which values are valid. Those of
how traces are chosen and of what is learned are in select_checks.py and train_checks.py.
"""

import pathlib
import re

from gen_ssd import config as config_lib
from gen_ssd import select_checks
from gen_ssd import trackers
from gen_ssd import train_checks
from gen_ssd.errors import fail
from gen_ssd.problems import sets

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
    if model.quantization not in ("off", "int8"):
      fail(f"{who}.quantization", model.quantization, "off or int8")
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
    select_checks.check(select, where)
  for name, plain in (
    ("granularity", "chunk"),
    ("k", 1),
    ("covers", "everything"),
    ("refresh", 0),
    ("writer", "teacher"),
    ("after", ""),
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
        f"{_said(plain)}: in the cold start there is no student yet that could choose",
      )
  shared = {"warm_up": config.warm_up, "train": config.train}
  for where, train in (shared | config_lib.trainings(config)).items():
    train_checks.check(train, where)
  _check_names(config)
  for name, arm in config.arms:
    attempts = config_lib.attempts(arm.select, config.arms)
    train_checks.check_credit(arm, f"arms.{name}", attempts)
  for name in ("start", "cold_traces", "also", "given", "samples"):
    plain = getattr(type(config.warm_up)(), name)
    if getattr(config.warm_up, name) != plain:
      fail(
        f"warm_up.{name}",
        getattr(config.warm_up, name),
        f"{_said(plain)}: warm_up trains the student of the cold start",
      )
  for name, test in config.tests or (("", config.evaluate),):
    _check_evaluate(test, f"tests.{name}" if name else "evaluate", config)
  _check_calibrated(config)
  _check_pretrain(config.pretrain)


def _said(value):
  return "empty" if value == "" else value


def _check_names(config):
  """What arms say of each other: each model that they name is there, and none waits for itself."""
  arms = [name for name, _ in config.arms]
  for name in arms:
    if name in REFERENCES:
      fail(f"arms.{name}", name, f"another name than {', '.join(REFERENCES)}, which are models")
  shared = config_lib.Arm(config.select, config.train)
  for field, value in config_lib.references(shared).items():
    _check_model(field if field.startswith("train.") else f"select.{field}", field, value, arms)
  _check_model("cold_start.chooser", "chooser", config.cold_start.chooser, arms)
  for name, arm in config.arms:
    others = [x for x in arms if x != name]
    for field, value in config_lib.references(arm).items():
      _check_model(f"arms.{name}.{field}", field, value, others)
  config_lib.ordered(config.arms)
  by_name = dict(config.arms)
  for name, arm in config.arms:
    source = by_name.get(arm.select.after)
    if source and arm.select.max_tokens < (most := source.select.max_tokens):
      able = f"at least {most}, the most tokens of the traces of {arm.select.after}"
      fail(f"arms.{name}.max_tokens", arm.select.max_tokens, able)


def _check_model(where, field, value, arms):
  """A field that names a model: one that no arm trains, or that of one of `arms`.

  `after` and `train.also` name an arm, or nothing.
  """
  if field in ("after", "train.also"):
    if value not in ("", *arms):
      fail(where, value, " or ".join(["empty", *[f"one of {', '.join(arms)}"] * bool(arms)]))
    return
  models = REFERENCES if field == "writer" else REFERENCES[1:]  # the teacher only writes
  if value not in (able := [*models, *arms]):
    fail(where, value, f"one of {', '.join(able)}")


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


def _check_problems(config):
  p = config.problems
  select_checks.check_seed("problems.seed", p.seed)
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
  for name, least in (("slots", select_checks.FEWEST_SLOTS), ("samples", 1)):
    if getattr(e, name) < least:
      fail(f"{where}.{name}", getattr(e, name), f"at least {least}")
  select_checks.check_temperature(f"{where}.temperature", e.temperature)
  select_checks.check_seed(f"{where}.seed", e.seed)
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
