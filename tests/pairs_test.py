"""Configs of real pairs validate, and all their programs trace on eight devices, without weights."""

import importlib
import json

import pytest

from gen_ssd import config as config_lib
from gen_ssd import config_checks
from gen_ssd import inputs
from gen_ssd import mesh
from gen_ssd.collect import writer as writer_lib
from gen_ssd.engine import step as step_lib
from gen_ssd.models import architecture
from gen_ssd.models import hf
from gen_ssd.models import weights
from gen_ssd.models.architecture import Layout
from gen_ssd.training import train

# What config.json of each model says, as far as its Architecture needs it.
QWEN2 = dict(
  model_type="qwen2",
  hidden_act="silu",
  rms_norm_eps=1e-6,
  rope_theta=1e6,
  use_sliding_window=False,
  sliding_window=4096,
  max_window_layers=21,
)
QWEN3 = dict(
  model_type="qwen3",
  hidden_act="silu",
  rms_norm_eps=1e-6,
  rope_theta=1e6,
  head_dim=128,
  attention_bias=False,
  use_sliding_window=False,
  vocab_size=151936,
)
LLAMA = dict(
  model_type="llama",
  hidden_act="silu",
  rms_norm_eps=1e-5,
  rope_theta=5e5,
  attention_bias=False,
  mlp_bias=False,
  vocab_size=128256,
  max_position_embeddings=131072,
  rope_scaling=dict(
    factor=8.0,
    high_freq_factor=4.0,
    low_freq_factor=1.0,
    original_max_position_embeddings=8192,
    rope_type="llama3",
  ),
)


def sizes(d, f, layers, heads, kv, **more):
  return dict(
    hidden_size=d,
    intermediate_size=f,
    num_hidden_layers=layers,
    num_attention_heads=heads,
    num_key_value_heads=kv,
    tie_word_embeddings=False,
    **more,
  )


MODELS = {  # name -> (config.json, billions of parameters)
  "Qwen/Qwen2.5-7B-Instruct": (QWEN2 | sizes(3584, 18944, 28, 28, 4, vocab_size=152064), 7.62),
  "Qwen/Qwen2.5-1.5B": (
    QWEN2 | sizes(1536, 8960, 28, 12, 2, vocab_size=151936) | {"tie_word_embeddings": True},
    1.54,
  ),
  "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B": (
    QWEN2 | sizes(5120, 27648, 64, 40, 8, vocab_size=152064) | {"rms_norm_eps": 1e-5},
    32.76,
  ),
  "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": (
    QWEN2 | sizes(1536, 8960, 28, 12, 2, vocab_size=151936) | {"rope_theta": 10000},
    1.78,
  ),
  "Qwen/Qwen3-8B": (QWEN3 | sizes(4096, 12288, 36, 32, 8), 8.19),
  "Qwen/Qwen3-0.6B-Base": (
    QWEN3 | sizes(1024, 3072, 28, 16, 8) | {"tie_word_embeddings": True},
    0.596,
  ),
  "meta-llama/Llama-3.3-70B-Instruct": (LLAMA | sizes(8192, 28672, 80, 64, 8, head_dim=128), 70.55),
  "meta-llama/Llama-3.1-8B-Instruct": (LLAMA | sizes(4096, 14336, 32, 32, 8), 8.03),
}
PAIRS = ("qwen25_7b_1p5b", "r1_32b_1p5b", "qwen3_8b_0p6b", "llama_70b_8b")


def parsed(name):
  return config_lib.parse(importlib.import_module(f"configs.{name}").get_config())


def architecture_of(path, folder):
  (folder / "config.json").write_text(json.dumps(MODELS[path][0]))
  return hf.read_architecture(str(folder))


def trace_collection(teacher, student, s):
  """Traces admission and a round of one collection; returns what a round gives."""
  state, admission, knobs = writer_lib.shapes(teacher, student, s)
  static = writer_lib.round_of(s, config_lib.ring_slots(s))
  step_lib.admit.trace(teacher, student, state, admission, c=s.c, block=static.block)
  return step_lib.select_step.trace(teacher, student, state, knobs, round=static).out_info


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_validates_and_traces_without_weights(name, tmp_path):
  config = parsed(name)
  config_checks.check(config)
  mesh.start(config.model_parallel)
  read = lambda who: architecture_of(getattr(config, who).path, tmp_path)
  for who in ("teacher", "student"):
    billions = MODELS[getattr(config, who).path][1]
    assert abs(architecture.parameters(read(who)) / 1e9 - billions) < 0.006 * billions
  writer = weights.shapes(read("teacher"), Layout(dtype=config.teacher.dtype))
  chooser = weights.shapes(read("student"), Layout(dtype=config.student.dtype, **inputs.ALONE))
  trace_collection(writer, None, config.cold_start)
  for plain in {config_lib.collection(arm.select) for _, arm in config.arms}:
    state, report = trace_collection(writer, chooser, plain)
    assert report.tokens.shape == (plain.slots, plain.k, plain.c)
    assert state.teacher.position.shape == (plain.slots, config_lib.ring_slots(plain))
  for _, e in config.tests:
    trace_collection(chooser, None, inputs.answering(config, e))

  arguments = train.shapes(read("student"), config.train)
  train.train_step.trace(*arguments, config=train.static(config.train))


def test_what_the_pairs_measure():
  for name in PAIRS:
    config = parsed(name)
    found = {t: (e.source, e.samples, e.temperature, e.top_p, e.limit) for t, e in config.tests}
    assert found == {
      "aime24": ("aime24", 16, 0.6, 0.95, 0),
      "aime25": ("aime25", 16, 0.6, 0.95, 0),
      "amc23": ("amc23", 16, 0.6, 0.95, 0),
      "olympiadbench": ("olympiadbench", 1, 0.6, 0.95, 0),
    }
    assert {"standard_kd", "random", "posthoc", "gen_ssd"} <= {arm for arm, _ in config.arms}


def test_a_row_of_the_table_is_one_command():
  pair = importlib.import_module("configs.qwen25_7b_1p5b")
  assert {*pair.get_config("morsd+gen_ssd").arms} == {"morsd", "gen_ssd"}
  every = config_lib.parse(pair.get_config())
  assert dict(every.arms)["standard_kd_all"].select.attempts == every.select.k
  assert {*pair.get_config("grpo").arms} == {"standard_kd", "grpo"}
  with pytest.raises(ValueError, match="'gen_sdd': it must be arms joined by"):
    pair.get_config("gen_sdd")
