"""Prints what is in a model directory, and how far our logits are from those of transformers.

Usage: gen-ssd weights --check MODEL
       gen-ssd weights --convert FILE.gguf --out DIR

MODEL is a Hugging Face directory, a GGUF file, a hub name (ORG/NAME, ORG/NAME@REVISION or
ORG/NAME:FILE.gguf) or bundled/NAME. The logits are compared where torch is installed and both
models fit into memory. --convert writes a Hugging Face directory with float32 weights. For example:
  gen-ssd weights --check bundled/teacher
"""

import dataclasses
import functools
import hashlib
import importlib.util
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
from gen_ssd.models import export
from gen_ssd.models import gguf
from gen_ssd.models import hf
from gen_ssd.models import safetensors_io
from gen_ssd.models import tokenization
from gen_ssd.models import weights


def main() -> None:
  """The command `gen-ssd weights`."""
  with errors.command():
    arguments = config_files.Arguments("weights", __doc__ or "")
    arguments.add_argument("--check", default="")
    arguments.add_argument("--convert", default="")
    arguments.add_argument("--out", default="")
    known = arguments.parse_args()
    if bool(known.check) == bool(known.convert) or bool(known.convert) != bool(known.out):
      raise errors.UserError("give either --check MODEL, or --convert FILE.gguf and --out DIR")
    if known.check:
      check(known.check)
    else:
      export.convert(hf.locate(known.convert), known.out)
      print(f"written       {known.out}")


def check(path: str) -> None:
  """Prints the facts of a model and the largest difference of its logits from transformers'.

  Raises UserError when the model is not supported or its files are damaged.
  """
  mesh_lib.start(devices=jax.local_devices()[:1])
  path = hf.locate(path)
  arch = hf.read_architecture(path)
  entries = weights.check_files(path, arch).values()
  dtypes = sorted({str(safetensors_io.FLOATS.get(e.dtype, e.dtype)) for e in entries})
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
  needs = ["torch", "accelerate"] if gguf.is_folder(path) else ["torch"]  # of transformers' readers
  if lacking := [name for name in needs if importlib.util.find_spec(name) is None]:
    return f"not compared: {' and '.join(lacking)} not installed"
  far = _difference(path, ids)
  return f"at most {far:.2e} from transformers on {len(ids)} tokens (float32)"


def _difference(path, ids):
  """Largest logit difference against transformers on `ids`."""
  import torch
  from transformers import AutoConfig
  from transformers import AutoModelForCausalLM

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
  how = (
    {"gguf_file": gguf.NAME} if gguf.is_folder(path) else {}
  )  # by their own reader of such files
  if how and gguf.FREQUENCIES in gguf.header(path).tensors:  # which overlooks this tensor
    how["config"] = AutoConfig.from_pretrained(path)
  theirs = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **how)
  with torch.no_grad():
    return float(np.abs(mine - theirs(torch.tensor(tokens).long()).logits[0].numpy()).max())


def _free_memory():
  with open("/proc/meminfo", encoding="utf-8") as f:
    return next(int(line.split()[1]) * 1024 for line in f if line.startswith("MemAvailable"))


if __name__ == "__main__":
  main()
