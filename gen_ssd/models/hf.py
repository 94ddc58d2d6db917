"""Facts about a Hugging Face model: its directory, its Architecture, and an identity of its files."""

import dataclasses
import functools
import glob
import hashlib
import math
import os
import re
import typing

import numpy as np

from gen_ssd import folders
from gen_ssd.errors import UserError
from gen_ssd.errors import clip
from gen_ssd.errors import one_line
from gen_ssd.models import architecture
from gen_ssd.models import gguf
from gen_ssd.models import gguf_folder
from gen_ssd.models import json_files
from gen_ssd.models import rope
from gen_ssd.models import stored
from gen_ssd.models.architecture import Architecture

PathLike = str | os.PathLike
MODEL_TYPES = tuple(architecture.FAMILIES)
ACTS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
ROPE = {  # rope type -> (the parameters that it needs, those that it may have)
  "default": ((), ()),
  "linear": (("factor",), ()),
  "llama3": (
    ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    (),
  ),
  "yarn": (
    ("factor", "original_max_position_embeddings"),
    ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
  ),
}
# Whole numbers of config.json, and the most that each may be: weights are listed by layer.
SIZES = {
  "vocab_size": 1 << 24,
  "hidden_size": 1 << 24,
  "intermediate_size": 1 << 24,
  "num_hidden_layers": 1 << 12,
  "num_attention_heads": 1 << 16,
  "num_key_value_heads": 1 << 16,
  "head_dim": 1 << 16,
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
  "README.md",  # it says the licence
)

HUB_NAME = r"[\w.-]+/[\w.-]+"
BUNDLED = os.path.join(os.path.dirname(os.path.dirname(__file__)), "bundled")


# ---------------------------------------------------------------- directory


@functools.cache
def locate(path: str, wanted: tuple[str, ...] = WANTED) -> str:
  """The directory of the model that `path` names, with at least the files `wanted`.

  `path` is a directory, a folder of a bucket (see folders.py), `bundled/NAME`, or a hub name: ORG/NAME
  or ORG/NAME@REVISION. A hub model is downloaded unless it is in the hub's cache (HF_HOME,
  HF_HUB_CACHE), which also works without a network. It may also be a GGUF file, anywhere: a path that
  ends in .gguf, or ORG/NAME:FILE.gguf on the hub; its directory is the one of gguf_folder.py. Raises
  UserError when a model cannot be found or downloaded, and for what is wrong with a GGUF file.
  """
  shown = clip(path)
  if path.startswith("bundled/"):
    known = sorted(os.listdir(BUNDLED))
    if path.removeprefix("bundled/") not in known:
      models = ", ".join(f"bundled/{n}" for n in known if os.path.isdir(os.path.join(BUNDLED, n)))
      raise UserError(f"{shown}: there is no such bundled model; there are {models}")
    return os.path.join(BUNDLED, path.removeprefix("bundled/"))
  if path.lower().endswith(".gguf") and not os.path.isdir(path):
    return gguf_folder.folder(_gguf_file(path))
  if folders.in_bucket(path):
    return folders.here(path, wanted)
  if os.path.isdir(path) or not re.fullmatch(rf"{HUB_NAME}(@\S+)?", path):
    return path
  return folders.from_hub(path, shown, wanted)


def _gguf_file(path):
  """Where on this machine the GGUF file is that `path` names."""
  folder, name = os.path.split(path)
  if folders.in_bucket(path):
    return os.path.join(folders.here(folder, (name,)), name)
  model, _, name = path.rpartition(":")
  if os.path.isfile(path) or not re.fullmatch(rf"{HUB_NAME}(@[^\s:]+)?", model):
    return path
  file = os.path.join(folders.from_hub(model, clip(path), (name,)), name)
  if not os.path.isfile(file):
    raise UserError(f"{clip(path)}: the hub's {model} has no file {name}")
  return file


def read_config(path: PathLike) -> dict[str, typing.Any]:
  """The content of config.json in the directory `path`. Raises UserError when there is none."""
  file = os.path.join(path, "config.json")
  if not os.path.isfile(file):
    raise UserError(
      f"{clip(str(path)) or 'an empty path'}: there is no config.json. Give a Hugging Face "
      "directory, a .gguf file or a hub name; `hf download NAME --local-dir DIR` creates a directory"
    )
  return json_files.read_object(file)


# ---------------------------------------------------------------- config.json -> Architecture


def read_architecture(path: PathLike) -> Architecture:
  """The Architecture of the model in Hugging Face directory `path`, from its config.json.

  Raises UserError for every model that the decoder would compute wrongly: an unknown architecture,
  rope type or activation, sliding windows outside Gemma 3, biases other than Qwen2's, soft caps, and
  quantised weights; and for a config.json that transformers refuses or whose numbers make no sense.
  """
  from transformers import AutoConfig  # takes seconds to import, and little here needs it

  given = read_config(path)
  kind = given.get("model_type")
  if kind not in MODEL_TYPES:  # before transformers, which also fails on unknown types
    known = ", ".join(MODEL_TYPES)
    _refuse(
      path,
      f"model_type {clip(repr(kind))}",
      f"{known} (DeepSeek-R1-Distill are qwen2 and llama; Gemma 3 must be text only)",
    )
  _check_rope(path, given)
  _check_numbers(path, given.get)  # transformers makes lists of such lengths
  try:
    config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
  except Exception as error:  # of any kind: the file is all that it reads
    raise _wrong(path, f"transformers refuses it: {one_line(error)}") from None
  _check_numbers(path, lambda name: getattr(config, name, None))
  _refuse_unsupported(path, kind, config)
  heads = config.num_attention_heads
  kv_heads = getattr(config, "num_key_value_heads", None) or heads
  if heads % kv_heads:
    _refuse(path, f"{heads} heads over {kv_heads} key-value heads", "a multiple")
  theta, turning = _rope(path, config, "full_attention")
  return _checked(
    path,
    Architecture(
      vocab=config.vocab_size,
      width=config.hidden_size,
      layers=config.num_hidden_layers,
      kv_heads=kv_heads,
      groups=heads // kv_heads,
      head=_head(config),
      hidden=config.intermediate_size,
      theta=theta,
      rope=turning,
      eps=float(config.rms_norm_eps),
      tied=getattr(config, "tie_word_embeddings", False),
      act=ACTS[_act(kind, config)],
      **architecture.FAMILIES[kind],
      **(_gemma(path, config) if kind == "gemma3_text" else {}),
    ),
  )


def _refuse(path, what, instead):
  raise UserError(f"{path}: {what} is not supported, only {instead}")


def _wrong(path, what):
  return UserError(f"{os.path.join(path, 'config.json')}: {what}")


def _check_numbers(path, get):
  """Raises UserError for the first size, number or switch that is there and makes no sense."""
  for name, most in SIZES.items():
    value = get(name)
    if value is not None and not (type(value) is int and 1 <= value <= most):
      raise _wrong(path, f"{name} is {clip(repr(value))}, wanted a whole number from 1 to {most:,}")
  for name, most in (("rms_norm_eps", 1), ("rope_theta", math.inf)):
    if get(name) is not None:
      _positive(path, name, get(name), most)
  if not isinstance(get("tie_word_embeddings"), bool | None):
    raise _wrong(
      path, f"tie_word_embeddings is {clip(repr(get('tie_word_embeddings')))}, wanted true or false"
    )


def _check_rope(path, given):
  """Raises UserError for rope settings that transformers would read as the default ones."""
  for name in ("rope_scaling", "rope_parameters"):
    p = given.get(name)
    if not isinstance(p, dict | None):
      raise _wrong(path, f"{name} is {clip(repr(p), 40)}, wanted an object or null")
    p = p or {}
    for one in [x for x in p.values() if isinstance(x, dict)] or [p]:
      kind = one.get("rope_type", one.get("type"))
      if not isinstance(kind, str) and one.keys() - {"rope_theta", "partial_rotary_factor"}:
        raise _wrong(path, f"{name} has {clip(', '.join(one), 80)}, but its rope_type is {kind!r}")
      if not isinstance(one.get("truncate"), bool | None):
        raise _wrong(path, f"truncate is {clip(repr(one['truncate']))}, wanted true or false")


def _positive(path, name, value, most=math.inf):
  """The number, if it is above 0, at most `most` and finite."""
  good = isinstance(value, int | float) and not isinstance(value, bool)
  if not (good and 0 < value <= min(most, 1e30)):
    limit = "" if most == math.inf else f" and at most {most:,}"
    raise _wrong(path, f"{name} is {clip(repr(value))}, wanted a finite number above 0{limit}")
  return value


def _checked(path, arch):
  """The Architecture, if rotary embeddings can be computed for it and its layers have one kind."""
  if arch.head % 2:
    raise _wrong(path, f"head_dim is {arch.head}, wanted an even number: rotation is of pairs")
  if arch.sliding and len(arch.sliding) != arch.layers:
    raise _wrong(path, f"{len(arch.sliding)} layer_types, wanted one for each of {arch.layers}")
  for a in (arch, dataclasses.replace(arch, theta=arch.sliding_theta, rope=arch.sliding_rope)):
    try:
      with np.errstate(all="ignore"):
        freqs, scale = rope.frequencies(a)
      sound = bool(np.isfinite([*freqs, scale]).all())
    except ArithmeticError:  # division by a difference of two of its numbers, or a logarithm
      sound = False
    if not sound:
      raise _wrong(path, f"rope_theta {a.theta} and {a.rope} give no finite frequencies")
  return arch


def _head(config):
  return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _act(kind, config):
  return config.hidden_activation if kind == "gemma3_text" else getattr(config, "hidden_act", None)


def _refuse_unsupported(path, kind, config):
  """Raises UserError for the first fact of a config that the decoder does not support."""
  has = lambda name: getattr(config, name, None)
  act = _act(kind, config)
  kinds = {"full_attention"} | ({"sliding_attention"} if kind == "gemma3_text" else set())
  layers = {str(x) for x in has("layer_types") or ()} - kinds
  window = has("use_sliding_window") or (kind == "mistral" and has("sliding_window"))
  caps = [n for n in ("final_logit_softcapping", "attn_logit_softcapping") if has(n)]
  for wrong, what, instead in (
    (str(act) not in ACTS, f"hidden_act {clip(repr(act))}", ", ".join(ACTS)),
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
  scalar = _positive(path, "query_pre_attn_scalar", config.query_pre_attn_scalar)
  facts = dict(
    embed_scale=math.sqrt(config.hidden_size), query_scale=math.sqrt(_head(config) / scalar)
  )
  sliding = tuple(x == "sliding_attention" for x in config.layer_types)
  if any(sliding):
    window = config.sliding_window
    if not window:
      _refuse(path, f"sliding_attention with sliding_window {window}", "a width")
    if type(window) is not int or window < 1:
      raise _wrong(path, f"sliding_window is {clip(repr(window))}, wanted a width in tokens")
    theta, turning = _rope(path, config, "sliding_attention")
    facts.update(sliding=sliding, window=window, sliding_theta=theta, sliding_rope=turning)
  return facts


def _rope(path, config, layer_type):
  """(theta, rope) of the layers of one type. Older files have the same values for all layers."""
  p = dict(config.rope_parameters or {})
  if any(isinstance(x, dict) for x in p.values()):
    if not p.get(layer_type):
      _refuse(path, f"rope_parameters without {layer_type}", "a set for each of its layer_types")
    p = dict(p[layer_type])
  kind = p.get("rope_type", p.get("type", "default"))
  if str(kind) not in ROPE:
    _refuse(path, f"rope type {clip(repr(kind))}", ", ".join(ROPE))
  if p.get("partial_rotary_factor") not in (None, 1.0):
    _refuse(
      path, f"partial_rotary_factor {p['partial_rotary_factor']}", "rotation of the whole head"
    )
  theta = p.get("rope_theta")
  theta = _positive(path, "rope_theta", config.default_theta if theta is None else theta)
  needed, optional = ROPE[kind]
  for name in needed + optional:
    if p.get(name) is not None and name != "truncate":
      _positive(path, f"{name} of rope type {kind}", p[name])
  old = "original_max_position_embeddings"
  if kind == "yarn" and p.get("factor") is None and p.get(old):
    most = _positive(path, "max_position_embeddings", config.max_position_embeddings)
    p["factor"] = most / p[old]
  if lacking := [name for name in needed if p.get(name) is None]:
    raise _wrong(path, f"rope type {kind} lacks {' and '.join(lacking)}")
  if kind == "llama3" and not p["low_freq_factor"] < p["high_freq_factor"]:
    raise _wrong(path, "low_freq_factor is not below high_freq_factor")
  kept = sorted((name, p[name]) for name in needed + optional if p.get(name) is not None)
  return float(theta), (kind, *kept)


# ---------------------------------------------------------------- identity


def identity(path: PathLike) -> str:
  """A short hash of the config, tokenizer and weights in directory `path`.

  Every small file that transformers may read counts, such as special_tokens_map.json and merges.txt.
  It is fast, because it reads only the name, the shape and some rows in the middle of each tensor. This
  distinguishes two trainings of one architecture and does not depend on how tensors are divided into
  files.
  """
  digest = hashlib.sha256()
  patterns = ("*.json", "*.jinja", "*.model", "*.txt", "tokenizer*")
  files = {f for p in patterns for f in glob.glob(os.path.join(glob.escape(path), p))}
  if gguf.is_folder(path):  # its small files were made here, by libraries whose versions may change
    digest.update(gguf.header(path).digest.encode())
    files = set()
  for file in sorted(filter(os.path.isfile, files)):
    if not file.endswith(".index.json"):
      with open(file, "rb") as f:
        digest.update(os.path.basename(file).encode() + hashlib.sha256(f.read()).digest())
  for name, entry in sorted(stored.headers(path).items()):
    digest.update(f"{name} {entry.dtype} {entry.dims}".encode())
    digest.update(stored.middle(entry, 4096))
  return digest.hexdigest()[:16]
