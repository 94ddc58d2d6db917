"""A workdir in a bucket: the real gcsfs and TensorStore talk to a stand-in for Google's service."""

import importlib.util
import os
import random
import re
import signal

import fsspec
from orbax.checkpoint import v1 as ocp
import pytest

from gen_ssd import folders
from gen_ssd import progress
from gen_ssd import workdir as workdir_lib
from gen_ssd.errors import UserError
from gen_ssd.models import hf
from tests import bucket
from tests import gguf_files
from tests import kills_test
from tests import tiny
from tests.models.decoder_test import golden

pytestmark = [
  pytest.mark.skipif(importlib.util.find_spec("gcsfs") is None, reason="gcsfs is not installed"),
  pytest.mark.usefixtures("shared_programs"),
]


@pytest.fixture(scope="module")
def server():
  """The stand-in, to which this process and those that it starts are pointed."""
  with bucket.serving() as found, pytest.MonkeyPatch.context() as patch:
    for name, value in bucket.environment(found.url).items():
      patch.setenv(name, value)
    yield found


@pytest.fixture
def folder(server, request):
  return folders.path(f"gs://{bucket.NAME}/{re.sub(r'[^a-z_]+', '-', request.node.name)}")


def names(server, folder):
  """The objects of a folder, without its name."""
  start = str(folder).removeprefix(f"gs://{bucket.NAME}/") + "/"
  return {n.removeprefix(start): d for n, (_, d) in server.objects.items() if n.startswith(start)}


# ---------------------------------------------------------------- files


def test_files_are_written_read_and_listed(server, folder):
  server.log.clear()
  assert not folder.exists()
  folders.write(folder / "traces-00000.jsonl", '{"uuid": "ä", "attempt": 0}\n')
  folders.write(folder / "in_flight.json", '{"shards": 1, "slots": []}')
  wrote = [(what, name.rpartition("/")[2]) for what, name, _ in server.log]
  assert wrote == [("put", "traces-00000.jsonl"), ("put", "in_flight.json")]  # nothing is moved
  assert workdir_lib.fence(folder) == (1, [])
  rows, bad = workdir_lib.read_jsonl(folder / "traces-00000.jsonl")
  assert ([r["uuid"] for r in rows], bad) == (["ä"], 0)
  with pytest.raises(FileNotFoundError):
    workdir_lib.fence(folder / "none")
  with pytest.raises(UserError, match="none.json is missing: restore it"):
    workdir_lib.read_json(folder / "none.json", "restore it")


def test_what_another_process_writes_is_seen_at_once(server, folder):
  folders.write(folder / "a.json", "1")
  assert [p.name for p in folder.glob("*.json")] == ["a.json"] and not (folder / "b.json").exists()
  path = str(folder).removeprefix(f"gs://{bucket.NAME}/")
  server.put(f"{path}/b.json", b"2", {})
  assert (folder / "b.json").exists()
  assert sorted(p.name for p in folder.glob("*.json")) == ["a.json", "b.json"]


def test_metrics_are_written_whole_and_go_on_after_the_last_checkpoint(server, folder):
  metrics = progress.Metrics(folder / "metrics.jsonl")
  for step in (1, 2, 3):
    metrics.write(step=step, loss=1.0)
  metrics.flush()
  again = progress.Metrics(folder / "metrics.jsonl", done=2)
  again.write(step=3, loss=0.5)
  again.flush()
  lines = (folder / "metrics.jsonl").read_text().splitlines()
  assert lines == [f'{{"step": {i}, "loss": {loss}}}' for i, loss in ((1, 1.0), (2, 1.0), (3, 0.5))]


# ---------------------------------------------------------------- models


def test_a_model_is_sent_with_its_config_last_and_taken_away_with_it_first(
  server, folder, tmp_path
):
  folders.write(folder / "student" / "model.safetensors", "of a run that was killed")
  assert not workdir_lib.has_student(folder)
  for name in ("config.json", "model.safetensors", "tokenizer.json"):
    (tmp_path / name).write_text(name)
  folders.send(str(tmp_path), folder / "student", last="config.json")
  assert workdir_lib.has_student(folder)
  start = len(server.log)
  (tmp_path / "model.safetensors").unlink()
  folders.send(str(tmp_path), folder / "student", last="config.json")
  done = [(what, name.rpartition("/")[2]) for what, name, _ in server.log[start:]]
  assert done[0] == ("delete", "config.json") and done[-1] == ("put", "config.json")
  assert names(server, folder / "student").keys() == {"config.json", "tokenizer.json"}


def test_a_model_in_a_bucket_is_copied_once(server, folder, tmp_path, monkeypatch):
  monkeypatch.setattr(folders.tempfile, "gettempdir", lambda: str(tmp_path))
  folders.write(folder / "config.json", '{"a": 1}')
  folders.write(folder / "notes.md", "not wanted")
  folders.write(folder / "deeper" / "config.json", "of another model")
  copy = hf.locate(str(folder))
  assert os.listdir(copy) == ["config.json"]
  hf.locate.cache_clear()
  monkeypatch.setattr(folders.shutil, "rmtree", None)  # it would copy
  assert hf.locate(str(folder)) == copy
  monkeypatch.undo()
  monkeypatch.setattr(folders.tempfile, "gettempdir", lambda: str(tmp_path))
  folders.write(folder / "config.json", '{"a": 2}')  # of the same size, at the same time
  assert folders.here(str(folder), ("*.json",)) != copy
  with pytest.raises(UserError, match=r"gs://bucket/none holds no files: it must be the folder of"):
    hf.locate("gs://bucket/none")


def test_a_gguf_file_in_a_bucket_is_copied_alone(folder, tmp_path, monkeypatch):
  monkeypatch.setattr(folders.tempfile, "gettempdir", lambda: str(tmp_path))
  source, _, _ = golden("qwen2", tmp_path / "in")
  file = gguf_files.write(source, tmp_path / "tiny.gguf")
  folders.write(folder / "tiny.gguf", file.read_bytes())
  folders.write(folder / "other.gguf", "not wanted")
  found = hf.locate(str(folder / "tiny.gguf"))
  assert hf.identity(found) == hf.identity(hf.locate(str(file))) and found != hf.locate(str(file))
  assert not [*tmp_path.rglob("other.gguf")]


def test_mistakes_are_one_message(server, monkeypatch):
  with pytest.raises(UserError, match="--workdir is 'gs://other/a': it must be a folder of a buck"):
    tiny.claim(folders.path("gs://other/a"), None)
  with pytest.raises(UserError, match="gs://other/a/b.json cannot be written: "):
    folders.write(folders.path("gs://other/a/b.json"), "")

  def missing(name):
    raise ImportError("gcsfs")

  monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
  with pytest.raises(UserError, match="needs a package that is not installed: pip install gcsfs"):
    folders.path("gs://bucket/a")


# ---------------------------------------------------------------- whole runs


def contents(server, folder):
  """What kills_test.contents finds, of a run in a bucket."""
  found = {}
  for name, data in names(server, folder).items():
    parts = name.split("/")
    if "checkpoints" in parts[:-1] and parts[parts.index("checkpoints") + 1].isdigit():
      step = "/".join(parts[: parts.index("checkpoints") + 2])
      if step not in found:
        sums = dict.fromkeys(("state", "data"), kills_test.scalar())
        read = ocp.load_checkpointables(folder / step, {"sums": sums})
        found[step] = {"sums": {key: int(x) for key, x in read["sums"].items()}}
    else:
      found[name] = kills_test.plain(data, folder)
  return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  return kills_test.Runs(tmp_path_factory.mktemp("runs"))


def test_a_run_in_a_bucket_leaves_the_files_of_a_run_on_a_disk(server, folder, runs, tmp_path):
  runs.finish(tmp_path / "disk")
  runs.finish(folder)
  want, found = kills_test.contents(tmp_path / "disk"), contents(server, folder)
  assert found.keys() == want.keys()
  assert [name for name in want if found[name] != want[name]] == []
  start = len(server.log)
  runs.finish(folder)  # nothing is left to do
  assert {n.rpartition("/")[2] for _, n, _ in server.log[start:]} <= {
    "lock",
    "README.md",
    "config.json",
    "overlap.json",
    "results.json",
    "report.html",
  }


@pytest.mark.slow
def test_a_run_killed_after_any_write_to_its_bucket_ends_in_the_same_files(server, folder, runs):
  start = len(server.log)
  runs.finish(folder / "undisturbed")
  writes, want = len(server.log) - start, contents(server, folder / "undisturbed")
  seeded, workdir, kills = random.Random(0), folder / "killed", 0
  for part in range(12):  # of a run's writes, each killed once
    at = len(server.log) + 1 + seeded.randrange(writes // 12 + 1)
    process = runs.start(workdir)
    while process.poll() is None:
      if len(server.log) >= at:
        process.send_signal(signal.SIGKILL if part % 4 else signal.SIGTERM)
        process.wait(timeout=60)
        kills += 1
  runs.finish(workdir)
  found = contents(server, workdir)
  assert found.keys() == want.keys()
  assert [name for name in want if found[name] != want[name]] == []
  print(f"killed {kills} times, of {writes} writes")
  assert kills >= 10
