"""A workdir is used by one run at a time; tests/config_test.py has whose it is."""

import fcntl
import os
import subprocess
import sys

import pytest

from gen_ssd import claims
from gen_ssd import config
from gen_ssd.errors import UserError
from tests import paths
from tests import tiny

CONFIG = config.parse({"teacher": {"path": "t"}, "student": {"path": "s"}})
HOLD = """
import sys, time
from gen_ssd import claims, config
with claims.claimed(sys.argv[1], config.parse({"teacher": {"path": "t"}, "student": {"path": "s"}})):
  print("held", flush=True)
  time.sleep(600)
"""


def test_a_second_run_says_who_has_the_workdir(tmp_path):
  with claims.claimed(tmp_path, CONFIG):
    said = f"is in use by process {os.getpid()} on "
    assert (tmp_path / "lock").read_text().startswith(f"process {os.getpid()} on ")
    with pytest.raises(
      UserError, match=said + r".*; wait until that ends, or use another --workdir"
    ):
      tiny.claim(tmp_path, CONFIG)
  tiny.claim(tmp_path, CONFIG)
  assert (tmp_path / "lock").read_text() == ""


def test_the_lock_of_a_killed_run_is_taken_over(tmp_path):
  holder = subprocess.Popen(
    [sys.executable, "-c", HOLD, str(tmp_path)], cwd=paths.ROOT, stdout=subprocess.PIPE, text=True
  )
  assert holder.stdout.readline() == "held\n"
  with pytest.raises(UserError, match=f"is in use by process {holder.pid} on "):
    tiny.claim(tmp_path, CONFIG)
  holder.kill()
  holder.wait()
  assert f"process {holder.pid}" in (tmp_path / "lock").read_text()  # stale
  with claims.claimed(tmp_path, CONFIG):
    assert f"process {os.getpid()}" in (tmp_path / "lock").read_text()


def test_the_workdir_of_another_config_is_not_locked(tmp_path):
  tiny.claim(tmp_path, CONFIG)
  with pytest.raises(UserError, match="belongs to another config"):
    tiny.claim(tmp_path, config.parse({"name": "other"}))
  tiny.claim(tmp_path, CONFIG)


def test_a_run_may_get_more_seeds_and_not_fewer(tmp_path):
  with_seeds = lambda n: config.parse(config.settings(CONFIG) | {"seeds": n})
  tiny.claim(tmp_path, with_seeds(2))
  tiny.claim(tmp_path, with_seeds(3))
  with pytest.raises(UserError, match="belongs to another config: seeds is 3 there and 2 here"):
    tiny.claim(tmp_path, with_seeds(2))


def test_a_file_system_without_locks_is_no_obstacle(tmp_path, monkeypatch):
  def unsupported(*arguments):
    raise OSError(95, "Operation not supported")

  monkeypatch.setattr(fcntl, "flock", unsupported)
  tiny.claim(tmp_path, CONFIG)
