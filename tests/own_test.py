"""The configs for a user's own models: nothing is cut; names, files and pairs are understood."""

import json
import re

import pytest

from configs import laptop
from configs import own
from gen_ssd import config as config_lib
from gen_ssd import config_checks
from gen_ssd.errors import UserError
from gen_ssd.problems import bundled
from tests import paths
from tests.cli_test import call

ARGUMENT = "org/teacher,org/student,gsm8k"


@pytest.mark.parametrize(
  "changes", [{}, {"max_tokens": 512}, {"max_tokens": 8192, "prompt": 1024}, {"c": 64}]
)
def test_lengths_follow_the_overrides(changes):
  c = own.get_config(ARGUMENT)
  for name, value in changes.items():
    c.select[name] = value
  found = config_lib.parse(c)
  config_checks.check(found)
  for select in (found.select, found.cold_start, *(arm.select for _, arm in found.arms)):
    assert (select.max_tokens, select.prompt) == (found.select.max_tokens, found.select.prompt)
  longest = found.select.prompt + 1 + found.select.max_tokens  # see writer.check_prompts
  assert found.train.length > longest and found.warm_up.length > longest
  assert found.problems.test_source == "gsm8k"
  for name, value in changes.items():
    assert getattr(found.select, name) == value


def test_one_length_can_be_changed_alone():
  c = own.get_config(ARGUMENT)
  c.cold_start.max_tokens, c.train.length, c.warm_up.block = 256, 8192, 896
  found = config_lib.parse(c)
  config_checks.check(found)
  assert (found.cold_start.max_tokens, found.select.max_tokens) == (256, 2048)
  assert (found.train.length, found.warm_up.length) == (8192, 2688)
  assert (found.warm_up.block, found.train.block, found.select.c) == (896, 128, 128)


@pytest.mark.parametrize(
  "argument,message",
  [
    ("", "needs three or four names"),
    ("a,b", "needs three or four names"),
    ("a,,gsm8k", "needs three or four names"),
    ("a,b,train.jsonl", "needs TEST when PROBLEMS is 'train.jsonl', not a known set"),
  ],
)
def test_a_wrong_argument_is_explained(argument, message):
  with pytest.raises(ValueError, match=message):
    own.get_config(argument)


def test_the_command_takes_files_and_overrides(tmp_path):
  names = []
  for split in ("train", "test"):
    rows = ({"problem": p.problem, "answer": p.answer} for p in bundled.problems(split, 40))
    names.append(tmp_path / f"{split}.jsonl")
    names[-1].write_text("".join(json.dumps(r) + "\n" for r in rows))
  models = "bundled/teacher,bundled/student"
  code, _, error = call(
    "run",
    f"--config={paths.ROOT / 'configs' / 'own.py'}:{models},{names[0]},{names[1]}",
    f"--workdir={tmp_path / 'run'}",
    "--config.problems.cold_start=8",
    "--config.problems.held_out=2",
    "--config.problems.system=",
    "--config.select.delimiters=.",  # a small vocabulary has no token that ends with two lines
    "--config.select.max_tokens=256",
    "--config.stages=report",
  )
  assert code == 0, error
  found = json.loads((tmp_path / "run" / "config.json").read_text())
  assert found["select"]["max_tokens"] == 256 and found["train"]["length"] == 512 + 256 + 128
  assert found["select"]["delimiters"] == found["cold_start"]["delimiters"] == ["."]
  assert found["arms"]["gen_ssd"]["max_tokens"] == found["cold_start"]["max_tokens"] == 256


# ---------------------------------------------------------------- configs/laptop.py


@pytest.mark.parametrize(
  "argument,teacher,source,tests",
  [
    ((), "Qwen/Qwen2.5-Coder-1.5B-Instruct", "gsm8k", {"gsm8k": "gsm8k", "svamp": "svamp"}),
    (("smollm2",), "Qwen/Qwen2.5-Coder-0.5B-Instruct", "gsm8k", None),
    (("a.gguf,b.gguf",), "a.gguf", "gsm8k", None),
    (("qwen,svamp,gsm8k",), "Qwen/Qwen2.5-Coder-1.5B-Instruct", "svamp", {"gsm8k": "gsm8k"}),
    (
      ("a/b,c/d, gsm8k:t/train.jsonl, svamp:t/test.jsonl, mine/hard.jsonl",),
      "a/b",
      "gsm8k:t/train.jsonl",
      {"svamp": "svamp:t/test.jsonl", "hard": "mine/hard.jsonl"},
    ),
  ],
)
def test_laptop_takes_a_pair_or_two_models(tmp_path, monkeypatch, argument, teacher, source, tests):
  monkeypatch.chdir(tmp_path)
  for name in ("t/train.jsonl", "t/test.jsonl", "mine/hard.jsonl"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
  found = config_lib.parse(laptop.get_config(*argument))
  config_checks.check(found)
  assert (found.teacher.path, found.problems.source) == (teacher, source)
  assert {name: e.source for name, e in found.tests} == (
    tests or dict(gsm8k="gsm8k", svamp="svamp")
  )
  for train in (found.train, found.warm_up):
    assert train.length > found.select.prompt + 1 + found.select.max_tokens
  arms = dict(found.arms)
  traces = {name: config_lib.collection(arm.select) for name, arm in arms.items()}
  assert traces["posthoc"] == traces["rejection"]  # drawn once


@pytest.mark.parametrize("argument", ["", "qwen3", "a,", "a,b,c", "qwen,gsm8k"])
def test_laptop_explains_a_wrong_argument(argument):
  with pytest.raises(UserError, match=re.escape(laptop.USAGE)):
    laptop.get_config(argument)


def test_laptop_uses_bfloat16_where_the_cpu_does(tmp_path, monkeypatch):
  features = tmp_path / "cpuinfo"
  assert laptop.dtype(features) == "float32"  # no such file, as on a Mac
  for text, want in (
    ("flags : avx2 avx512f avx512_vnni", "float32"),
    ("flags : avx512f avx512_bf16 avx512_vnni", "bfloat16"),
    ("flags : avx512f amx_bf16", "bfloat16"),
  ):
    features.write_text(text)
    assert laptop.dtype(features) == want
  for want in ("bfloat16", "float32"):
    monkeypatch.setattr(laptop, "dtype", lambda want=want: want)
    c = laptop.get_config()
    assert {c.teacher.dtype, c.student.dtype, c.warm_up.dtype, c.train.dtype} == {want}


def test_laptop_refuses_two_tests_of_one_name():
  with pytest.raises(UserError, match="two tests have one name: svamp, svamp"):
    laptop.get_config("qwen,gsm8k,svamp,svamp:other.jsonl")
