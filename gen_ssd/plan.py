"""Says whether a config fits a TPU slice, how fast it can be and what it costs, before you rent it.

Usage: gen-ssd plan --config=FILE[:ARGUMENT] [--topology=v5p:2x2x1] [--config.FIELD=VALUE ...]

  --topology  a TPU slice, such as v5e:2x4, v6e:4x4, v5p:2x2x1, v4:2x2x2 or tpu7x:2x2x1; the package
              libtpu compiles for it without a TPU, and without libtpu only sizes of arguments and
              rooflines are known (default: the devices of this machine)
  --arm       whose collection is compiled (default: gen_ssd, or the last one)
  --tokens    tokens of a trace, on average (default: half of select.max_tokens)
  --price     of one chip for one hour, in any currency
  --json      one JSON object instead of text
  --row       one row of the table in launch/README.md instead; it needs --topology

The real programs are compiled from shapes alone: no weights are read, and only config.json of a
model on the hub is downloaded, or a whole GGUF file. Times are lower bounds (roofline)
and the TPU compiler's estimate, which counts no communication. It does not know our attention
kernels, which are added at their own roofline. For example:
  gen-ssd plan --config=configs/r1_32b_1p5b.py --topology=v5p:2x2x1
"""

import concurrent.futures
import dataclasses
import importlib.util
import json
import math
import os
import re
import time
import typing

import jax
import numpy as np

from gen_ssd import chips
from gen_ssd import config as config_lib
from gen_ssd import config_checks
from gen_ssd import config_files
from gen_ssd import errors
from gen_ssd import hlo
from gen_ssd import inputs
from gen_ssd import memory
from gen_ssd import mesh as mesh_lib
from gen_ssd import plan_text
from gen_ssd import programs
from gen_ssd.collect import writer as writer_lib
from gen_ssd.engine import scoring
from gen_ssd.errors import UserError
from gen_ssd.errors import fail
from gen_ssd.errors import one_line
from gen_ssd.models import attention
from gen_ssd.problems import sets

UNCOMPILED = ("compile_s", "ms_estimate", "ms_kernel", "collectives")  # unknown without a compiler
MOST_DEVICES = 16384  # more than the largest slice has
UNKNOWN = (
  "libtpu is not installed: temporaries, peak memory, collectives, the number of hosts and the "
  "compiler's estimates are unknown, so a program whose arguments fit may still be too large; "
  f'`pip install "jax[tpu]=={jax.__version__}"` installs the compiler, which needs no TPU'
)
# libtpu reads these when it is loaded; a type of its family keeps it from asking for a real TPU.
ENVIRONMENT = dict(
  ALLOW_MULTIPLE_LIBTPU_LOAD="1",
  TPU_WORKER_HOSTNAMES="localhost",
  TPU_ACCELERATOR_TYPE="v5p-8",
  TPU_SKIP_MDS_QUERY="1",
)


def main() -> None:
  """The command `gen-ssd plan`."""
  with errors.command():
    arguments = config_files.Arguments("plan", __doc__ or "")
    arguments.add_argument("--config", required=True)
    arguments.add_argument("--topology", default="")
    arguments.add_argument("--arm", default="")
    arguments.add_argument("--tokens", type=int, default=0)
    arguments.add_argument("--price", type=float, default=0.0)
    arguments.add_argument("--json", action="store_true")
    arguments.add_argument("--row", action="store_true")
    known, overrides = arguments.parse_known_args()
    if known.tokens < 0:
      fail("--tokens", known.tokens, "0 (half of select.max_tokens) or more")
    if known.row and not known.topology:
      fail("--topology", known.topology, "a TPU slice, with --row")
    if not 0 <= known.price < 1e9:
      fail("--price", known.price, "0 or more")
    config = config_lib.parse(config_files.load(known.config, overrides))
    config_checks.check(config)
    found = plan(config, known.topology, arm=known.arm, tokens=known.tokens, price=known.price)
    if known.json:
      print(json.dumps(found, indent=1))
    else:
      print(plan_text.row(found) if known.row else plan_text.text(found))


def plan(
  config: config_lib.Config,
  topology: str = "",
  *,
  arm: str = "",
  tokens: int = 0,
  price: float = 0.0,
) -> dict[str, typing.Any]:
  """Everything that is known about a run before it starts: see plan_text.py. Raises UserError.

  Args:
    config: a valid Config; its models are read as facts only.
    topology: a TPU slice, or empty for the devices of this machine.
    arm: whose collection is compiled.
    tokens: tokens of a trace, on average; 0: half of its `max_tokens`.
    price: of one chip for one hour.
  """
  devices, compiles = devices_of(topology)
  mesh = mesh_lib.start(config.model_parallel, devices)
  pair, arms = programs.architectures(config), dict(config.arms)
  arm = arm or ("gen_ssd" if "gen_ssd" in arms else list(arms)[-1])
  if arm not in arms:
    fail("--arm", arm, f"one of {', '.join(arms)}")
  select = config_lib.collection(arms[arm].select)
  chip = chips.CHIPS.get(topology.partition(":")[0].lower())
  tokens = tokens or select.max_tokens // 2
  filled = select.prompt / 2 + tokens / 2  # of a ring, on average
  shape = (mesh.shape["data"], mesh.shape["model"])
  parts, student = programs.of(config, select, pair), programs.specs(config, pair)[1]
  found: dict[str, typing.Any] = {
    "config": config.name,
    "arm": arm,
    "topology": topology or f"{len(devices)} x {devices[0].device_kind}",
    "mesh": dict(mesh.shape),
    "chips": len(devices) // (chip.per_chip if chip else 1),
    "hosts": len({d.process_index for d in devices}) if compiles else None,
    "tokens": tokens,
  }
  found["programs"] = (
    _programs(parts, mesh, chip, select, student, filled) if compiles else _uncompiled(parts, chip)
  )
  if chip:
    _price_times(found, config, select, pair, chip, shape, price)
  said = [programs.advice(p, found["programs"][name]) for name, p in parts.items()]
  if chip:
    said.append(_advice(found, config, select, pair, devices, chip))
  found["advice"] = [UNKNOWN] * (not compiles) + [line for line in said if line]
  return found


def devices_of(topology):
  """(devices, is there a compiler for them?) of a TPU slice that need not exist, or this machine.

  Where there is no compiler, as many CPU devices stand for those of the slice.
  """
  if not topology:
    return jax.devices(), True
  name, _, shape = topology.partition(":")
  if name.lower() not in chips.CHIPS or not re.fullmatch(r"\d+x\d+(x\d+)?", shape):
    fail("--topology", topology, f"{', '.join(chips.CHIPS)}, a colon, and a shape such as 2x2x1")
  jax.config.update("jax_platforms", "cpu")
  if importlib.util.find_spec("libtpu") is None:
    return _stand_ins(topology, chips.CHIPS[name.lower()].per_chip, shape), False
  from jax.experimental import topologies

  for key, value in ENVIRONMENT.items():
    os.environ.setdefault(key, value)
  alone = dict(chips_per_host_bounds=(1, 1, 1)) if shape == "1x1" else {}  # a host with one chip
  try:
    found = topologies.get_topology_desc(topology.lower(), "tpu", **alone)
  except Exception as error:  # of any kind; the name of the slice is all that libtpu is given
    raise UserError(
      f"--topology is {topology!r}: {one_line(error, 160)}; choose a slice that exists, and the "
      "libtpu that jax[tpu] names"
    ) from None
  return found.devices, True


def _stand_ins(topology, per_chip, shape):
  """As many CPU devices as a slice has. They only say how arrays are split: nothing runs on them."""
  count = per_chip * math.prod(map(int, shape.split("x")))
  if not 0 < count <= MOST_DEVICES:
    fail("--topology", topology, f"a slice of at most {MOST_DEVICES:,} devices, without libtpu")
  flags = os.environ.get("XLA_FLAGS", "")  # may set another number
  os.environ["XLA_FLAGS"] = re.sub(r"--xla_force_host_platform_device_count=\S*", "", flags)
  jax.config.update("jax_num_cpu_devices", count)
  return jax.devices()


# ---------------------------------------------------------------- compiling


def _programs(found, mesh, chip, select, student, filled):
  """{name: what a Program needs, compiled}; several compile at once. `student` is a Spec."""
  blocks = int(np.ceil(filled / select.block)) if select.block else 1
  filters = {} if select.top_k or select.top_p < 1 else {"sampling.py": 0}  # they are searches
  own = select.slots // writer_lib.entries(select, student).parts, select.k, select.c
  ring_slots = config_lib.ring_slots(select)
  tiles = select.c // scoring.tile_size(student, own, ring_slots, select.block or ring_slots)
  train = found["train"].static["config"]
  size = attention.packed_block(min(train.block, train.length), student.layout.attention)
  count = -(-train.length // size)  # blocks of queries, which read half of the keys on average
  trips = {  # of loops whose number of trips depends on the data
    "step": {"attention.py": blocks, "step.py": select.c, "scoring.py": tiles} | filters,
    "admit": {"attention.py": blocks, "ring.py": -(-select.prompt // select.c)},
    "train": {"packed_blocks.py": (count + 2) // 2},
  }
  share = blocks * select.block / ring_slots if select.block else 1.0
  hosts = [d.process_index for d in mesh.devices.flat]
  have = chip.hbm if chip else memory.available(mesh.local_devices[0]) / chips.GIB

  def one(program):
    start = time.monotonic()
    with jax.set_mesh(mesh):  # which belongs to a thread
      compiled, facts = programs.need(program, have)
    facts |= dict.fromkeys(UNCOMPILED)
    if compiled is None:
      return facts
    facts["compile_s"] = round(time.monotonic() - start, 1)
    text, known = hlo.Text(compiled.as_text()), trips[program.name].get
    ms = hlo.milliseconds(text, chip.ghz, known) if chip else None
    if ms and (calls := hlo.kernels(text, known)):
      full = 1.0 if program.name == "train" else share  # others say what they do at a full ring
      own = sum(full * n * chips.milliseconds(chip, [(size, flops)]) for size, flops, n in calls)
      facts["ms_kernel"], ms = round(own, 2), ms + own
    facts["ms_estimate"] = ms and round(ms, 2)
    facts["collectives"] = [row._asdict() for row in hlo.collectives(text, hosts, known)]
    return facts

  with concurrent.futures.ThreadPoolExecutor(len(found)) as pool:
    return dict(zip(found, pool.map(one, found.values())))


def _uncompiled(found, chip):
  """The same where no compiler is there for the chip."""
  unknown = dict.fromkeys(UNCOMPILED)
  size = lambda p: round(p.bytes() / chips.GIB, 6)
  return {
    n: programs.memory_facts(size(p), None, None, chip.hbm) | unknown for n, p in found.items()
  }


# ---------------------------------------------------------------- time and money


def _price_times(found, config, select, pair, chip, shape, price):
  """Adds times, tokens per second, hours and their price, in place."""
  p, tokens = found["programs"], found["tokens"]
  filled = select.prompt / 2 + tokens / 2
  models = _models(config, pair, shape[1])
  writes, scores = chips.round_ms(chip, select, models, shape, filled)
  devices = shape[0] * shape[1]
  p["step"]["ms_roofline"] = round(writes + scores, 4)
  entries = writer_lib.entries(select, *programs.specs(config, pair)).number
  p["admit"]["ms_roofline"] = round(
    chips.admit_ms(chip, select, models, shape, select.prompt, entries), 4
  )
  p["train"]["ms_roofline"] = round(chips.update_ms(chip, config.train, pair.student, devices), 4)
  found["student_share"] = round(scores / (writes + scores), 3)
  slower = lambda name: (p[name]["ms_estimate"] or 0) / p[name]["ms_roofline"]
  round_ms = max(writes + scores, p["step"]["ms_estimate"] or 0)
  found["kept_tok_s"] = round(select.slots * select.c / (round_ms / 1e3), 1)
  fence = chips.admit_ms(chip, select, models, shape, filled, select.slots)
  fence *= max(1.0, slower("admit"))  # all that is under way is read again
  between = select.shard_rounds * round_ms
  found["fence_share"] = round(fence / (fence + between), 4)
  found["lost_minutes"] = round((fence + between) / 6e4, 1)
  problems, hours = _problems(config), 0.0
  found["problems"] = problems
  plain = {config_lib.collection(arm.select) for _, arm in config.arms}
  for s in plain:  # what is not compiled is as much slower than its bound as what is
    ms = sum(chips.round_ms(chip, s, models, shape, filled))
    written = tokens * (1 - sum(s.cut) / 2 if s.after else 1)
    rounds = problems * config_lib.attempts(s, config.arms) * written / (s.slots * s.c)
    hours += rounds * ms * max(1.0, slower("step")) / 3.6e6
  updates = sum(arm.train.steps for _, arm in config.arms) * config.seeds + config.warm_up.steps
  hours /= 1 - found["fence_share"]
  hours += updates * p["train"]["ms_roofline"] * max(1.0, slower("train")) / 3.6e6
  found["hours"] = round(hours, 2)
  found["chip_hours"] = round(hours * found["chips"], 1)
  if price:
    found["price"] = round(found["chip_hours"] * price, 2)


def _models(config, pair, split):
  """Teacher and student as the roofline sees them, where `split` devices share what is split."""
  parts = lambda spec: split if spec.layout.tensor_axis else 1
  teacher, student = programs.specs(config, pair)
  return chips.model(teacher, parts(teacher)), chips.model(student, parts(student))


def _problems(config):
  """Training problems: what the config says, or all of a known set or of a file."""
  if config.problems.train:
    return config.problems.train
  name = config.problems.source.partition(":")[0]
  if name in sets.SETS:
    return max(sets.SETS[name].rows) - config.problems.cold_start
  return len(inputs.problems(config, "train"))


# ---------------------------------------------------------------- advice


def _advice(found, config, select, pair, devices, chip):
  """A sentence on the split and slots that use the chips best, or nothing if those of the config do."""
  best = _best(found, config, select, pair, devices, chip)
  if best is None:
    return ""
  speed, changes = best
  return (
    f"by the roofline, {changes} would fit and keep {speed:,.0f} tokens/s, "
    f"against {found['kept_tok_s_roofline']:,.0f} of this config"
  )


def _best(found, config, select, pair, devices, chip):
  """(tokens/s, changes) of the split and number of slots that the roofline likes best, or None."""
  filled = select.prompt / 2 + found["tokens"] / 2
  options: list[tuple[float, str]] = []

  def speed(s, split):
    shape, models = (len(devices) // split, split), _models(config, pair, split)
    return s.slots * s.c / (sum(chips.round_ms(chip, s, models, shape, filled)) / 1e3)

  found["kept_tok_s_roofline"] = round(speed(select, config.model_parallel), 1)
  heads = [pair.teacher.kv_heads, *[pair.student.kv_heads] * config.split_student]
  splits = [n for n in (1, 2, 4, 8) if not any(size % n for size in (len(devices), *heads))]
  models = programs.specs(config, pair)
  spare = 1.15  # temporaries of the compiled step
  for split in splits:
    for slots in _doubled(len(devices), 1024):
      s = dataclasses.replace(select, slots=slots)
      need = memory.collecting(s, *models, len(devices), split) * spare
      if need < chip.hbm * chips.GIB:
        options.append((speed(s, split), f"model_parallel={split} and slots={slots}"))
  best = max(options, default=None)
  if best is None or best[0] < 1.1 * found["kept_tok_s_roofline"]:
    return None
  return best


def _doubled(start, most):
  while start <= most:
    yield start
    start *= 2


if __name__ == "__main__":
  main()
