"""Prints what is in a model directory, and how far our logits are from those of transformers.

Usage: gen-ssd weights --check MODEL

MODEL is a Hugging Face directory, a hub name (ORG/NAME, ORG/NAME@REVISION) or bundled/NAME. The
logits are compared where torch is installed and both models fit into memory. For example:
  gen-ssd weights --check bundled/teacher
"""

import dataclasses
import functools
import hashlib
import os

import jax
import jax.numpy as jnp
import numpy as np

from gen_ssd import config_files
from gen_ssd import errors
from gen_ssd import mesh as mesh_lib
from gen_ssd.models import architecture
from gen_ssd.models import attention
from gen_ssd.models import decoder
from gen_ssd.models import hf
from gen_ssd.models import safetensors_io
from gen_ssd.models import tokenization
from gen_ssd.models import weights


def main() -> None:
  """The command `gen-ssd weights`."""
  with errors.command():
    arguments = config_files.Arguments("weights", __doc__ or "")
    arguments.add_argument("--check", required=True)
    check(arguments.parse_args().check)


def check(path: str) -> None:
  """Prints the facts of a model and the largest difference of its logits from transformers'.

  Raises UserError when the model is not supported or its files are damaged.
  """
  mesh_lib.start(devices=jax.local_devices()[:1])
  path = hf.locate(path)
  arch = hf.read_architecture(path)
  entries = weights.check_files(path, arch).values()
  dtypes = sorted({str(safetensors_io.FLOATS[e.dtype]) for e in entries})
  facts = (f for f in dataclasses.fields(arch) if getattr(arch, f.name) != f.default)
  facts = ", ".join(f"{f.name} {getattr(arch, f.name)}" for f in facts)
  print(f"architecture  {hf.read_config(path)['model_type']}: {facts}")
  print(f"identity      {hf.identity(path)}")
  print(f"parameters    {architecture.parameters(arch):,}")
  print(f"dtype         {', '.join(dtypes)}")
  words, ids = _tokenizer(path, arch)
  print(f"tokenizer     {words}")
  ids = [i % arch.vocab for i in range(16)] if ids is None else ids
  print(f"logits        {_compared(path, arch, ids)}")


def _tokenizer(path, arch):
  """(what is said of the tokenizer, ids of a short text); ids are None without a tokenizer."""
  file = os.path.join(path, "tokenizer.json")
  if not os.path.isfile(file):
    return "none (no tokenizer.json)", None
  tokenizer = tokenization.load_tokenizer(path)
  with open(file, "rb") as f:
    digest = hashlib.sha256(f.read()).hexdigest()
  text = "Tom has 57 apples. He buys 8 more. How many are there now?"
  ids = tokenizer.encode(text)
  tokenization.check_ids(tokenizer, ids, arch.vocab)
  return f"{digest[:16]}, {len(tokenizer):,} ids", ids


def _compared(path, arch, ids):
  """What is said of the logits."""
  needed, free = 8 * architecture.parameters(arch), _free_memory()
  if needed > free:
    return (
      f"not compared: both models in float32 need {needed / 1e9:.0f} GB of memory, "
      f"{free / 1e9:.0f} are free"
    )
  far = _difference(path, ids)
  if far is None:
    return "not compared: torch is not installed"
  return f"at most {far:.2e} from transformers on {len(ids)} tokens (float32)"


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


if __name__ == "__main__":
  main()
