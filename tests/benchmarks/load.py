"""Import and export of a checkpoint of 1.2 billion random parameters: time and memory.

  python tests/benchmarks/load.py --json

Shapes of Llama 3.2 1B, bfloat16, four files in a temporary directory (5 GB of disk with the
export). Each direction runs in its own process; `beyond` is the peak of its resident memory, mapped
files included, less what it was before and less the arrays, in units of the largest tensor.
"""

import argparse
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent.parent
CONFIG = dict(
  model_type="llama",
  vocab_size=128256,
  hidden_size=2048,
  intermediate_size=8192,
  num_hidden_layers=16,
  num_attention_heads=32,
  num_key_value_heads=8,
  head_dim=64,
  rms_norm_eps=1e-5,
  rope_theta=5e5,
  tie_word_embeddings=True,
  hidden_act="silu",
  max_position_embeddings=131072,
  torch_dtype="bfloat16",
)


def make(folder, files):
  """Writes the checkpoint a tensor at a time; returns the bytes of its largest tensor."""
  import jax.numpy as jnp
  import numpy as np

  from gen_ssd.models import hf
  from gen_ssd.models import safetensors_io
  from gen_ssd.models import weights

  (folder / "config.json").write_text(json.dumps(CONFIG))
  dims = {
    name: size for name, _, _, size in weights.file_tensors(hf.read_architecture(str(folder)))
  }
  names = list(dims)
  each = -(-len(names) // files)
  rng, where = np.random.default_rng(0), {}

  def draw(size):  # bits of numbers between 2**-8 and 2**-7, either sign
    low = rng.integers(0, 128, math.prod(size), np.uint16)
    return (low | 0x3B80 | (low & 1) << 15).view(jnp.bfloat16).reshape(size)

  for i in range(files):
    part = names[i * each : (i + 1) * each]
    file = f"model-{i + 1:05d}-of-{files:05d}.safetensors"
    where.update(dict.fromkeys(part, file))
    safetensors_io.write(
      folder / file, jnp.bfloat16, {n: dims[n] for n in part}, (draw(dims[n]) for n in part)
    )
  (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
  return max(map(math.prod, dims.values())) * 2


def resident(field):
  """Bytes of VmRSS (now) or VmHWM (peak since `reset`) of this process."""
  with open("/proc/self/status") as f:
    return next(int(line.split()[1]) * 1024 for line in f if line.startswith(field))


def reset():
  pathlib.Path("/proc/self/clear_refs").write_text("5")


def measure(source, out, dtype):
  """Loads `source`, or with `out` writes it there too; the figures of the last step."""
  import jax

  from gen_ssd import mesh
  from gen_ssd.models import export
  from gen_ssd.models import weights
  from gen_ssd.models.architecture import Layout

  mesh.start(devices=jax.devices()[:1])
  jax.block_until_ready(jax.numpy.zeros(8) + 1)  # what starting costs is not loading's
  before = resident("VmRSS")
  reset()
  begin, worked = time.perf_counter(), time.process_time()
  model = weights.load(source, Layout(dtype=dtype))
  held = sum(x.nbytes for x in jax.tree.leaves(model))
  if out:
    reset()
    begin, worked = time.perf_counter(), time.process_time()
    export.save(out, model, source, dtype="bfloat16", shard_bytes=10**9)
  return {
    "seconds": time.perf_counter() - begin,
    "cpu_seconds": time.process_time() - worked,
    "arrays_gb": held / 1e9,
    "peak_gb": resident("VmHWM") / 1e9,
    "beyond": resident("VmHWM") - before - held,
  }


def child(*args):
  env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
  out = subprocess.run(
    [sys.executable, __file__, *map(str, args)],
    env=env,
    check=True,
    text=True,
    stdout=subprocess.PIPE,
  ).stdout
  return json.loads(out.strip().splitlines()[-1])


def same(a, b):
  """Do two directories hold the same tensors, bit by bit?"""
  from gen_ssd.models import safetensors_io

  a, b = safetensors_io.headers(a), safetensors_io.headers(b)

  def equal(x, y):
    step = max(1, (1 << 24) // math.prod(x.dims[1:]))
    return x[2:] == y[2:] and all(
      safetensors_io.rows(x, i, min(i + step, x.dims[0])).tobytes()
      == safetensors_io.rows(y, i, min(i + step, x.dims[0])).tobytes()
      for i in range(0, x.dims[0], step)
    )

  return a.keys() == b.keys() and all(equal(a[name], b[name]) for name in a)


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
  parser.add_argument(
    "--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="of the arrays"
  )
  parser.add_argument("--measure", nargs=2, metavar=("SOURCE", "OUT"), help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.measure:
    print(json.dumps(measure(*args.measure, args.dtype)))
    return
  sys.path.insert(0, str(ROOT))
  with tempfile.TemporaryDirectory() as folder:
    source, out = pathlib.Path(folder, "in"), pathlib.Path(folder, "out")
    source.mkdir()
    largest = make(source, 4)
    found = {"dtype": args.dtype, "largest_tensor_gb": largest / 1e9}
    for name, where in (("import", ""), ("export", out)):
      row = child("--dtype", args.dtype, "--measure", source, where)
      found[name] = {**row, "beyond": row["beyond"] / largest}
    found["bit_identical"] = same(str(source), str(out))
  if args.json:
    print(
      json.dumps(
        {
          k: {n: round(x, 3) for n, x in v.items()} if isinstance(v, dict) else v
          for k, v in found.items()
        }
      )
    )
    return
  for name in ("import", "export"):
    row = found[name]
    print(
      f"{name}  {row['seconds']:6.1f} s ({row['cpu_seconds']:.1f} of work)  arrays "
      f"{row['arrays_gb']:.2f} GB  peak {row['peak_gb']:.2f} GB  beyond them "
      f"{row['beyond']:.2f} of the largest tensor"
    )
  print("bit by bit the same" if found["bit_identical"] else "NOT the same")


if __name__ == "__main__":
  main()
