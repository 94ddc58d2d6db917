"""A folder for a GGUF file: the small files that a Hugging Face directory has, and a link to it.

All else in gen_ssd reads this folder as it reads a Hugging Face directory; only tensors come from the
GGUF file itself (see stored.py).
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import re
import typing

import numpy as np

from gen_ssd import folders
from gen_ssd.errors import UserError
from gen_ssd.errors import clip
from gen_ssd.errors import one_line
from gen_ssd.models import gguf
from gen_ssd.models import rope
from gen_ssd.models import tokenization
from gen_ssd.models.architecture import Architecture

FORMAT = 1  # of the small files: to be raised when they change for a file that stays the same
PLAIN = {  # name of a fact -> its name in config.json
  "block_count": "num_hidden_layers",
  "embedding_length": "hidden_size",
  "feed_forward_length": "intermediate_size",
}
KNOWN = {  # the facts that are read, or that change nothing here
  "context_length",
  "vocab_size",
  "attention.head_count",
  "attention.head_count_kv",
  "attention.key_length",
  "attention.value_length",
  "attention.layer_norm_rms_epsilon",
  "attention.sliding_window",
  "attention.sliding_window_pattern",
  "rope.dimension_count",
  "rope.freq_base",
  "rope.freq_base_swa",
  "rope.scaling.type",
  "rope.scaling.factor",
  "rope.scaling.original_context_length",
  "rope.scaling.finetuned",
  "tensor_data_layout",
  *PLAIN,
}
CLASSES = {
  "llama": "LlamaForCausalLM",
  "qwen2": "Qwen2ForCausalLM",
  "qwen3": "Qwen3ForCausalLM",
  "gemma3_text": "Gemma3ForCausalLM",
}
SPECIAL = {
  "bos_token": "bos_token_id",
  "eos_token": "eos_token_id",
  "unk_token": "unknown_token_id",
  "pad_token": "padding_token_id",
}
ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")  # of a text, of a turn, of a message
# Llama 3.1, 3.2 and 3.3 divide frequencies with these numbers and a factor of their own.
LLAMA3 = dict(low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)
DIGITS = ("smollm",)  # pre-tokenizers that split numbers into digits, and then as GPT-2's does
GPT2 = ("gpt-2", "gpt2")
KINDS = ("gpt2", "llama")  # byte-level BPE, and SentencePiece's BPE


@functools.cache
def folder(file: str) -> str:
  """The folder made for a GGUF file; its last part is the name of the file.

  It is kept in the temporary folder of this machine and used again until the file changes. Raises
  UserError, which names the file, when gguf.read does, and for models and tokenizers that are not
  supported.
  """
  header = gguf.read(os.path.realpath(file))
  found = config(header)
  versions = [importlib.metadata.version(name) for name in ("transformers", "tokenizers")]
  key = hashlib.sha256(repr((FORMAT, header.file, header.digest, *versions)).encode())

  def fill(partial):
    os.symlink(header.file, os.path.join(partial, gguf.NAME))
    _write(partial, "config.json", found)
    made = _tokenizer(header, found["vocab_size"])
    made.save_pretrained(partial)
    _write(
      partial, "generation_config.json", {n: found[n] for n in found if n.endswith("_token_id")}
    )
    _check_loading(header, made, tokenization.load_tokenizer(partial))
    licence = header.facts.get("general.license")
    if isinstance(licence, str) and re.fullmatch(r"[\w.+-]{1,60}", licence):
      with open(os.path.join(partial, "README.md"), "w", encoding="utf-8") as f:
        f.write(f"---\nlicense: {licence}\n---\n")

  return folders.made(os.path.join(key.hexdigest()[:16], os.path.basename(file)), fill)


def _write(folder, name, value):
  with open(os.path.join(folder, name), "w", encoding="utf-8") as f:
    json.dump(value, f, indent=2, ensure_ascii=False)
    f.write("\n")


# ---------------------------------------------------------------- config.json


def config(header: gguf.Header) -> dict[str, typing.Any]:
  """What config.json says of the same model.

  Raises UserError for facts that are lacking or make no sense, and for those that would change what
  a model computes and are not known here.
  """
  kind, facts = gguf.family(header), header.facts
  _refuse_parts(header)
  fact = functools.partial(gguf.fact, header)
  found = {"architectures": [CLASSES[kind]], "model_type": kind, "dtype": "float32"}
  found |= {theirs: fact(name, int) for name, theirs in PLAIN.items()}
  if found["num_hidden_layers"] > len(header.tensors):  # lists of that length follow
    raise _refused(
      header, "block_count", f"a number below that of its {len(header.tensors)} tensors"
    )
  heads, kv_heads = gguf.head_counts(header)
  head = fact("attention.key_length", int, max(1, found["hidden_size"] // heads))
  for name in ("attention.value_length", "rope.dimension_count"):
    if fact(name, int, head) != head:
      raise _refused(header, name, f"{head}, the size of a head")
  embed = header.tensors.get("token_embd.weight")
  if embed is None:
    raise UserError(f"{clip(header.file)}: it has no tensor token_embd.weight")
  found |= {
    "vocab_size": embed.dims[0],
    "num_attention_heads": heads,
    "num_key_value_heads": kv_heads,
    "head_dim": head,
    "max_position_embeddings": fact("context_length", int, 2048),
    "rms_norm_eps": _decimal(fact("attention.layer_norm_rms_epsilon", float)),
    "rope_theta": _decimal(fact("rope.freq_base", float, 10000.0)),
    "rope_scaling": _scaling(header, head),
    "tie_word_embeddings": "output.weight" not in header.tensors,
  }
  found |= _gemma(header, found) if kind == "gemma3_text" else {"hidden_act": "silu"}
  found |= {"bos_token_id": facts.get("tokenizer.ggml.bos_token_id")}
  ends = [facts.get(f"tokenizer.ggml.{name}") for name in ENDS]
  found["eos_token_id"] = [*dict.fromkeys(i for i in ends if type(i) is int)]
  return found


def _refuse_parts(header):
  """Raises UserError for what is not one whole model, and for facts that are not known here."""
  facts, prefix = header.facts, header.facts["general.architecture"] + "."
  if facts.get("split.count", 1) not in (0, 1):
    raise UserError(
      f"{clip(header.file)}: it is one of {clip(repr(facts['split.count']))} parts of a model; "
      "`llama-gguf-split --merge` of llama.cpp joins them"
    )
  if facts.get("general.type", "model") != "model":
    raise UserError(
      f"{clip(header.file)}: general.type is {clip(repr(facts['general.type']))}, wanted 'model'"
    )
  known = {prefix + name for name in KNOWN}
  if gguf.family(header) != "gemma3_text":
    known.remove(prefix + "attention.sliding_window")
  for name, value in facts.items():
    off = value is True if name.endswith(".causal") else value in (0, False, "", "none")
    if name.startswith(prefix) and name not in known and not off:
      raise UserError(
        f"{clip(header.file)}: {clip(name)} is {clip(repr(value), 40)}, which is not supported"
      )


def _refused(header, name, right):
  name = f"{header.facts['general.architecture']}.{name}"
  value = clip(repr(header.facts.get(name)), 40)
  return UserError(f"{clip(header.file)}: {name} is {value}, which is not supported, only {right}")


def _decimal(x):
  """The shortest decimal number with the same float32, which config.json had: 1e-06, for example."""
  return float(str(np.float32(x)))


def _scaling(header, head):
  """rope_scaling of config.json, or None."""
  fact = functools.partial(gguf.fact, header)
  kind = fact("rope.scaling.type", str, "none")
  if gguf.FREQUENCIES in header.tensors:
    if kind != "none":
      raise _refused(header, "rope.scaling.type", f"none beside a tensor {gguf.FREQUENCIES}")
    return _llama3(header, head)
  if kind == "none":
    return None
  factor = _decimal(fact("rope.scaling.factor", float))
  if kind == "linear":
    return {"rope_type": "linear", "factor": factor}
  if kind == "yarn":
    length = fact("rope.scaling.original_context_length", int)
    return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": length}
  raise _refused(header, "rope.scaling.type", "none, linear and yarn")


def _llama3(header, head):
  """The rope_scaling of Llama 3.1, whose frequencies are divided by the numbers in a tensor.

  The file has the quotients in place of the settings. Raises UserError when they are not those of
  LLAMA3 with one factor.
  """
  tensor = header.tensors[gguf.FREQUENCIES]
  theta = _decimal(gguf.fact(header, "rope.freq_base", float, 10000.0))
  if tensor.dims == (head // 2,):
    entry = gguf.Entry(header.file, gguf.FREQUENCIES, *tensor)
    found = gguf.rows(entry, 0, head // 2)
    settings = {"factor": _decimal(found.max()), **LLAMA3}
    plain = Architecture(*[1] * 5, head=head, hidden=1, theta=theta)
    scaled = dataclasses.replace(plain, rope=("llama3", *settings.items()))
    with np.errstate(all="ignore"):
      quotients = rope.frequencies(plain)[0] / rope.frequencies(scaled)[0]
    if np.allclose(found, quotients, rtol=1e-4):
      return {"rope_type": "llama3", **settings}
  raise UserError(
    f"{clip(header.file)}: tensor {gguf.FREQUENCIES} is not supported, only that of Llama 3.1, 3.2 "
    "and 3.3"
  )


def _gemma(header, found):
  """The facts of Gemma 3 that other models do not have; llama.cpp knows some of them by heart."""
  fact, layers = functools.partial(gguf.fact, header), found["num_hidden_layers"]
  pattern = header.facts.get("gemma3.attention.sliding_window_pattern", 6)
  if isinstance(pattern, list) and len(pattern) == layers:
    sliding = [bool(x) for x in pattern]
  elif type(pattern) is int and pattern > 0:
    sliding = [(i + 1) % pattern > 0 for i in range(layers)]
  else:
    raise _refused(header, "attention.sliding_window_pattern", "a period or one bool a layer")
  large = layers == 62  # the 27B model
  return {
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": (
      found["hidden_size"] // found["num_attention_heads"] if large else found["head_dim"]
    ),
    "sliding_window": fact("attention.sliding_window", int),
    "layer_types": ["sliding_attention" if x else "full_attention" for x in sliding],
    "rope_local_base_freq": _decimal(fact("rope.freq_base_swa", float, 10000.0)),
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
  }


# ---------------------------------------------------------------- tokenizer


def _tokenizer(header, size):
  """The tokenizer that a file describes, for a model with `size` ids. Raises UserError."""
  from tokenizers import pre_tokenizers
  from transformers import PreTrainedTokenizerFast
  from transformers.integrations.gguf import gguf_tokenizer_mapping as library

  shown, splits = clip(header.file), {*GPT2, *DIGITS, *library.GGUF_PRE_TOKENIZER_SPLITS}
  described = _described(header, size, splits)
  facts = lambda name, default=None: header.facts.get(f"tokenizer.{name}", default)
  tokens, pre = described["tokens"], described["pre_tokenizer_type"]
  special = {}
  for name, key in SPECIAL.items():
    i = facts(f"ggml.{key}")
    if i is not None:
      if not (type(i) is int and 0 <= i < len(tokens)):
        raise UserError(f"{shown}: tokenizer.ggml.{key} is {clip(repr(i))}, wanted a token id")
      special[name] = tokens[i]
  template = facts("chat_template")
  if not isinstance(template, str | None):
    raise UserError(
      f"{shown}: tokenizer.chat_template is {clip(repr(template), 40)}, wanted a text"
    )
  try:
    backend, _ = library.convert_gguf_tokenizer(header.facts["general.architecture"], described)
    if described["tokenizer_type"] == "gpt2" and pre in DIGITS:  # the library reads it as GPT-2's
      backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), backend.pre_tokenizer]
      )
    return PreTrainedTokenizerFast(
      tokenizer_object=backend,
      chat_template=template,
      add_bos_token=bool(facts("ggml.add_bos_token", described["tokenizer_type"] == "llama")),
      add_eos_token=bool(facts("ggml.add_eos_token", False)),
      clean_up_tokenization_spaces=False,
      **special,
    )
  except (KeyboardInterrupt, SystemExit):
    raise
  except BaseException as error:  # of any kind, as the facts are; a panic of Rust is no Exception
    why = f"{type(error).__name__}: {one_line(error)}"
    raise UserError(f"{shown}: transformers refuses its tokenizer: {why}") from None


def _check_loading(header, made, loaded):
  """Raises UserError when transformers, for this type of model, splits text in another way."""
  states = []
  for tokenizer in (made, loaded):
    split = tokenizer.backend_tokenizer.pre_tokenizer
    states.append(split and split.__getstate__())
  if states[0] != states[1]:
    pre, arch = header.facts.get("tokenizer.ggml.pre"), header.facts["general.architecture"]
    raise UserError(
      f"{clip(header.file)}: tokenizer.ggml.pre is {pre!r}, which is not supported for {arch}: "
      f"transformers reads its tokenizer as {type(loaded).__name__}"
    )


def _described(header, size, splits):
  """The facts of a tokenizer as transformers' GGUF converter wants them. Raises UserError."""
  get = lambda name: header.facts.get(f"tokenizer.ggml.{name}")
  refuse = lambda name, right: UserError(
    f"{clip(header.file)}: tokenizer.ggml.{name} is {clip(repr(get(name)), 40)}, wanted {right}"
  )
  kind, tokens, merges = get("model"), get("tokens"), get("merges")
  if kind not in KINDS:
    raise refuse("model", f"one of those that are supported: {', '.join(KINDS)}")
  if kind == "gpt2" and get("pre") not in splits:
    raise refuse("pre", f"one of those that are supported: {', '.join(sorted(splits))}")
  if not (_list(tokens, str) and len({*tokens}) == len(tokens) <= size):
    raise refuse(
      "tokens", f"a list of up to {size:,} different texts, one for each row of the model"
    )
  if merges is not None and not (_list(merges, str) and all(x.count(" ") == 1 for x in merges)):
    raise refuse("merges", "a list of pairs of texts, with a space between them")
  if kind == "gpt2" and merges is None:
    raise refuse("merges", "a list of pairs of texts")
  for name, item in (("scores", float), ("token_type", int)):
    needed = name == "scores" and kind == "llama" and merges is None
    if (get(name) is not None or needed) and not (
      _list(get(name), item) and len(get(name)) == len(tokens)
    ):
      raise refuse(name, "a list with one number for each token")
  found = {"tokenizer_type": kind, "pre_tokenizer_type": get("pre"), "tokens": tokens}
  optional = {n: get(n) for n in ("merges", "scores", "token_type")}
  return found | {n: x for n, x in optional.items() if x is not None}


def _list(value, kind):
  return isinstance(value, list) and value and all(type(x) is kind for x in value)
