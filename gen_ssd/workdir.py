"""The files of a run: the claim on its workdir, folder names, atomic writes, and readers."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import pathlib
import socket

import jax

from gen_ssd import config as config_lib
from gen_ssd import mesh as mesh_lib
from gen_ssd.errors import UserError
from gen_ssd.errors import clip
from gen_ssd.errors import fail


def short_hash(s):
  """The folder name of a collection or calibration with the Select `s`: 10 hex digits.

  Only settings that differ from their defaults enter the hash, so a new setting renames no folder.
  """
  changed = {
    name: x for name, x in config_lib.plain(s).items() if x != getattr(config_lib.Select(), name)
  }
  return hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:10]


@contextlib.contextmanager
def claimed(workdir, config, identities=None):
  """Claims `workdir` for this config: writes config.json, and holds the lock meanwhile.

  Raises UserError, in every process, when the workdir cannot be written, is in use, or belongs to
  another config; the message names the field that differs. Only `stages` may differ. `identities`
  maps fields to hashes of what they name, so that weights or problems replaced under the same path
  are noticed. A setting that is newer than the workdir counts as having its default there.
  """
  with contextlib.ExitStack() as held:

    def claim():
      held.enter_context(_lock(pathlib.Path(workdir)))
      _write_config(workdir, config, identities or {})

    mesh_lib.first(claim)
    if jax.process_count() > 1:  # what process 0 wrote, all must have been given
      _write_config(workdir, config, identities or {})
    yield


@contextlib.contextmanager
def _lock(workdir):
  """Holds workdir/lock, which names its holder while it runs. UserError when another process does.

  The lock is the kernel's: it ends with the process, however that ends. File systems that have no
  locks, as some that show a bucket as a folder, do not protect against a second run.
  """
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    file = open(workdir / "lock", "a+", encoding="utf-8")
  except OSError as error:
    if error.errno == errno.ENOSPC:
      raise
    fail("--workdir", str(workdir), f"a folder that can be made and written ({error.strerror})")
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      file.seek(0)
      raise UserError(
        f"--workdir is {str(workdir)!r}: it is in use by {file.read(200) or 'another run'}; wait until "
        "that ends, or use another --workdir"
      ) from None
    except OSError:
      pass
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    try:
      yield
    finally:
      file.truncate(0)


def _write_config(workdir, config, identities):
  """Writes config.json in process 0, unless it is there. UserError when it is another config's."""
  plain = {**config_lib.settings(config), "identities": identities}
  path = pathlib.Path(workdir) / "config.json"
  if path.exists():
    old = _read_config(path)
    try:
      now = config_lib.parse({name: x for name, x in old.items() if name != "identities"})
      old = {**config_lib.settings(now), "identities": old.get("identities", {})}
    except UserError:  # a setting was removed, or its value is no longer valid: named below
      pass
    differ = _differences(plain, old, "")
    for field, mine, theirs in sorted(differ, key=lambda d: d[0].startswith("identities.")):
      if field.startswith("identities."):  # sorted last: no setting differs
        raise UserError(
          f"workdir {workdir} belongs to other files: what {field.removeprefix('identities.')} names "
          f"has the hash {theirs!r} there and {mine!r} here; restore it, or use another --workdir"
        )
      if field != "stages":
        raise UserError(
          f"workdir {workdir} belongs to another config: {field} is {theirs!r} "
          f"there and {mine!r} here; use another --workdir"
        )
  if jax.process_index() == 0:
    write_atomically(path, json.dumps(plain, indent=1))


def _read_config(path):
  try:
    found = json.loads(path.read_bytes())
  except (ValueError, RecursionError, OSError) as error:
    raise UserError(
      f"{path} cannot be read ({clip(str(error), 80)}): restore it, or use another --workdir"
    ) from None
  if not isinstance(found, dict):
    raise UserError(f"{path} holds no settings: restore it, or use another --workdir")
  return found


def _differences(a, b, where):
  """Yields (path, value in a, value in b) for each leaf of nested dicts that differs."""
  for key in sorted({*a, *b}):
    x, y, path = a.get(key), b.get(key), f"{where}{key}"
    if isinstance(x, dict) and isinstance(y, dict):
      yield from _differences(x, y, f"{path}.")
    elif x != y:
      yield path, x, y


def write_atomically(path, text):
  """Writes a text file so that it is never seen half written."""
  partial = path.with_name(path.name + ".partial")
  partial.write_text(text, encoding="utf-8")
  partial.replace(path)


def read_jsonl(path):
  """Reads a JSONL file of traces or candidates: (rows, number of unreadable lines).

  A missing file counts as one unreadable line. A row without `uuid` and `attempt` is unreadable.
  """
  try:
    lines = [x for x in pathlib.Path(path).read_bytes().splitlines() if x.strip()]
  except FileNotFoundError:
    return [], 1
  good = []
  for line in lines:
    try:
      found = json.loads(line)
      found["uuid"], found["attempt"]
      good.append(found)
    except (ValueError, KeyError, TypeError, RecursionError):
      pass
  return good, len(lines) - len(good)


def finished_rows(folder):
  """Rows of the finished traces in a collection's folder. Only reads: repairs nothing."""
  try:
    count = json.loads((folder / "in_flight.json").read_text())["shards"]
  except FileNotFoundError:
    return []
  except (ValueError, KeyError, TypeError):
    count = len(list(folder.glob("traces-*.jsonl")))
  return [r for i in range(count) for r in read_jsonl(folder / f"traces-{i:05d}.jsonl")[0]]


def lost_candidates(folder):
  """Yields the rows of a collection's lost candidates, in the order of writing."""
  for shard in sorted(folder.glob("candidates-*.jsonl")):
    yield from read_jsonl(shard)[0]


def collection(workdir, name):
  """The folder of the collection that arm `name` took its traces from."""
  pointer = json.loads((workdir / "arms" / name / "traces.json").read_text())
  return workdir / "traces" / pointer["collection"]


def arm_rows(workdir, name):
  """(all rows, kept rows) of arm `name`, after its traces are collected."""
  pairs = json.loads((workdir / "arms" / name / "kept.json").read_text())
  rows = finished_rows(collection(workdir, name))
  by_pair = {(r["uuid"], r["attempt"]): r for r in rows}
  return rows, [by_pair[tuple(pair)] for pair in pairs]


def arm_answers(workdir, name):
  """The answers of the students of arm `name`, on all tests: one list of rows per seed."""
  homes = sorted((workdir / "arms" / name).glob("seed-*"), key=lambda p: int(p.name[5:]))
  return [
    [r for folder in sorted(home.glob("answers*")) for r in finished_rows(folder)] for home in homes
  ]


README = """# {name}

A run of Gen-SSD. The command that started it continues it, and gives the same files.
`gen-ssd report --workdir=.` draws `report.html` again, also while the run is under way.

| path | what it is |
|---|---|
| `config.json` | every setting, and the identities of the models |
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
| `arms/*/kept.json` | which traces the arm trains on, as (uuid, attempt) |
| `arms/*/traces.parquet` | the arm's traces, one row per problem |
| `arms/*/traces.json` | the name of the folder below `traces/` |
| `arms/*/seed-*/student/` | the trained student, in Hugging Face format |
| `arms/*/seed-*/answers*/` | its answers to the test problems |
| `arms/*/seed-*/checkpoints/` | Orbax checkpoints, and `metrics.jsonl` |
"""


def describe(workdir: pathlib.Path, name: str) -> None:
  """Writes README.md: what every file and folder of the run `name` is."""
  write_atomically(pathlib.Path(workdir) / "README.md", README.format(name=name))
