"""The whole run, small: four arms on the bundled pair; and bad input before any compute.

Long, because its tests share one finished run.
"""

import collections
import contextlib
import dataclasses
import functools
import itertools
import json
import math
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from safetensors.numpy import save_file

from configs import quickstart
from gen_ssd import checks
from gen_ssd import collecting
from gen_ssd import config as config_lib
from gen_ssd import errors
from gen_ssd import inputs
from gen_ssd import mesh
from gen_ssd import stages
from gen_ssd import students
from gen_ssd import workdir as workdir_lib
from gen_ssd.collect import loop
from gen_ssd.collect import posthoc
from gen_ssd.collect import writer as writer_lib
from gen_ssd.engine import step as step_lib
from gen_ssd.models import architecture
from gen_ssd.models import attention
from gen_ssd.models import decoder
from gen_ssd.models import hf
from gen_ssd.models import tokenization
from gen_ssd.problems import answers
from gen_ssd.problems import bundled
from gen_ssd.report import results
from gen_ssd.report import statistics
from gen_ssd.training import objectives
from gen_ssd.training import packing
from tests import tiny

pytestmark = pytest.mark.usefixtures("shared_programs")

ROOT = pathlib.Path(__file__).parent.parent


def small(**changes):
  c = quickstart.get_config()
  c.problems.update(train=12, cold_start=16, held_out=6, test=10)
  c.select.update(slots=16, shard_rounds=4)
  c.cold_start.update(slots=16, shard_rounds=4)
  c.warm_up.update(steps=4, batch_size=4, save_every=2, warmup_steps=4)
  c.train.update(steps=4, batch_size=4, save_every=2, warmup_steps=4)
  c.evaluate.update(slots=16)
  c.seeds = 2
  for path, value in changes.items():
    *folders, name = path.split("__")
    node = c
    for folder in folders:
      node = node[folder]
    node[name] = value
  return config_lib.parse(c)


def run(config, workdir):
  stages.run(config, workdir, jax.devices()[:1])


def products(workdir):
  """What a run leaves for its user, timestamps and checkpoints apart."""
  return {
    str(p.relative_to(workdir)): p.read_bytes()
    for p in sorted(workdir.rglob("*"))
    if p.is_file()
    and p.suffix in (".json", ".jsonl", ".safetensors", ".parquet")
    and "checkpoints" not in p.parts
  }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("run")
  run(small(), workdir)
  return workdir


def test_a_run_ends_in_results_and_a_page(finished):
  found = json.loads((finished / "results.json").read_text())
  assert set(found["arms"]) == {"standard_kd", "random", "posthoc", "gen_ssd"}
  for row in found["arms"].values():
    assert {"accuracy", "ci", "n", "mean_tokens", "student_nll", "kept", "teacher_tokens"} <= set(
      row
    )
    assert row["n"] == 10 and row["ci"][0] <= row["accuracy"] <= row["ci"][1]
    assert 0 < row["kept"] <= row["problems"] == 12
  assert (
    found["arms"]["posthoc"]["teacher_tokens"] > 2 * found["arms"]["standard_kd"]["teacher_tokens"]
  )
  assert (finished / "report.html").stat().st_size > 10_000
  for name, row in found["arms"].items():
    first, second = (
      finished / "arms" / name / f"seed-{i}/student/model.safetensors" for i in (0, 1)
    )
    assert first.read_bytes() != second.read_bytes()
    assert len(row["seeds"]) == 2 and sum(row["seeds"]) / 2 == pytest.approx(row["accuracy"])


def test_students_read_the_right_answers_of_the_teacher_to_test_problems(finished):
  found = json.loads((finished / "results.json").read_text())
  teacher = workdir_lib.finished_rows(finished / "models" / "teacher" / "answers")
  right = {r["uuid"] for r in teacher if r["verdict"] == "right"}
  students = {name: row for name, row in found["models"].items() if name != "teacher"} | found[
    "arms"
  ]
  assert len(right) > 5 and "held_out_nll" not in found["models"]["teacher"]
  for row in students.values():
    low, high = row["held_out_nll"]["ci"]
    assert row["held_out_nll"]["n"] == len(right) and 0 < low < row["held_out_nll"]["value"] < high
  file = finished / "models" / "base" / "held_out.json"
  nlls = json.loads(file.read_text())
  assert nlls.keys() == right
  assert students["base"]["held_out_nll"]["value"] == pytest.approx(sum(nlls.values()) / len(nlls))
  assert students["cold_start"]["held_out_nll"]["value"] < students["base"]["held_out_nll"]["value"]
  assert "held-out nll" in (finished / "report.html").read_text()


def test_students_are_measured_by_instruments(finished):
  found = json.loads((finished / "results.json").read_text())
  samples = workdir_lib.finished_rows(finished / "models" / "teacher" / "samples")
  held_out = inputs.problems(small(), "cold_start")[:6]
  assert len(samples) == 4 * 6 and {r["uuid"] for r in samples} == {p.uuid for p in held_out}
  assert "kl_own" not in found["models"]["teacher"]
  assert sum(found["models"]["teacher"]["ways"]["answers"][w] for w in bundled.WAYS) > 0.9
  for name, row in found["arms"].items():
    asked = {p.uuid for p in inputs.problems(small(), "test")}
    for i in (0, 1):
      file = finished / "arms" / name / f"seed-{i}" / "instruments.json"
      figures = json.loads(file.read_text())
      assert figures["kl_own"].keys() == figures["own_entropy"].keys() == asked
      assert all(x > 0 for f in ("kl_own", "kl_data") for x in figures[f].values())
    assert row["kl_data"]["n"] == row["held_out_nll"]["n"] and row["own_entropy"]["value"] > 0
    assert row["ways"]["kept"]["steps"] > row["kept"]
  text = (finished / "report.html").read_text()
  assert "KL(S‖T)" in text and "own entropy" in text


def test_wrong_minus_right_is_the_nll_of_wrong_traces_minus_that_of_right_ones(finished):
  problems = {}
  for r in workdir_lib.finished_rows(finished / "models" / "teacher" / "samples"):
    problems.setdefault(r["uuid"], {"right": [], "wrong": []})[r["verdict"]].append(r)
  both = {uuid: found for uuid, found in problems.items() if all(found.values())}
  figures = json.loads((finished / "models" / "base" / "instruments.json").read_text())
  assert figures["wrong_minus_right"].keys() == both.keys() and both
  mesh.start(devices=jax.devices()[:1])
  student, _ = inputs.load(small(), "student")
  for uuid, found in both.items():
    right, wrong = (
      posthoc.mean_nlls(student, inputs.training_pairs(small(), rows), batch=4)
      for rows in (found["right"], found["wrong"])
    )
    difference = sum(wrong) / len(wrong) - sum(right) / len(right)
    assert figures["wrong_minus_right"][uuid] == pytest.approx(difference, abs=1e-4)


@pytest.mark.parametrize(
  "name, text", [("held_out", "[1]"), ("held_out", '{"a": "b"}'), ("instruments", '{"kl_own": 1}')]
)
def test_damaged_figures_are_refused_by_name(finished, tmp_path, name, text):
  shutil.copytree(finished, tmp_path / "run")
  file = tmp_path / "run" / "models" / "base" / f"{name}.json"
  file.write_text(text)
  with pytest.raises(errors.UserError, match=rf"{name}.json is damaged .*: remove it and evaluate"):
    results.write(tmp_path / "run", small(), {"": 10}, 10, 12)


def test_a_workdir_explains_every_file_and_folder(finished):
  text = (finished / "README.md").read_text()
  named = re.findall(r"^\| `(\S+?)/?` \|", text, re.M)
  assert len(named) > 10
  for pattern in named:
    assert list(finished.glob(pattern)), pattern
  for path in finished.rglob("*"):  # every file is one of these, or inside one of these folders
    inside = [p.relative_to(finished) for p in (path, *path.parents) if p.is_relative_to(finished)]
    if path.is_file() and path.name != "README.md":
      assert any(p.match(pattern) for p in inside for pattern in named), path


def test_several_tests_in_one_run(finished, tmp_path, capsys):
  workdir = tmp_path / "run"
  shutil.copytree(finished, workdir)
  shared = bundled.problems("test", 4)
  (tmp_path / "p.jsonl").write_text(
    "".join(json.dumps({"problem": p.problem, "answer": p.answer}) + "\n" for p in shared)
  )
  sampled = dict(source=str(tmp_path / "p.jsonl"), samples=3, temperature=0.7, max_tokens=16)
  stages.evaluate(
    small(tests={"greedy": dict(source="bundled", limit=5), "sampled": sampled}, problems__seed=0),
    workdir,
  )
  found = json.loads((workdir / "results.json").read_text())
  assert [found["tests"][t]["arms"]["random"]["n"] for t in ("greedy", "sampled")] == [5, 4]
  assert found["arms"]["random"]["n"] == 5  # over both: the file's four are the other's first four
  assert found["paired"].keys() == found["tests"]["greedy"]["paired"].keys() and found["paired"]
  rows = workdir_lib.finished_rows(workdir / "arms" / "random" / "seed-0" / "answers-sampled")
  assert len(rows) == 4 * 3 and {r["attempt"] for r in rows} == {0, 1, 2}
  assert max(r["num_tokens"] for r in rows) <= 16
  assert len({tuple(r["ids"]) for r in rows}) > 4  # sampled, not greedy
  printed = capsys.readouterr().out
  assert all(f"{title}\narm " in printed for title in ("greedy", "sampled", "all tests"))


def test_a_file_gives_the_cold_start_its_part_and_training_the_rest(tmp_path):
  lines = [
    json.dumps({"problem": p.problem, "answer": p.answer}) + "\n"
    for p in bundled.problems("train", 40)
  ]
  (tmp_path / "p.jsonl").write_text("".join(lines))
  config = small(
    problems__source=str(tmp_path / "p.jsonl"), problems__test_source="bundled", problems__train=0
  )
  checks.check(config)
  cold, train = ({p.uuid for p in inputs.problems(config, s)} for s in ("cold_start", "train"))
  assert (len(cold), len(train)) == (16, 24) and not cold & train
  with pytest.raises(ValueError, match="problems.train is 30: the source has only 24"):
    checks.check(
      small(
        problems__source=str(tmp_path / "p.jsonl"),
        problems__train=30,
        problems__test_source="bundled",
      )
    )


def test_whole_traces_are_collected_once_for_all_who_choose_among_them(finished, tmp_path):
  trace = dict(granularity="trace", threshold="off", k=3)
  config = small(
    stages=("cold_start", "collect"),
    select__k=2,
    arms={
      "rejection": dict(scorer="random", **trace),
      "shortest": dict(scorer="shortest", **trace),
      "morsd": dict(scorer="morsd", **trace),
      "local": dict(scorer="local", context=1, **trace),
      "own": dict(),
      "by_base": dict(chooser="base"),
      "base_late": dict(chooser="base", **trace),
    },
  )
  shutil.copytree(finished / "cold_start" / "student", tmp_path / "cold_start" / "student")
  run(config, tmp_path)
  rows = {name: workdir_lib.arm_rows(tmp_path, name) for name, _ in config.arms}
  assert len(list((tmp_path / "traces").iterdir())) == 4
  assert rows["rejection"][0] == rows["shortest"][0] and len(rows["shortest"][0]) == 36
  right = [r for r in rows["shortest"][0] if r["verdict"] == "right"]
  for name in ("rejection", "shortest", "morsd", "local"):
    kept = rows[name][1]
    assert [r["uuid"] for r in kept] == sorted({r["uuid"] for r in right})
    assert all(r in right for r in kept)
  for r in rows["shortest"][1]:
    assert r["num_tokens"] == min(x["num_tokens"] for x in right if x["uuid"] == r["uuid"])
  same = lambda a, b, what: [r[what] for r in rows[a][0]] == [r[what] for r in rows[b][0]]
  assert same("base_late", "shortest", "ids") and not same("base_late", "shortest", "student_nll")
  assert not same("by_base", "own", "ids")
  late = statistics.collected(*rows["shortest"], 12, whole=True)
  assert late["coverage"] == len(rows["shortest"][1]) / 12
  assert late["kl_bound"] == pytest.approx(math.log(3) - 2 / 3)
  early = statistics.collected(*rows["own"], 12)
  assert early["kl_bound"] == pytest.approx(
    (math.log(2) - 1 / 2) * sum(len(r["chunks"]) for r in rows["own"][1]) / len(rows["own"][1])
  )
  assert early["mean_kept_tokens"] == early["kept_tokens"] / early["kept"]


def test_the_same_command_again_computes_nothing_and_changes_nothing(finished, monkeypatch):
  before = products(finished)
  monkeypatch.setattr(step_lib, "select_step", None)
  monkeypatch.setattr(inputs, "load", None)  # nor is a model read
  run(small(), finished)
  assert products(finished) == before


def test_killed_between_and_inside_stages_it_ends_in_the_same_products(
  finished, tmp_path, monkeypatch
):

  class Killed(Exception):
    pass

  from gen_ssd.training import train

  for module, name in ((step_lib, "select_step"), (train, "train_step")):
    real = getattr(module, name)
    left = [9]

    def step(*args, real=real, left=left, **kwargs):
      left[0] -= 1
      if not left[0]:
        raise Killed
      return real(*args, **kwargs)

    monkeypatch.setattr(module, name, step)
    with pytest.raises(Killed):
      run(small(), tmp_path)
    monkeypatch.setattr(module, name, real)
  run(small(), tmp_path)
  mine, theirs = products(tmp_path), products(finished)
  assert mine.keys() == theirs.keys()
  assert [n for n in mine if mine[n] != theirs[n]] == []


def test_a_student_that_is_refreshed_learns_from_what_was_kept_also_when_killed(
  finished, tmp_path, monkeypatch
):
  config = small(stages=("cold_start", "collect"), select__refresh=5, arms={"fresh": {}})
  keys = lambda rows: [(r["uuid"], r["attempt"]) for r in rows]
  trained, choosers, rounds = [], [], []

  class Killed(Exception):
    pass

  def patch(module, name, seen):
    """Calls of the function go through `seen` first."""
    real = getattr(module, name)

    def call(*args, **kwargs):
      seen(*args, **kwargs)
      return real(*args, **kwargs)

    monkeypatch.setattr(module, name, call)
    return lambda: monkeypatch.setattr(module, name, real)

  for name in ("whole", "killed"):
    shutil.copytree(finished / "cold_start", tmp_path / name / "cold_start")
  undo = [
    patch(inputs, "training_pairs", lambda config, rows, *a, **k: trained.append(keys(rows))),
    patch(
      collecting,
      "collect",
      lambda config, select, folder, problems, models, title, *threshold: (
        title == "calibrate" or choosers.append((len(problems), models.chooser))
      ),
    ),
    patch(step_lib, "select_step", lambda *a, **k: rounds.append(1)),
  ]
  run(config, tmp_path / "whole")
  for back in undo:
    back()
  home = workdir_lib.collection(tmp_path / "whole", "fresh")
  assert choosers == [
    (5, str(tmp_path / "whole" / "cold_start" / "student")),
    (10, str(home / "refresh-5" / "student")),
    (12, str(home / "refresh-10" / "student")),
  ]
  assert all(len(list((home / f"refresh-{n}").glob("calibration-*"))) == 1 for n in (5, 10))
  order = [p.uuid for p in inputs.problems(config, "train")]
  cold = keys(collecting.cold_rows(config, tmp_path / "whole"))
  rows, kept = workdir_lib.arm_rows(tmp_path / "whole", "fresh")
  some = [[k for k in keys(kept) if k[0] in order[:n]] for n in (5, 10)]
  assert cold and trained == [cold, some[0], cold, some[1]]
  assert 0 < len(some[0]) < len(some[1])
  plain, rows = (
    {r["uuid"]: r for r in x} for x in (workdir_lib.arm_rows(finished, "gen_ssd")[0], rows)
  )
  first = lambda found: [found[u]["chunks"][:1] for u in order]
  assert [rows[u]["ids"] for u in order[:5]] == [plain[u]["ids"] for u in order[:5]]
  assert first(rows)[:5] == first(plain)[:5]
  assert all(x != y for x, y in zip(first(rows)[5:], first(plain)[5:]))

  from gen_ssd.training import train

  for module, name, at in (
    (train, "train_step", 3),
    (step_lib, "select_step", len(rounds) // 3),
    (train, "train_step", 2),
  ):
    left = [at]

    def step(*args, left=left, **kwargs):
      left[0] -= 1
      if not left[0]:
        raise Killed

    back = patch(module, name, step)
    with pytest.raises(Killed):
      run(config, tmp_path / "killed")
    back()
  run(config, tmp_path / "killed")
  mine, theirs = products(tmp_path / "killed"), products(tmp_path / "whole")
  assert mine.keys() == theirs.keys()
  assert [n for n in mine if mine[n] != theirs[n]] == []


def test_a_damaged_trace_is_written_again_by_the_student_that_wrote_it(finished, tmp_path, capsys):
  config = small(stages=("cold_start", "collect"), select__refresh=5, arms={"fresh": {}})
  shutil.copytree(finished / "cold_start", tmp_path / "cold_start")
  run(config, tmp_path)
  found = lambda: {r["uuid"]: r for r in workdir_lib.arm_rows(tmp_path, "fresh")[0]}
  before, uuid = found(), inputs.problems(config, "train")[0].uuid  # of the first of three parts
  for shard in workdir_lib.collection(tmp_path, "fresh").glob("traces-*.jsonl"):
    lines = shard.read_text().splitlines()
    shard.write_text("".join(f"{'{' if uuid in line else line}\n" for line in lines))
  run(config, tmp_path)
  assert "is damaged in 1 line(s)" in capsys.readouterr().err
  after = found()
  assert (
    after[uuid]["ids"] == before[uuid]["ids"]
  )  # it may have been in another slot: rounding differs
  np.testing.assert_allclose(after[uuid]["student_nlls"], before[uuid]["student_nlls"], atol=1e-3)
  assert {**after, uuid: 0} == {**before, uuid: 0}


def test_arms_that_name_arms_start_from_choose_and_write_with_their_students(finished, tmp_path):
  plain = dict(k=1, threshold="off")
  arms = {
    "after": dict(plain, train=dict(start="sft", steps=1, warmup_steps=0, learning_rate=1e-30)),
    "by_sft": dict(k=2, chooser="sft"),
    "by_base": dict(k=2, chooser="base", threshold="off"),
    "own": dict(plain, writer="sft", keep="all"),
    "sft": plain,
  }
  config = small(stages=("cold_start", "collect", "train"), arms=arms)
  for name in ("whole", "killed"):
    shutil.copytree(finished / "cold_start", tmp_path / name / "cold_start")
  run(config, tmp_path / "whole")
  home = tmp_path / "whole" / "arms"
  weights = lambda name, i: (home / name / f"seed-{i}/student/model.safetensors").read_bytes()
  for i in (0, 1):  # a learning rate that changes nothing
    assert weights("after", i) == weights("sft", i) != weights("own", i)
  assert list((home / "sft" / "seed-0").glob("calibration-*"))  # of the threshold of by_sft
  rows = {name: workdir_lib.arm_rows(tmp_path / "whole", name)[0] for name in arms}
  drawn = lambda name: [r["chunks"] for r in rows[name]]
  assert rows["after"] == rows["sft"] and drawn("by_sft") != drawn("by_base")
  student = str(home / "sft" / "seed-0" / "student")
  model, tokenizer = inputs.load(config, "student", student)
  ((prompt, response),) = inputs.training_pairs(config, rows["own"][:1], writer="sft")
  ids = jnp.array([[*prompt, *response]])
  attend = functools.partial(
    attention.attend_packed, segments=jnp.ones_like(ids), block=ids.shape[1]
  )
  hidden = decoder.forward_packed(model, ids, jnp.arange(ids.shape[1])[None], attend)
  logits = decoder.logits(model, hidden)[:, 0, :-1, : len(tokenizer)]  # it writes what it knows
  nlls = objectives.token_nll(logits, ids[:, 1:])[0, len(prompt) - 1 :]
  np.testing.assert_allclose(rows["own"][0]["teacher_nlls"], nlls, atol=1e-3)


def test_an_arm_goes_on_from_the_traces_of_a_student_also_when_killed(
  finished, tmp_path, monkeypatch
):
  plain = dict(k=1, threshold="off")
  arms = {
    "sft": plain,
    "own": dict(plain, writer="sft", keep="all", attempts=2),
    "mixed": dict(k=2, after="own", delimiters=(".",), keep="all", train=dict(start="sft")),
  }
  config = small(stages=("cold_start", "collect", "train"), arms=arms, seeds=1)
  for name in ("whole", "killed"):
    shutil.copytree(finished / "cold_start", tmp_path / name / "cold_start")
  run(config, tmp_path / "whole")

  class Killed(Exception):
    pass

  real, left = step_lib.select_step, [6]  # a fence is every four rounds

  def step(*args, round, **kwargs):
    left[0] -= round.k == 2
    if not left[0]:
      raise Killed
    return real(*args, round=round, **kwargs)

  monkeypatch.setattr(step_lib, "select_step", step)
  with pytest.raises(Killed):
    run(config, tmp_path / "killed")
  monkeypatch.setattr(step_lib, "select_step", real)
  run(config, tmp_path / "killed")
  mine, theirs = products(tmp_path / "killed"), products(tmp_path / "whole")
  assert mine.keys() == theirs.keys() and all(mine[x] == theirs[x] for x in mine)
  rows, kept = workdir_lib.arm_rows(tmp_path / "whole", "mixed")
  own, _ = workdir_lib.arm_rows(tmp_path / "whole", "own")
  key = lambda r: (r["uuid"], r["attempt"])
  sources = {key(r): r["ids"] for r in own}
  assert sources.keys() == {key(r) for r in rows} and len(rows) == 2 * 12
  tokenizer = inputs.tokenizer(config.teacher)
  for r in rows:
    n, old = r["given_tokens"], sources[key(r)]
    assert r["ids"][:n] == old[:n] and n < len(old)
    assert not n or tokenizer.decode(old[:n]).endswith(".")
    assert len(r["teacher_nlls"]) == len(r["student_nlls"]) == len(r["ids"]) - n
  assert sum(r["given_tokens"] for r in rows) > len(rows)
  pairs = inputs.training_pairs(config, kept)  # the given part is learned, too
  train = config.train
  learned, masked = (
    students._weighted(config, kept, dataclasses.replace(train, given=given), "teacher")
    for given in ("learn", "mask")
  )
  assert learned.pairs == pairs
  for r, both, (prompt, response) in zip(kept, pairs, masked.pairs, strict=True):
    assert [*prompt, *response] == [*both[0], *both[1]]  # the same text is read
    assert len(response) == r["num_tokens"] - r["given_tokens"] <= len(both[1])
  signed = dataclasses.replace(train, given="mask", credit="support")
  found = students._weighted(config, kept, signed, "teacher")
  assert [*map(len, found.columns["weights"])] == [len(response) for _, response in found.pairs]


OWN = {  # students that write while they learn
  "gkd": dict(samples=0.5, every=3, answers=2, terms={"kd": dict(objective="jsd")}),
  "grpo": dict(samples=1.0, every=2, asked=8, answers=4, credit="advantage"),
  "opd": dict(samples=1.0, every=2, asked=6, credit="gap"),
}


@pytest.fixture(scope="module")
def own(finished, tmp_path_factory):
  """(config, workdir) of a run whose students write while they learn."""
  arms = {name: dict(k=1, threshold="off", train=train) for name, train in OWN.items()}
  config = small(stages=("cold_start", "collect", "train"), arms=arms, seeds=1)
  workdir = tmp_path_factory.mktemp("own")
  shutil.copytree(finished / "cold_start", workdir / "cold_start")
  run(config, workdir)
  return config, workdir


def test_a_student_learns_from_what_it_writes_itself(own):
  config, workdir = own
  order = [p.uuid for p in inputs.problems(config, "train")]
  for name, numbers in (("gkd", (0, 1)), ("grpo", (0, 1)), ("opd", (0, 1))):
    home = workdir / "arms" / name / "seed-0"
    rounds = sorted((home / "rounds").iterdir())
    assert [int(r.name) for r in rounds] == [*numbers]
    assert not list(home.glob("rounds/*/student"))  # weights of a round go when it is written
    assert len(list((home / "checkpoints").glob("round-*"))) == 1
    rows = [workdir_lib.finished_rows(r / "traces") for r in rounds]
    asked, answers = OWN[name].get("asked", 12), OWN[name].get("answers", 1)
    for number, some in enumerate(rows):
      turn = [order[i % 12] for i in range(number * asked, (number + 1) * asked)]
      assert sorted((r["uuid"], r["attempt"]) for r in some) == sorted(
        (uuid, a) for uuid in turn for a in range(answers)
      )
    assert {r["text"] for r in rows[0]} != {r["text"] for r in rows[1]}
    lines = (home / "checkpoints" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 4
  # What the last rounds were trained on.
  arms = dict(config.arms)
  for name in OWN:
    home = workdir / "arms" / name / "seed-0"
    train = arms[name].train
    teacher = inputs.load(config, "teacher", **inputs.ALONE)[0] if name == "opd" else None
    rows = students._written(config, arms[name].select, train, home, 1, None, teacher)
    raw = workdir_lib.finished_rows(home / "rounds" / "0001" / "traces")
    if name == "gkd":
      assert len(rows) == len(raw) and not rows.columns
    else:
      for weights, (_, response) in zip(rows.columns["weights"], rows.pairs):
        assert len(weights) == len(response)
    if name == "opd":  # the teacher's log-probability less the student's
      pairs = inputs.training_pairs(config, raw, writer="student")
      nlls = posthoc.nlls(teacher, pairs, batch=4)
      places = [rows.pairs.index(pair) for pair in pairs]
      for i, r, nll in zip(places, raw, nlls):
        want = np.array(r["teacher_nlls"]) - nll
        np.testing.assert_allclose(rows.columns["weights"][i], want, atol=1e-4)


def test_killed_in_a_round_it_ends_in_the_same_products(own, tmp_path, monkeypatch):
  from gen_ssd.training import train

  config, whole = own

  class Killed(Exception):
    pass

  shutil.copytree(whole / "cold_start", tmp_path / "run" / "cold_start")
  kills = []
  for module, name, at in (
    (train, "train_step", 3),
    (step_lib, "select_step", 9),
    (train, "train_step", 2),
    (students.export, "save", 2),
    (train, "train_step", 3),
    (step_lib, "select_step", 2),
  ):
    real, left = getattr(module, name), [at]

    def call(*args, real=real, left=left, **kwargs):
      left[0] -= 1
      if not left[0]:
        kills.append(1)
        raise Killed
      return real(*args, **kwargs)

    monkeypatch.setattr(module, name, call)
    with contextlib.suppress(Killed):
      run(config, tmp_path / "run")
    monkeypatch.setattr(module, name, real)
  assert len(kills) >= 4
  run(config, tmp_path / "run")
  mine, theirs = products(tmp_path / "run"), products(whole)
  assert mine.keys() == theirs.keys()
  assert [n for n in mine if mine[n] != theirs[n]] == []


def test_what_an_arm_learns_is_weighted_by_its_credit(finished, monkeypatch):
  row = workdir_lib.arm_rows(finished, "gen_ssd")[1][0]

  def made(uuid, attempt, verdict, n):
    changed = dict(uuid=uuid, attempt=attempt, verdict=verdict, ids=row["ids"][:n], num_tokens=n)
    return {**row, **changed}

  some = (("a", 0, "right", 8), ("a", 1, "wrong", 4), ("b", 0, "right", 8), ("b", 1, "right", 6))
  rows = [made(*each) for each in some]
  monkeypatch.setattr(workdir_lib, "arm_rows", lambda *_: (rows, rows))
  arms = {
    "sft": dict(k=1, threshold="off"),
    "redi": dict(
      k=1, threshold="off", keep="all", attempts=2, train=dict(credit="signed", alpha=0.5)
    ),
  }
  config = small(arms=arms)
  found = {}
  for name, arm in config.arms:
    [(found[name], share)] = students.examples(config, finished, name, arm)
    assert share == 1
  assert len(found["sft"]) == 4 and not found["sft"].columns  # the compiled update is that of SFT
  assert found["redi"].pairs == found["sft"].pairs[:2]  # the others pull on nothing
  (right, wrong) = found["redi"].columns["weights"]
  np.testing.assert_allclose([right, right], [[6 / 8] * 8] * 2)
  np.testing.assert_allclose(wrong, [-0.5 * 6 / 4] * 4)


def test_traces_of_another_arm_are_mixed_in(finished):
  mix = dict(also="random", also_share=0.75)
  config = small(arms={"random": dict(selector="random"), "gen_ssd": dict(train=mix)})
  find = lambda name: students.examples(config, finished, name, dict(config.arms)[name])
  [(own, less), (other, more)] = find("gen_ssd")
  assert (less, more) == (0.25, 0.75)
  [(random, _)] = find("random")
  assert other.pairs == random.pairs != own.pairs
  taken = packing.batches(packing.Mixed(find("gen_ssd")), batch_size=4, length=128, seed=0)
  known = {name: {tuple(p + r) for p, r in rows.pairs} for name, rows in
           (("own", own), ("other", other))}  # fmt: skip
  count = collections.Counter()
  for batch in itertools.islice(taken, 20):
    for tokens, segments in zip(batch["tokens"], batch["segments"]):
      for s in range(1, segments.max() + 1):
        text = tuple(tokens[segments == s].tolist())
        count.update(name for name, texts in known.items() if text in texts)
  share = count["other"] / count.total()
  assert 0.65 < share < 0.85, count


def test_students_start_from_and_learn_what_the_config_says(finished, tmp_path, monkeypatch):
  from gen_ssd.training import train

  mesh.start(devices=jax.devices()[:1])
  seen, found = [], []
  fit = lambda net, source, *a, **k: seen.append(source.parts[0][0].pairs) or net
  monkeypatch.setattr(train, "fit", fit)
  for i, changes in enumerate(({}, dict(train__start="cold_start"), dict(train__cold_traces=True))):
    workdir = tmp_path / str(i)
    shutil.copytree(finished, workdir, ignore=shutil.ignore_patterns("seed-*"))
    config = small(stages=("train",), seeds=1, arms={"gen_ssd": {}}, **changes)
    stages.train(config, workdir)
    found.append((workdir / "arms/gen_ssd/seed-0/student/model.safetensors").read_bytes())
  warm = (finished / "cold_start/student/model.safetensors").read_bytes()
  assert found[0] == found[2] != found[1] == warm
  cold = collecting.cold_rows(config, finished)
  assert seen[0] == seen[1] == seen[2][len(cold) :] and cold
  assert [pair[1][:-1] for pair in seen[2][: len(cold)]] == [r["ids"][:-1] for r in cold]
  prefix = {**cold[0], "ids": cold[0]["ids"][:5], "stop": "pruned"}
  rows = packing.Rows(inputs.training_pairs(config, [prefix, cold[0]]), 128)
  students.train(config, [(rows, 1.0)], config.train, tmp_path / "prefix", title="prefix")
  end = tokenization.load_tokenizer(hf.locate("bundled/student")).eos_token_id
  assert [pair[1] for pair in seen[3]] == [prefix["ids"], cold[0]["ids"][:-1] + [end]]
  shutil.rmtree(workdir / "cold_start" / "traces")
  shutil.rmtree(workdir / "arms/gen_ssd/seed-0")
  with pytest.raises(ValueError, match="holds no traces of the cold start"):
    stages.train(config, workdir)


def test_another_config_may_not_use_the_workdir(finished):
  with pytest.raises(
    ValueError, match=r"belongs to another config: arms.gen_ssd.k is 4 there and 2"
  ):
    tiny.claim(finished, small(select__k=2))


def test_weights_replaced_under_the_same_path_are_refused(tmp_path):
  student = tmp_path / "student"
  shutil.copytree(hf.locate("bundled/student"), student)
  config = small(student__path=str(student))
  claim = lambda: tiny.claim(tmp_path / "run", config, inputs.identities(config))
  claim()
  shutil.copytree(student, tmp_path / "copy", copy_function=shutil.copyfile)
  shutil.rmtree(student)
  shutil.move(tmp_path / "copy", student)
  claim()  # another copy of the same files is the same model
  file = student / "model.safetensors"
  found = load_file(file)
  name = "model.layers.0.self_attn.q_proj.weight"
  found[name] = found[name].copy()
  found[name].reshape(-1).view(np.uint8)[found[name].nbytes // 2] ^= 1  # as training changes all
  save_file(found, file)
  with pytest.raises(
    ValueError, match="other files: what student.path names has the hash '[0-9a-f]{16}'"
  ):
    claim()


@pytest.mark.parametrize(
  "field",
  [
    "warm_up.batch_size",
    "train.batch_size",
    "arms.gen_ssd.slots",
    "evaluate.slots",
    "cold_start.slots",
  ],
)
def test_rows_that_do_not_divide_among_the_devices_are_refused(field, tmp_path):
  even = {f"{n}__batch_size": 8 for n in ("warm_up", "train")}
  even |= {f"{n}__slots": 8 for n in ("select", "cold_start", "evaluate")}
  where = field.replace("arms.gen_ssd", "select").replace(".", "__")
  with stages.begun(small(**even), tmp_path, jax.devices()[:4]):
    pass
  with pytest.raises(ValueError, match=rf"{field.replace('gen_ssd', '.*')} is 6: .* multiple of 4"):
    stages.run(small(**{**even, where: 6}), tmp_path, jax.devices()[:4])


@pytest.mark.parametrize("field", ["arms.gen_ssd.slots", "evaluate.slots", "train.batch_size"])
def test_a_student_is_on_all_devices_also_where_the_teacher_is_split(field, tmp_path):
  even = {f"{n}__batch_size": 8 for n in ("warm_up", "train")}
  even |= {f"{n}__slots": 8 for n in ("select", "cold_start", "evaluate")}
  even |= {"model_parallel": 2, "cold_start__slots": 6}  # the teacher alone
  where = field.replace("arms.gen_ssd", "select").replace(".", "__")
  with stages.begun(small(**even), tmp_path, jax.devices()[:4]):
    pass
  with pytest.raises(ValueError, match=rf"{field.replace('gen_ssd', '.*')} is 6: .* multiple of 4"):
    stages.run(small(**{**even, where: 6}), tmp_path, jax.devices()[:4])


def test_a_student_that_is_split_shares_its_slots_like_the_teacher(tmp_path):
  sizes = {f"{n}__slots": 6 for n in ("select", "cold_start", "evaluate")}
  sizes |= {f"{n}__batch_size": 8 for n in ("warm_up", "train")}
  split = small(**sizes, model_parallel=2, split_student=True)
  with stages.begun(split, tmp_path, jax.devices()[:4]):  # two groups of two devices
    layout = inputs.layout(split, "student")
    assert layout.tensor_axis == "model" and layout.batch_axes == "data"
  with pytest.raises(ValueError, match=r"slots is 6: .* multiple of 4"):
    stages.run(split, tmp_path / "more", jax.devices()[:8])  # four groups


def shared_sequences(**changes):
  sizes = {f"{n}__slots": 8 for n in ("select", "cold_start", "evaluate")}
  sizes |= {f"{n}__batch_size": 6 for n in ("warm_up", "train")}
  return small(**sizes | dict(model_parallel=2, train__split_sequences=True) | changes)


def test_sequences_that_devices_share_need_fewer_rows(tmp_path):
  both = shared_sequences(warm_up__split_sequences=True)
  with stages.begun(both, tmp_path, jax.devices()[:4]):  # two groups of two devices
    pass
  with pytest.raises(ValueError, match=r"warm_up.batch_size is 6: .* multiple of 4"):
    stages.run(shared_sequences(), tmp_path / "some", jax.devices()[:4])
  with pytest.raises(ValueError, match=r"batch_size is 6: .* multiple of 4"):
    stages.run(both, tmp_path / "more", jax.devices()[:8])  # four groups


@pytest.mark.parametrize(
  "changes,says",
  [
    (dict(train__length=127, train__block=127), "train.length is 127: it must be a multiple of"),
    (dict(train__block=1), r"train.block is 1: it must be a multiple of model_parallel \(2\)"),
    (dict(stages=("pretrain",), train__batch_size=8), "False in the stage pretrain"),
  ],
)
def test_sequences_that_devices_cannot_share_are_refused(changes, says, tmp_path):
  config = shared_sequences(warm_up__batch_size=8, **changes)
  with pytest.raises(ValueError, match=says):
    stages.run(config, tmp_path, jax.devices()[:4])


def test_heads_that_devices_cannot_share_are_refused(tmp_path, monkeypatch):
  read = checks.hf.read_architecture
  odd = lambda path: dataclasses.replace(read(path), kv_heads=1, groups=3)
  mesh.start(2, jax.devices()[:4])
  monkeypatch.setattr(checks.hf, "read_architecture", odd)
  says = "train.split_sequences is True: it must be False: 2 devices cannot share 1 key-value heads"
  with pytest.raises(ValueError, match=says):
    checks._check_split_sequences(shared_sequences(), 2)


def test_a_thinking_part_without_an_end_is_refused():
  with pytest.raises(
    ValueError,
    match="arms.a.covers is 'thinking': the tokenizer of .*teacher has no "
    "single token </think>.*set it to everything",
  ):
    checks.check(small(arms={"a": dict(covers="thinking")}))


def test_a_prompt_longer_than_the_cache_is_refused(tmp_path):
  with pytest.raises(ValueError, match=r"select.prompt is 16: problem \w+ has \d+ prompt tokens"):
    checks.check(small(select__prompt=16))


def test_training_on_test_problems_is_refused(tmp_path):
  paths = {}
  for split, first in (("source", 0), ("cold_start_source", 20), ("test_source", 10)):
    paths[f"problems__{split}"] = str(tmp_path / f"{split}.jsonl")
    (tmp_path / f"{split}.jsonl").write_text(
      "".join(
        json.dumps({"problem": p.problem, "answer": p.answer}) + "\n"
        for p in bundled.problems("train", 40)[first : first + 16]
      )
    )
  with pytest.raises(ValueError, match="problems.test and problems.train share problem"):
    checks.check(small(**paths))


def test_students_answer_with_their_own_settings(tmp_path, monkeypatch):
  """Not with the teacher's dtype and unrolling."""
  config = small(student__dtype="bfloat16", student__unroll=False)
  assert config.teacher.dtype == "float32" and config.teacher.unroll
  loaded = []

  class Stop(Exception):
    pass

  def load(config, who, path):
    loaded.append((config, who, path))
    raise Stop

  monkeypatch.setattr(inputs, "load", load)
  select, problems = inputs.answering(config, config.evaluate), inputs.problems(config, "test")
  with pytest.raises(Stop):
    collecting.collect(
      config, select, tmp_path / "a", problems, collecting.Models(writer="student"), "evaluate"
    )
  assert loaded == [(config, "student", "student")]


@pytest.mark.parametrize("named", [True, False])
def test_a_test_problem_under_another_name_is_found(tmp_path, named):
  """Only one file has uuids, and there is a space too many."""
  problems = bundled.problems("train", 40)
  for file, some in (("train", problems[:30]), ("test", problems[29:])):
    uuid = (lambda p: {"uuid": f"mine-{p.uuid}"}) if named == (file == "train") else lambda p: {}
    lines = (
      {"problem": f"{p.problem} " if file == "test" else p.problem, "answer": p.answer, **uuid(p)}
      for p in some
    )
    (tmp_path / f"{file}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines))
  source = dict(source="train", test_source="test")
  source = {f"problems__{name}": str(tmp_path / f"{file}.jsonl") for name, file in source.items()}
  with pytest.raises(ValueError, match="problems.test and problems.\\w+ share problem"):
    checks.check(small(**source, problems__train=0, problems__test=0))


def test_problems_replaced_under_the_same_path_are_refused(tmp_path):
  file = tmp_path / "p.jsonl"
  rows = [{"problem": p.problem, "answer": p.answer} for p in bundled.problems("train", 40)]
  write = lambda: file.write_text("".join(json.dumps(r) + "\n" for r in rows))
  write()
  config = small(problems__source=str(file), problems__test_source="bundled", problems__train=0)
  claim = lambda: tiny.claim(tmp_path / "run", config, inputs.identities(config))
  claim()
  claim()
  rows[7]["answer"] = "12345"
  write()
  with pytest.raises(ValueError, match=r"other files: what problems.\w+ names has the hash"):
    claim()


@pytest.mark.parametrize("who", ["teacher", "student"])
def test_a_chat_template_replaced_under_the_same_path_is_refused(who, tmp_path):
  file = tmp_path / "t.jinja"
  shutil.copy(pathlib.Path(hf.locate("bundled/student"), "chat_template.jinja"), file)
  config = small(**{f"{who}__chat_template": str(file)})
  claim = lambda: tiny.claim(tmp_path / "run", config, inputs.identities(config))
  claim()
  claim()
  file.write_text(file.read_text() + "{# other #}")
  with pytest.raises(ValueError, match=f"what {who}.chat_template names has the hash"):
    claim()


def test_damaged_weights_are_refused(tmp_path):
  shutil.copytree(hf.locate("bundled/student"), tmp_path / "student")
  path = tmp_path / "student" / "model.safetensors"
  path.write_bytes(path.read_bytes()[:-1000])
  with pytest.raises(ValueError, match="model.safetensors: not a whole safetensors file"):
    checks.check(small(student__path=str(tmp_path / "student")))


def test_vocabularies_that_disagree_are_refused(tmp_path):
  shutil.copytree(hf.locate("bundled/student"), tmp_path / "student")
  path = tmp_path / "student" / "tokenizer.json"
  path.write_text(path.read_text().replace("▁Tom", "▁Tim"))
  with pytest.raises(ValueError, match="teacher '▁Tom', student '▁Tim'"):
    checks.check(small(student__path=str(tmp_path / "student")))


@pytest.mark.parametrize(
  "flag,says",
  [
    ("--config.select.kk=3", "kk"),
    ("--config.select.k=0", "select.k is 0: it must be at least 1"),
    ("--config.teacher.path=/nowhere", "/nowhere: there is no config.json"),
  ],
)
def test_the_command_says_what_is_wrong_in_one_message(flag, says, tmp_path):
  done = subprocess.run(
    [
      sys.executable,
      "-m",
      "gen_ssd.main",
      "--config=configs/quickstart.py",
      f"--workdir={tmp_path}",
      flag,
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode != 0 and says in done.stderr
  assert not list(tmp_path.iterdir())


def test_the_bundled_teacher_solves_nine_in_ten_test_problems(tmp_path):
  mesh.start(devices=jax.devices()[:1])
  path = hf.locate("bundled/teacher")
  net, tokenizer = inputs.load(small(), "teacher", path)
  assert architecture.parameters(net.arch) <= 3e6
  writer = writer_lib.Writer(
    teacher=decoder.unstacked(net),
    teacher_tokenizer=tokenizer,
    ends=tokenization.eos_ids(path, tokenizer),
  )
  greedy = config_lib.Select(k=1, slots=64, prompt=40, max_tokens=80, temperature=0.0)
  with answers.Grader() as grader:
    rows = loop.collect(
      writer, bundled.problems("test", 320, seed=3), greedy, tmp_path, grader=grader
    )
  assert sum(r["verdict"] == "right" for r in rows) >= 0.9 * len(rows)


def test_the_bundled_pair_is_ordinary_hugging_face(tmp_path):
  import transformers

  for who, most in (
    ("teacher", 3e6),
    ("student", 0.6e6),
    ("student_small", 0.1e6),
    ("student_large", 0.6e6),
  ):
    path = hf.locate(f"bundled/{who}")
    assert transformers.AutoConfig.from_pretrained(path).model_type == "qwen3"

    assert architecture.parameters(hf.read_architecture(path)) <= most
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    text = bundled.problems("test", 1)[0].problem
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
