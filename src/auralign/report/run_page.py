"""A page for a training run: curves, the sounds of the latest steps, configuration and environment."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from auralign.report.charts import line_chart
from auralign.report.document import card, chips, facts, number, paragraph, write_page
from auralign.report.page import MEGABYTE, ReportItem, item_section
from auralign.runtime.run import Run

_NOT_CURVES = ("step", "elapsed_s")
_SMOOTH = 0.9


def write_run_report(run_path: str | Path, out: str | Path | None = None, *, limit_mb: float = 40.0) -> Path:
    """Writes ``report.html`` of a run from whatever of it is there.

    Args:
        run_path: The run's folder.
        out: The page; ``report.html`` in that folder by default.
        limit_mb: Size of all sounds together.
    """
    run = Run.open(run_path)
    records = run.metrics()
    last = records[-1] if records else {}
    elapsed_s = max((float(record["elapsed_s"]) for record in records), default=0.0)

    def sections() -> Iterator[str]:
        yield card("<h2>Progress</h2>", chips(_progress(last, elapsed_s)), _curves(records))
        room = limit_mb * MEGABYTE
        for index, item in enumerate(sample_items(run.samples_path)):
            section, used = item_section(item, index, excerpt_s=12.0, room=room)
            room -= used
            yield section
        yield card(
            "<h2>How this was made</h2>",
            facts(run.table(), summary="Configuration"),
            facts(_environment(run.path / "env.json"), summary="Environment"),
        )

    return write_page(
        out or run.report_path, f"Training run {run.path.name}", "", sections(), scripts=("player.js",)
    )


def sample_items(folder: Path) -> list[ReportItem]:
    """Sounds of the latest step: a folder is one item with a stem per file, a loose file one of its own."""
    steps = sorted(path for path in folder.glob("step_*") if path.is_dir())
    if not steps:
        return []
    step = int(steps[-1].name.removeprefix("step_"))
    groups: dict[str, dict[str, Path]] = defaultdict(dict)
    for path in sorted(steps[-1].rglob("*.flac")):
        inner = path.relative_to(steps[-1]).with_suffix("")
        groups[str(inner.parent if len(inner.parts) > 1 else inner)][inner.name] = path
    order = {"mixture": 0, "residual": 2}
    return [
        ReportItem(
            name, dict(sorted(stems.items(), key=lambda pair: order.get(pair[0], 1))), note=f"step {step:,}"
        )
        for name, stems in groups.items()
    ]


def _progress(last: Mapping[str, Any], elapsed_s: float) -> dict[str, Any]:
    if not last:
        return {}
    return {"step": f"{last['step']:,}", "time": f"{elapsed_s / 60:.1f} min"}


def _curves(records: list[dict[str, Any]]) -> str:
    keys = dict.fromkeys(key for record in records for key in record if key not in _NOT_CURVES)
    figures = []
    for key in keys:
        points = [
            (float(record["step"]), float(record[key]))
            for record in records
            if isinstance(record.get(key), int | float) and not isinstance(record[key], bool)
        ]
        if len(points) < 2 or not any(math.isfinite(y) for _, y in points):
            continue
        smooth = _SMOOTH if len(points) > 50 else 0.0
        now = f"latest {number(points[-1][1])}"
        figures.append(line_chart(key, {key: points}, x_label="step", smooth=smooth, now=now))
    if not figures:
        return paragraph(
            "There are no curves yet: metrics.jsonl is missing or has fewer than two records.", "note"
        )
    return f'<div class="charts">{"".join(figures)}</div>'


def _environment(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {"env.json": "is gone"}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
