"""Small line charts as SVG, readable in light, dark and on paper."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from auralign.report.document import escape

WIDTH, HEIGHT = 360, 170
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 8, 8, 22

Points = Sequence[tuple[float, float]]


def line_chart(
    title: str, lines: Mapping[str, Points], *, x_label: str, smooth: float = 0.0, now: str = ""
) -> str:
    """A figure with one line per name.

    Args:
        title: What is drawn.
        lines: Points by name; those that are not finite are left out.
        x_label: Meaning of the horizontal axis.
        smooth: Weight of the past in an exponential mean; above 0 the raw line is drawn pale behind it.
        now: A short text at the right of the title, such as the latest value.
    """
    finite = {name: [p for p in points if all(map(math.isfinite, p))] for name, points in lines.items()}
    drawn = [point for points in finite.values() for point in points]
    head = f"<figcaption>{escape(title)} <span>{escape(now)}</span></figcaption>"
    if not drawn:
        return f'<figure>{head}<p class="note">no finite values</p></figure>'
    xs, ys = _ticks([x for x, _ in drawn], 5), _ticks([y for _, y in drawn], 4)
    box = (min(x for x, _ in drawn), max(x for x, _ in drawn), ys[0], ys[-1])
    parts = [_grid(xs, ys, box, x_label)]
    for index, points in enumerate(finite.values()):
        kind = f"s{index % 5}" if len(finite) > 1 else ""
        if smooth > 0:
            parts.append(_path(points, box, "raw"))
            points = _smoothed(points, smooth)
        parts.append(_path(points, box, kind))
    svg = (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)} over {escape(x_label)}">'
    )
    return f"<figure>{head}{svg}{''.join(parts)}</svg>{_keys(list(finite))}</figure>"


def _keys(names: list[str]) -> str:
    if len(names) < 2:
        return ""
    line = '<svg viewBox="0 0 26 8" aria-hidden="true"><path class="s{0}" d="M0 4H26"/></svg>'
    spans = "".join(f"<span>{line.format(i % 5)}{escape(name)}</span>" for i, name in enumerate(names))
    return f'<div class="keys">{spans}</div>'


def _grid(xs: list[float], ys: list[float], box: tuple[float, float, float, float], x_label: str) -> str:
    parts = []
    for y in ys:
        _, at = _place((box[0], y), box)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{at + 3:.1f}" text-anchor="end">{_label(y)}</text>')
    for x in xs:
        if box[0] <= x <= box[1]:
            at, _ = _place((x, ys[0]), box)
            parts.append(f'<text x="{at:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{_label(x)}</text>')
    parts.append(f'<text x="{WIDTH - _RIGHT}" y="{HEIGHT + 4}" text-anchor="end">{escape(x_label)}</text>')
    return "".join(parts)


def _place(point: tuple[float, float], box: tuple[float, float, float, float]) -> tuple[float, float]:
    x0, x1, y0, y1 = box
    across = (point[0] - x0) / (x1 - x0) if x1 > x0 else 0.5
    up = (point[1] - y0) / (y1 - y0) if y1 > y0 else 0.5
    return _LEFT + across * (WIDTH - _LEFT - _RIGHT), HEIGHT - _BOTTOM - up * (HEIGHT - _TOP - _BOTTOM)


def _path(points: Points, box: tuple[float, float, float, float], kind: str) -> str:
    step = max(1, len(points) // 600)
    kept = [*points[::step], *points[-1:]]
    places = [_place(point, box) for point in kept]
    if len(places) == 1 or len(set(places)) == 1:
        x, y = places[0]
        places = [(x - 2, y), (x + 2, y)]
    line = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    return f'<path class="{kind}" d="M{line}"/>'


def _smoothed(points: Points, weight: float) -> list[tuple[float, float]]:
    """Exponential mean without the start's bias: sum of w^k y divided by the sum of w^k."""
    total, mass, result = 0.0, 0.0, []
    for x, y in points:
        total, mass = weight * total + y, weight * mass + 1.0
        result.append((x, total / mass))
    return result


def _ticks(values: list[float], about: int) -> list[float]:
    """Round numbers that enclose the values."""
    low, high = min(values), max(values)
    if high <= low:
        low, high = low - 0.5 * max(abs(low), 1e-3), high + 0.5 * max(abs(high), 1e-3)
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def _label(value: float) -> str:
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    if abs(value) >= 1e4:
        return f"{value / 1e3:g}k"
    return f"{value:.4g}".replace("-", "−")
