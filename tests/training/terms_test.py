"""Losses with a second model: by hand, at their limits, and equal however a batch is cut."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_ssd import config
from gen_ssd import mesh
from gen_ssd.models.architecture import Spec
from gen_ssd.training import objectives
from gen_ssd.training import packing
from gen_ssd.training import terms
from gen_ssd.training import train
from tests import tiny
from tests.models.quantization_test import dequantised
from tests.models.quantization_test import leaves_of
from tests.training import train_test

KEYS = jax.random.split(jax.random.key(0), 3)
P, Q = (2 * jax.random.normal(key, (2, 5, 9)) for key in KEYS[:2])
TARGETS = jax.random.randint(KEYS[2], (2, 5), 0, 9)
SETTINGS = dict(beta=0.3, normalize=False, top_k=4)
WITH_OTHER = [n for n, f in objectives.OBJECTIVES.items() if objectives.takes(f, "other")]


def cost(name, logits=P, other=Q, targets=TARGETS, **changes):
  """Nats [2, 5] of an objective with a second model."""
  f = objectives.OBJECTIVES[name]
  settings = {n: x for n, x in (SETTINGS | changes).items() if objectives.takes(f, n)}
  return f(logits, targets, other=other, **settings)


def pull(name, logits=P, other=Q, **changes):
  """Gradient [2, 5, 9] of the sum of an objective."""
  return jax.grad(lambda x: cost(name, x, other, **changes).sum())(logits)


def kl(a, b):
  return (a * (np.log(a) - np.log(b))).sum(-1)


# ---------------------------------------------------------------- objectives


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_divergences_by_hand(beta):
  p, q = np.float64(jax.nn.softmax(P)), np.float64(jax.nn.softmax(Q))
  np.testing.assert_allclose(cost("fkl"), kl(q, p), rtol=1e-5)
  np.testing.assert_allclose(cost("rkl"), kl(p, q), rtol=1e-5)
  m = (1 - beta) * p + beta * q  # TRL's convention: beta is the teacher's share
  want = beta * kl(q, m) + (1 - beta) * kl(p, m)
  np.testing.assert_allclose(cost("jsd", beta=beta), want, rtol=1e-4, atol=1e-6)
  full = cost("jsd", beta=beta, normalize=True)
  np.testing.assert_allclose(full, want / beta / (1 - beta), rtol=1e-4, atol=1e-5)


def test_the_ends_of_a_normalised_jsd_are_both_divergences():
  near = [P / 2, Q / 2]
  for beta, name in ((1e-3, "fkl"), (1 - 1e-3, "rkl")):
    found = cost("jsd", *near, beta=beta, normalize=True)
    np.testing.assert_allclose(found, cost(name, *near), rtol=0.01)
  half = dict(beta=0.5, normalize=True)
  np.testing.assert_allclose(cost("jsd", **half), cost("jsd", Q, P, **half), rtol=1e-4)
  kinds = [dict(beta=0.0), dict(beta=1.0), dict(beta=0.5)]
  named = tuple((str(i), config.Term("jsd", **kind)) for i, kind in enumerate(kinds))
  assert [term.objective for _, term in terms.static(named)] == ["fkl", "rkl", "jsd"]


@pytest.mark.parametrize("name", ["fkl", "rkl", "jsd", "k2"])
def test_equal_models_cost_nothing_and_pull_on_nothing(name):
  np.testing.assert_allclose(cost(name, P, P), 0, atol=1e-5)
  np.testing.assert_allclose(pull(name, P, P), 0, atol=1e-6)
  np.testing.assert_allclose(terms.entropy_gap(P, P), 0.5)


@pytest.mark.parametrize("name", WITH_OTHER)
def test_a_constant_in_the_logits_changes_nothing(name):
  np.testing.assert_allclose(cost(name, P + 3, Q - 2), cost(name), rtol=1e-4, atol=1e-5)


def test_the_gradient_of_forward_divergence_is_p_minus_q():
  np.testing.assert_allclose(pull("fkl"), jax.nn.softmax(P) - jax.nn.softmax(Q), atol=1e-5)


def test_ranking_raises_what_the_other_model_likes_best():
  """A denominator over the places before, not after, is that of the reversed order: it lowers it."""
  flat, liked = jnp.zeros((1, 1, 4)), jnp.array([[[0.0, 3.0, 1.0, 2.0]]])
  found = jax.grad(lambda x: objectives.rank(x, jnp.zeros((1, 1), int), liked, 4).sum())(flat)
  np.testing.assert_allclose(found[0, 0, 1], -(1 - 1 / 4), atol=1e-6)
  assert found[0, 0, 1] < found[0, 0, 3] < found[0, 0, 2] < found[0, 0, 0]
  z = np.float64(P[0, 0])
  some = np.argsort(-z)[:4]
  order = some[np.argsort(-np.asarray(Q[0, 0])[some])]
  want = sum(np.log(np.exp(z[order[j:]]).sum()) - z[order[j]] for j in range(4))
  np.testing.assert_allclose(cost("rank")[0, 0], want, rtol=1e-5)


@pytest.mark.parametrize("k", [3, 9])
def test_plackett_luce_puts_the_target_first(k):
  q = np.float64(jax.nn.softmax(Q))
  for place in np.ndindex(2, 5):
    first, z = int(TARGETS[place]), np.float64(P[place])
    order = [first, *(i for i in np.argsort(-q[place])[:k] if i != first)]
    want = sum(
      q[place][v] * (np.log(np.exp(z[order[j:]]).sum()) - z[v]) for j, v in enumerate(order)
    )
    np.testing.assert_allclose(cost("pld", top_k=k)[place], want, rtol=1e-4)


@pytest.mark.parametrize("name", objectives.DIVERGENCES)
def test_with_a_category_for_the_rest_a_divergence_stays_one(name):
  """Without it, the sum over k tokens is negative for many, and its gradient leaves them."""
  settings = dict(normalize=True)
  whole, parts = cost(name, **settings), []
  for k in (1, 2, 4, 8):
    part = cost(name, *objectives.coarse(P, Q, k), **settings)
    assert (part > -1e-6).all() and (part <= whole + 1e-4).all()
    parts.append(float(part.sum()))
  assert parts == sorted(parts)
  np.testing.assert_allclose(cost(name, *objectives.coarse(P, Q, 8), **settings), whole, rtol=1e-3)
  mine, other = objectives.coarse(P, Q, 4)
  for x in (mine, other):
    np.testing.assert_allclose(jnp.exp(x).sum(-1), 1, atol=1e-5)


def test_entropy_is_that_of_the_student():
  p = np.float64(jax.nn.softmax(P))
  np.testing.assert_allclose(objectives.entropy(P, TARGETS), -(p * np.log(p)).sum(-1), rtol=1e-5)


def test_ids_that_only_one_model_has_do_not_count():
  wide = jnp.concatenate([Q, jnp.full((2, 5, 3), 50.0)], -1)
  named = ("kd", config.Term("fkl", temperature=(2.0, 2.0)))
  numbers = terms.knobs((named,), vocab=7)
  found = terms._nats(named[1], 0, numbers, jnp.float32(2), P, {"teacher": wide}, TARGETS, {})
  want = cost("fkl", P[..., :7] / 2, Q[..., :7] / 2)
  np.testing.assert_allclose(found, want, rtol=1e-5)


# ---------------------------------------------------------------- which tokens


def test_openers_and_uncertain_tokens_are_those_of_each_trace():
  """Not of the packed row, and prompts do not count."""
  segments = jnp.array([[1, 1, 1, 1, 2, 2, 2, 2, 2, 0]])
  live = jnp.array([[0.0, 1, 1, 1, 0, 1, 1, 1, 1, 0]])
  entropy = jnp.array([[9.0, 1, 5, 4, 9, 2, 3, 1, 4, 9]])
  opener = terms.opener(entropy, live, segments, 0.5) * live
  np.testing.assert_array_equal(opener, [[0, 1, 1, 0, 0, 1, 1, 0, 0, 0]])
  uncertain = terms.uncertain(entropy, live, segments, 0.5) * live
  np.testing.assert_array_equal(uncertain, [[0, 0, 2, 2, 0, 0, 2, 0, 2, 0]])
  np.testing.assert_array_equal(terms.everywhere(entropy, live, segments, 0.5), live * 0 + 1)
  one = terms.uncertain(entropy, live, segments, 0.1) * live
  np.testing.assert_allclose(one, [[0, 0, 10, 0, 0, 0, 0, 0, 10, 0]])  # at least one


# ---------------------------------------------------------------- in training

ALL = tuple(
  (name, config.Term(name, top_k=5 if objectives.takes(f, "top_k") else 0, scale=0.5))
  for name, f in objectives.OBJECTIVES.items()
) + (
  ("few", config.Term("rkl", top_k=5)),
  ("start", config.Term("k2", whom="start", temperature=(1.0, 2.0))),
  ("opened", config.Term("rank", top_k=5, where="opener", share=0.5)),
  ("gated", config.Term("jsd", beta=0.9, gate="entropy_gap")),
  ("sure", config.Term("entropy", where="uncertain", share=0.3)),
)


def placed(arch, seed, unroll=False):
  layout = dataclasses.replace(train.layout(arch), unroll=unroll)
  rng = np.random.default_rng(seed)
  return tiny.stacked(
    arch, layout, lambda name, x: x + 0.02 * rng.standard_normal(x.shape).astype(x.dtype)
  )


def updated(devices=1, model_parallel=1, **options):
  train_test.start(devices, model_parallel)
  settings = dataclasses.replace(train_test.TRAIN, terms=ALL, **options)
  others = {
    "teacher": placed(tiny.TEACHER, 1, settings.unroll),
    "start": placed(tiny.STUDENT, 2, settings.unroll),
  }
  rows = packing.Rows(train_test.pairs(), 24)
  batch = next(packing.batches(rows, batch_size=8, length=24, seed=1))
  batch["mask"][:2] *= 0
  return train_test.update(batch, settings, others)


@pytest.fixture(scope="module")
def plain():
  return updated()


@pytest.mark.parametrize(
  "options",
  [
    dict(accumulate=4, batch_size=2, block=8),
    dict(remat=True, unroll=True, devices=8),
    dict(remat=True, block=8, devices=8, model_parallel=2, split_sequences=True),
  ],
)
def test_every_loss_is_the_same_however_it_is_computed(plain, options):
  got = updated(**options)
  for name in plain[1]:
    np.testing.assert_allclose(got[1][name], plain[1][name], rtol=2e-5, err_msg=name)
  for a, b in zip(got[0], plain[0]):
    np.testing.assert_allclose(a, b, atol=3e-6)


def test_the_loss_is_the_sum_of_its_terms(plain):
  parts = [x for name, x in plain[1].items() if name.startswith("loss_")]
  assert len(parts) == len(ALL) and np.isclose(sum(parts), plain[1]["loss"], rtol=1e-5)


def test_a_second_model_may_have_int8_weights():
  train_test.start(8)
  settings = dataclasses.replace(
    train_test.TRAIN, terms=(("kd", config.Term("fkl", whom="teacher")),)
  )
  int8 = config.Model(quantization="int8")
  layout = train.second_layout(tiny.TEACHER, int8, unroll=False, attention="einsum")
  int8, plain = tiny.stacked(tiny.TEACHER, layout), placed(tiny.TEACHER, 1)
  rounded = {name: dequantised(name, w) for name, w in leaves_of(int8).items()}
  same = tiny.stacked(tiny.TEACHER, train.layout(tiny.TEACHER), lambda name, x: rounded[name])
  rows = packing.Rows(train_test.pairs(), 24)
  batch = next(packing.batches(rows, batch_size=8, length=24, seed=1))
  (got, row), (want, its), (_, far) = (
    train_test.update(batch, settings, {"teacher": teacher}) for teacher in (int8, same, plain)
  )
  assert np.isclose(row["loss"], its["loss"], rtol=2e-5)
  assert not np.isclose(row["loss"], far["loss"], rtol=1e-4)
  for a, b in zip(got, want):
    np.testing.assert_allclose(a, b, atol=3e-6)


def fitted(folder, settings, others=None):
  train_test.start()
  folder.mkdir()
  rows = packing.Rows(train_test.pairs(), settings.length)
  net = train.fit(
    train_test.build(), rows, settings, folder, others=others, vocab=tiny.STUDENT.vocab
  )
  return net, train_test.losses(folder)


def test_a_student_that_only_compares_itself_with_its_start_has_nothing_to_learn(tmp_path):
  train_test.start()
  term = config.Term("jsd", whom="start")
  settings = dataclasses.replace(train_test.TRAIN, terms=(("self", term),), steps=2)
  fitted(tmp_path / "a", settings, {"start": train_test.build()})
  lines = train_test.json.loads, open(tmp_path / "a" / "metrics.jsonl")
  for row in map(*lines):  # the first update has a learning rate of 0
    assert abs(row["loss"]) < 1e-6 and row["gradient_norm"] < 1e-6


def test_the_lagged_student_is_the_student_of_some_updates_ago(tmp_path):
  """Every three updates it is the student itself, so that the divergence begins anew at 0."""
  both = (("sft", config.Term()), ("near", config.Term("fkl", whom="lagged", scale=1e-3)))
  settings = dataclasses.replace(
    train_test.TRAIN, terms=both, lag=3, steps=7, save_every=7, warmup_steps=0
  )
  fitted(tmp_path / "a", settings)
  lines = train_test.json.loads, open(tmp_path / "a" / "metrics.jsonl")
  near = [row["loss_near"] for row in map(*lines)]
  assert [x > 1e-9 for x in near] == [False, True, True, False, True, True, False]


def test_killed_and_continued_a_lagged_student_is_the_same(tmp_path, monkeypatch):
  both = (("sft", config.Term()), ("near", config.Term("fkl", whom="lagged")))
  settings = dataclasses.replace(train_test.TRAIN, terms=both, lag=3)
  whole, _ = fitted(tmp_path / "whole", settings)
  real, left = train.train_step, [5]

  def step(*args, **kwargs):
    left[0] -= 1
    if not left[0]:
      raise KeyboardInterrupt
    return real(*args, **kwargs)

  monkeypatch.setattr(train, "train_step", step)
  with pytest.raises(KeyboardInterrupt):
    fitted(tmp_path / "killed", settings)
  monkeypatch.setattr(train, "train_step", real)
  train_test.start()
  rows = packing.Rows(train_test.pairs(), settings.length)
  again = train.fit(
    train_test.build(), rows, settings, tmp_path / "killed", vocab=tiny.STUDENT.vocab
  )
  for a, b in zip(train_test.leaves(whole), train_test.leaves(again)):
    np.testing.assert_array_equal(a, b)


def test_numbers_of_a_term_are_not_another_program():
  train_test.start()
  batch = next(
    packing.batches(packing.Rows(train_test.pairs(), 24), batch_size=8, length=24, seed=1)
  )
  others, before = {"teacher": placed(tiny.TEACHER, 1)}, tiny.compiled("train_step")
  for changes in ({}, dict(beta=0.7, scale=3.0), dict(temperature=(2.0, 4.0), share=0.5)):
    settings = dataclasses.replace(
      train_test.TRAIN, terms=(("kd", config.Term("jsd", where="uncertain", **changes)),)
    )
    net = tiny.stacked(tiny.STUDENT, tiny.ALONE)
    program = train.static(dataclasses.replace(settings, warmup_steps=0))
    parts = jax.tree.map(lambda x: mesh.place(x[None], jax.P(None, train.AXES, None)), batch)
    numbers = jax.tree.map(mesh.place, terms.knobs(settings.terms, tiny.STUDENT.vocab))
    train.train_step(train.start(net, config=program), parts, others, numbers, config=program)
  assert tiny.compiled("train_step") == before + 1


def test_no_model_has_logits_of_all_positions_in_memory():
  train_test.start()
  settings = dataclasses.replace(train_test.TRAIN, terms=ALL, block=8)
  pair = {"teacher": tiny.TEACHER, "start": tiny.STUDENT}
  others = {whom: Spec(arch, train.layout(arch)) for whom, arch in pair.items()}
  text = lambda settings: train.train_step.lower(
    *train.shapes(tiny.STUDENT, settings, others), config=train.static(settings)
  ).as_text()
  whole, blocks = text(dataclasses.replace(settings, block=24)), text(settings)
  for arch in (tiny.TEACHER, tiny.STUDENT):
    assert f"x24x{arch.vocab}x" in whole and f"x24x{arch.vocab}x" not in blocks
