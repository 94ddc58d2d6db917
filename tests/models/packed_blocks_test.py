"""Attention by loops over blocks is plain softmax attention, and it skips what no query sees."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_ssd import hlo
from gen_ssd import mesh
from gen_ssd.models import attention
from gen_ssd.models import packed_blocks

T = 30
ROWS = [[1] * 11 + [2] * 2 + [3] * 17, [1] * 20 + [0] * 10]


@dataclasses.dataclass(frozen=True)
class Case:
  """Sizes of blocks and heads."""

  block: int
  g: int = 1
  window: int | None = None
  dtype: str = "float32"


CASES = {
  "one_token_a_block": Case(1),
  "blocks_divide_the_length": Case(6, g=3),
  "blocks_do_not": Case(7, g=2),
  "one_block": Case(T, g=2),
  "window": Case(6, window=4),
  "window_within_a_block": Case(8, g=2, window=1),
  "bfloat16": Case(8, g=2, dtype="bfloat16"),
}


def given(case, n=2, h=8):
  """Random q, k and v, and the segments."""
  random = np.random.default_rng(0)
  draw = lambda *dims: mesh.place(random.normal(size=dims).astype(jnp.dtype(case.dtype)), jax.P())
  keys = (len(ROWS), 1, T, n, h)
  q = draw(len(ROWS), 1, T, n, case.g, h)
  return q, draw(*keys), draw(*keys), mesh.place(np.int32(ROWS), jax.P())


def plain(q, k, v, segments, window):
  """The same in f32 with all scores at once."""
  q, k, v = (x[:, 0].astype(jnp.float32) for x in (q, k, v))
  ago = np.arange(T)[:, None] - np.arange(T)
  seen = (ago >= 0) & (ago < (window or T)) & (segments[:, :, None] == segments[:, None])
  scores = jnp.einsum("btngh,bsnh->bngts", q, k) * q.shape[-1] ** -0.5
  p = jax.nn.softmax(jnp.where(seen[:, None, None], scores, -jnp.inf), -1)
  return jnp.einsum("bngts,bsnh->btngh", p, v)[:, None]


def results(attend, q, k, v, segments):
  """(gradients of q, k and v, output)."""
  weight = jnp.cos(jnp.arange(q.size, dtype=jnp.float32)).reshape(q.shape)

  def loss(q, k, v):
    out = attend(q, k, v, segments)
    return (out * weight).sum(), out

  return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(q, k, v)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_values_and_gradients_are_those_of_plain_attention(case):
  mesh.start(devices=jax.devices()[:1])
  options = dict(window=case.window, block=case.block)
  got = results(lambda *args: attention.attend_packed(*args, **options), *given(case))
  want = results(lambda *args: plain(*args, case.window), *given(case))
  atol = 2e-5 if case.dtype == "float32" else 6e-2
  close = lambda a, b: np.testing.assert_allclose(np.float32(a), np.float32(b), atol=atol, rtol=0)
  jax.tree.map(close, got, want)


@pytest.mark.parametrize("window", [None, 4])
def test_blocks_that_no_query_sees_are_not_read(window):
  """A product with NaN would be NaN, even where a mask hides it."""
  mesh.start(devices=jax.devices()[:1])
  q, k, v, segments = given(Case(5))
  segments = jnp.ones_like(segments) if window else jnp.int32([[1] * 15 + [2] * 15] * 2)
  hidden = jnp.arange(T) < (10 if window else 15)  # later queries do not see these
  v = jnp.where(hidden[:, None, None], jnp.nan, v)
  attend = lambda *args: attention.attend_packed(*args, window=window, block=5)
  out = jax.jit(attend)(q, k, v, segments)
  assert np.isfinite(out[:, :, 15:]).all()
  assert np.isnan(out[:, :, :5]).all()  # the test can fail


def test_rows_are_skipped_by_the_one_that_sees_most():
  first = packed_blocks._first_blocks(5, jnp.int32(ROWS), jnp.int32(attention.EVERYTHING))
  np.testing.assert_array_equal(first, [0, 0, 0, 0, 2, 2])
  one = packed_blocks._first_blocks(5, jnp.int32(ROWS[:1]), jnp.int32(attention.EVERYTHING))
  np.testing.assert_array_equal(one, [0, 0, 0, 2, 2, 2])
  near = packed_blocks._first_blocks(5, jnp.ones((1, T), jnp.int32), jnp.int32(7))
  np.testing.assert_array_equal(near, [0, 0, 0, 1, 2, 3])


def test_the_plan_finds_the_loops_whose_trips_depend_on_the_data():
  """Those over queries always run 5 times; those over keys, as often as it is told."""
  mesh.start(devices=jax.devices()[:1])
  q, k, v, segments = given(Case(6))
  loss = lambda q, k, v: attention.attend_packed(q, k, v, segments, block=6).sum()
  text = hlo.Text(jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, k, v).compile().as_text())
  told = {"packed_blocks.py": 3}.get
  loops = [text.trips(ins, told) for ins, _, _ in text.walk(told) if ins.op == "while"]
  assert sorted(loops) == [3, 3, 5, 5]
