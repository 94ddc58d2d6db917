"""One self-contained HTML page per run: arms, intervals, distributions, branch trees.

This file makes plain data of what the page says; page.html.jinja makes HTML of it.
"""

import base64
import datetime
import hashlib
import importlib.metadata
import itertools
import json
from pathlib import Path
import platform

from markupsafe import Markup

from gen_ssd import folders
from gen_ssd.errors import UserError
from gen_ssd.report import durations
from gen_ssd.report import figures
from gen_ssd.report import instruments
from gen_ssd.report import overlap
from gen_ssd.report import panels
from gen_ssd.report import picking
from gen_ssd.report import reading
from gen_ssd.report import sample
from gen_ssd.report import table
from gen_ssd.report import templates
from gen_ssd.report import values
from gen_ssd.report import words
from gen_ssd.report.figures import fixed
from gen_ssd.report.words import cut

MOST_BYTES = {"text": 2_500_000, "mathml": 300_000}  # of listed texts, before formulas are drawn
SCRIPT = (Path(__file__).parent / "page.js").read_text(encoding="utf-8")
MOST = 64  # notes


def write_report(
  workdir: str | folders.Path, trees: int = 6, formulas: str = "text"
) -> folders.Path:
  """Draws `workdir/report.html` from what the run has written so far and returns its path.

  `trees` is the number of branch trees to show. LaTeX of problems and traces is shown as `formulas`:
  "text", or "mathml", which browsers draw. Raises UserError when config.json is missing or is
  not a JSON object, and OSError when the page cannot be written; any other missing or broken file is
  named in the footer. Long texts are cut, with their length, and control characters are shown.
  """
  workdir = folders.path(workdir)
  path = workdir / "report.html"
  if path.is_dir():
    raise UserError(f"{path} is a folder: remove it, the page goes there")
  run = reading.read_run(workdir, trees)
  page = templates.template("page", formulas).render(
    style=figures.STYLE,
    script=Markup(SCRIPT),
    script_hash=base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode(),
    heading=_heading(run),
    table=table.table(run),
    diversity=table.diversity(run.arms),
    picks=table.picks(run.arms),
    accuracy=panels.accuracy(run),
    distributions=panels.distributions(run.arms),
    training=panels.training(run.arms),
    instruments=instruments.table(run),
    durations=durations.table(workdir, run),
    trees=picking.trees(run, trees),
    listed=sample.listed(run, MOST_BYTES[formulas]),
    left_out=overlap.section(workdir, run.notes),
    footer=_footer(run),  # last: by now every note is written
  )
  folders.write(path, words.visible(page))
  return path


def _short(x):
  return cut(x, values.SHORT)


def _heading(run):
  config, select = run.config, values.as_dict(run.config.get("select"))
  paths = [str(values.as_dict(config.get(who)).get("path", who)) for who in ("teacher", "student")]
  teacher, student = (_short("/".join(path.rstrip("/").split("/")[-2:])) for path in paths)
  sizes = [values.number(select.get(k)) for k in ("k", "c")]
  k, c = (f"{x:.0f}" if x else words for x, words in zip(sizes, ("several", "a few")))
  scorer = _short(select.get("scorer", "perplexity"))
  settings = [n for n in ("temperature", "slots", "max_tokens") if n in select]
  return {
    "title": _short(config.get("name", "Gen-SSD run")),
    "name": _short(config.get("name", "unnamed")),
    "teacher": teacher,
    "student": student,
    "k": k,
    "c": c,
    "scorer": scorer,
    "facts": [
      ("teacher", teacher),
      ("student", student),
      ("candidates K", k),
      ("chunk C, tokens", c),
      ("score", scorer),
      *((n.replace("_", " "), _short(select[n])) for n in settings),
      ("arms", len(run.arms)),
    ],
  }


def _versions():
  names = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
  known = [f"{n} {names[n]}" for n in ("gen-ssd", "jax", "numpy") if n in names]
  return ", ".join([f"python {platform.python_version()}", *known])


def _made_by(x):
  """(name, text) of what made results.json, as far as it says so; see provenance.MadeBy."""
  made = values.as_dict(x)
  packages = values.as_dict(made.get("packages")).items()
  versions = [f"{_short(name)} {_short(v)}" for name, v in itertools.islice(packages, MOST) if v]
  if made.get("python"):
    versions.insert(0, f"python {_short(made['python'])}")
  devices = values.number(made.get("devices"))
  device = f"{fixed(devices, 0)} × {_short(made.get('device'))}" if devices is not None else ""
  facts = [
    ("versions", ", ".join(versions)),
    ("commit", _short(made.get("commit") or "")),
    ("devices", device),
    ("command", cut(made.get("command") or "", 2000)),
  ]
  return [(name, text) for name, text in facts if text]


def _footer(run):
  notes = list(dict.fromkeys(run.notes))
  more = [f"and more: {len(notes) - MOST:,} other notes"] if len(notes) > MOST else []
  return {
    "notes": [cut(note, 300) for note in notes[:MOST]] + more,
    "time": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    "versions": _versions(),
    "made_by": _made_by(run.results.get("made_by")),
    "config": cut(json.dumps(run.config, indent=1, ensure_ascii=False), 100_000),
  }
