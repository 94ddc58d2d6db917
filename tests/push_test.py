"""`gen-ssd push` against a stand-in for the hub: what is uploaded, where, and what is never shown."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from gen_ssd.collect import tables
from gen_ssd.models import hf
from tests import hub as hub_lib
from tests.collect.traces_test import row


@pytest.fixture(scope="module")
def hub():
  with hub_lib.serving() as found:
    yield found


@pytest.fixture
def data_set(tmp_path):
  folder = tmp_path / "arms" / "gen_ssd" / "dataset"
  folder.mkdir(parents=True)
  rows = [row("a"), row("b")]
  tables.write(folder, rows, rows, [])
  (folder / "README.md").write_text("---\ntags:\n- gen-ssd\n---\n\n# Traces\n")
  return folder


@pytest.fixture
def student(tmp_path):
  folder = tmp_path / "student"
  shutil.copytree(hf.locate("bundled/student"), folder)
  (folder / "README.md").write_text("---\nlibrary_name: transformers\n---\n\n# Student\n")
  return folder


def push(hub, *flags, **environment):
  """(exit code, stdout, stderr) of the command, as a user runs it."""
  plain = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
  done = subprocess.run(
    [sys.executable, "-m", "gen_ssd", "push", *flags],
    env={**plain, **hub_lib.environment(hub), **environment},
    cwd=pathlib.Path(__file__).parents[1],
    capture_output=True,
    text=True,
  )
  assert hub_lib.TOKEN not in done.stdout + done.stderr
  return done.returncode, done.stdout, done.stderr


def test_a_data_set_becomes_a_private_repository(hub, data_set):
  code, out, err = push(hub, f"--folder={data_set}", "--push_to=me/traces")
  assert (code, err) == (0, "") and out == f"{hub.url}/datasets/me/traces\n"
  found = hub.repositories["dataset", "me/traces"]
  assert found["private"] is True
  assert found["files"] == {p.name: p.read_bytes() for p in data_set.iterdir()}
  assert push(hub, f"--folder={data_set}", "--push_to=me/traces")[0] == 0  # there already


def test_a_student_becomes_a_public_model_when_asked(hub, student):
  code, out, _ = push(hub, f"--folder={student}", "--push_to=me/student", "--public")
  assert code == 0 and out == f"{hub.url}/me/student\n"
  found = hub.repositories["model", "me/student"]
  assert found["private"] is False and "model.safetensors" in found["files"]


def test_a_wrong_token_is_one_message_without_it(hub, data_set):
  token = "hf_wrongwrongwrong"
  code, out, err = push(hub, f"--folder={data_set}", "--push_to=me/wrong", HF_TOKEN=token)
  assert code == 2 and token not in out + err and err.count("\n") == 1
  assert "you may not write there" in err and ("dataset", "me/wrong") not in hub.repositories


def test_what_the_hub_says_is_one_message_and_a_token_in_it_is_hidden(hub, data_set):
  hub.refuse = 400, f"bad commit of {hub_lib.TOKEN}"
  try:
    code, _, err = push(hub, f"--folder={data_set}", "--push_to=me/refused")
  finally:
    hub.refuse = None
  assert code == 2 and err.count("\n") == 1 and "bad commit of ***" in err


@pytest.mark.parametrize("name", ["traces", "a/b/c", "me/..", "me/tr aces"])
def test_a_repository_without_a_valid_name_is_refused(hub, data_set, name):
  before = len(hub.tokens)
  code, _, err = push(hub, f"--folder={data_set}", f"--push_to={name}")
  assert code == 2 and "--push_to is" in err and "OWNER/NAME" in err
  assert len(hub.tokens) == before  # nothing was asked


def test_another_folder_is_refused(hub, tmp_path):
  code, _, err = push(hub, f"--folder={tmp_path}", "--push_to=me/nothing")
  assert code == 2 and "RUN/arms/NAME/dataset" in err
