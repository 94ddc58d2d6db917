"""The compiled programs of a run, from the facts of its config alone: no weights, no data."""

import math
import os
import re
import typing

import jax
from jax.interpreters import partial_eval

from gen_ssd import chips
from gen_ssd import config as config_lib
from gen_ssd import folders
from gen_ssd import inputs
from gen_ssd import memory
from gen_ssd import mesh as mesh_lib
from gen_ssd import workdir as workdir_lib
from gen_ssd.collect import writer as writer_lib
from gen_ssd.config import Config
from gen_ssd.engine import step as step_lib
from gen_ssd.errors import UserError
from gen_ssd.errors import one_line
from gen_ssd.models import attention
from gen_ssd.models import decoder
from gen_ssd.models import hf
from gen_ssd.models import weights
from gen_ssd.models.architecture import Architecture
from gen_ssd.models.architecture import Spec
from gen_ssd.training import terms
from gen_ssd.training import train as train_lib

Facts = dict[str, typing.Any]


class Pair(typing.NamedTuple):
  """The architectures of teacher and student."""

  teacher: Architecture
  student: Architecture


class Program(typing.NamedTuple):
  """A jitted function and what a run gives it, as shapes on the current mesh."""

  name: str  # step (a round), admit (an admission) or train (an update)
  call: typing.Any
  arguments: tuple
  static: dict[str, typing.Any]
  smaller: str  # the settings that make it smaller, with their values

  def lower(self) -> jax.stages.Lowered:
    return self.call.lower(*self.arguments, **self.static)

  def bytes(self) -> int:
    """Bytes of the arguments that are used, on one device, without the padding of a compiler."""
    program = self.call.trace(*self.arguments, **self.static).jaxpr.jaxpr
    _, used = partial_eval.dce_jaxpr(program, [True] * len(program.outvars))
    one = lambda x: math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    return sum(one(x) for x, is_used in zip(jax.tree.leaves(self.arguments), used) if is_used)


def architectures(config: Config) -> Pair:
  """What config.json of both models says. Downloads nothing else. Raises UserError."""
  only = ("config.json",)
  read = lambda model: hf.read_architecture(hf.locate(model.path, only))
  return Pair(read(config.teacher), read(config.student))


def specs(config: Config, pair: Pair) -> tuple[Spec, Spec]:
  """Teacher and student on the current mesh, as a collection uses them."""
  spec = lambda who: Spec(getattr(pair, who), inputs.layout(config, who))
  return spec("teacher"), spec("student")


def models(config: Config, pair: Pair) -> tuple[decoder.Transformer, decoder.Transformer]:
  """The models of `specs` as shapes."""
  made = tuple(weights.shapes(*spec) for spec in specs(config, pair))
  return mesh_lib.shapes(lambda pair: tuple(map(decoder.unstacked, pair)), made)


def of(config: Config, select: config_lib.Select, pair: Pair) -> dict[str, Program]:
  """{name: Program} of collection `select`, with both models, and of the training."""
  found = [*collecting(config, *models(config, pair), select), training(config, config.train, pair)]
  return {p.name: p for p in found}


def collecting(
  config: Config,
  writer: decoder.Transformer,
  chooser: decoder.Transformer | None,
  select: config_lib.Select,
) -> list[Program]:
  """The programs of a collection with these models, as shapes: a round and an admission."""
  state, admission, knobs = writer_lib.shapes(writer, chooser, select)
  static = writer_lib.round_of(select, config_lib.ring_slots(select))
  smaller = f"slots ({select.slots}), k ({select.k}) or max_tokens ({select.max_tokens})"
  if writer.layout.tensor_axis:  # devices share it
    smaller += f", or raise model_parallel ({config.model_parallel})"
  given, sizes = (writer, chooser, state), dict(c=static.c, block=static.block)
  return [
    Program("step", step_lib.select_step, (*given, knobs), dict(round=static), smaller),
    Program("admit", step_lib.admit, (*given, admission), sizes, smaller),
  ]


def training(config: Config, train: config_lib.Train, pair: Pair, field: str = "train") -> Program:
  """The program of an update with the settings at `field`."""
  smaller = (
    f"{field}.batch_size ({train.batch_size}), {field}.length ({train.length}) or {field}.block "
    f"({train.block})" + f", or set {field}.remat" * (not train.remat)
  )
  kind = attention.implementation(config.attention)

  def second(whom):
    who = "teacher" if whom == "teacher" else "student"
    model, arch = getattr(config, who), getattr(pair, who)
    return Spec(arch, train_lib.second_layout(arch, model, train.unroll, kind))

  others = {whom: second(whom) for whom in terms.frozen(train.terms)}
  shapes = train_lib.shapes(pair.student, train, others, kind)
  static = train_lib.static(train)
  return Program("train", train_lib.train_step, shapes, dict(config=static), smaller)


# ---------------------------------------------------------------- memory


def need(program: Program, have: float) -> tuple[jax.stages.Compiled | None, Facts]:
  """(the compiled program, what it needs of the `have` GiB of a device).

  The program is None when the compiler refuses it for its size. Raises UserError when the compiler
  refuses it for another reason.
  """
  gib = lambda n: round(n / chips.GIB, 6)
  try:
    compiled = program.lower().compile()
  except jax.errors.JaxRuntimeError as error:
    used, has = refused(str(error))
    return None, memory_facts(gib(program.bytes()), None, used, has)
  m = compiled.memory_analysis()
  assert m is not None
  if attention.platform() == "tpu":  # its temporaries count donated arguments again
    peak = m.peak_memory_in_bytes
  else:  # what goes out and is not donated is there beside the arguments
    peak = m.argument_size_in_bytes + m.temp_size_in_bytes
    peak += max(0, m.output_size_in_bytes - m.alias_size_in_bytes)
  rest = peak - m.argument_size_in_bytes
  return compiled, memory_facts(gib(m.argument_size_in_bytes), gib(rest), gib(peak), have)


def memory_facts(
  arguments: float, temporaries: float | None, peak: float | None, have: float
) -> Facts:
  """Memory of a program on one device, in GiB, and whether it fits; None where that is unknown."""
  least = arguments if peak is None else peak
  return {
    "arguments_gib": arguments,
    "temporaries_gib": temporaries,
    "peak_gib": peak,
    "hbm_gib": round(have, 2),
    "fits": False if least >= have else None if peak is None else True,
  }


def refused(error: str) -> tuple[float, float]:
  """(GiB needed, GiB there) of a program that the compiler refused because it does not fit.

  Raises UserError when the compiler had another reason.
  """
  used = re.search(r"Used ([\d.]+)([GM]) of ([\d.]+)G hbm", error) or re.search(
    r"\(([\d.]+)([GM])\) exceeds available HBM \(([\d.]+)G\)", error
  )
  if not used:
    raise UserError(f"the compiler refuses the program: {one_line(error, 400)}")
  return float(used[1]) / (1 if used[2] == "G" else 1024), float(used[3])


def advice(program: Program, facts: Facts) -> str:
  """What to change so that a program fits: a sentence with its `facts`, or nothing if it may fit."""
  if facts["fits"] is not False:
    return ""
  least = "at least " * (facts["peak_gib"] is None)
  size = facts["arguments_gib"] if facts["peak_gib"] is None else facts["peak_gib"]
  return (
    f"{program.name} needs {least}{size:,.1f} GiB per device of {facts['hbm_gib']:,.1f}: "
    f"lower {program.smaller}"
  )


# ---------------------------------------------------------------- before a run


def needed(config: Config, workdir: folders.Path) -> list[tuple[str, Program]]:
  """[(part of the config, Program)]: what a run compiles, without the parts that are finished.

  Left out are programs that only score finished traces, which are smaller, and collections between two
  tokenizers, which use other programs.
  """
  if config.stages == ("pretrain",):
    return []
  pair = architectures(config)
  teacher, student = models(config, pair)
  rows, trains = [], lambda train, field: training(config, train, pair, field)
  if "cold_start" in config.stages and not workdir_lib.has_student(workdir / "cold_start"):
    rows += [("cold_start", p) for p in collecting(config, teacher, None, config.cold_start)]
    rows.append(("warm_up", trains(config.warm_up, "warm_up")))
  for name, arm in config.arms if "collect" in config.stages else ():
    if not (workdir / "arms" / name / "kept.json").exists() and not config.translate:
      plain = config_lib.collection(arm.select)
      writer = teacher if plain.writer == "teacher" else student
      rows += [(f"arms.{name}", p) for p in collecting(config, writer, student, plain)]
      rows += [("warm_up", trains(config.warm_up, "warm_up"))] * (plain.refresh > 0)
  for field, train in config_lib.trainings(config).items() if "train" in config.stages else ():
    names = [name for name, arm in config.arms if arm.train == train]
    homes = [workdir / "arms" / n / f"seed-{i}" for n in names for i in range(config.seeds)]
    if not all(map(workdir_lib.has_student, homes)):
      rows.append((field, trains(train, field)))
      own = [
        config_lib.alone(a.select) for _, a in config.arms if a.train == train and train.samples
      ]
      rows += [(field, p) for s in own for p in collecting(config, student, None, s)]
  if "evaluate" in config.stages and not (workdir / "results.json").exists():
    for name, e in inputs.tests(config):
      where, answers = f"tests.{name}" if name else "evaluate", inputs.answering(config, e)
      for writer in (student, *[teacher] * ("teacher" in config.references)):
        rows += [(where, p) for p in collecting(config, writer, None, answers)]
  return rows


def check(config: Config, workdir: folders.Path, device: typing.Any) -> None:
  """Compiles what a run needs. Raises UserError for the first program that does not fit on `device`.

  The run finds the programs again in JAX's cache of compiled programs, which is the folder `programs`
  of the workdir unless JAX_COMPILATION_CACHE_DIR is set.
  """
  # A CPU swaps before it refuses, and to compile everything first would double a quickstart's time:
  # there, the lower bound of checks.check_devices must do.
  limit = memory.limit(device)
  if limit is None:
    return
  if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    jax.config.update("jax_compilation_cache_dir", str(workdir / "programs"))
  distinct: dict[typing.Any, tuple[str, Program]] = {}
  for part, p in needed(config, workdir):
    leaves, tree = jax.tree.flatten(p.arguments)
    distinct.setdefault((p.name, *leaves, tree, *p.static.values()), (part, p))
  if distinct and jax.process_index() == 0:
    print(f"compiling {len(distinct)} programs, to see that they fit", flush=True)
  for part, p in distinct.values():  # in the same order in every process
    _, facts = need(p, limit / chips.GIB)
    if wrong := advice(p, facts):
      raise UserError(f"{part}: {wrong}")
