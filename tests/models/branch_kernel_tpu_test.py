"""The kernel for TPUs: its tiles, interpreted on a CPU, and its text, compiled without a TPU."""

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_ssd import checks
from gen_ssd import config as config_lib
from gen_ssd import hlo
from gen_ssd import mesh
from gen_ssd import plan
from gen_ssd.errors import UserError
from gen_ssd.models import attention
from gen_ssd.models import branch_kernel_tpu
from gen_ssd.models import decoder
from gen_ssd.models import weights
from gen_ssd.models.architecture import Architecture
from gen_ssd.models.architecture import Layout
from gen_ssd.models.architecture import Spec
from tests.models import branch_kernel_test

NEEDS_LIBTPU = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)
RING = 32768


@pytest.mark.parametrize(("used", "window", "b"), [(5, 0, 2), (3, 0, 11), (5, 90, 2)])
def test_several_tiles_of_rows_and_of_the_ring(monkeypatch, used, window, b):
  monkeypatch.setattr(branch_kernel_tpu, "ROWS", 32)
  monkeypatch.setattr(branch_kernel_tpu, "SCORES", 128 * 32)
  mesh.start(devices=jax.devices()[:1])
  some = dict(k=4, t=4, g=3, s=360, n=1, block=72)
  case = branch_kernel_test.Case(**some, used=used, window=window, b=b)
  assert branch_kernel_tpu.sizes(4 * 4 * 3, 16, 360, 4) == (2, 32, 128)  # the last tile is ragged
  want, got = branch_kernel_test.both(case, "tpu_interpret")
  np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize(
  ("rows", "h", "want"),
  [(40, 128, (1, 48, 2048)), (5, 64, (1, 16, 4096)), (2560, 128, (5, 512, 1024))],
)
def test_sizes_of_tiles(rows, h, want):
  assert branch_kernel_tpu.sizes(rows, h, 18432, 2) == want


def test_what_the_kernel_takes():
  takes = lambda h, s: attention.by_kernel("tpu_kernel", h, s)
  assert takes(64, 4096) and takes(128, 18432) and takes(256, 128)
  assert not takes(96, 4096) and not takes(128, 4000)


# ---------------------------------------------------------------- compiled


@NEEDS_LIBTPU
def test_the_setting_on_a_tpu():
  one = mesh.start(devices=plan.devices_of("v5e:2x2")[0][:1])
  means = {"auto": "tpu_kernel", "kernel": "tpu_kernel", "einsum": "einsum"}
  assert {name: attention.implementation(name) for name in means} == means
  config = dataclasses.replace(config_lib.Config(), attention="cudnn")
  with pytest.raises(UserError, match="attention is 'cudnn': it must be auto or einsum"):
    checks.check_devices(config, one)


def compiled(topology, model_parallel, arch, t, unroll=False):
  """Compiled text of a forward pass of `t` tokens of 8 branches for a TPU that need not exist."""
  # A layer of a smaller ring would be copied to the memory of a core, which has room for it.
  b, k, c = 16, 8, 32
  mesh.start(model_parallel, plan.devices_of(topology)[0][:4])
  spec = Spec(arch, Layout(dtype="bfloat16", attention="tpu_kernel", unroll=unroll))
  model = mesh.shapes(decoder.unstacked, weights.shapes(*spec))
  rows = lambda dtype, *tail: mesh.shape(
    (b, *tail), jnp.dtype(dtype), jax.P("data", *[None] * len(tail))
  )
  scalar = mesh.shape((), jnp.int32)
  prefix = dict(position=rows("int32", RING), visible=rows("bool", RING), used=scalar)
  prefix["kv"] = mesh.shapes(lambda: attention.blank_prefix(spec, b, RING))

  def forward(model, tokens, chunk, at, causal, prefix):
    prefix = attention.Prefix(**prefix, block=512)
    return decoder.forward(model, tokens, tokens, chunk, at, prefix, causal)

  chunk = mesh.shapes(lambda: attention.blank_chunk(spec, b, k, c))
  causal = mesh.shape((t, c), jnp.bool_)
  given = (model, rows("int32", k, t), chunk, scalar, causal, prefix)
  return jax.jit(forward, donate_argnums=2).lower(*given).compile().as_text()


PASSES = {  # topology, model_parallel, key-value heads, groups, head, tokens, sliding window, unrolled
  "v5e_decode": ("v5e:2x2", 2, 4, 5, 128, 1, 0, False),
  "v5p_score": ("v5p:2x2x1", 2, 4, 5, 128, 16, 0, False),
  "v5p_small_heads": ("v5p:2x2x1", 1, 8, 4, 64, 1, 0, True),
  "v6e_window": ("v6e:2x2", 1, 2, 6, 128, 1, 1024, False),
  "v6e_score_small_heads": ("v6e:2x2", 4, 8, 4, 64, 16, 0, False),
  "v6e_large_heads": ("v6e:2x2", 2, 4, 2, 256, 1, 512, False),
  "tpu7x_decode": ("tpu7x:2x2x1", 2, 4, 5, 128, 1, 0, False),
}


@NEEDS_LIBTPU
@pytest.mark.parametrize("name", PASSES)
def test_a_tpu_gets_the_ring_as_it_is(name):
  topology, model_parallel, n, g, h, t, window, unroll = PASSES[name]
  arch = Architecture(
    vocab=512,
    width=256,
    layers=2,
    kv_heads=n,
    groups=g,
    head=h,
    hidden=256,
    tied=True,
    window=window,
    sliding=(True, False) if window else (),
  )
  text = hlo.Text(compiled(topology, model_parallel, arch, t, unroll))
  seen = [ins for ins, _, _ in text.walk(lambda file: 1)]
  calls = [x for x in seen if x.op == "custom-call" and "tpu_custom_call" in x.rest]
  assert len(calls) == (2 if unroll else 1)
  free = ("parameter", "get-tuple-element", "tuple", "while", "bitcast")
  moved = [
    x for x in seen if x.op not in free and (f"{RING},{h}]" in x.type or f"{h},{RING}]" in x.type)
  ]
  assert not moved, moved
