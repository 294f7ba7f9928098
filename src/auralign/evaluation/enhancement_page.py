"""What an evaluation of enhancers leaves for readers: rows, summary, a Markdown table, and an HTML report."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from auralign.evaluation.enhancement_statistics import ALL, LIMITS
from auralign.evaluation.table import Row
from auralign.report.charts import line_chart
from auralign.report.document import card, escape, facts, paragraph, write_page
from auralign.report.intervals import Interval, interval_chart
from auralign.report.table_page import table

TITLES: Mapping[str, tuple[str, int]] = {
    "dnsmos_sig": ("DNSMOS SIG", 3),
    "dnsmos_bak": ("DNSMOS BAK", 3),
    "dnsmos_ovrl": ("DNSMOS OVRL", 3),
    "dnsmos_p808": ("P.808", 3),
    "distill_mos": ("Distill-MOS", 3),
    "pesq_wb": ("PESQ-wb", 3),
    "estoi": ("ESTOI", 3),
    "si_sdr": ("SI-SDR, dB", 2),
    "si_sdri": ("SI-SDRi, dB", 2),
    "speaker_similarity": ("speaker cosine", 3),
    "spectral_features": ("spectra", 3),
}
TRAINED = "†"
NOTE = (
    "Means over recordings with 95 % bootstrap intervals. Differences are paired by recording and averaged over the "
    "models of an arm. † marks a score that the system was trained on; Distill-MOS is never trained on."
)
VETO_NOTE = (
    "Lowest change against the base that is allowed: "
    + ", ".join(f"{TITLES[name][0]} {limit:g}" for name, limit in LIMITS.items())
    + ". Safe: the lower end of the interval is above it. Harmed: the upper end is below it. What was not measured "
    "does not count."
)

Summary = Mapping[str, Any]


def write_pages(out: Path, summary: Summary, rows: Sequence[Row]) -> None:
    """``rows.jsonl``, ``summary.json``, ``table.md`` and ``report.html``.

    Args:
        out: Folder of the evaluation.
        summary: Everything that is reported.
        rows: One per recording and system.
    """
    lines = [json.dumps(_strict(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
    _write(out / "rows.jsonl", "".join(lines))
    text = json.dumps(_strict(summary), indent=1, ensure_ascii=False, default=str)
    _write(out / "summary.json", text + "\n")
    _write(out / "table.md", markdown(summary))
    write_page(
        out / "report.html", str(summary["title"]), NOTE, _sections(summary, rows), scripts=("table.js",)
    )


def mean_rows(summary: Summary, *, intervals: bool = False) -> list[dict[str, str]]:
    """Means as texts, one row per list and system; what a system was trained on is marked.

    Args:
        summary: See :func:`write_pages`.
        intervals: Write the interval behind each mean.
    """
    found = []
    for row in summary["rows"]:
        line = {"list": str(row["list"]), "system": str(row["system"]), "n": str(row["n"])}
        for metric in summary["metrics"]:
            title, digits = TITLES[metric]
            mark = TRAINED if metric in summary["trained_on"][row["system"]] else ""
            text = _number(row[metric], digits) + mark
            if intervals and _finite(row[f"{metric}_ci"]):
                text += f" [{_ends(row[f'{metric}_ci'], digits)}]"
            line[title] = text + (f" ({row[f'{metric}_nan']} nan)" if row[f"{metric}_nan"] else "")
        speed = row.get("times_real_time")
        found.append(line | {"× real time": "–" if speed is None else f"{speed:.1f}"})
    return found


def difference_rows(summary: Summary) -> list[dict[str, str]]:
    """Differences as texts, one row per list, system and rival; bold where the interval leaves zero out."""
    kept: dict[tuple[str, str, str], dict[str, Mapping[str, Any]]] = {}
    for row in summary["comparisons"]:
        kept.setdefault((row["list"], row["system"], row["versus"]), {})[row["metric"]] = row
    found = []
    for (pool, system, versus), mine in kept.items():
        line = {"list": pool, "system": system, "versus": versus}
        for metric in summary["metrics"]:
            title, digits = TITLES[metric]
            line[title] = _difference(mine[metric], digits) if metric in mine else "–"
            trained = (summary["trained_on"][name] for name in (system, versus))
            line[title] += TRAINED if any(metric in names for names in trained) and metric in mine else ""
        found.append(line)
    return found


def markdown(summary: Summary) -> str:
    """Means, differences, vetoes and the choice."""
    parts = [NOTE, "", "### Means", "", *_table_lines(mean_rows(summary, intervals=True))]
    parts += ["", "### Differences", "", *_table_lines(difference_rows(summary))]
    if summary["vetoes"]:
        parts += ["", "### Vetoes", "", VETO_NOTE, "", *_table_lines(summary["vetoes"])]
        parts += ["", *(f"- {line}" for line in _choices(summary))]
    if summary["by_noise_level"]:
        parts += ["", "### By noise level", "", *_table_lines(_level_rows(summary))]
    parts += ["", *(f"- {count} × {reason}" for reason, count in summary["reasons"].items())]
    return "\n".join(parts).rstrip() + "\n"


def _choices(summary: Summary) -> list[str]:
    return [
        f"{row['list']}: {row['choice']} has the best {TITLES[row['by']][0]} ({row['mean']:.3f}) "
        f"of the base and {row['safe']} safe arm{'' if row['safe'] == 1 else 's'}"
        for row in summary["choice"]
    ]


def _level_rows(summary: Summary) -> list[dict[str, str]]:
    return [
        {key: str(row[key]) for key in ("list", "snr", "system", "n")}
        | {TITLES[name][0]: _number(row[name], TITLES[name][1]) for name in summary["metrics"]}
        for row in summary["by_noise_level"]
    ]


def _table_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    if not rows:
        return ["none"]
    names = list(rows[0])
    lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    return lines + [f"| {' | '.join(str(row[name]) for name in names)} |" for row in rows]


def _difference(row: Mapping[str, Any], digits: int) -> str:
    low, high = row["ci"]
    value = f"{row['difference']:+.{digits}f}"
    sure = math.isfinite(low) and (low > 0 or high < 0)
    return f"{f'**{value}**' if sure else value} [{low:+.{digits}f}, {high:+.{digits}f}]"


def _number(value: Any, digits: int) -> str:
    return f"{value:.{digits}f}" if isinstance(value, float) and math.isfinite(value) else "–"


def _ends(ends: Sequence[float], digits: int) -> str:
    return ", ".join(f"{end:.{digits}f}" for end in ends)


def _finite(ends: Sequence[float]) -> bool:
    return all(math.isfinite(end) for end in ends)


def _sections(summary: Summary, rows: Sequence[Row]) -> list[str]:
    body = [card("<h2>Means</h2>", _table(mean_rows(summary, intervals=True), "means"))]
    body += _difference_figures(summary)
    if summary["vetoes"]:
        told = [paragraph(line, "") for line in _choices(summary)]
        body.append(
            card("<h2>Vetoes</h2>", paragraph(VETO_NOTE, "note"), _table(summary["vetoes"], "vetoes"), *told)
        )
    body += _level_figures(summary)
    flat = [{key: value for key, value in row.items() if key != "seeds"} for row in summary["comparisons"]]
    body.append(card("<h2>Every difference</h2>", _table(flat, "differences")))
    if summary["reasons"]:
        lines = [paragraph(f"{count} × {reason}", "note") for reason, count in summary["reasons"].items()]
        body.append(card("<h2>Without a score, or scored with a remark</h2>", *lines))
    shown = [{key: value for key, value in row.items() if key not in _HIDDEN} for row in rows]
    body.append(card("<h2>Every recording</h2>", _table(shown, "items")))
    hidden = ("rows", "comparisons", "by_noise_level", "vetoes", "choice", "reasons")
    details = {key: value for key, value in summary.items() if key not in hidden}
    body.append(card("<h2>How this was made</h2>", facts(details, summary="All settings")))
    return body


_HIDDEN = ("arm", "model", "noise_seed", "loudness", "failed")


def _difference_figures(summary: Summary) -> list[str]:
    """A card for every rival: one figure a metric, one line a list and system."""
    found = []
    for versus in dict.fromkeys(row["versus"] for row in summary["comparisons"]):
        figures = []
        for metric in summary["metrics"]:
            lines = [
                Interval(
                    f"{row['system']}, {row['list']}",
                    float(row["difference"]),
                    float(row["ci"][0]),
                    float(row["ci"][1]),
                    tuple(row["seeds"]) if len(row["seeds"]) > 1 else (),
                )
                for row in summary["comparisons"]
                if (row["versus"], row["metric"]) == (versus, metric)
            ]
            if lines:
                figures.append(interval_chart(TITLES[metric][0], lines, x_label=f"minus {versus}"))
        note = paragraph("Dots are means, lines 95 % intervals over recordings, ticks single seeds.", "note")
        charts = f'<div class="charts">{"".join(figures)}</div>'
        found.append(card(f"<h2>Against {escape(versus)}</h2>", note, charts))
    return found


def _level_figures(summary: Summary) -> list[str]:
    rows = summary["by_noise_level"]
    pools = list(dict.fromkeys(row["list"] for row in rows))
    pool = ALL if ALL in pools else next(iter(pools), None)
    figures = []
    for metric in summary["metrics"]:
        lines: dict[str, list[tuple[float, float]]] = {}
        for row in rows:
            if row["list"] == pool:
                lines.setdefault(row["system"], []).append((row["snr_db"], row[metric]))
        if any(len(points) > 1 for points in lines.values()):
            figures.append(line_chart(TITLES[metric][0], lines, x_label="SNR of the input, dB"))
    if not figures:
        return []
    charts = f'<div class="charts">{"".join(figures)}</div>'
    return [card("<h2>By noise level</h2>", charts, _table(_level_rows(summary), "levels"))]


def _table(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    return table(rows, list(dict.fromkeys(key for row in rows for key in row)), name=name)


def _strict(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return value


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
