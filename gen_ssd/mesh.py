"""Devices: starts the processes of a pod, makes the mesh, moves arrays to and from it."""

import os

import jax
from jax.experimental import multihost_utils
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
import numpy as np

AXES = ("data", "model")


def start(model_parallel=1, devices=None):
  """Makes the mesh `(data, model)`, sets it for this process and returns it.

  `model_parallel` devices share one copy of the teacher; all of them should be in one host.
  `devices` defaults to all devices. With several processes, jax.distributed starts first: on a TPU
  slice with several hosts, or when JAX_COORDINATOR_ADDRESS is set. Raises ValueError when the number
  of devices is not a multiple of `model_parallel`.
  """
  if os.environ.get("JAX_COORDINATOR_ADDRESS") or os.environ.get("TPU_WORKER_HOSTNAMES", "").count(
    ","
  ):
    if not jax.distributed.is_initialized():
      jax.distributed.initialize()
  devices = jax.devices() if devices is None else devices
  if model_parallel < 1 or len(devices) % model_parallel:
    raise ValueError(
      f"model_parallel is {model_parallel}: it must divide the number of devices, {len(devices)}"
    )
  mesh = jax.make_mesh(
    (len(devices) // model_parallel, model_parallel),
    AXES,
    axis_types=(AxisType.Explicit,) * 2,
    devices=devices,
  )
  jax.set_mesh(mesh)
  return mesh


def place(x, spec=P()):
  """Puts a host array on the mesh. Every process passes the same `x` and stores only its part."""
  x = np.asarray(x)
  sharding = jax.sharding.NamedSharding(jax.sharding.get_mesh(), spec)
  return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def barrier(name):
  """Waits for all processes. Files written before it can be read after it. `name` is for errors."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def host(tree):
  """Converts a tree of fully replicated arrays to NumPy, on every process."""
  return jax.tree.map(np.asarray, jax.device_get(tree))
