"""Prompts, rows and vocabularies, on a tokenizer made here and on real ones where they are."""

import json
import shutil
import signal
import threading
import time

import numpy as np
import pytest

from gen_ssd.errors import UserError
from gen_ssd.models import hf
from gen_ssd.models import templates
from gen_ssd.models import tokenization
from gen_ssd.models import word_level
from tests import paths

WORDS = "Tom has apples He buys more + - = \\boxed{ How many now <think> </think>".split()
KEEPS = paths.ROOT / "configs" / "templates" / "r1_keeps_thoughts.jinja"
REAL = paths.DATA / "tokenizers"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
  return word_level.word_level_tokenizer(WORDS, tmp_path_factory.mktemp("small"))


def real(name):
  folder = REAL / name
  if not (folder / "tokenizer.json").is_file():
    pytest.skip(f"the tokenizer {name} is not at {folder}")
  return tokenization.load_tokenizer(folder)


def template_of(name):
  file = REAL / name / "tokenizer_config.json"
  if not file.is_file():
    pytest.skip(f"the tokenizer config of {name} is not at {file}")
  return json.loads(file.read_text())["chat_template"]


# ---------------------------------------------------------------- the small tokenizer


@pytest.mark.parametrize(
  "text",
  [
    "Tom has 57 apples . He buys 8 more . 57 + 8 = 65 . \\boxed{65}",
    "Tom has 57 apples. He buys 8 more; 1,000 - 3.5 = 996.5!\n\nHow many now?\n\\boxed{ 100%}",
    "7",
    "Tom",
    "",
  ],
)
def test_text_round_trips(small, text):
  ids = small.encode(text)
  assert small.unk_token_id not in ids
  assert small.decode(ids) == text
  assert small.decode([*ids, small.eos_token_id], skip_special_tokens=True) == text


def test_digits_are_single_and_the_first_carries_the_word_start(small):
  assert small.convert_ids_to_tokens(small.encode("57 apples ?")) == ["▁5", "7", "▁apples", "▁?"]
  assert small.convert_ids_to_tokens(small.encode("Jerry has")) == ["<unk>", "▁has"]


def test_special_ids_and_template(small):
  assert (small.pad_token, small.eos_token, small.unk_token) == ("<pad>", "<eos>", "<unk>")
  assert (small.pad_token_id, small.eos_token_id) == (0, 1)
  prompt = small.convert_ids_to_tokens(tokenization.chat_prompt(small, "How many ?"))
  assert prompt == ["<user>", "▁How", "▁many", "▁?", "<assistant>"]
  with_system = small.convert_ids_to_tokens(
    tokenization.chat_prompt(small, "now", system="Tom has")
  )
  assert with_system == ["▁Tom", "▁has", "<user>", "▁now", "<assistant>"]


def test_same_words_same_ids_and_more_words_come_after(small, tmp_path):
  more = word_level.word_level_tokenizer([*WORDS, "pears"], tmp_path)
  assert len(more) == len(small) + 1
  assert tokenization.shared_vocabulary(small, more) == len(small)


# ---------------------------------------------------------------- rows and end tokens


def test_row_is_prompt_ids_and_trace_ids(small):
  trace = [*small.encode("He buys 8 more ."), small.eos_token_id]
  ids, start = tokenization.render_row(small, "Tom has 5 .", trace)
  assert ids[:start] == tokenization.chat_prompt(small, "Tom has 5 .") and ids[start:] == trace


def test_template_that_drops_thoughts_is_refused(small, tmp_path):
  dropping = word_level.CHAT_TEMPLATE.replace(
    "<assistant>{{ m.content }}", "<assistant>{{ m.content.split('</think>')[-1] }}"
  )
  student = word_level.word_level_tokenizer(WORDS, tmp_path, chat_template=dropping)
  tokenization.render_row(student, "How many ?", student.encode("57 apples"))
  trace = student.encode("<think> 50 + 7 = 57 </think> 57 apples")
  with pytest.raises(ValueError, match=f"chat template of {tmp_path} changes the trace.*50"):
    tokenization.render_row(student, "How many ?", trace)
  ids, start = tokenization.render_row(student, "How many ?", trace, check=False)
  assert ids[start:] == trace


def test_no_chat_template(small, tmp_path):
  bare = word_level.word_level_tokenizer(WORDS, tmp_path, chat_template=None)
  with pytest.raises(ValueError, match=f"{tmp_path} has no chat template"):
    tokenization.chat_prompt(bare, "How many ?")


def test_bos_is_never_doubled(tmp_path):
  doubling = "{{ bos_token }}{{ bos_token }}" + word_level.CHAT_TEMPLATE
  tokenizer = word_level.word_level_tokenizer(WORDS, tmp_path, chat_template=doubling)
  tokenizer.bos_token = "<pad>"
  ids = tokenization.chat_prompt(tokenizer, "How many ?")
  assert tokenizer.convert_ids_to_tokens(ids[:2]) == ["<pad>", "<user>"]


def test_end_ids(small, tmp_path):
  def ends(**files):
    for name in ("config", "generation_config"):
      (tmp_path / f"{name}.json").write_text(json.dumps({"eos_token_id": files.get(name)}))
    return tokenization.eos_ids(tmp_path, small)

  assert ends(generation_config=[7, 5]) == (7, 5, 1)
  assert ends(generation_config=1, config=3) == (1,)
  assert ends(config=3) == (3, 1)
  assert ends() == (1,)
  assert tokenization.eos_ids(tmp_path / "nowhere", small) == (1,)
  small_without = word_level.word_level_tokenizer(WORDS, tmp_path / "other")
  small_without.eos_token = None
  assert tokenization.eos_ids(tmp_path / "nowhere", small_without) == (1,)  # by its template
  small_without.chat_template = None
  with pytest.raises(ValueError, match="end token"):
    tokenization.eos_ids(tmp_path, small_without)


def test_no_tokenizer_there(tmp_path):
  with pytest.raises(ValueError, match="no tokenizer_config.json.*hf download"):
    tokenization.load_tokenizer(tmp_path)


@pytest.mark.parametrize("found", ["1", -1, [[1]], True, 1.0, 10**9, [1, "x"], {"a": 1}], ids=repr)
@pytest.mark.parametrize("file", ["generation_config", "config"])
def test_end_ids_that_are_no_token_ids(file, found, small, tmp_path):
  (tmp_path / f"{file}.json").write_text(json.dumps({"eos_token_id": found}))
  with pytest.raises(
    UserError, match=f"{file}.json: eos_token_id is .*wanted a token id from 0 to"
  ):
    tokenization.eos_ids(tmp_path, small)


def test_end_ids_are_those_of_the_model_where_it_has_more_or_fewer_than_the_tokenizer(
  small, tmp_path
):
  last = len(small) - 1
  ends = lambda: tokenization.eos_ids(tmp_path, small)
  say = lambda **c: (tmp_path / "config.json").write_text(json.dumps(c))
  say(vocab_size=last, eos_token_id=5)
  assert ends() == (5, 1), "as Gemma 3's tokenizer, this one has an id more"
  say(vocab_size=last, eos_token_id=last)
  with pytest.raises(UserError, match=f"eos_token_id is {last}, wanted a token id from 0 to"):
    ends()
  say(vocab_size=last + 9, eos_token_id=last + 8)
  assert ends() == (last + 8, 1)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"{"])
def test_a_generation_config_that_is_not_a_json_object(content, small, tmp_path):
  (tmp_path / "generation_config.json").write_bytes(content)
  with pytest.raises(UserError, match="generation_config.json: "):
    tokenization.eos_ids(tmp_path, small)


@pytest.fixture
def bundled(tmp_path):
  """A copy of a bundled model, to break."""
  return shutil.copytree(hf.locate("bundled/student"), tmp_path / "student")


@pytest.mark.parametrize("content", [None, b"", b"{", b"[1]", b"\xff\xfe{}", b"\0", b"[" * 99_999])
@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_tokenizer_is_one_message(file, content, bundled):
  (bundled / file).unlink() if content is None else (bundled / file).write_bytes(content)
  with pytest.raises(UserError, match=f"{bundled}: .*tokenizer"):
    tokenization.load_tokenizer(bundled)


@pytest.mark.parametrize(
  "field,value",
  [("tokenizer_class", 5), ("eos_token", 5), ("chat_template", 5), ("added_tokens_decoder", [5])],
)
def test_a_tokenizer_config_of_wrong_types(field, value, bundled):
  file = bundled / "tokenizer_config.json"
  file.write_text(json.dumps({**json.loads(file.read_text()), field: value}))
  (bundled / "chat_template.jinja").unlink()
  with pytest.raises(UserError, match=str(bundled)):
    tokenization.load_tokenizer(bundled)


def test_a_panic_of_the_tokenizers_library_is_one_message(bundled, monkeypatch):
  class PanicException(BaseException):  # as pyo3's
    pass

  def panic(*args, **kwargs):
    raise PanicException("index out of bounds")

  import transformers

  monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", panic)
  with pytest.raises(UserError, match="refuses its tokenizer: PanicException: index out of bounds"):
    tokenization.load_tokenizer(bundled)


def test_code_that_comes_with_a_tokenizer_is_neither_run_nor_asked_about(bundled):
  (bundled / "own.py").write_text("raise SystemError('it ran')")
  file = bundled / "tokenizer_config.json"
  own = {"auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}, "tokenizer_class": "Own"}
  file.write_text(json.dumps({**json.loads(file.read_text()), **own}))
  (bundled / "config.json").unlink()
  with pytest.raises(UserError, match="refuses its tokenizer"):
    tokenization.load_tokenizer(bundled)


# ---------------------------------------------------------------- vocabularies


def test_vocabularies_that_disagree_are_listed(small, tmp_path):
  swapped = [WORDS[1], WORDS[0], *WORDS[2:]]
  other = word_level.word_level_tokenizer(swapped, tmp_path / "swapped")
  at = small.convert_tokens_to_ids("▁Tom")
  with pytest.raises(ValueError) as caught:
    tokenization.shared_vocabulary(small, other)
  message = str(caught.value)
  assert f"2 of {len(small)} ids differ" in message and str(tmp_path / "swapped") in message
  assert f"\n  {at}: teacher '▁Tom', student '▁has'" in message

  fewer = word_level.word_level_tokenizer(WORDS[:3], tmp_path / "fewer")
  with pytest.raises(ValueError) as caught:
    tokenization.shared_vocabulary(small, fewer)
  assert f"{len(WORDS) - 3} of" in str(caught.value) and "student None" in str(caught.value)
  assert str(caught.value).count("teacher '") == 10


def test_delimiters(small):
  size = len(small) + 3
  mask = tokenization.delimiter_mask(small, [" .", "\n"], size)
  assert mask.shape == (size,) and mask.dtype == bool
  assert small.convert_ids_to_tokens(np.nonzero(mask)[0].tolist()) == ["\n", "▁.", "▁\n"]
  with_dot = tokenization.delimiter_mask(small, ["."], size)
  assert small.convert_ids_to_tokens(np.nonzero(with_dot)[0].tolist()) == [".", "▁."]
  assert not tokenization.delimiter_mask(small, [], size).any()
  assert tokenization.delimiter_mask(small, [" ."], 10).shape == (10,)


def test_delimiters_that_no_token_ends_with(small):
  unseen = tokenization.unseen_delimiters(small, [" .", "\n\n", "\n", "now", "nowhere"])
  assert unseen == ["\n\n", "nowhere"]
  assert tokenization.unseen_delimiters(small, []) == []


def test_a_large_vocabulary_is_decoded_once():
  qwen = real("qwen3")
  assert tokenization.unseen_delimiters(qwen, ["\n\n", "\n \t\n!x"]) == ["\n \t\n!x"]
  start = time.process_time()
  assert tokenization.unseen_delimiters(qwen, ["\n\n", "\n \t\n!y"]) == ["\n \t\n!y"]
  assert tokenization.delimiter_mask(qwen, ["\n\n"], 151936).any()
  assert time.process_time() - start < 0.5


def test_texts_of_which_the_tokenizer_knows_nothing(small):
  assert tokenization.is_unknown(small, "Jerry")
  assert tokenization.is_unknown(small, "数学")
  assert not tokenization.is_unknown(small, "Jerry has")
  assert not tokenization.is_unknown(small, " ")
  assert not tokenization.is_unknown(real("qwen3"), "数学")


def test_ids_that_the_model_does_not_have(small):
  tokenization.check_ids(small, [], 5)
  tokenization.check_ids(small, [4, 1], 5)
  with pytest.raises(UserError, match=r"uses id 5 \('.'\), and the model's vocabulary has 5"):
    tokenization.check_ids(small, [4, 5], 5)


def test_the_token_that_ends_the_thinking_part(small, tmp_path):
  assert small.convert_ids_to_tokens(tokenization.closing_id(small)) == "▁</think>"
  other = word_level.word_level_tokenizer(WORDS[:-1], tmp_path)
  with pytest.raises(ValueError, match="has no single token </think>"):
    tokenization.closing_id(other)
  template = word_level.CHAT_TEMPLATE.replace(
    "}<assistant>{% endif", "}<assistant></think>{% endif"
  )
  silent = word_level.word_level_tokenizer(WORDS, tmp_path, template)
  with pytest.raises(ValueError, match="ends prompts in an empty thinking part: no chunk"):
    tokenization.closing_id(silent)


# ---------------------------------------------------------------- real tokenizers


def test_qwen3_template_with_and_without_thinking():
  qwen = real("qwen3")
  think = tokenization.chat_prompt(qwen, "How many?")
  assert qwen.decode(think) == "<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\n"
  silent = tokenization.load_tokenizer(REAL / "qwen3", thinking="off")
  direct = tokenization.chat_prompt(silent, "How many?")
  assert direct[: len(think)] == think
  assert qwen.convert_ids_to_tokens(tokenization.closing_id(qwen)) == "</think>"
  with pytest.raises(ValueError, match="an empty thinking part"):
    tokenization.closing_id(silent)
  assert qwen.decode(direct[len(think) :]) == "<think>\n\n</think>\n\n"
  system = tokenization.chat_prompt(qwen, "How many?", system="Be brief.")
  assert qwen.decode(system).startswith("<|im_start|>system\nBe brief.<|im_end|>\n")
  for text in ("<think>\nTwo.\n\nOr three.\n</think>\n\n\\boxed{3}<|im_end|>", "Three.<|im_end|>"):
    trace = qwen.encode(text)
    ids, start = tokenization.render_row(qwen, "How many?", trace)
    assert ids == think + trace and start == len(think)
  ids, _ = tokenization.render_row(silent, "How many?", trace)
  assert ids == direct + trace
  with pytest.raises(
    ValueError,
    match="starts every answer with an empty thinking part, and the trace "
    "has a thinking part.*student.thinking",
  ):
    tokenization.render_row(silent, "How many?", qwen.encode("<think>\nTwo.\n</think>\n\n3"))
  loud = tokenization.load_tokenizer(REAL / "qwen3", thinking="on")
  assert tokenization.chat_prompt(loud, "How many?") == think


def test_generation_prompt_that_opens_the_thinking_part():
  """As Qwen3's thinking-only models and newer R1-Distill templates do."""
  qwen, opens = real("qwen3"), real("qwen3")
  opens.chat_template = opens.chat_template.replace(
    "{{- '<|im_start|>assistant\\n' }}", "{{- '<|im_start|>assistant\\n<think>\\n' }}"
  )
  plain, prompt = (
    tokenization.chat_prompt(qwen, "How many?"),
    tokenization.chat_prompt(opens, "How many?"),
  )
  opening = qwen.encode("<think>\n")
  assert prompt == plain + opening
  assert tokenization.opening(opens, prompt) == opening and tokenization.opening(qwen, plain) == []
  # Whoever opens, both models read the same trace behind their own prompts.
  assert tokenization.prompts((opens, qwen), "How many?") == (prompt, plain + opening)
  assert tokenization.prompts((qwen, opens), "How many?") == (plain, plain)
  assert tokenization.prompts((opens, opens), "How many?") == (prompt, prompt)
  # The trace of a teacher whose prompt opened it, and of one that wrote everything itself.
  rest = qwen.encode("Two.\n</think>\n\n\\boxed{3}<|im_end|>")
  for student in (qwen, opens):
    ids, start = tokenization.render_row(student, "How many?", rest, opened="<think>\n")
    assert (ids, start) == (plain + opening + rest, len(plain))
    assert tokenization.render_row(student, "How many?", opening + rest) == (ids, start)
  with pytest.raises(ValueError, match="starts every answer with <think>, and the trace does not"):
    tokenization.render_row(opens, "How many?", qwen.encode("Three.<|im_end|>"))


def test_a_student_template_that_would_cut_the_thinking_is_found_before_anything_is_written():
  qwen, cutting, keeping, phi = (real(n) for n in ("qwen3", "qwen3", "qwen3", "phi-3-mini"))
  cutting.chat_template = template_of("deepseek_r1_distill_qwen")
  cutting.bos_token = keeping.bos_token = "<|endoftext|>"
  keeping.chat_template = KEEPS.read_text()
  tokenization.check_thoughts(qwen, qwen, "1?")
  tokenization.check_thoughts(qwen, keeping, "1?")
  tokenization.check_thoughts(cutting, keeping, "1?")
  tokenization.check_thoughts(
    tokenization.load_tokenizer(REAL / "qwen3", thinking="off"), cutting, "1?"
  )
  tokenization.check_thoughts(phi, cutting, "1?")  # knows no thinking
  for teacher in (qwen, cutting):
    with pytest.raises(ValueError, match="changes the trace: '<think>.*student.chat_template"):
      tokenization.check_thoughts(teacher, cutting, "1?")
  with pytest.raises(ValueError, match="an empty thinking part"):
    tokenization.check_thoughts(
      qwen, tokenization.load_tokenizer(REAL / "qwen3", thinking="off"), "1?"
    )


def test_the_template_that_keeps_thoughts_writes_what_the_real_one_writes():
  real_one, ours = real("qwen3"), real("qwen3")
  real_one.chat_template = template_of("deepseek_r1_distill_qwen")
  ours.chat_template = KEEPS.read_text()
  real_one.bos_token = ours.bos_token = "<|endoftext|>"
  for system in (None, "Be brief."):
    assert tokenization.chat_prompt(ours, "How\nmany?", system) == tokenization.chat_prompt(
      real_one, "How\nmany?", system
    )
  dialogue = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": " 3\n"}]
  render = lambda t: t.apply_chat_template(dialogue, tokenize=False)
  assert render(ours) == render(real_one)


def test_a_template_of_a_file_and_a_missing_switch(small, tmp_path):
  (tmp_path / "t.jinja").write_text("A {{ messages[0].content }} B\n")
  path = tmp_path / "tokenizer"
  word_level.word_level_tokenizer(WORDS, path)
  found = tokenization.load_tokenizer(path, str(tmp_path / "t.jinja"))
  assert found.chat_template == "A {{ messages[0].content }} B"
  with pytest.raises(
    ValueError, match=f"thinking is 'off': the chat template of {path} has no enable_thinking"
  ):
    tokenization.load_tokenizer(path, thinking="off")


def test_a_template_that_fails_is_named(small, tmp_path):
  refusing = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}<user>"
    "{{ messages[0].content }}"
  )
  tokenizer = word_level.word_level_tokenizer(WORDS, tmp_path, chat_template=refusing)
  tokenization.chat_prompt(tokenizer, "How")
  with pytest.raises(ValueError, match=f"{tmp_path} fails on roles system, user: no system"):
    tokenization.chat_prompt(tokenizer, "How", "Be brief.")


CONTENT = "{{ messages[0].content }}"
FAILING = {
  "line 2: ": "\n{% if" + CONTENT,
  "'nope' is undefined": "{{ nope.x }}" + CONTENT,
  "division by zero": "{{ 1 / 0 }}" + CONTENT,
  "TypeError": "{{ messages + 1 }}" + CONTENT,
  "Recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}" + CONTENT,
  "Range too big": "{% for i in range(10 ** 9) %}{% endfor %}" + CONTENT,
  "does not contain the problem: 'How many now' became 'Solve it.'": "Solve it.",
  "does not contain the problem: 'How many now' became ''": "{{ '' }}",
  "does not contain the problem": "{{ messages[0].content[:5] }}",
}


@pytest.mark.parametrize("message", FAILING)
def test_a_template_that_is_wrong_is_one_message(message, small, tmp_path):
  tokenizer = word_level.word_level_tokenizer(WORDS, tmp_path, FAILING[message])
  with pytest.raises(UserError) as caught:
    tokenization.chat_prompt(tokenizer, "How many now")
  assert message in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_template_may_not_run_for_hours(small, tmp_path, monkeypatch):
  monkeypatch.setattr(templates, "SECONDS", 0.2)
  loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
  tokenizer = word_level.word_level_tokenizer(WORDS, tmp_path, loop + CONTENT)
  with pytest.raises(UserError, match=f"template of {tmp_path} takes more than 0.2 seconds"):
    tokenization.chat_prompt(tokenizer, "How many now")


def test_the_time_limit_leaves_the_timer_of_its_caller(small):
  rung = []
  handler = lambda *args: rung.append(1)
  before = signal.signal(signal.SIGALRM, handler)
  try:
    signal.setitimer(signal.ITIMER_REAL, 50)
    tokenization.chat_prompt(small, "How many ?")
    assert signal.getsignal(signal.SIGALRM) is handler
    assert 40 < signal.setitimer(signal.ITIMER_REAL, 0)[0] <= 50
    tokenization.chat_prompt(small, "How many ?")
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0) and not rung
  finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_prompts_are_rendered_in_other_threads_too(small):
  found = []
  thread = threading.Thread(target=lambda: found.append(tokenization.chat_prompt(small, "now")))
  thread.start()
  thread.join()
  assert found == [tokenization.chat_prompt(small, "now")]


@pytest.mark.parametrize(
  "content,message", [(b"\xff\xfe", "cannot be read"), (b" \n", "file is empty"), (None, "read")]
)
def test_a_template_file_that_cannot_be_used(content, message, bundled):
  file = bundled / "own.jinja"
  file.mkdir() if content is None else file.write_bytes(content)
  with pytest.raises(UserError, match=f"chat_template is {file}: .*{message}"):
    tokenization.load_tokenizer(bundled, file)


def test_the_mark_that_some_editors_put_before_a_file_is_no_part_of_its_template(bundled):
  file = bundled / "own.jinja"
  file.write_bytes(b"\xef\xbb\xbf" + CONTENT.encode())
  assert tokenization.load_tokenizer(bundled, file).chat_template == CONTENT


def test_the_end_of_an_answer_by_the_template():
  phi = real("phi-3-mini")
  ends = tokenization.eos_ids(REAL / "phi-3-mini", phi)
  assert phi.convert_ids_to_tokens(list(ends)) == ["<|endoftext|>", "<|end|>"]
  qwen = real("qwen3")
  assert qwen.convert_ids_to_tokens(list(tokenization.eos_ids(REAL / "qwen3", qwen))) == [
    "<|im_end|>"
  ]
  qwen.chat_template = template_of("qwen2.5")
  assert qwen.convert_ids_to_tokens(list(tokenization.eos_ids(REAL / "qwen3", qwen))) == [
    "<|im_end|>"
  ]


def test_template_of_deepseek_r1_distill_is_found_out():
  template, qwen = template_of("deepseek_r1_distill_qwen"), real("qwen3")
  qwen.chat_template, qwen.bos_token = template, "<|endoftext|>"
  prompt = tokenization.chat_prompt(qwen, "How many?")
  assert prompt.count(qwen.bos_token_id) == 1 and prompt[0] == qwen.bos_token_id
  with pytest.raises(ValueError, match="qwen3 changes the trace: '<think>"):
    tokenization.render_row(qwen, "How many?", qwen.encode("<think>\nTwo.\n</think>\n\nThree."))
  tokenization.render_row(qwen, "How many?", qwen.encode("Three."))


def test_default_system_prompt_of_qwen25_leaves_the_trace_whole():
  template, qwen = template_of("qwen2.5"), real("qwen3")
  qwen.chat_template = template
  assert "You are" in qwen.decode(tokenization.chat_prompt(qwen, "How many?"))
  tokenization.render_row(
    qwen, "How many?", qwen.encode("<think>\nTwo.\n</think>\n\nThree.<|im_end|>")
  )


def test_phi_has_its_start_token_once_at_most_and_another_vocabulary():
  phi, qwen = real("phi-3-mini"), real("qwen3")
  assert tokenization.chat_prompt(phi, "How many?").count(phi.bos_token_id) <= 1
  with pytest.raises(ValueError, match="0: teacher '<unk>', student '!'"):
    tokenization.shared_vocabulary(phi, qwen)


def test_qwen3_delimiters_and_padded_rows():
  qwen = real("qwen3")
  shared = tokenization.shared_vocabulary(qwen, qwen)
  assert shared == len(qwen) < 151936
  mask = tokenization.delimiter_mask(qwen, ["\n\n"], 151936)
  assert not mask[shared:].any()
  assert all(mask[qwen.encode(text)[-1]] for text in ("a\n\n", "a.\n\n", "a:\n\n"))
  assert not mask[qwen.encode("a\n")[-1]]
