"""AudioCaps (also BiSep's), Clotho and WavCaps in their published layouts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from auralign.data.readers import (
    read_audiocaps,
    read_bisep_audiocaps,
    read_clotho,
    read_phrases,
    read_wavcaps,
)
from auralign.errors import DataError


def tone(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.sin(np.arange(800) / 3), 8000)
    return path


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


HEADER = "audiocap_id,youtube_id,start_time,caption\n"


def audiocaps(root: Path) -> Path:
    write(
        root / "csv_files_v1" / "train.csv",
        HEADER + '91139,r1nicOVtvkQ,130,"A woman talks, then a dog barks"\n',
    )
    test = [
        "103549,7fmOlUlwoNg,20,Constant rattling noise",
        "103541,7fmOlUlwoNg,20,The rattling of a sewing machine",
        "104913,-_a_b_c_d_e,7,Wind",
        "104914,zzzzzzzzzzz,7,Rain",
    ]
    write(root / "csv_files_v1" / "test.csv", HEADER + "\n".join(test) + "\n")
    tone(root / "audio_32000Hz" / "train" / "r1nicOVtvkQ_130.flac")
    tone(root / "audio_32000Hz" / "test" / "7fmOlUlwoNg_20.flac")
    tone(root / "audio_32000Hz" / "test" / "-_a_b_c_d_e_7.flac")
    return root


def test_audiocaps_captions_of_one_clip_are_gathered(tmp_path: Path) -> None:
    reading = read_audiocaps(audiocaps(tmp_path))
    assert {clip.id: clip.captions for clip in reading.clips} == {
        "r1nicOVtvkQ_130": ("A woman talks, then a dog barks",),
        "7fmOlUlwoNg_20": ("Constant rattling noise", "The rattling of a sewing machine"),
        "-_a_b_c_d_e_7": ("Wind",),
    }
    assert [clip.split for clip in reading.clips] == ["train", "test", "test"]
    assert [item.id for item in reading.missing] == ["zzzzzzzzzzz_7"]
    assert "there is no list of val" in reading.notes


@pytest.mark.parametrize(
    "name", ["audio/Y7fmOlUlwoNg.wav", "test/7fmOlUlwoNg_000020.wav", "audio/7fmOlUlwoNg_20.wav"]
)
def test_audiocaps_of_the_authors_is_found_under_other_names(tmp_path: Path, name: str) -> None:
    write(tmp_path / "dataset" / "test.csv", HEADER + "103549,7fmOlUlwoNg,20,Constant rattling noise\n")
    path = tone(tmp_path / name)
    assert [clip.audio for clip in read_audiocaps(tmp_path).clips] == [str(path)]


def test_repeated_audiocap_id_names_both_lines(tmp_path: Path) -> None:
    write(tmp_path / "test.csv", HEADER + "1,7fmOlUlwoNg,20,a\n\n1,7fmOlUlwoNg,30,b\n")
    with pytest.raises(DataError, match=r"test\.csv:4: audiocap_id of test '1' occurs twice.*test\.csv:2"):
        read_audiocaps(tmp_path)


def test_clip_of_two_splits_is_read_once_and_counted(tmp_path: Path) -> None:
    root = audiocaps(tmp_path)
    write(root / "csv_files_v1" / "val.csv", HEADER + "5,r1nicOVtvkQ,130,again\n")
    assert read_audiocaps(root).report.skipped == {"clip of val that train lists too": 1}


def test_caption_with_a_bare_comma_is_an_error_that_explains_quotes(tmp_path: Path) -> None:
    write(tmp_path / "test.csv", HEADER + "1,7fmOlUlwoNg,20,a dog, then a cat\n")
    with pytest.raises(DataError, match=r"test\.csv:2: the row has 5 cells.*put quotes around"):
        read_audiocaps(tmp_path)


# ---- BiSep's AudioCaps


def bisep(root: Path) -> Path:
    parsed = {
        "11": {"file_id": "-_a_b_c_d_e_7", "caption": "Wind and rain", "sources": ["Wind", "Rain"]},
        "22": {"file_id": "7fmOlUlwoNg_20", "caption": "Rattling", "sources": ["Rattling"]},
    }
    write(root / "parsed_all_caps.json", json.dumps(parsed))
    write(root / "train_ids.csv", "11\n22\n")
    write(root / "test_sep2_ids.csv", "11,22\n22,11\n")
    tone(root / "audio" / "-_a_b_c_d_e_7.wav")
    tone(root / "audio" / "7fmOlUlwoNg_20.wav")
    return root


def test_bisep_lists_give_clips_and_pairs(tmp_path: Path) -> None:
    reading = read_bisep_audiocaps(bisep(tmp_path))
    assert [(clip.id, clip.captions, clip.phrases) for clip in reading.clips] == [
        ("11", ("Wind and rain",), ("Wind", "Rain")),
        ("22", ("Rattling",), ("Rattling",)),
    ]
    pairs = [(Path(m.target).stem, Path(m.interferers[0]).stem, m.query, m.rule) for m in reading.mixtures]
    assert pairs == [
        ("-_a_b_c_d_e_7", "7fmOlUlwoNg_20", "Wind and rain", "bisep"),
        ("7fmOlUlwoNg_20", "-_a_b_c_d_e_7", "Rattling", "bisep"),
    ]


def test_bisep_clips_of_a_validation_list_are_read_where_there_is_one(tmp_path: Path) -> None:
    root = bisep(tmp_path)
    write(root / "train_ids.csv", "11\n")
    write(root / "val_ids.csv", "22\n")
    assert [(clip.id, clip.split) for clip in read_bisep_audiocaps(root).clips] == [
        ("11", "train"),
        ("22", "val"),
    ]
    assert [clip.id for clip in read_bisep_audiocaps(root, split="val").clips] == ["22"]
    (root / "val_ids.csv").unlink()
    with pytest.raises(DataError, match="val_ids"):
        read_bisep_audiocaps(root, split="val")


def test_bisep_id_without_caption_is_named(tmp_path: Path) -> None:
    root = bisep(tmp_path)
    write(root / "test_sep2_ids.csv", "11,33\n")
    with pytest.raises(DataError, match=r"test_sep2_ids\.csv:1: column 'interferer' holds '33'"):
        read_bisep_audiocaps(root, split="test")


def test_bisep_file_id_without_start_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "p.json", '{"11": {"file_id": "abcdefghijk", "caption": "x", "sources": []}}')
    with pytest.raises(
        DataError, match=r"p\.json\[11\]: file_id 'abcdefghijk' holds 11|file_id 'abcdefghijk' is not"
    ):
        read_phrases(path)


# ---- Clotho

CAPTIONS = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5\n"
ODD = "Été à la café, 01.wav"


def clotho(root: Path, *, delimiter: str = ",", encoding: str = "iso-8859-1") -> Path:
    write(
        root / "clotho_captions_development.csv",
        CAPTIONS + f'"{ODD}",a,b,"c, d",e,f\nSanta Motor.wav,1,2,3,4,5\n',
    )
    header = (
        "file_name",
        "keywords",
        "sound_id",
        "sound_link",
        "start_end_samples",
        "manufacturer",
        "license",
    )
    rows = [
        (f'"{ODD}"', '"café;crowd"', "Not found", "Not found", '"[0, 1]"', "Zoé", "http://cc/by/3.0/"),
        ("Santa Motor.wav", '"motor;"', "1234", "https://x", '"[0, 1]"', "m", "http://cc/by/4.0/"),
    ]
    lines = [delimiter.join(row) for row in (header, *rows)]
    write(root / "clotho_metadata_development.csv", "\r\n".join(lines) + "\r\n", encoding)
    tone(root / "development" / ODD)
    tone(root / "development" / "Santa Motor.wav")
    return root


@pytest.mark.parametrize("delimiter", [",", ";"])
@pytest.mark.parametrize("encoding", ["iso-8859-1", "utf-8"])
def test_clotho_metadata_is_read_in_both_encodings_and_delimiters(
    tmp_path: Path, delimiter: str, encoding: str
) -> None:
    first, second = read_clotho(clotho(tmp_path, delimiter=delimiter, encoding=encoding)).clips
    assert (first.id, first.captions) == (
        "development/" + ODD.removesuffix(".wav"),
        ("a", "b", "c, d", "e", "f"),
    )
    assert (first.labels, first.source) == (("café", "crowd"), ODD.removesuffix(".wav"))
    assert (second.labels, second.source, second.license) == (("motor",), "1234", "http://cc/by/4.0/")


def test_clotho_names_with_spaces_around_them_and_in_two_splits(tmp_path: Path) -> None:
    for part in ("development", "evaluation"):
        write(tmp_path / f"clotho_captions_{part}.csv", CAPTIONS + " e ieio ieai.wav,1,2,3,4,5\n")
        tone(tmp_path / part / " e ieio ieai.wav")
    reading = read_clotho(tmp_path)
    assert [clip.id for clip in reading.clips] == ["development/e ieio ieai", "evaluation/e ieio ieai"]
    assert [Path(clip.audio).name for clip in reading.clips] == [" e ieio ieai.wav"] * 2


def test_clotho_in_the_layout_of_aac_datasets(tmp_path: Path) -> None:
    clotho(tmp_path / "x")
    base = tmp_path / "CLOTHO_v2.1"
    (base / "clotho_audio_files").mkdir(parents=True)
    (tmp_path / "x" / "development").rename(base / "clotho_audio_files" / "development")
    (tmp_path / "x").rename(base / "clotho_csv_files")
    assert len(read_clotho(tmp_path).clips) == 2


def test_clotho_without_metadata_says_so(tmp_path: Path) -> None:
    root = clotho(tmp_path)
    (root / "clotho_metadata_development.csv").unlink()
    reading = read_clotho(root)
    assert len(reading.clips) == 2
    assert any("no keywords" in note for note in reading.notes)


def test_empty_clotho_caption_is_named(tmp_path: Path) -> None:
    write(tmp_path / "clotho_captions_development.csv", CAPTIONS + "a.wav,1,2,,4,5\n")
    with pytest.raises(DataError, match=r":2: column 'caption_3' holds ''.*empty"):
        read_clotho(tmp_path)


# ---- WavCaps


def wavcaps(root: Path) -> Path:
    sets = {
        "AudioSet_SL/as_final.json": [
            {"id": "Y--_a_b_c_d_.wav", "caption": "A man speaks.", "duration": 10.0},
            {"id": "Yvb1fPSD_I4c.wav", "caption": "A dog barks.", "duration": 10.0},
        ],
        "FreeSound/fsd_final.json": [
            {"id": 180913, "caption": "Rain.", "duration": 3.5, "tags": ["x"], "author": "y"}
        ],
    }
    for name, items in sets.items():
        write(root / "json_files" / name, json.dumps({"num_captions_per_audio": 1, "data": items}))
    bible = [{"title": "t", "id": "2219", "caption": "A plane lands.", "duration": 14.1}]
    write(root / "json_files" / "SoundBible" / "sb_final.json", json.dumps(bible))
    for name in (
        "AudioSet_SL/Y--_a_b_c_d_",
        "AudioSet_SL/Yvb1fPSD_I4c",
        "FreeSound/180913",
        "SoundBible/2219",
    ):
        tone(root / "Audio" / f"{name}.flac")
    black = {"AudioSet": ["Yvb1fPSD_I4c.wav"], "FreeSound": [180913]}
    write(root / "json_files" / "blacklist" / "blacklist_exclude_test_ac.json", json.dumps(black))
    return root


def test_wavcaps_sources_are_read_with_their_file_names(tmp_path: Path) -> None:
    reading = read_wavcaps(wavcaps(tmp_path))
    assert [(clip.id, clip.duration_s) for clip in reading.clips] == [
        ("AudioSet_SL/Y--_a_b_c_d_", 10.0),
        ("AudioSet_SL/Yvb1fPSD_I4c", 10.0),
        ("FreeSound/180913", 3.5),
        ("SoundBible/2219", 14.1),
    ]
    assert any("no blacklist" in note for note in reading.notes)
    assert "there is no bbc_final.json" in reading.notes


def test_wavcaps_blacklist_leaves_clips_out_and_counts_them(tmp_path: Path) -> None:
    root = wavcaps(tmp_path)
    reading = read_wavcaps(root, exclude=[root / "json_files/blacklist/blacklist_exclude_test_ac.json"])
    assert [clip.id for clip in reading.clips] == ["AudioSet_SL/Y--_a_b_c_d_", "SoundBible/2219"]
    assert reading.report.skipped == {"on a blacklist": 2}


def test_wavcaps_item_without_caption_is_named(tmp_path: Path) -> None:
    root = wavcaps(tmp_path)
    write(root / "json_files" / "SoundBible" / "sb_final.json", '{"data": [{"id": "2219", "captions": "x"}]}')
    with pytest.raises(
        DataError, match=r"sb_final\.json\[0\]: field 'caption' is absent \(there are id, captions\)"
    ):
        read_wavcaps(root, split="SoundBible")


def test_wavcaps_id_that_is_a_path_is_refused(tmp_path: Path) -> None:
    root = wavcaps(tmp_path)
    write(root / "json_files" / "SoundBible" / "sb_final.json", '[{"id": "../2219", "caption": "x"}]')
    with pytest.raises(DataError, match=r"'../2219'"):
        read_wavcaps(root, split="SoundBible")


def test_wavcaps_blacklist_of_another_form_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "b.json", '["x"]')
    with pytest.raises(DataError, match="no list 'AudioSet'"):
        read_wavcaps(wavcaps(tmp_path), exclude=[path])
