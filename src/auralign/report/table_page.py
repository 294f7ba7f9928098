"""A page for an evaluation: summary, distributions, the worst items, and every row in a sortable table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from auralign.errors import UsageError
from auralign.report.charts import line_chart
from auralign.report.document import card, escape, facts, heading_of, number, paragraph, write_page

Row = Mapping[str, Any]


def write_table_report(
    path: str | Path,
    title: str,
    rows: Sequence[Row],
    *,
    summary: Sequence[Row] = (),
    comparisons: Sequence[Row] = (),
    systems: Sequence[str] = (),
    worst_by: str | None = None,
    worst: int = 10,
    intro: str = "",
    details: Mapping[str, Any] | None = None,
) -> Path:
    """Writes one HTML file for an evaluation.

    Args:
        path: The page.
        title: Its heading.
        rows: One per item; numbers, texts, None or nan. With several systems, each row names its own under
            ``system``.
        summary: One row per system and list, as it is to be read.
        comparisons: One row per pair of systems, likewise.
        systems: Which systems to draw, in order; by default all that occur.
        worst_by: Column in which small is bad; by default the first one with fractions.
        worst: How many of the worst items to show.
        intro: A sentence below the heading.
        details: Preset, versions, seeds.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    measured = [key for key in columns if any(isinstance(row.get(key), float) for row in rows)]
    if worst_by is not None and worst_by not in columns:
        raise UsageError(f"no column {worst_by!r}", where=str(path), hint=f"columns: {', '.join(columns)}")
    by = worst_by or (measured[0] if measured else None)
    body = []
    for heading, made in (("Summary", summary), ("Comparisons", comparisons)):
        if made:
            body.append(
                card(f"<h2>{heading}</h2>", table(made, list(dict.fromkeys(k for row in made for k in row))))
            )
    if measured:
        names = list(systems) or list(dict.fromkeys(str(row.get("system", "all")) for row in rows))
        body.append(_distributions(rows, measured, names))
    if by is not None:
        lowest = sorted((row for row in rows if _finite(row.get(by))), key=lambda row: float(row[by]))[:worst]
        heading = f"<h2>The {len(lowest)} worst by {escape(heading_of(by))}</h2>"
        body.append(card(heading, table(lowest, columns)))
    unscored = [row for row in rows if any(_is_nan(row.get(key)) for key in measured)]
    note = f"{len(rows)} rows; {len(unscored)} with a value that could not be computed, shown as –"
    search = '<input type="search" data-filter="items" placeholder="Filter rows" aria-label="Filter rows">'
    head = f'<div class="head"><h2>Every item</h2>{search}</div>'
    body.append(card(head, paragraph(note, "note"), table(rows, columns, name="items")))
    if details:
        body.append(card("<h2>How this was made</h2>", facts(details, summary="All settings")))
    return write_page(path, title, intro, body, scripts=("table.js",))


def table(rows: Sequence[Row], columns: Sequence[str], *, name: str = "") -> str:
    """Rows as a table whose headings sort it."""
    numeric = {key for key in columns if any(isinstance(row.get(key), int | float) for row in rows)}
    heads = "".join(
        f'<th scope="col" class="{_kind(key in numeric)}">'
        f'<button type="button">{escape(heading_of(key))}</button></th>'
        for key in columns
    )
    lines = "".join(
        f"<tr>{''.join(_cell(row.get(key), key, key in numeric) for key in columns)}</tr>" for row in rows
    )
    anchor = f' id="{escape(name)}"' if name else ""
    head = f"<thead><tr>{heads}</tr></thead>"
    return f'<div class="scroll"><table{anchor} data-sortable>{head}<tbody>{lines}</tbody></table></div>'


def _cell(value: Any, key: str, numeric: bool) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        sort = ' data-value=""' if value is None else ""
        return f'<td class="{_kind(numeric)}"{sort}>{escape(number(value, key=key))}</td>'
    sort = "" if math.isnan(value) else repr(value)
    return f'<td class="{_kind(numeric)}" data-value="{sort}">{escape(number(value, key=key))}</td>'


def _kind(numeric: bool) -> str:
    return "number" if numeric else "text"


def _distributions(rows: Sequence[Row], measured: Sequence[str], systems: Sequence[str]) -> str:
    """For each measure, its sorted values: at 25 % of the items the value is below the line, and so on."""
    figures = []
    for key in measured:
        lines = {}
        for system in systems:
            values = sorted(
                float(row[key])
                for row in rows
                if str(row.get("system", "all")) == system and _finite(row.get(key))
            )
            if values:
                last = max(1, len(values) - 1)
                lines[system] = [(100.0 * i / last, value) for i, value in enumerate(values)]
        if lines:
            figures.append(line_chart(heading_of(key), lines, x_label="percent of items", now=_unit(key)))
    note = paragraph("Each line shows all items from the worst to the best.", "note")
    return card("<h2>Distributions</h2>", note, f'<div class="charts">{"".join(figures)}</div>')


def _unit(key: str) -> str:
    return number(1, key=key).removeprefix("1").strip()


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_nan(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
