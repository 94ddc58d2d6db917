"""The command line: help that fits a screen, one message for what is wrong, and real commands."""

import json
import os
import subprocess
import sys

import pytest

from gen_ssd import __main__ as cli
from gen_ssd.models import architecture
from gen_ssd.models import hf
from tests import paths

NAMES = ", ".join(cli.COMMANDS)


def call(*arguments, module="gen_ssd"):
  """(exit code, stdout, stderr) of `python -m MODULE ARGUMENTS`."""
  done = subprocess.run(
    [sys.executable, "-m", module, *map(str, arguments)],
    cwd=paths.ROOT,
    capture_output=True,
    text=True,
  )
  return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("command", [None, *cli.COMMANDS])
def test_help_fits_a_screen_and_shows_an_example(command):
  code, printed, _ = call(*filter(None, (command,)), "--help")
  lines = printed.splitlines()
  assert code == 0 and 4 < len(lines) <= 24 and max(map(len, lines)) <= 100
  assert f"  gen-ssd {command or 'run'} --" in printed
  if command is None:
    assert all(f"  {name} " in printed for name in cli.COMMANDS)


def test_no_command_is_help_and_an_error():
  code, printed, _ = call()
  assert code == 2 and printed.strip() == cli.usage()


@pytest.mark.parametrize(
  "arguments,message",
  [
    (["rum"], f"gen-ssd: 'rum' is not a command: it must be one of {NAMES}; did you mean run?"),
    (["7"], f"gen-ssd: '7' is not a command: it must be one of {NAMES}"),
    (["weights", "--check", "nowhere"], "gen_ssd: nowhere: there is no config.json"),
    (["report", "--workdir=nowhere"], "gen_ssd: --workdir=nowhere does not exist: it must be"),
    (["sweep", "--config=nowhere.py", "--workdir=x"], "gen_ssd: --config is 'nowhere.py': it"),
  ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(arguments, message):
  code, _, error = call(*arguments)
  last = error.strip().splitlines()[-1]
  assert code == 2 and last.startswith(message) and "Traceback" not in error


def test_run_takes_the_flags_of_the_long_form(tmp_path):
  flags = ["--config=configs/quickstart.py", f"--workdir={tmp_path}", "--config.select.k=0"]
  for answer in (call("run", *flags), call(*flags, module="gen_ssd.main")):
    assert answer[0] == 2 and "gen_ssd: select.k is 0: it must be at least 1" in answer[2]
  assert not list(tmp_path.iterdir())


def test_the_installed_script_finds_what_a_config_file_imports(tmp_path):
  (tmp_path / "values.py").write_text("K = 0")
  (tmp_path / "mine.py").write_text(
    "import values\nfrom configs import quickstart\n\n"
    "def get_config():\n  c = quickstart.get_config()\n  c.select.k = values.K\n  return c\n"
  )
  script = "from gen_ssd.__main__ import main; main()"  # -P: a script does not see its directory
  done = subprocess.run(
    [sys.executable, "-P", "-c", script, "run", "--config=mine.py", "--workdir=out"],
    cwd=tmp_path,
    env={**os.environ, "PYTHONPATH": str(paths.ROOT)},
    capture_output=True,
    text=True,
  )
  assert done.stderr.splitlines()[-1] == "gen_ssd: select.k is 0: it must be at least 1"


@pytest.mark.parametrize("module", ["gen_ssd", "gen_ssd.weights"])
def test_bundled_models_can_be_checked(module):
  command = ["weights"] * (module == "gen_ssd")
  code, printed, error = call(*command, "--check", "bundled/teacher", module=module)
  assert code == 0, error
  size = architecture.parameters(hf.read_architecture(hf.locate("bundled/teacher")))
  assert "architecture  qwen3: vocab" in printed and f"parameters    {size:,}\n" in printed
  assert "logits        " in printed


def test_a_page_is_drawn_again(tmp_path):
  (tmp_path / "config.json").write_text(json.dumps({"name": "mine"}))
  code, printed, _ = call(f"--workdir={tmp_path}", module="gen_ssd.report")
  assert code == 0 and printed == f"report: {tmp_path / 'report.html'}\n"
  assert "mine" in (tmp_path / "report.html").read_text()


def test_a_signal_while_a_command_is_imported_ends_in_one_line(tmp_path):
  (tmp_path / "slow.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
  script = (
    "import sys\nfrom gen_ssd import __main__ as cli\n"
    "cli.COMMANDS['run'] = ('slow', '')\nsys.argv = ['gen-ssd', 'run']\ncli.main()\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", script],
    env={**os.environ, "PYTHONPATH": f"{paths.ROOT}:{tmp_path}"},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 130
  assert done.stderr == "\ngen_ssd: stopped by Ctrl-C; the same command continues\n"


@pytest.mark.parametrize(
  "name,value,says",
  [
    ("JAX_PLATFORMS", "gpus", "jax finds no devices: Unable to initialize backend 'gpus'"),
    ("JAX_ENABLE_X64", "1", "JAX_ENABLE_X64 is set: unset it"),
  ],
)
def test_a_wrong_environment_is_one_message(name, value, says, tmp_path, monkeypatch):
  monkeypatch.setenv(name, value)
  code, _, said = call("run", "--config=configs/quickstart.py", f"--workdir={tmp_path / 'run'}")
  assert code == 2 and f"gen_ssd: {says}" in said and "Traceback" not in said
  assert not list(tmp_path.iterdir())
