"""From traces and texts to packed training batches, as a grain pipeline whose position is saved."""

import dataclasses

import grain
import numpy as np


@dataclasses.dataclass(frozen=True)
class Rows:
  """Fixed examples for grain: a list of (prompt ids, response ids). Only the response is learned."""

  pairs: list
  length: int

  def __len__(self):
    return len(self.pairs)

  def __getitem__(self, i):
    return example(*self.pairs[i], self.length)


def example(prompt, response, length):
  """One training example, cut at `length`: tokens and mask int32[t], mask 1 on the response."""
  tokens = np.array([*prompt, *response], np.int32)[:length]
  mask = np.array([0] * len(prompt) + [1] * len(response), np.int32)[:length]
  return {"tokens": tokens, "mask": mask}


def batches(source, *, rows, length, seed, bins=64):
  """Endless iterator of packed batches, in an order fixed by `seed` alone.

  Each batch holds numpy int32 [rows, length]: tokens, mask, segments (0 is padding), positions.
  Every process makes the same batches and places its part of them, so a run may continue on
  another number of processes. The iterator has get_state / set_state; Orbax saves it with the
  weights. Raises ValueError for an empty source.
  """
  if len(source) == 0:
    raise ValueError("there is nothing to train on: no trace was kept")
  data = grain.MapDataset.source(source).seed(seed).shuffle().repeat().to_iter_dataset()
  pack = grain.experimental.FirstFitPackIterDataset(
    data,
    length_struct={"tokens": length, "mask": length},
    num_packing_bins=bins,
    shuffle_bins=False,
  )
  return iter(pack.map(_columns).batch(rows, drop_remainder=True))


def _columns(packed):
  return {
    "tokens": packed["tokens"],
    "mask": packed["mask"],
    "segments": packed["tokens_segment_ids"],
    "positions": packed["tokens_positions"],
  }
