"""Line charts and reliability diagrams as inline SVG, in the colours of the page around them (`style.STYLE`)."""

import html
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from linseed.trainer.report.reliability import Bin

_WIDTH, _HEIGHT = 340, 230  # in the units of the drawing; the page scales it to its column
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 12, 40  # margins
_MOST_POINTS = 400  # of a line: more cannot be told apart
_TICKS = 5


class Line(NamedTuple):
    """A line of a chart. look: its class in the page's style, "train", "val" or "even". xs, ys: finite numbers."""

    name: str
    look: str
    xs: Sequence[float]
    ys: Sequence[float]


def line_chart(
    lines: Sequence[Line],
    *,
    alt: str,
    x_name: str,
    write: Callable[[float], str],
    mark: tuple[float, float] | None = None,
    from_zero: bool = False,
) -> str:
    """An `<svg>` of `lines`. alt: the text for screen readers. write: a number of the y axis as text. xs: at least 0.
    mark: a point to stand out. "" where no line has a point."""
    lines = [line for line in lines if len(line.xs)]
    if not lines:
        return ""
    ys = [y for line in lines for y in line.ys]
    low, high = (0.0 if from_zero else min(ys)), max(ys)
    last = max(x for line in lines for x in line.xs)
    axes = _Axes(_ticks(0.0, last), _ticks(low, high), end=last)
    parts = axes.drawn(x_name=x_name, write_x="{:g}".format, write_y=write)
    parts += [_polyline(axes, line) for line in lines]
    if mark:
        parts.append(f'<circle class="best" cx="{axes.x(mark[0]):.1f}" cy="{axes.y(mark[1]):.1f}" r="4.5"/>')
    return _svg(parts, alt=alt)


def reliability(before: Sequence[Bin], after: Sequence[Bin], *, alt: str) -> str:
    """An `<svg>` of accuracy over confidence, with the 95 % interval of each bin: hollow before, full after scaling."""
    axes = _Axes((0.0, 0.25, 0.5, 0.75, 1.0), (0.0, 0.25, 0.5, 0.75, 1.0), end=1.0)
    parts = axes.drawn(x_name="confidence", write_x="{:.0%}".format, write_y="{:.0%}".format)
    parts.append(_polyline(axes, Line("", "even", (0, 1), (0, 1))))
    for look, found in (("train", before), ("val", after)):
        parts.append(_polyline(axes, Line("", look, [b.confidence for b in found], [b.accuracy for b in found])))
        for each in found:
            x, y = axes.x(each.confidence), axes.y(each.accuracy)
            parts.append(f'<path class="{look}" d="M{x:.1f} {axes.y(each.low):.1f}V{axes.y(each.high):.1f}"/>')
            parts.append(f'<circle class="{look}" cx="{x:.1f}" cy="{y:.1f}" r="3.2"/>')
    return _svg(parts, alt=alt)


class _Axes:
    """Where numbers are drawn. xs, ys: the ticks, ascending; x goes from 0 to `end`, y from the first to the last."""

    def __init__(self, xs: Sequence[float], ys: Sequence[float], *, end: float):
        self.end = end or 1.0
        self.xs, self.ys = [x for x in xs if x <= self.end], ys

    def x(self, value: float) -> float:
        return _LEFT + value / self.end * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        share = min(1.0, max(0.0, (value - self.ys[0]) / (self.ys[-1] - self.ys[0])))
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    def drawn(self, *, x_name, write_x, write_y) -> list[str]:
        """The grid and its numbers."""
        bottom = _HEIGHT - _BOTTOM
        parts = [f'<path class="grid" d="M{_LEFT} {self.y(tick):.1f}H{_WIDTH - _RIGHT}"/>' for tick in self.ys]
        parts += [
            f'<text x="{_LEFT - 6}" y="{self.y(tick) + 4:.1f}" text-anchor="end">{html.escape(write_y(tick))}</text>'
            for tick in self.ys
        ]
        parts += [
            f'<text x="{self.x(tick):.1f}" y="{bottom + 16}" text-anchor="middle">{html.escape(write_x(tick))}</text>'
            for tick in self.xs
        ]
        middle = (_LEFT + _WIDTH - _RIGHT) / 2
        parts.append(f'<text x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">{html.escape(x_name)}</text>')
        return parts


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers 1, 2 or 5 times a power of ten apart, from at most `low` to at least `high`."""
    if high <= low:
        low, high = (low - abs(low) / 2, low + abs(low) / 2) if low else (0.0, 1.0)
    raw = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(digit * power for digit in (1, 2, 5, 10) if digit * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def _polyline(axes, line):
    every = -(-len(line.xs) // _MOST_POINTS)
    points = list(zip(line.xs, line.ys, strict=True))
    points = [*points[:-1:every], points[-1]]
    written = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in points)
    title = f"<title>{html.escape(line.name)}</title>" if line.name else ""
    dot = f'<circle class="{line.look}" cx="{axes.x(points[0][0]):.1f}" cy="{axes.y(points[0][1]):.1f}" r="3"/>'
    dot *= len(points) == 1  # a line of one point is not seen
    return f'<polyline class="{line.look}" points="{written}">{title}</polyline>{dot}'


def _svg(parts, *, alt):
    inside = "".join(parts)
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(alt)}">{inside}</svg>'
