"""Plots as inline SVG: colours and sizes are the page's, so they follow its light and dark and print as sharp as its text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np
import numpy.typing as npt

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 760, 62, 12, 12, 40
Values = npt.NDArray[np.floating] | Sequence[float]


@dataclass(frozen=True, slots=True)
class Axis:
    label: str
    low: float
    high: float
    log: bool = False
    names: tuple[str, ...] = ()
    """What is written at 0, 1, 2 …; without them, round numbers are."""

    def place(self, values: Values) -> npt.NDArray[np.float64]:
        """Values → 0 at the low end to 1 at the high end; what is beyond lies on the end."""
        v, low, high = np.asarray(values, np.float64), self.low, self.high
        if self.log:
            v, low, high = np.log10(np.maximum(v, low)), math.log10(low), math.log10(high)
        return np.clip((v - low) / (high - low), 0.0, 1.0)

    def marks(self) -> list[float]:
        if self.names:
            return [float(i) for i in range(len(self.names))]
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            if last > first:
                return [10.0**n for n in range(first, last + 1, max(1, (last - first) // 5))]
            low = 10.0 ** math.floor(math.log10(self.low))
            return [m * low for m in (1, 2, 5, 10, 20, 50) if self.low <= m * low <= self.high]
        rough = (self.high - self.low) / 7
        size = 10.0 ** math.floor(math.log10(rough))
        step = next(m * size for m in (1, 2, 5, 10) if m * size >= rough)
        first = math.ceil(self.low / step - 1e-9)
        return [n * step for n in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def written(self, mark: float) -> str:
        if self.names:
            return escape(self.names[round(mark)])
        if mark and not 1e-4 <= abs(mark) < 1e6:
            return f"{mark:.0e}".replace("e-0", "e-").replace("e+0", "e")
        return f"{mark:.6g}"


@dataclass(slots=True)
class Chart:
    """Things are drawn in the order in which they are added. Colours are the classes of the page: a, b, c, bad, label …"""

    title: str
    """What it shows; read out by a screen reader, as `text` is."""
    text: str
    """What is to be seen in it, in a sentence or two."""
    x: Axis
    y: Axis
    height: int = 240
    width: int = WIDTH
    _parts: list[str] = field(default_factory=list)
    _keys: list[tuple[str, str, str]] = field(default_factory=list)

    def line(self, xs: Values, ys: Values, kind: str, key: str = "", dots: bool = False) -> None:
        """NaN breaks it."""
        px, py = self._points(xs, ys)
        path, pen = [], "M"
        for a, b in zip(px, py, strict=True):
            if math.isnan(b):
                pen = "M"
                continue
            path.append(f"{pen}{a:.1f} {b:.1f}")
            pen = "L"
        if path:
            self._parts.append(f'<path class="line {kind}" d="{"".join(path)}"/>')
        if dots:
            self.dots(xs, ys, kind)
        self._key("line", kind, key)

    def band(self, xs: Values, low: Values, high: Values, kind: str, key: str = "") -> None:
        px, upper = self._points(xs, high)
        _, lower = self._points(xs, low)
        outline = [f"{a:.1f} {b:.1f}" for a, b in zip(px, upper, strict=True)]
        outline += [f"{a:.1f} {b:.1f}" for a, b in zip(px[::-1], lower[::-1], strict=True)]
        self._parts.append(f'<path class="area {kind}" d="M{"L".join(outline)}Z"/>')
        self._key("area", kind, key)

    def span(self, start: float, stop: float, kind: str, key: str = "") -> None:
        a, b = self._points([start, stop], [self.y.low, self.y.low])[0]
        high = self.height - TOP - BOTTOM
        self._parts.append(f'<rect class="area {kind}" x="{a:.1f}" y="{TOP}" width="{max(b - a, 1):.1f}" height="{high}"/>')
        self._key("area", kind, key)

    def rule(self, value: float, kind: str, key: str = "") -> None:
        self.line([self.x.low, self.x.high], [value, value], kind, key)

    def mark(self, at: float, kind: str, key: str = "") -> None:
        """An upright line with a head, at the top."""
        a = float(self._points([at], [self.y.low])[0][0])
        self._parts.append(f'<path class="line {kind}" d="M{a:.1f} {TOP}L{a:.1f} {self.height - BOTTOM}"/>')
        self._parts.append(f'<path class="dot {kind}" d="M{a - 5:.1f} {TOP}h10l-5 8z"/>')
        self._key("line", kind, key)

    def dots(self, xs: Values, ys: Values, kind: str, key: str = "", size: float = 3) -> None:
        px, py = self._points(xs, ys)
        for a, b in zip(px, py, strict=True):
            if not math.isnan(b):
                self._parts.append(f'<circle class="dot {kind}" cx="{a:.1f}" cy="{b:.1f}" r="{size:g}"/>')
        self._key("dot", kind, key)

    def svg(self) -> str:
        name = escape(self.title, quote=True)
        wide, high = self.width - RIGHT, self.height - BOTTOM
        lines = [
            f'<svg viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{name}. {escape(self.text, quote=True)}">',
            f"<title>{name}</title>",
            f'<rect class="frame" x="{LEFT}" y="{TOP}" width="{wide - LEFT}" height="{high - TOP}"/>',
        ]
        for value in self.y.marks():
            (b,) = self._points([self.x.low], [value])[1]
            lines.append(f'<path class="grid" d="M{LEFT} {b:.1f}H{wide}"/>')
            lines.append(f'<text class="y" x="{LEFT - 6}" y="{b + 4:.1f}">{self.y.written(value)}</text>')
        for value in self.x.marks():
            (a,) = self._points([value], [self.y.low])[0]
            lines.append(f'<path class="grid" d="M{a:.1f} {high}v4"/>')
            lines.append(f'<text class="x" x="{a:.1f}" y="{high + 17}">{self.x.written(value)}</text>')
        middle = (TOP + high) / 2
        lines.append(f'<text class="x" x="{(LEFT + wide) / 2:.0f}" y="{self.height - 6}">{escape(self.x.label)}</text>')
        lines.append(
            f'<text class="x" transform="rotate(-90 14 {middle:.0f})" x="14" y="{middle:.0f}">{escape(self.y.label)}</text>'
        )
        return "\n".join([*lines, *self._parts, "</svg>", *self._legend()])

    def _legend(self) -> list[str]:
        if not self._keys:
            return []
        shapes = {
            "line": '<path class="line {0}" d="M1 6H23"/>',
            "area": '<rect class="area {0}" x="1" y="1" width="22" height="10"/>',
            "dot": '<circle class="dot {0}" cx="12" cy="6" r="4"/>',
        }
        entries = [
            f'<li><svg viewBox="0 0 24 12" aria-hidden="true">{shapes[shape].format(kind)}</svg>{escape(key)}</li>'
            for shape, kind, key in self._keys
        ]
        return [f'<ul class="key">{"".join(entries)}</ul>']

    def _key(self, shape: str, kind: str, key: str) -> None:
        if key and (shape, kind, key) not in self._keys:
            self._keys.append((shape, kind, key))

    def _points(self, xs: Values, ys: Values) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        px = LEFT + self.x.place(xs) * (self.width - LEFT - RIGHT)
        return px, self.height - BOTTOM - self.y.place(ys) * (self.height - TOP - BOTTOM)
