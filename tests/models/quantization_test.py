"""Weights as int8: how far each number moves, and that the decoder computes with just these."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_ssd import mesh
from gen_ssd.models import architecture
from gen_ssd.models import decoder
from gen_ssd.models import export
from gen_ssd.models import quantization
from gen_ssd.models import weights
from gen_ssd.models.architecture import Layout
from gen_ssd.models.architecture import Spec
from tests import tiny
from tests.models.decoder_test import CASES
from tests.models.decoder_test import all_logits
from tests.models.decoder_test import golden
from tests.training import train_test

INT8 = Layout(quantization="int8")
FSDP = ("data", "model")


def leaves_of(net):
  """{name: array or Int8Weight} of a stacked model."""
  top, layer = architecture.leaves(net.arch)
  found = {name: getattr(net, name)[...] for name in top}
  return found | {name: getattr(net.blocks, name)[...] for name in layer}


def dequantised(name, w):
  """Float32 NumPy array of a leaf."""
  if not isinstance(w, quantization.Int8Weight):
    return np.asarray(w)
  return np.asarray(w.values) * np.expand_dims(np.asarray(w.scale), architecture.summed(name))


def assert_same_leaves(a, b):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.mark.parametrize("axes", [(-3,), (-1,), (-3, -2)])
def test_a_number_moves_by_half_a_scale_at_most(axes):
  mesh.start(devices=jax.devices()[:1])
  w = np.random.default_rng(0).normal(size=(3, 8, 5, 6)).astype(np.float32)
  w[0] = 0
  found = quantization.to_int8(w, axes)
  scale = np.expand_dims(np.asarray(found.scale), axes)
  far = np.abs(w - np.asarray(found.values) * scale)
  assert (far <= 0.5001 * scale).all() and far.max() > 0.4 * scale.max()
  most = np.abs(w).max(axes, keepdims=True)
  np.testing.assert_allclose(scale[1:], most[1:] / 127, rtol=1e-6)
  assert np.abs(np.asarray(found.values)).max() == 127 and (np.asarray(found.values)[0] == 0).all()


def test_the_axes_that_are_summed_are_the_inputs():
  found = {name: architecture.summed(name) for name in architecture.LEAVES}
  matrices = {name: axes for name, axes in found.items() if axes}
  assert matrices == dict(
    embed=(-1,),
    head=(-2,),
    q=(-4,),
    k=(-3,),
    v=(-3,),
    o=(-4, -3, -2),
    gate=(-2,),
    up=(-2,),
    down=(-2,),
  )


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_the_rounded_weights(name, tmp_path):
  mesh.start(devices=jax.devices()[:1])
  folder, tokens, want = golden(name, tmp_path)
  net, plain = weights.load(folder, INT8), weights.load(folder)
  got = all_logits(net, tokens[None])[0]
  rounded = {leaf: dequantised(leaf, w) for leaf, w in leaves_of(net).items()}
  same = decoder.Transformer(plain.arch, Layout(), lambda leaf, dims: jnp.array(rounded[leaf]))
  np.testing.assert_allclose(got, all_logits(same, tokens[None])[0], atol=1e-4)
  # Matrices of 16 columns with awkward facts: the logits have a standard deviation of about 2.
  assert 0.01 < np.abs(got - want).max() < 1 and np.std(got - want) < 0.1 * np.std(want)


@pytest.mark.parametrize("name", ["qwen2", "gemma3"])
def test_the_int8_weights_depend_on_neither_mesh_nor_layout_nor_pieces(name, tmp_path, monkeypatch):
  folder, tokens, _ = golden(name, tmp_path)
  mesh.start(devices=jax.devices()[:1])
  want = weights.load(folder, INT8)
  logits = all_logits(want, tokens[None])[0]
  for parallel, changes in ((2, {}), (2, dict(unroll=True)), (1, dict(fsdp_axes=FSDP))):
    mesh.start(parallel)
    layout = dataclasses.replace(INT8, **changes)
    net = weights.load(folder, layout)
    assert_same_leaves(net, want)
    placed = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding.spec), net)
    assert jax.tree.leaves(placed) == jax.tree.leaves(
      jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding.spec), weights.shapes(net.arch, layout))
    )
    if not layout.fsdp_axes:
      for row in all_logits(net, mesh.place(np.stack([tokens] * 4), jax.P("data"))):
        np.testing.assert_allclose(row, logits, atol=1e-4)
  q, o = net.blocks.q[...], net.blocks.o[...]
  assert q.values.sharding.spec[1] == FSDP and q.scale.sharding.spec == jax.P(*[None] * 4)
  assert o.scale.sharding.spec == jax.P(None, FSDP)
  monkeypatch.setattr(weights, "PIECE", 0)
  assert_same_leaves(weights.load(folder, layout), want)


def test_no_more_than_a_tensor_is_float_while_loading(tmp_path, monkeypatch):
  mesh.start(devices=jax.devices()[:1])
  folder, _, _ = golden("gemma3", tmp_path)
  before = {id(x) for x in jax.live_arrays()}
  held, fill = [], weights._fill

  def watched(out, *arguments):
    mine = [x for x in jax.live_arrays() if id(x) not in before and x.dtype == jnp.float32]
    held.append(sum(x.nbytes for x in mine if x.ndim > 2))  # without norms and scales
    return fill(out, *arguments)

  monkeypatch.setattr(weights, "PIECE", 0)
  monkeypatch.setattr(weights, "_fill", watched)
  net = weights.load(folder, INT8)
  largest = max(
    w.values.nbytes // w.values.shape[0] for w in leaves_of(net).values() if hasattr(w, "values")
  )
  assert len(held) > 20 and max(held) <= 4 * max(largest, net.arch.vocab * net.arch.width)


def test_bytes_are_counted_as_the_layout_keeps_them():
  mesh.start(devices=jax.devices()[:1])
  for arch in (tiny.TEACHER, tiny.STUDENT):
    for dtype in ("float32", "bfloat16"):
      for kind in ("off", "int8"):
        layout = Layout(dtype=dtype, quantization=kind)
        sizes = dict.fromkeys(architecture.leaf_bytes(Spec(arch, layout)), 0)
        for path, x in jax.tree.leaves_with_path(weights.shapes(arch, layout)):
          name = next(key.name for key in path if getattr(key, "name", None) in sizes)
          sizes[name] += x.size * x.dtype.itemsize
        assert architecture.leaf_bytes(Spec(arch, layout)) == sizes


def test_random_int8_weights_are_the_rounded_random_weights():
  mesh.start(2, devices=jax.devices()[:4])
  made = [
    decoder.initialise(tiny.TEACHER, layout, jax.random.key(0)) for layout in (Layout(), INT8)
  ]
  plain, net = map(leaves_of, made)
  for name, w in plain.items():
    np.testing.assert_allclose(dequantised(name, net[name]), w, atol=np.abs(w).max() / 250)
  assert net["q"].values.dtype == jnp.int8 and net["norm"].dtype == jnp.float32


# ---------------------------------------------------------------- generation


def written(folder, devices, **form):
  """What two rounds of an int8 teacher write, and the nll that an int8 student gives it."""
  mesh.start(2 if devices > 1 else 1, devices=jax.devices()[:devices])
  layout = dataclasses.replace(INT8, **form)
  alone = dataclasses.replace(layout, batch_axes=("data", "model"), tensor_axis=None)
  teacher, student = (decoder.unstacked(weights.load(folder, own)) for own in (layout, alone))
  vocab = teacher.arch.vocab
  knob = tiny.knobs(
    vocab=np.int32(vocab), token_kind=np.zeros(vocab, np.int8), step_end=np.zeros(vocab, bool)
  )
  engine = tiny.Engine(teacher=teacher, student=student, knob=knob)
  engine.admit({i: ([1 + i, 7, 20 - i], i) for i in range(8)})
  engine.round()
  engine.round()
  return engine.texts, engine.nll


def test_eight_devices_and_separate_layers_write_what_one_device_writes(tmp_path):
  folder, _, _ = golden("qwen3", tmp_path)
  texts, nll = written(folder, 1)
  assert all(len(text) == 3 + 2 * 4 for text in texts.values())
  separate = dict(devices=1, unroll=True)
  for options in (dict(devices=8), separate, separate | dict(outputs_first=True)):
    again, its = written(folder, **options)
    assert again == texts
    for name, values in nll.items():
      np.testing.assert_allclose(its[name], values, atol=1e-4)


# ---------------------------------------------------------------- training


def test_a_quantised_model_is_neither_trained_nor_exported(tmp_path):
  mesh.start(devices=jax.devices()[:1])
  folder, _, _ = golden("qwen3", tmp_path / "in")
  net = weights.load(folder, INT8)
  with pytest.raises(ValueError, match="a quantised model cannot be trained"):
    train_test.train.fit(
      net, lambda number, model: model, train_test.TRAIN, tmp_path / "checkpoints"
    )
  with pytest.raises(ValueError, match="a quantised model is not exported"):
    export.save(tmp_path / "out", net, folder)
  assert not (tmp_path / "out").exists()
