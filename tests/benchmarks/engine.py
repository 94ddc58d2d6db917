"""Compares the engine with loops over transformers and torch, and with the limit of the machine.

  python tests/benchmarks/engine.py --json

Same pair, same work, one process after another on this machine; needs torch. A round proposes K
candidates of C tokens for B rows and scores them. `hf_generate` is teacher.generate on the full
prefix and a full student forward; `hf_public` keeps both caches and shares the prefix among
branches with public interfaces; `hf_cached` is the same with oneDNN's private packed products, the
fastest torch loop we could write. The engine runs with one CPU device per core. The devices split
the slots or the teacher, whichever is faster (`engine_mesh`: data, model).
`engine_one_device_tok_s` is the speed with one device that uses all cores. All numbers are medians
of rounds, the best of `--turns`; quote the ratios.

`real` has the shape of Qwen2.5-0.5B and a student of a tenth. `real_bfloat16` is the same in
bfloat16; its torch loops run in float32, and `hf_public` in bfloat16, too. The limit counts the
bytes of the weights as well as FLOPs, in the workload's dtype and at the higher of the peaks of
float32 and of that dtype.
"""

import argparse
import dataclasses
import functools
import json
import os
import pathlib
import statistics
import sys
import time

ROOT = pathlib.Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))
from tests.benchmarks import contenders  # noqa: E402

BUNDLED = ROOT / "gen_ssd" / "bundled"
WINDOW = 32


def architectures(workload):
  """(teacher's, student's) Architecture."""
  from gen_ssd.models import hf

  if pair := contenders.ENGINE[workload].get("pair"):
    return tuple(contenders.architecture(sizes, bias=True) for sizes in pair)
  return tuple(hf.read_architecture(str(BUNDLED / who)) for who in ("teacher", "student"))


def measure(workload, rounds, model_parallel):
  """Tokens a second of the engine, and the share of a round that scoring takes."""
  import jax
  from jax.sharding import PartitionSpec as P
  import numpy as np

  from gen_ssd import mesh
  from gen_ssd.engine import ring as ring_lib
  from gen_ssd.engine import sampling
  from gen_ssd.engine import scores
  from gen_ssd.engine import state as state_lib
  from gen_ssd.engine import step as step_lib
  from gen_ssd.models import architecture
  from gen_ssd.models import decoder
  from gen_ssd.models.architecture import Layout
  from tests import tiny

  shared = mesh.start(model_parallel)
  w = contenders.ENGINE[workload]
  b, k, c, prompt = (w[name] for name in ("b", "k", "c", "prompt"))
  layout = functools.partial(
    Layout, unroll=True, outputs_first=True, dtype=w.get("dtype", "float32")
  )
  # Random and untied: tied ones repeat themselves on random prompts and would be pruned.
  teacher, student = (
    decoder.unstacked(decoder.initialise(dataclasses.replace(arch, tied=False), layout, key))
    for arch, layout, key in zip(
      architectures(workload),
      (layout(), layout(batch_axes=mesh.AXES, tensor_axis=None)),
      map(jax.random.key, range(2)),
    )
  )
  slots = -(-prompt // c) * c + c * (rounds + 1)
  vocab = teacher.arch.vocab
  tokens = np.zeros((b, slots), np.int32)
  tokens[:, :prompt] = np.random.default_rng(0).integers(0, vocab, (b, prompt))
  fill = lambda n: np.full(b, n, np.int32)
  text = ring_lib.Text(tokens=tokens, length=fill(prompt))
  start = jax.tree.map(
    lambda x: mesh.place(x, P("data", *[None] * (np.ndim(x) - 1))),
    state_lib.Admission(
      slot=np.arange(b, dtype=np.int32),
      teacher=text,
      student=text,
      key=np.stack([jax.random.key_data(sampling.trace_key(0, f"{i:08x}", 0)) for i in range(b)]),
      chunk=fill(0),
      resample=fill(0),
      budget=fill(1 << 20),
      recent=np.full((b, WINDOW - 1), -1, np.int32),
      score_sum=np.zeros(b, np.float32),
      prompt_length=fill(prompt),
      after_thinking=np.zeros(b, bool),
    ),
  )
  knobs = tiny.knobs(
    vocab=np.int32(vocab), token_kind=np.zeros(vocab, np.int8), step_end=np.zeros(vocab, bool)
  )

  static = state_lib.Round(k=k, c=c, scorer=scores.perplexity, block=slots, window=WINDOW)

  def run():
    state = step_lib.blank_state(
      teacher=teacher.spec, student=student and student.spec, b=b, s=slots, window=WINDOW
    )
    state = step_lib.admit(teacher, student, state, start, c=c, block=slots)
    seconds = []
    for _ in range(rounds + 1):
      begin = time.perf_counter()
      state, report = jax.block_until_ready(
        step_lib.select_step(teacher, student, state, knobs, round=static)
      )
      seconds.append(time.perf_counter() - begin)
      assert (report.count == c).all()  # no early end: the same work as the others
    return statistics.median(seconds[1:])

  scoring = _scoring(jax, student, b, k, c, slots)
  seconds = run()
  return {
    "tok_s": b * k * c / seconds,
    "scoring_share": scoring / seconds,
    "products_tok_s": b * k / _products(jax, teacher, b * k),
    "mesh": [*shared.shape.values()],
    "teacher_parameters": architecture.parameters(teacher.arch),
    "student_parameters": architecture.parameters(student.arch),
  }


def _scoring(jax, student, b, k, c, slots):
  """Median seconds of select_step's scoring part, compiled by itself on a full ring."""
  import jax.numpy as jnp
  import numpy as np

  from gen_ssd import mesh
  from gen_ssd.engine import ring as ring_lib
  from gen_ssd.engine import scores
  from gen_ssd.engine import scoring
  from gen_ssd.engine import state as state_lib

  ring = ring_lib.blank(student.spec, b, slots)
  ring = dataclasses.replace(ring, position=abs(ring.position))
  tokens = mesh.place(np.ones((b, k, c), np.int32), jax.P("data", None, None))

  @jax.jit
  def run(student, ring, tokens):
    count = jnp.sum(tokens, -1)
    candidates = state_lib.Candidates(
      tokens=tokens,
      count=count,
      teacher_nll=tokens * 0.0,
      step_start=tokens > 0,
      noise=count * 0.0,
    )
    running = count[:, 0] > 0
    found = scoring.score(student, ring, candidates, running, scores.perplexity, slots)
    return found.nll, found.rank, found.score

  times = []
  for _ in range(6):
    begin = time.perf_counter()
    jax.block_until_ready(run(student, ring, tokens))
    times.append(time.perf_counter() - begin)
  return statistics.median(times[1:])


def _products(jax, teacher, rows):
  """Seconds of the weight products alone of one teacher token step, in XLA, as the engine has them."""
  import jax.numpy as jnp
  import numpy as np

  from gen_ssd import mesh
  from gen_ssd.models import architecture
  from gen_ssd.models import products

  top, layer = architecture.leaves(teacher.arch)
  inputs = {"o": 3, "down": 1, "head": 1, "q": 1, "k": 1, "v": 1, "gate": 1, "up": 1}
  sizes = []
  for name, dims in [*layer.items()] * teacher.arch.layers + [*top.items()]:
    if name in inputs:
      sizes.append((int(np.prod(dims[: inputs[name]])), int(np.prod(dims[inputs[name] :]))))
  if teacher.arch.tied:
    sizes.append((teacher.arch.width, teacher.arch.vocab))
  wide, dtype = max(size[0] for size in sizes), jnp.dtype(teacher.layout.dtype)
  rng = np.random.default_rng(0)
  draw = lambda size: mesh.place(rng.normal(size=size).astype(dtype))
  matrices = [products.outputs_first(draw(size), (0,)) for size in sizes]
  x = mesh.place(rng.normal(size=(rows, wide)).astype(dtype), jax.P("data", None))

  @jax.jit
  def run(x, matrices):
    def step(_, total):
      for w in matrices:
        y = (x[:, : w.values.shape[1]] + 1e-9 * total[:, None])[:, None, None]
        total += products.dot(y.astype(x.dtype), w)[:, 0, 0, 0]
      return total

    return jax.lax.fori_loop(0, 8, step, jnp.zeros_like(x[:, 0]))

  times = []
  for _ in range(4):
    begin = time.perf_counter()
    jax.block_until_ready(run(x, matrices))
    times.append((time.perf_counter() - begin) / 8)
  return min(times)


def kv_bytes(workload, k, prefix=4096):
  """Bytes of both models' caches and chunks at a prefix of 4096 slots, from the engine's state."""
  import jax

  from gen_ssd import mesh
  from gen_ssd.models import attention
  from gen_ssd.models.architecture import Layout
  from gen_ssd.models.architecture import Spec

  mesh.start(devices=jax.devices()[:1])
  w = contenders.ENGINE[workload]
  specs = [Spec(arch, Layout(dtype=w.get("dtype", "float32"))) for arch in architectures(workload)]
  make = lambda: [
    (attention.blank_prefix(s, w["b"], prefix), attention.blank_chunk(s, w["b"], k, w["c"]))
    for s in specs
  ]
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(jax.eval_shape(make)))


def compare(name, rounds, turns):
  """One workload: all contenders in turns, and the machine's limit."""
  w, loops = contenders.ENGINE[name], contenders.HERE / "torch_loops.py"
  dtype, pair = w.get("dtype", "float32"), w.get("pair")
  files = [] if pair else ["--teacher", BUNDLED / "teacher", "--student", BUNDLED / "student"]

  def torch(loop, rounds, dtype=dtype):
    more = ["--loop", loop, "--workload", name, "--rounds", rounds, "--dtype", dtype]
    return lambda: contenders.child(loops, *more, *files)

  def ours(devices, split):
    more = ["--engine", name, "--rounds", rounds, "--split", split]
    return lambda: contenders.child(__file__, *more, devices=devices)

  heads, cores = pair[0]["num_key_value_heads"] if pair else 4, len(os.sched_getaffinity(0))
  fits = lambda size: max(n for n in range(1, cores + 1) if size % n == 0)
  found = contenders.in_turns(
    {
      "shared": ours(fits(w["b"]), 1),
      "alone": ours(1, 1),
      "split": ours(fits(heads), fits(heads)),
      "public": torch("public", rounds),
      **({} if dtype == "float32" else {"public_float32": torch("public", rounds, "float32")}),
      "cached": torch("cached", rounds, "float32"),
      "generate": torch("generate", min(rounds, 3), "float32"),
    },
    turns,
  )
  limit = torch("limit", rounds)()
  engine = max((found[n] for n in ("shared", "alone", "split")), key=lambda row: row["tok_s"])
  public = max(row["tok_s"] for n, row in found.items() if n.startswith("public"))
  gflop = sum(limit["gflop"].values()) / (w["b"] * w["k"] * w["c"])  # of one token
  return {
    "name": name,
    "engine_tok_s": engine["tok_s"],
    **{f"hf_{n}_tok_s": row["tok_s"] for n, row in found.items() if "loop" in row},
    "limit_tok_s": limit["limit_tok_s"],
    "share_of_limit": engine["tok_s"] / limit["limit_tok_s"],
    "peak_gflops": limit["peak_gflops"],
    "bandwidth_gbs": limit["bandwidth_gbs"],
    "share_of_peak": engine["tok_s"] * gflop / limit["peak_gflops"],
    "scoring_share": engine["scoring_share"],
    "kv_bytes_k1": engine["kv_bytes_k1"],
    "kv_bytes_k8": engine["kv_bytes_k8"],
    "xla_products_tok_s": max(found[n]["products_tok_s"] for n in ("shared", "alone")),
    "engine_mesh": engine["mesh"],
    "engine_shared_rows_tok_s": found["shared"]["tok_s"],
    "engine_one_device_tok_s": found["alone"]["tok_s"],
    "engine_over_cached": engine["tok_s"] / found["cached"]["tok_s"],
    "engine_over_public": engine["tok_s"] / public,
    "engine_over_generate": engine["tok_s"] / found["generate"]["tok_s"],
    "teacher_parameters": engine["teacher_parameters"],
    "student_parameters": engine["student_parameters"],
    "load": os.getloadavg()[0],
  }


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
  parser.add_argument("--workloads", nargs="+", choices=contenders.ENGINE, help="default: all")
  parser.add_argument("--rounds", type=int, default=6, help="measured rounds, after one warm-up")
  parser.add_argument("--turns", type=int, default=1, help="of all contenders; the best counts")
  parser.add_argument("--engine", choices=contenders.ENGINE, help=argparse.SUPPRESS)
  parser.add_argument("--split", type=int, default=1, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.engine:
    row = measure(args.engine, args.rounds, args.split)
    print(json.dumps({**row, **{f"kv_bytes_k{k}": kv_bytes(args.engine, k) for k in (1, 8)}}))
    return
  rows = [compare(name, args.rounds, args.turns) for name in args.workloads or contenders.ENGINE]
  speed = {row["name"]: row["engine_tok_s"] for row in rows}
  if {"real", "real_bfloat16"} <= speed.keys():
    rows[-1]["bfloat16_over_float32"] = speed["real_bfloat16"] / speed["real"]
  contenders.show(rows, args.json)


if __name__ == "__main__":
  main()
