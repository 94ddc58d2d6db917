"""How a command ends: mistakes, signals and a full disk in one line; bugs with their traceback."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from gen_ssd import errors
from tests import paths


def ended(error, capsys):
  """(exit code, what is printed) when the error is raised in a command."""
  with pytest.raises(SystemExit) as stopped, errors.command():
    raise error
  return stopped.value.code, capsys.readouterr().err


def test_a_mistake_is_one_message(capsys):
  code, said = ended(errors.UserError("k is 0: it must be at least 1"), capsys)
  assert (code, said) == (2, "gen_ssd: k is 0: it must be at least 1\n")
  assert ended(FloatingPointError("loss not finite"), capsys) == (2, "gen_ssd: loss not finite\n")


@pytest.mark.parametrize("number", errors.MACHINE)
def test_what_the_machine_lacks_is_one_message_with_the_path(number, capsys):
  code, said = ended(OSError(number, os.strerror(number), "runs/mine"), capsys)
  assert (code, said) == (2, f"gen_ssd: runs/mine: {errors.MACHINE[number]}\n")


@pytest.mark.parametrize(
  "bug", [ValueError("shape"), KeyError("k"), OSError(errno.ENOENT, "no such file", "x")]
)
def test_a_bug_keeps_its_traceback(bug):
  with pytest.raises(type(bug)), errors.command():
    raise bug


@pytest.mark.parametrize(
  "number,code,name", [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")]
)
def test_a_signal_ends_in_one_line_that_says_how_to_go_on(number, code, name):
  script = (
    "import os, signal, sys, time\nfrom gen_ssd import errors\n"
    f"with errors.command():\n  os.kill(os.getpid(), {int(number)})\n  time.sleep(60)\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", script], cwd=paths.ROOT, capture_output=True, text=True, timeout=50
  )
  assert done.returncode == code
  assert done.stderr == f"\ngen_ssd: stopped by {name}; the same command continues\n"


def test_values_are_shown_short_and_without_control_characters():
  with pytest.raises(errors.UserError) as caught:
    errors.fail("name", "\x1b[31m" + "x" * 10_000, "short")
  said = str(caught.value)
  assert said.isprintable() and len(said) < 300
  assert "(10,010 characters): it must be short" in said  # as repr writes it
  with pytest.raises(errors.UserError, match="k is a number of thousands of digits: it must be"):
    errors.fail("k", 10**5000, "small")
  assert errors.clip("a\x00b\nc", 9) == "a\\x00b\nc"


def test_output_that_nobody_reads_ends_in_one_line():
  script = "from gen_ssd import errors\nwith errors.command():\n  print('a table', flush={})\n"
  for flush in (True, False):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
      [sys.executable, "-c", script.format(flush)],
      cwd=paths.ROOT,
      stdout=writer,
      stderr=subprocess.PIPE,
      text=True,
    )
    os.close(writer)
    assert done.returncode == 141
    assert done.stderr == (
      "\ngen_ssd: stopped, nobody reads what it prints; the same command continues\n"
    )


def test_no_file_of_a_run_gets_the_number_of_a_closed_stream(tmp_path):
  script = (
    "import os, pathlib, sys\nfrom gen_ssd import errors\n"
    "with errors.command(), open(sys.argv[1], 'w') as file:\n  os.write(2, b'a warning')\n"
  )
  done = subprocess.run(
    ["sh", "-c", 'exec "$0" -c "$1" "$2" <&- >&- 2>&-', sys.executable, script, tmp_path / "x"],
    cwd=paths.ROOT,
  )
  assert done.returncode == 0 and (tmp_path / "x").read_text() == ""
