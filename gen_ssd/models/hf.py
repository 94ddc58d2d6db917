"""Facts about a Hugging Face model: its directory, its Architecture, and an identity of its files."""

import functools
import glob
import hashlib
import json
import math
import os
import re
import typing

from gen_ssd.models import architecture
from gen_ssd.models import safetensors_io
from gen_ssd.models.architecture import Architecture

PathLike = str | os.PathLike
MODEL_TYPES = tuple(architecture.FAMILIES)
ACTS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
ROPE = {  # rope type -> the parameters that it reads
  "default": (),
  "linear": ("factor",),
  "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
  "yarn": (
    "factor",
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "truncate",
  ),
}
WANTED = (
  "*.json",
  "*.safetensors",
  "*.jinja",
  "*.txt",
  "tokenizer*",
  "vocab*",
  "LICENSE*",
  "NOTICE*",
)

BUNDLED = os.path.join(os.path.dirname(os.path.dirname(__file__)), "bundled")


# ---------------------------------------------------------------- directory


@functools.cache
def locate(path: str) -> str:
  """The directory of the model that `path` names.

  `path` is a directory, `bundled/NAME`, or a hub name: ORG/NAME or ORG/NAME@REVISION. A hub model is
  downloaded unless it is in the hub's cache (HF_HOME, HF_HUB_CACHE), which also works without a
  network. Raises ValueError when a hub model cannot be found or downloaded.
  """
  if path.startswith("bundled/"):
    return os.path.join(BUNDLED, path.removeprefix("bundled/"))
  if os.path.isdir(path) or not re.fullmatch(r"[\w.-]+/[\w.-]+(@\S+)?", path):
    return path
  import huggingface_hub
  from huggingface_hub import errors

  name, _, revision = path.partition("@")
  try:
    return huggingface_hub.snapshot_download(
      name,
      revision=revision or None,
      allow_patterns=list(WANTED),
      ignore_patterns=["*/*", "consolidated*"],
    )
  except errors.GatedRepoError:
    why = (
      "the hub requires its licence accepted: accept it on the model's page, then `hf auth login`"
    )
  except errors.RepositoryNotFoundError:
    why = "the hub has no such model, or it is private: try `hf auth login`"
  except errors.RevisionNotFoundError:
    why = f"the hub has no revision {revision!r} of this model"
  except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, OSError) as error:
    why = (
      f"the hub cannot be reached and its cache does not have it ({type(error).__name__}); "
      f"on a machine with a network, `hf download {name}` fills the cache, and "
      "`hf download --local-dir DIR` creates a directory that you can name instead"
    )
  raise ValueError(f"{path}: there is no such directory; read as a hub name: {why}")


def read_config(path: PathLike) -> dict[str, typing.Any]:
  """The content of config.json in the directory `path`. Raises ValueError when there is none."""
  file = os.path.join(path, "config.json")
  if not os.path.isfile(file):
    raise ValueError(
      f"{path}: there is no config.json. Give a Hugging Face directory or a hub name; "
      "`hf download NAME --local-dir DIR` creates a directory"
    )
  with open(file, encoding="utf-8") as f:
    return json.load(f)


# ---------------------------------------------------------------- config.json -> Architecture


def read_architecture(path: PathLike) -> Architecture:
  """The Architecture of the model in Hugging Face directory `path`, from its config.json.

  Raises ValueError for every model that the decoder would compute wrongly: an unknown architecture,
  rope type or activation, sliding windows outside Gemma 3, biases other than Qwen2's, soft caps, and
  quantised weights.
  """
  from transformers import AutoConfig  # takes seconds to import, and little here needs it

  kind = read_config(path).get("model_type")
  if kind not in MODEL_TYPES:  # before transformers, which also fails on unknown types
    known = ", ".join(MODEL_TYPES)
    _refuse(
      path,
      f"model_type {kind!r}",
      f"{known} (DeepSeek-R1-Distill are qwen2 and llama; Gemma 3 must be text only)",
    )
  config = AutoConfig.from_pretrained(path, local_files_only=True)
  _refuse_unsupported(path, kind, config)
  heads = config.num_attention_heads
  kv_heads = getattr(config, "num_key_value_heads", None) or heads
  if heads % kv_heads:
    _refuse(path, f"{heads} heads over {kv_heads} key-value heads", "a multiple")
  theta, rope = _rope(path, config, "full_attention")
  return Architecture(
    vocab=config.vocab_size,
    width=config.hidden_size,
    layers=config.num_hidden_layers,
    kv_heads=kv_heads,
    groups=heads // kv_heads,
    head=_head(config),
    hidden=config.intermediate_size,
    theta=theta,
    rope=rope,
    eps=float(config.rms_norm_eps),
    tied=bool(getattr(config, "tie_word_embeddings", False)),
    act=ACTS[_act(kind, config)],
    **architecture.FAMILIES[kind],
    **(_gemma(path, config) if kind == "gemma3_text" else {}),
  )


def _refuse(path, what, instead):
  raise ValueError(f"{path}: {what} is not supported, only {instead}")


def _head(config):
  return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _act(kind, config):
  return config.hidden_activation if kind == "gemma3_text" else getattr(config, "hidden_act", None)


def _refuse_unsupported(path, kind, config):
  """Raises ValueError for the first fact of a config that the decoder does not support."""
  has = lambda name: getattr(config, name, None)
  act = _act(kind, config)
  kinds = {"full_attention"} | ({"sliding_attention"} if kind == "gemma3_text" else set())
  layers = set(has("layer_types") or ()) - kinds
  window = has("use_sliding_window") or (kind == "mistral" and has("sliding_window"))
  caps = [n for n in ("final_logit_softcapping", "attn_logit_softcapping") if has(n)]
  for wrong, what, instead in (
    (act not in ACTS, f"hidden_act {act!r}", ", ".join(ACTS)),
    (has("quantization_config"), "a quantised checkpoint", "float32, bfloat16 or float16"),
    (
      window,
      "a sliding window in use",
      "full attention in every layer of this architecture: set "
      "sliding_window to null if no text is longer than it",
    ),
    (layers, f"layer_types {sorted(layers)}", " or ".join(sorted(kinds))),
    (has("attention_bias"), "attention_bias (it biases o_proj too)", "qwen2's on q, k and v"),
    (has("mlp_bias"), "mlp_bias", "mlp without biases"),
    (caps, " and ".join(caps), "logits as they are (null)"),
    (has("use_bidirectional_attention"), "use_bidirectional_attention", "causal attention"),
  ):
    if wrong:
      _refuse(path, what, instead)


def _gemma(path, config):
  """The facts of Gemma 3 that depend on numbers in its config."""
  facts = dict(
    embed_scale=math.sqrt(config.hidden_size),
    query_scale=math.sqrt(_head(config) / config.query_pre_attn_scalar),
  )
  sliding = tuple(x == "sliding_attention" for x in config.layer_types)
  if any(sliding):
    if not config.sliding_window:
      _refuse(path, f"sliding_attention with sliding_window {config.sliding_window}", "a width")
    theta, rope = _rope(path, config, "sliding_attention")
    facts.update(
      sliding=sliding, window=config.sliding_window, sliding_theta=theta, sliding_rope=rope
    )
  return facts


def _rope(path, config, layer_type):
  """(theta, rope) of the layers of one type. Older files have the same values for all layers."""
  p = dict(config.rope_parameters or {})
  if any(isinstance(x, dict) for x in p.values()):
    if not p.get(layer_type):
      _refuse(path, f"rope_parameters without {layer_type}", "a set for each of its layer_types")
    p = dict(p[layer_type])
  kind = p.get("rope_type") or p.get("type") or "default"
  if kind not in ROPE:
    _refuse(path, f"rope type {kind!r}", ", ".join(ROPE))
  if p.get("partial_rotary_factor") not in (None, 1.0):
    _refuse(
      path, f"partial_rotary_factor {p['partial_rotary_factor']}", "rotation of the whole head"
    )
  if kind == "yarn" and p.get("factor") is None:
    p["factor"] = config.max_position_embeddings / p["original_max_position_embeddings"]
  kept = sorted((name, p[name]) for name in ROPE[kind] if p.get(name) is not None)
  return float(p.get("rope_theta") or config.default_theta), (kind, *kept)


# ---------------------------------------------------------------- identity


def identity(path: PathLike) -> str:
  """A short hash of the config, tokenizer and weights in directory `path`.

  It is fast, because it reads only the name, the shape and 4 KiB in the middle of each tensor. This
  distinguishes two trainings of one architecture and does not depend on how tensors are divided into
  files.
  """
  digest = hashlib.sha256()
  for pattern in ("config.json", "generation_config.json", "tokenizer*", "chat_template*"):
    for file in sorted(glob.glob(os.path.join(glob.escape(path), pattern))):
      with open(file, "rb") as f:
        digest.update(os.path.basename(file).encode() + hashlib.sha256(f.read()).digest())
  for name, entry in sorted(safetensors_io.headers(path)[0].items()):
    digest.update(f"{name} {entry.dtype} {entry.dims}".encode())
    digest.update(safetensors_io.middle(entry, 4096))
  return digest.hexdigest()[:16]
