"""The kernel for packed sequences on TPUs: interpreted on a CPU, and compiled without a TPU."""

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_ssd import hlo
from gen_ssd import mesh
from gen_ssd import plan
from gen_ssd.models import attention
from gen_ssd.models import packed_kernel_tpu
from gen_ssd.training import train
from tests import tiny
from tests.training import train_test

NEEDS_LIBTPU = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)
EVERYWHERE = ("data", "model")


@dataclasses.dataclass(frozen=True)
class Case:
  """Sizes of an attention in packed sequences, by dimension letter."""

  b: int = 2
  t: int = 256
  n: int = 1
  g: int = 6
  h: int = 16
  window: int | None = None
  dtype: str = "float32"


def attend(case, implementation):
  """Gives ((sum, output), gradients) of q, k, v and segments."""

  def loss(q, k, v, segments):
    out = attention.attend_packed(
      q, k, v, segments, block=64, window=case.window, implementation=implementation
    )
    return (out.astype("float32") ** 3).sum(), out

  return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))


def shapes(case):
  """Shapes of q, k and v."""
  keys = (case.b, 1, case.t, case.n, case.h)
  return (case.b, 1, case.t, case.n, case.g, case.h), keys, keys


def arguments(case):
  """Random q, k and v, and rows of segments: a short one, a long one and padding; only padding."""
  random = np.random.default_rng(0)
  place = lambda x: mesh.place(x, jax.P(EVERYWHERE))
  drawn = [place(random.normal(size=x).astype(jnp.dtype(case.dtype))) for x in shapes(case)]
  long = case.t - 100
  rows = [[1] * 40 + [2] * long + [0] * 60, [0] * case.t] * (case.b // 2)
  return *drawn, place(np.int32(rows))


CASES = {
  "groups": Case(),
  "eight_devices": Case(b=8, g=1, n=2),
  "window": Case(window=50, g=2),
  "window_across_blocks": Case(window=150, g=2),
  "bfloat16": Case(dtype="bfloat16"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_kernel_is_plain_attention_with_gradients(monkeypatch, name):
  monkeypatch.setattr(packed_kernel_tpu, "BLOCK", 128)
  case = CASES[name]
  mesh.start(devices=jax.devices()[: case.b if case.b == 8 else 1])
  far = 1e-5 if case.dtype == "float32" else 2e-2
  given = arguments(case)
  assert packed_kernel_tpu.takes(given[0], case.window, "tpu_interpret")
  found = [attend(case, kind)(*given) for kind in ("einsum", "tpu_interpret")]
  assert [out.dtype for (_, out), _ in found] == [case.dtype] * 2
  found = jax.tree.map(lambda x: np.asarray(x, np.float32), found)
  ((_, want), want_grad), ((_, got), got_grad) = found
  np.testing.assert_allclose(got, want, atol=far)
  for a, b in zip(got_grad, want_grad):
    assert np.linalg.norm(a - b) < far * np.linalg.norm(b)


def test_what_the_kernel_takes():
  q = lambda t, h: jnp.zeros((1, 1, t, 1, 1, h), jnp.bfloat16)
  takes = lambda t, h, window=None: packed_kernel_tpu.takes(q(t, h), window, "tpu_kernel")
  assert takes(128, 64) and takes(1280, 128) and takes(256, 256, 100)
  assert not takes(96, 64) and not takes(256, 96)
  assert not takes(256, 64, jnp.int32(100))  # as in a scan over layers


def test_a_window_that_is_not_known_before_the_program_runs():
  mesh.start(devices=jax.devices()[:1])
  case = Case(g=1, t=128)
  *given, segments = arguments(case)
  run = lambda kind: jax.jit(
    lambda window: attention.attend_packed(
      *given, segments, block=128, window=window, implementation=kind
    )
  )(np.int32(30))
  np.testing.assert_array_equal(run("tpu_interpret"), run("einsum"))


@pytest.mark.parametrize(("t", "want"), [(128, 128), (2048, 512), (1280, 256), (384, 128)])
def test_blocks_divide_t(t, want):
  assert set(dataclasses.astuple(packed_kernel_tpu.block_sizes(t))) >= {want}
  assert t % want == 0


# ---------------------------------------------------------------- compiled

COMPILED = {  # topology, sizes, pairs of blocks of which one is not after the other
  "v5e": ("v5e:2x2", Case(b=8, t=1024, n=2, h=128, dtype="bfloat16"), 3),
  "v5p_small_heads": ("v5p:2x2x1", Case(b=8, t=512, n=4, g=4, h=64, dtype="bfloat16"), 1),
  "v6e_window": ("v6e:2x2", Case(b=8, t=2048, g=1, h=256, window=512, dtype="bfloat16"), 8),
  "v6e_float32": ("v6e:2x2", Case(b=8, t=1280, g=5, h=256), 15),
}


@NEEDS_LIBTPU
@pytest.mark.parametrize("name", COMPILED)
def test_a_tpu_compiles_the_kernel(name):
  topology, case, blocks = COMPILED[name]
  mesh.start(2, plan.devices_of(topology)[0][:4])
  rows = jax.P(EVERYWHERE)
  given = [mesh.shape(x, jnp.dtype(case.dtype), rows) for x in shapes(case)]
  segments = mesh.shape((case.b, case.t), jnp.int32, rows)
  text = attend(case, "tpu_kernel").lower(*given, segments).compile().as_text()
  text = hlo.Text(text)
  squares = [ins for ins, _, _ in text.walk(lambda file: 1) if f"{case.t},{case.t}]" in ins.type]
  assert not squares  # no scores in memory
  size = packed_kernel_tpu.block_sizes(case.t).block_q
  product = 2 * case.b // 4 * case.n * case.g * blocks * size**2 * case.h
  flops = [flops for _, flops, times in hlo.kernels(text, lambda file: 0)]
  assert sorted(flops) == [2 * product, 3 * product, 4 * product]  # forward, and two backward


@NEEDS_LIBTPU
@pytest.mark.parametrize("remat", [False, True])
def test_an_update_lowers_with_the_kernel(remat):
  mesh.start(2, plan.devices_of("v5p:2x2x1")[0])
  arch = dataclasses.replace(tiny.STUDENT, head=64)
  settings = dataclasses.replace(
    train_test.TRAIN, dtype="bfloat16", length=256, block=128, remat=remat
  )
  given = train.shapes(arch, settings, None, attention.implementation("auto"))
  text = train.train_step.lower(*given, config=train.static(settings)).as_text()
  assert "tpu_custom_call" in text and "splash_mqa_dkv" in text
