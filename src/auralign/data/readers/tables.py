"""Reads the tables and JSON files of data sets, and says exactly where a bad value is."""

from __future__ import annotations

import csv
import difflib
import io
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from auralign.errors import DataError


@dataclass(frozen=True)
class Row:
    """One row of a table, which knows its file and line.

    Args:
        path: File.
        line: Line on which the row starts, from 1.
        columns: Names of the columns; a name may occur twice.
        cells: Values, one per column; shorter if trailing optional columns are absent.
    """

    path: Path
    line: int
    columns: tuple[str, ...]
    cells: tuple[str, ...]

    @property
    def where(self) -> str:
        """File and line, for messages."""
        return f"{self.path}:{self.line}"

    def __getitem__(self, column: str) -> str:
        return self.all(column)[0]

    def __contains__(self, column: object) -> bool:
        return column in self.columns[: len(self.cells)]

    def all(self, column: str) -> tuple[str, ...]:
        """Every value of a column whose name may occur several times."""
        return tuple(
            cell.strip() for name, cell in zip(self.columns, self.cells, strict=False) if name == column
        )

    def exact(self, column: str) -> str:
        """A value with the spaces around it."""
        return self.cells[self.columns.index(column)]

    def text(self, column: str) -> str:
        """A value that must not be empty, without the spaces around it."""
        value = self[column]
        if not value:
            raise self.bad(column, "the cell is empty", hint="fill it in or remove the row")
        return value

    def integer(self, column: str) -> int:
        """A whole number."""
        try:
            return int(self[column])
        except ValueError:
            raise self.bad(column, "expected a whole number") from None

    def number(self, column: str) -> float:
        """A finite number."""
        try:
            value = float(self[column])
        except ValueError:
            raise self.bad(column, "expected a number") from None
        if not math.isfinite(value):
            raise self.bad(column, "expected a finite number")
        return value

    def bad(self, column: str, why: str, *, hint: str = "") -> DataError:
        """The error for a bad value, with file, line, column and the value."""
        return DataError(
            f"column {column!r} holds {self[column]!r}",
            where=self.where,
            why=why,
            hint=hint or "correct this row, or download the metadata again",
        )


def read_text(path: Path, *, encodings: Sequence[str] = ("utf-8-sig",)) -> str:
    """The text of a file in the first of the encodings that fits.

    Raises:
        DataError: If the file cannot be read, is not text, or fits none of the encodings.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=str(path)) from None
    if b"\0" in data:
        raise DataError(
            "the file is not text",
            where=str(path),
            why=f"byte {data.index(bytes(1))} is zero",
            hint="save it as UTF-8 text, or download it again",
        )
    for encoding in encodings:
        try:
            return data.decode(encoding)
        except UnicodeDecodeError as error:
            line, byte = data.count(b"\n", 0, error.start) + 1, data[error.start]
    raise DataError(
        f"byte 0x{byte:02x} is not valid {encodings[-1].removesuffix('-sig').upper()}",
        where=f"{path}:{line}",
        hint="save the file as UTF-8, or download it again",
    )


def _records(path: Path, text: str, delimiter: str, trim: bool) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=trim, strict=True
    )
    start = 1
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                "the row cannot be parsed",
                where=f"{path}:{start}",
                why=str(error),
                hint='look for a quote that is not closed or not doubled ("")',
            ) from None
        yield start, cells
        start = reader.line_num + 1


def read_rows(
    path: Path,
    *,
    columns: Sequence[str] = (),
    required: Sequence[str] = (),
    delimiter: str = ",",
    encodings: Sequence[str] = ("utf-8-sig",),
    least: int | None = None,
    comments: str = "",
    trim: bool = True,
) -> list[Row]:
    """The rows of a delimited table, without its blank lines.

    Args:
        path: File.
        columns: Names of the columns of a table without header.
        required: Columns that the header must name; the table then has a header. Further ones are kept.
        delimiter: One character between cells.
        encodings: Encodings to try, in order; a byte-order mark is dropped.
        least: Cells that a row of a header-less table needs; all of ``columns`` if not given.
        comments: Lines that start with this are left out; empty: there are no comments.
        trim: Spaces after a delimiter are no part of the cell.

    Raises:
        DataError: If a row has a wrong number of cells, a quote is not closed, or the header lacks a column.
    """
    names, rows = tuple(columns), []
    text = read_text(path, encodings=encodings)
    if comments:
        text = re.sub(rf"^{re.escape(comments)}.*$", "", text, flags=re.MULTILINE)
    for line, cells in _records(path, text, delimiter, trim):
        if not any(cell.strip() for cell in cells):
            continue
        if not names:
            names = _header(path, line, cells, required)
            continue
        if not (least if columns and least else len(names)) <= len(cells) <= len(names):
            raise DataError(
                f"the row has {len(cells)} cells, expected {len(names)} ({', '.join(names)})",
                where=f"{path}:{line}",
                why=f"it reads {delimiter.join(cells)[:80]!r}",
                hint="put quotes around a text that holds commas, or check that this is the right file",
            )
        rows.append(Row(path, line, names, tuple(cells)))
    if not rows:
        raise DataError("the table has no rows", where=str(path), hint="download it again")
    return rows


def _header(path: Path, line: int, cells: Sequence[str], required: Sequence[str]) -> tuple[str, ...]:
    names = tuple(cell.strip() for cell in cells)
    for column in required:
        if column not in names:
            near = difflib.get_close_matches(column, names, 1)
            raise DataError(
                f"the header has no column {column!r}",
                where=f"{path}:{line}",
                why=f"it names {', '.join(names)}" + (f"; {near[0]!r} is near" if near else ""),
                hint=f"the first line must name {', '.join(required)}",
            )
    return names


def read_json(path: Path) -> Any:
    """The content of a JSON file; a key that occurs twice in one object is an error.

    Raises:
        DataError: If the file is no JSON or repeats a key.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise DataError(
                f"key {twice!r} occurs twice in one object",
                where=str(path),
                why=f"on lines {', '.join(map(str, lines_of(text, twice)))}",
                hint="merge the two entries",
            )
        return found

    text = read_text(path)
    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise DataError(
            "not valid JSON",
            where=f"{path}:{error.lineno}:{error.colno}",
            why=error.msg,
            hint="download it again",
        ) from None
    except RecursionError:
        raise DataError("the JSON is nested too deeply", where=str(path)) from None


def lines_of(text: str, value: str) -> list[int]:
    """Lines (from 1) on which a quoted JSON string occurs."""
    quoted = json.dumps(value, ensure_ascii=False)
    return [number for number, line in enumerate(text.splitlines(), 1) if quoted in line]


@dataclass(frozen=True)
class Entry:
    """One object of a JSON list, which knows its file and index.

    Args:
        path: File.
        key: Index or key of the object.
        value: The object.
    """

    path: Path
    key: str
    value: dict[str, Any]

    @property
    def where(self) -> str:
        """File and index, for messages."""
        return f"{self.path}[{self.key}]"

    def text(self, name: str) -> str:
        """A field that must be a non-empty text or a number."""
        value = self.value.get(name)
        if isinstance(value, bool) or not isinstance(value, (str, int)) or not str(value).strip():
            what = (
                f"holds {value!r}" if name in self.value else f"is absent (there are {', '.join(self.value)})"
            )
            raise DataError(
                f"field {name!r} {what}", where=self.where, why="expected a text", hint="correct this entry"
            )
        return str(value).strip()

    def texts(self, name: str) -> tuple[str, ...]:
        """A field that is a text, a list of texts, or absent."""
        value = self.value.get(name) or []
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise DataError(
                f"field {name!r} holds {value!r}", where=self.where, why="expected a list of texts"
            )
        return tuple(item.strip() for item in items if item.strip())

    def number(self, name: str) -> float | None:
        """A field that is a finite number, or absent."""
        value = self.value.get(name)
        if value is None:
            return None
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise DataError(f"field {name!r} holds {value!r}", where=self.where, why="expected a number")
        return number


def json_entries(path: Path, *, under: str = "data") -> list[Entry]:
    """The objects of a JSON file that is a list, or an object with a list under ``under``.

    Raises:
        DataError: If the file has another form.
    """
    content = read_json(path)
    found = (
        f"an object with the keys {', '.join(content)}"
        if isinstance(content, dict)
        else type(content).__name__
    )
    if isinstance(content, dict):
        content = content.get(under)
    if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
        raise DataError(
            "not a list of objects",
            where=str(path),
            why=f"found {found}",
            hint=f'the file must be a list of objects or {{"{under}": [...]}}',
        )
    return [Entry(path, str(index), item) for index, item in enumerate(content)]
