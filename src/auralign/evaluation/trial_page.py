"""What a trial leaves for readers: rows, summary, a Markdown table for the results page, and an HTML report."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from auralign.evaluation.table import Row
from auralign.evaluation.trial_statistics import ALL
from auralign.report.document import card, escape, facts, paragraph, write_page
from auralign.report.intervals import Interval, interval_chart
from auralign.report.table_page import table

HEADLINE = (
    ("si_sdri", "SI-SDRi, dB", 2),
    ("judge_similarity", "judge similarity", 4),
    ("judge_margin_mixture", "judge margin to mixture", 4),
    ("judge_margin_interferer", "judge margin to interferer", 4),
    ("judge_top1", "judge top-1", 3),
    ("snri", "SNRi, dB", 2),
    ("sdr_v3_512", "SDR BSS 3, dB", 2),
    ("sir_v3_512", "SIR, dB", 2),
    ("sar_v3_512", "SAR, dB", 2),
    ("level_change_db", "level, dB", 2),
)
NOTE = (
    "Differences are paired by item and averaged over the models of an arm. [95 % interval that resamples recordings: "
    "items whose target comes from one recording are drawn together.] It does not cover the choice of training seed; "
    "every seed's own difference is listed."
)

Summary = Mapping[str, Any]


def write_pages(out: Path, summary: Summary, rows: Sequence[Row]) -> None:
    """``rows.jsonl``, ``summary.json``, ``table.md`` and ``report.html``.

    Args:
        out: Folder of the trial.
        summary: Everything that is reported.
        rows: One per item, query and arm.
    """
    lines = [json.dumps(_strict(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
    _write(out / "rows.jsonl", "".join(lines))
    _write(
        out / "summary.json", json.dumps(_strict(summary), indent=1, ensure_ascii=False, default=str) + "\n"
    )
    _write(out / "table.md", markdown(summary))
    write_page(
        out / "report.html", str(summary["title"]), NOTE, _sections(summary, rows), scripts=("table.js",)
    )


def markdown(summary: Summary) -> str:
    """One table of differences for every pair of arms, then the means of every arm."""
    parts = []
    for a, b in _pairs(summary):
        found = _by_slice(summary, a, b)
        shown = [
            (m, title, digits) for m, title, digits in HEADLINE if any(m in one for one in found.values())
        ]
        parts += [
            f"### {a} minus {b}",
            "",
            NOTE,
            "",
            f"| list | query | n (recordings) | {' | '.join(title for _, title, _ in shown)} | SI-SDRi won | seeds |",
            f"|---|---|---:|{'---:|' * len(shown)}---:|---|",
        ]
        for (pool, query), metrics in found.items():
            first = metrics.get("si_sdri") or next(iter(metrics.values()))
            cells = [_cell(metrics.get(m), digits) for m, _, digits in shown]
            seeds = ", ".join(f"{x:+.2f}" for x in first["seed_differences"]) or "–"
            won = "–" if first["win_rate"] is None else f"{100 * first['win_rate']:.1f} %"
            size = f"{first['n']} ({first['groups']})"
            parts.append(f"| {pool} | {query} | {size} | {' | '.join(cells)} | {won} | {seeds} |")
        parts.append("")
    parts += ["### Means", "", *_means(summary), "", *_told(summary)]
    return "\n".join(parts).rstrip() + "\n"


def short_rows(summary: Summary) -> list[dict[str, Any]]:
    """The comparisons that a terminal has room for: two scores, pools and lists, all queries together last."""
    found = []
    for a, b in _pairs(summary):
        for (pool, query), metrics in _by_slice(summary, a, b).items():
            row: dict[str, Any] = {"a": a, "b": b, "pool": pool, "query": query}
            for name in ("si_sdri", "judge_similarity"):
                one = metrics.get(name)
                row[name] = None if one is None else f"{one['difference']:+.3f}"
                row[f"{name}_ci"] = None if one is None else f"[{one['ci'][0]:+.3f}, {one['ci'][1]:+.3f}]"
            first = metrics.get("si_sdri") or next(iter(metrics.values()))
            row |= {"n": first["n"], "won": first["win_rate"]}
            found.append(row)
    return found


def _pairs(summary: Summary) -> list[tuple[str, str]]:
    return list(dict.fromkeys((row["a"], row["b"]) for row in summary["comparisons"]))


def _by_slice(summary: Summary, a: str, b: str) -> dict[tuple[str, str], dict[str, Any]]:
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in summary["comparisons"]:
        if (row["a"], row["b"]) == (a, b):
            found.setdefault((row["pool"], row["query"]), {})[row["metric"]] = row
    return found


def _cell(row: Mapping[str, Any] | None, digits: int) -> str:
    if row is None:
        return "–"
    low, high = row["ci"]
    inner_low, inner_high = row["item_ci"]
    value = f"{row['difference']:+.{digits}f}"
    sure = (low > 0) == (high > 0) and math.isfinite(low)
    value = f"**{value}**" if sure else value
    return (
        f"{value} [{low:+.{digits}f}, {high:+.{digits}f}] ({inner_low:+.{digits}f}, {inner_high:+.{digits}f})"
    )


def _means(summary: Summary) -> list[str]:
    rows = summary["rows"]
    shown = [
        (m, title, digits) for m, title, digits in HEADLINE if any(row.get(m) is not None for row in rows)
    ]
    head = " | ".join(title for _, title, _ in shown)
    lines = [
        f"| list | query | arm | models | n | without score | {head} | SI-SDRi of each model |",
        f"|---|---|---|---:|---:|---:|{'---:|' * len(shown)}---|",
    ]
    for row in rows:
        cells = ["–" if row.get(m) is None else f"{row[m]:.{digits}f}" for m, _, digits in shown]
        seeds = ", ".join(f"{x:.2f}" for x in row["si_sdri_seeds"])
        size = f"{row['models']} | {row['n']} | {row['unscored']}"
        lines.append(
            f"| {row['pool']} | {row['query']} | {row['arm']} | {size} | {' | '.join(cells)} | {seeds} |"
        )
    return lines


def _told(summary: Summary) -> list[str]:
    lines = [f"- {count} items cannot be asked by {query}" for query, count in summary["not_askable"].items()]
    return lines + [f"- {count} × {reason}" for reason, count in summary["reasons"].items()]


def _sections(summary: Summary, rows: Sequence[Row]) -> list[str]:
    body = []
    for a, b in _pairs(summary):
        found = _by_slice(summary, a, b)
        figures = [
            interval_chart(title, _lines(found, metric), x_label=f"{a} minus {b}")
            for metric, title, _ in HEADLINE[:4]
            if any(metric in metrics for metrics in found.values())
        ]
        note = paragraph("Dots are means, lines 95 % intervals over recordings, ticks single seeds.", "note")
        body.append(card(f"<h2>{_title(a, b)}</h2>", note, f'<div class="charts">{"".join(figures)}</div>'))
    kept = [_flat(row) for row in summary["comparisons"]]
    body.append(card("<h2>Every difference</h2>", _table(kept, "differences")))
    body.append(card("<h2>Means of the arms</h2>", _table(summary["rows"], "means")))
    for a, b in _pairs(summary):
        lost = _largest_losses(rows, a, b)
        if lost:
            body.append(
                card(f"<h2>Where {_title(a, b, word='loses most to')}</h2>", _table(lost, f"lost-{a}-{b}"))
            )
    told = _told(summary)
    if told:
        body.append(
            card("<h2>Without a score</h2>", *(paragraph(line.removeprefix("- "), "note") for line in told))
        )
    hidden = ("rows", "comparisons", "reasons")
    details = {key: value for key, value in summary.items() if key not in hidden}
    body.append(card("<h2>How this was made</h2>", facts(details, summary="All settings")))
    return body


def _title(a: str, b: str, *, word: str = "minus") -> str:
    return f"{escape(a)} {word} {escape(b)}"


def _lines(found: Mapping[tuple[str, str], Mapping[str, Any]], metric: str) -> list[Interval]:
    return [
        Interval(
            f"{pool}, {'all queries' if query == ALL else query}",
            float(one["difference"]),
            float(one["ci"][0]),
            float(one["ci"][1]),
            tuple(one["seed_differences"]),
        )
        for (pool, query), metrics in found.items()
        if (one := metrics.get(metric)) is not None
    ]


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    hidden = ("a_seeds", "b_seeds")
    return {key: value for key, value in row.items() if key not in hidden}


def _table(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    return table(rows, list(dict.fromkeys(key for row in rows for key in row)), name=name)


def _largest_losses(rows: Sequence[Row], a: str, b: str, count: int = 10) -> list[dict[str, Any]]:
    """Items with the most negative difference in SI-SDRi."""
    sides: dict[tuple[str, str, str], dict[str, Row]] = {}
    for row in rows:
        key = (str(row["list"]), str(row["id"]), str(row["query"]))
        sides.setdefault(key, {})[str(row["system"])] = row
    found: list[tuple[float, dict[str, Any]]] = []
    for (name, item, query), pair in sides.items():
        mine, other = (pair[arm].get("si_sdri") if arm in pair else None for arm in (a, b))
        if isinstance(mine, float) and isinstance(other, float) and math.isfinite(mine - other):
            row = {"list": name, "id": item, "query": query, "class": pair[a].get("class")}
            row |= {"interferer": pair[a].get("interferer")}
            found.append(
                (mine - other, row | {"difference_db": mine - other, f"{a}_db": mine, f"{b}_db": other})
            )
    return [row for _, row in sorted(found, key=lambda one: one[0])[:count]]


def _strict(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return value


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
