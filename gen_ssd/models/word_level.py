"""A small word-level tokenizer in Hugging Face format, for the bundled models."""

import typing

from gen_ssd.models.tokenization import PathLike
from gen_ssd.models.tokenization import Tokenizer
from gen_ssd.models.tokenization import load_tokenizer

SPECIALS = ("<pad>", "<eos>", "<user>", "<assistant>", "<unk>")
PUNCTUATION = ".,?!;:%})]"
CHAT_TEMPLATE = (
  "{% for m in messages %}{% if m.role == 'user' %}<user>{{ m.content }}"
  "{% elif m.role == 'assistant' %}<assistant>{{ m.content }}<eos>"
  "{% else %}{{ m.content }}{% endif %}{% endfor %}"
  "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def word_level_tokenizer(
  words: typing.Sequence[str],
  path: PathLike,
  chat_template: str | None = CHAT_TEMPLATE,
  max_length: int = 4096,
) -> Tokenizer:
  """Creates a fast Hugging Face tokenizer of `words` and single digits in `path`, and loads it.

  A token at the start of a word begins with "▁": "Tom has 57" is ▁Tom ▁has ▁5 7. Digits, newlines and
  the characters of PUNCTUATION are single tokens, with and without "▁". Text of known words can be
  decoded exactly; unknown words become <unk>. The order of ids is: SPECIALS, the single characters,
  then `words`.
  """
  from tokenizers import Regex
  from tokenizers import Tokenizer
  from tokenizers import decoders
  from tokenizers import models
  from tokenizers import normalizers
  from tokenizers import pre_tokenizers
  from transformers import PreTrainedTokenizerFast

  singles = [*"0123456789", *PUNCTUATION, "\n"]
  entries = dict.fromkeys([*SPECIALS, *singles, *("▁" + w for w in (*singles, *words))])
  core = Tokenizer(models.WordLevel({t: i for i, t in enumerate(entries)}, unk_token="<unk>"))
  # A newline starts a word too: add a space after it to encode, and remove the space to decode.
  core.normalizer = normalizers.Replace("\n", "\n ")
  single = Regex(r"▁?[0-9\n" + "".join("\\" + c for c in PUNCTUATION) + "]")
  core.pre_tokenizer = pre_tokenizers.Sequence(
    [pre_tokenizers.Metaspace("▁", "always"), pre_tokenizers.Split(single, "isolated")]
  )
  core.decoder = decoders.Sequence(
    [
      decoders.Replace("▁", " "),
      decoders.Fuse(),
      decoders.Replace("\n ", "\n"),
      decoders.Strip(" ", 1, 0),
    ]
  )
  fast = PreTrainedTokenizerFast(
    tokenizer_object=core,
    pad_token="<pad>",
    eos_token="<eos>",
    unk_token="<unk>",
    additional_special_tokens=["<user>", "<assistant>"],
    chat_template=chat_template,
    clean_up_tokenization_spaces=False,
    model_max_length=max_length,
  )
  fast.save_pretrained(path)
  return load_tokenizer(path)
