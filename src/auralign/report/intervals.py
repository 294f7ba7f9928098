"""Differences with their intervals as a small figure: one line each, zero marked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from auralign.report.document import escape

_WIDTH, _LINE, _LEFT, _RIGHT, _TOP, _BOTTOM = 560, 18, 230, 60, 6, 24


@dataclass(frozen=True)
class Interval:
    """One line of the figure."""

    name: str
    """What was measured."""
    value: float
    """Estimate."""
    low: float
    """Lower end."""
    high: float
    """Upper end."""
    points: tuple[float, ...] = ()
    """Single results behind the estimate, such as one a seed; drawn as small marks."""


def interval_chart(title: str, lines: Sequence[Interval], *, x_label: str) -> str:
    """A figure of estimates with intervals, readable in light, dark and on paper.

    Args:
        title: What is drawn.
        lines: From top to bottom; those that are not finite are left out.
        x_label: Meaning and unit of the axis.
    """
    drawn = [one for one in lines if all(map(math.isfinite, (one.value, one.low, one.high)))]
    head = f"<figcaption>{escape(title)}</figcaption>"
    if not drawn:
        return f'<figure>{head}<p class="note">no finite values</p></figure>'
    marks = [x for one in drawn for x in (one.low, one.high, *filter(math.isfinite, one.points))]
    low, high = min(0.0, *marks), max(0.0, *marks)
    margin = 0.04 * (high - low or 1.0)
    low, high = low - margin, high + margin
    height = _TOP + _LINE * len(drawn) + _BOTTOM

    def at(x: float) -> float:
        return _LEFT + (x - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    zero, bottom = at(0.0), height - _BOTTOM
    parts = [f'<line class="grid" x1="{zero:.1f}" x2="{zero:.1f}" y1="{_TOP}" y2="{bottom}"/>']
    for n, one in enumerate(drawn):
        y = _TOP + _LINE * (n + 0.5)
        dots = "".join(
            f'<path d="M{at(x):.1f} {y - 5:.1f}V{y + 5:.1f}" opacity=".45"/>'
            for x in one.points
            if math.isfinite(x)
        )
        parts.append(
            f'<text x="{_LEFT - 8}" y="{y + 3:.1f}" text-anchor="end">{escape(one.name)}</text>'
            f'<path d="M{at(one.low):.1f} {y:.1f}H{at(one.high):.1f}"/>{dots}'
            f'<circle cx="{at(one.value):.1f}" cy="{y:.1f}" r="3.4" fill="currentColor"/>'
            f'<text x="{_WIDTH - _RIGHT + 8}" y="{y + 3:.1f}">{_signed(one.value)}</text>'
        )
    for x in (low + margin, 0.0, high - margin):
        if x == 0.0 or abs(at(x) - zero) > 30:
            parts.append(f'<text x="{at(x):.1f}" y="{bottom + 12}" text-anchor="middle">{_signed(x)}</text>')
    parts.append(f'<text x="{_WIDTH}" y="{height - 2}" text-anchor="end">{escape(x_label)}</text>')
    svg = f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}">'
    return f'<figure class="wide">{head}{svg}{"".join(parts)}</svg></figure>'


def _signed(x: float) -> str:
    digits = 2 if abs(x) >= 0.1 or x == 0 else 4
    return f"{x:+.{digits}f}".replace("-", "−") if x else "0"
