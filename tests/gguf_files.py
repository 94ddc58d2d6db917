"""Writes GGUF files from Hugging Face directories, by the rules of llama.cpp's converter."""

import json
import math

import gguf
import numpy as np
from safetensors.numpy import load_file

ARCHITECTURES = {
  "llama": "llama",
  "mistral": "llama",
  "qwen2": "qwen2",
  "qwen3": "qwen3",
  "gemma3_text": "gemma3",
}
TEMPLATE = (
  "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
  "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# 40 tokens of a byte-level vocabulary, with one merge; Qwen's class wants <|endoftext|>.
TOKENS = [*"0123456789abcdefghijklmnopqrstuvwxy", "Ġ", "th"]
TOKENS += ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
TOKENIZER = {
  "model": "gpt2",
  "pre": "qwen2",
  "tokens": TOKENS,
  "token_type": [1] * 37 + [3] * 3,
  "merges": ["t h"],
  "eos_token_id": 38,
  "padding_token_id": 39,
}


def facts(config):
  """The facts of a config.json, without the name of the architecture."""
  kind, head = config["model_type"], config.get("head_dim")
  parameters = config.get("rope_parameters") or {}
  scaling = config.get("rope_scaling") or parameters
  found = {
    "block_count": config["num_hidden_layers"],
    "context_length": 4096,
    "embedding_length": config["hidden_size"],
    "feed_forward_length": config["intermediate_size"],
    "attention.head_count": config["num_attention_heads"],
    "attention.head_count_kv": config["num_key_value_heads"],
    "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
    "rope.freq_base": float(config.get("rope_theta") or parameters["rope_theta"]),
  }
  if head:
    found |= {"attention.key_length": head, "attention.value_length": head}
  if kind == "gemma3_text":
    found["attention.sliding_window"] = config["sliding_window"]
  rope = scaling.get("rope_type", scaling.get("type", "default"))
  if rope in ("linear", "yarn"):
    found |= {"rope.scaling.type": rope, "rope.scaling.factor": scaling["factor"]}
  if rope == "yarn":
    found["rope.scaling.original_context_length"] = scaling["original_max_position_embeddings"]
  return found


def write(folder, file, *, kinds=None, tokenizer=TOKENIZER, template=TEMPLATE, **changes):
  """Writes the model in a Hugging Face directory as a GGUF file.

  Args:
    folder: with config.json and safetensors.
    file: the path of the GGUF file.
    kinds: {part of a tensor's name: name of its GGML type}; all others are F32.
    tokenizer: facts behind `tokenizer.ggml.`.
    template: the chat template, or None.
    changes: more facts by whole name, with `__` for dots; None removes a fact.
  """
  config = json.loads((folder / "config.json").read_text())
  arch = ARCHITECTURES[config["model_type"]]
  found = {f"{arch}.{name}": value for name, value in facts(config).items()}
  found |= {f"tokenizer.ggml.{name}": value for name, value in tokenizer.items()}
  found |= {"tokenizer.chat_template": template, "general.license": "apache-2.0"}
  found |= {name.replace("__", "."): value for name, value in changes.items()}
  writer = gguf.GGUFWriter(file, arch)
  for name, value in found.items():
    _add(writer, name, value)
  for name, x in tensors(folder, config, arch).items():
    kind = next((k for part, k in (kinds or {}).items() if part in name), "F32")
    kind = gguf.GGMLQuantizationType[kind]
    writer.add_tensor(name, gguf.quantize(x, kind), raw_dtype=kind)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return file


def _add(writer, name, value):
  if isinstance(value, list):
    writer.add_array(name, value)
  elif isinstance(value, str):
    writer.add_string(name, value)
  elif isinstance(value, bool):
    writer.add_bool(name, value)
  elif isinstance(value, float):
    writer.add_float32(name, value)
  elif value is not None:
    writer.add_uint32(name, value)


def tensors(folder, config, arch):
  """{name in GGUF: array} of the weights in a Hugging Face directory."""
  names = gguf.get_tensor_name_map(
    next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == arch),
    config["num_hidden_layers"],
  )
  found = {}
  for name, x in load_file(folder / "model.safetensors").items():
    stem, _, suffix = name.rpartition(".")
    if stem == "lm_head" and config.get("tie_word_embeddings"):
      continue
    x = x.astype(np.float32)
    if arch == "llama" and stem.endswith(("q_proj", "k_proj")):
      query = stem.endswith("q_proj")
      x = interleaved(x, config["num_attention_heads" if query else "num_key_value_heads"])
    if arch == "gemma3" and stem.endswith("norm"):
      x = x + np.float32(1)
    found[f"{names.get_name(stem)}.{suffix}"] = x
  scaling = config.get("rope_scaling") or {}
  if scaling.get("rope_type") == "llama3":
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    found["rope_freqs.weight"] = quotients(scaling, config["rope_theta"], head)
  return found


def interleaved(x, heads):
  """The rows of a projection with the two halves of each head interleaved."""
  return x.reshape(heads, 2, len(x) // heads // 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def quotients(scaling, theta, head):
  """By what Llama 3.1 divides each frequency, f32[head / 2]; as llama.cpp's converter computes it."""
  low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
  old, factor, found = scaling["original_max_position_embeddings"], scaling["factor"], []
  for i in range(0, head, 2):
    length = 2 * math.pi * theta ** (i / head)
    smooth = min(max((old / length - low) / (high - low), 0), 1)
    found.append(1 / ((1 - smooth) / factor + smooth))
  return np.array(found, np.float32)
