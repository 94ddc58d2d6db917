"""What made a result: the code, the packages, the devices and the command."""

from collections.abc import Sequence
from importlib import metadata
import os
import pathlib
import platform
import re
import shlex
import subprocess
import sys
import typing

import jax

PACKAGES = (
  "gen-ssd",
  "jax",
  "jaxlib",
  "flax",
  "optax",
  "orbax-checkpoint",
  "transformers",
  "grain",
  "numpy",
)


class MadeBy(typing.TypedDict):
  """The entry `made_by` of results.json and sweep.json."""

  commit: str | None  # of the source tree; ends in -dirty when a tracked file was changed
  packages: dict[str, str | None]  # distribution name: version, None when it is not installed
  python: str
  device: str  # its kind, as jax names it
  devices: int  # of all processes
  command: str  # as typed in a shell


def provenance() -> MadeBy:
  """What made the results of this process. Starts the backend of jax if nothing has."""
  devices = jax.devices()
  return {
    "commit": _commit(pathlib.Path(__file__).resolve().parents[1]),
    "packages": {name: _version(name) for name in PACKAGES},
    "python": platform.python_version(),
    "device": devices[0].device_kind,
    "devices": len(devices),
    "command": _command(),
  }


def _commit(tree: pathlib.Path) -> str | None:
  """HEAD of the checkout at `tree`, or what it was in the checkout that a launch script copied.

  None when it is neither, for example an installed package.
  """
  if not (tree / ".git").exists():  # site-packages inside somebody else's checkout is not ours
    copied = tree / "REVISION"
    found = copied.read_text(errors="replace").strip() if copied.is_file() else ""
    return found if re.fullmatch("[0-9a-f]{40}(-dirty)?", found) else None
  git = ["git", "-C", str(tree)]
  options: typing.Any = dict(check=True, capture_output=True, text=True, timeout=30)
  try:
    head = subprocess.run([*git, "rev-parse", "HEAD"], **options).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain", "-uno"], **options).stdout.strip()
  except (OSError, subprocess.SubprocessError):  # no git, or a checkout it refuses to read
    return None
  return head + "-dirty" * bool(changed)


def _version(name: str) -> str | None:
  try:
    return metadata.version(name)
  except metadata.PackageNotFoundError:
    return None


def _command(typed: Sequence[str] = sys.orig_argv) -> str:
  """The command line as typed, without the folders of the interpreter and the script."""
  rest = typed[1:]
  if rest and not rest[0].startswith("-"):  # a script; installed ones, such as gen-ssd, have no .py
    script = os.path.basename(rest[0])
    return shlex.join(["python"] * script.endswith(".py") + [script, *rest[1:]])
  return shlex.join(["python", *rest])
