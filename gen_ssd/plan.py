"""Says whether a config fits a TPU slice, how fast it can be and what it costs, before you rent it.

Usage: gen-ssd plan --config=FILE[:ARGUMENT] [--topology=v5p:2x2x1] [--config.FIELD=VALUE ...]

  --topology  a TPU slice, such as v5e:2x4, v6e:4x4, v5p:2x2x1, v4:2x2x2 or tpu7x:2x2x1; it needs
              the package libtpu, but no TPU (default: the devices of this machine)
  --arm       whose collection is compiled (default: gen_ssd, or the last one)
  --tokens    tokens of a trace, on average (default: half of select.max_tokens)
  --price     of one chip for one hour, in any currency
  --json      one JSON object instead of text

The real programs are compiled from shapes alone: no weights are read, and only config.json of a
model on the hub is downloaded. Times are lower bounds (roofline) and the TPU compiler's estimate,
which counts no communication. For example:
  gen-ssd plan --config=configs/r1_32b_1p5b.py --topology=v5p:2x2x1
"""

import concurrent.futures
import dataclasses
import json
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
from gen_ssd import programs
from gen_ssd.errors import UserError
from gen_ssd.errors import fail
from gen_ssd.errors import one_line
from gen_ssd.problems import sets

LISTED = 6  # collectives of a program that are printed
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
    known, overrides = arguments.parse_known_args()
    if known.tokens < 0:
      fail("--tokens", known.tokens, "0 (half of select.max_tokens) or more")
    if not 0 <= known.price < 1e9:
      fail("--price", known.price, "0 or more")
    config = config_lib.parse(config_files.load(known.config, overrides))
    config_checks.check(config)
    found = plan(config, known.topology, arm=known.arm, tokens=known.tokens, price=known.price)
    print(json.dumps(found, indent=1) if known.json else text(found))


def plan(
  config: config_lib.Config,
  topology: str = "",
  *,
  arm: str = "",
  tokens: int = 0,
  price: float = 0.0,
) -> dict[str, typing.Any]:
  """Everything that is known of a run before it: see `text`. Raises UserError.

  Args:
    config: a valid Config; its models are read as facts only.
    topology: a TPU slice, or empty for the devices of this machine.
    arm: whose collection is compiled.
    tokens: tokens of a trace, on average; 0: half of its `max_tokens`.
    price: of one chip for one hour.
  """
  devices = _devices(topology)
  mesh = mesh_lib.start(config.model_parallel, devices)
  pair, arms = programs.architectures(config), dict(config.arms)
  arm = arm or ("gen_ssd" if "gen_ssd" in arms else list(arms)[-1])
  if arm not in arms:
    fail("--arm", arm, f"one of {', '.join(arms)}")
  select = config_lib.collection(arms[arm])
  chip = chips.CHIPS.get(topology.partition(":")[0].lower())
  tokens = tokens or select.max_tokens // 2
  filled = select.prompt / 2 + tokens / 2  # of a ring, on average
  shape = (mesh.shape["data"], mesh.shape["model"])
  found: dict[str, typing.Any] = {
    "config": config.name,
    "arm": arm,
    "topology": topology or f"{len(devices)} x {devices[0].device_kind}",
    "mesh": dict(mesh.shape),
    "chips": len(devices) // (chip.per_chip if chip else 1),
    "hosts": len({d.process_index for d in devices}),
    "tokens": tokens,
    "programs": _programs(config, select, pair, mesh, chip, filled),
  }
  if chip:
    _price_times(found, config, select, pair, chip, shape, price)
  found["advice"] = _advice(found, config, select, pair, devices, chip)
  return found


def _devices(topology):
  """The devices of a TPU slice that need not exist, or of this machine."""
  if not topology:
    return jax.devices()
  name, _, shape = topology.partition(":")
  if name.lower() not in chips.CHIPS or not re.fullmatch(r"\d+x\d+(x\d+)?", shape):
    fail("--topology", topology, f"{', '.join(chips.CHIPS)}, a colon, and a shape such as 2x2x1")
  from jax.experimental import topologies

  jax.config.update("jax_platforms", "cpu")
  for key, value in ENVIRONMENT.items():
    os.environ.setdefault(key, value)
  try:
    return topologies.get_topology_desc(platform="tpu", topology_name=topology.lower()).devices
  except Exception as error:  # of any kind: libtpu is not there, or knows no such slice
    raise UserError(
      f"--topology is {topology!r}: {one_line(error, 160)}; install the libtpu that jax[tpu] "
      "names, and choose a slice that exists"
    ) from None


# ---------------------------------------------------------------- compiling


def _programs(config, select, pair, mesh, chip, filled):
  """{name: what its compiled form needs}; several compile at once."""
  lowered = {name: programs.lower(config, select, pair, name) for name in programs.NAMES}
  blocks = int(np.ceil(filled / select.block)) if select.block else 1
  trips = {  # of loops whose number of trips depends on the data
    "step": {"attention.py": blocks, "step.py": select.c},
    "admit": {"attention.py": blocks, "ring.py": -(-select.prompt // select.c)},
    "train": {},
  }
  hosts = [d.process_index for d in mesh.devices.flat]
  have = chip.hbm if chip else memory.available(mesh.local_devices[0]) / chips.GIB

  def one(name):
    start = time.monotonic()
    try:
      compiled = lowered[name].compile()
    except jax.errors.JaxRuntimeError as error:
      return _too_large(str(error), have)
    found = {"compile_s": round(time.monotonic() - start, 1), **_memory(compiled, have)}
    text, known = hlo.Text(compiled.as_text()), lambda file: trips[name].get(file, 0)
    ms = hlo.milliseconds(text, chip.ghz, known) if chip else None
    rows = hlo.collectives(text, hosts, known)
    found["ms_estimate"] = ms and round(ms, 2)
    found["collectives"] = [row._asdict() for row in rows]
    return found

  with concurrent.futures.ThreadPoolExecutor(len(lowered)) as pool:
    return dict(zip(lowered, pool.map(one, lowered)))


def _memory(compiled, have):
  """Memory of a compiled program on one device, in GiB."""
  m = compiled.memory_analysis()
  gib = lambda n: round(n / chips.GIB, 6)
  # What goes out and is not donated is there beside the arguments.
  peak = m.argument_size_in_bytes + m.temp_size_in_bytes
  peak += max(0, m.output_size_in_bytes - m.alias_size_in_bytes)
  return {
    "arguments_gib": gib(m.argument_size_in_bytes),
    "temporaries_gib": gib(m.temp_size_in_bytes),
    "peak_gib": gib(peak),
    "hbm_gib": round(have, 2),
    "fits": bool(peak / chips.GIB < have),
  }


def _too_large(error, have):
  """The same of a program that the compiler refused because it does not fit."""
  used = re.search(r"Used ([\d.]+)([GM]) of ([\d.]+)G hbm", error) or re.search(
    r"\(([\d.]+)([GM])\) exceeds available HBM \(([\d.]+)G\)", error
  )
  if not used:
    raise UserError(f"the compiler refuses the program: {one_line(error, 400)}")
  peak = float(used[1]) / (1 if used[2] == "G" else 1024)
  return {"peak_gib": peak, "hbm_gib": float(used[3]), "fits": False, "ms_estimate": None,
          "collectives": []}  # fmt: skip


# ---------------------------------------------------------------- time and money


def _price_times(found, config, select, pair, chip, shape, price):
  """Adds times, tokens per second, hours and their price, in place."""
  p, tokens = found["programs"], found["tokens"]
  filled = select.prompt / 2 + tokens / 2
  models = _models(config, pair, shape[1])
  writes, scores = chips.round_ms(chip, select, models, shape, filled)
  devices = shape[0] * shape[1]
  p["step"]["ms_roofline"] = round(writes + scores, 2)
  p["admit"]["ms_roofline"] = round(chips.admit_ms(chip, select, models, shape, select.prompt), 2)
  p["train"]["ms_roofline"] = round(chips.update_ms(chip, config.train, pair.student, devices), 2)
  found["student_share"] = round(scores / (writes + scores), 3)
  slower = lambda name: (p[name]["ms_estimate"] or 0) / p[name]["ms_roofline"]
  found["kept_tok_s"] = round(
    select.slots * select.c / (max(writes + scores, p["step"]["ms_estimate"] or 0) / 1e3), 1
  )
  problems, hours = _problems(config), 0.0
  found["problems"] = problems
  plain = {config_lib.collection(s) for _, s in config.arms}
  for s in plain:  # what is not compiled is as much slower than its bound as what is
    ms = sum(chips.round_ms(chip, s, models, shape, filled))
    rounds = problems * s.attempts * tokens / (s.slots * s.c)
    hours += rounds * ms * max(1.0, slower("step")) / 3.6e6
  updates = config.train.steps * len(config.arms) * config.seeds + config.warm_up.steps
  hours += updates * p["train"]["ms_roofline"] * max(1.0, slower("train")) / 3.6e6
  found["hours"] = round(hours, 2)
  found["chip_hours"] = round(hours * found["chips"], 1)
  if price:
    found["price"] = round(found["chip_hours"] * price, 2)


def _models(config, pair, split):
  """Teacher and student as the roofline sees them, where `split` devices share the teacher."""
  teacher = chips.model(pair.teacher, config.teacher.dtype, split)
  return teacher, chips.model(pair.student, config.student.dtype)


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
  """Sentences on what to change."""
  lines = []
  for name, p in found["programs"].items():
    if not p["fits"]:
      what = (
        "train.batch_size, train.length or train.block, or set train.remat"
        if name == "train"
        else f"slots ({select.slots}), k ({select.k}) or max_tokens ({select.max_tokens}), or raise "
        f"model_parallel ({config.model_parallel})"
      )
      lines.append(
        f"{name} needs {p['peak_gib']:.1f} GiB per device of {p['hbm_gib']:.1f}: lower {what}"
      )
  if any(c["crosses_hosts"] for p in found["programs"].values() for c in p["collectives"]):
    if config.model_parallel > 1:
      lines.append("some collectives cross hosts; model_parallel within one host is faster")
  best = _best(found, config, select, pair, devices, chip) if chip else None
  if best:
    speed, changes = best
    lines.append(
      f"by the roofline, {changes} would fit and keep {speed:,.0f} tokens/s, "
      f"against {found['kept_tok_s_roofline']:,.0f} of this config"
    )
  return lines


def _best(found, config, select, pair, devices, chip):
  """(tokens/s, changes) of the split and number of slots that the roofline likes best, or None."""
  filled = select.prompt / 2 + found["tokens"] / 2
  options: list[tuple[float, str]] = []

  def speed(s, split):
    shape, models = (len(devices) // split, split), _models(config, pair, split)
    return s.slots * s.c / (sum(chips.round_ms(chip, s, models, shape, filled)) / 1e3)

  found["kept_tok_s_roofline"] = round(speed(select, config.model_parallel), 1)
  splits = [n for n in (1, 2, 4, 8) if not len(devices) % n and not pair.teacher.kv_heads % n]
  models = (pair.teacher, config.teacher.dtype), (pair.student, config.student.dtype)
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


# ---------------------------------------------------------------- text


def _row(name, p):
  """The line of one program."""
  number = lambda key, unit="": "-" if p.get(key) is None else f"{p[key]:,.1f}{unit}"
  use = f"{p['peak_gib']:,.1f} of {p['hbm_gib']:,.1f} {'fits' if p['fits'] else 'DOES NOT FIT'}"
  times = f"{number('ms_estimate', ' ms'):>13}{number('ms_roofline', ' ms'):>12}"
  sizes = f"{number('arguments_gib'):>10}{number('temporaries_gib'):>13}"
  return f"{name:<9}{sizes}  {use:<27}{number('compile_s', ' s'):>8}{times}"


def text(found: dict[str, typing.Any]) -> str:
  """A plan for people."""
  rows = [
    f"{found['config']}, arm {found['arm']}, on {found['topology']}: {found['chips']} chips of "
    f"{found['hosts']} hosts, mesh {found['mesh']}",
    "",
    "program   arguments  temporaries  peak of memory, GiB         compile     estimate    roofline",
  ]
  rows += [_row(name, p) for name, p in found["programs"].items()]
  for name, p in found["programs"].items():
    for c in p["collectives"][:LISTED]:
      where = ", across hosts" if c["crosses_hosts"] else ""
      rows.append(f"  {name}: {c['times']:,} x {c['kind']} of {c['bytes'] / 2**20:,.2f} MiB{where}")
  if "kept_tok_s" in found:
    rows += [
      "",
      f"{found['kept_tok_s']:,.0f} kept tokens/s at best; the student takes "
      f"{found['student_share']:.0%} of a round",
      f"{found['hours']:,.1f} hours, {found['chip_hours']:,.1f} chip-hours"
      + (f", price {found['price']:,.2f}" if "price" in found else "")
      + f" for {found['problems']:,} problems in every arm, traces of {found['tokens']:,} tokens and "
      "all training; without evaluation, start-up and communication",
    ]
  return "\n".join([*rows, *(f"- {line}" for line in found["advice"])])


if __name__ == "__main__":
  main()
