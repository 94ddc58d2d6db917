"""Eight fake devices for every test, and run-time checks of every annotation of the package.

All of this must happen before jax or the package is imported.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault(
  "NPROC", "16"
)  # fewer threads than devices dead-lock in a collective (jax 0.10)

import gc

import jax
import jaxtyping
import pytest

ROOMS = ("engine", "models", "training", "collect")
jaxtyping.install_import_hook([f"gen_ssd.{room}" for room in ROOMS], "beartype.beartype")


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
  """Compiled programs take memory maps, and a process that runs out of those crashes."""
  yield
  jax.clear_caches()
  gc.collect()
