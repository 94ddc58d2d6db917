"""Rounds of models whose tokenizers differ, against the fused step and against plain forwards.

Long, because its tests share their pairs of tokenizers.
"""

import dataclasses
import functools
import json
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers import decoders
from tokenizers import models
from tokenizers import pre_tokenizers
from tokenizers import trainers
from transformers import PreTrainedTokenizerFast

from gen_ssd import checks
from gen_ssd import config
from gen_ssd import inputs
from gen_ssd import mesh
from gen_ssd import stages
from gen_ssd import students
from gen_ssd import workdir as workdir_lib
from gen_ssd.collect import loop
from gen_ssd.collect import prefixes
from gen_ssd.collect import traces
from gen_ssd.collect import translate
from gen_ssd.collect import writer as writer_lib
from gen_ssd.engine import translated
from gen_ssd.models import attention
from gen_ssd.models import decoder
from gen_ssd.models import hf
from gen_ssd.models import tokenization
from gen_ssd.models.architecture import Layout
from gen_ssd.problems import answers
from gen_ssd.problems import bundled
from tests import paths
from tests import tiny

REAL = paths.DATA
SELECT = config.Select(k=3, c=4, slots=8, prompt=88, max_tokens=40, shard_rounds=5, loop_window=8)


@pytest.fixture(scope="module")
def pair():
  """The bundled teacher, which writes clean text, and the bundled student."""
  mesh.start(devices=jax.devices()[:1])
  both = config.Config(
    teacher=config.Model("bundled/teacher"), student=config.Model("bundled/student")
  )
  teacher, tokenizer = inputs.load(both, "teacher")
  student, own = inputs.load(both, "student")
  return writer_lib.Writer(
    teacher=teacher,
    teacher_tokenizer=tokenizer,
    ends=tokenization.eos_ids(hf.locate("bundled/teacher"), tokenizer),
    student=student,
    student_tokenizer=own,
  )


def run(writer, folder, select=SELECT, count=10, threshold=np.inf):
  with answers.Grader() as grader:
    return loop.collect(
      writer,
      bundled.problems("test", count),
      select,
      folder,
      grader=grader,
      threshold=threshold,
    )


def byte_level(merges):
  """A byte-level BPE tokenizer of the bundled texts, with so many tokens beside the bytes."""
  core = Tokenizer(models.BPE())
  core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=merges < 100)
  core.decoder = decoders.ByteLevel()
  texts = [p.problem + " 57 + 8 = 65. So \\boxed{65}." for p in bundled.problems("train", 50)]
  core.train_from_iterator(
    texts,
    trainers.BpeTrainer(
      vocab_size=256 + merges + 3,
      special_tokens=["<end>", "<ask>", "<tell>"],
      show_progress=False,
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    ),
  )
  return PreTrainedTokenizerFast(
    tokenizer_object=core,
    eos_token="<end>",
    clean_up_tokenization_spaces=False,
    chat_template="<ask>{{ messages[0].content }}<tell>{% if messages[1] %}{{ messages[1].content }}"
    "<end>{% endif %}",
  )


LENGTH = 256


@jax.jit
def log_probabilities(student, ids):
  segments = (jnp.arange(LENGTH) < jnp.sum(ids >= 0)).astype(jnp.int32)[None]
  attend = functools.partial(attention.attend_packed, segments=segments, block=LENGTH)
  hidden = decoder.forward_packed(
    student, jnp.maximum(ids, 0)[None], jnp.arange(LENGTH)[None], attend
  )
  return jax.nn.log_softmax(decoder.logits(student, hidden)[0, 0])


def nll_of(student, ids):
  """Nats of each token of `ids` after the first, by one plain forward."""
  padded = np.full(LENGTH, -1)
  padded[: len(ids)] = ids
  return -np.asarray(log_probabilities(student, jnp.array(padded)))[
    np.arange(len(ids) - 1), ids[1:]
  ]


# ---------------------------------------------------------------- equal tokenizers


@pytest.mark.parametrize(
  "covers,peaks", [("everything", {}), ("thinking", {}), ("thinking", dict(branch_entropy=0.5))]
)
def test_equal_tokenizers_choose_as_the_fused_step(pair, tmp_path, monkeypatch, covers, peaks):
  """Text that is cut again gives the same, as the teacher's is clean."""
  strict = dataclasses.replace(
    SELECT,
    k=2,
    resamples=1,  # so that rounds without a winner come, too
    covers=covers,
    **peaks,
  )
  dot = pair.teacher_tokenizer.convert_tokens_to_ids(".")
  monkeypatch.setattr(tokenization, "closing_id", lambda tokenizer: dot)
  fused = run(pair, tmp_path / "fused", strict, threshold=15.0)
  mine = run(dataclasses.replace(pair, translate=True), tmp_path / "mine", strict, threshold=15.0)
  if covers == "everything":
    assert {r["stop"] for r in fused} > {"pruned"}
    assert any(r["rounds"] >= len(r["chunks"]) + 2 for r in fused)  # drawn again
  drawn = {len(c["scores"]) for r in fused for c in r["chunks"]}
  assert drawn == ({1, 2} if covers == "thinking" else {2})
  for a, b in zip(fused, mine):
    assert (a["ids"], a["stop"], a["rounds"]) == (b["ids"], b["stop"], b["rounds"])
    np.testing.assert_allclose(a["student_nlls"], b["student_nlls"], rtol=1e-4, atol=1e-4)
    assert a["student_ranks"] == b["student_ranks"] and a["step_starts"] == b["step_starts"]
    for x, y in zip(a["chunks"], b["chunks"]):
      assert (x["choice"], x["text"]) == (y["choice"], y["text"])
      np.testing.assert_allclose(
        *(np.array(c["scores"], float) for c in (x, y)), rtol=1e-4, atol=1e-4
      )
  alone = sum(c["scores"] == [None] for r in mine for c in r["chunks"])
  assert alone > 10 if covers == "thinking" else not alone


# ---------------------------------------------------------------- different tokenizers


@pytest.fixture(scope="module", params=[40, 300], ids=["words", "phrases"])
def foreign(request, pair):
  """The bundled teacher with a random student of another tokenizer; 300 merges cross words."""
  own = byte_level(request.param)
  arch = dataclasses.replace(tiny.STUDENT, vocab=len(own) + 5)
  student = tiny.build(arch, Layout(tensor_axis=None))
  return dataclasses.replace(pair, student=student, student_tokenizer=own, translate=True)


@pytest.fixture(params=[48, 10], ids=["long-tail", "short-tail"])
def tail(request, monkeypatch):
  """With the short one, texts as short as these are longer than what is cut again."""
  monkeypatch.setattr(translate, "TAIL", request.param)
  monkeypatch.setattr(translate, "AGREE", 3)


@pytest.mark.parametrize("strict", [False, True], ids=["", "drawn-again"])
def test_scores_are_those_of_a_plain_forward_over_the_students_tokens(
  foreign, tail, strict, tmp_path
):
  rows = run(foreign, tmp_path / "plain", count=12)
  if strict:
    scores = [c["score"] for r in rows for c in r["chunks"]]
    rows = run(
      foreign,
      tmp_path / "strict",
      dataclasses.replace(SELECT, resamples=4, max_tokens=24),
      count=12,
      threshold=float(np.quantile(scores, 0.75)),
    )
    assert sum(c["resamples"] for r in rows for c in r["chunks"]) > 3
    rows = [r for r in rows if r["chunks"]]
  own, teacher = foreign.student_tokenizer, foreign.teacher_tokenizer
  assert strict or len(rows) == 12 and any(r["stop"] == "ended" for r in rows)
  changed = 0
  for r in rows:
    prompt, at = tokenization.chat_prompt(own, r["problem"]), 0
    for chunk in r["chunks"]:
      before, after = (
        teacher.decode(r["ids"][:n], skip_special_tokens=True) for n in (at, at + chunk["count"])
      )
      at += chunk["count"]
      cut = own(after, add_special_tokens=False, return_offsets_mapping=True)
      ids, ends = cut["input_ids"], [end for _, end in cut["offset_mapping"]]
      changed += ids[: len(own.encode(before))] != own.encode(before)
      if r["ids"][at - 1] in foreign.ends:
        ids, ends = [*ids, own.eos_token_id], [*ends, len(after) + 1]
      nll = nll_of(foreign.student, [*prompt, *ids])[len(prompt) - 1 :]
      want = sum(x for x, end in zip(nll, ends) if end > len(before)) / chunk["count"]
      assert abs(chunk["score"] - want) < 2e-3, (before, after)
      scored = [x for x in chunk["scores"] if x is not None]
      assert chunk["score"] == min(scored)
    assert abs(sum(r["student_nlls"]) - sum(c["score"] * c["count"] for c in r["chunks"])) < 0.01
  if len(own) > 400 and not strict:
    assert changed  # some chunk did undo the cut of the text before it


def test_a_killed_run_continues_to_the_same_files(foreign, tail, tmp_path, monkeypatch):
  select = dataclasses.replace(SELECT, max_tokens=20)
  read = lambda folder: {
    p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name != "times.csv"
  }
  run(foreign, tmp_path / "whole", select)

  class Killed(Exception):
    pass

  real, left = translated.settle, [7]

  def settle(*args, **kwargs):
    left[0] -= 1
    if left[0] == 0:
      raise Killed
    return real(*args, **kwargs)

  monkeypatch.setattr(translated, "settle", settle)
  with pytest.raises(Killed):
    run(foreign, tmp_path / "part", select)
  run(foreign, tmp_path / "part", select)
  assert read(tmp_path / "part") == read(tmp_path / "whole")


def test_a_trace_continued_from_a_prefix_of_itself_is_itself(foreign, tmp_path, monkeypatch):
  rows = run(foreign, tmp_path / "whole")
  half = lambda ids, *_: len(ids) // 2 // SELECT.c * SELECT.c  # at the end of a chunk
  monkeypatch.setattr(prefixes, "cut", half)
  given = {(r["uuid"], 0): r for r in rows}
  found = run(dataclasses.replace(foreign, given=given), tmp_path / "again")
  for r, old in zip(found, rows, strict=True):
    n = r["given_tokens"]
    assert n == half(old["ids"]) and r["ids"] == old["ids"]
    np.testing.assert_allclose(r["student_nlls"], old["student_nlls"][n:], atol=2e-3)


def test_in_a_small_ring_full_slots_are_read_again(foreign, tmp_path, monkeypatch):
  whole = run(foreign, tmp_path / "whole")
  full, resized = [], []
  room, resize = translate.Translator._make_room, translate.Translator._resize

  def make_room(self, cut, stay):
    before, ring = {*self.inside}, self.ring
    room(self, cut, stay)
    if self.ring is ring and before - self.inside:
      full.append((before - self.inside, before))

  def start_small(self, slots):
    resized.append(self.ring_slots)
    resize(self, slots // 2 if self.ring_slots else 1)  # as little as is needed

  monkeypatch.setattr(translate.Translator, "_make_room", make_room)
  monkeypatch.setattr(translate.Translator, "_resize", start_small)
  small = run(foreign, tmp_path / "small")
  assert any(resized) and any(gone < before for gone, before in full)  # not all slots at once
  for a, b in zip(whole, small):
    assert [c["choice"] for c in a["chunks"]] == [c["choice"] for c in b["chunks"]]


# ---------------------------------------------------------------- cutting text


def real(name):
  if not (REAL / "tokenizers" / name / "tokenizer.json").is_file():
    pytest.skip(f"the tokenizer {name} is not in {REAL}")
  return tokenization.load_tokenizer(REAL / "tokenizers" / name)


def cutter(teacher, student):
  """A Translator without models."""
  found = object.__new__(translate.Translator)
  found.writer = types.SimpleNamespace(
    teacher_tokenizer=teacher, student_tokenizer=student, ends=(teacher.eos_token_id,)
  )
  found.prompts, found.held = {"x": ([1], [7, 8])}, [None]
  return found


def written(cut, ids, size):
  """Writes ids in chunks of `size`; yields (chunk, Branch, all tokens with it) of each."""
  cut.select = dataclasses.replace(SELECT, k=1, c=size)
  trace, cut.held[0] = traces.Trace("x", 0), None
  for at in range(0, len(ids), size):
    part = ids[at : at + size]
    chunk = np.zeros((1, 1, size), np.int32)
    chunk[0, 0, : len(part)] = part
    ended = np.array([[part[-1] == cut.writer.ends[0]]])
    ((branch,),) = cut._cut([trace], chunk, np.array([[len(part)]]), ended).values()
    whole = [*cut.held[0].ids[: branch.stay], *branch.ids]
    cut._keep(0, branch)
    trace.ids = trace.ids + part
    yield part, branch, whole


WORDS = (
  "She sold 48/2 = 24 clips.\n\nAltogether $48+24=\\boxed{72}$ \u2014 na\u00efve "
  "\U0001f98a\U0001f98b\U0001f98c\U0001f98d\U0001f98e caf\u00e9 \u65e5\u672c\u8a9e! "
  "\u16a0\u16a2\u16a6\u16a8\u16b1\u16b2 = \u0ae7\u0ae8, so 6."
)


def answers_of(count):
  file = REAL / "gsm8k" / "train.jsonl"
  if not file.is_file():
    pytest.skip(f"{file} is not there")
  return [json.loads(line)["answer"] for line in file.read_text().splitlines()[:count]]


def test_real_tokenizers_are_aligned_by_character():
  """Qwen3 writes, Phi-3 reads: whatever the chunks, it ends with the whole text's own tokens."""
  qwen, phi = real("qwen3"), real("phi-3-mini")
  cut = cutter(qwen, phi)
  for text in (WORDS, *answers_of(6)):
    ids = [*qwen.encode(text), qwen.eos_token_id]
    for size in (1, 3, 7):
      count = 0
      for part, branch, whole in written(cut, ids, size):
        assert whole[:2] == [7, 8] and len(branch.homes) == len(branch.ids) == len(branch.ends)
        mine = [h for h in branch.homes if h >= 0]
        assert mine == sorted(mine) and all(h < len(part) for h in mine)
        assert (
          branch.homes == [-1] * (len(branch.homes) - len(mine)) + mine
        )  # what is new comes last
        count += len(mine)
      want = phi.encode(text, add_special_tokens=False)
      assert whole[2:] == [*want, phi.eos_token_id]
      assert count >= len(want) * 0.9  # a token may grow by a chunk's first characters


@pytest.mark.parametrize("size", [5, 16])
@pytest.mark.parametrize("names", [("qwen3", "phi-3-mini"), ("phi-3-mini", "qwen3")], ids="-".join)
def test_cutting_the_tail_is_cutting_the_whole_text_and_costs_the_same_at_any_length(names, size):
  teacher, student = map(real, names)
  cut, sizes = cutter(teacher, student), []
  plain = cut._encode
  cut._encode = lambda texts: (sizes.extend(map(len, texts)), plain(texts))[1]
  ids = teacher.encode("\n".join([WORDS, *answers_of(40), WORDS]), add_special_tokens=False)
  for n, (_, _, whole) in enumerate(written(cut, ids, size)):
    text = teacher.decode(ids[: size * (n + 1)]).rstrip("\ufffd")
    assert whole[2:] == student.encode(text, add_special_tokens=False), text[-40:]
    assert cut.held[0].text == text
  assert len(text) > 8000 and max(sizes) < 700


def test_a_text_whose_tail_is_cut_otherwise_is_cut_whole(monkeypatch):
  """A tokenizer that counts from the start of what it is given never meets itself."""
  qwen, phi = real("qwen3"), real("phi-3-mini")
  cut, seen = cutter(qwen, phi), []

  def encode(texts):
    seen.extend(texts)
    return [
      ([100 * (len(t) % 7) + i for i in range(len(t))], list(range(1, len(t) + 1))) for t in texts
    ]

  cut._encode = encode
  ids = qwen.encode(WORDS, add_special_tokens=False)
  for _, _, whole in written(cut, ids, 4):
    assert whole[2:] == encode([cut.held[0].text])[0][0]
  assert cut.held[0].text == WORDS and seen.count(WORDS) == 2


# ---------------------------------------------------------------- configuration


def test_students_are_trained_on_their_own_tokens(tmp_path, monkeypatch):
  """Everything up to training, with a student whose ids for two words are exchanged."""
  path = tmp_path / "student"
  shutil.copytree(hf.locate("bundled/student"), path)
  file = path / "tokenizer.json"
  swap = lambda text, a, b: text.replace(a, "\0").replace(b, a).replace("\0", b)
  file.write_text(swap(file.read_text(), '"\u2581has"', '"\u2581So"'))
  sizes = dict(slots=8, prompt=40, max_tokens=80, keep="all")
  c = config.parse(
    {
      "teacher": {"path": "bundled/teacher"},
      "student": {"path": str(path)},
      "translate": True,
      "problems": dict(train=6, cold_start=6, held_out=0, test=6),
      "arms": {"a": {}, "fresh": {"refresh": 4}},
      "select": dict(k=2, **sizes),
      "cold_start": dict(k=1, **sizes),
      "warm_up": dict(steps=1, batch_size=2, warmup_steps=1),
      "train": dict(steps=1, batch_size=2, warmup_steps=1),
    }
  )
  mesh.start(devices=jax.devices()[:1])
  checks.check(c)
  seen, rows = [], students.packing.Rows
  monkeypatch.setattr(
    stages.packing, "Rows", lambda pairs, length: (seen.append(pairs), rows(pairs, length))[1]
  )
  for stage in ("cold_start", "collect", "train"):
    stages.STAGES[stage](c, tmp_path / "run")
  cold, refreshed, *trained = seen
  own, found = (
    tokenization.load_tokenizer(path),
    [workdir_lib.arm_rows(tmp_path / "run", name)[1] for name in ("a", "fresh")],
  )
  first = [r for r in found[1] if r["uuid"] in {p.uuid for p in inputs.problems(c, "train")[:4]}]
  for kept, pairs in [*zip(found, trained, strict=True), (first, refreshed[len(cold) :])]:
    assert len(kept) == len(pairs) > 2
    for r, (prompt, answer) in zip(kept, pairs):
      assert own.decode(answer, skip_special_tokens=True) == r["text"]
      assert answer[-1] == own.eos_token_id and prompt == tokenization.chat_prompt(
        own, r["problem"]
      )
    assert any(r["ids"] != answer for r, (_, answer) in zip(kept, pairs))


def test_tokenizers_that_differ_need_leave(tmp_path):
  path = tmp_path / "student"
  shutil.copytree(hf.locate("bundled/student"), path)
  file = path / "tokenizer.json"
  file.write_text(file.read_text().replace("\u2581Tom", "\u2581Tim"))
  made = lambda **more: config.parse(
    {
      "teacher": {"path": "bundled/teacher"},
      "student": {"path": str(path)},
      "arms": {"a": more.pop("arm", {})},
      "problems": dict(train=8, cold_start=8, held_out=2, test=8),
      **more,
    }
  )
  with pytest.raises(ValueError, match="must share a vocabulary, or set translate; 1 of"):
    checks.check(made())
  checks.check(made(translate=True))
  with pytest.raises(ValueError, match="arms.a.scorer is 'morsd': it must be another one"):
    checks.check(made(translate=True, arm={"scorer": "morsd", "granularity": "trace"}))
  with pytest.raises(
    ValueError, match="arms.a.scoring_prompt is 'teacher': it must be another one"
  ):
    checks.check(made(translate=True, arm={"scoring_prompt": "teacher"}))
