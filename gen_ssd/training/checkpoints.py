"""Orbax checkpoints of a training: the newest two, of which the older stands in for a damaged one."""

from collections.abc import Iterator
import contextlib
import dataclasses
import json
import logging
import os
import re
import sys
import threading
import typing
import warnings
import zlib

import jax
from jax import lax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from gen_ssd import errors
from gen_ssd import folders
from gen_ssd import mesh as mesh_lib

DAMAGED = -1  # what a process found, instead of the number of an error of the machine


@contextlib.contextmanager
def keeper(folder: folders.Path, save_every: int) -> Iterator[ocp.training.Checkpointer]:
  """Keeps two checkpoints in `folder`: the newest, and before it the newest of every `save_every`.

  Raises OSError, with its number and `folder`, when the machine is why one cannot be written, such as
  a full disk; Orbax writes in the background, so that may be later than the save.
  """
  try:
    with (
      _quiet(),
      ocp.training.Checkpointer(
        str(folder if folders.in_bucket(folder) else folder.absolute()),
        preservation_policy=_Newest(save_every),
        cleanup_tmp_directories=True,
      ) as saver,
    ):
      yield saver
  except Exception as error:
    number = _machine(error)
    if not number or getattr(error, "filename", None):
      raise
    raise OSError(number, os.strerror(number), str(folder)) from error


@dataclasses.dataclass
class _Newest(ocp.training.preservation_policies.PreservationPolicy):
  """Preserves the newest checkpoint, and before it the newest at a multiple of `save_every`.

  A checkpoint that was saved because of SIGTERM goes when a newer one is there, so that a run that was
  stopped keeps the same checkpoints as one that was not.
  """

  save_every: int

  def should_preserve(self, checkpoints, *, context):
    steps = [c.step for c in checkpoints]
    planned = [step for step in steps[:-1] if step % self.save_every == 0]
    return [step in (*planned[-1:], *steps[-1:]) for step in steps]


@contextlib.contextmanager
def _quiet():
  """When one file fails Orbax drops the work on the others, of which Python would tell each time."""
  told, log = sys.unraisablehook, logging.getLogger("asyncio")

  def tell(what):
    if str(what.exc_value) != "Event loop is closed":
      told(what)

  matters = lambda record: "exception was never retrieved" not in record.getMessage()
  sys.unraisablehook = tell
  log.addFilter(matters)
  try:
    with warnings.catch_warnings():
      warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
      yield
  finally:
    sys.unraisablehook = told
    log.removeFilter(matters)


def any_in(folder: folders.Path) -> bool:
  """Does `folder` hold a checkpoint that was saved to its end? It may be damaged."""
  return folder.is_dir() and any(path.name.isdecimal() for path in folder.iterdir())


def save(saver: ocp.training.Checkpointer, step: int, state: typing.Any, data: typing.Any) -> None:
  """Starts to save a tree of 32-bit arrays and an iterator's position as checkpoint `step`."""
  found = {"state": state, "data": data, "sums": _sums(state, data)}
  response = saver.save_checkpointables_async(step, found, force=True)
  # Orbax keeps a thread and three open files of every save whose result nobody takes.
  threading.Thread(target=_take, args=[response], daemon=True).start()


def _take(response):
  with contextlib.suppress(Exception):  # the saver raises it, too
    response.result()


def restore(
  saver: ocp.training.Checkpointer, state: typing.Any, data: typing.Any
) -> tuple[int, typing.Any]:
  """(step, state) of the newest checkpoint that is whole, or (0, `state`) when there is none at all.

  The iterator `data` moves to its position. Damaged checkpoints that are newer are removed. All
  processes agree, also when only one of them finds the damage. Raises UserError, and removes nothing,
  when there are checkpoints and each is damaged, and OSError when the machine is why one cannot be
  read.
  """
  damaged = []
  for checkpoint in reversed(saver.checkpoints):
    found, why = _read(checkpoint.path, state, data)
    if found is None:
      damaged.append((checkpoint, why))
      continue
    for bad, why in damaged:
      if jax.process_index() == 0:
        print(
          f"gen_ssd: removed the damaged checkpoint {bad.path} ({why}); the training goes on from "
          f"update {checkpoint.step}",
          file=sys.stderr,
        )
      saver.delete(bad.step)
    return checkpoint.step, found
  if damaged:
    raise errors.UserError(
      f"{saver.directory}: none of its checkpoints can be read ({damaged[0][1]}); delete this folder, "
      "and the same command starts the training anew"
    )
  return 0, state


def _read(path, state, data):
  """(state of a checkpoint, ""), or (None, why it is damaged), the same in all processes."""
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
    {"state": state, "sums": _sums(state, data)},
  )
  found = {}
  for name, part in {**abstract, "data": data}.items():  # one that fails leaves no other begun
    found[name], why = _read_part(path, name, part)
    if why:
      return None, why
  same = mesh_lib.host(found["sums"]) == mesh_lib.host(_sums(found["state"], data))
  if _worst(0 if same else DAMAGED):
    return None, "its content is not what was saved"
  return found["state"], ""


def _read_part(path, name, part):
  """(one part of a checkpoint, ""), or (None, why it is damaged), the same in all processes."""
  found, why, alone = None, None, ocp.Context()
  # Each process reads alone, because Orbax has the others wait for one that finds damage. It counts
  # the reads, though, so that all must make the same.
  alone.multiprocessing.primary_host = me = jax.process_index()
  alone.multiprocessing.active_processes = {me}
  try:
    with alone:
      found = ocp.load_checkpointables(path, {name: part})[name]
  except Exception as error:  # whatever is in the files; Orbax has no error of its own for that
    why = error
  number = _worst((_machine(why) or DAMAGED) if why else 0)
  if number > 0:
    raise OSError(number, os.strerror(number), str(path)) from why
  if number == DAMAGED:
    told = str(why.__cause__ or why) if why else "another process found it"
    return None, errors.clip(" ".join(told.split()), 120)
  return found, ""


def _worst(mine):
  """What counts of the numbers of all processes: an error of the machine, then damage, then 0."""
  if jax.process_count() == 1:
    return mine
  found = multihost_utils.process_allgather(np.int32(mine))
  return int(found.max() if found.max() > 0 else found.min())


def _machine(error):
  """The number of the error of the machine that `error` or its cause reports, or 0."""
  while error:
    told = re.search(r"os_error_code='(\d+)'", str(error))  # TensorStore's only sign
    number = getattr(error, "errno", None) or (int(told[1]) if told else 0)
    if number in errors.MACHINE:
      return number
    error = error.__cause__
  return 0


def _sums(state, data):
  """Sums of the bits of the state and of the iterator's position: damage changes them."""
  position = zlib.crc32(json.dumps(data.get_state(), sort_keys=True).encode())
  return {"state": _bits(state), "data": mesh_lib.place(np.uint32(position))}


@jax.jit
def _bits(state):
  bits = lambda x: jnp.sum(lax.bitcast_convert_type(x, jnp.uint32), dtype=jnp.uint32)
  return sum((bits(x) for x in jax.tree.leaves(state)), jnp.uint32(0))
