"""Small line charts as SVG text, coloured by the page's own style sheet so that they follow light and dark."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 460, 280
LEFT, RIGHT, TOP, BOTTOM = 42, 12, 14, 42


@dataclass(frozen=True)
class Point:
    """x, y in data units; title is the tooltip; step links the point to a position of the page's slider."""

    x: float
    y: float
    title: str = ""
    step: int | None = None


@dataclass(frozen=True)
class Curve:
    """kind names a CSS class ("mmtok", "jpeg", ...); name is the tooltip of the line, "" for none."""

    name: str
    kind: str
    points: list[Point]
    dashed: bool = False
    dots: bool = True


def line_chart(curves: list[Curve], x_title: str, y_title: str, log_x: bool = False, y_from_zero: bool = False) -> str:
    """An <svg> of the curves; its accessible name is the titles of the axes."""
    xs = [p.x for c in curves for p in c.points]
    ys = [p.y for c in curves for p in c.points]
    x_low, x_high = min(xs), max(xs)
    if log_x:
        x_low, x_high = x_low / 1.15, x_high * 1.15
    y_ticks = _linear_ticks(0.0 if y_from_zero else min(ys), max(ys))
    y_low, y_high = y_ticks[0], y_ticks[-1]
    x_ticks = _log_ticks(x_low, x_high) if log_x else [t for t in _linear_ticks(x_low, x_high) if x_low <= t <= x_high]

    def px(x: float) -> float:
        a, b, v = (math.log(t) if log_x else t for t in (x_low, x_high, x))
        return LEFT + (WIDTH - LEFT - RIGHT) * (v - a) / ((b - a) or 1)

    def py(y: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (y - y_low) / ((y_high - y_low) or 1)

    out = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(y_title)} by {escape(x_title)}">']
    for tick in y_ticks:
        out.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{py(tick):.1f}" y2="{py(tick):.1f}"/>')
        out.append(_text(LEFT - 6, py(tick) + 3.5, _number(tick), "end"))
    for tick in x_ticks:
        out.append(_text(px(tick), HEIGHT - BOTTOM + 15, _number(tick)))
    out.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, escape(x_title)))
    for curve in curves:
        kind = escape(curve.kind) + (" dashed" if curve.dashed else "")
        path = " ".join(f"{px(p.x):.1f},{py(p.y):.1f}" for p in curve.points)
        name = f"<title>{escape(curve.name)}</title>" if curve.name else ""
        out.append(f'<g class="curve {kind}"><polyline points="{path}">{name}</polyline>')
        if curve.dots:
            for p in curve.points:
                step = "" if p.step is None else f' data-step="{p.step}"'
                title = f"<title>{escape(p.title)}</title>" if p.title else ""
                out.append(f'<circle cx="{px(p.x):.1f}" cy="{py(p.y):.1f}" r="3"{step}>{title}</circle>')
        out.append("</g>")
    out.append("</svg>")
    return "".join(out)


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def _linear_ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers that enclose [low, high]."""
    if high <= low:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [n * step for n in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]
    return ticks if len(ticks) > 1 else [low, high]


def _number(value: float) -> str:
    if value >= 1000:
        return f"{value / 1000:g}k"
    return f"{value:.3g}" if abs(value) > 1e-12 else "0"
