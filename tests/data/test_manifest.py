from __future__ import annotations

import json
from pathlib import Path

import pytest

from auralign.data.clip import Clip
from auralign.data.manifest import read_manifest, write_manifest
from auralign.errors import DataError

CLIP = Clip(
    "p/a",
    "audio/p/a.ogg",
    1.5,
    16_000,
    1,
    ("a dog",),
    ("dog barking",),
    "event",
    "train",
    source="p/dog",
    license="CC0-1.0",
    sha256="00",
    pictures=("pictures/dog.png",),
)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "manifest.jsonl"
    other = Clip("p/b", "b.ogg", labels=("violin",), kind="instrument", split="test", soundfont="f")
    write_manifest(path, [other, CLIP])
    assert read_manifest(path) == [CLIP, other]


def test_the_order_of_the_clips_does_not_change_the_file(tmp_path: Path) -> None:
    other = Clip("p/0", "b.ogg", labels=("violin",), kind="instrument", split="test")
    write_manifest(tmp_path / "1.jsonl", [CLIP, other])
    write_manifest(tmp_path / "2.jsonl", [other, CLIP])
    assert (tmp_path / "1.jsonl").read_bytes() == (tmp_path / "2.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "noise"}, "kind"),
        ({"labels": "dog"}, "labels"),
        ({"duration_s": -1}, "duration_s"),
        ({"duration_s": float("nan")}, "duration_s"),
        ({"sample_rate": 0}, "sample_rate"),
        ({"channels": True}, "channels"),
        ({"split": 3}, "split"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_wrong_field_is_named_with_its_line(tmp_path: Path, change: dict, said: str) -> None:
    good = {"id": "a", "audio": "a.ogg", "labels": ["x"], "kind": "event", "split": "train"}
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps(good) + "\n" + json.dumps({**good, "id": "b", **change}) + "\n")
    with pytest.raises(DataError, match=rf"m\.jsonl:2: .*{said}"):
        read_manifest(path)


@pytest.mark.parametrize("missing", ["id", "audio", "labels", "kind", "split"])
def test_a_missing_field_is_named(tmp_path: Path, missing: str) -> None:
    row = {"id": "a", "audio": "a.ogg", "labels": ["x"], "kind": "event", "split": "train"}
    del row[missing]
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(DataError, match=f"'{missing}' is missing"):
        read_manifest(path)


@pytest.mark.parametrize("line", ["{", "[]", "3"])
def test_a_line_that_is_no_object_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(line)
    with pytest.raises(DataError, match=r"m\.jsonl:1"):
        read_manifest(path)


def test_a_repeated_id_is_refused(tmp_path: Path) -> None:
    row = json.dumps({"id": "a", "audio": "a.ogg", "labels": ["x"], "kind": "event", "split": "train"})
    path = tmp_path / "m.jsonl"
    path.write_text(row + "\n" + row)
    with pytest.raises(DataError, match="twice"):
        read_manifest(path)


def test_a_missing_manifest_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="auralign data build soundbox"):
        read_manifest(tmp_path / "none.jsonl")
