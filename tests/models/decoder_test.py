"""The model against transformers' logits, and what may not look at what, by gradient."""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from gen_ssd import mesh
from gen_ssd.models import architecture
from gen_ssd.models import attention
from gen_ssd.models import decoder
from gen_ssd.models import hf
from gen_ssd.models import rope
from gen_ssd.models import weights
from gen_ssd.models.architecture import Architecture
from gen_ssd.models.architecture import Layout

GOLDEN = pathlib.Path(__file__).parent / "golden"
CASES = sorted(path.stem for path in GOLDEN.glob("*.npz"))
SMALL = Architecture(
  vocab=40, width=16, layers=2, kv_heads=2, groups=2, head=8, hidden=24, theta=1000.0, qk_norm=True
)


def golden(name, folder, dtype=np.float32):
  """(Hugging Face directory written from the golden file, tokens [t], logits [t,v])."""
  with np.load(GOLDEN / f"{name}.npz") as file:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(str(file["config"]))
    save_file(
      {k[2:]: file[k].astype(dtype) for k in file if k.startswith("w:")},
      folder / "model.safetensors",
    )
    return folder, file["tokens"], file["logits"]


@jax.jit(static_argnames="block")
def hidden(net, tokens, positions, segments, block=None):
  attend = functools.partial(
    attention.attend_packed, segments=segments, block=block or tokens.shape[1]
  )
  return decoder.forward_packed(net, tokens, positions, attend)


def small(arch=SMALL, layout=Layout()):
  """Random weights without a compiled initialisation, which takes seconds."""
  random = np.random.default_rng(0)
  return decoder.Transformer(
    arch,
    layout,
    lambda name, dims: mesh.place(
      (random.normal(size=dims) / 4 + name.endswith(("n", "norm", "ln1", "ln2"))).astype("f"),
      architecture.partition_spec(layout, name),
    ),
  )


def all_logits(net, tokens, block=None):
  tokens = jnp.asarray(tokens)
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  x = hidden(net, tokens, positions, jnp.ones_like(tokens), block)
  return np.asarray(jax.jit(decoder.logits)(net, x))[:, 0]


@pytest.mark.parametrize("name", CASES)
def test_golden_logits(name, tmp_path):
  mesh.start(devices=jax.devices()[:1])
  folder, tokens, want = golden(name, tmp_path)
  net = weights.load(folder)
  arch = net.arch
  np.testing.assert_allclose(all_logits(net, tokens[None])[0], want, atol=1e-4)

  if arch.sliding:  # the window reaches over blocks of keys
    np.testing.assert_allclose(all_logits(net, tokens[None], 8)[0], want, atol=1e-4)

  # The file would notice a fact that is ignored or off by one.
  for wrong in (
    dict(theta=10000.0),
    dict(rope=("default",)),
    dict(act="silu"),
    dict(embed_scale=1.0),
    dict(query_scale=1.0),
    dict(norm_offset=0.0),
    dict(sliding=()),
    dict(window=arch.window and arch.window + 1),
    dict(sliding_theta=10000.0),
    dict(sliding_rope=("default",)),
  ):
    if (other := dataclasses.replace(arch, **wrong)) != arch:
      off = all_logits(decoder.replace(net, arch=other), tokens[None])[0]
      assert np.abs(off - want).max() > 0.01, wrong


@pytest.mark.parametrize("name", ["qwen3", "gemma3", "olmo2"])
def test_golden_logits_do_not_depend_on_the_mesh_or_on_unrolling(name, tmp_path):
  folder, tokens, want = golden(name, tmp_path)
  tokens = np.stack([tokens] * 4)
  for parallel, count, unroll in ((2, 4, False), (2, 8, True), (1, 4, False)):
    mesh.start(parallel, devices=jax.devices()[:count])
    net = weights.load(folder, Layout(unroll=unroll))
    for row in all_logits(net, mesh.place(tokens, jax.P("data"))):
      np.testing.assert_allclose(row, want, atol=1e-4)


def test_goldens_cover_every_architecture_and_rope_type():
  configs = [json.loads(str(np.load(GOLDEN / f"{n}.npz")["config"])) for n in CASES]
  rope = [c.get("rope_parameters") or c.get("rope_scaling") or {} for c in configs]
  assert {c["model_type"] for c in configs} == set(hf.MODEL_TYPES)
  assert {r.get("rope_type", r.get("type", "default")) for r in rope} == set(hf.ROPE)


def test_rope_type_nobody_knows():
  with pytest.raises(ValueError, match="'longrope' is not supported.*yarn"):
    rope.frequencies(dataclasses.replace(SMALL, rope=("longrope",)))


def test_gradients_do_not_depend_on_unrolling_or_recomputing(tmp_path):
  mesh.start(devices=jax.devices()[:1])
  folder, tokens, _ = golden("gemma3", tmp_path)
  tokens = jnp.asarray(tokens)[None]

  def gradient(unroll, remat):
    attend = functools.partial(attention.attend_packed, segments=jnp.ones_like(tokens), block=14)
    loss = lambda net: (
      decoder.forward_packed(net, tokens, jnp.arange(56)[None], attend, remat=remat) ** 3
    ).sum()
    found = jax.jit(jax.grad(loss))(weights.load(folder, Layout(unroll=unroll)))
    return {jax.tree_util.keystr(path): x for path, x in jax.tree.leaves_with_path(found)}

  want = gradient(False, False)
  assert min(np.abs(x).max() for x in want.values()) > 0.1  # every leaf is used
  for unroll, remat in ((True, False), (True, True), (False, True)):
    got = gradient(unroll, remat)
    for name in want:
      np.testing.assert_allclose(got[name], want[name], rtol=1e-3, atol=1e-3, err_msg=name)


def influence(net, tokens, positions, segments, block):
  """bool[t,t]: does the hidden state at t depend on the token embedding at j? Distinct tokens."""
  graph, state = decoder.nnx.split(net)

  @jax.jit
  @jax.grad
  def sensitivity(embed, pick):
    other = decoder.nnx.merge(graph, state)
    other.embed = decoder.nnx.Param(embed)
    x = hidden(other, tokens[None], positions[None], segments[None], block)
    return (x**3 * pick[:, None]).sum()

  rows = [np.abs(sensitivity(net.embed[...], pick)).sum(-1) for pick in np.eye(len(tokens))]
  return np.stack(rows)[:, tokens] > 0


@pytest.mark.parametrize("block", [4, 12])
def test_causality_and_packing_by_gradient(block):
  mesh.start(devices=jax.devices()[:1])
  net = small()
  tokens = jax.random.permutation(jax.random.key(1), SMALL.vocab)[:12]
  segments = jnp.array([1, 1, 1, 1, 1, 2, 2, 2, 3, 3, 0, 0])
  positions = jnp.array([0, 1, 2, 3, 4, 0, 1, 2, 0, 1, 0, 1])
  causal = np.tril(np.ones((12, 12), bool))
  one = jnp.ones_like(segments)
  np.testing.assert_array_equal(influence(net, tokens, jnp.arange(12), one, block), causal)
  apart = np.asarray(segments)[:, None] == np.asarray(segments)[None]
  np.testing.assert_array_equal(influence(net, tokens, positions, segments, block), causal & apart)


def test_a_packed_row_is_its_separate_rows():
  mesh.start(devices=jax.devices()[:1])
  net = small()
  tokens = jax.random.randint(jax.random.key(1), (1, 12), 0, SMALL.vocab)
  segments = jnp.array([[1] * 5 + [2] * 4 + [0] * 3])
  positions = jnp.array([[*range(5), *range(4), 0, 0, 0]])
  packed = hidden(net, tokens, positions, segments)
  for a, b in ((0, 5), (5, 9)):
    alone = hidden(net, tokens[:, a:b], jnp.arange(b - a)[None], jnp.ones((1, b - a), int))
    np.testing.assert_allclose(packed[:, :, a:b], alone, atol=1e-5)


def test_block_size_changes_neither_values_nor_gradients():
  mesh.start(devices=jax.devices()[:1])
  b, t, n, g, h = 2, 24, 2, 3, 8
  q, k, v, weight = (
    jax.random.normal(key, dims)
    for key, dims in zip(
      jax.random.split(jax.random.key(0), 4),
      [(b, 1, t, n, g, h), (b, 1, t, n, h), (b, 1, t, n, h), (b, 1, t, n, g, h)],
    )
  )
  segments = jnp.array([[1] * 10 + [2] * 14, [1] * 20 + [0] * 4])

  def results(block):
    def loss(q, k, v):
      out = attention.attend_packed(q, k, v, segments, block=block)
      return (out * weight).sum(), out

    gradients, out = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
    return gradients, out, np.sum(np.float64(out) * np.float64(weight))  # in f64: it is large

  want = results(t)
  for block in (1, 8):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), results(block), want)


def test_attend_packed_is_plain_softmax_attention():
  mesh.start(devices=jax.devices()[:1])
  q, k, v = (jax.random.normal(jax.random.key(i), (1, 1, 6, 2, 4)) for i in range(3))
  q = jnp.stack([q, -q], 4)  # two query groups a head
  segments = jnp.array([[1, 1, 1, 1, 2, 2]])
  ok = np.tril(np.ones((6, 6), bool)) & (np.asarray(segments[0])[:, None] == np.asarray(segments))
  scores = np.einsum("tngh,snh->ngts", q[0, 0], k[0, 0]) / 2
  p = np.where(ok, np.exp(scores), 0)
  want = np.einsum("ngts,snh->tngh", p / p.sum(-1, keepdims=True), v[0, 0])
  for block in (2, 6):
    got = attention.attend_packed(q, k, v, segments, block=block)
    np.testing.assert_allclose(got[0, 0], want, atol=1e-5)


def test_leaves_name_every_parameter_and_spec_splits_them():
  arch = dataclasses.replace(SMALL, bias=True, tied=True)
  mesh.start(2, devices=jax.devices()[:4])
  net = decoder.initialise(arch, Layout(fsdp_axes=("data", "model")), jax.random.key(0))
  assert sum(x.size for x in jax.tree.leaves(net)) == architecture.parameters(arch)
  assert not hasattr(net, "head")
  assert net.blocks.q[...].sharding.spec[1] == ("data", "model")
  assert small(arch).blocks.q[...].sharding.spec == jax.P(None, None, "model", None, None)
  np.testing.assert_allclose(np.asarray(net.blocks.q[...]).std(), 16**-0.5, rtol=0.1)


def test_unstacked_twice_is_unstacked_once():
  mesh.start(devices=jax.devices()[:1])
  net = small(layout=Layout(unroll=True))
  once = decoder.unstacked(net)
  assert len(once.blocks) == SMALL.layers
  assert decoder.unstacked(once) is once
  np.testing.assert_array_equal(once.blocks[1].q[...], net.blocks.q[...][1])


def test_outputs_come_first_where_the_layout_says_so():
  mesh.start(devices=jax.devices()[:1])
  net = small(layout=Layout(unroll=True, outputs_first=True))
  once = decoder.unstacked(net)
  one = net.blocks.o[...][1]
  np.testing.assert_array_equal(once.blocks[1].o[...].values, np.moveaxis(one, -1, 0))
  np.testing.assert_array_equal(once.head[...].values, np.transpose(net.head[...]))
  np.testing.assert_array_equal(once.blocks[1].ln1[...], net.blocks.ln1[...][1])


def test_models_of_one_shape_are_unstacked_by_one_program():
  mesh.start(devices=jax.devices()[:1])
  build = lambda seed: decoder.initialise(SMALL, Layout(unroll=True), jax.random.key(seed))
  decoder.unstacked(build(0))
  count = decoder._split._cache_size()
  decoder.unstacked(build(1))
  assert decoder._split._cache_size() == count > 0


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_of_logits_are_products_in_the_dtype_of_the_model(tied):
  mesh.start(devices=jax.devices()[:1])
  arch = dataclasses.replace(SMALL, tied=tied)
  weight = jnp.array(np.random.default_rng(0).normal(size=(40, 16) if tied else (16, 40)))
  x, out = (
    jnp.array(np.random.default_rng(i).normal(size=(2, 1, 3, n))) for i, n in ((1, 16), (2, 40))
  )

  def loss(x, weight):
    model = decoder.Transformer(arch, Layout(), lambda name, dims: weight)
    return jnp.sum(decoder.logits(model, x) * out)

  def plain(x, weight):
    return jnp.sum(jnp.einsum("bktd,vd->bktv" if tied else "bktd,dv->bktv", x, weight) * out)

  cast = lambda dtype: (x.astype(dtype), weight.astype(dtype))
  wanted = jax.grad(plain, (0, 1))(*cast("float32"))
  for dtype, tolerance in (("float32", 1e-6), ("bfloat16", 2e-2)):
    found = jax.grad(loss, (0, 1))(*cast(dtype))
    for a, b in zip(found, wanted):
      assert a.dtype == dtype
      np.testing.assert_allclose(a.astype("float32"), b, rtol=tolerance, atol=10 * tolerance)
  text = jax.jit(jax.grad(loss, (0, 1))).lower(*cast("bfloat16")).as_text()
  products = [line for line in text.splitlines() if "dot_general" in line]
  assert len(products) == 2 and not any("xf32>," in line for line in products)
