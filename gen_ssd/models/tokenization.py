"""Tokenizers: prompts from chat templates, shared vocabularies, a small word-level tokenizer."""

import json
import os

import jinja2
import numpy as np


def load_tokenizer(path, chat_template="", thinking=""):
  """The Hugging Face tokenizer in local directory `path`.

  `chat_template` is a Jinja file in place of the template there. `thinking` (on or off; empty: the
  template decides) is written into the template, so that whoever uses the tokenizer later gets the
  same prompts. ValueError when there is no tokenizer, or the template knows no thinking.
  """
  from transformers import AutoTokenizer

  if not os.path.isfile(os.path.join(path, "tokenizer_config.json")):
    raise ValueError(
      f"{path}: no tokenizer_config.json there. A local Hugging Face directory is "
      "needed; `hf download NAME --local-dir DIR` makes one"
    )
  tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
  if chat_template:
    with open(chat_template, encoding="utf-8") as f:
      tokenizer.chat_template = f.read().rstrip("\n")
  if thinking:
    if "enable_thinking" not in (tokenizer.chat_template or ""):
      raise ValueError(
        f"thinking is {thinking!r}: the chat template of {path} has no such switch; leave it empty"
      )
    value = "true" if thinking == "on" else "false"
    tokenizer.chat_template = f"{{%- set enable_thinking = {value} %}}{tokenizer.chat_template}"
  return tokenizer


def eos_ids(path, tokenizer):
  """Ids that end a trace: of generation_config.json (else config.json), the tokenizer's own, and the
  one its chat template writes behind an answer (Phi-3's <|end|> is not its end of text)."""
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
    after = str(_render(tokenizer, dialogue, False, False)).rpartition("2")[2]
    ids += [
      i for i in tokenizer.encode(after, add_special_tokens=False)[:1] if i in _specials(tokenizer)
    ]
  if not ids:
    raise ValueError(f"{path}: neither its configs nor its tokenizer name an end token")
  return tuple(dict.fromkeys(ids))


# ---------------------------------------------------------------- chat templates


def chat_prompt(tokenizer, problem, system=None):
  """Ids of the prompt up to where the assistant's answer starts, by the tokenizer's own template.

  The template decides about BOS; it is never doubled. ValueError without a chat template.
  """
  ids = _render(tokenizer, _messages(problem, system), True, True)
  bos = tokenizer.bos_token_id
  while bos is not None and ids[:2] == [bos, bos]:
    ids = ids[1:]
  return ids


def opening(tokenizer, prompt):
  """The ids at the end of prompt ids that open a thinking part, such as <think> and a newline.

  Some templates write them into the generation prompt: they belong to the trace all the same.
  """
  for n in range(1, min(len(prompt), 8) + 1):
    text = tokenizer.decode(prompt[-n:], skip_special_tokens=False).strip()
    if text.startswith("<think>"):
      return prompt[-n:] if text == "<think>" else []
  return []


def closes_thinking(tokenizer, prompt):
  """Whether prompt ids end in an empty thinking part, as Qwen3's do when thinking is off."""
  return tokenizer.decode(prompt[-8:]).rstrip().endswith("</think>")


def closing_id(tokenizer):
  """The id of </think>. ValueError when that is not one token, or when prompts already hold it."""
  ids = _encode(tokenizer, "</think>")
  if len(ids) != 1 or tokenizer.decode(ids).strip() != "</think>":
    raise ValueError(
      f"the tokenizer of {_name(tokenizer)} has no single token </think>, which would "
      "tell where the thinking part ends"
    )
  if closes_thinking(tokenizer, chat_prompt(tokenizer, "1 + 0?")):
    raise ValueError(
      f"the chat template of {_name(tokenizer)} ends prompts in an empty thinking part: "
      "nothing would be chosen"
    )
  return ids[0]


def prompts(tokenizers, problem, system=None):
  """(teacher's prompt ids, student's) of a problem, each by its own template.

  The student reads the thinking part opened as the teacher's template opens it, or not at all, so
  that both see the same trace.
  """
  teacher, student = (chat_prompt(t, problem, system) for t in tokenizers)
  opened = tokenizers[0].decode(opening(tokenizers[0], teacher))
  own = len(opening(tokenizers[1], student))
  return teacher, student[: len(student) - own] + _encode(tokenizers[1], opened)


def render_row(tokenizer, problem, trace_ids, system=None, opened="", check=True):
  """The student's training row: (prompt ids + trace ids, where the trace starts).

  The trace goes in as ids, never as text; `opened` is what the teacher's prompt had opened it with
  (see `opening`), and comes first. `check` renders the dialogue with the template as well and
  raises ValueError when the trace is not whole in it (whitespace aside), because the student would
  then be served prompts and answers it was not trained on: DeepSeek-R1-Distill's template drops
  everything before `</think>`.
  """
  prompt, trace = chat_prompt(tokenizer, problem, system), _encode(tokenizer, opened) + [*trace_ids]
  own = opening(tokenizer, prompt)
  prompt = prompt[: len(prompt) - len(own)]
  if check:
    body = list(trace)
    while body and body[-1] in _specials(tokenizer):  # the template writes its own end
      body.pop()
    text = tokenizer.decode(body, skip_special_tokens=False)
    thinks = text.lstrip().startswith("<think>")
    if (own and not thinks) or (thinks and closes_thinking(tokenizer, prompt)):
      raise ValueError(
        f"the chat template of {_name(tokenizer)} starts every answer with "
        f"{'<think>' if own else 'an empty thinking part'}, and the trace does "
        f"{'think' if thinks else 'not think'}: {_clip(text)!r}. Set student.thinking or "
        "student.chat_template, or take a teacher that does as the template"
      )
    dialogue = [*_messages(problem, system), {"role": "assistant", "content": text}]
    rendered = str(_render(tokenizer, dialogue, False, False))
    if "".join(text.split()) not in "".join(rendered.split()):
      raise ValueError(
        f"the chat template of {_name(tokenizer)} changes the trace: {_clip(text)!r} is not whole in "
        f"{_clip(rendered, end=True)!r}. Give the student a template that keeps assistant turns as "
        "they are (student.chat_template), or pass check=False"
      )
  return prompt + trace, len(prompt)


def check_thoughts(teacher, student, problem, system=None):
  """ValueError when the student's template would change traces of the teacher: before any is written.

  A made-up answer stands for them, with a thinking part when the teacher's template knows one.
  """
  prompt = chat_prompt(teacher, problem, system)
  opened = teacher.decode(opening(teacher, prompt))
  thinks = "think>" in teacher.chat_template and not closes_thinking(teacher, prompt)
  text = (("" if opened else "<think>\n") + "1\n</think>\n\n" if thinks else "") + "\\boxed{1}"
  render_row(student, problem, _encode(student, text), system, opened)


def _encode(tokenizer, text):
  return tokenizer.encode(text, add_special_tokens=False) if text else []


def _specials(tokenizer):
  """Special ids: all_special_ids lacks those that only the vocabulary marks."""
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
      f"{_name(tokenizer)} has no chat template: use the tokenizer of an "
      "instruction-tuned model, or name a template (chat_template)"
    )
  more = {"return_dict": False} if tokenize else {}
  try:
    out = tokenizer.apply_chat_template(
      messages, add_generation_prompt=generate, tokenize=tokenize, **more
    )
  except jinja2.TemplateError as error:  # such as Gemma's: no system message
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
  """Number of ids both tokenizers share: every teacher id below it means the same to the student.

  Logits at and beyond it (padded embedding rows, ids only the student knows) are the caller's to
  mask. ValueError lists up to 10 ids with both strings when an id means different things, or when
  the teacher has ids the student lacks.
  """
  mine, theirs, differ = _compared(teacher, student)
  if differ:
    lines = [f"{i}: teacher {mine[i]!r}, student {theirs.get(i)!r}" for i in differ[:10]]
    raise ValueError(
      "\n  ".join(
        [
          f"teacher ({teacher.name_or_path}) and student ({student.name_or_path}) must share a "
          f"vocabulary, or translate be set; {len(differ):,} of {len(mine):,} ids differ:",
          *lines,
        ]
      )
    )
  return max(mine) + 1


def differences(teacher, student):
  """Sorted ids of the teacher that mean something else to the student, or nothing."""
  return _compared(teacher, student)[2]


def _compared(teacher, student):
  """({id: string} of either, sorted ids of the teacher at which the student's differ)."""
  mine, theirs = ({i: s for s, i in t.get_vocab().items()} for t in (teacher, student))
  return mine, theirs, sorted(i for i, s in mine.items() if theirs.get(i) != s)


def delimiter_mask(tokenizer, delimiters, size):
  """bool[size]: tokens after which the text so far ends with one of the strings `delimiters`.

  A token is looked at alone: "\\n\\n" written as two tokens "\\n" is not found.
  """
  mask = np.zeros(size, bool)
  if not delimiters:
    return mask
  # Behind an anchor, because decoders strip the space in front of a text's first token.
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
  """Writes a fast Hugging Face tokenizer over whole `words` and single digits; returns it loaded.

  A token that starts a word carries "▁": "Tom has 57" is ▁Tom ▁has ▁5 7. Digits, the characters of
  PUNCTUATION and newlines stand alone, with and without "▁", so text round-trips as long as its
  words are known; others become <unk>. Ids: SPECIALS, these characters, then `words` in order.
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
  # A newline starts a word too: give it a space on the way in, take it away on the way out.
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
