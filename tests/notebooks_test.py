"""The notebooks run from top to bottom, with fewer problems, inside a clone and outside one."""

import json
import pathlib
import subprocess
import sys
import types

import pytest

from configs import quickstart
from gen_ssd import stages  # and with it all that looks for IPython, before the test replaces it

pytestmark = pytest.mark.usefixtures("shared_programs")

NOTEBOOKS = sorted((pathlib.Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
SHOWS = {  # of each notebook: texts that it prints, and one of its figure
  "quickstart": ("report: ", "k8", "gen_ssd"),
  "traces": ("16 traces, ", "rounds had equal scores", "== easiest: ", "== hardest: ", "rejected"),
}
notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


def _source(cell):
  """The Python of a code cell: lines of IPython are left out."""
  return "".join(line for line in cell["source"] if not line.startswith("%"))


def _root_cell(path):
  [cell] = [c for c in json.loads(path.read_text())["cells"] if c["id"] == "root"]
  return _source(cell)


@notebooks
def test_every_cell_runs(path, tmp_path, monkeypatch, capsys):
  real, shown = quickstart.get_config, []

  def small():
    c = real()
    c.problems.update(train=16, cold_start=12, held_out=4, test=16)
    for train in (c.warm_up, c.train):
      train.update(steps=2, warmup_steps=2)
    return c

  display = types.ModuleType("IPython.display")
  display.SVG, display.display = str, shown.append
  monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
  monkeypatch.setitem(sys.modules, "IPython.display", display)
  monkeypatch.setattr(quickstart, "get_config", small)
  (tmp_path / "gen_ssd").mkdir()  # makes it the root, so that the runs go there
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, "path", [*sys.path])
  notebook, scope = json.loads(path.read_text()), {}
  for cell in notebook["cells"]:
    if cell["cell_type"] == "code":
      exec(compile(_source(cell), f"{path.name}:{cell['id']}", "exec"), scope)
  assert scope["root"] == tmp_path and scope["stages"] is stages
  printed = capsys.readouterr().out
  assert all(text in printed for text in ("->", *SHOWS[path.stem][:-1]))
  assert len(shown) == 1 and shown[0].startswith("<svg") and SHOWS[path.stem][-1] in shown[0]


@notebooks
def test_it_is_stored_without_outputs_and_says_how_to_open_and_install_it(path):
  notebook = json.loads(path.read_text())
  first, *cells = notebook["cells"]
  assert notebook["nbformat"] == 4 and first["cell_type"] == "markdown"
  assert "colab-badge.svg" in "".join(first["source"])
  code = [c for c in cells if c["cell_type"] == "code"]
  assert not any(c["outputs"] or c["execution_count"] for c in code)  # results would age
  installs = [c for c in code if any("pip install" in line for line in c["source"])]
  assert len(installs) == 1 and code.index(installs[0]) == 1
  assert all(extra in "".join(installs[0]["source"]) for extra in ("jax[cuda12]", "jax[tpu]"))


@notebooks
def test_outside_a_clone_it_asks_for_the_repository(path, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match="set REPOSITORY"):
    exec(_root_cell(path), {})
  assert not any(tmp_path.iterdir())


@notebooks
def test_outside_a_clone_it_clones_once(path, tmp_path, monkeypatch):
  origin, outside = tmp_path / "origin", tmp_path / "outside"
  (origin / "gen_ssd").mkdir(parents=True)
  outside.mkdir()
  (origin / "gen_ssd" / "__init__.py").write_text("")
  git = ["git", "-C", str(origin), "-c", "user.name=test", "-c", "user.email=test@localhost"]
  for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "all"]):
    subprocess.run([*git, *command], check=True)
  monkeypatch.chdir(outside)
  monkeypatch.setattr(sys, "path", [*sys.path])
  cell = _root_cell(path)
  assert cell.count('REPOSITORY = ""') == 1
  for source in (cell.replace('REPOSITORY = ""', f'REPOSITORY = "{origin.as_uri()}"'), cell):
    scope = {}
    exec(source, scope)  # the second time, the clone of the first is found
    assert scope["root"] == outside / "gen-ssd" and sys.path[0] == str(scope["root"])
  assert (outside / "gen-ssd" / "gen_ssd" / "__init__.py").exists()


@notebooks
def test_inside_a_clone_nothing_is_cloned(path, tmp_path, monkeypatch):
  (tmp_path / "gen_ssd").mkdir()
  (tmp_path / "notebooks").mkdir()
  monkeypatch.chdir(tmp_path / "notebooks")
  monkeypatch.setattr(sys, "path", [*sys.path])
  monkeypatch.setattr(subprocess, "run", None)
  scope = {}
  exec(_root_cell(path).replace('REPOSITORY = ""', 'REPOSITORY = "owner/name"'), scope)
  assert scope["root"] == tmp_path
