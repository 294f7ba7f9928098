"""What commands print: tables and JSON on stdout, progress on stderr when someone is watching."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def print_json(value: Any) -> None:
    """One JSON document on stdout; values that are not finite become null."""
    print(json.dumps(_strict(value), indent=2, ensure_ascii=False, default=str))


def print_table(rows: Sequence[Row], columns: Sequence[str]) -> None:
    """Rows as aligned text; plain when piped, so that ``cut`` and ``awk`` see nothing but words."""
    cells = [[_text(row.get(column)) for column in columns] for row in rows]
    widths = [max([len(name), *(len(line[i]) for line in cells)]) for i, name in enumerate(columns)]
    if sys.stdout.isatty():
        print(
            "  ".join(
                name.replace("_", " ").ljust(width) for name, width in zip(columns, widths, strict=True)
            )
        )
        print("  ".join("─" * width for width in widths))
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def say(text: str) -> None:
    """One line for the person at the terminal."""
    print(text, file=sys.stderr, flush=True)


def show_log(*, quiet: bool = False) -> None:
    """Sends the package's log to stderr: what a command chose and why, or only warnings when quiet."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("auralign")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.WARNING if quiet else logging.INFO)


class Progress:
    """Callback ``(done, total, stage)`` that draws a bar with percentage and time left on a terminal.

    Silent when stderr is not a terminal or when ``quiet``.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._bar: Any = None
        self._task: Any = None
        if quiet or not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
        )
        self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task("", total=None)

    def __call__(self, done: int | float, total: int | float, stage: str) -> None:
        """Shows how far the work is."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, description=stage)

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, list | tuple):
        return "…".join(map(_text, value))
    return str(value)


def _strict(value: Any) -> Any:
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return value
