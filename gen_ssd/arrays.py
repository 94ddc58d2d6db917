"""The arrays that annotations name, and dataclasses of them.

Dimension letters, everywhere: b batch slots, k branches, t tokens of a text, c tokens of a chunk,
s ring slots, n key-value heads, g query groups, h head dimension, d width, f hidden, v vocabulary,
L layers.
"""

import dataclasses
import typing

import jax
import numpy as np

# In a program or on devices, on the host, or only described (for compilation without data).
# The type checker takes all of them as the first: the tests check arrays at run time.
if typing.TYPE_CHECKING:
  Array = jax.Array
else:
  Array = jax.Array | np.ndarray | jax.ShapeDtypeStruct

Class = typing.TypeVar("Class", bound=type)


@typing.dataclass_transform(kw_only_default=True, frozen_default=True)
def pytree(cls: Class) -> Class:
  """Makes `cls` a frozen, keyword-only dataclass of arrays and a pytree of its fields.

  Change an instance with `dataclasses.replace`. `jax.tree_util.register_dataclass` rebuilds
  instances through `__init__`, where a run-time checker compares fields with their annotations.
  JAX also rebuilds them from leaves that are not such arrays, for instance from shardings, `None`,
  or arrays with another leading axis in `lax.scan` and `jax.vmap`. So this decorator rebuilds
  instances without `__init__`: only code that names the fields is checked.
  """
  cls = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
  names = tuple(f.name for f in dataclasses.fields(cls))
  keys = tuple(map(jax.tree_util.GetAttrKey, names))

  def flatten(instance):
    return [getattr(instance, name) for name in names], None

  def flatten_with_keys(instance):
    return [(key, getattr(instance, key.name)) for key in keys], None

  def unflatten(_, children):
    instance = object.__new__(cls)
    for name, child in zip(names, children):
      object.__setattr__(instance, name, child)
    return instance

  jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
  return cls
