"""Lines over an axis: one point per named place, or a series of numbers."""

from collections.abc import Callable
from collections.abc import Sequence
import math
from typing import NamedTuple

from markupsafe import Markup

from gen_ssd.report import figures
from gen_ssd.report.figures import LEFT
from gen_ssd.report.figures import RIGHT

OUTER, BOTTOM = LEFT + 44, 170  # left and lower edge of the lines
MOST_LABEL = 22  # characters of a label
MOST_ROWS = 4  # of names below the axis
LETTER, LINE = 8.3, 15  # width of a character and height of a line in the type of a narrow page


class Point(NamedTuple):
  """A point of a line of `curves`, at a named place of the x axis."""

  place: str
  value: float
  interval: figures.Interval | None = None


class Line(NamedTuple):
  look: int
  label: str
  points: list[Point]


class Series(NamedTuple):
  look: int
  label: str
  points: list[tuple[float, float]]


def curves(
  title: str,
  hint: str,
  lines: Sequence[Line],
  show: Callable[[float], str],
  joined: bool = True,
  places: Sequence[str] = (),
) -> figures.Panel:
  """Panel of lines over named places: `places`, then others in the order in which lines name them."""
  places = list(dict.fromkeys([*places, *(p.place for line in lines for p in line.points)]))
  ends = [v for line in lines for p in line.points for v in (p.value, *(p.interval or ()))]
  y, marks = _vertical(ends, show)
  left, right = OUTER + 16, RIGHT - 20 - _room(lines)

  def x(place):
    return left + places.index(place) * (right - left) / max(len(places) - 1, 1)

  step = (right - left) / max(len(places) - 1, 1)
  names, lower = _places(places, x, step)
  marks += names
  apart = min(5, step / 2 / len(lines))  # whiskers of several lines stand side by side
  first = -apart * (len(lines) - 1) / 2
  drawn = [
    _curve(line, lambda p, i=i: x(p) + first + apart * i, y, show, joined)
    for i, line in enumerate(lines)
  ]
  marks += [part for parts in zip(*drawn) for part in parts]  # all lines below all marks
  tips = [(line, x(line.points[-1].place) - first, y(line.points[-1].value)) for line in lines]
  return _panel(title, hint, marks, tips if len(lines) > 1 else [], lower)


def _places(places, x, step):
  """The names below the axis, `step` apart, in as many rows as they need, of at most MOST_ROWS.

  Returns them, and the height of all rows but the first.
  """
  rows = min(math.ceil((max(map(len, places)) + 1) * LETTER / step), MOST_ROWS, len(places))
  most = max(int(rows * step / LETTER) - 1, 3)
  names = [
    figures.text(x(p), BOTTOM + 18 + LINE * (i % rows), figures.clipped(p, most), "tick", "middle")
    for i, p in enumerate(places)
  ]
  return names, LINE * (rows - 1)


def series(
  title: str, hint: str, lines: Sequence[Series], show: Callable[[float], str]
) -> figures.Panel:
  """Panel of lines through many points of two numbers each; a mark and a label end every line.

  A line with an empty label has neither a label nor a mark.
  """
  y, marks = _vertical([v for line in lines for _, v in line.points], show)
  ends = [a for line in lines for a, _ in line.points]
  low, high = min(ends), max(ends)
  left, right = OUTER, RIGHT - 12 - _room(lines, 1)

  def x(a):
    return left + (a - low) * (right - left) / ((high - low) or 1)

  for t in figures.ticks(low, high, 4):
    marks.append(figures.text(x(t), BOTTOM + 18, f"{t:,.10g}", "tick", "middle"))
  tips = []
  for line in lines:
    points = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in line.points)
    a, b = line.points[-1]
    marks.append(
      Markup(
        '<g><title>{}: {} at {:,.10g}</title><polyline class="curve thin a{}" points="{}"/>{}</g>'
      ).format(
        line.label,
        show(b),
        a,
        line.look % 8,
        points,
        figures.mark(line.look, x(a), y(b), 4) if line.label else "",
      )
    )
    if line.label:
      tips.append((line, x(a), y(b)))
  return _panel(title, hint, marks, tips)


def _room(lines, fewest=2):
  """Width that labels take of that of the lines: none for fewer than `fewest` lines."""
  longest = max(len(line.label) for line in lines)
  margin = figures.WIDTH - RIGHT  # labels may stand in it
  return max(LETTER * min(longest, MOST_LABEL) - margin, 0) if len(lines) >= fewest else 0


def _vertical(values, show):
  """The place of a value on the vertical axis, and the marks of the axis."""
  low, high = figures.padded(min(values), max(values), 0.08)

  def y(v):
    return 8 + (high - v) / (high - low) * (BOTTOM - 8)

  return y, [
    Markup(f'<path class="grid" d="M{OUTER} {y(t):.1f}H{RIGHT}"/>')
    + figures.text(OUTER - 6, y(t) + 4, label, "tick", "end")
    for label, t in {show(t): t for t in figures.ticks(low, high, 4)}.items()
  ]


def _panel(title, hint, marks, tips, lower=0):
  """The panel, with a label at each of `tips`, (line, x, y): each is below the one above.

  They end where the axis does, if there is room for all of them above it.
  """
  tips = sorted(tips, key=lambda tip: tip[2])
  lowest = -math.inf
  for i, (line, x, y) in enumerate(tips):
    below = LINE * (len(tips) - 1 - i)
    lowest = max(min(y + 4, BOTTOM - below), lowest + LINE, 12)
    marks.append(figures.text(x + 10, lowest, figures.clipped(line.label, MOST_LABEL), "tick"))
  return figures.Panel(title, hint, max(BOTTOM + 28 + lower, lowest + 8), figures.join(marks))


def _curve(line, x, y, show, joined):
  """Its line with the whiskers, and its marks."""
  cls, under, marks = f"a{line.look % 8}", [], []
  if joined:
    points = " ".join(f"{x(p.place):.1f},{y(p.value):.1f}" for p in line.points)
    under.append(Markup(f'<polyline class="curve {cls}" points="{points}"/>'))
  for p in line.points:
    if p.interval:
      low, high = map(y, p.interval)
      ends = "".join(f"M{x(p.place) - 4:.1f} {end:.1f}h8" for end in (low, high))
      path = f"M{x(p.place):.1f} {low:.1f}V{high:.1f}{ends}"
      under.append(Markup(f'<path class="whisker {cls}" d="{path}"/>'))
    marks.append(
      Markup("<g><title>{}, {}: {}</title>{}</g>").format(
        line.label, p.place, show(p.value), figures.mark(line.look, x(p.place), y(p.value), 5)
      )
    )
  return figures.join(under), figures.join(marks)
