"""Tables and JSON: tolerant of what is harmless, exact about what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from auralign.data.readers.tables import json_entries, read_json, read_rows
from auralign.errors import DataError


def test_bom_crlf_and_blank_lines_change_nothing(tmp_path: Path) -> None:
    plain, odd = tmp_path / "plain.csv", tmp_path / "odd.csv"
    plain.write_bytes(b'id,caption\n1,dog\n2,"a, b"\n')
    odd.write_bytes(b'\xef\xbb\xbfid,caption\r\n1,dog\r\n\r\n2, "a, b"\r\n\r\n  \r\n,\r\n')
    rows = [[(r["id"], r["caption"]) for r in read_rows(p, required=("id", "caption"))] for p in (plain, odd)]
    assert rows[0] == rows[1] == [("1", "dog"), ("2", "a, b")]


def test_line_of_a_row_after_a_quoted_line_break_is_its_first(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text('id,caption\n1,"two\nlines"\n2,"doubled ""quotes"""\n')
    rows = read_rows(path, required=("id",))
    assert [row.line for row in rows] == [2, 4]
    assert rows[1]["caption"] == 'doubled "quotes"'


def test_comment_lines_are_dropped_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text('# Segments csv, "created" today\n#1 hit,a\nx,b\n')
    assert [row["a"] for row in read_rows(path, columns=("a", "b"), comments="#")] == ["x"]
    path.write_text("#1 hit,a\nx,b\n")
    assert [row["a"] for row in read_rows(path, columns=("a", "b"))] == ["#1 hit", "x"]


def test_two_columns_of_one_name_are_both_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("idx,noise,noise\n0,a,b\n")
    assert read_rows(path, required=("idx",))[0].all("noise") == ("a", "b")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"id,caption\n1,a, b\n", r"x\.csv:2: the row has 3 cells, expected 2 \(id, caption\)"),
        (b"id,caption\n1\n", r"x\.csv:2: the row has 1 cells"),
        (b'id,caption\n1,"open\n2,b\n', r"x\.csv:2: the row cannot be parsed.*quote"),
        (b"id,text\n1,a\n", r"x\.csv:1: the header has no column 'caption'.*it names id, text"),
        (b"id,captions\n1,a\n", "'captions' is near"),
        (b"id,caption\n", "the table has no rows"),
        (b"", "the table has no rows"),
        (b"id,caption\n1,\xff\n", r"x\.csv:2: byte 0xff is not valid UTF-8"),
        (b"id,caption\n1,\0\n", "the file is not text"),
    ],
)
def test_bad_tables_are_named_by_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_rows(path, required=("id", "caption"))


def test_missing_table_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_rows(tmp_path / "none.csv", columns=("a",))


def test_bad_json_is_named_by_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"a": 1,\n "b": }')
    with pytest.raises(DataError, match=r"x\.json:2:7: not valid JSON"):
        read_json(path)


def test_repeated_json_key_names_both_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"flute": [1],\n "tuba": [2],\n "flute": [3]}')
    with pytest.raises(DataError, match=r"'flute' occurs twice.*lines 1, 3"):
        read_json(path)


@pytest.mark.parametrize("content", ['{"rows": []}', "[1]", '"x"', '{"data": {}}'])
def test_json_of_another_form_is_an_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(DataError, match="not a list of objects"):
        json_entries(path)


def test_json_list_is_read_bare_and_under_data(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for content in ('[{"id": 7}]', '{"num": 1, "data": [{"id": 7}]}'):
        path.write_text(content)
        assert json_entries(path)[0].text("id") == "7"


@pytest.mark.parametrize("value", ["null", '""', "true", "[1]", "1.5"])
def test_field_that_is_no_text_is_named(tmp_path: Path, value: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(f'[{{"id": {value}}}]')
    with pytest.raises(DataError, match=r"x\.json\[0\]: field 'id' holds"):
        json_entries(path)[0].text("id")
