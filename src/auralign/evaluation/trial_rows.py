"""Rows of scores on disk: one file an arm, seed and list, appended as items are finished."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from auralign.errors import DataError
from auralign.evaluation.table import Row

Key = tuple[str, ...]
TRIAL_KEY = ("list", "id", "query", "arm", "model")
"""List, item, query, arm and the weights that answered."""


class RowFiles:
    """A folder of row files.

    Args:
        folder: Made when missing.
        key: Columns that make a row the same row.
        file: Columns that name its file.
    """

    def __init__(
        self,
        folder: Path,
        *,
        key: tuple[str, ...] = TRIAL_KEY,
        file: tuple[str, ...] = ("arm", "seed", "list"),
    ) -> None:
        self._key, self._file = key, file
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        for path in folder.glob("*.jsonl"):
            _cut_torn_line(path)

    def append(self, rows: Sequence[Row]) -> None:
        """Add rows, each to its file."""
        lines: dict[str, list[str]] = defaultdict(list)
        for row in rows:
            name = re.sub(r"[^\w.-]+", "_", "-".join(str(row[column]) for column in self._file))
            plain = {
                key: None if isinstance(cell, float) and not math.isfinite(cell) else cell
                for key, cell in row.items()
            }
            lines[name].append(json.dumps(plain, ensure_ascii=False, allow_nan=False) + "\n")
        for name, text in lines.items():
            with (self._folder / f"{name}.jsonl").open("a", encoding="utf-8") as file:
                file.write("".join(text))

    def read(self) -> dict[Key, Row]:
        """All rows; the last one of a key counts."""
        found: dict[Key, Row] = {}
        for path in sorted(self._folder.glob("*.jsonl")):
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                try:
                    row = json.loads(line)
                    found[tuple(str(row[name]) for name in self._key)] = row
                except (ValueError, KeyError, TypeError) as error:
                    raise DataError(
                        "the row cannot be read",
                        where=f"{path}:{number}",
                        why=str(error),
                        hint="take the line out; its mixture is scored again",
                    ) from error
        return found


def _cut_torn_line(path: Path) -> None:
    """Drop what a kill left of a last line, so that the next row does not continue it."""
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        path.write_bytes(data[: data.rfind(b"\n") + 1])
