"""Reads compiled text (HLO): loops, the compiler's estimate of time, and collectives.

Estimates come from `estimated_cycles` of the TPU compiler: a model without collectives and without
custom calls, which nobody has calibrated. CPU and GPU compilers give none. Kernels are custom calls.
Ours say their bytes and FLOPs themselves; those of SplashAttention are read from its operands.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import math
import re
import typing

import numpy as np

WIDTHS = dict(pred=1, s8=1, u8=1, bf16=2, f16=2, s16=2, u16=2, s64=8, u64=8, f64=8)  # else 4 bytes
LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)$")
ARRAY = re.compile(r"\b(pred|[suf]\d+|bf16)\[([\d,]*)\]")
COLLECTIVES = (
  "all-reduce",
  "all-gather",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
  "collective-broadcast",
)

PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}  # of matrices, for a pair of blocks of SplashAttention

# File of a loop -> its trips, where the text does not say them; 0: it does not run.
Trips = Callable[[str], int | None]


class Instruction(typing.NamedTuple):
  name: str
  type: str
  op: str
  rest: str  # operands and attributes


class Collective(typing.NamedTuple):
  """One kind of communication of a program."""

  kind: str
  bytes: int  # of its result, on one device, each time
  times: int
  crosses_hosts: bool


class Text:
  """A compiled program: its computations, and the source file of every stack frame."""

  def __init__(self, text: str):
    self.computations: dict[str, list[Instruction]] = {}
    self.entry = ""
    name = None
    for line in re.sub(r'\n(?="|\}\})', "", text).splitlines():  # metadata of kernels has lines
      if line.endswith("{") and line.startswith(("%", "ENTRY")):
        name = line.removeprefix("ENTRY ").lstrip("%").split(" ")[0]
        self.entry = name if line.startswith("ENTRY") else self.entry
        self.computations[name] = []
      elif line.startswith("}"):
        name = None
      elif name is not None and (found := LINE.match(line)):
        self.computations[name].append(Instruction(*found.groups()))
    self.files = _files(text)

  def walk(self, trips: Trips) -> Iterator[tuple[Instruction, int, bool]]:
    """Yields (instruction, how often it runs, is it inside a fusion?) of all that is reached."""
    left = [(self.entry, 1, False)]
    while left:
      name, times, fused = left.pop()
      for ins in self.computations.get(name, ()):
        yield ins, times, fused
        if ins.op == "while":
          if again := self.trips(ins, trips):
            left.append((_named(ins, "body"), times * again, fused))
        elif ins.op == "conditional":
          branches = re.search(r"branch_computations=\{([^}]*)\}", ins.rest)
          names = branches[1].split(",") if branches else []
          left += [(n.strip().lstrip("%"), times, fused) for n in names]
        elif ins.op in ("call", "fusion", "async-start"):
          called = _named(ins, "calls") or _named(ins, "to_apply")
          left.append((called, times, fused or ins.op == "fusion"))

  def trips(self, ins: Instruction, trips: Trips) -> int:
    """How often the body of a `while` runs."""
    dynamic = trips(self.file(ins))
    if dynamic == 0:
      return 0
    known = re.search(r'known_trip_count":\{"n":"(\d+)"', ins.rest)
    if known:
      return int(known[1])
    condition = self.computations.get(_named(ins, "condition"), ())
    found = [re.match(r"(\d+)\)", x.rest) for x in condition if x.op == "constant"]
    numbers = [int(m[1]) for m in found if m]
    return min([dynamic, *numbers]) if dynamic else max(numbers, default=1)

  def file(self, ins: Instruction) -> str:
    """The name of the source file that an instruction comes from; empty when nothing says it."""
    if found := re.search(r'source_file="[^"]*?([\w.]+\.py)"', ins.rest):
      return found[1]
    frame = re.search(r"stack_frame_id=(\d+)", ins.rest)
    return self.files.get(int(frame[1]), "") if frame else ""


def _named(ins, attribute):
  found = re.search(attribute + r"=%?([\w.-]+)", ins.rest)
  return found[1] if found else ""


def _files(text):
  """{stack frame id: file name}, from the tables at the head of the text, where there are some."""
  tables: dict[str, dict[int, str]] = {}
  name = ""
  for line in text.splitlines():
    if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
      name = line
    elif not line.strip():
      name = ""
    elif name and (found := re.match(r"(\d+) (.*)", line)):
      tables.setdefault(name, {})[int(found[1])] = found[2]
  number = lambda row, key: int((re.search(key + r"=(\d+)", row) or [0, 0])[1])
  files = {}
  for i, frame in tables.get("StackFrames", {}).items():
    place = tables["FileLocations"].get(number(frame, "file_location_id"), "")
    path = tables["FileNames"].get(number(place, "file_name_id"), "")
    files[i] = path.strip('"').rpartition("/")[2]
  return files


def size(type_: str) -> int:
  """Bytes of all arrays in an HLO type."""
  dims = lambda text: math.prod(int(d) for d in text.split(",") if d)
  return sum(WIDTHS.get(kind, 4) * dims(text) for kind, text in ARRAY.findall(type_))


def milliseconds(text: Text, ghz: float, trips: Trips) -> float | None:
  """The compiler's estimate of a program's time; None when it gives no cycles."""
  cycles = 0
  for ins, times, fused in text.walk(trips):
    if not fused and (found := re.search(r'estimated_cycles":"(\d{1,15})"', ins.rest)):
      cycles += int(found[1]) * times
  return cycles / ghz / 1e6 or None


def kernels(text: Text, trips: Trips) -> list[tuple[int, int, int]]:
  """[(bytes, FLOPs, how often)] of the calls of kernels."""
  found = []
  for ins, times, _ in text.walk(trips):
    if ins.op == "custom-call" and (cost := _said(ins) or _splash(ins)):
      found.append((*cost, times))
  return found


def _said(ins):
  """(bytes, FLOPs) of a kernel as it says itself, or None."""
  said = re.search(r'"cost_estimate":\{([^}]*)\}', ins.rest)
  if not said:
    return None
  cost = {name: int(n) for name, n in re.findall(r'"(\w+)":"?(\d+)', said[1])}
  return cost.get("bytes_accessed", 0), cost.get("flops", 0)


def _splash(ins):
  """(bytes, FLOPs) of a call of SplashAttention, or None: see models/packed_kernel_tpu.py.

  The first operand is a table of pairs of blocks, [1, blocks of queries, blocks of keys]; a window
  makes one of the two shorter. Pairs whose keys all come after the queries are not computed. The third
  operand holds the queries, [b,n,g,t,h], but axes of one element may be missing.
  """
  kind = re.match(r"splash_mqa_(fwd|dq|dkv)_", ins.name)
  operands = re.search(r"operand_layout_constraints=\{(.*?\})\}", ins.rest)
  if not kind or not operands:
    return None
  shapes = [[int(d) for d in dims.split(",")] for _, dims in ARRAY.findall(operands[1])]
  (*_, rows, columns), (*heads, t, h) = shapes[0], shapes[2]
  side = max(rows, columns)
  pairs = min(rows * columns, side * (side + 1) // 2) * (t // side) ** 2
  return size(operands[1]) + size(ins.type), PRODUCTS[kind[1]] * 2 * math.prod(heads) * pairs * h


def collectives(text: Text, hosts: Sequence[int], trips: Trips) -> list[Collective]:
  """The collectives of a program, largest first. `hosts[i]` is the host of the mesh's device i."""
  found: dict[tuple, int] = {}
  for ins, times, fused in text.walk(trips):
    kind, rest = _communication(text, ins)
    if kind in COLLECTIVES and not fused:
      crosses = any(len({hosts[i] for i in group}) > 1 for group in _groups(rest, len(hosts)))
      key = kind, size(ins.type), crosses
      found[key] = found.get(key, 0) + times
  rows = [Collective(kind, n, times, crosses) for (kind, n, crosses), times in found.items()]
  return sorted(rows, key=lambda c: -c.bytes * c.times)


def _communication(text, ins):
  """(kind, attributes) of a collective. For a TPU, a reduce-scatter is an all-reduce in a fusion."""
  called = _named(ins, "calls") if ins.op == "fusion" else ""
  if called.startswith("all-reduce-scatter"):
    return "reduce-scatter", next(x.rest for x in text.computations[called] if x.op == "all-reduce")
  return ins.op.removesuffix("-start"), ins.rest


def _groups(rest, devices):
  """Devices that communicate with each other, as lists of places in the mesh."""
  everyone = [list(range(devices))]
  if found := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]*\})\}", rest):
    groups = [[int(i) for i in g.split(",")] for g in re.findall(r"\{([\d, ]+)\}", found[1])]
    return groups or everyone
  if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", rest):
    sizes = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", found[1])}
    axes = [n for n in sizes if f"'{n}'" in found[2]]
    places = np.arange(math.prod(sizes.values())).reshape(*sizes.values())
    order = [i for i, n in enumerate(sizes) if n not in axes]
    order += [i for i, n in enumerate(sizes) if n in axes]
    return places.transpose(order).reshape(-1, math.prod(sizes[n] for n in axes)).tolist()
  if found := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
    shape, dims = ([int(x) for x in found[i].split(",")] for i in (1, 2))
    places = np.arange(math.prod(dims)).reshape(dims)
    if found[3]:
      places = places.transpose([int(x) for x in found[3].split(",")])
    return places.reshape(shape).tolist()
  return everyone
