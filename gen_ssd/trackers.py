"""Optional trackers, to which a run's numbers go besides its files: TensorBoard, W&B, trackio.

Only process 0 has them, between `opened` and its end. A tracker that fails is off after one warning.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import importlib.util
import os
import re
import sys
import tempfile
import time
import typing

import jax

from gen_ssd import errors
from gen_ssd import folders

PROJECT = "gen-ssd"  # of W&B and trackio
SECRET = re.compile(r"[\w-]{20,}|(?<=//)[^/\s@]+(?=@)")  # a key or a token, or the user of a URL


class Sink(typing.Protocol):
  """A tracker that is open. Its methods may raise anything."""

  def write(self, step: int, numbers: Mapping[str, float]) -> None:
    """Adds a point at `step` to the series that are named GROUP/NAME, all of one group."""

  def close(self) -> None: ...


class _TensorBoard:
  """Event files in workdir/tensorboard, one for each start of the run."""

  def __init__(self, workdir, run, settings):
    if folders.in_bucket(workdir):  # its files grow
      raise ValueError("it needs a workdir on a disk")
    from tensorboardX import event_file_writer
    from tensorboardX import summary
    from tensorboardX.proto import event_pb2

    folder = workdir / "tensorboard"
    folder.mkdir(exist_ok=True)
    # Not SummaryWriter: its thread ends when a disk is full, and the run then waits for it for ever.
    self.file = event_file_writer.EventsWriter(str(folder / "events"), f".{time.time_ns()}")
    self.event, self.scalar = event_pb2.Event, summary.scalar

  def write(self, step, numbers):
    for name, x in numbers.items():
      event = self.event(wall_time=time.time(), step=step, summary=self.scalar(name, x))
      self.file.write_event(event)
    self.file.flush()

  def close(self):
    self.file.close()


class _Wandb:
  def __init__(self, workdir, run, settings):
    import wandb

    self.run = wandb.init(
      project=os.environ.get("WANDB_PROJECT", PROJECT),
      id=run,
      name=_name(workdir, run),
      resume="allow",
      dir=tempfile.gettempdir() if folders.in_bucket(workdir) else str(workdir),
      config=settings,
    )
    self.groups = set()

  def write(self, step, numbers):
    group = next(iter(numbers)).partition("/")[0]
    if group not in self.groups:  # each has steps of its own
      self.run.define_metric(f"{group}/*", step_metric=f"step/{group}")
      self.groups.add(group)
    self.run.log({**numbers, f"step/{group}": step})

  def close(self):
    self.run.finish()


class _Trackio:
  def __init__(self, workdir, run, settings):
    import trackio

    name = _name(workdir, run)
    self.run = trackio.init(project=PROJECT, name=name, resume="allow", config=settings)
    self.close = trackio.finish  # the run's own is called again at exit

  def write(self, step, numbers):
    self.run.log({**numbers}, step=step)


TABLE = {  # name in Config.trackers -> (package, which pip knows by the same name; opens a Sink)
  "tensorboard": ("tensorboardX", _TensorBoard),
  "wandb": ("wandb", _Wandb),
  "trackio": ("trackio", _Trackio),
}
_sinks: dict[str, Sink] = {}


def check(names: Sequence[str]) -> None:
  """Raises UserError when the package of a tracker of TABLE is not installed. Imports none."""
  for name in names:
    package, _ = TABLE[name]
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:  # a plain folder of that name, as W&B makes one
      raise errors.UserError(
        f"trackers is {tuple(names)}: {name} needs a package that is not installed: "
        f"pip install {package}"
      )


@contextlib.contextmanager
def opened(
  names: Sequence[str], workdir: folders.Path, settings: Mapping[str, typing.Any]
) -> Iterator[None]:
  """Opens the trackers `names` of TABLE for the run in `workdir`, which must be there.

  A run that goes on goes on in the trackers, too. `settings` is what they show as the run's config.
  """
  if jax.process_index() == 0:
    for name in names:
      _call(name, _open, name, workdir, settings)
  try:
    yield
  finally:
    for name in list(_sinks):
      _call(name, _sinks[name].close)
    _sinks.clear()


def _open(name, workdir, settings):
  _sinks[name] = TABLE[name][1](workdir, _id(workdir), settings)


def write(title: str, step: int, numbers: Mapping[str, float]) -> None:
  """Gives every open tracker a point at `step` of the series of `title`, such as "train gen_ssd"."""
  group = re.sub(r"[^\w.-]+", "_", title).strip("_")
  for name in list(_sinks):
    _call(name, _sinks[name].write, step, {f"{group}/{key}": x for key, x in numbers.items()})


def _call(name, call, *arguments):
  """call(*arguments); when it fails, one warning, and the tracker `name` is off."""
  try:
    call(*arguments)
  except Exception as error:  # whatever the library of a tracker raises: no run depends on it
    _sinks.pop(name, None)
    told = SECRET.sub("***", " ".join(str(error).split()))
    print(
      f"gen_ssd: the tracker {name} is off from here on ({type(error).__name__}: "
      f"{errors.clip(told, 120)}); the run goes on",
      file=sys.stderr,
    )


def _id(workdir):
  """The id of the run in `workdir`, which stays the same when the folder moves; 12 hex digits."""
  path = workdir / "tracker_id"
  try:
    found = path.read_text(encoding="utf-8")
  except (FileNotFoundError, UnicodeDecodeError):
    found = ""
  if not re.fullmatch("[0-9a-f]{12}", found):
    found = os.urandom(6).hex()
    folders.write(path, found)
  return found


def _name(workdir, run):
  return f"{workdir.resolve().name}-{run}"
