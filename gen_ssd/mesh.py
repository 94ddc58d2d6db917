"""Devices: start the processes of a pod, create the mesh, move arrays to and from it."""

import os

import jax
from jax.experimental import multihost_utils
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
import numpy as np

AXES = ("data", "model")


def start(model_parallel=1, devices=None):
  """Creates the mesh `(data, model)`, sets it for this process and returns it.

  `model_parallel` devices share one copy of the teacher; keep them within one host. On a TPU pod
  slice, or when JAX_COORDINATOR_ADDRESS is set, it first starts `jax.distributed`, so that the
  processes find each other. `devices` defaults to all devices. Raises ValueError when
  `model_parallel` does not divide their number.
  """
  if os.environ.get("JAX_COORDINATOR_ADDRESS") or os.environ.get("TPU_WORKER_HOSTNAMES", "").count(
    ","
  ):
    if not jax.distributed.is_initialized():
      jax.distributed.initialize()
  devices = jax.devices() if devices is None else devices
  if model_parallel < 1 or len(devices) % model_parallel:
    raise ValueError(
      f"model_parallel is {model_parallel}: it must divide {len(devices)}, the number of devices"
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
  """Puts host array `x`, which is the same in every process, on the mesh with sharding `spec`."""
  x = np.asarray(x)
  sharding = jax.sharding.NamedSharding(jax.sharding.get_mesh(), spec)
  return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def barrier(name):
  """Waits for all processes. Afterwards each can read the files that another one has written."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def host(tree):
  """A pytree of fully replicated arrays as numpy arrays, in every process."""
  return jax.tree.map(np.asarray, jax.device_get(tree))
