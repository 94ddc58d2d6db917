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
from gen_ssd.report import traces

OUTCOMES = {
  "right": "✓ right",
  "wrong": "✗ wrong",
  "pruned": "✂\ufe0e pruned",
  "unverifiable": "? unverifiable",
}
LONG_TEXT = 320  # characters; cards with more are drawn under one another
MOST_CARDS, MOST_BRANCHES = 600, 24  # that are drawn: of a tree, and of a round
LostByPlace = dict[tuple[int, int], traces.Lost]  # by round and branch


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


def tree(number: int, trace: traces.Trace, lost: LostByPlace, cuts: list[float]) -> dict[str, Any]:
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
    false = trace.false.text if trace.false and trace.false.round == i else ""
    rounds.append(_round(i + 1, r, by_round[i], start, cuts, false))
    start = rounds[-1]["end"]
  return {
    "number": number,
    "trace": trace,
    "outcome": outcome,
    "badge": OUTCOMES.get(trace.outcome, trace.outcome),
    "stacked": stacked,
    "is_open": number == 1,
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
  pruned = traces.Round(
    text="",
    count=None,
    scores=[candidate.score for candidate in last],
    choice=-1,
    resamples=resamples,
  )
  return [*trace.rounds, pruned], {**lost, **{(end, i): c for i, c in enumerate(last)}}


def _round(number, r, lost, start, cuts, false):
  """One round: a card per text, and the links to them from `start` (0 to 100 across).

  `false` is the false equation of its kept candidate, or "".
  """
  k = max(len(r.scores), r.choice + 1, 1)
  branches = [*range(min(k, MOST_BRANCHES))]
  if r.choice >= len(branches):
    branches[-1] = r.choice
  groups: dict[Any, list[int]] = {}
  for i in branches:
    text = r.text if i == r.choice else lost[i].text if i in lost else None
    same = i if text is None else (text, _score(r, i) is None)
    groups.setdefault(same, []).append(i)
  cards = [_card(group, r, lost, cuts, false) for group in groups.values()]
  kept = next((i for i, card in enumerate(cards) if card["state"] == "kept"), -1)
  return {
    "number": number,
    "k": len(cards),
    "omitted": k - len(branches),
    "end": 50.0 if kept < 0 else _center(kept, len(cards)),
    "resamples": r.resamples,
    "pruned": r.choice < 0,
    "links": _links(len(cards), start, kept),
    "cards": cards,
  }


def _score(r, i):
  return r.scores[i] if i < len(r.scores) else None


def _card(group, r, lost, cuts, false):
  """One card for the candidates `group` of a round, which have the same text; the kept one wins."""
  kept = r.choice in group
  first = r.choice if kept else group[0]
  its = r if kept else lost.get(first)
  text, count = (its.text, its.count) if its else (None, None)
  scores = [s for i in group if (s := _score(r, i)) is not None]
  score = _score(r, first) if kept else min(scores, default=None)
  if kept:
    state, words = "kept", "✓ kept"
  elif score is None:
    state, words = "invalid", "lost"
  elif r.choice < 0:
    state, words = "pruned", "not suitable"
  else:
    state, words = "lost", "lost"
  said = [", ".join(f"#{i + 1}" for i in group), words]
  said += [f"{len(group)} × same text"] if len(group) > 1 else []
  ends = [figures.fixed(end(scores)) for end in (min, max)] if scores else []
  said += [f"scores {ends[0]} to {ends[1]}"] if len({*ends}) > 1 else []
  said += [] if count is None else [f"{count:.0f} tok"]
  return {
    "state": state,
    "score": score,
    "colour": None if score is None else sum(score > c for c in cuts),
    "words": " · ".join(said),
    "text": text,
    "false": false if kept else "",
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
