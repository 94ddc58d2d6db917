"""Branch trees of the page: what page.html.jinja draws of one trace, round by round.

A round is a row of cards in HTML, so that text wraps and can be selected; the curves between rounds
and the small plot of scores are SVG.
"""

import collections
from collections.abc import Iterable
from typing import Any

from markupsafe import Markup

from gen_ssd.report import figures
from gen_ssd.report import reading

OUTCOMES = {
  "right": "✓ right",
  "wrong": "✗ wrong",
  "pruned": "✂\ufe0e pruned",
  "unverifiable": "? unverifiable",
}
LONG_TEXT = 320  # characters; cards with more are drawn under one another
MOST_CARDS, MOST_BRANCHES = 600, 24  # that are drawn: of a tree, and of a round
LostByPlace = dict[tuple[int, int], reading.Lost]  # by round and branch


def score_cuts(scores: Iterable[float]) -> list[float]:
  """Four cuts that divide scores into five colours; all trees of a page share them."""
  ranked = sorted(scores)
  if not ranked:
    return [0.0] * 4
  low, high = ranked[0], ranked[min(len(ranked) - 1, int(0.95 * len(ranked)))]
  return [low + (high - low) * i / 5 for i in range(1, 5)]


def bin_names(cuts: list[float]) -> list[str]:
  """The range of scores of every colour."""
  ends = ["", *(figures.fixed(c) for c in cuts), ""]
  return [f"{a}–{b}" if a and b else f"≤ {b}" if b else f"> {a}" for a, b in zip(ends, ends[1:])]


def tree(number: int, trace: reading.Trace, lost: LostByPlace, cuts: list[float]) -> dict[str, Any]:
  """One trace, drawn as tree `number` of the page."""
  outcome = trace.outcome if trace.outcome in OUTCOMES else "unverifiable"
  all_rounds, lost = _with_pruned_round(trace, lost)
  widest = max((len(r.scores) for r in all_rounds), default=1) or 1
  longest = max((len(r.text) for r in all_rounds), default=0)
  stacked = widest > 5 or longest > LONG_TEXT
  shown = reading.FEW_ROUNDS // 2 if stacked else reading.FEW_ROUNDS
  drawn = all_rounds[: MOST_CARDS // min(widest, MOST_BRANCHES)]
  by_round = collections.defaultdict(dict)
  for (chunk, branch), candidate in lost.items():
    by_round[chunk][branch] = candidate
  rounds, start = [], 50.0
  for i, r in enumerate(drawn):
    rounds.append(_round(i + 1, r, by_round[i], start, cuts))
    start = rounds[-1]["end"]
  return {
    "number": number,
    "trace": trace,
    "outcome": outcome,
    "badge": OUTCOMES.get(trace.outcome, trace.outcome),
    "stacked": stacked,
    "is_open": number == 1 or not stacked,
    "about": [
      words
      for x, words in ((trace.source, trace.source), (trace.level, f"level {trace.level}"))
      if x
    ],
    "scores": _score_plot(drawn),
    "shown": rounds[:shown],
    "folded": rounds[shown:],
    "omitted": len(all_rounds) - len(drawn),
    "link": _curves([(start, 50.0, "kept")]) if outcome != "pruned" else "",
  }


def _with_pruned_round(trace, lost):
  """Rounds and lost candidates of a trace, with the round that pruned it as a Round of its own.

  The trace's row holds the rounds that kept a candidate; the last candidates of a pruned trace are
  all lost. Their branches are numbered anew, since a damaged file may hold any numbers.
  """
  end = len(trace.rounds)
  last = [lost[place] for place in sorted(lost) if place[0] == end]
  if trace.outcome != "pruned" or not last:
    return trace.rounds, lost
  resamples = max(candidate.resample or 0.0 for candidate in last)
  last = [candidate for candidate in last if (candidate.resample or 0.0) == resamples]
  pruned = reading.Round(
    text="",
    count=None,
    scores=[candidate.score for candidate in last],
    choice=-1,
    resamples=resamples,
  )
  return [*trace.rounds, pruned], {**lost, **{(end, i): c for i, c in enumerate(last)}}


def _round(number, r, lost, start, cuts):
  """One round: its K cards, and the links to them from `start` (0 to 100 across)."""
  k = max(len(r.scores), r.choice + 1, 1)
  branches = [*range(min(k, MOST_BRANCHES))]
  if r.choice >= len(branches):
    branches[-1] = r.choice
  kept = branches.index(r.choice) if r.choice >= 0 else -1
  texts = {
    i: (r.text, r.count)
    if i == r.choice
    else (lost[i].text, lost[i].count)
    if i in lost
    else (None, None)
    for i in branches
  }
  return {
    "number": number,
    "k": len(branches),
    "omitted": k - len(branches),
    "end": 50.0 if kept < 0 else _center(kept, len(branches)),
    "resamples": r.resamples,
    "pruned": r.choice < 0,
    "links": _links(len(branches), start, kept),
    "cards": [_card(i, r, texts, cuts) for i in branches],
  }


def _card(i, r, texts, cuts):
  """Candidate i of a round. texts: {branch: (text or None, tokens or None)} of those drawn."""
  text, count = texts[i]
  score = r.scores[i] if i < len(r.scores) else None
  twin = next((j for j in texts if j < i and text and texts[j][0] == text), None)
  if i == r.choice:
    state, words = "kept", "✓ kept"
  elif score is None:
    state, words = "invalid", "lost"
  elif r.choice < 0:
    state, words = "pruned", "not suitable"
  else:
    state, words = "lost", "lost"
  if twin is not None and state != "kept":
    words = f"same as #{twin + 1}"
  tokens = [] if count is None else [f"{count:.0f} tok"]
  return {
    "state": state,
    "score": score,
    "colour": None if score is None else sum(score > c for c in cuts),
    "words": " · ".join([f"#{i + 1}", words, *tokens]),
    "text": text,
  }


# ---------------------------------------------------------------- SVG


def _center(i, k):
  return 100 * (i + 0.5) / k


def _curves(links):
  """Curves (from x, to x, class), x from 0 to 100; the picture stretches to its box."""
  paths = "".join(
    f'<path class="{cls}" d="M{a:.2f} 0C{a:.2f} 20 {b:.2f} 10 {b:.2f} 30"/>' for a, b, cls in links
  )
  box = 'viewBox="0 0 100 30" preserveAspectRatio="none" aria-hidden="true"'
  return Markup(f'<svg class="links" {box}>{paths}</svg>')


def _links(k, start, choice):
  """Curves from `start` to k cards: the winner's is thick; without a winner all are dashed."""
  order = sorted(range(k), key=lambda i: i == choice)  # the winner is drawn on top
  look = {choice: "kept"} if choice >= 0 else dict.fromkeys(range(k), "dashed")
  return _curves([(start, _center(i, k), look.get(i, "")) for i in order])


def _score_plot(rounds):
  """Scores round by round: rings for all candidates, a thick line through the kept ones."""
  scores = lambda r: [s for s in r.scores[:MOST_BRANCHES] if s is not None]
  kept = [
    (i, s)
    for i, r in enumerate(rounds)
    if 0 <= r.choice < len(r.scores) and (s := r.scores[r.choice]) is not None
  ]
  known = [*(s for r in rounds for s in scores(r)), *(s for _, s in kept)]
  if not known:
    return ""
  low, high = min(known), max(known)
  intervals = max(len(rounds) - 1, 1)

  def at(i, s):
    return f"{52 + 232 * i / intervals:.1f}", f"{88 - 58 * (s - low) / ((high - low) or 1):.1f}"

  points = [at(i, s) for i, r in enumerate(rounds) for s in scores(r)]
  kept = [at(*place) for place in kept]
  rings = "".join(f'<circle class="ring" cx="{x}" cy="{y}" r="3"/>' for x, y in points)
  dots = "".join(f'<circle class="dot" cx="{x}" cy="{y}" r="4.5"/>' for x, y in kept)
  line = " ".join(f"{x},{y}" for x, y in kept)
  labels = [
    figures.text(36, 34, figures.fixed(high), "tick", "end"),
    figures.text(40, 14, "score by round", "tick"),
    figures.text(36, 92, figures.fixed(low), "tick", "end"),
    figures.text(52, 109, "round 1", "tick", "middle"),
  ]
  if len(rounds) > 1:
    labels.append(figures.text(284, 109, len(rounds), "tick", "middle"))
  return Markup(
    '<svg class="path" role="img" viewBox="0 0 296 112"><title>Scores by round, from {} to {}; '
    'the line joins the kept candidates</title><path class="base" d="M40 24V96H292"/>{}{}</svg>'
  ).format(
    figures.fixed(low),
    figures.fixed(high),
    figures.join(labels),
    Markup(f'{rings}<polyline class="kept" points="{line}"/>{dots}'),
  )
