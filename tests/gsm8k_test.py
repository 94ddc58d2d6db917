"""The whole loop on GSM8K's questions with Qwen3's tokenizer: plumbing, as the weights are random."""

import json
import re
import shutil

import jax
import pytest
import transformers

from gen_ssd import checks
from gen_ssd import config as config_lib
from gen_ssd import inputs
from gen_ssd import mesh
from gen_ssd import stages
from gen_ssd import workdir as workdir_lib
from gen_ssd.collect import traces
from gen_ssd.models import decoder
from gen_ssd.models import export
from gen_ssd.models import hf
from gen_ssd.models import tokenization
from gen_ssd.models.architecture import Layout
from tests import paths
from tests import tiny

pytestmark = pytest.mark.usefixtures("shared_programs")

DATA = paths.DATA
QUESTIONS, TOKENIZER = DATA / "gsm8k", DATA / "tokenizers" / "qwen3"
ENDS = [151645, *range(0, 151643, 25)]  # a random model would never end otherwise


def qwen3(folder, name, seed, **facts):
  """A random model of Qwen3's shape in Hugging Face format, with the real tokenizer."""
  source = folder / f"{name}-source"
  shutil.copytree(TOKENIZER, source)
  (source / "config.json").write_text(
    json.dumps(
      {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "attention_bias": False,
        "max_position_embeddings": 4096,
        "head_dim": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 2,
        **facts,
      }
    )
  )
  (source / "generation_config.json").write_text(json.dumps({"eos_token_id": ENDS}))
  arch = hf.read_architecture(str(source))
  made = decoder.initialise(arch, Layout(), jax.random.key(seed))
  export.save(str(folder / name), made, str(source))
  return str(folder / name)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  for file in (QUESTIONS / "train.jsonl", QUESTIONS / "test.jsonl", TOKENIZER / "tokenizer.json"):
    if not file.is_file():
      pytest.skip(f"{file} is not there")
  folder = tmp_path_factory.mktemp("gsm8k")
  mesh.start(devices=jax.devices()[:1])
  own = json.loads((TOKENIZER / "tokenizer_config.json").read_text())["chat_template"]
  opens = folder / "opens.jinja"  # as thinking-only models do
  start = "assistant\\n{}' }}}}\n    {{%- if enable"
  opens.write_text(own.replace(start.format(""), start.format("<think>\\n")))
  assert opens.read_text() != own
  c = config_lib.default()
  teacher = dict(hidden_size=32, intermediate_size=48, vocab_size=152064, tie_word_embeddings=False)
  student = dict(hidden_size=16, intermediate_size=32, vocab_size=151936, tie_word_embeddings=True)
  c.teacher.update(path=qwen3(folder, "teacher", 0, **teacher), chat_template=str(opens))
  c.student.update(path=qwen3(folder, "student", 1, **student), thinking="on")
  c.problems.update(
    source=f"gsm8k:{QUESTIONS / 'train.jsonl'}",
    train=8,
    cold_start=8,
    held_out=2,
    system="Put your final answer within \\boxed{}.",
  )
  c.tests = {
    "gsm8k": dict(source=f"gsm8k:{QUESTIONS / 'test.jsonl'}", limit=6),
    "svamp": dict(
      source=f"svamp:{DATA / 'svamp' / 'SVAMP.json'}",
      limit=6,
      samples=2,
      temperature=0.6,
      top_p=0.95,
    ),
  }
  sizes = dict(c=16, slots=8, prompt=320, max_tokens=160, block=160, keep="all")
  c.select.update(k=2, **sizes)
  c.cold_start.update(**sizes)
  for part in (c.warm_up, c.train):
    part.update(steps=2, batch_size=1, length=384, warmup_steps=0)
  c.evaluate.update(slots=8, max_tokens=32)
  config = config_lib.parse(c)
  checks.check(config)
  tiny.claim(folder / "run", config, inputs.identities(config))
  for stage in config.stages:
    stages.STAGES[stage](config, folder / "run")
  return config, folder / "run"


def test_traces_are_chosen_for_real_questions(finished):
  config, workdir = finished
  rows, kept = workdir_lib.arm_rows(workdir, "gen_ssd")
  assert len(rows) == 8 and 0 < len(kept) <= 8 and {r["source"] for r in rows} == {"gsm8k"}
  shared = len(tokenization.load_tokenizer(str(TOKENIZER)))
  assert all(i < shared for r in rows for i in r["ids"])  # rows of padding are never drawn
  for r in rows:
    assert re.fullmatch(r"-?\d+", r["answer"]) and r["problem"].strip()
    assert r["opened"] == "<think>\n" and r["text"].startswith("<think>\n")
    assert {len(c["scores"]) for c in r["chunks"]} == {2}
    for c in r["chunks"]:
      scores = [x for x in c["scores"] if x is not None]
      assert c["score"] == min(scores)
    if r["stop"] == "ended":
      assert r["ids"][-1] in ENDS and not {*r["ids"][:-1]} & {*ENDS}


def test_the_students_are_measured_on_both_sets(finished):
  _, workdir = finished
  found = json.loads((workdir / "results.json").read_text())
  assert {t: r["arms"]["gen_ssd"]["n"] for t, r in found["tests"].items()} == {
    "gsm8k": 6,
    "svamp": 6,
  }
  assert found["arms"]["gen_ssd"]["n"] == 12
  answers = traces.Shards(workdir / "arms" / "gen_ssd" / "seed-0" / "answers-svamp").resume()[0]
  assert len(answers) == 12 and (workdir / "report.html").stat().st_size > 10_000


def test_the_student_is_exported_with_the_template_it_was_trained_with(finished):
  config, workdir = finished
  home = workdir / "arms" / "gen_ssd" / "seed-0" / "student"
  mine = transformers.AutoTokenizer.from_pretrained(home)
  assert mine.chat_template == inputs.tokenizer(config.student).chat_template
  assert "set enable_thinking = true" in mine.chat_template
  assert mine.get_vocab() == transformers.AutoTokenizer.from_pretrained(TOKENIZER).get_vocab()
  assert json.loads((home / "config.json").read_text())["vocab_size"] == 151936
