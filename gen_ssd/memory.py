"""The memory that a run needs at least, from its sizes alone: nothing is allocated to find out."""

from collections.abc import Sequence
import contextlib
import os
import pathlib
import typing

import jax
import jax.numpy as jnp

from gen_ssd import config as config_lib
from gen_ssd.models import architecture
from gen_ssd.models.architecture import Architecture
from gen_ssd.models.architecture import Spec


def collecting(
  select: config_lib.Select,
  teacher: Spec,
  student: Spec | None,
  devices: int,
  model_parallel: int,
) -> int:
  """Bytes per device of weights, caches and one position's logits while traces are collected.

  `model_parallel` devices share the models whose layouts have a tensor axis. The student is None
  where nothing is scored.
  """
  total = 0
  for spec in (teacher, student or teacher):
    parts = model_parallel if spec.layout.tensor_axis else 1
    arch, size = spec.arch, jnp.dtype(spec.layout.dtype).itemsize
    total += sum(architecture.leaf_bytes(spec).values()) // parts
    tokens = select.slots * (config_lib.ring_slots(select) + select.k * select.c)
    total += tokens * arch.layers * 2 * arch.kv_heads * arch.head * size // devices
    if student is None:
      break
  logits = select.slots * select.k * teacher.arch.vocab * 4
  recent = select.slots * select.loop_window * 4
  return total + (logits + recent) // devices


def training(
  train: config_lib.Train,
  arch: Architecture,
  others: Sequence[Spec],
  devices: int,
) -> int:
  """Bytes per device of float32 weights, gradients, two moments, batches and what layers keep.

  `others` are the second models of the loss.
  """
  tokens = train.batch_size * train.length
  kept = tokens * arch.width * arch.layers * jnp.dtype(train.dtype).itemsize
  batches = 4 * 4 * tokens * train.accumulate
  read = sum(sum(architecture.leaf_bytes(spec).values()) for spec in others)
  return (4 * 4 * architecture.parameters(arch) + read + kept + batches) // devices


def limit(device: typing.Any) -> int | None:
  """Bytes of the memory of a device that has its own; None for a CPU, which shares the machine's."""
  return (device.memory_stats() or {}).get("bytes_limit")


def available(device: typing.Any) -> int:
  """Bytes of memory of a device of this process; for a CPU, its share of the machine's."""
  if own := limit(device):
    return own
  most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  with contextlib.suppress(OSError, ValueError):  # a container has a part of it, or says "max"
    most = min(most, int(pathlib.Path("/sys/fs/cgroup/memory.max").read_text()))
  return most // jax.local_device_count()
