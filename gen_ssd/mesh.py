"""Devices: starts the processes of a pod, makes the mesh, moves arrays to and from it."""

import contextlib
import functools
import os

import jax
from jax.experimental import multihost_utils
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
import numpy as np

from gen_ssd import errors
from gen_ssd.errors import UserError
from gen_ssd.errors import clip
from gen_ssd.errors import fail
from gen_ssd.errors import one_line

AXES = ("data", "model")
HEARTBEAT = 15  # seconds of silence after which a process counts as dead, and the others end


def start(model_parallel=1, devices=None):
  """Makes the mesh `(data, model)`, sets it for this process and returns it.

  `model_parallel` devices share one copy of the teacher; all of them should be in one host.
  `devices` defaults to all devices. With several processes, jax.distributed starts first: on a TPU
  slice with several hosts, or when JAX_COORDINATOR_ADDRESS is set; JAX_NUM_PROCESSES and
  JAX_PROCESS_ID say which process this is where no cluster does. Raises UserError when one of
  them is wrong, when there is no device, when JAX_ENABLE_X64 is set, and when `model_parallel` does not
  divide the number of devices.
  """
  address = os.environ.get("JAX_COORDINATOR_ADDRESS")
  several_hosts = "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
  if (address or several_hosts) and not jax.distributed.is_initialized():
    # It would take SIGTERM from errors.command, and nothing would end: see stoppable.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(**_place_of_this_process(), heartbeat_timeout_seconds=HEARTBEAT)
  if jax.config.jax_enable_x64:
    raise UserError(
      "JAX_ENABLE_X64 is set: unset it, because all numbers here have 32 bits or less"
    )
  try:
    devices = jax.devices() if devices is None else devices
  except RuntimeError as error:  # the machine and JAX_PLATFORMS are all that decides
    raise UserError(f"jax finds no devices: {clip(str(error), 400)}") from None
  errors.keep_signals()  # the TPU library has handlers of its own
  if model_parallel < 1 or len(devices) % model_parallel:
    fail("model_parallel", model_parallel, f"a divisor of the number of devices, {len(devices)}")
  mesh = jax.make_mesh(
    (len(devices) // model_parallel, model_parallel),
    AXES,
    axis_types=(AxisType.Explicit,) * 2,
    devices=devices,
  )
  jax.set_mesh(mesh)
  return mesh


def _place_of_this_process():
  """What JAX_NUM_PROCESSES and JAX_PROCESS_ID say, as arguments of jax.distributed.initialize."""
  names = dict(num_processes="JAX_NUM_PROCESSES", process_id="JAX_PROCESS_ID")
  given = {key: os.environ[name] for key, name in names.items() if name in os.environ}
  if len(given) == 1:
    raise UserError(f"{' and '.join(names.values())} must be set together, or neither of them")
  for key, value in given.items():
    if not value.isdecimal():
      fail(names[key], value, "a whole number")
  found = {key: int(value) for key, value in given.items()}
  if found and not found["process_id"] < found["num_processes"]:
    most = found["num_processes"] - 1
    fail("JAX_PROCESS_ID", found["process_id"], f"0 to {most} (JAX_NUM_PROCESSES - 1)")
  return found


def place(x, spec=P()):
  """Puts a host array on the mesh. Every process passes the same `x` and stores only its part."""
  x = np.asarray(x)
  sharding = jax.sharding.NamedSharding(jax.sharding.get_mesh(), spec)
  return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def shape(dims, dtype, spec=P()):
  """The shape, dtype and sharding of an array on the current mesh, without the array."""
  sharding = jax.sharding.NamedSharding(jax.sharding.get_mesh(), spec)
  return jax.ShapeDtypeStruct(dims, dtype, sharding=sharding)


def shapes(make, *arguments, **options):
  """`make(...)` as a tree of `shape`: what a function that makes arrays on the mesh would return."""
  tree = jax.eval_shape(functools.partial(make, **options), *arguments)
  return jax.tree.map(
    lambda x: shape(x.shape, x.dtype, x.sharding.spec if x.sharding else P()), tree
  )


def barrier(name):
  """Waits for all processes. Files written before it can be read after it. `name` is for errors."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def first(call, *arguments):
  """`call(*arguments)` in process 0; afterwards every process goes on, or raises its UserError."""
  message = ""
  if jax.process_index() == 0:
    try:
      call(*arguments)
    except UserError as error:
      message = str(error)
  if jax.process_count() > 1:
    text = np.zeros(4096, np.uint8)
    data = np.frombuffer(message.encode()[: text.size], np.uint8)
    text[: data.size] = data
    found = np.asarray(multihost_utils.broadcast_one_to_all(text))
    message = found.tobytes().rstrip(b"\0").decode(errors="replace")
  if message:
    raise UserError(message)


@contextlib.contextmanager
def stoppable(alone=True):
  """For a loop that all processes leave at the same point when one gets SIGTERM: see errors.py.

  Yields `stopping() -> bool`. Every process calls it at the same points of the loop and leaves the
  loop when it returns True; then the processes end. Set `alone` to False for a loop that has nothing to
  save: SIGTERM then ends a run of one process at once.
  """
  several, agreed = jax.process_count() > 1, False

  def stopping():
    nonlocal agreed
    agreed = errors.told()
    if several:
      agreed = bool(multihost_utils.process_allgather(np.int32(agreed)).any())
    if agreed and not errors.told():
      errors.tell()
    return agreed

  with errors.grace() if several or alone else contextlib.nullcontext():
    yield stopping
    if several and agreed:
      jax.distributed.shutdown()  # waits for all: whoever is left behind would be told of a lost one


@contextlib.contextmanager
def together():
  """What all processes do as one. UserError when jax loses another of them meanwhile.

  jax names the process that is gone, as a task, when this one ends: after HEARTBEAT seconds at most.
  """
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" in str(error):
      raise UserError(
        f"a device has too little memory: lower slots, k, max_tokens, batch_size or length, or raise "
        f"model_parallel, and start in another --workdir ({one_line(error)})"
      ) from None
    lost = ("Connection closed by peer", "coordination service", "heartbeat", "Connection reset")
    if jax.process_count() == 1 or not any(sign in str(error) for sign in lost):
      raise
    raise UserError(
      f"process {jax.process_index()} of {jax.process_count()} has lost another one, which jax names "
      "below as a task; see what that one said, and start all of them again: the same command "
      "continues"
    ) from None


def host(tree):
  """Converts a tree of fully replicated arrays to NumPy, on every process."""
  return jax.tree.map(np.asarray, jax.device_get(tree))
