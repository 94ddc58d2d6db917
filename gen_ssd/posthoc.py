"""Choosing among whole traces, after they are written: the same scorers, from what rows hold."""
import hashlib

import jax
import numpy as np

from gen_ssd import scores

BATCH = 64  # traces scored at a time


def best(rows, scorer, **options):
  """The trace of lowest score of each problem, ties to the first attempt: post-hoc best-of-n.

  See `score` for the arguments. Returns one row a problem, ordered by problem.
  """
  found = {}
  rows = sorted(rows, key=lambda r: (r["uuid"], r["attempt"]))
  for r, s in zip(rows, score(rows, scorer, **options)):
    if r["uuid"] not in found or s < found[r["uuid"]][0]:
      found[r["uuid"]] = (s, r)
  return [r for _, r in found.values()]


def score(rows, scorer, *, seed=0):
  """f32[n]: the scores of whole traces, lower is better.

  Args:
    rows: traces as traces.row makes them, of collections with a student.
    scorer: a name of scores.SCORERS. seed: of the scorer `random`.
  """
  longest = max((r["num_tokens"] for r in rows), default=0)
  run = jax.jit(scores.SCORERS[scorer])  # one shape, so one compilation
  found = [np.asarray(run(*_candidates(rows[i:i + BATCH], longest, seed)))[0]
           for i in range(0, len(rows), BATCH)]
  return np.concatenate([np.zeros(0, np.float32), *found])[:len(rows)]


def _candidates(rows, longest, seed):
  """(Statistics, live, noise) of at most BATCH traces, as arrays [1,n,t] and [1,n]."""
  def table(values, dtype=np.float32):
    x = np.zeros((1, BATCH, longest), dtype)
    for i, r in enumerate(rows):
      x[0, i, :r["num_tokens"]] = values(r)
    return x

  whole = lambda value, dtype=np.float32: np.array(
      [[value(r) for r in rows] + [0] * (BATCH - len(rows))], dtype)
  statistics = scores.Statistics(
      table(lambda r: r["student_nlls"]), table(lambda r: r["student_ranks"]),
      teacher_nll=-table(lambda r: r["teacher_logprobs"]),
      start=table(lambda r: np.isin(np.arange(r["num_tokens"]), r["starts"]), bool),
      long=whole(lambda r: _uniform(r["uuid"]) < 0.2, bool))
  noise = whole(lambda r: _uniform(f"{seed} {r['uuid']} {r['attempt']}"))
  return statistics, table(lambda r: True, bool), noise


def _uniform(text):
  """A number in [0, 1) that depends on the text alone."""
  return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32
