"""Statistics of a run: accuracy with intervals, paired differences, costs. Makes results.json.

A row is a record of a trace as collect/traces.py writes it; answers of students are such rows too.
Intervals are percentile intervals of a bootstrap (Efron, 1979) over problems and training seeds.
With several seeds both are resampled independently, which is the pigeonhole bootstrap of Owen
(2007), "The pigeonhole bootstrap", Annals of Applied Statistics 1(2).
"""

import collections
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import math
from typing import Any

import numpy as np

from gen_ssd.report import looks
from gen_ssd.report import words

Row = Mapping[str, Any]
# Figures of an arm that are nearly always 0: `unfinished` says so where they are not.
UNFINISHED = ("trace_timeouts", "trace_crashes", "answer_timeouts", "answer_crashes")
Z = 1.96  # two-sided 95 % point of the normal distribution


def accuracy(
  seeds: Sequence[Sequence[Row]], total: int, *, draws: int = 2000, seed: int = 0
) -> dict[str, Any]:
  """Accuracy over `total` problems, with a 95 % bootstrap interval over problems and seeds.

  seeds: for every training seed the rows of its answers. Several answers to a problem count as
  their mean (avg@n); a problem without an answer counts as wrong. With one seed the interval is
  over problems only. Where all answers are right or all are wrong it is Wilson's interval.

  Returns {"accuracy", "ci": [low, high], "n", "mean_tokens", "truncated", "unverifiable",
  "answer_timeouts", "answer_crashes", "seeds"}: tokens per answer, the share of answers that reached
  the length limit, the number of answers that could not be verified, how many of these because
  math-verify took too long or crashed, and the accuracy of every seed.
  """
  rows = [r for answers in seeds for r in answers]
  value, ci, each = estimate([per_problem(answers) for answers in seeds], total, draws, seed)
  count = max(len(rows), 1)
  return {
    "accuracy": value,
    "ci": ci,
    "n": total,
    "mean_tokens": float(np.mean([r["num_tokens"] for r in rows])) if rows else None,
    "truncated": sum(r["stop"] == "length" for r in rows) / count,
    "unverifiable": sum(r["verdict"] == "unverifiable" for r in rows),
    **_unfinished("answer", rows),
    "seeds": each,
  }


def estimate(
  shares: Sequence[Mapping[str, float]], total: int, draws: int = 2000, seed: int = 0
) -> tuple[float, list[float], list[float]]:
  """(mean, [low, high], mean of every seed) of a figure that each problem has.

  shares: {uuid: figure} of every training seed; a problem of the `total` that is missing counts as 0.
  The interval is the one of `accuracy`.
  """
  names = sorted({u for share in shares for u in share})
  values = np.array(
    [[*(share.get(u, 0.0) for u in names), *[0.0] * (total - len(names))] for share in shares]
  )
  return float(values.mean()), _interval(values, draws, seed), values.mean(1).tolist()


def per_problem(rows: Iterable[Row]) -> dict[str, float]:
  """{uuid: share of right answers}."""
  found: dict[str, list[bool]] = {}
  for r in rows:
    found.setdefault(r["uuid"], []).append(r["verdict"] == "right")
  return {u: float(np.mean(x)) for u, x in found.items()}


def paired(
  mine: Sequence[Sequence[Row]],
  theirs: Sequence[Sequence[Row]],
  *,
  draws: int = 2000,
  seed: int = 0,
) -> dict[str, Any]:
  """Accuracy of `mine` minus that of `theirs` on the same problems, with a 95 % interval.

  Both arguments hold the rows of every training seed, as in `accuracy`. A bootstrap draw takes the
  same problems on both sides, and seeds of each side independently. A problem that only one side
  answered is wrong on the other. Returns {"difference", "ci": [low, high], "n": problems}.

  Where all problems differ by the same, the bootstrap has no spread; the interval then extends to
  both sides by the width of Wilson's interval for equal outcomes.
  """
  sides = [[per_problem(rows) for rows in answers] for answers in (mine, theirs)]
  problems = sorted({u for shares in sides for share in shares for u in share})
  a, b = (np.array([[share.get(u, 0.0) for u in problems] for share in shares]) for shares in sides)
  difference = float(a.mean() - b.mean())
  low, high = _quantiles(_bootstrap_means(a, draws, seed, minus=b))
  if high - low < 1e-9:
    width = _wilson_width(len(problems))
    low, high = max(difference - width, -1.0), min(difference + width, 1.0)
  return {"difference": difference, "ci": [low, high], "n": len(problems)}


def results(
  arms: Mapping[str, Mapping[str, Any]], answered: Mapping[str, Sequence[Sequence[Row]]]
) -> dict[str, Any]:
  """`arms` and `paired` of results.json, arms in the order of their accuracy.

  arms: {arm: its figures}, with `accuracy`. answered: {arm: rows of the answers of every seed}.
  Differences are from standard_kd, or from the first arm where there is none; that of gen_ssd is also
  taken from posthoc and from random, which spend as many teacher tokens.
  """
  base = "standard_kd" if "standard_kd" in arms else next(iter(arms), None)
  ranked = looks.order({name: a["accuracy"] for name, a in arms.items()})
  pairs = [(name, base) for name in ranked]
  pairs += [("gen_ssd", other) for other in ("posthoc", "random") if {"gen_ssd", other} <= {*arms}]
  return {
    "arms": {name: arms[name] for name in ranked},
    "paired": {f"{a}-{b}": paired(answered[a], answered[b]) for a, b in pairs if a != b},
  }


def collected(
  rows: Sequence[Row], kept: Sequence[Row], problems: int, whole: bool = False
) -> dict[str, Any]:
  """What a collection cost and gave, of all its rows and the kept ones, for results.json.

  `student_nll` is in nats per token, mean over all kept tokens that were not given. `kept_tokens` are
  the tokens that one pass of training learns, those of the cold start not included.

  `kl_bound` bounds the KL divergence of selected traces from the teacher's, in nats per trace.
  Selecting one of K moves a distribution by at most log K - (K-1)/K (Beirami et al., "Theoretical
  guarantees on the best-of-n alignment policy", arXiv 2401.01879), and the bounds of a trace's
  selections add up: one per chunk and, with `whole`, one among the traces of its problem. What
  pruning, resampling and the grader leave out is not counted.
  """
  bound = lambda k: math.log(k) - (k - 1) / k
  attempts = collections.Counter(r["uuid"] for r in rows) if whole else {}
  moved = [
    bound(attempts.get(r["uuid"], 1)) + sum(bound(len(c["scores"])) for c in r["chunks"])
    for r in kept
  ]
  scored = [r for r in kept if r["student_nll"] is not None]
  written = [r["num_tokens"] - r["given_tokens"] for r in scored]
  tokens = sum(written)
  nll = sum(r["student_nll"] * n for r, n in zip(scored, written))
  return {
    "student_nll": nll / tokens if tokens else None,
    "kept": len(kept),
    "problems": problems,
    "kept_tokens": sum(r["num_tokens"] for r in kept),
    "mean_kept_tokens": np.mean([r["num_tokens"] for r in kept]).item() if kept else None,
    "coverage": len({r["uuid"] for r in kept}) / max(problems, 1),
    "kl_bound": np.mean(moved).item() if kept else None,
    "teacher_tokens": sum(r["teacher_tokens"] for r in rows),
    "pruned": sum(r["stop"] == "pruned" for r in rows) / max(len(rows), 1),
    "teacher_right": sum(r["verdict"] == "right" for r in rows) / max(len(rows), 1),
    **_unfinished("trace", rows),
  }


def _unfinished(kind: str, rows: Iterable[Row]) -> dict[str, int]:
  """How many rows are unverifiable because math-verify took too long, and because it crashed."""
  causes = collections.Counter(r["graded_by"] for r in rows)
  return {f"{kind}_timeouts": causes["timeout"], f"{kind}_crashes": causes["crash"]}


def unfinished(arms: Mapping[str, Mapping[str, Any]]) -> list[str]:
  """A line per arm of `results` in which math-verify did not finish with some rows; usually none."""
  lines = []
  for name, r in arms.items():
    counts = {key.replace("_", " "): r.get(key) for key in UNFINISHED}
    if said := ", ".join(f"{what} {n:,.0f}" for what, n in counts.items() if n):
      lines.append(
        f"{words.line(name, 120)}: unverifiable because math-verify did not finish: {said}"
      )
  return lines


def table(found: Mapping[str, Any], names: Mapping[str, str] | None = None) -> str:
  """`results` as text for a terminal; differences are in percentage points.

  A run with arms says what each cost. An evaluation of a model alone says more of its answers.
  `names` are other names for models.
  """
  every = {**found["models"], **found["arms"]}
  details = _costs if found["arms"] else _details
  rows = [("arm" if found["arms"] else "model", "accuracy", "95% interval", "n", "tokens")]
  rows[0] += tuple(details(next(iter(every.values()))))
  for name, r in every.items():
    interval = " - ".join(f"{x:.1%}" for x in r["ci"])
    tokens = "-" if r["mean_tokens"] is None else f"{r['mean_tokens']:.1f}"
    label = words.line((names or {}).get(name, name), 60)
    cells = label, f"{r['accuracy']:.1%}", interval, f"{r['n']}", tokens
    rows.append(cells + tuple(details(r).values()))
  lines = words.columns(rows)
  for name, p in found["paired"].items():
    low, high = (100 * x for x in p["ci"])
    lines.append(
      f"{words.line(name, 120)}: {100 * p['difference']:+.1f} points ({low:+.1f} to {high:+.1f})"
    )
  return "\n".join([*lines, *unfinished(found["arms"])])


def _costs(r):
  """Columns of a table: what an arm cost; a model beside the arms cost nothing."""
  nll, kept, spent = (r.get(name) for name in ("student_nll", "kept", "teacher_tokens"))
  return {
    "student nll": "-" if nll is None else f"{nll:.3f}",
    "kept": "-" if kept is None else f"{kept}",
    "teacher tokens": "-" if spent is None else f"{spent:,}",
  }


def _details(r):
  """Columns of a table: more of what a model answered."""
  last, most = r.get("last_number"), str(r["samples"])
  votes = {
    f"{label}@{most}": f"{r[name][most]['value']:.1%}"
    for label, name in (("pass", "pass_at_k"), ("maj", "maj_at_k"))
    if name in r
  }
  return {
    **votes,
    "last number": "-" if last is None else f"{last['value']:.1%}",
    "truncated": f"{r['truncated']:.1%}",
    "unverifiable": f"{r['unverifiable']}",
  }


# ---------------------------------------------------------------- bootstrap


def _wilson_width(n: int) -> float:
  """Width of the 95 % score interval of Wilson (1927) when all of n outcomes are equal.

  For a share p = 1 the interval is [n / (n + z^2), 1], so that its width is z^2 / (n + z^2).
  """
  return Z**2 / (n + Z**2)


def _interval(values: np.ndarray, draws: int, seed: int) -> list[float]:
  """95 % interval of the mean of values [seeds, problems].

  A bootstrap of values that are all 0 or all 1 has no width: these have Wilson's interval.
  """
  if np.all(values == values[0, 0]) and values[0, 0] in (0, 1):
    width = _wilson_width(values.shape[1])
    return [0.0, width] if values[0, 0] == 0 else [1 - width, 1.0]
  return _quantiles(_bootstrap_means(values, draws, seed))


def _bootstrap_means(
  values: np.ndarray, draws: int, seed: int, minus: np.ndarray | None = None
) -> np.ndarray:
  """Means [draws] of values [seeds, problems] under the pigeonhole bootstrap, float64.

  Problems and seeds are drawn with replacement and independently. The means of `minus` for the
  same problems, with seeds of its own, are subtracted.
  """
  rng = np.random.default_rng(seed)
  n = values.shape[1]
  problems = rng.multinomial(n, np.full(n, 1 / n), draws) / n  # weight of each problem in a draw
  means = np.zeros(draws)
  for sign, side in ((1, values), (-1, minus)):
    if side is not None:
      s = len(side)
      seeds = rng.multinomial(s, np.full(s, 1 / s), draws) / s
      means += sign * np.einsum("ds,sn,dn->d", seeds, side, problems, optimize=True)
  return means


def _quantiles(means: np.ndarray) -> list[float]:
  return [float(x) for x in np.quantile(means, (0.025, 0.975))]
