"""Measures the engine and the training update on one accelerator: a TPU chip or a GPU.

  python tests/benchmarks/chips.py --json=chips.json

Random weights in bfloat16 with the shapes of Qwen2.5-1.5B (teacher) and Qwen2.5-0.5B (student). Every
figure is the median of rounds after one that compiles.

- `limits`: bytes per second of a copy, read and written, and bfloat16 FLOPs per second of a product.
- `decode`: one teacher token of all branches, against the time that memory takes for the weights, the
  prefix of every slot and the branches' own tokens. `measured_share` divides by the copy above,
  `share` by the published bandwidth.
- `round`: a whole round of K = 8 over one of K = 1 at the same slots, for each prefix, and the share
  of the round in which the student reads.
- `posthoc`: teacher tokens per second of selection while generating (K branches of each slot), over
  those of as many single traces that the student reads as they grow.
- `train`: model FLOPs utilisation of `train_step`: 6 FLOPs per weight and token and the products of
  causal attention, nothing counted twice, against the published peak and the product above.

Without an accelerator it says so and measures nothing, but for `--tiny`, which tries all parts with
small models on any device. Parts that fail are named in the JSON, and the others go on.
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
import sys
import time
import traceback

ROOT = pathlib.Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402
import numpy as np  # noqa: E402

from gen_ssd import chips  # noqa: E402
from gen_ssd import config as config_lib  # noqa: E402
from gen_ssd import mesh  # noqa: E402
from gen_ssd.engine import ring as ring_lib  # noqa: E402
from gen_ssd.engine import sampling  # noqa: E402
from gen_ssd.engine import scores  # noqa: E402
from gen_ssd.engine import state as state_lib  # noqa: E402
from gen_ssd.engine import step as step_lib  # noqa: E402
from gen_ssd.models import architecture  # noqa: E402
from gen_ssd.models import attention  # noqa: E402
from gen_ssd.models import decoder  # noqa: E402
from gen_ssd.models.architecture import Layout  # noqa: E402
from gen_ssd.models.architecture import Spec  # noqa: E402
from gen_ssd.training import terms  # noqa: E402
from gen_ssd.training import train  # noqa: E402
from tests import tiny  # noqa: E402
from tests.benchmarks import contenders  # noqa: E402

TEACHER = contenders.shape(151936, 1536, 28, 12, 2, 8960, head=128)  # Qwen2.5-1.5B
STUDENT = contenders.shape(151936, 896, 24, 14, 2, 4864)  # Qwen2.5-0.5B
SMALL = contenders.shape(512, 128, 2, 4, 2, 256, head=32)
GPUS = {  # dense bfloat16 TFLOP/s and GB/s, as NVIDIA publishes them
  "H100 80GB HBM3": (989, 3350),
  "H200": (989, 4800),
  "A100-SXM4-80GB": (312, 2039),
  "L4": (121, 300),
  "T4": (65, 320),
}
WINDOW = 32


def published():
  """(bfloat16 FLOPs per second, bytes per second) of this device, or (None, None) if unknown."""
  kind = jax.devices()[0].device_kind
  for name, (tflops, gbs) in GPUS.items():
    if name in kind:
      return tflops * 1e12, gbs * 1e9
  for name, chip in chips.CHIPS.items():
    if name in kind.lower().replace(" ", "").replace("lite", "e"):
      return chip.flops * 1e12, chip.bandwidth * 1e9
  return None, None


def share(least, seconds, limit):
  """The part of `seconds` that `least` takes at `limit` per second; None without a limit."""
  return limit and least / limit / seconds


def seconds_of(run, rounds):
  """Median seconds of `run()`, whose arrays are waited for, after one call that compiles."""
  times = []
  for _ in range(rounds + 1):
    begin = time.perf_counter()
    jax.block_until_ready(run())
    times.append(time.perf_counter() - begin)
  return statistics.median(times[1:])


def limits(args):
  """What the device does at best: many products, and copies, in one program."""
  n, size = (512, 1 << 20) if args.tiny else (8192, 1 << 30)
  key = jax.random.key(0)
  a, b = (jax.random.normal(jax.random.fold_in(key, i), (n, n), jnp.bfloat16) for i in range(2))
  x = jax.random.normal(key, (size // 2,), jnp.bfloat16)
  product = jax.jit(lambda a, b: jax.lax.fori_loop(0, 8, lambda _, y: (y @ b) * 0.01, a))
  copy = jax.jit(lambda x: jax.lax.fori_loop(0, 8, lambda i, y: y + i.astype(y.dtype), x))
  flops, bandwidth = published()
  return {
    "product_flops": 8 * 2 * n**3 / seconds_of(lambda: product(a, b), 5),
    "copy_bytes": 8 * 2 * size / seconds_of(lambda: copy(x), 5),
    "published_flops": flops,
    "published_bytes": bandwidth,
  }


class Pair:
  """Two models with random weights, and rounds of them over prefixes of random tokens."""

  def __init__(self, args):
    self.args, self.c = args, args.c
    shapes = (SMALL, SMALL) if args.tiny else (TEACHER, STUDENT)
    # Untied: tied ones repeat themselves on random prompts and would be pruned.
    arch = [contenders.architecture(s, bias=True, tied=False) for s in shapes]
    layout = Layout(dtype="bfloat16", unroll=args.unroll, attention=args.attention)
    alone = dataclasses.replace(layout, batch_axes=mesh.AXES, tensor_axis=None)
    self.teacher, self.student = (
      decoder.unstacked(decoder.initialise(a, l, jax.random.key(i)))
      for i, (a, l) in enumerate(zip(arch, (layout, alone)))
    )
    vocab = arch[0].vocab
    self.knobs = tiny.knobs(
      vocab=np.int32(vocab), token_kind=np.zeros(vocab, np.int8), step_end=np.zeros(vocab, bool)
    )

  def start(self, slots, prefix, room):
    """A State of `slots` traces with `prefix` random tokens, in rings of `room` tokens."""
    tokens = np.zeros((slots, room), np.int32)
    vocab = self.teacher.arch.vocab
    tokens[:, :prefix] = np.random.default_rng(0).integers(0, vocab, (slots, prefix))
    fill = lambda n: np.full(slots, n, np.int32)
    text = ring_lib.Text(tokens=tokens, length=fill(prefix))
    keys = [sampling.trace_key(0, f"{i:08x}", 0) for i in range(slots)]
    admission = state_lib.Admission(
      slot=np.arange(slots, dtype=np.int32),
      teacher=text,
      student=text,
      key=np.stack([jax.random.key_data(key) for key in keys]),
      chunk=fill(0),
      resample=fill(0),
      budget=fill(1 << 20),
      recent=np.full((slots, WINDOW - 1), -1, np.int32),
      score_sum=np.zeros(slots, np.float32),
      prompt_length=fill(prefix),
      after_thinking=np.zeros(slots, bool),
    )
    place = lambda x: mesh.place(x, P("data", *[None] * (np.ndim(x) - 1)))
    state = step_lib.blank_state(
      teacher=self.teacher.spec, student=self.student.spec, b=slots, s=room, window=WINDOW
    )
    for rows in np.array_split(np.arange(slots), -(-slots // 8)):  # a few, as a collection does
      few = jax.tree.map(lambda x: place(x[rows]), admission)
      state = step_lib.admit(
        self.teacher, self.student, state, few, c=self.c, block=self.block(room)
      )
    return state

  def block(self, room):
    return min(self.args.block, room)

  def static(self, k, room):
    return state_lib.Round(
      k=k, c=self.c, scorer=scores.perplexity, block=self.block(room), window=WINDOW
    )

  def round(self, slots, k, prefix, room):
    """Median seconds of a whole round."""
    state, static = self.start(slots, prefix, room), self.static(k, room)

    def run():
      nonlocal state
      state, report = step_lib.select_step(
        self.teacher, self.student, state, self.knobs, round=static
      )
      return report

    seconds = seconds_of(run, self.args.rounds)
    assert (np.asarray(run().count) == self.c).all()  # no early end
    return seconds

  def propose(self, slots, k, prefix, room):
    """Median seconds of the teacher's half of a round."""
    state, static = self.start(slots, prefix, room), self.static(k, room)
    run = jax.jit(lambda teacher, state, knobs: step_lib.propose(teacher, state, knobs, static))
    return seconds_of(lambda: run(self.teacher, state, self.knobs).candidates, self.args.rounds)


def engine(args, found):
  """Fills in `decode` and `round`."""
  pair, slots, k = Pair(args), args.slots, 8
  room = -(-max(args.prefixes) // args.c) * args.c + args.c * (args.rounds + 3)
  room = -(-room // args.block) * args.block
  cost = chips.model(pair.teacher.spec)
  for prefix in args.prefixes:
    filled = prefix + args.c * (args.rounds // 2)
    own = (args.c + 1) / 2
    read = cost.weights + slots * filled * cost.cache + slots * k * own * cost.cache
    seconds = pair.propose(slots, k, prefix, room) / args.c
    row = {"branches": slots * k, "prefix": prefix, "ms": 1e3 * seconds, "bytes": read}
    row["measured_share"] = share(read, seconds, found["limits"]["copy_bytes"])
    row["share"] = share(read, seconds, found["limits"]["published_bytes"])
    row["tokens_s"] = slots * k / seconds
    found.setdefault("decode", []).append(row)
    show(f"decode {row}")
    if args.only_decode:
      continue
    eight, one = (pair.round(slots, n, prefix, room) for n in (k, 1))
    row = {"prefix": prefix, "k8_ms": 1e3 * eight, "k1_ms": 1e3 * one, "k8_over_k1": eight / one}
    row["scoring_share"] = 1 - seconds * args.c / eight
    found.setdefault("round", []).append(row)
    show(f"round {row}")


def posthoc(args):
  """Selection while generating against single traces, at equally many teacher tokens a round."""
  pair, prefix = Pair(args), args.prefixes[0]
  room = -(-(prefix + args.c * (args.rounds + 4)) // args.block) * args.block
  k, slots = 4, args.slots * 2
  chosen = slots * k * args.c / pair.round(slots, k, prefix, room)
  single = slots * k * args.c / pair.round(slots * k, 1, prefix, room)
  return {"k": k, "prefix": prefix, "gen_ssd_tok_s": chosen, "posthoc_tok_s": single} | {
    "gen_ssd_over_posthoc": chosen / single
  }


def training(args, found):
  """Model FLOPs utilisation of updates of the student."""
  b, t = (2, 128) if args.tiny else (args.batch, args.length)
  arch = contenders.architecture(SMALL if args.tiny else STUDENT, bias=True, tied=True)
  config = config_lib.Train(
    batch_size=b, length=t, block=min(args.train_block, t), dtype="bfloat16", warmup_steps=0
  )
  config = train.static(dataclasses.replace(config, unroll=args.unroll))
  layout = train.layout(arch, "bfloat16", args.unroll, args.attention)
  model = decoder.initialise(arch, dataclasses.replace(layout, dtype="float32"), jax.random.key(0))
  state = train.start(decoder.replace(model, layout=layout), config=config)
  del model
  numbers = jax.tree.map(mesh.place, terms.knobs(config.terms))
  tokens = np.random.default_rng(0).integers(1, arch.vocab, (1, b, t))
  half = np.arange(t)[None, None] // (t // 2)  # two examples fill a row
  batch = {
    "tokens": tokens.astype(np.int32),
    "mask": np.ones((1, b, t), np.int32),
    "segments": np.broadcast_to(1 + half, (1, b, t)).astype(np.int32),
    "positions": np.broadcast_to(np.arange(t) % (t // 2), (1, b, t)).astype(np.int32),
  }
  batch = {name: mesh.place(x, P(None, train.AXES, None)) for name, x in batch.items()}

  def run():
    nonlocal state
    state, metrics = train.train_step(state, batch, {}, numbers, config=config)
    return metrics

  seconds = seconds_of(run, args.rounds)
  assert np.isfinite(float(run()["loss"]))
  cost = chips.model(Spec(arch, layout))
  flops = 3 * b * t * (cost.flops + t / 4 * cost.attention)
  return {
    "parameters": architecture.parameters(arch),
    "tokens": b * t,
    "ms": 1e3 * seconds,
    "tok_s": b * t / seconds,
    "mfu": share(flops, seconds, found["limits"]["published_flops"]),
    "share_of_product": share(flops, seconds, found["limits"]["product_flops"]),
  }


def show(line):
  print(line, file=sys.stderr, flush=True)


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--json", help="file that the JSON is written to, besides standard output")
  parser.add_argument("--parts", nargs="+", default=["engine", "posthoc", "train"])
  parser.add_argument("--prefixes", nargs="+", type=int, default=[256, 2048, 8192])
  parser.add_argument("--slots", type=int, default=8, help="traces at a time")
  parser.add_argument("--c", type=int, default=32, help="tokens of a chunk")
  parser.add_argument("--block", type=int, default=512, help="ring slots attended to at a time")
  parser.add_argument("--rounds", type=int, default=5, help="measured rounds, after one warm-up")
  parser.add_argument("--unroll", action="store_true", help="compile each layer separately")
  parser.add_argument("--attention", default="auto", help="as in the config")
  parser.add_argument("--only-decode", action="store_true", help="of `engine`, only `decode`")
  parser.add_argument("--batch", type=int, default=8, help="rows of a training update")
  parser.add_argument("--length", type=int, default=2048, help="tokens of a row")
  parser.add_argument("--train-block", type=int, default=512, help="tokens of logits at a time")
  parser.add_argument("--tiny", action="store_true", help="small models, on any device")
  args = parser.parse_args()
  if jax.default_backend() == "cpu" and not args.tiny:
    sys.exit("no accelerator: jax finds only CPUs here, so there is nothing to measure")
  mesh.start(devices=jax.devices()[:1])
  args.attention = attention.implementation(args.attention)
  settings = {name: x for name, x in vars(args).items() if name != "json"}
  found = {"device": jax.devices()[0].device_kind, "jax": jax.__version__, "settings": settings}
  parts = {
    "limits": lambda: limits(args),
    "engine": lambda: engine(args, found),
    "posthoc": lambda: posthoc(args),
    "train": lambda: training(args, found),
  }
  for name in ["limits", *args.parts]:
    begin = time.perf_counter()
    try:
      if (row := parts[name]()) is not None:
        found[name] = row
        show(f"{name} {row}")
    except Exception as error:  # the other parts still count
      traceback.print_exc()
      found[f"{name}_error"] = f"{type(error).__name__}: {str(error)[:300]}"
    found[f"{name}_seconds"] = time.perf_counter() - begin
    if args.json:
      pathlib.Path(args.json).write_text(json.dumps(found, indent=1))
  print(json.dumps(found, indent=1))


if __name__ == "__main__":
  main()
