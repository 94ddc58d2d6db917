"""Products with weights, and their gradients as the compilers compute them best."""

import functools

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Float
import numpy as np

from gen_ssd.arrays import Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def dot(
  x: Float[Array, "b k t *inputs"],
  w: Float[Array, "..."],
  summed: tuple[int, ...] = (0,),
  dtype: str | None = None,
  out_sharding: P | None = None,
) -> Float[Array, "b k t *outputs"]:
  """x times w, summed over the axes `summed` of w, which are the inputs; its others are the outputs.

  Axes stay in their order: einsum has one of its own, which transposes weights. `dtype` is that of the
  result, by default that of x. Gradients are products in the dtype of x: those of a f32 gradient would
  take twice the time.
  """
  over = (range(3, x.ndim), summed), ((), ())
  return lax.dot_general(x, w, over, preferred_element_type=dtype, out_sharding=out_sharding)


def _forward(x, w, summed, dtype, out_sharding):
  return dot(x, w, summed, dtype, out_sharding), (x, w)


def _backward(summed, dtype, out_sharding, given, gradient):
  """The smaller factor of the weight's gradient comes first: a CPU makes a transposed copy of it."""
  del dtype, out_sharding
  x, w = given
  gradient = gradient.astype(x.dtype)
  spec = lambda y: jax.typeof(y).sharding.spec
  outputs = tuple(axis for axis in range(w.ndim) if axis not in summed)
  over = (range(3, gradient.ndim), outputs), ((), ())
  of_x = lax.dot_general(gradient, w, over, out_sharding=spec(x))
  order, factors = (*summed, *outputs), (x, gradient)
  if gradient.size < x.size:
    order, factors = (*outputs, *summed), (gradient, x)
  found = P(*[spec(w)[axis] for axis in order])
  of_w = lax.dot_general(*factors, (((0, 1, 2), (0, 1, 2)), ((), ())), out_sharding=found)
  return of_x, jnp.transpose(of_w, np.argsort(order))


dot.defvjp(_forward, _backward)
