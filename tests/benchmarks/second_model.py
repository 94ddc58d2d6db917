"""What a teacher in the loss costs: time of an update, and memory on a TPU slice.

  python tests/benchmarks/second_model.py --json                        # time, on this machine
  python tests/benchmarks/second_model.py --topology=v5p:2x2x1 --json   # memory, with libtpu only

The shape of Qwen2.5-0.5B learns with one of 1.5B beside it, random weights. `over_alone` is the time
of an update with a divergence to the teacher, over that of the student's forward and backward pass
with the plain loss and the teacher's forward pass with its own, without an optimizer. All take turns
in one process, and the best turn of each counts. On a CPU, both models have a twelfth of their layers
and of their vocabulary, so that the proportions stay.

Memory is what the TPU compiler reports of a device: `extra` is what the teacher adds to the peak of
supervised fine-tuning, and `parts` are the teacher's weights and one block of its logits.
"""

import argparse
import dataclasses
import json
import math
import pathlib
import sys
import time

ROOT = pathlib.Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))
from tests.benchmarks import contenders  # noqa: E402

STUDENT = contenders.REAL[0]
TEACHER = contenders.shape(151936, 1536, 28, 12, 2, 8960, head=128)
OBJECTIVES = {"fkl": {}, "jsd": dict(beta=0.5), "fkl_top_k": dict(objective="fkl", top_k=64)}


def settings(**changes):
  """{name: Train} of supervised fine-tuning and of every divergence."""
  from gen_ssd import config as config_lib

  plain = config_lib.Train(**changes)
  term = lambda name, more: config_lib.Term(**{"objective": name, **more})
  kinds = {name: dataclasses.replace(plain, terms=(("kd", term(name, more)),))
           for name, more in OBJECTIVES.items()}  # fmt: skip
  return {"sft": plain, **kinds}


def twelfth(sizes):
  """A model with a twelfth of the layers and the vocabulary."""
  small = {name: round(sizes[name] / 12) for name in ("vocab_size", "num_hidden_layers")}
  return {**sizes, **small}


def measure_time(turns):
  """{objective: facts} of updates with a teacher, over both models alone."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from gen_ssd import mesh
  from gen_ssd.models import attention
  from gen_ssd.models import decoder
  from gen_ssd.training import packing
  from gen_ssd.training import terms
  from gen_ssd.training import train

  mesh.start()
  on_cpu = jax.default_backend() == "cpu"
  kind, dtype = attention.implementation("auto"), "float32" if on_cpu else "bfloat16"
  t = 512 if on_cpu else 4096
  block = 128 if on_cpu else 1024
  runs = settings(batch_size=2, length=t, block=block, dtype=dtype, unroll=True, warmup_steps=0)
  large, small = (twelfth(x) if on_cpu else x for x in (TEACHER, STUDENT))

  def make(sizes, seed, tied, as_dtype):
    arch = contenders.architecture(sizes, tied=tied)
    layout = train.layout(arch, as_dtype, True, kind)
    return decoder.initialise(arch, layout, jax.random.key(seed))

  teacher, vocab = make(large, 1, True, dtype), small["vocab_size"]
  rows = np.random.default_rng(0).integers(1, vocab, (8, t)).tolist()
  source = packing.Rows([((), row) for row in rows], t)
  part = next(packing.batches(source, batch_size=2, length=t, seed=0))
  batch = {name: mesh.place(x[None], jax.P(None, train.AXES, None)) for name, x in part.items()}

  def alone(student, teacher, batch):
    plain, one = train.static(runs["sft"]), jax.tree.map(lambda x: x[0], batch)
    numbers = terms.knobs(plain.terms)
    read = lambda model: train.loss_sum(model, one, {}, numbers, jnp.float32(0), plain)[0]
    return jax.grad(read)(student), read(teacher)

  own = train.layout(contenders.architecture(small, tied=True), dtype, True, kind)
  student = lambda: decoder.replace(make(small, 0, True, "float32"), layout=own)

  model, alone = student(), jax.jit(alone)
  calls = {"alone": lambda: alone(model, teacher, batch)}
  states = {}
  for name, config in runs.items():
    config = train.static(config)
    numbers = jax.tree.map(mesh.place, terms.knobs(config.terms, vocab))
    others = {} if name == "sft" else {"teacher": teacher}
    states[name] = train.start(student(), config=config)

    def update(name=name, config=config, numbers=numbers, others=others):
      states[name], found = train.train_step(states[name], batch, others, numbers, config=config)
      return found

    calls[name] = update
  best = dict.fromkeys(calls, math.inf)
  for turn in range(turns + 1):  # the first compiles
    for name, call in calls.items():
      begin = time.perf_counter()
      jax.block_until_ready(call())
      if turn:
        best[name] = min(best[name], time.perf_counter() - begin)
  return {
    "device": jax.devices()[0].device_kind,
    "models": "a twelfth" if on_cpu else "whole",
    "tokens": 2 * t,
    "alone_s": best["alone"],
    "sft_s": best["sft"],
    "over_alone": {name: best[name] / best["alone"] for name in OBJECTIVES},
  }


def measure_memory(topology):
  """{objective: facts} in GiB of a device, from the compiler alone."""
  import jax
  import jax.numpy as jnp

  from gen_ssd import mesh
  from gen_ssd import plan
  from gen_ssd.models import attention
  from gen_ssd.models.architecture import Spec
  from gen_ssd.training import train

  devices, compiles = plan.devices_of(topology)
  if not compiles:
    sys.exit("libtpu is not installed: pip install libtpu")
  n = mesh.start(1, devices).size
  gib = lambda count: round(count / 2**30, 2)
  one = lambda x: math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
  held = lambda tree: sum(map(one, jax.tree.leaves(tree)))
  student = contenders.architecture(STUDENT, tied=True)
  kind = attention.implementation("auto")
  beside = contenders.architecture(TEACHER, tied=True)
  spec = Spec(beside, train.layout(beside, "bfloat16", attention=kind))
  found = {}
  shape = dict(batch_size=n, length=4096, block=1024, remat=True, dtype="bfloat16")
  for name, config in settings(**shape).items():
    others = {} if name == "sft" else {"teacher": spec}
    given = train.shapes(student, config, others, kind)
    compiled = train.train_step.lower(*given, config=train.static(config)).compile()
    peak = compiled.memory_analysis().peak_memory_in_bytes
    found[name] = {"peak": gib(peak), "state": gib(held(given[0]))}
    if name == "sft":
      plain = peak
    else:
      logits = config.block * beside.vocab * jnp.dtype("float32").itemsize
      parts = {"teacher": gib(held(given[2])), "logits": gib(logits)}
      found[name] |= {"extra": gib(peak - plain), "parts": parts}
  return {"topology": topology, "gib_per_device": found}


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--topology", default="", help="a TPU slice, such as v5p:2x2x1")
  parser.add_argument("--turns", type=int, default=5)
  parser.add_argument("--json", action="store_true", help="one line for programs")
  args = parser.parse_args()
  found = measure_memory(args.topology) if args.topology else measure_time(args.turns)
  print(json.dumps(found, indent=None if args.json else 1))


if __name__ == "__main__":
  main()
