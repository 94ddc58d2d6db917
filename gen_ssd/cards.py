"""Cards of what a run makes: the README.md of an arm's data set, and of a trained student.

They say what can be known from the run: models and their licences, settings, counts and the command.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import os
import pathlib
import re
from typing import Any

from gen_ssd import config as config_lib
from gen_ssd import provenance
from gen_ssd.models import hf
from gen_ssd.rows import Row

FILES = {
  "kept.parquet": "traces that the student was trained on; one per row",
  "traces.parquet": "all traces, one row per problem; `kept` marks those that were trained on",
  "preferences.parquet": "pairs of a chosen chunk and a losing candidate after the same prefix",
}
PAPER = "Gen-SSD ([arXiv 2604.02819](https://arxiv.org/abs/2604.02819))"


def data_set(
  config: config_lib.Config,
  name: str,
  rows: Sequence[Row],
  kept: Sequence[Row],
  counts: Mapping[str, int],
) -> str:
  """The card of arm `name`, of all rows of its collection and the kept ones.

  counts: {file name: number of its rows}.
  """
  from huggingface_hub import DatasetCardData

  front = DatasetCardData(
    task_categories=["text-generation"],
    tags=["gen-ssd", "reasoning", "distillation"],
    configs=[
      {"config_name": file.partition(".")[0], "data_files": file, "default": file == "kept.parquet"}
      for file in FILES
      if counts[file]
    ],
  )
  share = lambda n: f"{n / max(len(rows), 1):.1%}"
  lines = [f"| `{file}` | {counts[file]:,} | {what} |" for file, what in FILES.items()]
  facts = {
    "traces written": f"{len(rows):,}, with {sum(r['teacher_tokens'] for r in rows):,} teacher tokens",
    "right": share(sum(r["verdict"] == "right" for r in rows)),
    "pruned": share(sum(r["stop"] == "pruned" for r in rows)),
    "kept": f"{len(kept):,}, with {sum(r['num_tokens'] for r in kept):,} tokens",
    "problems": ", ".join(sorted({_source(r["source"]) for r in rows})),
  }
  parts = [
    f"---\n{front.to_yaml()}\n---",
    f"# {config.name}: traces of arm {name}",
    f"Chains of thought that a teacher wrote and a student helped to choose, made with {PAPER}.",
    "\n".join(["| file | rows | content |", "|---|---|---|", *lines]),
    _table(facts),
    _models(config),
    _settings(dict(config.arms)[name].select, config_lib.Select()),
    _made(),
    "The problems keep the licence of the set that they come from; the texts of the traces are the "
    "teacher's output, to which its licence may apply.",
  ]
  return "\n\n".join(parts) + "\n"


def student(config: config_lib.Config, title: str, train: config_lib.Train, examples: int) -> str:
  """The card of a student that was trained with `train` on this many examples."""
  from huggingface_hub import ModelCardData

  path = config.student.path
  front = ModelCardData(
    base_model=re.split("[@:]", path)[0] if _on_hub(path) else None,
    library_name="transformers",
    pipeline_tag="text-generation",
    tags=["gen-ssd", "reasoning", "distillation"],
  )
  parts = [
    f"---\n{front.to_yaml()}\n---",
    f"# {config.name}: {title}",
    f"A student that was fine-tuned on {examples:,} chains of thought of its teacher, with {PAPER}.",
    _models(config),
    _settings(train, config_lib.Train()),
    _made(),
  ]
  return "\n\n".join(parts) + "\n"


def _models(config):
  rows = {}
  for who in ("teacher", "student"):
    path = getattr(config, who).path
    name = path if _on_hub(path) or path.startswith("bundled/") else pathlib.PurePath(path).name
    rows[who] = f"`{name}`, licence: {licence(path)}"
  return _table(rows)


def licence(path: str) -> str:
  """What the README.md of a model says of its licence."""
  from huggingface_hub import metadata_load

  folder = hf.locate(path)
  if pathlib.Path(folder).parent == pathlib.Path(hf.BUNDLED):
    return "apache-2.0"
  file = os.path.join(folder, "README.md")
  try:
    found = metadata_load(file) if os.path.isfile(file) else None
  except Exception:  # of a YAML parser, whose only input is the file
    found = None
  said = (found or {}).get("license")
  return said if isinstance(said, str) and said.isprintable() else "not stated beside its weights"


def _on_hub(path):
  return not os.path.exists(path) and not path.startswith("bundled/") and path.count("/") == 1


def _source(name):
  return pathlib.PurePath(name).name if "/" in name and not name.startswith("hf:") else name


def _settings(s, default):
  """The settings that are not at their defaults."""
  mine, plain = config_lib.plain(s), config_lib.plain(default)
  return _table({f"`{n}`": f"`{x}`" for n, x in mine.items() if x != plain[n]}, "setting")


def _made():
  found = provenance.provenance()
  packages = ", ".join(f"{n} {v}" for n, v in found["packages"].items() if v)
  return _table(
    {
      "command": f"`{found['command']}`",
      "commit": found["commit"] or "not known",
      "devices": f"{found['devices']} x {found['device']}",
      "packages": packages,
    }
  )


def _table(facts: Mapping[str, Any], head: str = "fact"):
  cell = lambda x: " ".join(str(x).split()).replace("|", "\\|")
  rows = [f"| {cell(name)} | {cell(value)} |" for name, value in facts.items()]
  return "\n".join([f"| {head} | value |", "|---|---|", *rows])
