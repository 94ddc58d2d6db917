"""The notebooks run from top to bottom, with fewer problems."""

import json
import pathlib
import sys
import types

import pytest

from configs import quickstart

NOTEBOOKS = sorted((pathlib.Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_cell_runs(path, tmp_path, monkeypatch, capsys):
  real, shown = quickstart.get_config, []

  def small():
    c = real()
    c.problems.update(train=16, cold_start=12, held_out=4, test=16)
    c.warm_up.steps = c.train.steps = 2
    return c

  display = types.ModuleType("IPython.display")
  display.SVG, display.display = str, shown.append
  monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
  monkeypatch.setitem(sys.modules, "IPython.display", display)
  monkeypatch.setattr(quickstart, "get_config", small)
  (tmp_path / "gen_ssd").mkdir()  # the root it finds, so that its runs stay here
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, "path", [*sys.path])
  notebook, scope = json.loads(path.read_text()), {}
  assert notebook["nbformat"] == 4 and notebook["cells"][0]["cell_type"] == "markdown"
  for cell in notebook["cells"]:
    if cell["cell_type"] == "code":
      assert not cell["outputs"]  # results would age
      source = "".join(line for line in cell["source"] if not line.startswith("%"))
      exec(compile(source, f"{path.name}:{cell['id']}", "exec"), scope)
  printed = capsys.readouterr().out
  assert "report: " in printed and "->" in printed and "k8" in printed
  assert len(shown) == 1 and shown[0].startswith("<svg") and "gen_ssd" in shown[0]
