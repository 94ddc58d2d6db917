"""Numbers of a run reach the trackers that a config names, and a run never depends on them."""

import functools
import importlib.machinery
import json
import struct
import sys
import types

import pytest

from gen_ssd import checks
from gen_ssd import config
from gen_ssd import trackers
from gen_ssd.errors import UserError
from tests import main_test
from tests import tiny
from tests.training import train_test

pytestmark = pytest.mark.usefixtures("shared_programs")

TOKEN = "hf_" + "aB3" * 12


@pytest.fixture(autouse=True)
def nothing_is_left_open():
  yield
  assert not trackers._sinks


@pytest.fixture
def fake(monkeypatch):
  """Installs fakes of wandb and trackio: a list of (name, method, arguments) of their calls."""
  calls = []

  def module(name, **functions):
    made = types.ModuleType(name)
    made.__spec__ = importlib.machinery.ModuleSpec(name, None, origin="a fake")
    vars(made).update(functions)
    monkeypatch.setitem(sys.modules, name, made)

  def call(name, method):
    return lambda *args, **options: calls.append((name, method, *args, *options.values()))

  def init(tracker, **options):
    calls.append((tracker, "init", options))
    methods = ("log", "finish", "define_metric")
    return types.SimpleNamespace(**{method: call(tracker, method) for method in methods})

  module("wandb", init=functools.partial(init, "wandb"))
  module("trackio", init=functools.partial(init, "trackio"), finish=call("trackio", "finish"))
  return calls


def points(folder):
  """[(tag, step, value)] of the TensorBoard event files in a folder."""
  pytest.importorskip("tensorboardX")
  from tensorboardX.proto import event_pb2

  found = []
  for path in sorted(folder.iterdir()):
    data, at = path.read_bytes(), 0
    while at < len(data):  # length, its checksum, event, its checksum
      (size,) = struct.unpack_from("<Q", data, at)
      event = event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
      found += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
      at += size + 16
  return found


def test_tensorboard_goes_on_in_one_folder(tmp_path):
  pytest.importorskip("tensorboardX")
  for step in (1, 2):
    with trackers.opened(("tensorboard",), tmp_path, {}):
      trackers.write("train gen_ssd, seed 0", step, {"loss": 0.5, "gradient_norm": 2})
      assert points(tmp_path / "tensorboard")[-1][1] == step  # also if the process is killed now
  train = "train_gen_ssd_seed_0"
  assert points(tmp_path / "tensorboard") == [
    (f"{train}/{name}", step, value)
    for step in (1, 2)
    for name, value in (("loss", 0.5), ("gradient_norm", 2.0))
  ]


def test_a_run_that_goes_on_keeps_its_name_in_wandb_and_trackio(tmp_path, fake):
  for folder in (tmp_path / "a", tmp_path / "a", tmp_path / "b"):
    folder.mkdir(exist_ok=True)
    with trackers.opened(("wandb", "trackio"), folder, {"name": "x"}):
      trackers.write("train", 3, {"loss": 0.5})
      trackers.write("train", 4, {"loss": 0.25})
  wandb, trackio = ([c[1:] for c in fake if c[0] == name] for name in ("wandb", "trackio"))
  first, again, other = (c[1] for c in wandb if c[0] == "init")
  assert first == again and first["id"] != other["id"] and first["resume"] == "allow"
  assert first["dir"] == str(tmp_path / "a") and first["config"] == {"name": "x"}
  assert wandb[1:5] == [
    ("define_metric", "train/*", "step/train"),
    ("log", {"train/loss": 0.5, "step/train": 3}),
    ("log", {"train/loss": 0.25, "step/train": 4}),
    ("finish",),
  ]
  names = [c[1]["name"] for c in trackio if c[0] == "init"]
  assert names[0] == names[1] == f"a-{first['id']}" != names[2]
  assert trackio[1:4] == [
    ("log", {"train/loss": 0.5}, 3),
    ("log", {"train/loss": 0.25}, 4),
    ("finish",),
  ]
  (tmp_path / "a").rename(tmp_path / "moved")
  with trackers.opened(("wandb",), tmp_path / "moved", {}):
    assert fake[-1][2]["id"] == first["id"]


def test_nothing_is_imported_or_written_unless_a_config_asks(tmp_path, fake):
  with trackers.opened((), tmp_path, {}):
    trackers.write("train", 1, {"loss": 0.5})
  trackers.write("train", 1, {"loss": 0.5})  # of a script that opened none
  assert not fake and not any(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["init", "log", "finish"])
def test_a_tracker_that_fails_is_off_and_the_others_go_on(
  method, tmp_path, fake, monkeypatch, capsys
):
  def fail(*args, **options):
    raise ConnectionError(f"no route to https://me:secret@host/x?key={TOKEN}\nor so")

  if method == "init":
    monkeypatch.setattr(sys.modules["wandb"], "init", fail)
  with trackers.opened(("wandb", "trackio"), tmp_path, {}):
    if method != "init":
      monkeypatch.setattr(trackers._sinks["wandb"].run, method, fail, raising=False)
    trackers.write("train", 1, {"loss": 0.5})
    trackers.write("train", 2, {"loss": 0.5})
  assert [c for c in fake if c[:2] == ("trackio", "log")] == [
    ("trackio", "log", {"train/loss": 0.5}, step) for step in (1, 2)
  ]
  said = capsys.readouterr().err
  assert said == (
    "gen_ssd: the tracker wandb is off from here on (ConnectionError: no route to "
    "https://***@host/x?key=*** or so); the run goes on\n"
  )


def test_trackers_are_closed_when_a_run_ends_in_an_error(tmp_path, fake):
  with pytest.raises(KeyError), trackers.opened(("trackio",), tmp_path, {}):
    raise KeyError
  assert fake[-1] == ("trackio", "finish")


def test_a_full_disk_stops_tensorboard_and_not_the_run(tmp_path, monkeypatch, capsys):
  pytest.importorskip("tensorboardX")
  with trackers.opened(("tensorboard",), tmp_path, {}):
    monkeypatch.setattr(
      trackers._sinks["tensorboard"].file, "flush", lambda: open("/dev/full", "w", 1).write("x\n")
    )
    for step in range(30):
      trackers.write("train", step, {"loss": 0.5})
  assert capsys.readouterr().err.count("the tracker tensorboard is off from here on (OSError") == 1


def test_only_process_0_has_trackers(tmp_path, fake, monkeypatch):
  monkeypatch.setattr(trackers.jax, "process_index", lambda: 1)
  with trackers.opened(("wandb",), tmp_path, {}):
    trackers.write("train", 1, {"loss": 0.5})
  assert not fake


def test_a_damaged_id_is_made_anew(tmp_path, fake):
  (tmp_path / "tracker_id").write_bytes(b"\xff\xfe")
  for _ in range(2):
    with trackers.opened(("wandb",), tmp_path, {}):
      pass
  first, again = (c[2]["id"] for c in fake if c[1] == "init")
  assert first == again == (tmp_path / "tracker_id").read_text()


# ---------------------------------------------------------------- before and in a run


@pytest.mark.parametrize("name,package", [(n, p) for n, (p, _) in trackers.TABLE.items()])
def test_a_missing_package_is_named_before_any_model_is_read(name, package, tmp_path, monkeypatch):
  monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
  models = {"teacher": {"path": "no/teacher"}, "student": {"path": "no/student"}}
  found = config.parse({**models, "arms": {"a": {}}, "trackers": [name]})
  with pytest.raises(UserError, match=rf"trackers is .*{name}.* pip install {package}$"):
    checks.check(found)


def test_a_folder_that_wandb_left_is_not_its_package(tmp_path, monkeypatch):
  monkeypatch.delitem(sys.modules, "wandb", raising=False)
  monkeypatch.setattr(sys, "path", [str(tmp_path)])
  (tmp_path / "wandb").mkdir()
  with pytest.raises(UserError, match="pip install wandb"):
    trackers.check(("wandb",))


def test_a_workdir_may_get_other_trackers(tmp_path):
  made = lambda *names: config.parse({"name": "x", "trackers": names})
  tiny.claim(tmp_path, made())
  tiny.claim(tmp_path, made("wandb"))
  tiny.claim(tmp_path, made("tensorboard"))


def test_training_writes_what_metrics_jsonl_has(tmp_path, fake):
  train_test.start()
  with trackers.opened(("trackio",), tmp_path, {}):
    train_test.fit(tmp_path / "checkpoints")
  lines = (tmp_path / "checkpoints" / "metrics.jsonl").read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  assert rows and [c[2:] for c in fake if c[1] == "log"] == [
    ({f"train/{k}": x for k, x in row.items() if k != "step"}, row["step"]) for row in rows
  ]


def test_a_run_tells_how_far_each_stage_is_and_what_came_of_it(tmp_path, fake):
  changes = dict(arms={"a": {}}, seeds=1, stages=("cold_start", "collect", "train", "evaluate"))
  asked = main_test.small(**changes, trackers=("trackio",))
  main_test.run(asked, tmp_path)
  logged = [c[2:] for c in fake if c[1] == "log"]
  of = lambda *names: [(n, s) for n, s in logged if {*names} == {*n}]
  for title, total in (("cold_start", 10), ("calibrate", 6), ("collect_a", 12), ("evaluate_a", 10)):
    found = of(f"{title}/done", f"{title}/right", f"{title}/tokens_per_second")
    assert [s for _, s in found] == sorted({s for _, s in found}) and found[-1][1] == total
    assert all(n[f"{title}/done"] == s / total for n, s in found)
    assert all(n[f"{title}/tokens_per_second"] > 0 for n, _ in found)
  for title in ("cold-start_training", "train_a"):
    assert [s for _, s in of(*(f"{title}/{x}" for x in ("loss", "targets", "gradient_norm")))] == [
      4
    ]
  results = json.loads((tmp_path / "results.json").read_text())["arms"]["a"]
  kept = len(json.loads((tmp_path / "arms" / "a" / "kept.json").read_text()))
  assert of("collect_a/kept") == [({"collect_a/kept": kept / 12}, 12)]
  assert of("accuracy/a") == [({"accuracy/a": results["accuracy"]}, 0)]
  assert fake[-1] == ("trackio", "finish") and fake[0][2]["config"]["train"]["steps"] == 4

  fake.clear()
  main_test.run(main_test.small(**changes), tmp_path)  # the same run, no longer tracked
  assert not fake
