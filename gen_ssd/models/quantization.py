"""Weight-only int8: matrices as int8 with one scale per output, for models that are only read.

Activations, caches, norms and biases stay as they are. The rule is the symmetric one ("absmax") of
LLM.int8(), arXiv 2208.07339, with a scale for each output of a matrix.
"""

import functools
import typing

import jax
import jax.numpy as jnp
from jaxtyping import Float
from jaxtyping import Float32
from jaxtyping import Int8

from gen_ssd.arrays import Array
from gen_ssd.arrays import pytree
from gen_ssd.models import architecture
from gen_ssd.models.architecture import Layout
from gen_ssd.models.products import OutputsFirst

MOST = 127  # -128 is not used, so that the rule is symmetric


@pytree
class Int8Weight:
  """A matrix: `values` times `scale`, which lacks the axes that a product sums over."""

  values: Int8[Array, "..."]
  scale: Float32[Array, "..."]

  def __getitem__(self, index: typing.Any) -> "Int8Weight":
    """The part at `index` of the leading axes that values and scale share, such as one layer."""
    return jax.tree.map(lambda x: x[index], self)


@functools.partial(jax.jit, static_argnames="axes")
def to_int8(w: Float[Array, "..."], axes: tuple[int, ...]) -> Int8Weight:
  """The matrix w, rounded to the nearest multiples of its scales; a product sums over `axes`.

  A number changes by half a scale at most, which is 1/254 of the largest number of its output.
  """
  w = w.astype(jnp.float32)
  most = jnp.max(jnp.abs(w), axes, keepdims=True)
  scale = jnp.maximum(most / MOST, jnp.finfo(jnp.float32).tiny)  # an output may be all zeros
  return Int8Weight(values=jnp.round(w / scale).astype(jnp.int8), scale=jnp.squeeze(scale, axes))


def stored(layout: Layout, leaf: str, w: Float[Array, "..."]) -> Float[Array, "..."] | Int8Weight:
  """The weight w as the layout keeps this leaf."""
  if architecture.is_quantised(layout, leaf):
    return to_int8(w, architecture.summed(leaf))
  return w


def product(
  multiply: typing.Callable,
  x: Float[Array, "..."],
  w: Float[Array, "..."] | Int8Weight | OutputsFirst,
) -> Float[Array, "..."]:
  """`multiply(x, w)` with w in the dtype of x; the outputs of w are the last axes of the result.

  All that is summed for an output has the same scale, so the result is scaled instead of w. The TPU
  compiler casts w within the product; on a CPU a copy of w as x.dtype is in memory meanwhile.
  """
  if not isinstance(w, Int8Weight):
    return multiply(x, w.astype(x.dtype))
  y = multiply(x, w.values.astype(x.dtype))
  return (y * w.scale).astype(y.dtype)


def rows(
  look_up: typing.Callable, table: Float[Array, "v d"] | Int8Weight
) -> Float[Array, "*axes d"]:
  """`look_up(table)`, rows of the table."""
  if not isinstance(table, Int8Weight):
    return look_up(table)
  return look_up(table.values) * look_up(table.scale)[..., None]


def cast(weights: typing.Any, dtype: typing.Any) -> typing.Any:
  """The weights in `dtype`, but for those that are int8."""
  is_int8 = lambda w: isinstance(w, Int8Weight)
  return jax.tree.map(lambda w: w if is_int8(w) else w.astype(dtype), weights, is_leaf=is_int8)
