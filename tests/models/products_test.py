"""Products with weights are those of einsum, and so are their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_ssd import mesh
from gen_ssd.models import products

EVERYWHERE = ("data", "model")
CASES = {  # dims of the inputs, of w and its summed axes, and the equation
  "wide": ((6,), (6, 10), (0,), "bktd,df->bktf"),
  "narrow": ((10,), (10, 6), (0,), "bktf,fd->bktd"),
  "to_heads": ((6,), (6, 2, 3, 4), (0,), "bktd,dngh->bktngh"),
  "from_heads": ((2, 3, 4), (2, 3, 4, 6), (0, 1, 2), "bktngh,nghd->bktd"),
  "tied": ((6,), (40, 6), (1,), "bktd,vd->bktv"),
}


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("inputs,dims,summed,equation", CASES.values(), ids=CASES)
def test_values_and_gradients_are_those_of_einsum(inputs, dims, summed, equation, devices):
  mesh.start(2 if devices > 1 else 1, devices=jax.devices()[:devices])
  random = np.random.default_rng(0)
  x, w = (random.normal(size=size).astype(np.float32) for size in ((4, 1, 5, *inputs), dims))
  weight = random.normal(size=np.einsum(equation, x, w).shape).astype(np.float32)

  def results(product, *given):
    loss = lambda x, w, weight: ((out := product(x, w)) * weight).sum() + (out**2).sum()
    return jax.jit(jax.value_and_grad(loss, (0, 1)))(*given)

  want = results(lambda x, w: jnp.einsum(equation, x, w), *map(jnp.asarray, (x, w, weight)))
  split = jax.P(EVERYWHERE)
  given = mesh.place(x, split), mesh.place(w, jax.P()), mesh.place(weight, split)
  got = results(lambda x, w: products.dot(x, w, summed), *given)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), got, want)


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("few", [0, 128])
@pytest.mark.parametrize("inputs,dims,summed,equation", CASES.values(), ids=CASES)
def test_weights_with_outputs_first_give_the_same(
  inputs, dims, summed, equation, few, devices, monkeypatch
):
  mesh.start(2 if devices > 1 else 1, devices=jax.devices()[:devices])
  monkeypatch.setattr(products, "FEW", few)
  random = np.random.default_rng(0)
  x, w = (random.normal(size=size).astype(np.float32) for size in ((4, 1, 5, *inputs), dims))
  stored = products.outputs_first(mesh.place(w, jax.P()), summed)
  assert stored.values.shape[-len(summed) :] == inputs
  got = jax.jit(lambda x, w: products.dot(x, w, summed))(mesh.place(x, jax.P(EVERYWHERE)), stored)
  np.testing.assert_allclose(got, np.einsum(equation, x, w), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("inputs,outputs", [(6, 10), (10, 6)])
def test_the_smaller_factor_of_a_gradient_is_the_one_that_a_cpu_copies(inputs, outputs):
  mesh.start(devices=jax.devices()[:1])
  loss = lambda w, x: products.dot(x, w).sum()
  program = jax.make_jaxpr(jax.grad(loss))(jnp.ones((inputs, outputs)), jnp.ones((1, 1, 5, inputs)))
  found = [e for e in program.eqns if e.primitive.name == "dot_general"]
  over = [e for e in found if e.params["dimension_numbers"][0] == ((0, 1, 2), (0, 1, 2))]
  assert [[v.aval.size for v in e.invars] for e in over] == [[5 * 6, 5 * 10]]


def test_bfloat16_is_rounded_once():
  mesh.start(devices=jax.devices()[:1])
  random = np.random.default_rng(0)
  draw = lambda *dims: jnp.asarray(random.normal(size=dims), jnp.bfloat16)
  x, w = draw(1, 1, 7, 300), draw(300, 40)
  want = np.float64(x[0, 0]) @ np.float64(w)
  for weight in (w, products.outputs_first(w, (0,))):
    got = jax.jit(products.dot)(x, weight)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float64(got[0, 0]), want, rtol=2**-8, atol=1e-4)
