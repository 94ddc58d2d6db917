"""Folders on this machine, of the hub, and of buckets (gs://BUCKET/PATH) through epath and gcsfs.

A file in a bucket appears whole and cannot be appended to or locked, and a folder cannot be renamed.
So a run only reads files and writes them whole, on this machine, too.
"""

from collections.abc import Callable
from collections.abc import Sequence
import contextlib
import fnmatch
import hashlib
import logging
import os
import pathlib
import re
import shutil
import tempfile

from etils import epath
import fsspec

from gen_ssd.errors import UserError
from gen_ssd.errors import clip
from gen_ssd.errors import one_line

BUCKETS = "gs://"
Path = pathlib.Path | epath.Path  # only the methods that both have are used


def path(text: str | Path) -> Path:
  """The folder or file that `text` names. Raises UserError for a bucket without gcsfs."""
  if isinstance(text, Path):
    return text
  if not in_bucket(text):
    return pathlib.Path(text)
  # Other processes write, too: a listing must not come from a cache.
  fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
  logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs the errors that it raises
  try:
    fsspec.get_filesystem_class("gcs")
  except ImportError:
    raise UserError(
      f"{clip(text)} is in a bucket, which needs a package that is not installed: pip install gcsfs"
    ) from None
  return epath.Path(text)


def remove(folder: Path) -> None:
  """Removes a folder with all that is in it, if it is there."""
  if in_bucket(folder):
    for path in [*folder.rglob("*")]:
      if path.is_file():
        path.unlink()
  else:
    shutil.rmtree(folder, ignore_errors=True)


def in_bucket(folder: str | Path) -> bool:
  """Is this the address of a bucket, or of something in one?"""
  return str(folder).startswith(BUCKETS)


def write(file: Path, content: str | bytes) -> None:
  """Writes a file so that nobody sees half of it. Raises UserError when a bucket refuses it."""
  data = content.encode() if isinstance(content, str) else content
  if not in_bucket(file):
    partial = file.with_name(file.name + ".partial")
    partial.write_bytes(data)
    partial.replace(file)
    return
  try:
    file.write_bytes(data)
  except Exception as error:  # of the network, of many types; gcsfs has tried several times
    raise UserError(f"{file} cannot be written: {one_line(error)}") from None


def here(folder: str, wanted: Sequence[str] = ("*",)) -> str:
  """`folder` itself, or a copy on this machine of its files `wanted` when it is in a bucket.

  Copies stay in the temporary folder of this machine and are used again until the files change.
  Raises UserError when there is no such folder in the bucket, or it cannot be read.
  """
  if not in_bucket(folder):
    return folder
  there = path(folder)
  try:
    listed = there.iterdir() if there.exists() else ()
    found = [f for f in listed if any(fnmatch.fnmatch(f.name, w) for w in wanted)]
    state = fsspec.filesystem("gcs").ukey  # changes when the file is written again
    states = [(f.name, state(str(f))) for f in sorted(found)]
    name = hashlib.sha256(repr(states).encode()).hexdigest()[:16]

    def fill(partial):
      for f in found:
        f.copy(os.path.join(partial, f.name))

    copy = made(name, fill) if found else ""
  except Exception as error:  # of the network, of many types; only the name comes from us
    raise UserError(f"{clip(folder)} cannot be read: {one_line(error)}") from None
  if not found:
    raise UserError(f"{clip(folder)} holds no files: it must be the folder of a model")
  return copy


def from_hub(name: str, shown: str, wanted: Sequence[str]) -> str:
  """The directory of a model of the hub, ORG/NAME or ORG/NAME@REVISION, with its files `wanted`.

  They are downloaded unless they are in the hub's cache (HF_HOME, HF_HUB_CACHE), which also works
  without a network. Raises UserError, which calls the model `shown`, when it cannot be had.
  """
  import huggingface_hub
  from huggingface_hub import errors

  name, _, revision = name.partition("@")
  if revision and (not re.fullmatch(r"[\w.+/-]+", revision) or ".." in revision):
    raise UserError(f"{shown}: {clip(revision)!r} is not the name of a branch, tag or commit")
  try:
    return huggingface_hub.snapshot_download(
      name,
      revision=revision or None,
      allow_patterns=list(wanted),
      ignore_patterns=["*/*", "consolidated*"],
    )
  except errors.HFValidationError as error:
    why = one_line(error)
  except errors.GatedRepoError:
    why = (
      "the hub requires its licence accepted: accept it on the model's page, then `hf auth login`"
    )
  except errors.RepositoryNotFoundError:
    why = "the hub has no such model, or it is private: try `hf auth login`"
  except errors.RevisionNotFoundError:
    why = f"the hub has no revision {revision!r} of this model"
  except Exception as error:  # whatever the network does; only the name comes from us
    why = (
      f"the hub cannot be reached and its cache does not have it ({type(error).__name__}); "
      f"on a machine with a network, `hf download {name}` fills the cache, and "
      "`hf download --local-dir DIR` creates a directory that you can name instead"
    )
  raise UserError(f"{shown}: there is no such directory; read as a hub name: {why}")


def made(name: str, fill: Callable[[str], None]) -> str:
  """The folder `name` among those that this machine's temporary folder keeps from run to run.

  When it is not there, `fill` is called with a new folder, which then appears whole.
  """
  home = os.path.join(tempfile.gettempdir(), f"gen_ssd-{os.getuid()}")
  folder = os.path.join(home, name)
  if not os.path.isdir(folder):
    os.makedirs(home, mode=0o700, exist_ok=True)
    os.makedirs(os.path.dirname(folder), exist_ok=True)
    partial = tempfile.mkdtemp(dir=os.path.dirname(folder))
    try:
      fill(partial)
      with contextlib.suppress(OSError):  # another process was faster
        os.rename(partial, folder)
    finally:
      shutil.rmtree(partial, ignore_errors=True)
  return folder


def send(folder: str, target: Path, last: str) -> None:
  """Makes `target`, in a bucket, the copy of a folder of this machine; the file `last` comes last.

  What was there before is removed, `last` first. Raises UserError where the bucket refuses it.
  """
  try:
    for old in sorted(target.iterdir(), key=lambda f: f.name != last) if target.exists() else ():
      old.unlink()
    for name in sorted(os.listdir(folder), key=lambda name: (name == last, name)):
      epath.Path(folder, name).copy(target / name)
  except Exception as error:  # of the network, of many types
    raise UserError(f"{target} cannot be written: {one_line(error)}") from None
