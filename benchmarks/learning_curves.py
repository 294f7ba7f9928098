"""Learning curves of several runs as one SVG for a document: panels side by side, one legend."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

WIDTH, HEIGHT, LEFT, BOTTOM, LEGEND = 420, 340, 52, 40, 150

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        label: Its name in the legend; curves of one name share an entry.
        colour: Of the stroke.
        points: Positions, x rising.
        dash: SVG's dash pattern, empty for a whole line.
    """

    label: str
    colour: str
    points: Points
    dash: str = ""


def curve(run: Path, key: str, x_key: str = "step") -> list[tuple[float, float]]:
    """A number of a run's ``metrics.jsonl`` over another; empty if the run is not there."""
    path = run / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [(float(row[x_key]), float(row[key])) for row in rows if key in row and x_key in row]


def mean_curve(curves: Sequence[Points]) -> list[tuple[float, float]]:
    """Mean over runs at the places that all of them have; runs without points are left out."""
    there = [dict(points) for points in curves if points]
    places = sorted(set.intersection(*(set(one) for one in there))) if there else []
    return [(x, sum(one[x] for one in there) / len(there)) for x in places]


def draw(panels: Mapping[str, Sequence[Line]], x_label: str) -> str:
    """All panels; each has a scale of its own.

    Args:
        panels: Curves by the panel's title.
        x_label: What the horizontal axes are.
    """
    width = LEGEND + WIDTH * len(panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{HEIGHT}" fill="white"/>',
    ]
    for number, (title, lines) in enumerate(panels.items()):
        parts += _panel(title, lines, x_label, number * WIDTH)
    seen: dict[str, Line] = {line.label: line for lines in panels.values() for line in lines}
    for n, line in enumerate(seen.values()):
        x, y = WIDTH * len(panels) + 8, 24 + 18 * n
        parts.append(
            f'<line x1="{x}" x2="{x + 28}" y1="{y}" y2="{y}" stroke="{line.colour}" stroke-width="2" '
            f'stroke-dasharray="{line.dash}"/><text x="{x + 34}" y="{y + 4}">{line.label}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(title: str, lines: Sequence[Line], x_label: str, start: float) -> list[str]:
    points = [point for line in lines for point in line.points]
    if not points:
        return []
    low, high, step = _scale([y for _, y in points])
    most = max(x for x, _ in points) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        across = start + LEFT + x / most * (WIDTH - LEFT - 20)
        return across, HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - BOTTOM - 30)

    parts = [f'<text x="{start + LEFT}" y="16" font-weight="bold">{title}</text>']
    for k in range(round((high - low) / step) + 1):
        (x0, y0), (x1, _) = place(0, low + k * step), place(most, low)
        parts.append(f'<line x1="{x0:.1f}" x2="{x1:.1f}" y1="{y0:.1f}" y2="{y0:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{x0 - 6:.1f}" y="{y0 + 4:.1f}" text-anchor="end">{low + k * step:.4g}</text>')
    for share in (0, 0.5, 1):
        x, _ = place(share * most, low)
        label = f"{share * most:.0f}"
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{label}</text>')
    parts.append(f'<text x="{start + LEFT}" y="{HEIGHT - 6}">{x_label}</text>')
    for line in lines:
        path = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in line.points)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{line.colour}" stroke-width="2" '
            f'stroke-dasharray="{line.dash}"/>'
        )
    return parts


def _scale(values: Sequence[float]) -> tuple[float, float, float]:
    """Round limits around the values and the distance of grid lines."""
    low, high = min(values), max(values)
    spread = max(high - low, 1e-6)
    power = 10.0 ** math.floor(math.log10(spread / 4))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= spread / 4)
    return math.floor(low / step) * step, math.ceil(high / step + 1e-9) * step, step
