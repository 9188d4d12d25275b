"""Figures of a report, and the charts that are drawn as SVG with the colours of the page around them."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from gradpath.errors import InputError

# Ten hues that stay apart on white and on near-black, and for most colour-blind readers.
PALETTE = (
    "#4269d0", "#efb118", "#ff725c", "#3ca9a0", "#9c6b4e",
    "#a463f2", "#3ca951", "#ff8ab7", "#97bbf5", "#9498a0",
)  # fmt: skip

_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 12, 40


@dataclass(frozen=True)
class Figure:
    """One picture of a report: a title, a sentence that says what to see, and exactly one content.

    Args:
        title: Heading of the figure.
        caption: What the picture shows.
        png: Image file as bytes.
        mp4: Video file as bytes (H.264, for browsers).
        svg: SVG element as text; `currentColor` follows the light or dark page.
        html: Any HTML without external resources.
        wide: Whether the figure spans the page instead of one of two columns.
    Raises:
        InputError: not exactly one content.
    """

    title: str
    caption: str = ""
    png: bytes | None = None
    mp4: bytes | None = None
    svg: str | None = None
    html: str | None = None
    wide: bool = False

    def __post_init__(self) -> None:
        given = [name for name in ("png", "mp4", "svg", "html") if getattr(self, name) is not None]
        if len(given) != 1:
            raise InputError(
                f'figure "{self.title}": give exactly one of png, mp4, svg and html, got {given}'
            )

    def content(self) -> str:
        """Return the picture as HTML that needs no other file."""
        if self.png is not None:
            data = base64.b64encode(self.png).decode()
            return f'<img alt="{escape(self.title)}" src="data:image/png;base64,{data}">'
        if self.mp4 is not None:
            data = base64.b64encode(self.mp4).decode()
            return f'<video controls loop muted playsinline src="data:video/mp4;base64,{data}"></video>'
        return self.svg if self.svg is not None else str(self.html)


@dataclass(frozen=True)
class Series:
    """One line of a chart. Points whose y is None (or, on a log axis, not positive) leave a gap."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    smooth: int = field(default=0)
    """Window [points] of a running mean drawn over the faint raw line; 0 draws the raw line only."""


def line_chart(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str = "",
    log: bool = False,
    percent: bool = False,
    size: tuple[int, int] = (560, 300),
) -> str:
    """Draw lines over a common x axis.

    Args:
        series: The lines, in the order of the legend and the colours.
        x_label: Label of the x axis, with the unit.
        y_label: Label of the y axis, with the unit.
        log: Logarithmic y axis.
        percent: y values are shares in [0, 1], shown as 0 to 100 %.
        size: Width and height of the drawing [px].
    Returns:
        A legend and an SVG element, as HTML; a sentence where there is nothing to draw.
    """
    points = [p for s in series for p in zip(s.x, s.y, strict=True) if _drawable(p[1], log)]
    if not points:
        return '<p class="empty">no finite values to draw</p>'
    axes = _Axes(points, log, percent, size)
    lines = "".join(_draw_series(axes, item, i) for i, item in enumerate(series))
    label = f'<text class="label" x="{_LEFT}" y="{_TOP - 1}">{escape(y_label)}</text>' if y_label else ""
    width, height = size
    svg = (
        f'<svg class="chart" viewBox="0 -6 {width} {height + 6}" role="img" '
        f'aria-label="{escape(y_label or x_label)}">'
        f"{axes.draw(x_label)}{lines}{label}</svg>"
    )
    return (legend([s.name for s in series]) if len(series) > 1 else "") + svg


def legend(names: Sequence[str]) -> str:
    """Return the names with the colours that `line_chart` gives them."""
    items = (
        f'<span><svg class="key" viewBox="0 0 18 4"><path class="line" {_stroke(i)} d="M1 2H17"/></svg>'
        f"{escape(name)}</span>"
        for i, name in enumerate(names)
    )
    return f'<div class="legend">{"".join(items)}</div>'


def interval_bar(share: float, low: float, high: float) -> str:
    """Draw a share in [0, 1] as a bar with its confidence interval."""
    x, a, b = (round(4 + 192 * min(1.0, max(0.0, value)), 1) for value in (share, low, high))
    return (
        '<svg class="interval" viewBox="0 0 200 18" preserveAspectRatio="xMinYMid" aria-hidden="true">'
        '<rect class="track" x="4" y="6" width="192" height="6" rx="3"/>'
        f'<rect class="fill" x="4" y="6" width="{max(0.0, x - 4):.1f}" height="6" rx="3"/>'
        f'<path class="whisker" d="M{a} 9H{b}M{a} 4V14M{b} 4V14"/></svg>'
    )


def table(rows: Mapping[str, str], mono: bool = False) -> str:
    """Return names and texts as a two-column HTML table."""
    body = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in rows.items())
    return f"<table{' class=mono' if mono else ''}>{body}</table>"


class _Axes:
    """Data ranges, their ticks, and the map from data to pixels."""

    def __init__(
        self, points: Sequence[tuple[float, float | None]], log: bool, percent: bool, size: tuple[int, int]
    ) -> None:
        self.log, self.percent = log, percent
        self.width, self.height = size
        xs = [float(x) for x, _ in points]
        ys = [self._scale(float(y)) for _, y in points if y is not None]
        self.x_ticks = nice_ticks(min(xs), max(xs), 6)
        if all(x.is_integer() for x in xs):
            self.x_ticks = [tick for tick in self.x_ticks if tick.is_integer()]
        self.x_range = (min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1)
        if percent:
            self.y_ticks, self.y_range = [0.0, 0.25, 0.5, 0.75, 1.0], (0.0, 1.0)
        elif log:
            first, last = math.floor(min(ys)), math.ceil(max(ys))
            last += last == first
            stride = max(1, math.ceil((last - first) / 6))
            self.y_ticks, self.y_range = [float(t) for t in range(first, last + 1, stride)], (first, last)
        else:
            low, high = min(ys), max(ys)
            high += (high == low) * (abs(high) or 1.0)
            self.y_ticks = nice_ticks(low, high, 5)
            self.y_range = (min(low, self.y_ticks[0]), max(high, self.y_ticks[-1]))

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Return the pixel of a data point."""
        return self._x(x), self._y(self._scale(y))

    def draw(self, x_label: str) -> str:
        """Return grid lines, tick labels and the label of the x axis."""
        right, bottom = self.width - _RIGHT, self.height - _BOTTOM
        parts = []
        for tick in self.y_ticks:
            y = self._y(tick)
            parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{right}"/>')
            parts.append(
                f'<text class="tick end" x="{_LEFT - 8}" y="{y + 4:.1f}">{self._y_text(tick)}</text>'
            )
        for tick in self.x_ticks:
            x = self._x(tick)
            if x <= right + 1:
                parts.append(f'<text class="tick mid" x="{x:.1f}" y="{bottom + 18}">{tick:g}</text>')
        parts.append(f'<path class="axis" d="M{_LEFT} {bottom}H{right}"/>')
        parts.append(f'<text class="label end" x="{right}" y="{self.height - 6}">{escape(x_label)}</text>')
        return "".join(parts)

    def _scale(self, y: float) -> float:
        return math.log10(y) if self.log else y

    def _x(self, x: float) -> float:
        low, high = self.x_range
        return _LEFT + (x - low) / (high - low) * (self.width - _LEFT - _RIGHT)

    def _y(self, y: float) -> float:
        low, high = self.y_range
        return self.height - _BOTTOM - (y - low) / (high - low) * (self.height - _TOP - _BOTTOM)

    def _y_text(self, tick: float) -> str:
        if self.percent:
            return f"{100 * tick:.0f} %"
        if self.log:
            small = f'<tspan dy="-5" font-size="9">{tick:g}</tspan>'
            return f"{10**tick:g}" if -2 <= tick <= 3 else f"10{small}"
        return f"{tick:g}"


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """Return about `count` round numbers that cover [low, high]."""
    span = (high - low) or 1.0
    raw = span / max(1, count)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(step * i, 12) for i in range(first, last + 1)]


def _drawable(y: float | None, log: bool) -> bool:
    return y is not None and math.isfinite(y) and (y > 0 or not log)


def _stroke(index: int) -> str:
    """Return the attributes of the line of a series; past the last colour they begin again, dashed."""
    turn, place = divmod(index, len(PALETTE))
    dashes = f' stroke-dasharray="{6 / turn:.1f} 4"' if turn else ""
    return f'stroke="{PALETTE[place]}"{dashes}'


def _draw_series(axes: _Axes, series: Series, index: int) -> str:
    stroke = _stroke(index)
    raw = list(zip(series.x, series.y, strict=True))
    title = f"<title>{escape(series.name)}</title>"
    if series.smooth < 2:
        return f'<path class="line" {stroke} d="{_path(axes, raw)}">{title}</path>'
    smooth = list(zip(series.x, running_mean(series.y, series.smooth), strict=True))
    return (
        f'<path class="line faint" {stroke} d="{_path(axes, raw)}"/>'
        f'<path class="line" {stroke} d="{_path(axes, smooth)}">{title}</path>'
    )


def running_mean(values: Sequence[float | None], window: int) -> list[float | None]:
    """Return the mean over up to `window` values around each, None where there is none."""
    out: list[float | None] = []
    for i in range(len(values)):
        near = [v for v in values[max(0, i - window // 2) : i + window // 2 + 1] if v is not None]
        out.append(sum(near) / len(near) if near else None)
    return out


def _path(axes: _Axes, points: Sequence[tuple[float, float | None]]) -> str:
    """Return the SVG path through the points; a lone point between gaps becomes a dot."""
    commands: list[str] = []
    pen_down = False
    for i, (x, y) in enumerate(points):
        if y is None or not _drawable(y, axes.log):
            pen_down = False
            continue
        px, py = axes.place(x, y)
        commands.append(f"{'L' if pen_down else 'M'}{px:.1f} {py:.1f}")
        alone = not pen_down and (i + 1 == len(points) or not _drawable(points[i + 1][1], axes.log))
        if alone:
            commands.append("h0.01")
        pen_down = True
    return "".join(commands)
