"""What a run has found, from rows of answers and traces: accuracy, intervals, costs, results.json."""

import collections
import math

import numpy as np


def accuracy(seeds, total, *, draws=2000, seed=0):
  """Accuracy over `total` problems and a 95 % interval by bootstrap over problems and seeds.

  `seeds` holds the answers of each training seed: rows of traces.row. Several a problem count as
  their mean (avg@n), a problem without a trace as wrong. Problems and, apart from them, seeds are
  drawn with replacement (the pigeonhole bootstrap of Owen, 2007), so that the interval is
  for other problems and another order of training too; of one seed it is over problems.
  Returns {"accuracy", "ci": [low, high], "n", "mean_tokens", "truncated", "unverifiable", "seeds"};
  mean_tokens counts every answer, truncated is the share that hit the limit, seeds are accuracies.
  """
  rows, right = sum(seeds, []), [per_problem(r) for r in seeds]
  names = sorted({u for each in right for u in each})
  values = np.array(
    [[*(each.get(u, 0.0) for u in names), *[0.0] * (total - len(names))] for each in right]
  )
  count = max(len(rows), 1)
  return {
    "accuracy": float(values.mean()),
    "ci": _interval(values, draws, seed),
    "n": total,
    "mean_tokens": float(np.mean([r["num_tokens"] for r in rows])) if rows else None,
    "truncated": sum(r["stop"] == "length" for r in rows) / count,
    "unverifiable": sum(r["verdict"] == "unverifiable" for r in rows),
    "seeds": values.mean(1).tolist(),
  }


def per_problem(rows):
  """Share of right answers of each problem id."""
  found = {}
  for r in rows:
    found.setdefault(r["uuid"], []).append(r["verdict"] == "right")
  return {u: float(np.mean(x)) for u, x in found.items()}


def paired(mine, theirs, *, draws=2000, seed=0):
  """Difference in accuracy on the same problems, with a paired bootstrap 95 % interval.

  Arguments are the answers of each training seed of either side, see `accuracy`: a draw takes the
  same problems on both sides, and seeds of each side. A problem that one side has no answer to is
  wrong on that side.
  """
  sides = [[per_problem(rows) for rows in seeds] for seeds in (mine, theirs)]
  both = sorted({u for each in sum(sides, []) for u in each})
  a, b = (np.array([[each.get(u, 0.0) for u in both] for each in side]) for side in sides)
  difference = float(a.mean() - b.mean())
  low, high = _quantiles(_means((a, b), draws, seed))
  if high - low < 1e-9:  # every pair differs by the same: as unsure to both sides
    edge = _edge(len(both))
    low, high = max(difference - edge, -1.0), min(difference + edge, 1.0)
  return {"difference": difference, "ci": [low, high], "n": len(both)}


def results(costs, answered, problems):
  """`arms` and `paired` of results.json, of answers {arm: rows of each seed} to `problems`."""
  total = len({p.uuid for p in problems})
  arms = {name: {**accuracy(each, total), **costs[name]} for name, each in answered.items()}
  base = "standard_kd" if "standard_kd" in arms else next(iter(arms))
  others = sorted(arms, key=lambda name: arms[name]["accuracy"])
  return {
    "arms": {name: arms[name] for name in others},
    "paired": {
      f"{name}-{base}": paired(answered[name], answered[base]) for name in others if name != base
    },
  }


def collected(rows, kept, problems, whole=False):
  """What a collection cost and gave: figures of results.json.

  `kl_bound` is how far, in nats a trace and at most, the choice has moved the kept traces away from
  the teacher: log K - (K-1)/K for every choice among K, of chunks, or `whole` traces of a problem.
  `kept_tokens` are the tokens trained on in one pass, the cold start's apart.
  """
  bound = lambda k: math.log(k) - (k - 1) / k
  tries = collections.Counter(r["uuid"] for r in rows) if whole else {}
  moved = [
    bound(tries.get(r["uuid"], 1)) + sum(bound(len(c["scores"])) for c in r["chunks"]) for r in kept
  ]
  nll = sum(r["student_nll"] * r["num_tokens"] for r in kept if r["student_nll"] is not None)
  count = sum(r["num_tokens"] for r in kept if r["student_nll"] is not None)
  return {
    "student_nll": nll / count if count else None,
    "kept": len(kept),
    "problems": problems,
    "kept_tokens": sum(r["num_tokens"] for r in kept),
    "mean_kept_tokens": np.mean([r["num_tokens"] for r in kept]).item() if kept else None,
    "coverage": len({r["uuid"] for r in kept}) / max(problems, 1),
    "kl_bound": np.mean(moved).item() if kept else None,
    "teacher_tokens": sum(r["teacher_tokens"] for r in rows),
    "pruned": sum(r["stop"] == "pruned" for r in rows) / max(len(rows), 1),
    "teacher_right": sum(r["verdict"] == "right" for r in rows) / max(len(rows), 1),
  }


def table(found):
  """results.json as text for a terminal."""
  lines = [
    f"{'arm':<14}{'accuracy':>9}  {'95% interval':<15}{'n':>5}{'tokens':>8}"
    f"{'student nll':>13}{'kept':>6}{'teacher tokens':>16}"
  ]
  for name, r in found["arms"].items():
    nll = "-" if r["student_nll"] is None else f"{r['student_nll']:.3f}"
    low, high = r["ci"]
    lines.append(
      f"{name:<14}{r['accuracy']:>9.1%}  {f'{low:.1%} - {high:.1%}':<15}{r['n']:>5}"
      f"{r['mean_tokens']:>8.1f}{nll:>13}{r['kept']:>6}{r['teacher_tokens']:>16,}"
    )
  for name, p in found["paired"].items():
    low, high = p["ci"]
    lines.append(f"{name}: {p['difference']:+.1%} ({low:+.1%} to {high:+.1%})")
  return "\n".join(lines)


# ---------------------------------------------------------------- bootstrap


def _edge(n):
  """How far from certain n equal outcomes leave us: the width of Wilson's interval."""
  return 1.96**2 / (n + 1.96**2)


def _interval(values, draws, seed):
  """Of the mean of values [seeds, problems]; Wilson's score when all are 0 or all are 1."""
  if np.all(values == values[0, 0]) and values[0, 0] in (0, 1):  # a bootstrap would say: certain
    edge = _edge(values.shape[1])
    return [0.0, edge] if values[0, 0] == 0 else [1 - edge, 1.0]
  return _quantiles(_means((values,), draws, seed))


def _means(sides, draws, seed):
  """Bootstrap means [draws] of the first side's values [seeds, problems], less the second's."""
  rng = np.random.default_rng(seed)
  n = sides[0].shape[1]
  times = rng.multinomial(n, np.full(n, 1 / n), draws) / n  # how often a problem is drawn
  found = 0.0
  for sign, values in zip((1, -1), sides):
    s = len(values)
    each = rng.multinomial(s, np.full(s, 1 / s), draws) / s
    found = found + sign * np.einsum("ds,sn,dn->d", each, values, times, optimize=True)
  return found


def _quantiles(means):
  return [float(x) for x in np.quantile(means, (0.025, 0.975))]
