"""How a bundled model is made from nothing: tokenizer, random weights, training, export."""

import dataclasses

import jax
import numpy as np
import transformers

from gen_ssd.models import decoder
from gen_ssd.models import export
from gen_ssd.models import hf
from gen_ssd.models import tokenization
from gen_ssd.models.architecture import Layout
from gen_ssd.problems import bundled
from gen_ssd.training import packing
from gen_ssd.training import train


@dataclasses.dataclass(frozen=True)
class Documents:
  """Endless bundled texts: `lessons` (a teacher's) or `plain` (a base student's).

  Text i is a pure function of (seed, i), so any position can be resumed.
  """

  kind: str
  tokenizer: object
  prompt: object  # problem text -> prompt ids
  eos: int
  length: int
  seed: int = 0

  def __len__(self):
    return 1 << 30

  def __getitem__(self, i):
    rng = np.random.default_rng([self.seed, i])
    if self.kind == "plain":
      story, text = None, bundled.plain_text(rng)
    else:
      story, text = bundled.lesson(rng)
    prompt = [] if story is None else self.prompt(story)
    ids = self.tokenizer.encode(text, add_special_tokens=False)
    return packing.example(prompt, [*ids, self.eos], self.length)


def pretrain(config, workdir):
  """Makes a bundled model from nothing: tokenizer, random weights, training, export."""
  p = config.pretrain
  born = workdir / "born"
  tokenizer = tokenization.word_level_tokenizer(
    [*bundled.vocabulary(), "+", "-", "=", "\\boxed{"], str(born)
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
  ).save_pretrained(born)
  arch = hf.read_architecture(str(born))
  model = decoder.initialise(arch, Layout(), jax.random.key(config.train.seed))
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
  export.save(p.out or str(workdir / "model"), model, str(born), dtype="bfloat16")
