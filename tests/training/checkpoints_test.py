"""Checkpoints: any damage to the newest is found, the one before stands in, a full disk is told."""

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import threading
import time

import grain
import jax
import numpy as np
import pytest

from gen_ssd import errors
from gen_ssd import mesh
from gen_ssd.training import checkpoints
from gen_ssd.training import train
from tests.training import train_test

STEPS = 4, 6


def tree(step):
  rng = np.random.default_rng(step)
  return {
    "weights": mesh.place(rng.normal(size=(64, 8)).astype(np.float32)),
    "count": mesh.place(np.int32(step)),
  }


def iterator(taken=0):
  found = iter(grain.MapDataset.range(100).seed(0).shuffle().to_iter_dataset())
  for _ in range(taken):
    next(found)
  return found


def restore(folder):
  """(step, weights, next batch, whether step 6 could be saved again)."""
  data = iterator()
  with checkpoints.keeper(folder, 2) as saver:
    step, state = checkpoints.restore(saver, tree(0), data)
    if step == 4:
      checkpoints.save(saver, 6, tree(6), iterator(6))
      saver.wait()
    steps = [c.step for c in saver.checkpoints]
  return step, state, next(data), steps


def same(found, step):
  want = tree(step), next(iterator(step))
  assert jax.tree.structure(found) == jax.tree.structure(want)
  return all((np.asarray(a) == b).all() for a, b in zip(*map(jax.tree.leaves, (found, want))))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  train_test.start()
  folder = tmp_path_factory.mktemp("saved") / "checkpoints"
  with checkpoints.keeper(folder, 2) as saver:
    for step in (2, *STEPS):
      checkpoints.save(saver, step, tree(step), iterator(step))
  assert sorted(p.name for p in folder.iterdir()) == ["4", "6"]  # two are kept
  return folder


def flip(content):
  """Half of the content with one bit changed, as a disk may return it."""
  middle = len(content) // 2
  return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGE = {
  "emptied": lambda content: b"",
  "cut in half": lambda content: content[: len(content) // 2],
  "garbage": lambda content: np.random.default_rng(0).bytes(len(content)),
  "another bit": flip,
  "removed": None,
}


def damage(path, change):
  if change is None:
    path.unlink()
  else:
    path.write_bytes(change(path.read_bytes()))


def test_saves_leave_no_thread_and_no_open_file(tmp_path):
  train_test.start()
  with checkpoints.keeper(tmp_path, 1) as saver:
    for step in range(1, 9):
      checkpoints.save(saver, step, tree(step), iterator(step))
    saver.wait()
    deadline = time.monotonic() + 20
    while (left := loops()) and time.monotonic() < deadline:
      time.sleep(0.05)
  assert left == 0


def loops():
  """How many threads run a save's event loop; each holds three files."""
  return sum("_run_loop" in thread.name for thread in threading.enumerate())


@pytest.mark.parametrize("kind", DAMAGE)
def test_whatever_happens_to_a_file_a_checkpoint_is_restored_as_saved(
  saved, tmp_path, kind, capsys
):
  """The newest if what was damaged does not matter, and else the one before, which is said."""
  train_test.start()
  names = [p.relative_to(saved) for p in (saved / "6").rglob("*") if p.is_file()]
  assert len(names) > 8
  found = {}
  for i, name in enumerate(names):
    shutil.copytree(saved, folder := tmp_path / str(i))
    damage(folder / name, DAMAGE[kind])
    step, state, batch, steps = restore(folder)
    said = capsys.readouterr().err
    assert same((state, batch), step), name
    assert steps == [4, 6] and restore(folder)[0] == 6, name
    assert (f"removed the damaged checkpoint {folder}/6 (" in said) == (step == 4), name
    assert said.count("\n") == (step == 4) and len(said) < 600, name
    found[step] = found.get(step, []) + [name]
  assert any("ocdbt.process_0/d" in str(n) for n in found[4])
  assert any("data/process_0" in str(n) for n in found[4])


def test_a_checkpoint_that_lost_a_folder_is_replaced_by_the_one_before(saved, tmp_path):
  train_test.start()
  for i, part in enumerate(("state", "data", "sums", "state/d", "")):
    shutil.copytree(saved, folder := tmp_path / str(i))
    shutil.rmtree(folder / "6" / part)
    (folder / "6").mkdir(exist_ok=True)
    step, state, batch, steps = restore(folder)
    assert step == 4 and steps == [4, 6] and same((state, batch), 4), part


def test_weights_that_are_readable_but_not_those_saved_are_noticed(saved, tmp_path, capsys):
  """Such as those of another run: no format of files can tell."""
  train_test.start()
  shutil.copytree(saved, tmp_path / "a")
  shutil.rmtree(tmp_path / "a" / "6" / "state")
  shutil.copytree(saved / "4" / "state", tmp_path / "a" / "6" / "state")
  assert restore(tmp_path / "a")[0] == 4
  assert "its content is not what was saved" in capsys.readouterr().err


def test_what_a_killed_save_left_does_not_stay_on_the_disk(saved, tmp_path):
  train_test.start()
  shutil.copytree(saved, folder := tmp_path / "a")
  shutil.copytree(saved / "6", folder / "7.orbax-checkpoint-tmp")
  assert restore(folder)[0] == 6
  assert sorted(p.name for p in folder.iterdir()) == ["4", "6"]


def test_when_no_checkpoint_can_be_read_none_is_removed(saved, tmp_path):
  train_test.start()
  shutil.copytree(saved, folder := tmp_path / "a")
  for step in STEPS:
    damage(folder / str(step) / "state" / "_METADATA", DAMAGE["emptied"])
  with pytest.raises(
    errors.UserError, match=rf"{folder}: none .* can be read .*; delete this folder"
  ):
    restore(folder)
  assert all((folder / str(step)).exists() for step in STEPS)
  shutil.rmtree(folder)
  assert restore(folder)[0] == 0


def test_an_error_of_the_machine_is_not_damage(saved, tmp_path, monkeypatch):
  train_test.start()
  shutil.copytree(saved, folder := tmp_path / "a")
  cause = ValueError("Error opening local file [os_error_code='24']")

  def load(*args):
    raise KeyError("no handler") from cause

  monkeypatch.setattr(checkpoints.ocp, "load_checkpointables", load)
  with pytest.raises(OSError, match="Too many open files") as caught:
    restore(folder)
  assert caught.value.errno == errno.EMFILE and caught.value.filename == f"{folder}/6"
  assert all((folder / str(step)).exists() for step in STEPS)


# ---------------------------------------------------------------- whole trainings


def test_a_training_that_fell_back_ends_as_if_undisturbed(tmp_path, capsys):
  train_test.start()
  whole = train_test.fit(tmp_path / "whole")
  shutil.copytree(tmp_path / "whole", tmp_path / "again")
  damage(tmp_path / "again" / "6" / "state" / "manifest.ocdbt", DAMAGE["garbage"])
  again = train_test.fit(tmp_path / "again")
  assert "the training goes on from update 4" in capsys.readouterr().err
  for a, b in zip(train_test.leaves(whole), train_test.leaves(again)):
    np.testing.assert_array_equal(a, b)
  metrics = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "again")]
  assert metrics[0] == metrics[1] and metrics[0].count(b"\n") == 6


@pytest.fixture
def small_disk(tmp_path):
  """A function that mounts a file system of so many KiB and returns its folder."""
  folder, mounted = tmp_path / "disk", []

  def mount(size):
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
      pytest.skip(f"a file system can not be mounted here: {done.stderr.strip()}")
    mounted.append(folder)
    return folder

  yield mount
  for one in mounted:
    subprocess.run(["umount", "--lazy", str(one)], check=True)


# The first checkpoint does not fit, in different files of it; the second; and the third.
@pytest.mark.parametrize("room", [32, 72, 152, 200, 400])
def test_a_full_disk_ends_a_training_that_goes_on_when_there_is_room(small_disk, tmp_path, room):
  train_test.start()
  whole = train_test.leaves(train_test.fit(tmp_path / "whole"))
  disk = small_disk(room)
  with pytest.raises(OSError) as caught:
    train_test.fit(disk / "run")
  assert caught.value.errno == errno.ENOSPC and str(disk / "run") in caught.value.filename
  subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
  for a, b in zip(whole, train_test.leaves(train_test.fit(disk / "run"))):
    np.testing.assert_array_equal(a, b)
  metrics = [
    (folder / "metrics.jsonl").read_bytes() for folder in (tmp_path / "whole", disk / "run")
  ]
  assert metrics[0] == metrics[1]
  names = {p.name for p in (disk / "run").iterdir()}
  assert names == {"4", "6", "metrics.jsonl", "times.csv"}


def test_an_error_that_is_not_of_the_machine_passes_through_unchanged(tmp_path):
  train_test.start()
  for error in (ValueError("No space left on device"), OSError("odd"), KeyError(28)):
    with pytest.raises(type(error)) as caught, checkpoints.keeper(tmp_path, 2):
      raise error
    assert caught.value is error
  full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "elsewhere")
  with pytest.raises(OSError) as caught, checkpoints.keeper(tmp_path, 2):
    raise full
  assert caught.value.filename == "elsewhere"


# ---------------------------------------------------------------- metrics


@pytest.mark.parametrize("log_every,save_every", [(1, 2), (2, 3), (4, 3), (10, 4)])
def test_metrics_have_one_line_a_logged_step_wherever_a_training_stops(
  tmp_path, monkeypatch, log_every, save_every
):
  train_test.start()
  settings = dataclasses.replace(train_test.TRAIN, log_every=log_every, save_every=save_every)
  train_test.fit(tmp_path / "whole", settings)
  want = (tmp_path / "whole" / "metrics.jsonl").read_text()
  logged = [i for i in range(1, 7) if i % log_every == 0 or i == 6]
  assert [json.loads(line)["step"] for line in want.splitlines()] == logged

  class Killed(Exception):
    pass

  real = checkpoints.save, train.train_step
  for at in range(6):

    def step(state, *args, at=at, **kwargs):
      if int(state.step) == at:
        raise Killed
      return real[1](state, *args, **kwargs)

    def save(saver, i, *args):
      real[0](saver, i, *args)
      saver.wait()
      raise Killed

    folder = tmp_path / str(at)
    for name, module, fake in (("train_step", train, step), ("save", checkpoints, save)):
      with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(module, name, fake)
        train_test.fit(folder, settings)
    with open(folder / "metrics.jsonl", "a") as file:
      file.write('{"step": 3, "lo')
    train_test.fit(folder, settings)
    assert (folder / "metrics.jsonl").read_text() == want, at
