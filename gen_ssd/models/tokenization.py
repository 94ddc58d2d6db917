"""Tokenizers: loading, prompts from chat templates, shared vocabularies, a word-level tokenizer."""

import json
import os

import jinja2
import numpy as np


def load_tokenizer(path, chat_template="", thinking=""):
  """Loads the Hugging Face tokenizer in the local directory `path`.

  `chat_template` is the path of a Jinja file that replaces the directory's template. `thinking` is
  on, off, or empty for the template's default. It is written into the template, so an exported
  tokenizer makes the same prompts. Raises ValueError when there is no tokenizer, or when the
  template has no switch for thinking.
  """
  from transformers import AutoTokenizer

  if not os.path.isfile(os.path.join(path, "tokenizer_config.json")):
    raise ValueError(
      f"{path} has no tokenizer_config.json: use a local Hugging Face directory, for example one "
      "that `hf download NAME --local-dir DIR` makes"
    )
  tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
  if chat_template:
    with open(chat_template, encoding="utf-8") as f:
      tokenizer.chat_template = f.read().rstrip("\n")
  if thinking:
    if "enable_thinking" not in (tokenizer.chat_template or ""):
      raise ValueError(
        f"thinking is {thinking!r}: it must be empty, because the chat template of {path} has no "
        "switch enable_thinking"
      )
    value = "true" if thinking == "on" else "false"
    tokenizer.chat_template = f"{{%- set enable_thinking = {value} %}}{tokenizer.chat_template}"
  return tokenizer


def eos_ids(path, tokenizer):
  """The ids that end a trace, as a tuple without duplicates.

  These are the ids in generation_config.json (else config.json), the tokenizer's EOS, and the
  special token that the chat template writes after an answer, which may differ from EOS (Phi-3's
  <|end|>). Raises ValueError when there are none.
  """
  ids = []
  for name in ("generation_config.json", "config.json"):
    file = os.path.join(path, name)
    if not ids and os.path.isfile(file):
      with open(file, encoding="utf-8") as f:
        found = json.load(f).get("eos_token_id")
      ids = found if isinstance(found, list) else [found]
      ids = [i for i in ids if i is not None]
  if tokenizer.eos_token_id is not None:
    ids = [*ids, tokenizer.eos_token_id]
  if tokenizer.chat_template:
    dialogue = [*_messages("1", None), {"role": "assistant", "content": "2"}]
    after = _render(tokenizer, dialogue, False, False).rpartition("2")[2]
    ids += [
      i for i in tokenizer.encode(after, add_special_tokens=False)[:1] if i in _specials(tokenizer)
    ]
  if not ids:
    raise ValueError(f"{path}: neither the config files nor the tokenizer define an end token")
  return tuple(dict.fromkeys(ids))


# ---------------------------------------------------------------- chat templates


def chat_prompt(tokenizer, problem, system=None):
  """The prompt ids of a problem, up to the start of the assistant's answer.

  The tokenizer's chat template decides whether there is a BOS; a second BOS is removed. Raises
  ValueError without a chat template.
  """
  ids = _render(tokenizer, _messages(problem, system), True, True)
  bos = tokenizer.bos_token_id
  while bos is not None and ids[:2] == [bos, bos]:
    ids = ids[1:]
  return ids


def opening(tokenizer, prompt):
  """The last ids of a prompt that open a thinking part, such as <think> and a newline, or [].

  Some templates write them into the prompt, although they belong to the trace.
  """
  for n in range(1, min(len(prompt), 8) + 1):
    text = tokenizer.decode(prompt[-n:], skip_special_tokens=False).strip()
    if text.startswith("<think>"):
      return prompt[-n:] if text == "<think>" else []
  return []


def closes_thinking(tokenizer, prompt):
  """Whether a prompt ends with an empty thinking part, as with Qwen3 when thinking is off."""
  return tokenizer.decode(prompt[-8:]).rstrip().endswith("</think>")


def closing_id(tokenizer):
  """The id of </think>.

  Raises ValueError when it is not a single token, or when prompts already end with it.
  """
  ids = _encode(tokenizer, "</think>")
  if len(ids) != 1 or tokenizer.decode(ids).strip() != "</think>":
    raise ValueError(
      f"the tokenizer of {_name(tokenizer)} has no single token </think>, which is needed to "
      "find the end of the thinking part"
    )
  if closes_thinking(tokenizer, chat_prompt(tokenizer, "1 + 0?")):
    raise ValueError(
      f"the chat template of {_name(tokenizer)} ends prompts with an empty thinking part, so there "
      "is nothing to choose in"
    )
  return ids[0]


def prompts(tokenizers, problem, system=None):
  """(the teacher's prompt ids, the student's prompt ids), each from its own chat template.

  The student's prompt opens the thinking part exactly when and how the teacher's prompt does, so
  both models see the same trace.
  """
  teacher, student = (chat_prompt(t, problem, system) for t in tokenizers)
  opened = tokenizers[0].decode(opening(tokenizers[0], teacher))
  own = len(opening(tokenizers[1], student))
  return teacher, student[: len(student) - own] + _encode(tokenizers[1], opened)


def render_row(tokenizer, problem, trace_ids, system=None, opened="", check=True):
  """A training example of the student: (prompt ids + trace ids, index where the trace starts).

  The trace is passed as ids, never as text. `opened` is the text with which the teacher's prompt
  opened the thinking part (see `opening`); it comes before the trace. With `check`, the dialogue is
  also rendered with the chat template. Raises ValueError when the template changes the trace
  (whitespace aside), because the trained student would later be used with other texts than those
  it was trained on. For example, the template of DeepSeek-R1-Distill removes everything before
  `</think>`.
  """
  prompt, trace = chat_prompt(tokenizer, problem, system), _encode(tokenizer, opened) + [*trace_ids]
  own = opening(tokenizer, prompt)
  prompt = prompt[: len(prompt) - len(own)]
  if check:
    body = list(trace)
    while body and body[-1] in _specials(tokenizer):  # the template adds its own end token
      body.pop()
    text = tokenizer.decode(body, skip_special_tokens=False)
    thinks = text.lstrip().startswith("<think>")
    if (own and not thinks) or (thinks and closes_thinking(tokenizer, prompt)):
      raise ValueError(
        f"the chat template of {_name(tokenizer)} starts every answer with "
        f"{'<think>' if own else 'an empty thinking part'}, but the trace "
        f"{'has a' if thinks else 'has no'} thinking part: {_clip(text)!r}. Set student.thinking "
        "or student.chat_template, or use a teacher that matches the template"
      )
    dialogue = [*_messages(problem, system), {"role": "assistant", "content": text}]
    rendered = _render(tokenizer, dialogue, False, False)
    if "".join(text.split()) not in "".join(rendered.split()):
      raise ValueError(
        f"the chat template of {_name(tokenizer)} changes the trace: {_clip(text)!r} is not contained "
        f"in {_clip(rendered, end=True)!r}. Set student.chat_template to a template that keeps "
        "assistant turns unchanged, or pass check=False"
      )
  return prompt + trace, len(prompt)


def check_thoughts(teacher, student, problem, system=None):
  """Raises ValueError when the student's chat template would change the teacher's traces.

  This runs before any trace exists, so it uses a made-up answer, with a thinking part when the
  teacher's template has one.
  """
  prompt = chat_prompt(teacher, problem, system)
  opened = teacher.decode(opening(teacher, prompt))
  thinks = "think>" in teacher.chat_template and not closes_thinking(teacher, prompt)
  text = (("" if opened else "<think>\n") + "1\n</think>\n\n" if thinks else "") + "\\boxed{1}"
  render_row(student, problem, _encode(student, text), system, opened)


def _encode(tokenizer, text):
  return tokenizer.encode(text, add_special_tokens=False) if text else []


def _specials(tokenizer):
  """The special ids, including those that only the vocabulary marks as special."""
  marked = {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
  return marked | {*tokenizer.all_special_ids}


def _name(tokenizer):
  return tokenizer.name_or_path or type(tokenizer).__name__


def _messages(problem, system):
  head = [] if system is None else [{"role": "system", "content": system}]
  return [*head, {"role": "user", "content": problem}]


def _render(tokenizer, messages, generate, tokenize):
  if not tokenizer.chat_template:
    raise ValueError(
      f"{_name(tokenizer)} has no chat template: use the tokenizer of an instruction-tuned model, "
      "or set chat_template to a Jinja file"
    )
  more = {"return_dict": False} if tokenize else {}
  try:
    out = tokenizer.apply_chat_template(
      messages, add_generation_prompt=generate, tokenize=tokenize, **more
    )
  except jinja2.TemplateError as error:  # for example, Gemma's template refuses system messages
    raise ValueError(
      f"the chat template of {_name(tokenizer)} fails on roles "
      f"{', '.join(m['role'] for m in messages)}: {error}"
    ) from None
  return list(out) if tokenize else out


def _clip(text, size=60, end=False):
  if len(text) <= size:
    return text
  return "..." + text[-size:] if end else text[:size] + "..."


# ---------------------------------------------------------------- vocabularies


def shared_vocabulary(teacher, student):
  """The number of ids that both tokenizers share: all teacher ids are below it.

  The caller masks the logits at and above it: padded embedding rows, and ids that only the student
  has. Raises ValueError when an id has different strings, or when the teacher has ids that the
  student lacks. The message lists up to 10 such ids with both strings.
  """
  mine, theirs, differ = _compared(teacher, student)
  if differ:
    lines = [f"{i}: teacher {mine[i]!r}, student {theirs.get(i)!r}" for i in differ[:10]]
    raise ValueError(
      "\n  ".join(
        [
          f"teacher ({teacher.name_or_path}) and student ({student.name_or_path}) must share a "
          f"vocabulary, or set translate to True; {len(differ):,} of {len(mine):,} ids differ:",
          *lines,
        ]
      )
    )
  return max(mine) + 1


def differences(teacher, student):
  """The sorted teacher ids that have another string, or none, in the student's vocabulary."""
  return _compared(teacher, student)[2]


def _compared(teacher, student):
  """(the teacher's {id: string}, the student's, the sorted teacher ids at which they differ)."""
  mine, theirs = ({i: s for s, i in t.get_vocab().items()} for t in (teacher, student))
  return mine, theirs, sorted(i for i, s in mine.items() if theirs.get(i) != s)


def delimiter_mask(tokenizer, delimiters, size):
  """bool[size]: whether the text of each token ends with one of the strings `delimiters`.

  Each token is checked alone, so a "\\n\\n" that consists of two tokens "\\n" is not found.
  """
  mask = np.zeros(size, bool)
  if not delimiters:
    return mask
  # Decode after an anchor token, because decoders strip the space before the first token of a text.
  anchor = tokenizer.encode("1", add_special_tokens=False)
  n = min(size, len(tokenizer))
  texts = tokenizer.batch_decode(
    [[*anchor, i] for i in range(n)], clean_up_tokenization_spaces=False
  )
  skip = len(tokenizer.decode(anchor))
  mask[:n] = [text[skip:].endswith(tuple(delimiters)) for text in texts]
  return mask


# ---------------------------------------------------------------- a small tokenizer

SPECIALS = ("<pad>", "<eos>", "<user>", "<assistant>", "<unk>")
PUNCTUATION = ".,?!;:%})]"
CHAT_TEMPLATE = (
  "{% for m in messages %}{% if m.role == 'user' %}<user>{{ m.content }}"
  "{% elif m.role == 'assistant' %}<assistant>{{ m.content }}<eos>"
  "{% else %}{{ m.content }}{% endif %}{% endfor %}"
  "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def word_level_tokenizer(words, path, chat_template=CHAT_TEMPLATE, max_length=4096):
  """Writes a fast Hugging Face tokenizer with one token per word or digit to `path`, and loads it.

  A token that starts a word begins with "▁": "Tom has 57" is ▁Tom ▁has ▁5 7. Digits, newlines and
  the characters of PUNCTUATION are tokens of their own, with and without "▁". Text of known words
  round-trips; an unknown word becomes <unk>. The ids are SPECIALS, these characters, and then
  `words` in order.
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
  # A newline starts a word too: encoding adds a space after it, and decoding removes the space.
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
