"""Drawing one token: the right distribution, the right filters, on any mesh."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from gen_ssd import mesh
from gen_ssd.engine import sampling
from tests import tiny

BELOW_ONE = np.nextafter(np.float32(1), np.float32(0))


def start(parallel=1, devices=1):
  mesh.start(parallel, jax.devices()[:devices])


compiled_draw = jax.jit(sampling.draw, static_argnames="layout")


def draw(u, logits, *, temperature=1.0, top_k=0, top_p=1.0, vocab=None):
  """(ids, nll) on the host of u [b,k,2] and logits [b,k,v] on the current mesh."""
  return mesh.host(
    compiled_draw(
      mesh.place(np.float32(u), P("data")),
      mesh.place(np.float32(logits), P("data", None, "model")),
      sampling.Filters(
        temperature=jnp.float32(temperature),
        top_k=jnp.int32(top_k),
        top_p=jnp.float32(top_p),
        vocab=jnp.int32(logits.shape[-1] if vocab is None else vocab),
      ),
      layout=tiny.SHARED,
    )
  )


def many(logits, n, seed=0, **options):
  """n ids drawn from one row of logits [v]."""
  u = np.random.default_rng(seed).random((1, n, 2))
  return draw(u, np.broadcast_to(logits, (1, n, len(logits))), **options)[0][0]


def softmax(logits):
  p = np.exp(logits - np.max(logits))
  return p / p.sum()


# ---------------------------------------------------------------- random numbers


@functools.partial(jax.jit, static_argnums=(2, 3))
def uniforms(keys, chunk, k, c):
  return sampling.uniforms(keys, chunk, jnp.zeros_like(chunk), k, c)


def keys(*problems):
  return jnp.stack([sampling.trace_key(0, f"{p:08x}", 0) for p in problems])


def test_a_uniform_depends_on_nothing_of_its_batch():
  start()
  full = np.asarray(uniforms(keys(1, 2, 3), jnp.int32([0, 5, 1]), 4, 9))
  assert full.shape == (3, 4, 9, 2) and (full >= 0).all() and (full < 1).all()
  np.testing.assert_array_equal(
    uniforms(keys(1, 2, 3), jnp.int32([0, 5, 1]), 2, 4), full[:, :2, :4]
  )
  np.testing.assert_array_equal(
    uniforms(keys(9, 2, 1), jnp.int32([1, 5, 0]), 4, 9)[1:], full[1::-1]
  )
  np.testing.assert_array_equal(uniforms(keys(2), jnp.int32([5]), 4, 4)[0], full[1, :, :4])


def test_no_two_uniforms_are_the_same():
  start()
  one = lambda seed, problem, attempt, chunk, retry: np.asarray(
    sampling.uniforms(
      sampling.trace_key(seed, problem, attempt)[None], jnp.int32([chunk]), jnp.int32([retry]), 3, 4
    )
  )
  found = [
    one(0, "0a", 0, 0, 0),
    one(1, "0a", 0, 0, 0),
    one(0, "0b", 0, 0, 0),
    one(0, "0a", 1, 0, 0),
    one(0, "0a", 0, 1, 0),
    one(0, "0a", 0, 0, 1),
  ]
  assert len(np.unique(np.stack(found))) == 6 * 3 * 4 * 2


def test_any_text_names_a_problem():
  data = lambda *args: jax.random.key_data(sampling.trace_key(*args)).tolist()
  names = ["0000000a", "0a", "gsm8k-1", "gsm8k-2", "problem-0001", "problem-0002", "-1", "ü"]
  assert len({tuple(data(0, name, 0)) for name in names}) == len(names) - 1
  assert data(0, "0000000a", 0) == data(0, "0a", 0) == data(0, "0000000a-ffff", 0)


# ---------------------------------------------------------------- the distribution


@pytest.mark.parametrize("size,temperature", [(50, 1.0), (300, 0.7), (1000, 1.6)])
def test_frequencies_are_the_softmax_at_the_temperature(size, temperature):
  start()
  logits = np.random.default_rng(size).normal(size=size) * 1.5
  n = 16000
  expected = n * softmax(logits / temperature)
  counts = np.bincount(many(logits, n, temperature=temperature), minlength=size)
  chi = lambda e: np.sum((counts - e) ** 2 / e)
  assert abs(chi(expected) - (size - 1)) < 5 * np.sqrt(2 * (size - 1))
  assert chi(n * softmax(logits)) > 2 * size or temperature == 1  # the test tells them apart


def test_temperature_zero_takes_the_most_likely_id():
  start()
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(2, 40, 300))
  logits[0, 0, [17, 200]] = 9  # a tie goes to the lowest id
  ids, _ = draw(rng.random((2, 40, 2)), logits, temperature=0)
  np.testing.assert_array_equal(ids, logits.argmax(-1))
  assert ids[0, 0] == 17


def test_nll_is_at_temperature_one_without_filters():
  start()
  rng = np.random.default_rng(1)
  logits = rng.normal(size=(2, 30, 300)) * 3
  want = -np.log(np.apply_along_axis(softmax, -1, logits[..., :260]))
  for options in ({}, dict(temperature=0.4), dict(temperature=0), dict(top_k=5, top_p=0.6)):
    ids, found = draw(rng.random((2, 30, 2)), logits, vocab=260, **options)
    np.testing.assert_allclose(
      found, np.take_along_axis(want, ids[..., None], -1)[..., 0], atol=1e-5
    )


@pytest.mark.parametrize("parallel,devices", [(1, 1), (2, 2)])
def test_entropy_by_hand_at_temperature_one_without_filters(parallel, devices):
  start(parallel, devices)
  logits = np.log(
    np.float32([[[1, 1, 1, 1, 9, 9], [4, 2, 2, 0, 9, 9], [5, 0, 0, 0, 9, 9]]]) + 1e-30
  )
  filters = sampling.Filters(
    temperature=jnp.float32(0.5), top_k=jnp.int32(1), top_p=jnp.float32(0.1), vocab=jnp.int32(4)
  )
  put = lambda x: mesh.place(np.float32(x), P("data", None, "model"))
  found = mesh.host(jax.jit(sampling.entropy)(put(logits + [[[7], [-50], [0]]]), filters))
  np.testing.assert_allclose(found, [[np.log(4), 1.5 * np.log(2), 0]], atol=1e-5)


def test_padding_rows_are_never_drawn():
  start()
  logits = np.zeros(300)
  logits[130:] = 20
  assert many(logits, 4000, vocab=130).max() < 130
  assert many(logits, 50, vocab=130, temperature=0).max() < 130
  assert many(logits, 4000, vocab=130, top_k=5, top_p=0.9).max() < 130


@pytest.mark.parametrize("size", [50, 300, 1000])
def test_an_id_without_probability_is_never_drawn(size):
  """At the edges of the unit interval too, whatever rounding does to the running sums."""
  start()
  rng = np.random.default_rng(size)
  n = 500
  p = rng.random((1, n, size)) * (rng.random((1, n, size)) < rng.random((1, n, 1)))
  p[0, np.arange(n), rng.integers(0, size, n)] = 1
  p = p.astype(np.float32)
  invert = jax.jit(lambda u, p: sampling.invert(u, p, tiny.SHARED))
  for first in (0, 0.5, BELOW_ONE):
    for second in (0, 0.5, BELOW_ONE):
      u = np.broadcast_to(np.float32([first, second]), (1, n, 2))
      ids = np.asarray(invert(mesh.place(u, P("data")), mesh.place(p, P("data", None, "model"))))
      assert ids.max() < size
      assert (np.take_along_axis(p, ids[..., None], -1) > 0).all()
      if first == second == 0:
        np.testing.assert_array_equal(ids, (p > 0).argmax(-1))
      if first == second == BELOW_ONE:
        np.testing.assert_array_equal(ids, size - 1 - (p > 0)[..., ::-1].argmax(-1))


# ---------------------------------------------------------------- filters


def kept(p, top_k, top_p):
  """By sorting: the ids of p [v] that top-k and then top-p leave, ties at the edge included."""
  p = np.float64(p)
  order = np.sort(p)[::-1]
  low = order[top_k - 1] if 0 < top_k < len(p) else 0
  order = order[order >= low]
  mass = np.cumsum(order)
  if top_p < 1:
    low = order[np.argmax(mass >= top_p * mass[-1])]
  return set(np.flatnonzero(p >= low))


FILTERS = [
  (1, 1.0),
  (3, 1.0),
  (40, 1.0),
  (0, 0.0625),
  (0, 0.5),
  (0, 0.9375),
  (6, 0.5),
  (20, 0.75),
  (3, 0.9375),
  (10**6, 1.0),
  (10**6, 0.25),
]


@pytest.mark.parametrize("platform", ["cpu", "default"])
@pytest.mark.parametrize("top_k,top_p", FILTERS)
def test_kept_ids_are_those_of_a_sort(top_k, top_p, platform, monkeypatch):
  """Probabilities are multiples of 1/64 with many ties, so every sum is exact."""
  start()
  search = lambda x, **by_platform: by_platform[platform](x)
  monkeypatch.setattr(sampling.lax, "platform_dependent", search)
  rng = np.random.default_rng(top_k + int(64 * top_p))
  p = rng.integers(0, 65, (1, 30, 300)) / 64
  p[0, :10] = rng.integers(0, 4, (10, 300)) / 4
  p[..., 7] = 1
  low = np.asarray(
    jax.jit(lambda *x: sampling.floor(*x))(  # a new function: nothing is compiled yet
      mesh.place(np.float32(p)), jnp.int32(top_k), jnp.float32(top_p)
    )
  )
  for row, edge in zip(p[0], low[0]):
    assert set(np.flatnonzero(row >= edge)) == kept(row, top_k, top_p)


@pytest.mark.parametrize(
  "top_k,top_p,ids",
  [
    (0, 0.5, {0}),
    (0, 0.51, {0, 1, 2}),
    (2, 1.0, {0, 1, 2}),
    (0, 0.76, {0, 1, 2}),
    (0, 0.93, {0, 1, 2, 3}),
    (1, 0.9, {0}),
    (3, 0.45, {0}),
    (3, 0.6, {0, 1, 2}),
    (4, 0.94, {0, 1, 2, 3}),
    (4, 0.92, {0, 1, 2}),
  ],
)
def test_kept_ids_by_hand(top_k, top_p, ids):
  """Probabilities 8, 3, 3, 1 and 1 of 16: the second and third tie, so they stay or go together.

  The last two are told apart by a hair so that top-k can cut between them.
  """
  start()
  logits = np.log([8, 3, 3, 1.01, 0.99])
  assert set(many(logits, 400, top_k=top_k, top_p=top_p).tolist()) == ids


def test_the_filters_work_at_the_temperature():
  start()
  logits = np.log([8, 3, 3, 1.01, 0.99])
  assert set(many(logits, 400, top_p=0.6, temperature=0.5).tolist()) == {0}  # 64 of 84
  assert set(many(logits, 400, top_p=0.6, temperature=4).tolist()) == {0, 1, 2}


def test_what_is_left_keeps_its_proportions():
  start()
  logits = np.random.default_rng(3).normal(size=300)
  p = softmax(logits)
  left = sorted(kept(p, 20, 0.8))
  assert 5 < len(left) < 20
  n = 8000
  counts = np.bincount(many(logits, n, top_k=20, top_p=0.8), minlength=300)
  assert set(np.flatnonzero(counts)) == set(left)
  expected = n * p[left] / p[left].sum()
  chi = np.sum((counts[left] - expected) ** 2 / expected)
  assert chi < len(left) - 1 + 5 * np.sqrt(2 * len(left))


# ---------------------------------------------------------------- shards


@pytest.mark.parametrize("size", [192, 640, 1024])
def test_a_vocabulary_in_shards_draws_the_same_ids(size):
  """640 is five blocks over four shards, like the 1187 blocks of Qwen3."""
  rng = np.random.default_rng(size)
  u, logits = rng.random((4, 25, 2)), rng.normal(size=(4, 25, size)) * 2
  for options in ({}, dict(top_k=9), dict(top_p=0.7, temperature=1.3), dict(temperature=0)):
    found = []
    for parallel, devices in ((1, 1), (4, 8)):
      start(parallel, devices)
      found.append(draw(u, logits, vocab=size - 10, **options))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_allclose(found[0][1], found[1][1], atol=1e-5)
