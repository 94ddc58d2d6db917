"""The data set of an arm: its tables by hand, and read by the libraries that people train with."""

import pathlib

import pyarrow.parquet as pq
import pytest

from gen_ssd.collect import tables
from gen_ssd.models import hf
from tests.collect.traces_test import row

OPENR1 = {
  "problem", "solution", "answer", "problem_type", "question_type", "source", "uuid", "messages",
  "is_reasoning_complete", "generations", "correctness_math_verify", "correctness_llama",
  "finish_reasons", "correctness_count",
}  # fmt: skip
USER = {"role": "user", "content": "What is a?"}
TEACHER = pathlib.Path(hf.locate("bundled/teacher"))


def says(text):
  return [{"role": "assistant", "content": text}]


def read(folder, name):
  return pq.read_table(folder / f"{name}.parquet").to_pylist()


def made(tmp_path, rows, kept=(), lost=(), system=""):
  counts = tables.write(tmp_path, rows, kept, lost, system)
  assert counts == {p.name: pq.read_metadata(p).num_rows for p in tmp_path.iterdir()}
  return read(tmp_path, "traces"), read(tmp_path, "kept"), read(tmp_path, "preferences")


def candidate(text, score, chunk=0, resample=1, uuid="a"):
  return {
    "uuid": uuid, "attempt": 0, "chunk": chunk, "branch": 0, "resample": resample, "ids": [4],
    "count": 1, "score": score, "student_nll": score, "text": text,
  }  # fmt: skip


def test_traces_have_one_row_a_problem_and_the_columns_of_openr1(tmp_path):
  rows = [
    row("b", 1, text="b1"),
    row("a", 2, stop="length", verdict="wrong", text="a2"),
    row("a", 0, verdict="wrong", text="a0"),
    row("a", 1, text="a1"),
    row("b", 0, verdict="unverifiable", stop="pruned", text="b0"),
  ]
  (a, b), kept, pairs = made(tmp_path, rows)
  assert kept == pairs == []
  assert (a["uuid"], a["source"], a["problem"], a["answer"]) == ("a", "made", "What is a?", "7")
  assert a["generations"] == ["a0", "a1", "a2"] and b["generations"] == ["b0", "b1"]
  assert a["correctness_math_verify"] == [False, True, False] and a["correctness_count"] == 1
  assert a["is_reasoning_complete"] == [True, True, False]
  assert a["finish_reasons"] == ["stop", "stop", "length"]
  assert b["finish_reasons"] == ["pruned", "stop"]
  assert a["messages"] == [USER, *says("a1")]  # a right one
  assert a["prompt"] == [USER] and a["completion"] == says("a1") and b["completion"] == says("b1")
  assert a["verdict"] == ["wrong", "right", "wrong"] and a["num_tokens"] == [3, 3, 3]
  assert a["student_nll"] == [1.0] * 3 and a["teacher_tokens"] == [14] * 3
  assert [c["text"] for c in a["chunks"][0]] == ["4 5", " 6"]
  assert a["chunks"][0][0]["scores"] == [0.5, 0.25, None]
  assert OPENR1 | {"split", "level", "teacher_nll"} <= a.keys()


def test_traces_say_which_generation_was_kept(tmp_path):
  rows = [row("a", 0, text="a0"), row("a", 1, text="a1"), row("b", 0, text="b0")]
  (a, b), kept, _ = made(tmp_path, rows, kept=rows[1:2])
  assert a["kept"] == [False, True] and b["kept"] == [False]
  assert a["completion"] == says("a1")  # not the first right one
  assert [(k["uuid"], k["attempt"], k["messages"]) for k in kept] == [("a", 1, [USER, *says("a1")])]


def test_without_a_right_answer_the_first_is_the_completion(tmp_path):
  rows = [row("a", 1, verdict="wrong", text="a1"), row("a", 0, verdict="wrong", text="a0")]
  ((one,), _, _) = made(tmp_path, rows)
  assert one["completion"] == says("a0") and one["correctness_count"] == 0


def test_the_system_message_comes_first(tmp_path):
  rows = [row("a")]
  ((one,), (kept,), _) = made(tmp_path, rows, rows, system="Be brief.")
  for found in (one, kept):
    assert [m["role"] for m in found["messages"]] == ["system", "user", "assistant"]
    assert found["prompt"][0]["content"] == "Be brief."


def test_preferences_pair_the_chosen_chunk_with_the_worst_candidate_of_its_round(tmp_path):
  kept = [row("a", text="4 5 6")]
  lost = [
    candidate("early", 9.0, resample=0),  # of a draw in which nothing was suitable
    candidate("bad", 0.5),
    candidate("worst", 0.75),
    candidate("invalid", None),
    candidate("4 5", 5.0),  # the same text
    candidate(" 7", 0.7, chunk=1, resample=0),
    candidate("beyond", 9.0, chunk=2),
    candidate("of another trace", 9.0, uuid="b"),
  ]
  _, _, (first, second) = made(tmp_path, kept, kept, lost)
  assert (first["chosen"], first["rejected"]) == (says("4 5"), says("worst"))
  assert (first["chosen_score"], first["rejected_score"], first["prefix"]) == (0.25, 0.75, "")
  assert (second["chosen"], second["rejected"]) == (says("4 5 6"), says("4 5 7"))
  assert (second["prefix"], second["rejected_chunk"]) == ("4 5", " 7")
  assert first["prompt"] == second["prompt"] == [USER]


def test_only_the_widest_differences_of_a_trace_become_pairs(tmp_path):
  one = row("a")
  one["chunks"] = [{**one["chunks"][1], "text": f"{i}"} for i in range(6)]  # score 0.5
  lost = [candidate("x", 0.6 + i / 10, chunk=i, resample=0) for i in range(6)]
  _, _, pairs = made(tmp_path, [one], [one], lost)
  assert [p["chunk"] for p in pairs] == [5, 4, 3, 2]


# ---------------------------------------------------------------- other libraries


@pytest.fixture
def folder(tmp_path):
  rows = [row(f"p{i}", text="4 5 6") for i in range(8)]
  lost = [candidate(" 7", 0.7, chunk=1, resample=0, uuid=f"p{i}") for i in range(8)]
  tables.write(tmp_path, rows, rows, lost)
  return tmp_path


def test_datasets_loads_every_table(folder, tmp_path):
  datasets = pytest.importorskip("datasets")
  for name in ("kept", "traces", "preferences"):
    found = datasets.load_dataset(
      "parquet",
      data_files=str(folder / f"{name}.parquet"),
      split="train",
      cache_dir=str(tmp_path / "cache"),
    )
    assert len(found) == 8
  assert found[0]["chosen"] == says("4 5 6")


def trl_arguments(config, tmp_path):
  return config(
    output_dir=str(tmp_path / "out"),
    max_steps=2,
    per_device_train_batch_size=2,
    report_to=[],
    use_cpu=True,
    bf16=False,
    logging_steps=1,
  )


def loaded(folder, name, columns, tmp_path):
  import datasets

  file = str(folder / f"{name}.parquet")
  found = datasets.load_dataset(
    "parquet", data_files=file, split="train", cache_dir=str(tmp_path / "cache")
  )
  return found.select_columns(columns)


@pytest.mark.parametrize("columns", [["messages"], ["prompt", "completion"]], ids="-".join)
def test_trl_trains_on_the_kept_traces(folder, tmp_path, columns):
  trl = pytest.importorskip("trl", reason="needs torch and trl")
  trainer = trl.SFTTrainer(
    str(TEACHER),
    args=trl_arguments(trl.SFTConfig, tmp_path),
    train_dataset=loaded(folder, "kept", columns, tmp_path),
  )
  ids = trainer.train_dataset[0]["input_ids"]
  assert "4 5 6" in trainer.processing_class.decode(ids)
  assert trainer.train().training_loss > 0


def test_trl_trains_on_the_preferences(folder, tmp_path):
  trl = pytest.importorskip("trl", reason="needs torch and trl")
  columns = ["prompt", "chosen", "rejected"]
  trainer = trl.DPOTrainer(
    str(TEACHER),
    args=trl_arguments(trl.DPOConfig, tmp_path),
    train_dataset=loaded(folder, "preferences", columns, tmp_path),
  )
  assert trainer.train().training_loss > 0
