"""Devices: start the processes of a pod, make the one mesh, move arrays to and from it."""

import os

import jax
from jax.experimental import multihost_utils
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
import numpy as np

AXES = ("data", "model")


def start(model_parallel=1, devices=None):
  """Sets the mesh `(data, model)` for the process and returns it.

  `model_parallel` chips share one copy of the teacher; keep it inside a host. On a pod slice
  (or under a launcher that sets JAX_COORDINATOR_ADDRESS) the processes find each other first.
  Raises ValueError when the device count is not a multiple.
  """
  if os.environ.get("JAX_COORDINATOR_ADDRESS") or os.environ.get("TPU_WORKER_HOSTNAMES", "").count(
    ","
  ):
    if not jax.distributed.is_initialized():
      jax.distributed.initialize()
  devices = jax.devices() if devices is None else devices
  if model_parallel < 1 or len(devices) % model_parallel:
    raise ValueError(f"mesh.model is {model_parallel}: it must divide the {len(devices)} devices")
  mesh = jax.make_mesh(
    (len(devices) // model_parallel, model_parallel),
    AXES,
    axis_types=(AxisType.Explicit,) * 2,
    devices=devices,
  )
  jax.set_mesh(mesh)
  return mesh


def place(x, spec=P()):
  """Host array -> array on the mesh; every process holds the same `x` and keeps its part."""
  x = np.asarray(x)
  sharding = jax.sharding.NamedSharding(jax.sharding.get_mesh(), spec)
  return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def barrier(name):
  """Every process waits here for the others: what one has written may be read after it."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def host(tree):
  """Fully replicated arrays -> numpy, on every process."""
  return jax.tree.map(np.asarray, jax.device_get(tree))
