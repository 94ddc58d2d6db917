"""The files of a run: folder names, and readers; claims.py says whose a workdir is."""

from collections.abc import Callable
from collections.abc import Iterator
import dataclasses
import hashlib
import json
import re
import sys
from typing import Any

from gen_ssd import config as config_lib
from gen_ssd import folders
from gen_ssd import rows
from gen_ssd.errors import UserError
from gen_ssd.errors import clip
from gen_ssd.folders import Path

DEEPEST = 100  # levels of nesting in a JSON file


def short_hash(s):
  """The folder name of a collection or calibration with the Select `s`: 10 hex digits.

  Only settings that differ from their defaults enter the hash, so a new setting renames no folder.
  """
  changed = {
    name: x for name, x in config_lib.plain(s).items() if x != getattr(config_lib.Select(), name)
  }
  return hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:10]


def collection_hash(s, arms):
  """The folder name of the collection of Select `s`; `arms` as in Config.

  A collection that goes on from another one depends on what that is, not on an arm's name.
  """
  plain = config_lib.collection(s)
  if plain.after:
    source = collection_hash(dict(arms)[plain.after].select, arms)
    plain = dataclasses.replace(plain, after=source)
  return short_hash(plain)


# ---------------------------------------------------------------- what a run reads back


def read_jsonl(path: Path, fits: Callable[[Any], bool] | None = None) -> tuple[list[Any], int]:
  """Reads a JSONL file of traces or candidates: (rows, number of damaged lines).

  A missing file counts as one damaged line. A line is damaged when it is not JSON, when its object
  has no `uuid` or no `attempt`, and when `fits`, for example rows.is_row, says so.
  """
  try:
    lines = [x for x in path.read_bytes().splitlines() if x.strip()]
  except (FileNotFoundError, IsADirectoryError):
    return [], 1
  good = []
  for line in lines:
    try:
      found = json.loads(line)
      found["uuid"], found["attempt"]
      if fits is None or fits(found):
        good.append(found)
    except (ValueError, KeyError, TypeError, RecursionError):
      pass
  return good, len(lines) - len(good)


def fence(folder: Path) -> tuple[int, Any]:
  """(how many shards count, the slots as they are in in_flight.json) of a collection's last fence.

  Where in_flight.json is damaged: all the shards there are, and None for the slots. Raises
  FileNotFoundError when there was no fence yet.
  """
  found = [p.stem.removeprefix("traces-") for p in folder.glob("traces-*.jsonl")]
  try:
    state = json.loads((folder / "in_flight.json").read_bytes())
    count, slots = state["shards"], state["slots"]
  except FileNotFoundError:
    raise
  except (OSError, ValueError, KeyError, TypeError, RecursionError):
    return len(found), None
  last = max((int(x) for x in found if x.isdecimal()), default=-1)
  if type(count) is not int or last not in (count - 1, count):  # a killed run left one more
    return len(found), None
  return count, slots


def finished_rows(folder: Path) -> list[rows.Row]:
  """Rows of the finished traces in a collection's folder; damaged ones are named on stderr.

  Only reads: repairs nothing.
  """
  try:
    count, _ = fence(folder)
  except FileNotFoundError:
    return []
  paths = [folder / f"traces-{i:05d}.jsonl" for i in range(count)]
  return [r for path in paths for r in _sound(path, rows.is_row)]


def lost_candidates(folder: Path) -> Iterator[rows.Lost]:
  """Yields the rows of a collection's lost candidates, in the order of writing.

  Damaged ones are named on stderr.
  """
  for shard in sorted(folder.glob("candidates-*.jsonl")):
    yield from _sound(shard, rows.is_lost)


def _sound(path, fits):
  good, bad = read_jsonl(path, fits)
  if bad:
    print(f"{path} is damaged in {bad} line(s), which are left out", file=sys.stderr)
  return good


def read_json(path: Path, remedy: str) -> Any:
  """The JSON value of a file. Raises UserError, which ends with `remedy`, where there is none."""
  try:
    value = json.loads(path.read_text(encoding="utf-8"))
    within = [value]
    for _ in range(DEEPEST):
      within = [v for x in within for v in _inner(x)]
    if within:
      raise ValueError(f"nested more than {DEEPEST} levels deep")
    return value
  except (FileNotFoundError, NotADirectoryError):
    damage = "is missing"
  except IsADirectoryError:
    damage = "is a folder, not a file"
  except UnicodeDecodeError:
    damage = "is damaged (not UTF-8 text)"
  except RecursionError:
    damage = f"is damaged (nested more than {DEEPEST} levels deep)"
  except ValueError as error:
    damage = f"is damaged (not JSON as it should be: {error})"
  raise UserError(f"{clip(str(path))} {damage}: {remedy}")


def _inner(x):
  return x.values() if isinstance(x, dict) else x if isinstance(x, list) else ()


def has_student(home: Path) -> bool:
  """Is there a trained student in `home`, whole? Its config.json is written last."""
  return (home / "student" / "config.json").exists()


def is_collection(name: Any) -> bool:
  """Can this be the name of a folder of traces: is it a plain name that leads nowhere else?"""
  return isinstance(name, str) and bool(re.fullmatch(r"[\w-]{1,100}", name, re.ASCII))


def _remedy(arm):
  return (
    f"delete {clip(str(arm / 'kept.json'))}, of a sweep also the run's report.html, and the same "
    "command makes it again (the stage collect does)"
  )


def collection(workdir: Path, name: str) -> Path:
  """The folder of the collection that arm `name` took its traces from.

  Raises UserError where the arm's traces.json does not say so.
  """
  arm = workdir / "arms" / name
  pointer = read_json(arm / "traces.json", _remedy(arm))
  found = pointer.get("collection") if isinstance(pointer, dict) else None
  if not is_collection(found):
    raise UserError(
      f"{arm / 'traces.json'} is damaged (it is {clip(repr(pointer))}, and must name a folder of "
      f'traces/ as {{"collection": NAME}}): {_remedy(arm)}'
    )
  return workdir / "traces" / found


def thresholds(workdir: Path, name: str) -> list[float]:
  """The thresholds of arm `name`, in nats: one for every student that chose; none where it is off.

  Raises UserError where the arm's traces.json does not say so.
  """
  arm = workdir / "arms" / name
  found = read_json(arm / "traces.json", _remedy(arm)).get("thresholds")
  if not isinstance(found, list) or not all(type(x) in (int, float) for x in found):
    what = f"thresholds is {clip(repr(found))}, and must be a list of numbers"
    raise UserError(f"{arm / 'traces.json'} is damaged ({what}): {_remedy(arm)}")
  return found


def answers(home: Path, test: str) -> Path:
  """The folder of the answers to a test; a single test may have an empty name."""
  return home / "-".join(filter(None, ("answers", test)))


def arm_rows(workdir: Path, name: str) -> tuple[list[rows.Row], list[rows.Row]]:
  """(all rows, kept rows) of arm `name`, after its traces are collected.

  Raises UserError where kept.json or traces.json of the arm is missing or damaged, and where the
  shards lack a trace that kept.json names.
  """
  arm = workdir / "arms" / name
  path, folder = arm / "kept.json", collection(workdir, name)
  pairs = read_json(path, _remedy(arm))
  if not isinstance(pairs, list) or not all(map(_is_pair, pairs)):
    what = f"it is {clip(repr(pairs))}, and must be a list of pairs of uuid and attempt"
    raise UserError(f"{path} is damaged ({what}): {_remedy(arm)}")
  found = finished_rows(folder)
  by_pair = {(r["uuid"], r["attempt"]): r for r in found}
  if missing := [pair for pair in pairs if tuple(pair) not in by_pair]:
    what = f"it names {clip(repr(missing[0]))}, which is not among the traces in {folder}"
    raise UserError(f"{path} is damaged ({what}): {_remedy(arm)}")
  return found, [by_pair[tuple(pair)] for pair in pairs]


def _is_pair(x):
  return isinstance(x, list) and [type(v) for v in x] == [str, int]


def arm_answers(workdir: Path, name: str) -> list[list[rows.Row]]:
  """The answers of the students of arm `name`, on all tests: one list of rows per seed."""
  homes = [p for p in (workdir / "arms" / name).glob("seed-*") if p.name[5:].isdecimal()]
  return [
    [r for folder in sorted(home.glob("answers*")) for r in finished_rows(folder)]
    for home in sorted(homes, key=lambda p: int(p.name[5:]))
  ]


README = """# {name}

A run of Gen-SSD. The command that started it continues it, and gives the same files.
`gen-ssd report --workdir=.` draws `report.html` again, also while the run is under way.

| path | what it is |
|---|---|
| `config.json` | every setting, and the identities of the models |
| `overlap.json` | problems that are not trained on, as near duplicates of test problems |
| `lock` | the process that is using the folder; empty when none is |
| `report.html` | the page: results, intervals, traces with all candidates |
| `results.json` | the figures of the page, for every arm and seed |
| `cold_start/traces/` | the teacher's traces for the cold start |
| `cold_start/student/` | the student that scores candidates, in Hugging Face format |
| `cold_start/checkpoints/` | Orbax checkpoints of its training, and `metrics.jsonl` |
| `cold_start/calibration-*/` | traces that calibrate the threshold |
| `traces/*/traces-*.jsonl` | finished traces; arms that generate in the same way share a folder |
| `traces/*/candidates-*.jsonl` | candidates that were not kept, with their scores |
| `traces/*/in_flight.json` | traces under way, from which a stopped run goes on |
| `traces/*/times.csv` | how long that took, and its tokens; other folders of work have one, too |
| `arms/*/kept.json` | which traces the arm trains on, as (uuid, attempt) |
| `arms/*/dataset/` | the arm's traces, kept traces and preference pairs as Parquet, with a card |
| `arms/*/traces.json` | the name of the folder below `traces/`, and the thresholds in nats |
| `arms/*/seed-*/student/` | the trained student, in Hugging Face format |
| `arms/*/seed-*/answers*/` | its answers to the test problems |
| `arms/*/seed-*/held_out.json` | its mean nll of right answers of the teacher to test problems |
| `arms/*/seed-*/instruments.json` | its entropy, and how far it is from the teacher |
| `arms/*/seed-*/checkpoints/` | Orbax checkpoints, and `metrics.jsonl` |
| `models/*/answers*/` | answers of the teacher, the base student and the cold-started student |
| `models/*/held_out.json` | as for an arm, of the two students |
| `models/*/instruments.json` | the same |
| `models/teacher/samples/` | its traces to held-out problems, for these files |

A student that scores for another arm has `calibration-*/`, too, and one that writes while it learns
has `rounds/*/traces/`. The setting `trackers` adds `tensorboard/` and `wandb/`, and `tracker_id`, by
which the trackers know the run.
"""


def describe(workdir: Path, name: str) -> None:
  """Writes README.md: what every file and folder of the run `name` is."""
  folders.write(workdir / "README.md", README.format(name=name))
