"""Frozen, keyword-only dataclasses of arrays, as JAX pytrees."""

import dataclasses
import typing

import jax

Class = typing.TypeVar("Class", bound=type)


@typing.dataclass_transform(kw_only_default=True, frozen_default=True)
def dataclass(cls: Class) -> Class:
  """Makes `cls` a frozen, keyword-only dataclass whose fields are the children of a pytree.

  Change an instance with `dataclasses.replace`. `jax.tree_util.register_dataclass` rebuilds
  instances through `__init__`, where a run-time checker compares fields with their annotations.
  JAX also rebuilds them from leaves that are no arrays of the annotated shape, for instance
  `jax.ShapeDtypeStruct`, shardings, `None`, or arrays with another leading axis in `lax.scan` and
  `jax.vmap`. So this decorator rebuilds instances without `__init__`: only code that names the
  fields is checked.
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
