"""Bad input of every kind: each ends in one message, before anything is computed.

To add a case, add a line to settings.py or files.py.
"""

import os
import sys

import pytest

from gen_ssd import __main__ as cli
from gen_ssd.collect import loop
from gen_ssd.training import train
from tests import paths
from tests.attack import files
from tests.attack import settings


@pytest.fixture(autouse=True)
def nothing_is_computed(monkeypatch):
  def computed(*arguments, **options):
    raise AssertionError("something was computed")

  monkeypatch.setattr(loop, "collect", computed)
  monkeypatch.setattr(train, "fit", computed)
  monkeypatch.setenv("HF_HUB_OFFLINE", "1")
  monkeypatch.chdir(paths.ROOT)


def message(command, monkeypatch, capsys):
  """What `gen-ssd COMMAND` says when it ends with the exit code for a mistake."""
  monkeypatch.setattr(sys, "argv", ["gen-ssd", *command])
  with pytest.raises(SystemExit) as stopped:
    cli.main()
  said = capsys.readouterr().err
  assert stopped.value.code == 2, said
  lines = [line for line in said.splitlines() if line]
  assert lines[0].startswith("gen_ssd: ") and "Traceback" not in said, said
  assert all(line.startswith("  ") for line in lines[1:]), said  # a list below the message
  assert said.replace("\n", "").isprintable() and len(said) < 4000, said
  return said


@pytest.mark.parametrize("flags,says", settings.SETTINGS)
def test_a_bad_setting_is_one_message(flags, says, tmp_path, monkeypatch, capsys):
  command = ["run", "--config=configs/quickstart.py", f"--workdir={tmp_path / 'run'}"]
  assert says in message([*command, *flags.split(" ")], monkeypatch, capsys)
  assert not os.listdir(tmp_path)  # nor is anything written


@pytest.mark.parametrize("case", files.CASES, ids=[case[2] for case in files.CASES])
def test_a_bad_file_is_one_message(case, tmp_path, monkeypatch, capsys):
  command = files.make(case, tmp_path)
  assert case[2] in message(command, monkeypatch, capsys)


def test_there_are_two_hundred_cases():
  assert len(settings.SETTINGS) + len(files.CASES) >= 200
