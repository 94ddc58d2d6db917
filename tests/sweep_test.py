"""Sweeps: items and their names, what is done with them, and the study of RESULTS.md.

Runs are replaced by a program that only writes report.html; one small sweep is real.
"""

import json
import pathlib
import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree as xml

import jax
import pytest

from configs import study as study_config
from gen_ssd import config as config_lib
from gen_ssd import config_checks
from gen_ssd import config_files
from gen_ssd import stages
from gen_ssd import sweep
from gen_ssd.errors import UserError
from gen_ssd.report import comparison
from gen_ssd.report import examples
from tests import paths

pytestmark = pytest.mark.usefixtures("shared_programs")

ARMS = ("standard_kd", "standard_kd_all", "random", "posthoc", "gen_ssd")
SWEEPS = {
  "k": {"gen_ssd": [(2, "k=2", "gen_ssd"), (4, "arms", "gen_ssd")]},
  "not done": {"gen_ssd": [(1, "another", "gen_ssd")]},
}
STAND_IN = """
import pathlib, sys, time
flags = dict(x.lstrip("-").split("=", 1) for x in sys.argv[1:])
home = pathlib.Path(flags["workdir"])
home.mkdir(parents=True, exist_ok=True)
with open(home / "calls", "a") as file:
  file.write("called\\n")
if flags.get("config.select.k") == "7" and not (home.parent / "mended").exists():
  sys.exit("no luck with 7")
(home / "results.json").write_text("{}")
(home / "report.html").write_text("")
"""


@pytest.fixture
def mine(tmp_path):
  """Writes a config file with the body of sweep() and returns its path."""

  def write(body, more=""):
    path = tmp_path / "mine.py"
    path.write_text(
      "from configs import quickstart\nimport numpy as np\n"
      f"def get_config(arg=''):\n  return quickstart.get_config()\n{more}\n"
      f"def sweep():\n  {body}\n"
    )
    return str(path)

  return write


def names(path):
  return [item.name for item in sweep.items(path)]


# ---------------------------------------------------------------- items


def test_items_are_named_after_what_they_change(mine):
  path = mine(
    "yield from ({}, {'select.k': 8}, {'select.c': 16, 'select.prompt': 48}, ('own', {'seeds': 2}))"
  )
  want = ["base", "select.k=8", "select.c=16-select.prompt=48", "own"]
  assert names(path) == want


def test_names_are_folders_that_stay_apart(mine):
  values = [(".",), (",",), ("\n",), ("\t",), ("ä",), ("/", "/"), ("x" * 300,), ("x" * 301,)]
  found = names(mine(f"yield from ({{'select.delimiters': x}} for x in {values!r})"))
  assert len({*found}) == len(values)
  for name in found:
    assert pathlib.PurePath(name).name == name and len(name) <= 70
    assert name.isascii() and not {*name} & {*" /\\'()"}
  assert found == names(mine(f"yield from ({{'select.delimiters': x}} for x in {values!r})"))


@pytest.mark.parametrize(
  "field,value",
  [
    ("select.k", 8),
    ("select.temperature", 0.1 + 0.2),
    ("train.learning_rate", 1e-5),
    ("select.threshold", "off"),
    ("select.threshold", 1.5),
    ("teacher.unroll", False),
    ("problems.system", "Say \"it's\", $HOME; 'so' = `x`"),
    ("problems.system", ""),
    ("select.delimiters", ("\n\n", "a,b", "'\"")),
    ("select.delimiters", ()),
    ("arms.gen_ssd.scorer", "rsr"),
    ("arms.gen_ssd.k", 3),
  ],
)
def test_a_value_reaches_the_run_as_it_is_also_through_a_shell(mine, field, value):
  (item,) = sweep.items(mine(f"yield {{{field!r}: {value!r}}}"))
  line = sweep.show([item], pathlib.Path("a b"))
  name, _, command = line.split("\t")
  shown = subprocess.run(
    ["bash", "-c", command.replace("python -m gen_ssd.main", "printf '%s\\n'", 1)],
    capture_output=True,
    text=True,
  ).stdout.splitlines()
  assert shown[1] == f"--workdir=a b/{name}" and "\n" not in line
  at = config_lib.plain(config_lib.parse(config_files.load(item.path, shown[2:])))
  at["arms"] = {name: config_lib.arm_settings(arm) for name, arm in at["arms"]}
  for part in field.split("."):
    at = at[part]
  assert at == value and type(at) is type(value)


def test_numbers_of_numpy_and_lists_are_values(mine):
  path = mine(
    "yield {'select.k': np.int64(2), 'select.beta': np.float64(0.5), 'stages': ['train']}"
  )
  (item,) = sweep.items(path)
  assert item.flags == (
    "--config.select.k=2",
    "--config.select.beta=0.5",
    "--config.stages=('train',)",
  )
  assert [type(x) for x in item.changes.values()] == [int, float, tuple]


def test_a_text_is_an_argument_of_get_config(mine):
  path = mine("return ['a', 'b/c', ('mine', 'd')]")
  assert [i.path for i in sweep.items(path)] == [f"{path}:{x}" for x in ("a", "b/c", "d")]
  first, second, third = names(path)
  assert first == "a" and second.startswith("b_c-") and third == "mine"
  with pytest.raises(UserError, match="yields the arguments itself, such as 'a'; leave :x out"):
    sweep.items(f"{path}:x")


def test_flags_of_all_items_come_before_those_of_one(mine):
  path = mine("yield from ({}, {'seeds': 2})")
  found = sweep.items(path, ["--config.seeds=5", "--config.select.k=3"])
  made = sweep.configs(found, config_checks.check)
  assert [(c.seeds, c.select.k) for c in made.values()] == [(5, 3), (2, 3)]


def test_all_items_are_checked_and_the_wrong_one_is_named(mine):
  found = sweep.items(mine("yield from ({'select.k': k} for k in (2, 0))"))
  with pytest.raises(UserError, match="^item select.k=0: select.k is 0: it must be at least 1"):
    sweep.configs(found, config_checks.check)


# ---------------------------------------------------------------- what is done with them


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
  path = tmp_path / "stand_in.py"
  path.write_text(STAND_IN)
  monkeypatch.setattr(sweep, "RUN", (sys.executable, "-S", str(path)))


def test_a_failed_item_is_tried_again_and_a_finished_one_is_not(mine, stand_in, tmp_path, capsys):
  found = sweep.items(mine("yield from ({'select.k': k} for k in (2, 7, 8))"))
  home = tmp_path / "out"
  with pytest.raises(SystemExit) as stopped:
    sweep.local(found, home)
  assert stopped.value.code == 1
  said = capsys.readouterr().err
  assert "select.k=7 failed with exit code 1: no luck with 7 (" in said
  assert "gen_ssd: 1 of 3 items failed: select.k=7; the same command tries them again" in said
  assert "items 3/3  1 failed, running: none" in said
  (home / "mended").touch()
  sweep.local(found, home, 2)
  calls = [(home / f"select.k={k}" / "calls").read_text().count("called") for k in (2, 7, 8)]
  assert calls == [1, 2, 1] and "items 3/3  running: none" in capsys.readouterr().err


def test_a_signal_says_how_to_go_on(mine, stand_in, tmp_path, monkeypatch, capsys):
  found = sweep.items(mine("yield from ({'select.k': k} for k in (2, 8))"))
  for name, files in (
    ("select.k=2", ("results.json", "report.html")),
    ("select.k=8", ("report.html",)),
  ):
    (tmp_path / name).mkdir()
    for file in files:  # a page that was drawn before the end does not count
      (tmp_path / name / file).touch()
  monkeypatch.setattr(sweep.processes, "run", lambda *a, **k: ({}, [2]))
  with pytest.raises(SystemExit) as stopped:
    sweep.local(found, tmp_path)
  assert stopped.value.code == 130
  said = capsys.readouterr().err
  assert said == "gen_ssd: stopped by Ctrl-C, 1 of 2 items are done; the same command continues\n"


@pytest.fixture
def scripts(tmp_path, monkeypatch):
  folder = tmp_path / "launch"
  folder.mkdir()
  path = folder / "slurm.sh"
  path.write_text(
    f'#!/bin/sh\nfor x in "$@"; do echo "$x"; done >> {tmp_path}/jobs\n'
    'case "$*" in *k=7*) exit 5; esac\n'
  )
  path.chmod(0o755)
  monkeypatch.setattr(sweep, "SCRIPTS", folder)


def test_a_script_is_called_with_the_flags_of_every_item(mine, scripts, tmp_path):
  path = mine("yield from ({'select.delimiters': ('. ',)}, {'select.k': 8})")
  found = sweep.items(path)
  sweep.submit(found, pathlib.Path("/x/y z"), "slurm", ["--nodes=2"])
  assert (tmp_path / "jobs").read_text().splitlines() == [
    "--nodes=2",
    f"--name={sweep._machine(found[0].name)}",
    "--",
    f"--config={path}",
    f"--workdir=/x/y z/{found[0].name}",
    "--config.select.delimiters=('. ',)",
    "--nodes=2",
    f"--name=select-k-8-{sweep._hash('select.k=8')}",
    "--",
    f"--config={path}",
    "--workdir=/x/y z/select.k=8",
    "--config.select.k=8",
  ]


@pytest.mark.parametrize("name", ["select.k=8", "8", "=", "A" * 100, "x.y_z-0"])
def test_items_have_names_that_clouds_take(name):
  found = sweep._machine(name)
  assert re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", found)  # as launch/common.sh wants it
  assert found != sweep._machine(name + "0")


def test_a_script_that_fails_ends_with_its_code_and_says_what_was_handed_out(mine, scripts, capsys):
  found = sweep.items(mine("yield from ({'select.k': k} for k in (2, 7, 8))"))
  with pytest.raises(SystemExit) as stopped:
    sweep.submit(found, pathlib.Path("out"), "slurm")
  assert stopped.value.code == 5
  want = "launch/slurm.sh failed with exit code 5 for select.k=7; done before: select.k=2"
  assert want in capsys.readouterr().err
  with pytest.raises(UserError, match="--to is 'nowhere': it must be print, local, tpu_vm"):
    sweep.submit(found, pathlib.Path("out"), "nowhere")


def test_the_script_is_the_command(tmp_path):
  flags = ["--config=configs/ablation.py", f"--workdir={tmp_path / 'a b'}", "--to=print"]
  shown = [
    subprocess.run([sys.executable, *c, *flags], cwd=paths.ROOT, capture_output=True, text=True)
    for c in (("launch/sweep.py",), ("-m", "gen_ssd", "sweep"))
  ]
  assert shown[0].stdout == shown[1].stdout and not shown[0].returncode, shown[0].stderr
  rows = [line.split("\t") for line in shown[0].stdout.splitlines()]
  assert {len(row) for row in rows} == {3} and len({row[0] for row in rows}) == len(rows) > 10
  words = shlex.split(rows[-1][2])
  assert words[:3] == ["python", "-m", "gen_ssd.main"] and words[4].endswith("a b/no_cold_start")
  assert not list(tmp_path.iterdir())  # nothing is written


# ---------------------------------------------------------------- the study, and a small one


@pytest.mark.parametrize("name", [*study_config.RUNS, "quick"])
def test_every_run_of_the_study_is_a_good_config(name):
  config = config_lib.parse(study_config.get_config(name))
  assert config.problems.test >= (300 if name == "quick" else 1000)
  assert config.seeds >= {"arms": 5, "quick": 2}.get(name, 1)
  assert "gen_ssd" in dict(config.arms)


def test_the_items_of_the_study_are_its_runs():
  found = sweep.items(str(paths.ROOT / "configs" / "study.py"))
  assert tuple(item.name for item in found) == study_config.RUNS
  for name, config in sweep.configs(found, config_checks.check).items():
    assert config == config_lib.parse(study_config.get_config(name))


def test_every_sweep_names_arms_of_its_run():
  for lines in study_config.SWEEPS.values():
    for points in lines.values():
      assert len(points) >= 3 and all(run in study_config.RUNS for _, run, _ in points)
      assert all(arm in study_config.get_config(run).arms for _, run, arm in points)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A finished sweep of two items, and what is read of it."""
  workdir = tmp_path_factory.mktemp("sweep")
  c = study_config.get_config("quick")
  c.problems.update(train=24, cold_start=20, held_out=4, test=12)
  c.select.update(slots=16, shard_rounds=8)
  c.cold_start.update(slots=16)
  c.warm_up.update(steps=4, batch_size=4, warmup_steps=2)
  c.train.update(steps=3, batch_size=4, warmup_steps=2)
  c.evaluate.update(slots=16)
  c.arms = {n: study_config.ARMS[n] for n in ARMS}
  configs = {"arms": config_lib.parse(c)}
  c.arms = {"gen_ssd": dict(k=2)}
  configs["k=2"] = config_lib.parse(c)
  for name, config in configs.items():
    stages.run(config, workdir / name, jax.devices()[:1])
  return workdir, configs, comparison.read(workdir, configs, SWEEPS)


def test_a_comparison_pools_seeds_and_pairs_every_arm(finished):
  _, _, found = finished
  assert {*found["arms"]} == {*ARMS}
  for name, arm in found["arms"].items():
    assert arm["n"] == 12 and len(arm["seeds"]) == 2
    assert sum(arm["seeds"]) / 2 == pytest.approx(arm["accuracy"])
    if name != "posthoc":
      p = found["paired"][f"{name}-posthoc"]
      want = arm["accuracy"] - found["arms"]["posthoc"]["accuracy"]
      assert p["difference"] == pytest.approx(want) and p["n"] == 12
  assert {"gen_ssd-standard_kd", "random-standard_kd"} <= found["paired"].keys()


def test_equal_teacher_tokens_compares_with_the_arm_that_spent_as_much(finished):
  _, _, found = finished
  arms = found["arms"]
  assert arms["standard_kd"]["equal_teacher_tokens"] == arms["standard_kd_all"]["accuracy"]
  assert arms["gen_ssd"]["equal_teacher_tokens"] == arms["gen_ssd"]["accuracy"]
  spent = [arms[n]["teacher_tokens"] for n in ARMS[1:]]
  assert max(spent) < 2 * min(spent)


def test_sweeps_are_read_from_arms_of_items(finished):
  _, _, found = finished
  two, four = found["sweeps"]["k"]["gen_ssd"]
  assert (two["value"], four["value"]) == (2, 4)
  assert two["teacher_tokens"] < four["teacher_tokens"]
  assert four == {"value": 4, **found["arms"]["gen_ssd"]}
  assert "not done" not in found["sweeps"]
  assert found["items"] == {"arms": found["arms"], "k=2": {"gen_ssd": _without_value(two)}}


def _without_value(point):
  return {name: x for name, x in point.items() if name != "value"}


def test_all_files_are_written_and_examples_show_every_candidate(finished):
  workdir, configs, found = finished
  table, paths = comparison.write(workdir, configs, SWEEPS)
  assert {p.name for p in paths} == {*comparison.FILES} and all(p.parent == workdir for p in paths)
  assert json.loads((workdir / "sweep.json").read_text()) == found
  assert (workdir / "sweep.md").read_text() == table and "| gen_ssd | **" in table
  for name in ("arms.svg", "paired.svg", "items.svg", "sweeps.svg"):
    text = (workdir / name).read_text(encoding="utf-8")
    words = " ".join(xml.fromstring(text).itertext())
    assert "gen_ssd" in words or name == "sweeps.svg"
    assert "href" not in text
  text = examples.examples(workdir / "arms", count=100)
  assert "Where selection helped" in text and "Where selection hurt" in text
  for line in text.splitlines():
    if line[:1].isdigit() and "none suitable" not in line:
      assert line.count(" · ") == 3 and line.count("**") == 2  # four candidates, one kept


def test_only_finished_items_are_collected_and_the_others_are_named(finished, capsys):
  workdir, configs, _ = finished
  items = [sweep.Item(name, "", (), {}) for name in (*configs, "late")]
  table = sweep.collect(items, {**configs, "late": configs["arms"]}, workdir, SWEEPS)
  assert capsys.readouterr().err == "not finished, and left out: late\n"
  rows = [[cell.strip() for cell in line.split("|")] for line in table.splitlines() if "| " in line]
  assert ["arms", "posthoc"] in [row[1:3] for row in rows]
  assert {row[2] for row in rows if row[1] == "k=2"} == {"gen_ssd"}
  with pytest.raises(UserError, match="none of the 1 items in .* is finished"):
    sweep.collect(items[2:], configs, workdir, {})


def test_an_item_of_other_settings_is_not_collected(finished):
  workdir, configs, _ = finished
  item = sweep.Item("k=2", "", (), {})
  with pytest.raises(UserError, match="belongs to another config: arms.gen_ssd.* is "):
    sweep.collect([item], {"k=2": configs["arms"]}, workdir, {})
