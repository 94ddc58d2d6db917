"""From traces and texts to packed training batches, as a grain pipeline whose position is saved.

An example is a dict of per-token columns of equal length: `tokens`, `mask`, and any others, such
as `weights`, that an objective asks for by name.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Protocol, runtime_checkable

import grain
import numpy as np

from gen_ssd import config as config_lib
from gen_ssd import errors

Example = dict[str, np.ndarray]
Numbers = Sequence[int] | Sequence[float] | np.ndarray
RESERVED = ("tokens", "mask", "segments", "positions")


@runtime_checkable
class Examples(Protocol):
  """Examples that all have the same columns, such as Rows."""

  def __len__(self) -> int: ...

  def __getitem__(self, i: int) -> Example: ...


@dataclasses.dataclass(frozen=True)
class Rows:
  """Fixed examples for grain: (prompt ids, response ids). Only the response is learned.

  `columns[name][i]` holds one number for each response token of example i.
  """

  pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
  length: int
  columns: Mapping[str, Sequence[Numbers]] = dataclasses.field(default_factory=dict)

  def __len__(self) -> int:
    return len(self.pairs)

  def only(self, places: Sequence[int]) -> "Rows":
    """The examples at these places."""
    columns = {name: [values[i] for i in places] for name, values in self.columns.items()}
    return dataclasses.replace(self, pairs=[self.pairs[i] for i in places], columns=columns)

  def __getitem__(self, i: int) -> Example:
    columns = {name: values[i] for name, values in self.columns.items()}
    return example(*self.pairs[i], self.length, columns)


@dataclasses.dataclass(frozen=True)
class Mixed:
  """Examples of several kinds, and the share of each; all have the same columns."""

  parts: Sequence[tuple[Examples, float]]

  def __len__(self) -> int:
    return min(len(rows) for rows, _ in self.parts)


Source = Examples | Mixed


def example(
  prompt: Sequence[int],
  response: Sequence[int],
  length: int,
  columns: Mapping[str, Numbers] | None = None,
) -> Example:
  """One training example, cut at `length`: arrays [t] by column name.

  `tokens` and `mask` are int32, and the mask is 1 on the response. `columns` are further columns
  with one number for each response token; they are int32 or float32, and 0 on the prompt. Raises
  ValueError for a column of another length or with the name of a column of its own.
  """
  found: Example = {
    "tokens": np.array([*prompt, *response], np.int32)[:length],
    "mask": np.array([0] * len(prompt) + [1] * len(response), np.int32)[:length],
  }
  for name, values in (columns or {}).items():
    if name in RESERVED:
      raise ValueError(f"a column may not be named {name}: every batch has its own")
    if len(values) != len(response):
      raise ValueError(
        f"column {name} has {len(values)} numbers for a response of {len(response)} tokens"
      )
    numbers = np.asarray(values)
    dtype = np.float32 if np.issubdtype(numbers.dtype, np.floating) else np.int32
    column = np.zeros(len(prompt) + len(response), dtype)
    column[len(prompt) :] = numbers
    found[name] = column[:length]
  return found


def fitting(rows: Rows, config: config_lib.Train, field: str) -> tuple[Rows, str]:
  """The examples to train on, and a note on those longer than `rows.length`.

  `config.too_long` says what happens to them. Examples of which nothing would be learned are always
  dropped. Raises UserError, naming `field`, when they are to be refused or when none is left.
  """
  pairs = rows.pairs
  if not pairs:
    raise errors.UserError(f"{field}: there is nothing to train on: no trace was kept")
  long = [
    i for i, (prompt, response) in enumerate(pairs) if len(prompt) + len(response) > rows.length
  ]
  if not long:
    return rows, ""
  most = max(sum(map(len, pairs[i])) for i in long)
  what = f"{len(long)} of {len(pairs)} examples are longer than {field}.length ({rows.length})"
  if config.too_long == "refuse":
    raise errors.UserError(
      f"{what}, up to {most} tokens; raise it, or set {field}.too_long to cut or drop"
    )
  empty = {i for i in long if len(pairs[i][0]) >= rows.length}
  gone = {*long} if config.too_long == "drop" else empty
  if len(gone) == len(pairs):
    raise errors.UserError(
      f"{what}, up to {most} tokens, and nothing is left to train on; raise it"
    )
  left = rows.only([i for i in range(len(pairs)) if i not in gone])
  return left, f"{what}, up to {most} tokens: {len(long) - len(gone)} cut, {len(gone)} dropped"


def batches(
  source: Source, *, batch_size: int, length: int, seed: int, bins: int = 64
) -> grain.DatasetIterator[Example]:
  """Endless iterator of packed batches, in an order fixed by `seed` alone.

  Of a Mixed source, shares are exact: examples alternate. Each batch holds numpy arrays
  [batch_size, length]: the columns of the examples, and int32 `segments` (0 is padding) and
  `positions`. Padding is 0 in every column. Every process makes the same batches and places its part
  of them, so a run may continue on another number of processes. The iterator has get_state /
  set_state; Orbax saves it with the weights. Raises UserError for an empty source.
  """
  if len(source) == 0:
    raise errors.UserError("there is nothing to train on: no trace was kept")
  parts = source.parts if isinstance(source, Mixed) else [(source, 1.0)]
  columns, endless = tuple(parts[0][0][0]), []
  for rows, _ in parts:
    endless.append(grain.MapDataset.source(rows).seed(seed).shuffle().repeat())
  mixed = (
    grain.MapDataset.mix(endless, [share for _, share in parts]) if endless[1:] else endless[0]
  )
  data = mixed.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
  pack = grain.experimental.FirstFitPackIterDataset(
    data,
    length_struct={name: length for name in columns},
    num_packing_bins=bins,
    shuffle_bins=False,
  )

  def to_batch(packed):
    batch = {name: packed[name] for name in columns}
    return batch | {
      "segments": packed["tokens_segment_ids"],
      "positions": packed["tokens_positions"],
    }

  return iter(pack.map(to_batch).batch(batch_size, drop_remainder=True))
