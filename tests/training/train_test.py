"""Training: exact resumption, global normalisation, objectives, decay, FSDP, one program."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from gen_ssd import config
from gen_ssd import errors
from gen_ssd import mesh
from gen_ssd import progress
from gen_ssd.models import architecture
from gen_ssd.training import objectives
from gen_ssd.training import packing
from gen_ssd.training import terms
from gen_ssd.training import train
from tests import tiny

TRAIN = config.Train(
  steps=6,
  batch_size=8,
  length=24,
  learning_rate=5e-3,
  warmup_steps=2,
  save_every=2,
  log_every=1,
  block=24,
)


def pairs(n=40):
  rng = np.random.default_rng(0)
  return [
    (rng.integers(6, 60, 4).tolist(), rng.integers(60, 90, rng.integers(3, 9)).tolist())
    for _ in range(n)
  ]


def build():
  return tiny.build(tiny.STUDENT)


def leaves(tree):
  return [np.asarray(x) for x in jax.tree.leaves(tree)]


def fit(folder, settings=TRAIN):
  folder.mkdir(exist_ok=True)
  return train.fit(build(), packing.Rows(pairs(), settings.length), settings, folder)


def losses(folder):
  return {r["step"]: r["loss"] for r in map(json.loads, open(folder / "metrics.jsonl"))}


def start(devices=1, model_parallel=1):
  mesh.start(model_parallel, jax.devices()[:devices])


def test_killed_and_run_again_it_ends_in_the_same_weights(tmp_path, monkeypatch):
  start()
  whole = fit(tmp_path / "whole")

  class Killed(Exception):
    pass

  real, left = train.train_step, [5]

  def step(*args, **kwargs):
    if not left[0]:
      raise Killed
    left[0] -= 1
    return real(*args, **kwargs)

  monkeypatch.setattr(train, "train_step", step)
  with pytest.raises(Killed):
    fit(tmp_path / "killed")
  monkeypatch.setattr(train, "train_step", real)
  again = fit(tmp_path / "killed")
  for a, b in zip(leaves(whole), leaves(again)):
    np.testing.assert_array_equal(a, b)
  assert losses(tmp_path / "whole") == losses(tmp_path / "killed")
  assert any((a != b).any() for a, b in zip(leaves(whole), leaves(build())))


def test_the_loss_falls_and_only_the_response_is_learned(tmp_path):
  start()
  settings = dataclasses.replace(TRAIN, steps=40, learning_rate=2e-2)
  net = fit(tmp_path / "a", settings)
  found = losses(tmp_path / "a")
  assert found[40] < 0.8 * found[1]
  prompts = packing.Rows(
    [([], p) for p, _ in pairs()], 24
  )  # the prompts, as if they were responses
  batch = next(packing.batches(prompts, batch_size=8, length=24, seed=0))
  put = jax.tree.map(mesh.place, batch)
  numbers, read = terms.knobs(settings.terms), jax.jit(train.loss_sum, static_argnames="config")

  def nll(net):
    total, (count, _) = read(net, put, {}, numbers, jnp.float32(0), config=settings)
    return float(total / count)

  assert nll(net) > nll(build()) - 0.3


@pytest.mark.parametrize(
  "options", [dict(accumulate=4, batch_size=2), dict(remat=True), dict(block=8), dict(unroll=True)]
)
@pytest.mark.parametrize("few", [0, 2])  # micro-batches are all read, the first one, too
def test_micro_batches_blocks_and_recomputation_change_nothing(options, few):
  """The same 8 packed rows, cut differently, give the same update."""
  start()
  batch = next(packing.batches(packing.Rows(pairs(), 24), batch_size=8, length=24, seed=1))
  batch["mask"][few : few + 2] *= 0  # micro-batches with few targets must weigh less than others
  want = update(batch, TRAIN)
  got = update(batch, dataclasses.replace(TRAIN, **options))
  assert np.isclose(want[1]["loss"], got[1]["loss"], rtol=1e-5)
  for a, b in zip(want[0], got[0]):
    np.testing.assert_allclose(a, b, atol=1e-6)


def update(batch, settings, others=None):
  """Adam's moments after one update, which are the gradient, and the metrics."""
  net = tiny.stacked(tiny.STUDENT, dataclasses.replace(tiny.ALONE, unroll=settings.unroll))
  state = train.start(net, config=settings)
  parts = jax.tree.map(
    lambda x: mesh.place(
      x.reshape(settings.accumulate, -1, x.shape[1]), train.batch_spec(settings)
    ),
    batch,
  )
  settings = dataclasses.replace(settings, warmup_steps=0)
  numbers = jax.tree.map(mesh.place, terms.knobs(settings.terms, tiny.STUDENT.vocab))
  state, row = train.train_step(state, parts, others or {}, numbers, config=settings)
  return leaves(state.optimizer), mesh.host(row)


# ---------------------------------------------------------------- objectives


def smoothed(logits, targets, smoothing):
  """Label smoothing with a column of its own: all that a new objective needs."""
  uniform = jax.nn.logsumexp(logits, -1) - logits.mean(-1)
  return (1 - smoothing) * objectives.token_nll(logits, targets) + smoothing * uniform


def batch_with(**columns):
  """Packed rows whose column values are `columns[name]` for each response token."""
  values = {n: [[x] * len(response) for _, response in pairs()] for n, x in columns.items()}
  return next(packing.batches(packing.Rows(pairs(), 24, values), batch_size=8, length=24, seed=1))


def test_an_objective_is_one_function(monkeypatch):
  start()
  monkeypatch.setitem(objectives.OBJECTIVES, "smoothed", smoothed)
  settings = dataclasses.replace(TRAIN, terms=(("smooth", config.Term("smoothed")),))
  plain = update(batch_with(), TRAIN)
  none, some = (update(batch_with(smoothing=x), settings) for x in (0.0, 0.5))
  assert np.isclose(none[1]["loss"], plain[1]["loss"], rtol=1e-6)
  assert some[1]["loss"] != none[1]["loss"] and some[1]["targets"] == plain[1]["targets"]
  blocked = update(batch_with(smoothing=0.5), dataclasses.replace(settings, block=8))
  assert np.isclose(some[1]["loss"], blocked[1]["loss"], rtol=1e-5)
  for a, b in zip(some[0], blocked[0]):
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_an_objective_without_its_column_is_refused(monkeypatch, tmp_path):
  start()
  monkeypatch.setitem(objectives.OBJECTIVES, "smoothed", smoothed)
  with pytest.raises(errors.UserError, match="needs the column 'smoothing', and the training data"):
    fit(tmp_path / "a", dataclasses.replace(TRAIN, terms=(("smooth", config.Term("smoothed")),)))


def test_weights_of_the_data_reach_the_gradient():
  """All ones are plain training to the bit; zeros pull on nothing, and every token still counts."""
  start()
  plain, ones, zeros = (
    update(batch_with(**c), TRAIN) for c in ({}, {"weights": 1.0}, {"weights": 0.0})
  )
  for a, b in zip(plain[0], ones[0]):
    np.testing.assert_array_equal(a, b)
  assert plain[1] == ones[1]
  assert zeros[1]["loss"] == zeros[1]["gradient_norm"] == 0
  assert zeros[1]["targets"] == plain[1]["targets"] > 0


# ---------------------------------------------------------------- weight decay


def test_matrices_decay_and_norms_and_biases_do_not():
  """Every leaf of the tables has a decision; a matrix maps from or to the width d."""
  for name, leaf in architecture.LEAVES.items():
    assert leaf.decay is ("d" in leaf.axes and len(leaf.axes) > 1), name


@pytest.mark.parametrize("unroll", [False, True])
def test_the_optimizer_decays_what_the_table_says(unroll):
  """With a gradient of 0 an update is the decay alone."""
  start()
  arch = dataclasses.replace(tiny.STUDENT, qk_norm=True, tied=False)
  net = tiny.build(arch, dataclasses.replace(tiny.ALONE, unroll=unroll))
  rule = train.optimizer(dataclasses.replace(TRAIN, warmup_steps=0))
  updates, _ = rule.update(jax.tree.map(jnp.zeros_like, net), rule.init(net), net)
  for path, x in jax.tree.leaves_with_path(updates):
    assert bool((x != 0).any()) is architecture.LEAVES[path[-2].name].decay, path


# ---------------------------------------------------------------- state


def test_fields_of_the_state_cannot_be_mixed_up():
  start()
  state = jax.tree.map(lambda x: x, train.start(build(), config=TRAIN))
  with pytest.raises(jaxtyping.TypeCheckError):
    dataclasses.replace(state, step=jnp.zeros(()))
  with pytest.raises(jaxtyping.TypeCheckError):
    dataclasses.replace(state, step=jnp.zeros(2, jnp.int32))
  with pytest.raises(TypeError):
    train.TrainState(state.model, state.optimizer, state.step)
  with pytest.raises(dataclasses.FrozenInstanceError):
    state.step = jnp.int32(1)


def test_jax_may_rebuild_a_state_from_anything():
  start()
  state = train.start(build(), config=TRAIN)
  for change in (lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), lambda x: None, np.asarray):
    assert type(jax.tree.map(change, state)) is train.TrainState
  assert jax.tree.structure(jax.eval_shape(lambda s: s, state)) == jax.tree.structure(state)
  stacked = jax.lax.scan(lambda s, _: (s, s), state, None, length=3)[1]
  assert stacked.step.shape == (3,)
  paths = [path[0].name for path, _ in jax.tree.leaves_with_path(state)]
  assert set(paths) == {"model", "optimizer", "step"}


# ---------------------------------------------------------------- whole runs


@pytest.mark.parametrize("split_sequences", [False, True])
def test_fsdp_on_eight_devices_is_training_on_one(tmp_path, split_sequences):
  start()
  want = leaves(fit(tmp_path / "one"))
  mesh.start(2, jax.devices())
  assert train.fsdp_axes(tiny.STUDENT) == train.AXES
  split = tiny.build(tiny.STUDENT, dataclasses.replace(tiny.ALONE, fsdp_axes=train.AXES))
  settings = dataclasses.replace(TRAIN, split_sequences=split_sequences)
  net = train.fit(split, packing.Rows(pairs(), 24), settings, tmp_path / "eight")
  assert net.blocks.q[...].sharding.spec[1] == train.AXES
  for a, b in zip(want, leaves(net)):
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_a_run_is_one_program(tmp_path):
  start()
  settings = dataclasses.replace(TRAIN, steps=4, length=16, block=16)
  before = tiny.compiled("train_step")
  fit(tmp_path / "a", settings)
  fit(tmp_path / "b", settings)
  assert tiny.compiled("train_step") == before + 1
  fit(tmp_path / "c", dataclasses.replace(settings, seed=1, log_every=2))
  assert tiny.compiled("train_step") == before + 1  # a seed is not another program


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
  start()
  wild = dataclasses.replace(TRAIN, learning_rate=1e20, warmup_steps=0, clip=1e20, steps=20)
  with pytest.raises(FloatingPointError, match="train: .* not finite at update"):
    fit(tmp_path / "a", wild)


@pytest.mark.parametrize("steps", [1, 6])
def test_a_run_that_diverged_does_not_end_well_when_it_is_run_again(tmp_path, steps):
  """Weights that are not finite are never saved, so that no later run goes on from them."""
  start()
  wild = dataclasses.replace(
    TRAIN, learning_rate=float("inf"), warmup_steps=0, steps=steps, log_every=100
  )
  for _ in range(2):
    with pytest.raises(FloatingPointError, match="warm_up: .*weights.* not finite at update"):
      train.fit(build(), packing.Rows(pairs(), 24), wild, tmp_path, field="warm_up")
  assert not [p for p in tmp_path.iterdir() if p.is_dir() and any(p.rglob("*"))]


def test_an_update_without_a_token_to_learn_is_refused(tmp_path):
  start()
  prompts = packing.Rows([([6] * 30, [7] * 4)], TRAIN.length)
  with pytest.raises(errors.UserError, match="train.length: update 1 has no token to learn"):
    train.fit(build(), prompts, TRAIN, tmp_path)


def test_progress_line_has_an_eta(capsys, monkeypatch):
  now = [0.0]
  monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
  line = progress.Progress("train", 100, every=5)
  line.show(10)
  now[0] = 10.0
  line.show(20, "loss 1.0")
  assert capsys.readouterr().err == "train 20/100  loss 1.0  80s left\n"
