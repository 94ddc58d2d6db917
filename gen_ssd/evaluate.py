"""Students on problems they have not seen: the collection engine with one candidate and no choice."""
import numpy as np


def accuracy(rows, total, *, draws=2000, seed=0):
  """Accuracy over `total` problems and a 95 % interval by bootstrap over problems.

  `rows` are traces of traces.row; several a problem count as their mean (avg@n), a problem without
  a trace as wrong. Returns {"accuracy", "ci": [low, high], "n", "mean_tokens", "truncated",
  "unverifiable"}; mean_tokens counts every answer, truncated is the share that hit the limit.
  """
  right = per_problem(rows)
  values = np.array([*right.values(), *[0.0] * (total - len(right))])
  low, high = _interval(values, draws, seed)
  count = max(len(rows), 1)
  return {
      "accuracy": float(values.mean()), "ci": [low, high], "n": total,
      "mean_tokens": float(np.mean([r["num_tokens"] for r in rows])) if rows else None,
      "truncated": sum(r["stop"] == "length" for r in rows) / count,
      "unverifiable": sum(r["verdict"] == "unverifiable" for r in rows)}


def per_problem(rows):
  """Share of right answers of each problem id."""
  found = {}
  for r in rows:
    found.setdefault(r["uuid"], []).append(r["verdict"] == "right")
  return {u: float(np.mean(x)) for u, x in found.items()}


def paired(mine, theirs, *, draws=2000, seed=0):
  """Difference in accuracy on the same problems, with a paired bootstrap 95 % interval.

  A problem that one side has no answer to is wrong on that side.
  """
  a, b = per_problem(mine), per_problem(theirs)
  both = sorted(a.keys() | b.keys())
  values = np.array([a.get(u, 0.0) - b.get(u, 0.0) for u in both])
  low, high = _interval(values, draws, seed)
  if np.all(values == values[0]):  # no pair differs from another: as unsure to both sides
    edge = _edge(len(values))
    low, high = max(float(values[0]) - edge, -1.0), min(float(values[0]) + edge, 1.0)
  return {"difference": float(values.mean()), "ci": [low, high], "n": len(both)}


def _edge(n):
  """How far from certain n equal outcomes leave us: the width of Wilson's interval."""
  return 1.96**2 / (n + 1.96**2)


def _interval(values, draws, seed):
  """Percentile bootstrap of the mean; Wilson's score when every value is 0 or 1 of one kind."""
  n = len(values)
  if np.all(values == values[0]) and values[0] in (0, 1):  # a bootstrap would say: certain
    edge = _edge(n)
    return [0.0, edge] if values[0] == 0 else [1 - edge, 1.0]
  rng = np.random.default_rng(seed)
  means = values[rng.integers(0, n, (draws, n))].mean(-1)
  return [float(x) for x in np.quantile(means, (0.025, 0.975))]
