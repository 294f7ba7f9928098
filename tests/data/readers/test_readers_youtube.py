"""Names of YouTube clips: ids hold '_' and start with '-', and five conventions name one clip."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auralign.data.readers.tables import read_rows
from auralign.data.readers.youtube import YoutubeFiles, YoutubeKey, parse_clip_name, youtube_key
from auralign.errors import DataError

ids = st.text("abcXYZ019_-", min_size=11, max_size=11)


@given(ids, st.integers(0, 99999))
def test_start_conventions_give_back_the_key(name: str, start: int) -> None:
    key = YoutubeKey(name, start)
    assert parse_clip_name(f"{name}_{start}") == key
    assert parse_clip_name(f"{name}_{start:06d}") == key


@given(ids)
def test_startless_conventions_give_back_the_id(name: str) -> None:
    assert parse_clip_name(name) == YoutubeKey(name)
    assert parse_clip_name("Y" + name) == YoutubeKey(name)


@pytest.mark.parametrize(
    "stem", ["", "short", "abcdefghijklm", "abcdefghijk_", "abcdefghijk_x", "abc.efghijk"]
)
def test_other_names_are_no_clips(stem: str) -> None:
    assert parse_clip_name(stem) is None


def _touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


@pytest.mark.parametrize(
    ("convention", "name"),
    [
        ("id_start", "-a_b_c_d_ef_30.flac"),
        ("id_start6", "-a_b_c_d_ef_000030.mp4"),
        ("Yid", "Y-a_b_c_d_ef.wav"),
        ("c1/c2/id", "-/a/-a_b_c_d_ef.wav"),
        ("label/id", "dog_barking/-a_b_c_d_ef.wav"),
    ],
)
def test_every_convention_is_found_and_counted(tmp_path: Path, convention: str, name: str) -> None:
    path = _touch(tmp_path / name)
    files = YoutubeFiles([tmp_path])
    assert files.find(YoutubeKey("-a_b_c_d_ef", 30), "dog barking") == path
    assert dict(files.hits) == {convention: 1}
    assert files.find(YoutubeKey("zzzzzzzzzzz", 30)) is None
    assert files.misses == 1


def test_video_with_two_clips_is_not_found_by_a_name_without_start(tmp_path: Path) -> None:
    _touch(tmp_path / "Yabcdefghijk.wav")
    keys = [YoutubeKey("abcdefghijk", 0), YoutubeKey("abcdefghijk", 30)]
    files = YoutubeFiles([tmp_path], keys)
    assert [files.find(key) for key in keys] == [None, None]
    assert "several clips" in files.looked_for(keys[0])


def test_files_under_two_conventions_are_reported(tmp_path: Path) -> None:
    first = _touch(tmp_path / "abcdefghijk_5.wav")
    _touch(tmp_path / "Yabcdefghijk.wav")
    files = YoutubeFiles([tmp_path])
    assert files.find(YoutubeKey("abcdefghijk", 5)) == first
    assert any("several names" in note for note in files.notes())


def test_id_cut_at_underscore_is_an_error_that_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["abcdefghijk", "10"], ["abc", "10"]])
    rows = read_rows(path, columns=("id", "start"))
    assert youtube_key(rows[0], "id", "start") == YoutubeKey("abcdefghijk", 10)
    with pytest.raises(DataError, match=r"x\.csv:2: column 'id' holds 'abc'.*split on '_'"):
        youtube_key(rows[1], "id", "start")


@pytest.mark.parametrize("start", ["-1", "1.5", "nan", "ten", ""])
def test_start_must_be_a_whole_second(tmp_path: Path, start: str) -> None:
    path = tmp_path / "x.csv"
    path.write_text(f"abcdefghijk,{start}\n")
    with pytest.raises(DataError, match="column 'start'"):
        youtube_key(read_rows(path, columns=("id", "start"))[0], "id", "start")
