"""Models read texts of different lengths, some at a time."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import typing

import jax
from jax.sharding import PartitionSpec as P
import numpy as np

from gen_ssd import mesh


def read(
  forward: Callable[[jax.Array, jax.Array], typing.Any],
  texts: Sequence[list[int]],
  *,
  batch: int,
  axes: tuple[str, ...] | str | None,
) -> Iterator[typing.Any]:
  """Yields what `forward` finds for the tokens of each text, in order, as NumPy arrays [len(text)].

  Args:
    forward: from tokens int32[b,t], of which the first `length` int32[b] are text, to a tree of
      replicated [b,t]. t is the same for all, a multiple of 64, and above 1024 of 1024.
    batch: texts read at a time; a multiple of the devices.
    axes: of the mesh, which split the texts.
  """
  size = max(map(len, texts), default=1)
  size = -(-size // 64) * 64 if size <= 1024 else -(-size // 1024) * 1024
  place = lambda x: mesh.place(x, P(axes, *[None] * (x.ndim - 1)))
  for i in range(0, len(texts), batch):
    part = texts[i : i + batch]
    ids, length = np.zeros((batch, size), np.int32), np.ones(batch, np.int32)
    for j, text in enumerate(part):
      ids[j, : len(text)], length[j] = text, len(text)
    found = mesh.host(forward(place(ids), place(length)))
    for j, text in enumerate(part):
      yield jax.tree.map(lambda x, j=j, n=len(text): x[j, :n], found)
