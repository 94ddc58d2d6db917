"""What stop_test.py starts, with the arguments FOLDER, WHAT and WHO.

Does WHAT twice, in FOLDER/stopped and FOLDER/whole, alone or as one of several processes. Process WHO
gets SIGTERM once, in the middle of the first.
"""

import os
import pathlib
import signal
import sys

import jax
import numpy as np

from gen_ssd import config
from gen_ssd import errors
from gen_ssd import mesh
from gen_ssd.collect import loop
from gen_ssd.collect import writer as writer_lib
from gen_ssd.problems import answers
from gen_ssd.problems import bundled
from gen_ssd.training import packing
from gen_ssd.training import train
from tests import tiny

AT = 5  # the update or round in which SIGTERM comes

out, what, who = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])


def signalled(call):
  """The function, which sends SIGTERM to this process when it is called for the AT-th time."""
  calls = [0]

  def wrapped(*args, **kwargs):
    calls[0] += 1
    if calls[0] == AT and jax.process_index() == who and not (out / "signalled").exists():
      (out / "signalled").touch()
      os.kill(os.getpid(), signal.SIGTERM)
    return call(*args, **kwargs)

  return wrapped


def training(folder):
  """Twelve updates, with a checkpoint after every eighth and the last."""
  settings = config.Train(
    steps=12, save_every=8, log_every=2, batch_size=4, length=24, warmup_steps=2, block=24
  )
  rows = [([1, 2, 3], np.random.default_rng(i).integers(4, 60, 9).tolist()) for i in range(40)]
  net = train.fit(tiny.build(tiny.STUDENT), packing.Rows(rows, 24), settings, folder)
  np.save(folder / f"embed-{jax.process_index()}.npy", mesh.host(net.embed[...]))


def collection(folder):
  writer = tiny.writer()
  select = config.Select(k=2, c=4, slots=8, prompt=40, max_tokens=16, shard_rounds=3, loop_window=8)
  with answers.Grader() as grader:
    loop.collect(writer, bundled.problems("test", 12), select, folder, grader=grader)


def waiting(folder):
  """All wait for one that gets SIGTERM first."""
  if jax.process_index() == who:
    os.kill(os.getpid(), signal.SIGTERM)
  mesh.barrier("all are here")


train._next_batch = signalled(train._next_batch)
writer_lib.Engine.round = signalled(writer_lib.Engine.round)
with errors.command():
  mesh.start()
  with mesh.together():
    for name in ("stopped", "whole"):
      globals()[what](out / name)
