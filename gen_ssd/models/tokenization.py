"""Tokenizers: prompts from chat templates, and vocabularies compared."""

import functools
import os
import typing

from jaxtyping import Bool
import numpy as np

from gen_ssd.errors import UserError
from gen_ssd.errors import clip
from gen_ssd.errors import one_line
from gen_ssd.models import json_files
from gen_ssd.models import templates

PathLike = str | os.PathLike
Examples = typing.Sequence[tuple[str, str]]
Tokenizer = typing.Any  # of transformers, which has no one class for all of its tokenizers


def load_tokenizer(path: PathLike, chat_template: PathLike = "", thinking: str = "") -> Tokenizer:
  """Loads the Hugging Face tokenizer in the local directory `path`.

  Args:
    path: a local directory.
    chat_template: a Jinja file that replaces the tokenizer's chat template; empty keeps it.
    thinking: `on` or `off` fixes the template's `enable_thinking` switch, also in exports of this
      tokenizer. Empty leaves the default.

  Raises:
    UserError: `path` has no tokenizer or a damaged one, its chat template is no text or not in a
      file that can be read, or `thinking` is set and the template has no such switch.
  """
  from transformers import AutoTokenizer

  if not os.path.isfile(os.path.join(path, "tokenizer_config.json")):
    raise UserError(
      f"{clip(str(path))}: this is not a local Hugging Face directory with a tokenizer, because it "
      "has no tokenizer_config.json; `hf download NAME --local-dir DIR` creates one"
    )
  try:  # trust_remote_code: a tokenizer that brings code would ask on the terminal
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    empty = not tokenizer.encode("1", add_special_tokens=False)
  except (KeyboardInterrupt, SystemExit):
    raise
  except BaseException as error:  # of any kind, as the files are; a panic of Rust is no Exception
    why = f"{type(error).__name__}: {one_line(error)}"
    raise UserError(f"{clip(str(path))}: transformers refuses its tokenizer: {why}") from None
  if empty:  # what transformers makes when it finds no vocabulary
    raise UserError(f"{clip(str(path))}: its tokenizer is empty: is there a tokenizer.json?")
  tokenizer.chat_template = templates.choose(path, tokenizer.chat_template, chat_template)
  if thinking:
    if "enable_thinking" not in (tokenizer.chat_template or ""):
      raise UserError(
        f"thinking is {thinking!r}: the chat template of {path} has no enable_thinking switch; "
        "leave it empty"
      )
    value = "true" if thinking == "on" else "false"
    tokenizer.chat_template = f"{{%- set enable_thinking = {value} %}}{tokenizer.chat_template}"
  return tokenizer


def eos_ids(path: PathLike, tokenizer: Tokenizer) -> tuple[int, ...]:
  """The token ids that end a trace, without duplicates.

  They come from generation_config.json (or config.json if that has none), from the tokenizer, and
  from the chat template: the special token that it writes after an answer. For some models, such as
  Phi-3 with <|end|>, this is not the end-of-text token. Raises UserError when there are none, and
  for ids in a file that are outside the vocabulary.
  """
  ids = []
  for name in ("generation_config.json", "config.json"):
    file = os.path.join(path, name)
    if not ids and os.path.isfile(file):
      ids = _ids_in(file, _vocabulary(path, tokenizer))
  if tokenizer.eos_token_id is not None:
    ids = [*ids, tokenizer.eos_token_id]
  if tokenizer.chat_template:
    dialogue = [*_messages("1", None), {"role": "assistant", "content": "2"}]
    after = templates.render(tokenizer, dialogue, False).rpartition("2")[2]
    ids += [i for i in _encode(tokenizer, after)[:1] if i in _specials(tokenizer)]
  if not ids:
    raise UserError(f"{path}: neither its config files nor its tokenizer define an end token")
  return tuple(dict.fromkeys(ids))


def _vocabulary(path, tokenizer):
  """Number of ids: the model's, which may be above or below the tokenizer's; else the tokenizer's."""
  file = os.path.join(path, "config.json")
  size = json_files.read_object(file).get("vocab_size") if os.path.isfile(file) else None
  return size if type(size) is int else len(tokenizer)


def _ids_in(file, size):
  """The ids that a config file gives as eos_token_id: one, several, or none."""
  found = json_files.read_object(file).get("eos_token_id")
  ids = [i for i in (found if isinstance(found, list) else [found]) if i is not None]
  if not all(type(i) is int and 0 <= i < size for i in ids):
    raise UserError(
      f"{file}: eos_token_id is {clip(repr(found))}, wanted a token id from 0 to {size - 1}, or a "
      "list of them"
    )
  return ids


# ---------------------------------------------------------------- chat templates


def chat_prompt(
  tokenizer: Tokenizer, problem: str, system: str | None = None, examples: Examples = ()
) -> list[int]:
  """Token ids of the prompt, up to the start of the assistant's answer, from the chat template.

  `examples`, pairs of problem and solution, are earlier turns of the dialogue.

  BOS appears if the template writes it, and only once. Raises UserError when there is no template,
  when it fails, and when its prompt does not contain the problem.
  """
  text = templates.render(tokenizer, _messages(problem, system, examples), True)
  if not templates.contains(text, problem):
    raise UserError(
      f"the chat template of {templates.name_of(tokenizer)} is wrong: the prompt does not contain "
      f"the problem: {_clip(problem)!r} became {_clip(text, end=True)!r}"
    )
  ids = _encode(tokenizer, text)
  bos = tokenizer.bos_token_id
  while bos is not None and ids[:2] == [bos, bos]:
    ids = ids[1:]
  return ids


def opening(tokenizer: Tokenizer, prompt: list[int]) -> list[int]:
  """The last ids of `prompt` that open the thinking part, such as <think> and a newline; or [].

  Some chat templates put them at the end of the prompt. They are still part of the trace.
  """
  for n in range(1, min(len(prompt), 8) + 1):
    text = tokenizer.decode(prompt[-n:], skip_special_tokens=False).strip()
    if text.startswith("<think>"):
      return prompt[-n:] if text == "<think>" else []
  return []


def closes_thinking(tokenizer: Tokenizer, prompt: list[int]) -> bool:
  """Does `prompt` end with an empty thinking part, as Qwen3's prompts do with thinking off?"""
  return tokenizer.decode(prompt[-8:]).rstrip().endswith("</think>")


def closing_id(tokenizer: Tokenizer) -> int:
  """The id of </think>. Raises UserError when it is not one token or when prompts end in it."""
  ids = _encode(tokenizer, "</think>")
  if len(ids) != 1 or tokenizer.decode(ids).strip() != "</think>":
    raise UserError(
      f"the tokenizer of {templates.name_of(tokenizer)} has no single token </think>, so the end "
      "of the thinking part cannot be found"
    )
  if closes_thinking(tokenizer, chat_prompt(tokenizer, "1 + 0?")):
    raise UserError(
      f"the chat template of {templates.name_of(tokenizer)} ends prompts in an empty thinking part: "
      "no chunk would be selected"
    )
  return ids[0]


def prompts(
  tokenizers: typing.Sequence[Tokenizer],
  problem: str,
  system: str | None = None,
  examples: Examples = (),
) -> tuple[list[int], list[int]]:
  """(teacher's prompt ids, student's prompt ids) of a problem, each from its own chat template.

  The student's prompt opens a thinking part exactly when the teacher's does, and in the same way,
  so that both models see the same trace.
  """
  teacher, student = (chat_prompt(t, problem, system, examples) for t in tokenizers)
  opened = tokenizers[0].decode(opening(tokenizers[0], teacher))
  own = len(opening(tokenizers[1], student))
  return teacher, student[: len(student) - own] + _encode(tokenizers[1], opened)


def render_row(
  tokenizer: Tokenizer,
  problem: str,
  trace_ids: list[int],
  system: str | None = None,
  opened: str = "",
  check: bool = True,
) -> tuple[list[int], int]:
  """One training example of the student: (prompt ids + trace ids, number of prompt ids).

  Args:
    tokenizer: the student's.
    problem: text of the problem.
    trace_ids: ids of the trace. They are never decoded and encoded again.
    system: system message, or None.
    opened: text that opened the trace at the end of the teacher's prompt (see `opening`). It becomes
      the start of the trace.
    check: also render the dialogue with the chat template and compare it with the trace. A template
      may change traces: that of DeepSeek-R1-Distill deletes everything before `</think>`. In use, the
      student would then see text that it was not trained on.

  Raises:
    UserError: the rendered dialogue does not contain the complete trace, apart from whitespace.
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
      raise UserError(
        f"the chat template of {templates.name_of(tokenizer)} starts every answer with "
        f"{'<think>' if own else 'an empty thinking part'}, and the trace "
        f"{'has a thinking part' if thinks else 'does not'}: {_clip(text)!r}. Set student.thinking or "
        "student.chat_template, or choose a teacher whose traces match the template"
      )
    dialogue = [*_messages(problem, system), {"role": "assistant", "content": text}]
    rendered = templates.render(tokenizer, dialogue, False)
    if not templates.contains(rendered, text):
      raise UserError(
        f"the chat template of {templates.name_of(tokenizer)} changes the trace: {_clip(text)!r} is "
        f"not contained in {_clip(rendered, end=True)!r}. Set student.chat_template to a template that "
        "does not change assistant turns, or pass check=False"
      )
  return prompt + trace, len(prompt)


def check_thoughts(
  teacher: Tokenizer, student: Tokenizer, problem: str, system: str | None = None
) -> None:
  """Checks before any trace exists that the student's chat template will not change traces.

  It renders a made-up answer, with a thinking part if the teacher's template has one. Raises
  UserError as `render_row` does.
  """
  prompt = chat_prompt(teacher, problem, system)
  opened = teacher.decode(opening(teacher, prompt))
  thinks = "think>" in teacher.chat_template and not closes_thinking(teacher, prompt)
  text = (("" if opened else "<think>\n") + "1\n</think>\n\n" if thinks else "") + "\\boxed{1}"
  render_row(student, problem, _encode(student, text), system, opened)


def _encode(tokenizer, text):
  return tokenizer.encode(text, add_special_tokens=False) if text else []


def _specials(tokenizer):
  """All special ids, including those that are marked in the vocabulary only."""
  marked = {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
  return marked | {*tokenizer.all_special_ids}


def _messages(problem, system, examples=()):
  found = [] if system is None else [{"role": "system", "content": system}]
  for example, solution in examples:
    found += [{"role": "user", "content": example}, {"role": "assistant", "content": solution}]
  return [*found, {"role": "user", "content": problem}]


def _clip(text, size=60, end=False):
  if len(text) <= size:
    return text
  return "..." + text[-size:] if end else text[:size] + "..."


# ---------------------------------------------------------------- vocabularies


def shared_vocabulary(teacher: Tokenizer, student: Tokenizer) -> int:
  """The size of the shared vocabulary: all teacher ids below it mean the same to the student.

  The caller must mask logits from this id on: padded embedding rows and ids that only the student
  has. Raises UserError, which lists up to 10 ids with both strings, when an id differs between the
  tokenizers or when the student lacks an id of the teacher.
  """
  mine, theirs, differ = _compared(teacher, student)
  if differ:
    lines = [f"{i}: teacher {mine[i]!r}, student {theirs.get(i)!r}" for i in differ[:10]]
    raise UserError(
      "\n  ".join(
        [
          f"teacher ({teacher.name_or_path}) and student ({student.name_or_path}) must share a "
          f"vocabulary, or set translate; {len(differ):,} of {len(mine):,} ids differ:",
          *lines,
        ]
      )
    )
  return max(mine) + 1


def differences(teacher: Tokenizer, student: Tokenizer) -> list[int]:
  """Sorted ids of the teacher that mean something else, or nothing, to the student."""
  return _compared(teacher, student)[2]


def _compared(teacher, student):
  """(the teacher's {id: string}, the student's, sorted ids of the teacher where they differ)."""
  mine, theirs = ({i: s for s, i in t.get_vocab().items()} for t in (teacher, student))
  return mine, theirs, sorted(i for i, s in mine.items() if theirs.get(i) != s)


def check_ids(tokenizer: Tokenizer, ids: typing.Iterable[int], size: int) -> None:
  """Raises UserError when one of the tokenizer's `ids` is not among the `size` ids of a model.

  Only ids that are used are to be checked: Gemma 3's tokenizer has one id more than the model.
  """
  most = max(ids, default=0)
  if most >= size:
    raise UserError(
      f"the tokenizer of {templates.name_of(tokenizer)} is not the model's: it uses id {most} "
      f"({tokenizer.convert_ids_to_tokens(most)!r}), and the model's vocabulary has {size}"
    )


def is_unknown(tokenizer: Tokenizer, text: str) -> bool:
  """Does the tokenizer know nothing of a text: only unknown tokens, or none at all?"""
  return bool(text.strip()) and not {*_encode(tokenizer, text)} - {tokenizer.unk_token_id}


def delimiter_mask(
  tokenizer: Tokenizer, delimiters: typing.Sequence[str], size: int
) -> Bool[np.ndarray, " v"]:
  """bool[size]: the tokens whose text ends with one of the strings `delimiters`.

  Each token is tested alone: a delimiter "\\n\\n" that is written as two tokens "\\n" is not found.
  """
  mask = np.zeros(size, bool)
  if delimiters:
    texts = _texts(tokenizer)[:size]
    mask[: len(texts)] = [text.endswith(tuple(delimiters)) for text in texts]
  return mask


def unseen_delimiters(tokenizer: Tokenizer, delimiters: typing.Sequence[str]) -> list[str]:
  """Those of `delimiters` that no token ends with, so that they would never be found."""
  texts = _texts(tokenizer) if delimiters else []
  return [d for d in delimiters if not any(text.endswith(d) for text in texts)]


@functools.lru_cache(maxsize=4)  # decoding a large vocabulary takes a second
def _texts(tokenizer):
  """The texts of all tokens, in the order of their ids."""
  # Decode each token after an anchor, because decoders strip a space at the start of a text.
  anchor = tokenizer.encode("1", add_special_tokens=False)
  ids = [[*anchor, i] for i in range(len(tokenizer))]
  texts = tokenizer.batch_decode(ids, clean_up_tokenization_spaces=False)
  skip = len(tokenizer.decode(anchor))
  return [text[skip:] for text in texts]
