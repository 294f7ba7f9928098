"""VGGSound, MUSIC, FSD50K and ESC-50 in their published layouts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from auralign.data.readers import READERS, read_esc50, read_fsd50k, read_music, read_vggsound
from auralign.data.readers.measure import measure
from auralign.errors import DataError


def tone(path: Path, rate: int = 8000, seconds: float = 0.1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(rate * seconds)) / rate
    soundfile.write(path, 0.1 * np.sin(2 * np.pi * 440 * time), rate)
    return path


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


# ---- VGGSound


def vggsound(root: Path) -> Path:
    rows = [
        '---g-f_I2yQ,1,"vehicle horn, car horn, honking",test',
        "--0PQM4-hqg,30,waterfall burbling,train",
        "a_b_c_d_e_f,000010,people marching,test",
        "zzzzzzzzzzz,10,people marching,train",
    ]
    write(
        root / "vggsound.csv", "# YouTube ID, start seconds, label, split.\n" + "\r\n".join(rows) + "\r\n\r\n"
    )
    tone(root / "audio" / "---g-f_I2yQ_000001.wav")
    tone(root / "audio" / "-" / "-" / "--0PQM4-hqg.wav")
    tone(root / "audio" / "Ya_b_c_d_e_f.wav")
    return root


def test_vggsound_master_is_read_through_three_conventions(tmp_path: Path) -> None:
    reading = read_vggsound(vggsound(tmp_path))
    assert [clip.id for clip in reading.clips] == ["---g-f_I2yQ_1", "--0PQM4-hqg_30", "a_b_c_d_e_f_10"]
    assert reading.clips[0].labels == ("vehicle horn, car horn, honking",)
    assert [clip.split for clip in reading.clips] == ["test", "train", "test"]
    assert [item.id for item in reading.missing] == ["zzzzzzzzzzz_10"]
    assert reading.missing[0].where.endswith("vggsound.csv:5")
    assert str(reading.report) == "3 found, 1 missing"
    assert "1 as id_start6, 1 as c1/c2/id, 1 as Yid; not found: 1" in reading.notes[0]


def test_vggsound_split_is_chosen_and_the_rest_counted(tmp_path: Path) -> None:
    reading = read_vggsound(vggsound(tmp_path), split="test")
    assert len(reading.clips) == 2
    assert reading.report.skipped == {"split train": 2}
    with pytest.raises(DataError, match=r"no split 'dev'.*train, test"):
        read_vggsound(tmp_path, split="dev")


def test_vggsound_test_list_names_files(tmp_path: Path) -> None:
    write(tmp_path / "test.csv", "-_a_b_c_d_e_000030.mp4,people whispering\n")
    tone(tmp_path / "-_a_b_c_d_e_000030.wav")
    clip = read_vggsound(tmp_path).clips[0]
    assert (clip.id, clip.split, clip.source) == ("-_a_b_c_d_e_30", "test", "-_a_b_c_d_e")


def test_repeated_vggsound_clip_names_both_lines(tmp_path: Path) -> None:
    root = vggsound(tmp_path)
    with (root / "vggsound.csv").open("a") as file:
        file.write("--0PQM4-hqg,30,waterfall burbling,train\n")
    with pytest.raises(
        DataError, match=r"vggsound\.csv:7: clip '--0PQM4-hqg_30' occurs twice.*first at .*:3"
    ):
        read_vggsound(root)


def test_unknown_vggsound_split_names_the_cell(tmp_path: Path) -> None:
    write(tmp_path / "vggsound.csv", "--0PQM4-hqg,30,waterfall burbling,valid\n")
    with pytest.raises(DataError, match=r"vggsound\.csv:1: column 'split' holds 'valid'"):
        read_vggsound(tmp_path)


# ---- every reader


@pytest.mark.parametrize("name", sorted(READERS))
def test_wrong_root_says_what_was_expected_and_what_is_there(tmp_path: Path, name: str) -> None:
    write(tmp_path / "holiday.txt", "")
    with pytest.raises(DataError, match=r"expected one of .*holds holiday\.txt"):
        READERS[name](tmp_path)


@pytest.mark.parametrize("name", sorted(READERS))
def test_root_that_does_not_exist_suggests_the_nearest(tmp_path: Path, name: str) -> None:
    (tmp_path / "dataset").mkdir()
    with pytest.raises(DataError, match=r"did you mean .*dataset"):
        READERS[name](tmp_path / "datasets")


def test_root_one_level_too_high_or_low_is_suggested(tmp_path: Path) -> None:
    root = vggsound(tmp_path / "VGGSound")
    with pytest.raises(DataError, match=r"To fix: give .*VGGSound, which holds vggsound.csv"):
        read_vggsound(tmp_path)
    with pytest.raises(DataError, match=r"To fix: give .*VGGSound, which holds vggsound.csv"):
        read_vggsound(root / "audio")


def test_root_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="unpack the archive"):
        read_esc50(write(tmp_path / "esc50.zip", "x"))


def test_all_sounds_missing_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "vggsound.csv", "--0PQM4-hqg,30,waterfall burbling,train\n")
    with pytest.raises(
        DataError, match=r"none of the 1 sounds listed by VGGSound is on disk.*--0PQM4-hqg_000030"
    ):
        read_vggsound(tmp_path)


def test_measuring_fills_rate_and_length_and_finds_damaged_files(tmp_path: Path) -> None:
    root = vggsound(tmp_path)
    (root / "audio" / "Ya_b_c_d_e_f.wav").write_bytes(b"RIFF not really")
    reading = measure(read_vggsound(root))
    assert [(clip.duration_s, clip.sample_rate, clip.channels) for clip in reading.clips] == [
        (0.1, 8000, 1)
    ] * 2
    assert len(reading.missing) == 2
    assert "1 files cannot be opened" in reading.notes


# ---- MUSIC


def music(root: Path) -> Path:
    solo = {"acoustic_guitar": ["ZeQPNWdFs_4", "-jK8dkL_x0A"], "flute": ["jW_AuF6dQYY"]}
    write(root / "MUSIC_solo_videos.json", json.dumps({"version": 1.0, "videos": solo}, indent=1))
    more = {"flute": ["jW_AuF6dQYY"], "pipa": ["pppppppppp_"]}
    write(root / "MUSIC21_solo_videos.json", json.dumps({"version": 1.0, "videos": more}, indent=1))
    duet = {"saxophone acoustic_guitar": ["8DHG_hVSw1o"]}
    write(root / "MUSIC_duet_videos.json", json.dumps({"version": 1.0, "videos": duet}, indent=1))
    tone(root / "solo" / "audio" / "acoustic_guitar" / "ZeQPNWdFs_4.wav")
    tone(root / "solo" / "audio" / "acoustic_guitar" / "-jK8dkL_x0A.wav")
    tone(root / "solo" / "audio" / "flute" / "jW_AuF6dQYY.wav")
    tone(root / "duet" / "audio" / "saxophone acoustic_guitar" / "8DHG_hVSw1o.wav")
    return root


def test_music_lists_are_read_with_words_as_labels(tmp_path: Path) -> None:
    reading = read_music(music(tmp_path))
    assert {clip.id: clip.labels for clip in reading.clips} == {
        "ZeQPNWdFs_4": ("acoustic guitar",),
        "-jK8dkL_x0A": ("acoustic guitar",),
        "jW_AuF6dQYY": ("flute",),
        "8DHG_hVSw1o": ("saxophone", "acoustic guitar"),
    }
    assert reading.report.skipped == {"listed by another list too": 1}
    assert [item.id for item in reading.missing] == ["pppppppppp_"]


def test_repeated_music_video_names_both_lines(tmp_path: Path) -> None:
    music(tmp_path)
    videos = {"flute": ["jW_AuF6dQYY"], "tuba": ["jW_AuF6dQYY"]}
    write(tmp_path / "MUSIC_solo_videos.json", json.dumps({"videos": videos}, indent=0))
    with pytest.raises(
        DataError, match=r"MUSIC_solo_videos\.json:7: video 'jW_AuF6dQYY' occurs twice.*line 4"
    ):
        read_music(tmp_path, split="solo")


def test_malformed_music_id_is_named(tmp_path: Path) -> None:
    write(tmp_path / "MUSIC_solo_videos.json", '{"videos": {"flute": ["short"]}}')
    with pytest.raises(DataError, match=r"label 'flute' lists 'short'.*11 characters"):
        read_music(tmp_path)


# ---- FSD50K


def fsd50k(root: Path) -> Path:
    truth = root / "FSD50K.ground_truth"
    write(truth / "vocabulary.csv", "0,Acoustic_guitar,/m/042v_gx\n1,Bark,/m/05tny_\n2,Guitar,/m/0342h\n")
    dev = [
        "fname,labels,mids,split",
        '64760,"Acoustic_guitar,Guitar","/m/042v_gx,/m/0342h",train',
        "16399,Bark,/m/05tny_,val",
    ]
    write(truth / "dev.csv", "\n".join(dev) + "\n")
    write(truth / "eval.csv", "fname,labels,mids\n37199,Bark,/m/05tny_\n")
    info = {"64760": {"title": "g", "license": "http://creativecommons.org/licenses/by/3.0/", "tags": []}}
    write(root / "FSD50K.metadata" / "dev_clips_info_FSD50K.json", json.dumps(info))
    for part, name in (("dev", "64760"), ("dev", "16399"), ("eval", "37199")):
        tone(root / f"FSD50K.{part}_audio" / f"{name}.wav")
    return root


def test_fsd50k_labels_splits_and_licences(tmp_path: Path) -> None:
    reading = read_fsd50k(fsd50k(tmp_path))
    assert [(clip.id, clip.labels, clip.split) for clip in reading.clips] == [
        ("64760", ("Acoustic guitar", "Guitar"), "train"),
        ("16399", ("Bark",), "val"),
        ("37199", ("Bark",), "test"),
    ]
    assert reading.clips[0].license.endswith("by/3.0/")
    assert [clip.id for clip in read_fsd50k(tmp_path, split="test").clips] == ["37199"]
    assert [clip.id for clip in read_fsd50k(tmp_path, split="val").clips] == ["16399"]


def test_fsd50k_label_outside_the_vocabulary_is_named(tmp_path: Path) -> None:
    root = fsd50k(tmp_path)
    write(root / "FSD50K.ground_truth" / "eval.csv", "fname,labels,mids\n37199,Barks,/m/05tny_\n")
    with pytest.raises(DataError, match=r"eval\.csv:2: column 'labels' holds 'Barks'.*did you mean 'Bark'"):
        read_fsd50k(root)


# ---- ESC-50


def esc50(root: Path, *, extra: str = "") -> Path:
    header = "filename,fold,target,category,esc10,src_file,take\n"
    rows = "1-100032-A-0.wav,1,0,dog,True,100032,A\n2-101336-B-30.wav,2,30,door_wood_knock,False,101336,B\n"
    write(root / "meta" / "esc50.csv", header + rows + extra)
    tone(root / "audio" / "1-100032-A-0.wav")
    tone(root / "audio" / "2-101336-B-30.wav")
    return root


def test_esc50_folds_are_splits_and_recordings_are_sources(tmp_path: Path) -> None:
    clips = read_esc50(esc50(tmp_path)).clips
    assert [(c.id, c.labels, c.split, c.source) for c in clips] == [
        ("1-100032-A-0", ("dog",), "fold1", "100032"),
        ("2-101336-B-30", ("door wood knock",), "fold2", "101336"),
    ]
    assert len(read_esc50(tmp_path, split="fold2").clips) == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            "1-100038-A-14.wav,2,14,chirping_birds,False,100038,A\n",
            "column 'fold' holds '2'.*file name says '1'",
        ),
        ("1-100038-A-14.wav,1,15,chirping_birds,False,100038,A\n", "column 'target' holds '15'"),
        ("dog.wav,1,14,chirping_birds,False,100038,A\n", "column 'filename' holds 'dog.wav'"),
        ("1-100038-A-0.wav,1,0,cat,False,100038,A\n", "column 'category' holds 'cat'.*was 'dog' before"),
        ("1-100032-A-0.wav,1,0,dog,True,100032,A\n", r"'1-100032-A-0.wav' occurs twice.*csv:2"),
    ],
)
def test_esc50_row_that_contradicts_itself_is_named(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(DataError, match=rf"esc50\.csv:4: .*{message}"):
        read_esc50(esc50(tmp_path, extra=row))
