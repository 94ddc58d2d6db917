"""Traces that go on from others: how much of another trace is given, and the Trace that begins with it.

A trace is cut at a place between two shares of its tokens, drawn from the name of the new trace alone.
"""

from collections.abc import Collection
from collections.abc import Sequence

import numpy as np

from gen_ssd.collect import writer as writer_lib
from gen_ssd.collect.traces import Trace
from gen_ssd.config import Select
from gen_ssd.models import tokenization
from gen_ssd.problems import problem as problem_lib
from gen_ssd.rows import Drawn
from gen_ssd.rows import Row


def cut(
  ids: Sequence[int],
  share: float,
  ends: Collection[int] = (),
  step_ends: Collection[int] = (),
) -> int:
  """How many of the token ids are given: `share` of them, down to the last end of a step before.

  Never the last token, nor any from the first one in `ends` on, which ends a trace. Where there are
  `step_ends` and none of them comes before, nothing is given.
  """
  most = next((i for i, token in enumerate(ids) if token in ends), len(ids) - 1)
  place = max(0, min(int(share * len(ids)), most))
  if not step_ends:
    return place
  return next((n for n in range(place, 0, -1) if ids[n - 1] in step_ends), 0)


class Prefixes:
  """The given parts of a collection with these settings."""

  def __init__(self, writer: writer_lib.Writer, select: Select):
    texts = select.step_delimiters or select.delimiters
    size = writer.teacher.arch.vocab
    mask = tokenization.delimiter_mask(writer.teacher_tokenizer, texts, size)
    self.select, self.ends = select, writer.ends
    self.step_ends = frozenset(np.flatnonzero(mask).tolist())

  def begun(self, source: Row, attempt: int) -> Trace:
    """A trace that goes on from `source` as this attempt at its problem.

    Its chunks are those of the source, without the choices that were made there.
    """
    uuid, (low, high) = source["uuid"], self.select.cut
    share = problem_lib.uniform(f"cut {self.select.seed} {uuid} {attempt}")
    given = cut(source["ids"], low + (high - low) * share, self.ends, self.step_ends)
    chunks: list[Drawn] = []
    left = given
    for chunk in source["chunks"]:
      if left:
        count = min(chunk["count"], left)
        left -= count
        chunks.append(
          {"count": count, "choice": 0, "score": None, "scores": [None], "resamples": 0}
        )
    return Trace(uuid, attempt, ids=source["ids"][:given], given_tokens=given, chunks=chunks)
