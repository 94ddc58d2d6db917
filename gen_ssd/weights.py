"""What is in a model directory, and are its logits right: python -m gen_ssd.weights --check DIR."""

import argparse
import dataclasses
import functools
import hashlib
import os

import jax
import jax.numpy as jnp
import numpy as np

from gen_ssd import mesh as mesh_lib
from gen_ssd.models import architecture
from gen_ssd.models import attention
from gen_ssd.models import decoder
from gen_ssd.models import hf
from gen_ssd.models import safetensors_io
from gen_ssd.models import tokenization
from gen_ssd.models import weights


def _difference(path, ids):
  """Largest logit difference against transformers on `ids`, or None without torch."""
  try:
    import torch
    from transformers import AutoModelForCausalLM
  except ImportError:
    return None

  tokens = np.asarray(ids, np.int32)[None]
  segments, t = jnp.ones_like(tokens), tokens.shape[1]

  @jax.jit
  def ours(model):
    x = decoder.forward_packed(
      model,
      tokens,
      jnp.arange(t)[None],
      functools.partial(attention.attend_packed, segments=segments, block=t),
    )
    return decoder.logits(model, x)[0, 0]

  mine = np.asarray(ours(weights.load(path, architecture.Layout())))
  theirs = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
  with torch.no_grad():
    return float(np.abs(mine - theirs(torch.tensor(tokens).long()).logits[0].numpy()).max())


def _free_memory():
  with open("/proc/meminfo", encoding="utf-8") as f:
    return next(int(line.split()[1]) * 1024 for line in f if line.startswith("MemAvailable"))


def check(path):
  """Prints what is in a directory, and how far our logits are from transformers' on a prompt."""
  mesh_lib.start(devices=jax.local_devices()[:1])
  path = hf.locate(path)
  arch = hf.read_architecture(path)
  weights.check_files(path, arch)
  dtypes = sorted(
    {str(safetensors_io.FLOATS[e.dtype]) for e in safetensors_io.headers(path)[0].values()}
  )
  print(
    f"architecture  {hf.read_config(path)['model_type']}: "
    + ", ".join(
      f"{f.name} {getattr(arch, f.name)}"
      for f in dataclasses.fields(arch)
      if getattr(arch, f.name) != f.default
    )
  )
  print(f"identity      {hf.identity(path)}")
  print(f"parameters    {architecture.parameters(arch):,}")
  print(f"dtype         {', '.join(dtypes)}")
  file, ids = os.path.join(path, "tokenizer.json"), np.arange(16) % arch.vocab
  if os.path.isfile(file):
    tokenizer = tokenization.load_tokenizer(path)
    ids = tokenizer.encode("Tom has 57 apples. He buys 8 more. How many are there now?")
    with open(file, "rb") as f:
      digest = hashlib.sha256(f.read()).hexdigest()
    print(f"tokenizer     {digest[:16]}, {len(tokenizer):,} ids")
  else:
    print("tokenizer     none (no tokenizer.json)")
  needed, free = 8 * architecture.parameters(arch), _free_memory()
  if needed > free:
    print(
      f"logits        not compared: both models in float32 need {needed / 1e9:.0f} GB of memory, "
      f"{free / 1e9:.0f} are free"
    )
    return
  far = _difference(path, ids)
  print(
    "logits        "
    + (
      "torch is not installed: not compared"
      if far is None
      else f"at most {far:.2e} from transformers on {len(ids)} tokens (float32)"
    )
  )


if __name__ == "__main__":
  parser = argparse.ArgumentParser(prog="python -m gen_ssd.weights")
  parser.add_argument(
    "--check", metavar="DIR", required=True, help="a Hugging Face directory or hub name"
  )
  try:
    check(parser.parse_args().check)
  except ValueError as error:  # the user's to mend: one message, no traceback
    raise SystemExit(f"gen_ssd.weights: {error}") from None
