"""Compares the engine with loops over transformers and torch, and with the limit of the machine.

  python tests/benchmarks/engine.py --json

Same pair, same work, f32, one process after another on this machine; needs torch. A round
proposes K candidates of C tokens for B rows and scores them. `hf_generate` is teacher.generate on
the full prefix and a full student forward; `hf_public` keeps both caches and shares the prefix
among branches with public interfaces; `hf_cached` is the same with oneDNN's private packed
products, the fastest torch loop we could write. The engine runs with one CPU device per core. The
devices split the slots or the teacher, whichever is faster (`engine_mesh`: data, model).
`engine_one_device_tok_s` is the speed with one device that uses all cores. All numbers are medians
of rounds; quote the ratios.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent
BUNDLED = ROOT / "gen_ssd" / "bundled"
WORKLOADS = {"mid": dict(b=8, k=4, c=32, prompt=128), "bundled": dict(b=32, k=4, c=32, prompt=48)}
WINDOW = 32


def architectures(workload):
  """(teacher's, student's) Architecture."""
  from gen_ssd.models import hf
  from gen_ssd.models.architecture import Architecture

  if workload == "mid":
    return (
      Architecture(4096, 512, 8, 4, 2, 64, 1536, bias=True),
      Architecture(4096, 192, 4, 3, 1, 64, 512, bias=True),
    )
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
  w = WORKLOADS[workload]
  b, k, c, prompt = (w[name] for name in ("b", "k", "c", "prompt"))
  # Random and untied: tied ones repeat themselves on random prompts and would be pruned.
  teacher, student = (
    decoder.unstacked(decoder.initialise(dataclasses.replace(arch, tied=False), layout, key))
    for arch, layout, key in zip(
      architectures(workload),
      (Layout(unroll=True), Layout(unroll=True, batch_axes=mesh.AXES, tensor_axis=None)),
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
      new=np.ones(b, bool),
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

  top, layer = architecture.leaves(teacher.arch)
  inputs = {"o": 3, "down": 1, "head": 1, "q": 1, "k": 1, "v": 1, "gate": 1, "up": 1}
  sizes = []
  for name, dims in [*layer.items()] * teacher.arch.layers + [*top.items()]:
    if name in inputs:
      sizes.append((int(np.prod(dims[: inputs[name]])), int(np.prod(dims[inputs[name] :]))))
  if teacher.arch.tied:
    sizes.append((teacher.arch.width, teacher.arch.vocab))
  wide = max(size[0] for size in sizes)
  rng = np.random.default_rng(0)
  matrices = [mesh.place(rng.normal(size=size).astype(np.float32)) for size in sizes]
  x = mesh.place(rng.normal(size=(rows, wide)).astype(np.float32), jax.P("data", None))

  @jax.jit
  def run(x, matrices):
    def step(_, total):
      for w in matrices:
        total += ((x[:, : w.shape[0]] + 1e-9 * total[:, None]) @ w)[:, 0]
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
  w = WORKLOADS[workload]
  specs = [Spec(arch, Layout()) for arch in architectures(workload)]
  make = lambda: [
    (attention.blank_prefix(s, w["b"], prefix), attention.blank_chunk(s, w["b"], k, w["c"]))
    for s in specs
  ]
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(jax.eval_shape(make)))


def child(*args, devices=1):
  """The last line that a contender prints, as JSON."""
  env = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "JAX_PLATFORMS": "cpu",
    "HF_HUB_OFFLINE": "1",
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
  }
  out = subprocess.run(
    [sys.executable, *map(str, args)],
    env=env,
    check=True,
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
  ).stdout
  return json.loads(out.strip().splitlines()[-1])


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
  parser.add_argument("--rounds", type=int, default=6, help="measured rounds, after one warm-up")
  parser.add_argument("--engine", choices=WORKLOADS, help=argparse.SUPPRESS)
  parser.add_argument("--split", type=int, default=1, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.engine:
    row = measure(args.engine, args.rounds, args.split)
    print(json.dumps({**row, **{f"kv_bytes_k{k}": kv_bytes(args.engine, k) for k in (1, 8)}}))
    return
  found = []
  for name in WORKLOADS:
    pair = ["--teacher", BUNDLED / "teacher", "--student", BUNDLED / "student"]
    torch = lambda loop, rounds: child(
      HERE / "torch_loops.py",
      "--loop",
      loop,
      "--workload",
      name,
      "--rounds",
      rounds,
      *(pair if name == "bundled" else []),
    )
    ours = lambda devices, split: child(
      __file__, "--engine", name, "--rounds", args.rounds, "--split", split, devices=devices
    )
    rows, heads, cores = WORKLOADS[name]["b"], 4, len(os.sched_getaffinity(0))
    fits = lambda size: max(n for n in range(1, cores + 1) if size % n == 0)
    shared, alone = ours(fits(rows), 1), ours(1, 1)
    engine = max(shared, alone, ours(fits(heads), fits(heads)), key=lambda found: found["tok_s"])
    cached, public = torch("cached", args.rounds), torch("public", args.rounds)
    generate = torch("generate", min(args.rounds, 3))
    limit = torch("limit", args.rounds)
    found.append(
      {
        "name": name,
        "engine_tok_s": engine["tok_s"],
        "hf_cached_tok_s": cached["median_tok_s"],
        "hf_public_tok_s": public["median_tok_s"],
        "hf_generate_tok_s": generate["median_tok_s"],
        "limit_tok_s": limit["limit_tok_s"],
        "scoring_share": engine["scoring_share"],
        "kv_bytes_k1": engine["kv_bytes_k1"],
        "kv_bytes_k8": engine["kv_bytes_k8"],
        "xla_products_tok_s": shared["products_tok_s"],
        "engine_mesh": engine["mesh"],
        "engine_shared_rows_tok_s": shared["tok_s"],
        "engine_one_device_tok_s": alone["tok_s"],
        "engine_over_cached": engine["tok_s"] / cached["median_tok_s"],
        "engine_over_public": engine["tok_s"] / public["median_tok_s"],
        "engine_over_generate": engine["tok_s"] / generate["median_tok_s"],
        "teacher_parameters": engine["teacher_parameters"],
        "student_parameters": engine["student_parameters"],
      }
    )
  if args.json:
    print(json.dumps({"workloads": found}, indent=1))
    return
  for row in found:
    print(row.pop("name"))
    for key, value in row.items():
      value = f"{value:,.3f}" if isinstance(value, float) else str(value)
      print(f"  {key:<26}{value:>14}")


if __name__ == "__main__":
  main()
