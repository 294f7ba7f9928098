"""A table of scores: one row per item and system, nan with a reason, summaries, files, comparisons.

No row is ever dropped: what cannot be scored stays as nan beside its reason and is counted. Files appear only
when complete. In JSON, which has no nan, a missing score is null.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float64

from auralign.errors import DataError, UsageError
from auralign.metrics import statistics
from auralign.metrics.contract import METRICS, NO_INTERFERENCE, ONE_SAMPLE, SILENT_MIXTURE, SILENT_REFERENCE

Cell = str | float | int | bool | None
Row = dict[str, Cell]
Aggregation = Literal["mean", "class mean", "class median"]


_IMPROVEMENTS = ("snri", "si_sdri")
_ITEM_SIDE = (SILENT_REFERENCE, SILENT_MIXTURE, NO_INTERFERENCE, ONE_SAMPLE)


@dataclass(frozen=True)
class Comparison:
    """Two systems on one metric, paired by id."""

    metric: str
    """Column compared."""
    difference: statistics.PairedDifference
    """A − B over the ids that both tables have."""
    only_in_a: tuple[str, ...]
    """Ids that table B lacks."""
    only_in_b: tuple[str, ...]
    """Ids that table A lacks."""

    def as_dict(self) -> dict[str, object]:
        """Plain values, for JSON."""
        return {
            "metric": self.metric,
            **self.difference.as_dict(),
            "only_in_a": list(self.only_in_a),
            "only_in_b": list(self.only_in_b),
        }


@dataclass(frozen=True)
class Table:
    """Rows of scores with the definition they were computed by.

    Every row has ``id``, ``system`` and ``reason``; ``class`` when the items have classes.

    >>> table = Table(rows=[{"id": "a", "system": "model", "snr": 3.0, "reason": ""}], metrics=("snr",))
    >>> table.column("snr").tolist()
    [3.0]
    """

    rows: Sequence[Row]
    """One dictionary per item and system."""
    metrics: tuple[str, ...]
    """Columns that hold scores."""
    definition: str = ""
    """What the scores mean and how they are averaged, in words."""
    aggregation: Aggregation = "mean"
    """How the headline figure is averaged: over items, or over classes of class means or medians."""
    trained_on: tuple[str, ...] = ()
    """Scores that a system in this table was trained on; marked everywhere."""

    def __post_init__(self) -> None:
        names = Counter((str(row.get("system")), str(row.get("id"))) for row in self.rows)
        twice = [f"{system}/{item}" for (system, item), count in names.items() if count > 1]
        if twice:
            raise DataError(f"{len(twice)} ids occur twice: {', '.join(twice[:3])}", where="table")

    @property
    def systems(self) -> tuple[str, ...]:
        """Systems in order of appearance."""
        return tuple(dict.fromkeys(str(row.get("system", "")) for row in self.rows))

    def system(self, name: str) -> Table:
        """The rows of one system."""
        if name not in self.systems:
            raise UsageError(
                f"no system {name!r}", where="table", hint=f"use one of {', '.join(self.systems)}"
            )
        return self._with([row for row in self.rows if row.get("system", "") == name])

    def _with(self, rows: Sequence[Row]) -> Table:
        return Table(rows, self.metrics, self.definition, self.aggregation, self.trained_on)

    def column(self, metric: str) -> Float64[np.ndarray, " row"]:
        """One score of every row; nan where there is none."""
        return np.asarray([_number(row.get(metric)) for row in self.rows], dtype=np.float64)

    def summary(self, metric: str, *, resamples: int = statistics.RESAMPLES) -> statistics.Summary:
        """Count, mean, standard error, median and 95 % interval over the items of a one-system table."""
        self._one_system()
        return statistics.summarise(self.column(metric), resamples=resamples)

    def headline(self, metric: str) -> float:
        """The figure that the definition prints: mean over items, or over classes."""
        self._one_system()
        if self.aggregation == "mean":
            return statistics.mean(self.column(metric))
        classes = [str(row.get("class", "")) for row in self.rows]
        per_class = statistics.class_means if self.aggregation == "class mean" else statistics.class_medians
        return statistics.mean(list(per_class(self.column(metric), classes).values()))

    def win_rate(self, metric: str) -> float:
        """Share of items with a score above 0; an output that could not be scored did not win.

        Items that no output could score (silent or absent target, nothing to remove) do not count.
        """
        self._one_system()
        values = [
            _number(row.get(metric))
            for row in self.rows
            if row.get("present") is not False and not _item_is_unscorable(row)
        ]
        lost = -1.0
        return statistics.win_rate([value if math.isfinite(value) else lost for value in values])

    def reasons(self) -> dict[str, int]:
        """How often each reason occurs, most frequent first."""
        return dict(Counter(str(row["reason"]) for row in self.rows if row.get("reason")).most_common())

    def _one_system(self) -> None:
        if len(self.systems) > 1:
            listed = ", ".join(self.systems)
            raise UsageError(
                f"the table holds {listed}", where="summary", hint="choose one with .system(name)"
            )

    def as_dict(self) -> dict[str, object]:
        """Rows, definition and summaries of every system, ready for JSON."""
        summaries = {
            name: {
                metric: {
                    **_plain(self.system(name).summary(metric).as_dict()),
                    "headline": _null(self.system(name).headline(metric)),
                    **(
                        {"win_rate": _null(self.system(name).win_rate(metric))}
                        if metric in _IMPROVEMENTS
                        else {}
                    ),
                }
                for metric in self.metrics
            }
            for name in self.systems
        }
        cards = [_plain(asdict(METRICS[name])) for name in self.metrics if name in METRICS]
        return {
            "definition": self.definition,
            "aggregation": self.aggregation,
            "metrics": list(self.metrics),
            "trained_on": list(self.trained_on),
            "cards": cards,
            "summary": summaries,
            "reasons": {name: self.system(name).reasons() for name in self.systems},
            "rows": [_plain(row) for row in self.rows],
        }

    def write(self, path: str | Path) -> Path:
        """Write the table as ``.json`` (all of it), ``.jsonl`` or ``.csv`` (rows), complete or not at all."""
        path = Path(path)
        if path.suffix == ".json":
            text = json.dumps(self.as_dict(), ensure_ascii=False, indent=1, allow_nan=False) + "\n"
        elif path.suffix == ".jsonl":
            lines = (json.dumps(_plain(row), ensure_ascii=False, allow_nan=False) + "\n" for row in self.rows)
            text = "".join(lines)
        elif path.suffix == ".csv":
            text = _csv(self.rows)
        else:
            raise UsageError(
                f"cannot write a table as {path.suffix or 'a file without suffix'}",
                where=str(path),
                hint="use .json, .jsonl or .csv",
            )
        _write_whole(path, text)
        return path

    @staticmethod
    def read(path: str | Path) -> Table:
        """Read a table written as ``.json`` or ``.jsonl``."""
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
            if path.suffix == ".jsonl":
                rows = [json.loads(line) for line in text.splitlines() if line.strip()]
                document: dict[str, object] = {"rows": rows}
            else:
                document = json.loads(text)
            return _from_document(document)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError("cannot be read as a table of scores", where=str(path), why=str(error)) from error

    def summary_markdown(self) -> str:
        """A Markdown table with one line per system and score, and the reasons below it."""
        lines = [
            "| system | metric | n | nan | mean ± SE | 95 % CI | median |",
            "|---|---|---:|---:|---:|---:|---:|",
        ]
        for name in self.systems:
            table = self.system(name)
            lines += [_markdown_line(table, name, metric) for metric in self.metrics]
        if self.definition:
            lines = [self.definition, "", *lines]
        if self.trained_on:
            lines += ["", f"† trained on: {', '.join(self.trained_on)}"]
        told = [
            f"- {name}: {count} × {reason}"
            for name in self.systems
            for reason, count in self.system(name).reasons().items()
        ]
        return "\n".join([*lines, "", *told]).rstrip() + "\n"


def compare(
    a: Table, b: Table, metric: str, *, resamples: int = statistics.RESAMPLES, seed: int = 0
) -> Comparison:
    """Paired difference A − B of two one-system tables; the order of their rows does not matter.

    Args:
        a: Table of system A.
        b: Table of system B.
        metric: Column to compare.
        resamples: Bootstrap resamples.
        seed: Seed of the bootstrap.

    >>> rows = [{"id": str(i), "system": "s", "snr": float(i), "reason": ""} for i in range(3)]
    >>> compare(Table(rows, ("snr",)), Table(rows[::-1], ("snr",)), "snr").difference.mean
    0.0
    """
    for table in (a, b):
        table._one_system()
    values_a, values_b = (
        dict(zip((str(row["id"]) for row in table.rows), table.column(metric).tolist(), strict=True))
        for table in (a, b)
    )
    shared = sorted(values_a.keys() & values_b.keys())
    return Comparison(
        metric=metric,
        difference=statistics.paired_bootstrap(
            [values_a[name] for name in shared],
            [values_b[name] for name in shared],
            resamples=resamples,
            seed=seed,
        ),
        only_in_a=tuple(sorted(values_a.keys() - values_b.keys())),
        only_in_b=tuple(sorted(values_b.keys() - values_a.keys())),
    )


def _number(cell: Cell) -> float:
    return float(cell) if isinstance(cell, int | float) else math.nan


def _item_is_unscorable(row: Row) -> bool:
    """True when the item itself, not the output, is what cannot be scored."""
    parts = str(row.get("reason", "")).split("; ")
    return any(part.split(" (")[0] in _ITEM_SIDE for part in parts)


def _null(value: Cell) -> Cell:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(row: Mapping[str, Cell]) -> dict[str, Cell]:
    return {key: _null(cell) for key, cell in row.items()}


def _from_document(document: dict[str, object]) -> Table:
    rows: list[Row] = list(document["rows"])  # type: ignore[call-overload]
    named = document.get("metrics")
    columns = dict.fromkeys(key for row in rows for key in row)
    metrics = (
        tuple(str(m) for m in named) if isinstance(named, list) else tuple(c for c in columns if c in METRICS)
    )
    aggregation = document.get("aggregation", "mean")
    if aggregation not in ("mean", "class mean", "class median"):
        raise ValueError(f"aggregation {aggregation!r}")
    trained_on = document.get("trained_on", [])
    return Table(
        rows=[{**row, **{m: _number(row.get(m)) for m in metrics}} for row in rows],
        metrics=metrics,
        definition=str(document.get("definition", "")),
        aggregation=aggregation,
        trained_on=tuple(trained_on) if isinstance(trained_on, list) else (),
    )


def _csv(rows: Sequence[Row]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _write_whole(path: Path, text: str) -> None:
    """Write beside the file and rename, so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _markdown_line(table: Table, name: str, metric: str) -> str:
    line = table.summary(metric)
    mark = "†" if metric in table.trained_on else ""
    headline = "" if table.aggregation == "mean" else f" ({table.aggregation} {table.headline(metric):.2f})"
    return (
        f"| {name} | {metric}{mark} | {line.n} | {line.n_nan} "
        f"| {line.mean:.2f} ± {line.standard_error:.2f}{headline} "
        f"| {line.ci_low:.2f} … {line.ci_high:.2f} | {line.median:.2f} |"
    )
