"""What is measured of students, without a run around it; main_test.py measures those of a run."""

import json
import shutil

import jax
import pytest

from configs import quickstart
from gen_ssd import collecting
from gen_ssd import config as config_lib
from gen_ssd import inputs
from gen_ssd import instruments
from gen_ssd import mesh
from gen_ssd.models import hf
from gen_ssd.training import fidelity

pytestmark = pytest.mark.usefixtures("shared_programs")


def made(path="bundled/student", **changes):
  c = quickstart.get_config()
  c.student.path, c.arms, c.problems.test = str(path), {}, 4
  c.update(changes)
  return config_lib.parse(c)


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
  """A workdir in which the base student has answered four problems."""
  mesh.start(devices=jax.devices()[:1])
  workdir, config = tmp_path_factory.mktemp("run"), made()
  select = inputs.answering(config, config.evaluate)
  problems = inputs.problems(config, "test")
  models = collecting.Models(writer="bundled/student")
  home = workdir / "models" / "base"
  collecting.collect(config, select, home / "answers", problems, models, "answers")
  return workdir


def figures(config, workdir, path="bundled/student"):
  home = workdir / "models" / "base"
  instruments.read(config, workdir, [(home, str(path))])
  return json.loads((home / "instruments.json").read_text())


def test_a_student_that_was_measured_is_not_read_again(answered, tmp_path, monkeypatch):
  shutil.copytree(answered, tmp_path, dirs_exist_ok=True)
  found = figures(made(), tmp_path)
  asked = {p.uuid for p in inputs.problems(made(), "test")}
  assert found["own_entropy"].keys() == found["kl_own"].keys() == asked
  assert found["kl_data"] == found["wrong_minus_right"] == {}  # the teacher has written nothing
  monkeypatch.setattr(fidelity, "read", None)
  assert figures(made(), tmp_path) == found


def test_no_divergence_between_different_tokenizers(answered, tmp_path):
  path, workdir = tmp_path / "student", tmp_path / "run"
  shutil.copytree(hf.locate("bundled/student"), path)
  file = path / "tokenizer.json"
  file.write_text(file.read_text().replace("\u2581Tom", "\u2581Tim"))
  shutil.copytree(answered, workdir)
  found = figures(made(path, translate=True), workdir, path)
  assert found.keys() == {"own_entropy", "wrong_minus_right"} and len(found["own_entropy"]) == 4


def test_without_the_teacher_beside_the_arms_nothing_is_measured(answered, tmp_path):
  shutil.copytree(answered, tmp_path, dirs_exist_ok=True)
  with pytest.raises(FileNotFoundError):
    figures(made(references=("base",)), tmp_path)


def test_who_samples_held_out_traces():
  arms = {"gen_ssd": {}}
  select = inputs.sampling(made(arms=arms))
  assert (select.k, select.attempts, select.temperature) == (1, 4, 1.0)
  assert select.slots == made().cold_start.slots
  assert inputs.sampling(made()) is None
  for field, value in (("held_out_samples", 0), ("held_out", 0)):
    assert inputs.sampling(made(arms=arms, problems={field: value})) is None
