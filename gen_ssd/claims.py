"""Whose a workdir is: its config, the files that the config names, and the process that uses it."""

import contextlib
import errno
import fcntl
import json
import os
import socket

import jax

from gen_ssd import config as config_lib
from gen_ssd import folders
from gen_ssd import mesh as mesh_lib
from gen_ssd import workdir as workdir_lib
from gen_ssd.errors import UserError
from gen_ssd.errors import fail
from gen_ssd.errors import one_line


@contextlib.contextmanager
def claimed(workdir, config, identities=None):
  """Claims `workdir` for this config: writes config.json, and holds the lock meanwhile.

  Raises UserError, in every process, when the workdir cannot be written, is in use, or belongs to
  another config; the message names the field that differs. Only `stages` and `trackers` may differ,
  and there may be more `seeds`.
  `identities` maps fields to hashes of what they name, so that weights or problems replaced under the
  same path are noticed. A setting that is newer than the workdir counts as having its default there.
  """
  with contextlib.ExitStack() as held:

    def claim():
      held.enter_context(lock(folders.path(workdir)))
      _write_config(workdir, config, identities or {})

    mesh_lib.first(claim)
    if jax.process_count() > 1:  # what process 0 wrote, all must have been given
      _write_config(workdir, config, identities or {})
    yield


@contextlib.contextmanager
def lock(workdir):
  """Holds workdir/lock, which names its holder while it runs. UserError when another process does.

  The lock is the kernel's: it ends with the process, however that ends. Buckets, and file systems
  that have no locks, do not protect against a second run.
  """
  if folders.in_bucket(workdir):
    _check_bucket(workdir)
    yield
    return
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


def _check_bucket(workdir):
  """UserError where nothing can be written in the bucket of this workdir."""
  try:
    (workdir / "lock").write_text("")
  except Exception as error:  # of the network or the bucket, of many types; only the name is ours
    right = f"a folder of a bucket that exists and that you may write ({one_line(error)})"
    fail("--workdir", str(workdir), right)


def _write_config(workdir, config, identities):
  """Writes config.json in process 0, unless it is there. UserError when it is another config's."""
  plain = {**config_lib.settings(config), "identities": identities}
  path = folders.path(workdir) / "config.json"
  if path.exists():
    old = workdir_lib.read_json(path, "restore it, or use another --workdir")
    if not isinstance(old, dict):
      raise UserError(f"{path} holds no settings: restore it, or use another --workdir")
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
      more = field == "seeds" and isinstance(theirs, int) and mine > theirs
      if field not in ("stages", "trackers") and not more:
        raise UserError(
          f"workdir {workdir} belongs to another config: {field} is {theirs!r} "
          f"there and {mine!r} here; use another --workdir"
        )
  if jax.process_index() == 0:
    folders.write(path, json.dumps(plain, indent=1))


def _differences(a, b, where):
  """Yields (path, value in a, value in b) for each leaf of nested dicts that differs."""
  for key in sorted({*a, *b}):
    x, y, path = a.get(key), b.get(key), f"{where}{key}"
    if isinstance(x, dict) and isinstance(y, dict):
      yield from _differences(x, y, f"{path}.")
    elif x != y:
      yield path, x, y
