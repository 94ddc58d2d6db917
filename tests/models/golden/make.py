"""Writes tests/models/golden/*.npz: tiny random models of transformers, their weights and their logits.

    pip install torch && python tests/models/golden/make.py NAME...     # no name: all
    python tests/models/golden/make.py --check     # the installed transformers still gives these logits

Needed again only when an architecture or rope type is added; the tests themselves need no torch.
Each file holds `config` (config.json as text, some in the format of transformers 4), `tokens`
int32[t], `logits` f32[t, v] and `w:NAME` f16 weights. Norms and biases are random too, weights are
large enough for attention to be sharp, and no rope theta is the default one.
"""

import argparse
import json
import os
import tempfile

import numpy as np
import torch
from transformers import AutoConfig
from transformers import AutoModelForCausalLM

T, V = 56, 40
BASE = dict(
  vocab_size=V,
  hidden_size=16,
  intermediate_size=24,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  max_position_embeddings=64,
  hidden_act="silu",
  rms_norm_eps=1e-5,
)
LLAMA3 = dict(
  rope_type="llama3",
  factor=8.0,
  low_freq_factor=1.0,
  high_freq_factor=4.0,
  original_max_position_embeddings=16,
)
GEMMA3 = dict(
  model_type="gemma3_text",
  num_hidden_layers=4,
  head_dim=6,
  query_pre_attn_scalar=11,
  sliding_window=7,
  hidden_activation="gelu_pytorch_tanh",
  rms_norm_eps=1e-6,
  tie_word_embeddings=True,
  bos_token_id=3,
  eos_token_id=4,
  pad_token_id=0,
)
CASES = {
  # transformers 4 JSON: rope_theta and rope_scaling beside each other, no head_dim
  "llama": dict(model_type="llama", rope_theta=5e5, rope_scaling=LLAMA3, head_dim=None),
  "llama_linear": dict(
    model_type="llama",
    head_dim=6,
    num_key_value_heads=1,
    rope_parameters=dict(rope_type="linear", rope_theta=2e4, factor=4.0),
  ),
  "qwen2": dict(
    model_type="qwen2",
    tie_word_embeddings=True,
    rope_theta=3e5,
    use_sliding_window=False,
    sliding_window=32,
  ),
  "qwen2_yarn": dict(
    model_type="qwen2",
    rope_theta=1e6,
    rope_scaling=dict(type="yarn", factor=4.0, original_max_position_embeddings=16),
  ),
  "qwen3": dict(
    model_type="qwen3", head_dim=8, rope_parameters=dict(rope_type="default", rope_theta=5e6)
  ),
  "qwen3_yarn": dict(
    model_type="qwen3",
    head_dim=8,
    tie_word_embeddings=True,
    rope_parameters=dict(
      rope_type="yarn",
      rope_theta=5e4,
      factor=2.5,
      beta_fast=12.0,
      beta_slow=2.0,
      truncate=False,
      mscale=1.3,
      mscale_all_dim=0.7,
      original_max_position_embeddings=20,
    ),
  ),
  "olmo2": dict(model_type="olmo2", num_attention_heads=4, rope_theta=6e5),
  "mistral": dict(model_type="mistral", head_dim=6, rope_theta=1e6, sliding_window=None),
  # what DeepSeek's config.json files say beside the facts of Qwen2 and Llama
  "r1_distill_qwen": dict(
    model_type="qwen2",
    rope_theta=2e4,
    max_window_layers=1,
    sliding_window=8,
    use_mrope=False,
    use_sliding_window=False,
    rms_norm_eps=1e-6,
    num_attention_heads=6,
    hidden_size=24,
    attention_dropout=0.0,
    bos_token_id=3,
    eos_token_id=4,
  ),
  "r1_distill_llama": dict(
    model_type="llama",
    head_dim=4,
    rope_theta=5e5,
    attention_bias=False,
    mlp_bias=False,
    pretraining_tp=1,
    tie_word_embeddings=True,
    bos_token_id=3,
    eos_token_id=[4, 5, 6],
    rope_scaling=dict(LLAMA3, high_freq_factor=3.0, factor=32.0),
  ),
  # transformers 4 JSON: a pattern of layers, a theta for the local ones
  "gemma3": dict(
    GEMMA3,
    sliding_window_pattern=3,
    rope_theta=3e5,
    rope_local_base_freq=2e3,
    rope_scaling=dict(rope_type="linear", factor=8.0),
  ),
  "gemma3_nested": dict(
    GEMMA3,
    num_hidden_layers=3,
    num_key_value_heads=4,
    query_pre_attn_scalar=6,
    layer_types=["full_attention", "sliding_attention", "sliding_attention"],
    rope_parameters={
      "full_attention": dict(rope_type="default", rope_theta=4e4),
      "sliding_attention": dict(rope_type="linear", rope_theta=5e2, factor=2.0),
    },
  ),
}


def build(config):
  """transformers' random model of a config.json."""
  with tempfile.TemporaryDirectory() as folder:
    with open(os.path.join(folder, "config.json"), "w") as f:
      json.dump(config, f)
    facts = AutoConfig.from_pretrained(folder)
  return AutoModelForCausalLM.from_config(facts, attn_implementation="eager").float().eval()


def make(name, config):
  model = build(config)
  centre = 0 if config["model_type"].startswith("gemma") else 1  # of the weights of norms
  torch.manual_seed(len(name))
  with torch.no_grad():
    for key, w in model.named_parameters():
      norm = key.endswith("norm.weight")
      std = 0.3 if norm or key.endswith("bias") else 1.5 * w.shape[-1] ** -0.5
      w.copy_((torch.randn(w.shape) * std + norm * centre).half().float())
    tokens = torch.randint(0, V, (1, T))
    logits = model(tokens).logits[0].numpy()
  weights = {f"w:{k}": w.detach().numpy().astype(np.float16) for k, w in model.named_parameters()}
  np.savez_compressed(
    os.path.join(os.path.dirname(__file__), f"{name}.npz"),
    config=json.dumps(config),
    tokens=tokens[0].numpy().astype(np.int32),
    logits=logits,
    **weights,
  )
  print(name, "logits up to", np.abs(logits).max())


def check(name):
  """Largest difference between a file's logits and those of transformers now."""
  with np.load(os.path.join(os.path.dirname(__file__), f"{name}.npz")) as file:
    model = build(json.loads(str(file["config"])))
    with torch.no_grad():
      for key, w in model.named_parameters():
        w.copy_(torch.tensor(file[f"w:{key}"]).float())
      logits = model(torch.tensor(file["tokens"][None]).long()).logits[0].numpy()
    return np.abs(logits - file["logits"]).max()


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("names", nargs="*", default=[*CASES], metavar="NAME")
  parser.add_argument("--check", action="store_true", help="compare the files with transformers")
  options = parser.parse_args()
  far = 0.0
  for name in options.names:
    if options.check:
      found = check(name)
      far = max(far, found)
      print(f"{name:<18} at most {found:.1e} from transformers")
    else:
      make(name, {**BASE, "tie_word_embeddings": False, **CASES[name]})
  if far > 1e-4:
    raise SystemExit(f"the goldens differ by {far:.1e}")
