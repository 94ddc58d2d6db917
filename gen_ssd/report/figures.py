"""Figures of the page and of a sweep: SVG made from plain numbers and strings.

Every mark has a shape or a word as well as a colour. Coordinates are SVG user units. All results
are `markupsafe.Markup`: strings of a run enter them through `Markup.format`, which escapes them.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
import math
from pathlib import Path
import statistics
from typing import NamedTuple

from markupsafe import Markup

WIDTH = 440  # of a panel
LEFT, RIGHT = 24, 416  # its plotting area
ROW, HILL = 50, 92  # heights of a row of intervals and of a histogram
THIN, FEW = 22, 12  # height of a row of one line of text; rows of intervals that need none
DENSE_LABEL = 21  # characters of a name in such a row
WIDE_LEFT, WIDE_RIGHT = 6, 434  # its name and its words
STYLE = Markup((Path(__file__).parent / "page.css").read_text(encoding="utf-8"))
Interval = tuple[float, float]


class Panel(NamedTuple):
  """One figure, WIDTH wide: `marks` are SVG elements in its coordinates."""

  title: str
  hint: str
  height: float
  marks: Markup


class Estimate(NamedTuple):
  """A row of `intervals`: a value, its interval and `words` on the right, in the look of an arm."""

  look: int
  label: str
  value: float
  interval: Interval | None
  words: str
  dots: Sequence[float] = ()  # more values, drawn as small rings


class Reference(NamedTuple):
  """A value that the rows of `intervals` are seen against, and `words` on the right."""

  label: str
  value: float
  words: str


class Sample(NamedTuple):
  """A histogram of `ridges`: values, at least one."""

  look: int
  label: str
  values: list[float]


def fixed(x: float | None, digits: int = 2, scale: float = 1, unit: str = "") -> str:
  """x with a fixed number of decimals, an en dash for None."""
  return "–" if x is None else f"{x * scale:,.{digits}f}{unit}"


def join(parts: Iterable) -> Markup:
  """The parts in one; whatever is not Markup is escaped."""
  return Markup("").join(parts)


def text(x: float, y: float, words: object, cls: str = "", anchor: str = "start") -> Markup:
  return Markup('<text x="{:.1f}" y="{:.1f}" class="{}" text-anchor="{}">{}</text>').format(
    x, y, cls, anchor, words
  )


_PLUS = [(-0.4, -1.1), (0.4, -1.1), (0.4, -0.4), (1.1, -0.4), (1.1, 0.4), (0.4, 0.4)]
_PLUS += [(-a, -b) for a, b in _PLUS]
_SHAPES = (
  ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
  ((0, -1.2), (1.1, 0.8), (-1.1, 0.8)),
  ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
  ((0, 1.2), (1.1, -0.8), (-1.1, -0.8)),
  tuple(_PLUS),
  tuple(((a - b) * math.sqrt(0.5), (a + b) * math.sqrt(0.5)) for a, b in _PLUS),
  ((-0.5, -1.1), (0.5, -1.1), (1.1, 0), (0.5, 1.1), (-0.5, 1.1), (-1.1, 0)),
)


def mark(look: int, x: float, y: float, radius: float = 5.5, hollow: bool = False) -> Markup:
  """The mark of arm number `look`: eight colours and eight shapes, 64 pairs before one repeats."""
  shape, cls = (look + look // 8) % 8, f"mark a{look % 8}{' hollow' * hollow}"
  if shape == 0:
    return Markup(f'<circle class="{cls}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>')
  points = " ".join(f"{x + radius * a:.1f},{y + radius * b:.1f}" for a, b in _SHAPES[shape - 1])
  return Markup(f'<polygon class="{cls}" points="{points}"/>')


def svg(panels: Sequence[Panel], columns: int = 1) -> Markup:
  """An SVG file of its own: the panels in `columns` columns, row by row."""
  step, top, drawn = WIDTH + 30, 0.0, []
  for start in range(0, len(panels), columns):
    group = panels[start : start + columns]
    for i, p in enumerate(group):
      drawn.append(
        Markup(
          '<g transform="translate({} {})">{}{}<g transform="translate(0 60)">{}</g></g>'
        ).format(
          step * i + 15, top, text(8, 28, p.title, "name"), text(8, 46, p.hint, "tick"), p.marks
        )
      )
    top += max(p.height for p in group) + 72
  width = step * min(columns, max(len(panels), 1))
  return Markup(
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {:.0f}" width="{}" height="{:.0f}" '
    'style="max-width: 100%; height: auto" font-family="system-ui, sans-serif"><style>{}</style>'
    '<rect width="100%" height="100%" fill="var(--card)"/>{}</svg>\n'
  ).format(width, top, width, top, STYLE, join(drawn))


# ---------------------------------------------------------------- panels


def intervals(
  title: str,
  hint: str,
  rows: Sequence[Estimate],
  show: Callable[[float], str],
  zero: bool = False,
  references: Sequence[Reference] = (),
) -> Panel:
  """Panel of a value with whiskers per row; `show` prints a value of the axis.

  With `zero` a line marks 0, and a mark whose interval includes 0 is hollow. `references` have a
  dashed line each. More than FEW rows are one line of text high each.
  """
  low, high = span(rows, references, zero)
  dense = len(rows) > FEW
  top, height = THIN * len(references), THIN if dense else ROW
  bottom = top + height * len(rows) + 6
  left, right = (WIDE_LEFT + 180, WIDE_RIGHT - 76) if dense else (LEFT, RIGHT)

  def at(v):
    return left + (v - low) / (high - low) * (right - left)

  marks = [_axis(ticks(low, high, 3 if dense else 5), at, bottom, show)]
  if zero:
    marks.append(Markup(f'<path class="zero" d="M{at(0):.1f} 0V{bottom}"/>'))
  marks += [_reference(r, THIN * i, at, bottom) for i, r in enumerate(references)]
  for i, r in enumerate(rows):
    y = top + height * i + (THIN // 2 if dense else 36)
    marks.append(_estimate(r, y, at, show, zero, dense))
  return Panel(title, hint, bottom + 24, join(marks))


def span(
  rows: Sequence[Estimate], references: Sequence[Reference] = (), zero: bool = False
) -> Interval:
  """The ends of the axis of `intervals`."""
  ends = [v for r in rows for v in (r.value, *(r.interval or ()), *r.dots)] + [0.0] * zero
  ends += [r.value for r in references]
  return padded(min(ends), max(ends), 0.06)


def _reference(row, y, at, bottom):
  """A line of text, and a dashed line at its value down through the rows."""
  return Markup('<path class="against" d="M{:.1f} {}V{}"/>{}{}').format(
    at(row.value),
    y + 4,
    bottom,
    text(LEFT, y + 14, row.label, "tick value"),
    text(RIGHT, y + 14, row.words, "tick value", "end"),
  )


def _estimate(row, y, at, show, zero, dense):
  """A row whose mark is at height y; its words are beside the mark when `dense`, else above."""
  tip, line, ci = f"{row.label}: {show(row.value)}", "", row.interval
  if ci:
    tip += f", interval {show(ci[0])} to {show(ci[1])}"
    ends = "".join(f"M{at(v):.1f} {y - 5}v10" for v in ci)
    path = f"M{at(ci[0]):.1f} {y}H{at(ci[1]):.1f}{ends}"
    line = Markup(f'<path class="whisker a{row.look % 8}" d="{path}"/>')
  hollow = zero and bool(ci) and ci[0] <= 0 <= ci[1]
  dots = join(Markup(f'<circle class="ring" cx="{at(v):.1f}" cy="{y}" r="2.5"/>') for v in row.dots)
  return Markup("<g><title>{}</title>{}{}{}{}</g>").format(
    tip,
    _thin_labels(y + 4, row.label, row.words) if dense else _labels(y - 17, row.label, row.words),
    line,
    dots,
    mark(row.look, at(row.value), y, 5 if dense else 6.5, hollow),
  )


def ridges(
  title: str,
  hint: str,
  rows: Sequence[Sample],
  show: Callable[[float], str],
  tell: Callable[[float], str],
  integer: bool = False,
) -> Panel:
  """Panel of histograms under one another, with one axis and one scale of heights.

  `show` prints a value of the axis, `tell` a median; `integer` says that the values are integers.
  """
  pool = sorted(v for row in rows for v in row.values)
  low, high = pool[0], pool[min(len(pool) - 1, math.ceil(0.995 * len(pool)))]
  step = (high - low) / 30 or 0.1
  if integer:  # bins hold equally many integers, or their heights would alternate
    low, step = math.floor(low) - 0.5, max(1, math.ceil((high - low + 1) / 30))
  bins = math.floor((high - low) / step) + 1
  end = low + bins * step

  def at(v):
    return LEFT + (min(v, end) - low) / (end - low) * (RIGHT - LEFT)

  shares = []
  for row in rows:
    counts = [0] * bins
    for v in row.values:
      counts[min(bins - 1, int((v - low) / step))] += 1
    shares.append([c / len(row.values) for c in counts])
  tallest, bottom, beyond = max(map(max, shares)), HILL * len(rows), sum(v > end for v in pool)
  marks = [_axis(ticks(low, end), at, bottom, show)]
  for i, (row, share) in enumerate(zip(rows, shares)):
    outline = [(at(low + (j + 1) * step), 48 * s / tallest) for j, s in enumerate(share)]
    marks.append(_hill(row, outline, HILL * (i + 1), at, tell))
  hint += f"; the last bar also holds {beyond} beyond the axis" if beyond else ""
  return Panel(title, hint, bottom + 24, join(marks))


def _hill(row, outline, y, at, tell):
  """One histogram on the line y. outline: (right end, height) of every bar."""
  bars = "".join(f"V{y - height:.1f}H{right:.1f}" for right, height in outline)
  middle = statistics.median(row.values)
  after = at(middle) < (LEFT + RIGHT) / 2  # the median's words go to the side that has room
  return Markup("<g><title>{}: median {}</title>{}{}{}{}</g>").format(
    row.label,
    tell(middle),
    Markup(
      f'<path class="hill a{row.look % 8}" d="M{LEFT} {y}{bars}V{y}Z"/>'
      f'<path class="base" d="M{LEFT} {y}H{RIGHT}"/>'
      f'<path class="median" d="M{at(middle):.1f} {y}v-54"/>'
    ),
    mark(row.look, at(middle), y - 54, 5),
    text(at(middle) + (9 if after else -9), y - 50, tell(middle), "", "start" if after else "end"),
    _labels(y - 72, row.label, f"n {len(row.values):,}"),
  )


# ---------------------------------------------------------------- axes and labels


def padded(low, high, share):
  pad = (high - low) * share or max(0.01, abs(high) * 0.05)
  return low - pad, high + pad


def ticks(low, high, count=5):
  raw = (high - low) / count or 1.0
  size = 10 ** math.floor(math.log10(raw))
  step = next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= raw * 0.999)
  first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
  return [i * step + 0.0 for i in range(first, last + 1)]


def _axis(ticks, at, bottom, show):
  return join(
    Markup(f'<path class="grid" d="M{at(t):.1f} 0V{bottom}"/>')
    + text(at(t), bottom + 17, show(t), "tick", "middle")
    for t in ticks
  )


def clipped(label, most):
  return label if len(label) <= most else f"{label[: most - 1]}…"


def _labels(y, label, words):
  """An arm's name on the left, cut where it would meet the words on the right."""
  room = int((RIGHT - LEFT - 9.2 * len(words) - 8) / 10.4)  # in the larger type of a narrow page
  return text(LEFT, y, clipped(label, room), "name") + text(RIGHT, y, words, "value", "end")


def _thin_labels(y, label, words):
  return text(WIDE_LEFT, y, clipped(label, DENSE_LABEL), "name thin") + text(
    WIDE_RIGHT, y, words, "value thin", "end"
  )
