"""The page of a sweep: its tables and figures in one file."""

from collections.abc import Mapping
import datetime
from typing import Any

from gen_ssd.report import comparison_figures
from gen_ssd.report import comparison_tables
from gen_ssd.report import figures
from gen_ssd.report import templates
from gen_ssd.report import words

TITLES = {"arms.svg": "Accuracy", "paired.svg": "Paired differences", "items.svg": "Items"}
TITLES |= {"sweeps.svg": "Sweeps"}


def html(found: Mapping[str, Any], name: str) -> str:
  """The page of the sweep `name`. found: sweep.json."""
  drawn = comparison_figures.panels(found)
  return templates.template("sweep").render(
    style=figures.STYLE,
    name=words.cut(name, 100),
    items=[words.cut(item, 100) for item in found["items"]],
    tables=comparison_tables.tables(found),
    unfinished=comparison_tables.unfinished(found),
    figures=[(TITLES[file], panels) for file, (panels, _) in drawn.items()],
    time=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
  )
