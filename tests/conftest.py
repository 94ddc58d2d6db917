"""Eight fake devices for every test, and run-time checks of every annotation of the package.

All of this must happen before jax or the package is imported. Most of the time of the tests would be
XLA's, which optimises programs that run once; with these flags it takes a fifth of that. Set XLA_FLAGS
to test programs compiled as a run compiles them.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
  "XLA_FLAGS",
  "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
  " --xla_llvm_disable_expensive_passes=true --xla_cpu_use_fusion_emitters=false",
)
os.environ.setdefault(
  "NPROC", "16"
)  # fewer threads than devices dead-lock in a collective (jax 0.10)

import gc
import signal

import jax
from jax.experimental.compilation_cache import compilation_cache
import jaxtyping
import pytest

ROOMS = ("engine", "models", "training", "collect")
jaxtyping.install_import_hook([f"gen_ssd.{room}" for room in ROOMS], "beartype.beartype")


@pytest.fixture(scope="module")
def shared_programs(tmp_path_factory):
  """Compiled programs go to a folder, where all processes of this run of the tests find them again."""
  base = tmp_path_factory.getbasetemp()
  folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "programs"
  seconds = "0.3"  # shorter compilations are not kept
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder))  # of commands that tests start
    patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", seconds)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", float(seconds))
    yield
  jax.config.update("jax_compilation_cache_dir", None)
  compilation_cache.reset_cache()


@pytest.fixture(autouse=True)
def signals():
  """A command keeps signals until its process ends, which here is not the command's."""
  before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
  yield
  for number, handler in before.items():
    signal.signal(number, handler)


@pytest.fixture(autouse=True, scope="module")
def forget():
  """No test file starts on the mesh of another, whose devices may be of a TPU that is not there.

  Compiled programs take memory maps, and a process that runs out of those crashes.
  """
  from gen_ssd import mesh  # after the hook

  mesh.start()
  yield
  jax.clear_caches()
  gc.collect()
