"""Kernels against plain attention: interpreted on a CPU, and lowered for CUDA without a GPU."""

import dataclasses
import inspect
import re

import jax
import jax.numpy as jnp
from jax.sharding import AbstractDevice
from jax.sharding import AbstractMesh
import numpy as np
import pytest

from gen_ssd import checks
from gen_ssd import config as config_lib
from gen_ssd import mesh
from gen_ssd.engine import step as step_lib
from gen_ssd.errors import UserError
from gen_ssd.models import attention
from gen_ssd.models import packed_kernel
from gen_ssd.models.architecture import Layout
from gen_ssd.models.attention import KV
from gen_ssd.training import train
from tests import tiny
from tests.training import train_test

TRITON = "__gpu$xla.gpu.triton"
KERNELS = pytest.mark.parametrize("kernel", ["interpret", "tpu_interpret"])


@dataclasses.dataclass(frozen=True)
class Case:
  """Sizes of an attention of branches, by dimension letter; L is 0 for a layer on its own."""

  k: int = 2
  t: int = 1
  g: int = 2
  h: int = 16
  s: int = 48
  c: int = 8
  L: int = 2
  b: int = 2
  n: int = 2
  block: int = 16
  used: int = 3
  window: int = 0
  dtype: str = "float32"


CASES = {
  "one_branch": Case(k=1, g=1, s=16, used=1),
  "ragged_ring": Case(k=3, t=5, s=40, block=8, used=4),
  "several_tiles": Case(k=8, t=5, g=7, h=64, s=256, n=1, block=64, used=3),
  "one_layer": Case(k=8, g=6, L=0, block=48, used=1),
  "window": Case(k=3, t=5, g=6, window=20, used=2),
  "empty_ring": Case(used=0),
  "bfloat16": Case(k=8, g=7, h=128, s=256, n=1, block=64, used=4, dtype="bfloat16"),
  "window_bfloat16": Case(t=5, g=1, L=0, window=9, dtype="bfloat16"),
}


def branches(case, implementation):
  """(attend(q, own, prefix), its arguments) of random tokens; the first slot sees no prefix."""
  random = np.random.default_rng(0)
  c, shared = case, ("data", "model")
  draw = lambda spec, *dims: mesh.place(
    random.normal(size=dims).astype(jnp.dtype(c.dtype)), jax.P(*spec)
  )
  lead = (c.L,) * (c.L > 0)
  axes = (*[None] * len(lead), *shared, None, None)
  q = draw(("data", None, None, "model", None, None), c.b, c.k, c.t, c.n, c.g, c.h)
  own_axes = ("data", None, "model", None, None)
  own = KV(k=draw(own_axes, c.b, c.k, c.n, c.h, c.c), v=draw(own_axes, c.b, c.k, c.n, c.c, c.h))
  kv = KV(k=draw(axes, *lead, c.b, c.n, c.h, c.s), v=draw(axes, *lead, c.b, c.n, c.s, c.h))
  visible = random.random((c.b, c.s)) < 0.6
  visible[0] = False
  visible[1, : min(c.s, 32)] = False  # the first tiles of a split are masked, and the next are not
  visible[1, 9] = True
  position = random.integers(0, c.s, (c.b, c.s)).astype(np.int32)
  places = np.broadcast_to(np.arange(c.t, dtype=np.int32) + c.s, (c.b, c.k, c.t))
  places = mesh.place(places, jax.P("data", None, None))
  rows = jax.P("data", None)
  rest = mesh.place(position, rows), mesh.place(visible, rows), mesh.place(np.int32(c.used))

  @jax.jit
  def attend(q, own, kv, l, places, position, visible, used):
    near = (c.window, places) if c.window else None
    prefix = attention.Prefix(kv=kv, position=position, visible=visible, used=used, block=c.block)
    causal = jnp.arange(c.c) <= jnp.arange(c.t)[:, None] + 1
    layer = attention.LayerPrefix(kv, l if c.L else None, prefix)
    return attention.attend_branches(q, own, layer, causal, near, implementation)

  return attend, (q, own, kv, mesh.place(np.int32(c.L // 2)), places, *rest)


def both(case, kernel="interpret"):
  """The case by plain attention and by a kernel."""
  for implementation in ("einsum", kernel):
    attend, arguments = branches(case, implementation)
    yield np.asarray(attend(*arguments), np.float32)


@KERNELS
@pytest.mark.parametrize("name", CASES)
def test_the_kernel_is_plain_attention(name, kernel):
  mesh.start(devices=jax.devices()[:1])
  want, got = both(CASES[name], kernel)
  np.testing.assert_allclose(got, want, atol=1e-5 if CASES[name].dtype == "float32" else 2e-2)


@KERNELS
@pytest.mark.parametrize("L", [0, 2])
def test_the_kernel_on_eight_devices(L, kernel):
  mesh.start(2)
  want, got = both(Case(b=4, k=3, g=3, L=L, window=20), kernel)
  np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize(("kernel", "h"), [("interpret", 24), ("tpu_kernel", 16)])
def test_head_sizes_that_the_kernel_does_not_take(kernel, h):
  mesh.start(devices=jax.devices()[:1])
  want, got = both(Case(h=h), kernel)
  np.testing.assert_array_equal(got, want)


def cuda(program, *arguments, **static):
  """The text of a jitted program for one H100, which this machine need not have."""
  facts = dict(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")
  known = inspect.signature(AbstractDevice).parameters
  here = jax.sharding.get_mesh()
  there = AbstractMesh(
    here.axis_sizes,
    here.axis_names,
    axis_types=here.axis_types,
    abstract_device=AbstractDevice(**{name: facts[name] for name in known}),
  )

  def shape(x):
    sharding = jax.sharding.NamedSharding(there, jax.typeof(x).sharding.spec)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

  with jax.sharding.use_abstract_mesh(there):
    traced = program.trace(*jax.tree.map(shape, arguments), **static)
    return traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("name", CASES)
def test_the_kernel_lowers_for_cuda(name):
  mesh.start(devices=jax.devices()[:1])
  attend, arguments = branches(CASES[name], "kernel")
  text = cuda(attend, *arguments)
  assert text.count(f"custom_call @{TRITON}") == 1
  c = CASES[name]  # the ring of all layers goes in as it is
  ring = f"tensor<{c.L or 1}x{c.b}x{c.n}x{c.h}x{c.s}x"
  assert any(ring in line for line in text.splitlines() if TRITON in line)
  slices = [line for line in text.splitlines() if re.search("dynamic_slice|gather", line)]
  assert not any(f"x{c.h}x{c.s}x" in line for line in slices)


# ---------------------------------------------------------------- whole programs


def engine(implementation, **options):
  """The tiny pair with heads that the kernel takes."""
  archs = [dataclasses.replace(a, head=16) for a in (tiny.TEACHER, tiny.STUDENT)]
  layouts = [dataclasses.replace(x, attention=implementation) for x in (tiny.SHARED, tiny.ALONE)]
  layouts = [dataclasses.replace(x, unroll=options.get("unroll", False)) for x in layouts]
  teacher, student = (tiny.build(*x) for x in zip(archs, layouts))
  return tiny.Engine(teacher=teacher, student=student, **options)


@pytest.mark.parametrize("unroll", [False, True])
def test_a_round_lowers_for_cuda(unroll):
  mesh.start(devices=jax.devices()[:1])
  e = engine("kernel", block=16, unroll=unroll)
  arguments = (e.teacher, e.student, e.state, e.knob)
  assert TRITON in cuda(step_lib.select_step, *arguments, round=e.static)
  start = tiny.admission(e.b, e.slots, {0: ([7, 8, 9], 1, 0)})
  assert TRITON in cuda(
    step_lib.admit, e.teacher, e.student, e.state, start, c=e.static.c, block=16
  )


@pytest.mark.slow
def test_a_round_chooses_the_same_tokens():
  mesh.start(2, devices=jax.devices()[:2])
  found = []
  for implementation in ("einsum", "interpret"):
    e = engine(implementation, b=4, c=2, slots=16, block=8)
    e.admit({i: (ids, i) for i, ids in enumerate(tiny.prompts(3))})
    e.round()
    found.append((e.texts, e.nll))
  (want, want_nll), (got, got_nll) = found
  assert got == want
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), got_nll, want_nll)


# ---------------------------------------------------------------- packed sequences

SEGMENTS = [[1] * 40 + [2] * 30 + [0] * 26, [0] * 96] * 4


def packed(implementation, h=16, dtype="float32", window=None):
  """(loss, its arguments) of attention in packed sequences; loss gives (sum, output)."""
  random = np.random.default_rng(0)
  t, n, g = 96, 2, 3
  spec = jax.P(("data", "model"))
  shapes = (8, 1, t, n, g, h), (8, 1, t, n, h), (8, 1, t, n, h)
  q, k, v = (mesh.place(random.normal(size=x).astype(jnp.dtype(dtype)), spec) for x in shapes)
  segments = mesh.place(np.int32(SEGMENTS), spec)

  def loss(q, k, v, segments):
    out = attention.attend_packed(
      q, k, v, segments, block=32, window=window, implementation=implementation
    )
    return (out.astype("float32") ** 3).sum(), out

  return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True)), (q, k, v, segments)


@pytest.mark.parametrize(("devices", "dtype", "far"), [(8, "float32", 1e-5), (1, "bfloat16", 2e-2)])
def test_packed_kernel_is_plain_attention_with_gradients(devices, dtype, far):
  mesh.start(devices=jax.devices()[:devices])
  found = []
  for implementation in ("einsum", "interpret"):
    loss, arguments = packed(implementation, dtype=dtype)
    found.append(jax.tree.map(lambda x: np.asarray(x, np.float32), loss(*arguments)))
  (want, want_grad), (got, got_grad) = found
  np.testing.assert_allclose(got[1], want[1], atol=far)
  for a, b in zip(got_grad, want_grad):
    assert np.linalg.norm(a - b) < far * np.linalg.norm(b)


def test_cudnn_gets_the_right_masks():
  mesh.start(devices=jax.devices()[:1])
  loss, arguments = packed("einsum")
  (_, want), _ = loss(*arguments)
  got = packed_kernel.masked(*[jnp.asarray(np.asarray(x)) for x in arguments], kind="xla")
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_packed_kernel_lowers_for_cuda_where_it_can_be_used():
  mesh.start(devices=jax.devices()[:1])
  for h in (64, 128, 256):
    loss, arguments = packed("kernel", h, "bfloat16")
    assert cuda(loss, *arguments).count(f"custom_call @{TRITON}") == 3  # forward, and two backward
  for options in (dict(dtype="float32"), dict(h=24, dtype="bfloat16"), dict(window=20)):
    loss, arguments = packed("kernel", **options)
    assert TRITON not in cuda(loss, *arguments)


@pytest.mark.parametrize(("t", "want"), [(96, 32), (2048, 128), (16, 16), (1040, 16)])
def test_blocks_of_packed_kernel_divide_t(t, want):
  sizes = packed_kernel.block_sizes(t, 64)
  assert sizes.block_q == want
  for size in dataclasses.astuple(sizes):
    assert t % size == 0 and size >= 16


@pytest.mark.parametrize("remat", [False, True])
def test_an_update_lowers_for_cuda(remat):
  mesh.start(devices=jax.devices()[:1])
  arch = dataclasses.replace(tiny.STUDENT, head=64)
  settings = dataclasses.replace(
    train_test.TRAIN, dtype="bfloat16", length=64, block=32, remat=remat
  )
  shapes = train.shapes(arch, settings, None, "kernel")
  assert TRITON in cuda(train.train_step, *shapes, config=train.static(settings))


def test_the_setting_on_a_cpu():
  one = mesh.start(devices=jax.devices()[:1])
  assert attention.implementation("auto") == Layout().attention == "einsum"
  assert attention.implementation("cudnn") == "cudnn"
  for name in ("kernel", "cudnn"):
    config = dataclasses.replace(config_lib.Config(), attention=name)
    with pytest.raises(UserError, match=f"attention is '{name}': it must be auto or einsum"):
      checks.check_devices(config, one)
