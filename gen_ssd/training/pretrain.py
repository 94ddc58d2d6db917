"""Makes a bundled model from nothing: tokenizer, random weights, training, export."""

from collections.abc import Callable
import dataclasses

import jax
import numpy as np
import transformers

from gen_ssd import config as config_lib
from gen_ssd import folders
from gen_ssd.models import attention
from gen_ssd.models import decoder
from gen_ssd.models import export
from gen_ssd.models import hf
from gen_ssd.models import tokenization
from gen_ssd.models import word_level
from gen_ssd.models.architecture import Layout
from gen_ssd.problems import bundled
from gen_ssd.training import packing
from gen_ssd.training import train


@dataclasses.dataclass(frozen=True)
class Documents:
  """Endless bundled texts: `lessons` (for a teacher) or `plain` (for a base student).

  Text i is a pure function of (seed, i), so any position can be resumed.
  """

  kind: str
  tokenizer: transformers.PreTrainedTokenizerBase
  prompt: Callable[[str], list[int]]  # problem text -> prompt ids
  eos: int
  length: int  # tokens; longer texts are cut
  seed: int = 0

  def __len__(self) -> int:
    return 1 << 30

  def __getitem__(self, i: int) -> packing.Example:
    rng = np.random.default_rng([self.seed, i])
    if self.kind == "plain":
      problem, text = None, bundled.plain_text(rng)
    else:
      problem, text = bundled.lesson(rng)
    prompt = [] if problem is None else self.prompt(problem)
    ids = self.tokenizer.encode(text, add_special_tokens=False)
    return packing.example(prompt, [*ids, self.eos], self.length)


def pretrain(config: config_lib.Config, workdir: folders.Path) -> None:
  """Trains a bundled model from random weights and saves it in Hugging Face format.

  It is written to `config.pretrain.out`, or to `model` in the workdir.
  """
  p = config.pretrain
  untrained = workdir / "born"
  tokenizer = _save_untrained(p, untrained)
  arch = hf.read_architecture(str(untrained))
  layout = Layout(attention=attention.implementation(config.attention))
  model = decoder.initialise(arch, layout, jax.random.key(config.train.seed))
  source = Documents(
    p.documents,
    tokenizer,
    lambda text: tokenization.chat_prompt(tokenizer, text),
    tokenizer.eos_token_id,
    config.train.length,
    config.train.seed,
  )
  model = train.fit(
    model, source, config.train, workdir / "pretrain", title=f"pretrain {config.name}"
  )
  export.save(p.out or str(workdir / "model"), model, str(untrained), dtype="bfloat16")


def _save_untrained(p, folder):
  """Writes the tokenizer and the config.json of the model to `folder`; returns the tokenizer."""
  tokenizer = word_level.word_level_tokenizer(
    [*bundled.vocabulary(), "+", "-", "=", "\\boxed{"], str(folder)
  )
  transformers.Qwen3Config(
    vocab_size=-(-len(tokenizer) // 128) * 128,
    hidden_size=p.width,
    num_hidden_layers=p.layers,
    num_attention_heads=p.heads,
    num_key_value_heads=p.heads,
    head_dim=p.head,
    intermediate_size=p.hidden,
    tie_word_embeddings=True,
    max_position_embeddings=512,
    eos_token_id=tokenizer.eos_token_id,
    pad_token_id=tokenizer.pad_token_id,
    architectures=["Qwen3ForCausalLM"],
  ).save_pretrained(folder)
  return tokenizer
