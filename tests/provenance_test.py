"""What made a result is named: commit, packages, devices, command."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from gen_ssd import provenance


def git(folder, *args):
  options = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-C", str(folder)]
  return subprocess.run(["git", *options, *args], check=True, capture_output=True, text=True).stdout


def test_it_names_packages_and_devices_and_is_json():
  found = provenance.provenance()
  assert json.loads(json.dumps(found)) == found == provenance.provenance()
  assert found["packages"]["jax"] == jax.__version__
  assert found["packages"]["numpy"] == np.__version__
  assert found["packages"].keys() == {*provenance.PACKAGES}
  assert found["devices"] == jax.device_count() and found["device"] == jax.devices()[0].device_kind
  assert found["python"] == ".".join(map(str, sys.version_info[:3]))
  assert provenance._version("no-such-package-of-ours") is None


def test_the_commit_of_a_checkout(tmp_path):
  git(tmp_path, "init", "-q")
  (tmp_path / "a.py").write_text("1")
  git(tmp_path, "add", ".")
  git(tmp_path, "commit", "-qm", "one")
  head = git(tmp_path, "rev-parse", "HEAD").strip()
  assert provenance._commit(tmp_path) == head
  (tmp_path / "untracked").touch()
  assert provenance._commit(tmp_path) == head
  (tmp_path / "a.py").write_text("2")
  assert provenance._commit(tmp_path) == f"{head}-dirty"


def test_an_installed_package_has_no_commit(tmp_path):
  git(tmp_path, "init", "-q")  # somebody else's checkout around site-packages
  (tmp_path / "site-packages").mkdir()
  assert provenance._commit(tmp_path / "site-packages") is None
  assert provenance._commit(tmp_path) is None  # no commit yet


@pytest.mark.parametrize(
  "says, commit", [("a" * 40, "a" * 40), ("b" * 40 + "-dirty",) * 2, ("1.2", None)]
)
def test_a_copy_by_a_launch_script_names_its_commit(tmp_path, says, commit):
  (tmp_path / "REVISION").write_text(f"{says}\n")
  assert provenance._commit(tmp_path) == commit


@pytest.mark.parametrize(
  "typed,command",
  [
    (["/opt/v/bin/python3", "-m", "gen_ssd", "run", "a b"], "python -m gen_ssd run 'a b'"),
    (["/opt/v/bin/python3", "-u", "-m", "gen_ssd.main"], "python -u -m gen_ssd.main"),
    (["/opt/v/bin/python3", "/opt/v/bin/gen-ssd", "run", "--k=2"], "gen-ssd run --k=2"),
    (["python", "/home/me/pod.py", "x"], "python pod.py x"),
  ],
)
def test_the_command_is_as_typed(typed, command):
  assert provenance._command(typed) == command
