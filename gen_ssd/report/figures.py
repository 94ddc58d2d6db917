"""Drawings of report.py and study.py: SVG and HTML text made from plain numbers and strings.

Every mark has a shape or a word as well as a colour. Coordinates are SVG user units. Strings that
come from a run are escaped here.
"""

import dataclasses
import html
import math
import statistics

from gen_ssd.report.style import STYLE

LONG = 10  # rounds of a tree shown before the rest is folded; half of it where texts are long
LEFT, RIGHT = 24, 416  # the plotting area of a figure 440 wide
OUTCOMES = {
  "right": "✓ right",
  "wrong": "✗ wrong",
  "pruned": "✂\ufe0e pruned",
  "unverifiable": "? unverifiable",
}


def escape(x):
  return html.escape(str(x), quote=True)


def fixed(x, digits=2, scale=1, unit=""):
  """x with a fixed number of decimals, an en dash for None."""
  return "–" if x is None else f"{x * scale:,.{digits}f}{unit}"


def mark(look, x, y, r=5.5, hollow=False):
  """The mark of arm number `look`: eight colours, eight shapes, 64 pairs before one repeats."""
  shape, cls = (look + look // 8) % 8, f'class="mark a{look % 8}{" hollow" * hollow}"'
  if shape == 0:
    return f'<circle {cls} cx="{x:.1f}" cy="{y:.1f}" r="{r}"/>'
  plus = [
    (-0.4, -1.1),
    (0.4, -1.1),
    (0.4, -0.4),
    (1.1, -0.4),
    (1.1, 0.4),
    (0.4, 0.4),
    (0.4, 1.1),
    (-0.4, 1.1),
    (-0.4, 0.4),
    (-1.1, 0.4),
    (-1.1, -0.4),
    (-0.4, -0.4),
  ]
  turn = math.sqrt(0.5)
  shapes = [
    [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
    [(0, -1.2), (1.1, 0.8), (-1.1, 0.8)],
    [(0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)],
    [(0, 1.2), (1.1, -0.8), (-1.1, -0.8)],
    plus,
    [((a - b) * turn, (a + b) * turn) for a, b in plus],
    [(-0.5, -1.1), (0.5, -1.1), (1.1, 0), (0.5, 1.1), (-0.5, 1.1), (-1.1, 0)],
  ]
  points = " ".join(f"{x + r * a:.1f},{y + r * b:.1f}" for a, b in shapes[shape - 1])
  return f'<polygon {cls} points="{points}"/>'


def key(look):
  """An arm's mark for use inside text."""
  return f'<svg class="key" viewBox="-8 -8 16 16" aria-hidden="true">{mark(look, 0, 0)}</svg>'


def _ticks(low, high, count=5):
  raw = (high - low) / count or 1.0
  size = 10 ** math.floor(math.log10(raw))
  step = next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= raw * 0.999)
  first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
  return [i * step + 0.0 for i in range(first, last + 1)]


@dataclasses.dataclass(frozen=True)
class Panel:
  """One drawing, 440 wide: `marks` are SVG elements in its coordinates."""

  title: str
  hint: str
  height: float
  marks: tuple


def page(panel):
  """The panel as a figure of an HTML page that has STYLE."""
  title = escape(panel.title)
  return (
    f"<figure><figcaption><b>{title}</b><span>{escape(panel.hint)}</span></figcaption>"
    f'<svg role="img" viewBox="0 0 440 {panel.height}"><title>{title}</title>'
    f"{''.join(panel.marks)}</svg></figure>"
  )


def svg(panels, columns=1):
  """Panels in rows of `columns` as the text of an SVG file that needs nothing else."""
  rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
  width, top, drawn = 470 * columns, 0, []
  for row in rows:
    for i, p in enumerate(row):
      drawn.append(
        f'<g transform="translate({470 * i + 15} {top})">{_text(8, 28, p.title, "name")}'
        f'{_text(8, 46, p.hint, "tick")}<g transform="translate(0 60)">'
        f"{''.join(p.marks)}</g></g>"
      )
    top += max(p.height for p in row) + 72
  return (
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {top:.0f}" width="{width}" '
    f'height="{top:.0f}" font-family="system-ui, sans-serif"><style>{STYLE}</style>'
    f'<rect width="100%" height="100%" fill="var(--card)"/>{"".join(drawn)}</svg>\n'
  )


def _text(x, y, text, cls="", anchor="start"):
  return f'<text x="{x:.1f}" y="{y:.1f}" class="{cls}" text-anchor="{anchor}">{escape(text)}</text>'


def _labels(y, label, words):
  """An arm's name on the left, cut where it would meet the words on the right."""
  room = int((RIGHT - LEFT - 8.5 * len(words)) / 9.2)
  label = label if len(label) <= room else label[: room - 1] + "…"
  return _text(LEFT, y, label, "name") + _text(RIGHT, y, words, "value", "end")


def _axis(ticks, at, bottom, show):
  return [
    f'<path class="grid" d="M{at(t):.1f} 0V{bottom}"/>'
    + _text(at(t), bottom + 17, show(t), "tick", "middle")
    for t in ticks
  ]


def intervals(title, hint, rows, show, zero=False):
  """Panel of dot and whisker, one row each: (look, label, value, (low, high) or None, words).

  A sixth entry of a row is a list of more values, drawn as small dots.
  """
  ends = [v for _, _, mid, ci, _, *more in rows for v in (mid, *(ci or ()), *sum(more, []))]
  ends += [0.0] * zero
  low, high = min(ends), max(ends)
  pad = (high - low) * 0.06 or 0.01
  low, high, bottom = low - pad, high + pad, 50 * len(rows) + 6

  def at(v):
    return LEFT + (v - low) / (high - low) * (RIGHT - LEFT)

  marks = _axis(_ticks(low, high), at, bottom, show)
  if zero:
    marks.append(f'<path class="zero" d="M{at(0):.1f} 0V{bottom}"/>')
  for i, (look, label, mid, ci, words, *more) in enumerate(rows):
    y = 50 * i + 36
    dots = "".join(
      f'<circle class="ring" cx="{at(v):.1f}" cy="{y}" r="2.5"/>' for v in sum(more, [])
    )
    tip = f"{label}: {show(mid)}" + (f", interval {show(ci[0])} to {show(ci[1])}" if ci else "")
    line = (
      ""
      if not ci
      else (
        f'<path class="whisker a{look % 8}" d="M{at(ci[0]):.1f} {y}H{at(ci[1]):.1f}'
        + "".join(f"M{at(v):.1f} {y - 5}v10" for v in ci)
        + '"/>'
      )
    )
    hollow = zero and bool(ci) and ci[0] <= 0 <= ci[1]
    marks.append(
      f"<g><title>{escape(tip)}</title>{_labels(y - 17, label, words)}{line}"
      f"{mark(look, at(mid), y, 6.5, hollow)}{dots}</g>"
    )
  return Panel(title, hint, bottom + 24, tuple(marks))


def curves(title, hint, lines, show, joined=True):
  """Panel of lines over the same named places: (look, label, [(place, value, (low, high) or None)])."""
  places = list(dict.fromkeys(place for _, _, points in lines for place, _, _ in points))
  ends = [v for _, _, points in lines for _, mid, ci in points for v in (mid, *(ci or ()))]
  low, high, bottom = min(ends), max(ends), 170
  pad = (high - low) * 0.08 or 0.01
  low, high = low - pad, high + pad
  left, names = LEFT + 44, len(lines) > 1

  def x(place):
    return (
      left + 12 + places.index(place) * (RIGHT - left - 24 - 76 * names) / max(len(places) - 1, 1)
    )

  def y(v):
    return 8 + (high - v) / (high - low) * (bottom - 8)

  marks = [
    f'<path class="grid" d="M{left} {y(t):.1f}H{RIGHT}"/>'
    + _text(left - 6, y(t) + 4, show(t), "tick", "end")
    for t in _ticks(low, high, 4)
  ]
  marks += [_text(x(p), bottom + 18, p, "tick", "middle") for p in places]
  for look, label, points in lines:
    line = " ".join(f"{x(p):.1f},{y(v):.1f}" for p, v, _ in points)
    if joined:
      marks.append(f'<polyline class="curve a{look % 8}" points="{line}"/>')
    for p, v, ci in points:
      if ci:
        marks.append(
          f'<path class="whisker a{look % 8}" d="M{x(p):.1f} {y(ci[0]):.1f}V{y(ci[1]):.1f}"/>'
        )
      marks.append(
        f"<g><title>{escape(f'{label}, {p}: {show(v)}')}</title>{mark(look, x(p), y(v), 5)}</g>"
      )
  lowest = -math.inf
  for _, label, points in sorted(lines, key=lambda line: -line[2][-1][1]) if names else ():
    lowest = max(y(points[-1][1]) + 4, lowest + 12)  # a line of text below the one above, at least
    marks.append(_text(x(points[-1][0]) + 10, lowest, label, "tick"))
  return Panel(title, hint, bottom + 28, tuple(marks))


def ridges(title, hint, rows, show, tell, whole=False):
  """Panel of histograms under one another: (look, label, values not empty), same axis and scale.

  `show` prints a tick, `tell` a median; `whole` is for values that are whole numbers.
  """
  pool = sorted(v for _, _, values in rows for v in values)
  low, high = pool[0], pool[min(len(pool) - 1, math.ceil(0.995 * len(pool)))]
  step = (high - low) / 30 or 0.1
  if whole:  # bins of whole tokens, or bars would beat against the integers
    low, step = math.floor(low) - 0.5, max(1, math.ceil((high - low + 1) / 30))
  bins = math.floor((high - low) / step) + 1
  end = low + bins * step

  def at(v):
    return LEFT + (min(v, end) - low) / (end - low) * (RIGHT - LEFT)

  shares = []
  for _, _, values in rows:
    counts = [0] * bins
    for v in values:
      counts[min(bins - 1, int((v - low) / step))] += 1
    shares.append([c / len(values) for c in counts])
  tallest, bottom, beyond = max(map(max, shares)), 92 * len(rows), sum(v > end for v in pool)
  marks = _axis(_ticks(low, end), at, bottom, show)
  for i, ((look, label, values), share) in enumerate(zip(rows, shares)):
    y, mid = 92 * (i + 1), statistics.median(values)
    line = (
      f"M{LEFT} {y}"
      + "".join(
        f"V{y - 48 * s / tallest:.1f}H{at(low + (j + 1) * step):.1f}" for j, s in enumerate(share)
      )
      + f"V{y}Z"
    )
    left = at(mid) < (LEFT + RIGHT) / 2  # the median's words go where there is room
    marks.append(
      f"<g><title>{escape(label)}: median {tell(mid)}</title>"
      f'<path class="hill a{look % 8}" d="{line}"/><path class="base" d="M{LEFT} {y}H{RIGHT}"/>'
      f'<path class="median" d="M{at(mid):.1f} {y}v-54"/>{mark(look, at(mid), y - 54, 5)}'
      f"{_text(at(mid) + (9 if left else -9), y - 50, tell(mid), '', 'start' if left else 'end')}"
      f"{_labels(y - 72, label, f'n {len(values):,}')}</g>"
    )
  hint += f"; the last bar also holds {beyond} beyond the axis" if beyond else ""
  return Panel(title, hint, bottom + 24, tuple(marks))


# The branch tree: cards in HTML, so that text wraps and can be selected; links between them in SVG.


def score_bins(scores):
  """Four cuts that put scores in five colours; the same cuts serve every tree of a page."""
  scores = sorted(scores)
  if not scores:
    return [0.0] * 4
  low, high = scores[0], scores[min(len(scores) - 1, int(0.95 * len(scores)))]
  return [low + (high - low) * i / 5 for i in range(1, 5)]


def _chip(score, cuts):
  if score is None:
    return '<span class="chip invalid" title="not a valid candidate">✕ invalid</span>'
  return f'<span class="chip q{sum(score > c for c in cuts)}">{fixed(score)}</span>'


def legend(cuts, scorer):
  """What the colours and lines of a tree mean."""
  ends = ["", *(fixed(c) for c in cuts), ""]
  spans = [f"{a}–{b}" if a and b else f"≤ {b}" if b else f"> {a}" for a, b in zip(ends, ends[1:])]
  chips = " ".join(f'<span class="chip q{i}">{span}</span>' for i, span in enumerate(spans))
  unit = " (nats per token)" if scorer == "perplexity" else ""
  return (
    f"<p class=legend><span class=wide>score: {escape(scorer)}{unit}, low is easy for the "
    f"student {chips} {_chip(None, cuts)}</span>"
    '<span><i class="line kept"></i> kept</span><span><i class=line></i> dropped</span>'
    '<span><i class="line dashed"></i> pruned: none suitable</span></p>'
  )


def _curves(links):
  """Curves from x to x (0..100 across), each with a class; the picture stretches to its box."""
  return (
    '<svg class="links" viewBox="0 0 100 30" preserveAspectRatio="none" aria-hidden="true">'
    + "".join(
      f'<path class="{cls}" d="M{a:.2f} 0C{a:.2f} 20 {b:.2f} 10 {b:.2f} 30"/>'
      for a, b, cls in links
    )
    + "</svg>"
  )


def _links(k, start, choice):
  """Curves from `start` (0..100 across) to k cards; a winner is thick, no winner is dashed."""
  ends = [100 * (i + 0.5) / k for i in range(k)]
  order = sorted(range(k), key=lambda i: i == choice)  # the winner is drawn on top
  return _curves(
    [(start, ends[i], "kept" if i == choice else "dashed" if choice < 0 else "") for i in order]
  )


def _round(number, entry, losers, start, cuts):
  """One round: its links and its K cards. losers: branch -> (text, tokens or None)."""
  choice, scores, cells = entry["choice"], entry["scores"], []
  k = max(len(scores), choice + 1, 1)
  texts = [
    (entry["text"], entry["count"]) if i == choice else losers.get(i, (None, None))
    for i in range(k)
  ]
  for i, (text, count) in enumerate(texts):
    score = scores[i] if i < len(scores) else None
    twin = next((j for j in range(i) if text and texts[j][0] == text), None)
    state = "kept" if i == choice else "invalid" if score is None else "dropped"
    if choice < 0 and state == "dropped":
      state = "pruned"
    words = (
      "✓ kept"
      if state == "kept"
      else f"same as #{twin + 1}"
      if twin is not None
      else "not suitable"
      if state == "pruned"
      else "dropped"
    )
    small = " · ".join([f"#{i + 1}", words, *([f"{count:.0f} tok"] if count is not None else [])])
    shown = (
      f"<p dir=auto>{escape(text.strip())}</p>"
      if text and text.strip()
      else f"<p class=none>{'empty' if text is not None else 'text not stored'}</p>"
    )
    cells.append(
      f'<div class="cell {state}"><div class=card><div class=facet>{_chip(score, cuts)}'
      f"<small>{small}</small></div>{shown}</div></div>"
    )
  again = f"<small>resampled {entry['resamples']:.0f}×</small>" if entry["resamples"] else ""
  lost = " lost" * (choice < 0)
  return (
    f'<div class="round{lost}" style="--k:{k}"><div class=gutter>Round {number}{again}</div>'
    f"{_links(k, start, choice)}<div class=row>{''.join(cells)}</div></div>"
  ), (100 * (choice + 0.5) / k if choice >= 0 else None)


def _path(trace):
  """Scores round by round: the kept path as a thick line, the others as rings."""
  rounds = trace["rounds"]
  known = [s for r in rounds for s in r["scores"] if s is not None]
  if not known:
    return ""
  low, high = min(known), max(known)
  wide = max(len(rounds) - 1, 1)

  def at(i, s):
    return f"{52 + 232 * i / wide:.1f}", f"{88 - 58 * (s - low) / ((high - low) or 1):.1f}"

  rings = [
    f'<circle class="ring" cx="{x}" cy="{y}" r="3"/>'
    for i, r in enumerate(rounds)
    for s in r["scores"]
    if s is not None
    for x, y in [at(i, s)]
  ]
  line = [
    at(i, s)
    for i, r in enumerate(rounds)
    if 0 <= r["choice"] < len(r["scores"]) and (s := r["scores"][r["choice"]]) is not None
  ]
  dots = "".join(f'<circle class="dot" cx="{x}" cy="{y}" r="4.5"/>' for x, y in line)
  return (
    f'<svg class="path" role="img" viewBox="0 0 296 112"><title>Scores by round, from '
    f"{fixed(low)} to {fixed(high)}; the line joins the kept candidates</title>"
    f'<path class="base" d="M40 24V96H292"/>{_text(36, 34, fixed(high), "tick", "end")}'
    f"{_text(40, 14, 'score by round', 'tick')}"
    f"{_text(36, 92, fixed(low), 'tick', 'end')}{_text(52, 109, 'round 1', 'tick', 'middle')}"
    f"{_text(284, 109, len(rounds), 'tick', 'middle') if len(rounds) > 1 else ''}"
    f"{''.join(rings)}"
    f'<polyline class="kept" points="{" ".join(",".join(p) for p in line)}"/>{dots}</svg>'
  )


def tree(number, trace, losers, cuts):
  """One trace as rounds of candidate cards. losers: (chunk, branch) -> (text, tokens or None)."""
  outcome, rounds, start = trace["outcome"], [], 50.0
  widest = max((len(r["scores"]) for r in trace["rounds"]), default=1)
  tall = widest > 5 or max((len(r["text"]) for r in trace["rounds"]), default=0) > 320
  shown = LONG // 2 if tall else LONG
  for i, entry in enumerate(trace["rounds"]):
    mine = {branch: v for (chunk, branch), v in losers.items() if chunk == i}
    drawn, after = _round(i + 1, entry, mine, start, cuts)
    rounds.append(drawn)
    start = 50.0 if after is None else after
  if len(rounds) > shown:
    rounds[shown:] = [
      f"<details class=more><summary>{len(rounds) - shown} more rounds</summary>",
      *rounds[shown:],
      "</details>",
    ]
  gold, length = escape(trace["answer"]), fixed(trace["length"], 0)
  said = {
    "right": f"the answer agrees with {gold}",
    "wrong": f"the gold answer is {gold}",
    "pruned": "no candidate was suitable for the student, so the trace ended here",
  }
  words = said.get(outcome, "") + ("; cut at the length limit" if trace["stop"] == "length" else "")
  cls = outcome if outcome in OUTCOMES else "unverifiable"
  badge = f'<span class="outcome {cls}">{escape(OUTCOMES.get(outcome, outcome))}</span>'
  about = " · ".join(
    escape(x)
    for x in (trace["source"], f"level {trace['level']}")
    if x not in (None, "", "level None")
  )
  link = _curves([(start, 50, "kept")]) if outcome != "pruned" else ""
  is_open = "" if tall and number > 1 else " open"
  return (
    f'<details class="tree {cls}"{is_open} data-outcome="{cls}"><summary><b>Problem {number}'
    f"</b> {badge}<small>{about}</small></summary><div class=head><div><p class=problem "
    f"dir=auto>{escape(trace['problem'])}</p><p class=gold>Gold answer <b>{gold}</b></p>"
    f"</div>{_path(trace)}</div><div class='rounds{' tall' * tall}'>{''.join(rounds)}"
    f"<div class=round>{link}<div class=row><p class='finish {cls}'>{badge} {words}"
    f"<small>{length} tokens, {fixed(trace['nll'], 3)} nats per token</small></p></div></div>"
    "</div></details>"
  )
