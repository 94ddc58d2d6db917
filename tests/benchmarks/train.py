"""Compares `train_step` with a plain torch loop, with TRL's SFTTrainer and with the machine's peak.

  python tests/benchmarks/train.py --json

The shape of SmolLM2-135M with random weights, f32, 4 x 512 tokens an update, AdamW with a clipped
gradient; needs torch and trl. Workload `full` has examples of 512 tokens. `mixed` has the lengths of
GSM8K's questions with answers: here and in TRL they are packed into rows of 512 tokens, and the
torch loop pads each batch to its longest. Speeds count tokens that are not padding. Contenders run
one after another, each in its own process, in turns, and the best turn counts; quote the ratios.
`products` are the products with weights alone (forward and backward), with no other work: what XLA
and torch would reach if all else were free. `share_of_peak` counts 6 FLOPs per weight and token,
the products of causal attention, and nothing twice; the peak is that of torch's fastest product.
`--layers 2` is a quick look: the proportions of the parts are then others.
"""

import argparse
import json
import os
import pathlib
import sys
import time

ROOT = pathlib.Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))
from tests.benchmarks import contenders  # noqa: E402


def measure(workload, sizes, steps):
  """Tokens a second of `train_step`, after one update that compiles it."""
  import jax
  import numpy as np

  from gen_ssd import config as config_lib
  from gen_ssd import mesh
  from gen_ssd.models import decoder
  from gen_ssd.training import packing
  from gen_ssd.training import terms
  from gen_ssd.training import train

  mesh.start()
  w, arch = contenders.TRAIN[workload], contenders.architecture(sizes, tied=True)
  config = config_lib.Train(
    batch_size=w["b"], length=w["t"], learning_rate=1e-4, warmup_steps=0, unroll=True
  )
  config = train.static(config)
  numbers = jax.tree.map(mesh.place, terms.knobs(config.terms))
  model = decoder.initialise(arch, train.layout(arch, unroll=True), jax.random.key(0))
  state = train.start(model, config=config)
  del model
  rows, lengths = contenders.examples(workload, arch.vocab)
  batches = packing.batches(
    packing.Rows([((), row) for row in rows], w["t"]), batch_size=w["b"], length=w["t"], seed=0
  )
  tokens = size = seconds = 0
  for i in range(steps + 1):
    part = next(batches)
    batch = {name: mesh.place(x[None], jax.P(None, train.AXES, None)) for name, x in part.items()}
    begin = time.perf_counter()
    state, metrics = jax.block_until_ready(
      train.train_step(state, batch, {}, numbers, config=config)
    )
    if i:
      seconds += time.perf_counter() - begin
      tokens, size = tokens + int((part["segments"] > 0).sum()), size + part["segments"].size
    assert np.isfinite(float(metrics["loss"]))
  return {"tok_s": tokens / seconds, "filled": tokens / size, "lengths": lengths}


def products(sizes, tokens):
  """Seconds of XLA for what train_torch.products computes."""
  import jax
  import jax.numpy as jnp

  draw = lambda seed, *dims: jax.random.normal(jax.random.key(seed), dims, jnp.float32)
  seconds = 0.0
  for inputs, outputs, count in contenders.weights(sizes).values():
    x, y, w = draw(0, tokens, inputs), draw(1, tokens, outputs), draw(2, inputs, outputs)
    for f, a, b in (
      (lambda x, w: x @ w, x, w),
      (lambda y, w: y @ w.T, y, w),
      (lambda x, y: x.T @ y, x, y),
    ):
      f, times = jax.jit(f), []
      for _ in range(5):
        begin = time.perf_counter()
        jax.block_until_ready(f(a, b))
        times.append(time.perf_counter() - begin)
      seconds += count * min(times[1:])
  return seconds


def flops(sizes, lengths):
  """FLOPs of an update over examples of these lengths, for each of their tokens."""
  weights = sum(a * b * count for a, b, count in contenders.weights(sizes).values())
  q = sizes["num_attention_heads"] * sizes["head_dim"] * sizes["num_hidden_layers"]
  seen = sum(n * (n + 1) / 2 for n in lengths) / sum(lengths)
  return 3 * (2 * weights + 4 * q * seen)


def compare(name, steps, turns, layers):
  """One workload: all contenders in turns."""
  peers = contenders.HERE / "train_torch.py"
  more = ["--workload", name, "--steps", steps, "--layers", layers]
  ours = lambda devices, *own: (
    lambda: contenders.child(__file__, "--measure", *more, *own, devices=devices)
  )
  torch = lambda loop: lambda: contenders.child(peers, "--loop", loop, *more)
  cores = len(os.sched_getaffinity(0))
  found = contenders.in_turns(
    {
      "one_device": ours(1),
      "torch": torch("plain"),
      "trl": torch("trl"),
      "devices": ours(cores),
      "products": ours(1, "--products"),
      "torch_products": torch("limit"),
    },
    turns,
  )
  ours = max((found[n] for n in ("one_device", "devices")), key=lambda row: row["tok_s"])
  sizes = {**contenders.SMOLLM2_135M, "num_hidden_layers": layers}
  gflop = flops(sizes, contenders.lengths(name, 320)[0]) * 1e-9
  peak = found["torch_products"]["peak_gflops"]
  return {
    "name": name,
    "lengths": ours["lengths"],
    "train_tok_s": ours["tok_s"],
    **{f"{n}_tok_s": row["tok_s"] for n, row in found.items()},
    "over_torch": ours["tok_s"] / found["torch"]["tok_s"],
    "over_trl": ours["tok_s"] / found["trl"]["tok_s"],
    "products_over_torch": found["products"]["tok_s"] / found["torch_products"]["tok_s"],
    "filled": ours["filled"],
    "torch_filled": found["torch"]["filled"],
    "trl_filled": found["trl"]["filled"],
    "peak_gflops": peak,
    "share_of_peak": ours["tok_s"] * gflop / peak,
    "torch_share_of_peak": found["torch"]["tok_s"] * gflop / peak,
    "load": os.getloadavg()[0],
  }


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
  parser.add_argument("--workloads", nargs="+", choices=contenders.TRAIN, help="default: all")
  parser.add_argument("--steps", type=int, default=4, help="measured updates, after one warm-up")
  parser.add_argument("--turns", type=int, default=2, help="of all contenders; the best counts")
  parser.add_argument("--layers", type=int, default=contenders.SMOLLM2_135M["num_hidden_layers"])
  parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
  parser.add_argument("--workload", choices=contenders.TRAIN, help=argparse.SUPPRESS)
  parser.add_argument("--products", action="store_true", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.measure:
    w, sizes = contenders.TRAIN[args.workload], dict(contenders.SMOLLM2_135M)
    sizes["num_hidden_layers"] = args.layers
    if args.products:
      print(json.dumps({"tok_s": w["b"] * w["t"] / products(sizes, w["b"] * w["t"])}))
    else:
      print(json.dumps(measure(args.workload, sizes, args.steps)))
    return
  names = args.workloads or contenders.TRAIN
  contenders.show([compare(n, args.steps, args.turns, args.layers) for n in names], args.json)


if __name__ == "__main__":
  main()
