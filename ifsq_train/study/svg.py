"""Line plots as small SVG files: the same bytes for the same numbers, on any machine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_COLORS = ("#3b5bdb", "#f08c00", "#2b8a3e", "#c2255c", "#5f3dc4", "#868e96", "#0b7285")
_WIDTH, _HEIGHT = 560, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 150, 34, 46


@dataclass(frozen=True)
class Series:
    """One line.

    Attributes:
        name: for the legend.
        points: x, mean and deviation, in the order they are joined.
        names: shown at the points, one each; empty for none.
        dashed: a fitted line rather than measurements.
    """

    name: str
    points: Sequence[tuple[float, float, float]]
    names: Sequence[str] = ()
    dashed: bool = False


def line_plot(title: str, x: str, y: str, lines: Sequence[Series], *, log: bool = False) -> str:
    """An SVG document; empty if there is no point.

    Args:
        title: of the plot.
        x, y: names of the axes.
        lines: what is drawn; deviations become bars.
        log: logarithmic x; points at or below 0 are left out.
    """
    lines = [_kept(line, log) for line in lines]
    points = [point for line in lines for point in line.points]
    if not points:
        return ""
    place = _Scale(points, log)
    marks = [_axes(place, x, y, log)]
    for number, line in enumerate(lines):
        marks.append(_line(place, line, _COLORS[number % len(_COLORS)]))
    if len(lines) > 1:
        marks.append(_legend(lines))
    head = f'<text x="{_LEFT}" y="18" font-size="13" font-weight="600">{escape(title)}</text>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
        f' width="{_WIDTH}" height="{_HEIGHT}" font-family="sans-serif" font-size="11"'
        f' fill="#333"><rect width="100%" height="100%" fill="#fff"/>{head}'
        + "".join(marks)
        + "</svg>\n"
    )


def _kept(line: Series, log: bool) -> Series:
    if not log:
        return line
    keep = [place for place, point in enumerate(line.points) if point[0] > 0]
    names = [line.names[place] for place in keep] if line.names else ()
    return Series(line.name, [line.points[place] for place in keep], names, line.dashed)


class _Scale:
    """Numbers to places in the drawing."""

    def __init__(self, points: Sequence[tuple[float, float, float]], log: bool) -> None:
        self.log = log
        xs = [self._warp(point[0]) for point in points]
        lows = [mean - deviation for _, mean, deviation in points]
        highs = [mean + deviation for _, mean, deviation in points]
        self.low_x, self.high_x = _spread(min(xs), max(xs))
        self.low_y, self.high_y = _spread(min(lows), max(highs))

    def _warp(self, x: float) -> float:
        return math.log10(x) if self.log else x

    def x(self, value: float) -> float:
        """Pixels from the left."""
        share = (self._warp(value) - self.low_x) / (self.high_x - self.low_x)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        """Pixels from the top."""
        share = (value - self.low_y) / (self.high_y - self.low_y)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _spread(low: float, high: float) -> tuple[float, float]:
    room = (high - low) * 0.06 or abs(high) * 0.06 or 1.0
    return low - room, high + room


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between two, about five of them."""
    raw = (high - low) / 5.0
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw)
    first = math.ceil(low / step)
    return [place * step for place in range(first, math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(low), math.ceil(high) + 1)
    factors = (1,) if high - low > 3 else (1, 2, 5)
    found = [factor * 10.0**decade for decade in decades for factor in factors]
    return [value for value in found if low <= math.log10(value) <= high]


def _axes(place: _Scale, x: str, y: str, log: bool) -> str:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    xs = _log_ticks(place.low_x, place.high_x) if log else _ticks(place.low_x, place.high_x)
    parts = [
        f'<text x="{place.x(value):.1f}" y="{bottom + 16}" text-anchor="middle">{value:.3g}</text>'
        for value in xs
    ]
    parts += [
        f'<path d="M{_LEFT} {place.y(value):.1f}H{right}" stroke="#ddd"/>'
        f'<text x="{_LEFT - 6}" y="{place.y(value) + 4:.1f}" text-anchor="end">{value:.4g}</text>'
        for value in _ticks(place.low_y, place.high_y)
    ]
    middle = (_TOP + bottom) // 2
    parts += [
        f'<path d="M{_LEFT} {_TOP}V{bottom}H{right}" stroke="#333" fill="none"/>',
        f'<text x="{(_LEFT + right) // 2}" y="{_HEIGHT - 10}" text-anchor="middle">'
        f"{escape(x)}</text>",
        f'<text transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">'
        f"{escape(y)}</text>",
    ]
    return "".join(parts)


def _line(place: _Scale, line: Series, color: str) -> str:
    spots = [(place.x(x), place.y(mean)) for x, mean, _ in line.points]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in spots)
    dash = ' stroke-dasharray="5 4"' if line.dashed else ""
    parts = [f'<path d="M{path}" fill="none" stroke="{color}" stroke-width="1.6"{dash}/>']
    if line.names:
        parts = []
    if line.dashed:
        return "".join(parts)
    for (x, y), (_, mean, deviation) in zip(spots, line.points, strict=True):
        low, high = place.y(mean - deviation), place.y(mean + deviation)
        parts.append(f'<path d="M{x:.1f} {low:.1f}V{high:.1f}" stroke="{color}"/>')
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>')
    for (x, y), name in zip(spots, line.names, strict=False):
        parts.append(f'<text x="{x + 5:.1f}" y="{y - 5:.1f}" font-size="9">{escape(name)}</text>')
    return "".join(parts)


def _legend(lines: Sequence[Series]) -> str:
    left = _WIDTH - _RIGHT + 12
    return "".join(
        f'<rect x="{left}" y="{_TOP + 18 * number}" width="10" height="10"'
        f' fill="{_COLORS[number % len(_COLORS)]}"/>'
        f'<text x="{left + 16}" y="{_TOP + 18 * number + 9}">{escape(line.name)}</text>'
        for number, line in enumerate(lines)
    )
