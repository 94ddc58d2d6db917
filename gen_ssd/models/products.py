"""Products with weights and their gradients, in the forms that compilers are fastest with."""

import functools
import math
import typing

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Float
import numpy as np

from gen_ssd.arrays import Array
from gen_ssd.arrays import pytree

FEW = 128  # rows, up to which a CPU is faster with the weight as the left factor


@pytree
class OutputsFirst:
  """A weight whose outputs are its first axes, for a CPU that generates.

  XLA multiplies on a CPU by copying the right factor into another order. With few rows that copy of a
  weight takes longer than the product; as the left factor, the weight is read as it lies.
  """

  values: Float[Array, "..."]

  def __getitem__(self, index: typing.Any) -> "OutputsFirst":
    """Only [...], which is how a parameter is read."""
    return OutputsFirst(values=self.values[index])

  def astype(self, dtype: typing.Any) -> "OutputsFirst":
    return OutputsFirst(values=self.values.astype(dtype))


def outputs_first(w: Float[Array, "..."], summed: tuple[int, ...]) -> OutputsFirst:
  """The weight w, whose inputs are its axes `summed`, with its outputs first."""
  return OutputsFirst(values=jnp.moveaxis(w, summed, range(-len(summed), 0)))


def dot(
  x: Float[Array, "b k t *inputs"],
  w: Float[Array, "..."] | OutputsFirst,
  summed: tuple[int, ...] = (0,),
  dtype: str | None = None,
  out_sharding: P | None = None,
) -> Float[Array, "b k t *outputs"]:
  """x times w, summed over the axes `summed` of w, which are the inputs; its others are the outputs.

  Axes stay in their order: einsum has one of its own, which transposes weights. `dtype` is that of the
  result, by default that of x. Gradients are products in the dtype of x: those of a f32 gradient would
  take twice the time.
  """
  if isinstance(w, OutputsFirst):
    return _with_outputs_first(x, w.values, len(summed), dtype, out_sharding)
  return _dot(x, w, summed, dtype, out_sharding)


def _with_outputs_first(x, w, inputs, dtype, out_sharding):
  summed = range(3, x.ndim), range(w.ndim - inputs, w.ndim)
  if math.prod(x.shape[:3]) > FEW:
    return _multiply(x, w, summed, dtype, out_sharding)
  spec = out_sharding and P(*out_sharding[3:], *out_sharding[:3])
  y = _multiply(w, x, summed[::-1], dtype, spec)
  # Without a barrier, XLA swaps the factors again.
  return jnp.moveaxis(lax.optimization_barrier(y), (-3, -2, -1), (0, 1, 2))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _dot(x, w, summed, dtype, out_sharding):
  return _multiply(x, w, (range(3, x.ndim), summed), dtype, out_sharding)


def _multiply(x, y, summed, dtype=None, out_sharding=None):
  """lax.dot_general without batch axes.

  A CPU multiplies bfloat16 faster when the result is float32 and is rounded afterwards. Elsewhere,
  devices that share a product would then send each other twice the bytes.
  """
  multiply = functools.partial(
    lax.dot_general, dimension_numbers=(summed, ((), ())), out_sharding=out_sharding
  )
  if dtype or x.dtype != jnp.bfloat16:
    return multiply(x, y, preferred_element_type=dtype)
  wide = lambda x, y: multiply(x, y, preferred_element_type=jnp.float32).astype(x.dtype)
  return lax.platform_dependent(x, y, cpu=wide, default=multiply)


def _forward(x, w, summed, dtype, out_sharding):
  return _dot(x, w, summed, dtype, out_sharding), (x, w)


def _backward(summed, dtype, out_sharding, given, gradient):
  """The gradients of x and w. A CPU copies the first factor of w's transposed: it is the smaller."""
  del dtype, out_sharding
  x, w = given
  gradient = gradient.astype(x.dtype)
  spec = lambda y: jax.typeof(y).sharding.spec
  outputs = tuple(axis for axis in range(w.ndim) if axis not in summed)
  of_x = _multiply(gradient, w, (range(3, gradient.ndim), outputs), out_sharding=spec(x))
  order, factors = (*summed, *outputs), (x, gradient)
  if gradient.size < x.size:
    order, factors = (*outputs, *summed), (gradient, x)
  found = P(*[spec(w)[axis] for axis in order])
  of_w = _multiply(*factors, ((0, 1, 2), (0, 1, 2)), out_sharding=found)
  return of_x, jnp.transpose(of_w, np.argsort(order))


_dot.defvjp(_forward, _backward)
