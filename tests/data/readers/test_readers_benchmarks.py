"""Mixture lists of CLIPSep, AudioSep and DCASE 2024 task 9 in their published layouts."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import soundfile

from auralign.data.clip import Clip
from auralign.data.readers import (
    RULES,
    draw_interferers,
    read_audiosep,
    read_audiosep_json,
    read_clipsep,
    read_dcase24t9,
    read_index,
    read_index_clips,
    write_audiosep_json,
)
from auralign.data.readers.clipsep import IndexItem
from auralign.errors import DataError


def tone(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.sin(np.arange(800) / 3), 8000)
    return path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


# ---- CLIPSep


def items(count: int, classes: int, tag: str = "x") -> list[IndexItem]:
    return [IndexItem(f"{tag}{n}.wav", f"c{n % classes}", 5.5, f"list:{n}") for n in range(count)]


@pytest.mark.parametrize("sources", [2, 3])
def test_interferers_are_those_of_the_global_generator_seeded_with_the_index(sources: int) -> None:
    targets, others = items(46, 10), items(75, 53, "y")
    drawn = draw_interferers(targets, others, sources=sources)
    for index, found in enumerate(drawn):
        random.seed(index)
        assert found == tuple(others[random.randint(0, 74)] for _ in range(sources - 1))


def test_interferers_of_the_published_list_lengths_are_frozen() -> None:
    drawn = draw_interferers(items(5, 5), items(5322, 245, "y"))
    assert [int(found[0].audio[1:-4]) for found in drawn] == [3155, 1100, 463, 1949, 1933]


def test_other_class_rule_never_repeats_a_clip_or_meets_the_target_class() -> None:
    targets, others = items(60, 3), items(12, 3, "y")
    published = draw_interferers(targets, others, sources=4)
    drawn = draw_interferers(targets, others, sources=4, rule="other-class")
    assert any(
        item.label == target.label for target, found in zip(targets, published, strict=True) for item in found
    )
    for target, found in zip(targets, drawn, strict=True):
        assert len({item.audio for item in found}) == 3
        assert target.label not in {item.label for item in found}


def test_other_class_rule_keeps_a_published_draw_that_is_already_good() -> None:
    targets, others = items(20, 20), items(50, 50, "y")
    published = draw_interferers(targets, others)
    drawn = draw_interferers(targets, others, rule="other-class")
    good = [a == b for a, b, t in zip(published, drawn, targets, strict=True) if a[0].label != t.label]
    assert good
    assert all(good)


def test_no_other_class_is_an_error() -> None:
    with pytest.raises(DataError, match="only 0 clips have another class than 'c0'"):
        draw_interferers(items(1, 1), items(3, 1, "y"), rule="other-class")


def clipsep(root: Path) -> Path:
    targets, others = [], []
    for name, label in (("e2rM750cFGc", "playing didgeridoo"), ("-_a_b_c_d_e", "dog barking")):
        stem = f"{name[0]}/{name[1]}/{name}"
        targets.append(f"data/vggsound/audio/{stem}.wav,data/vggsound/preprocessed/{stem},12,{label}")
        tone(root / "data/vggsound/audio" / f"{stem}.wav")
    for name, label in (("RxIBKNy1nT0", "golf driving"), ("zzzzzzzzzzz", "civil defense siren")):
        others.append(f"/data2/someone/data/vggsound/audio/{name}.wav,/data2/p/{name},11,{label}")
        tone(root / "data/vggsound/audio" / f"{name}.wav")
    write(root / "data/vggsound/test-good.csv", "\n".join(targets) + "\n")
    write(root / "data/vggsound/test-no-music.csv", "\n".join(others) + "\n")
    return root


def test_clean_plus_mixtures_are_read_and_rerooted(tmp_path: Path) -> None:
    root = clipsep(tmp_path)
    reading = read_clipsep(root, split="vggsound", prompt="a photo of {}")
    first, second = reading.mixtures
    drawn = [random.Random(index).randint(0, 1) for index in (0, 1)]
    names = ["RxIBKNy1nT0", "zzzzzzzzzzz"]
    assert [Path(m.interferers[0]).stem for m in (first, second)] == [names[n] for n in drawn]
    assert (first.id, first.query, first.rule) == ("vggsound-0", "a photo of playing didgeridoo", "clipsep")
    assert first.centres_s == (5.5, 4.5)
    assert first.labels[0] == "playing didgeridoo"
    assert any("found by their ends" in note for note in reading.notes)


def test_missing_component_makes_the_mixture_missing(tmp_path: Path) -> None:
    root = clipsep(tmp_path)
    (root / "data/vggsound/audio/e/2/e2rM750cFGc.wav").unlink()
    reading = read_clipsep(root)
    assert [item.id for item in reading.missing] == ["vggsound-0"]
    assert "music: MUSIC/solo/test.csv is not there" in reading.notes


def test_index_of_two_and_three_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "audio/x.wav,dog barking\n")
    assert [(i.label, i.centre_s) for i in read_index(path)] == [("dog barking", None)]
    path = write(tmp_path / "b.csv", "/d/solo/audio/acoustic_guitar/x.wav,/d/f/x,200\n")
    assert [(i.label, i.centre_s) for i in read_index(path)] == [("acoustic guitar", 99.5)]
    tone(tmp_path / "audio/acoustic_guitar/x.wav")
    assert read_index_clips(path, root=tmp_path).clips[0].labels == ("acoustic guitar",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.wav,f,twelve,dog\n", r"i\.csv:1: column 'n_frames' holds 'twelve'"),
        ("a.wav,f,0,dog\n", "at least one frame"),
        ("a.wav\n", "the row has 1 cells"),
        ("a.wav,f,12,dog\na.wav,f,12,dog\n", r"i\.csv:2: .*same path is at .*i\.csv:1"),
    ],
)
def test_bad_index_rows_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_index(write(tmp_path / "i.csv", text))


# ---- AudioSep


def test_audiosep_clotho_keeps_both_noise_columns_of_one_name(tmp_path: Path) -> None:
    row = '0,"A machine, loud.",Santa.wav,"Foz, fish.wav",air.wav'
    text = f"idx,caption,src_wav,noise_wav1,noise_wav1\r\n{row}\r\n"
    write(tmp_path / "evaluation/metadata/clotho_eval.csv", text)
    data = tmp_path / "evaluation/data/clotho"
    for name in ("segment-0.wav", "mixture-0.wav", "Foz, fish.wav", "air.wav"):
        tone(data / name)
    item = read_audiosep(tmp_path).mixtures[0]
    assert item.interferers == (str(data / "Foz, fish.wav"), str(data / "air.wav"))
    assert (item.target, item.mixture) == (str(data / "segment-0.wav"), str(data / "mixture-0.wav"))
    assert (item.id, item.query, item.labels) == ("clotho-0", "A machine, loud.", ())


def test_audiosep_vggsound_names_its_files(tmp_path: Path) -> None:
    name = "-JUBdOr8Hes_000030+++37Vxf0Wz-3o_000001"
    cells = [name, f"data/mix_wav/{name}.wav", f"data/s0_wav/{name}.wav", "playing accordion"]
    cells += [f"data/s1_wav/{name}.wav", "sea lion barking"]
    write(
        tmp_path / "metadata/vggsound_eval.csv",
        "file_id,mix_wav,s0_wav,s0_text,s1_wav,s1_text\n" + ",".join(cells) + "\n",
    )
    for part in ("mix_wav", "s0_wav", "s1_wav"):
        tone(tmp_path / "data/vggsound/data" / part / f"{name}.wav")
    item = read_audiosep(tmp_path, split="vggsound").mixtures[0]
    assert item.labels == ("playing accordion", "sea lion barking")
    assert [Path(path).parent.name for path in (item.mixture or "", item.target, *item.interferers)] == [
        "mix_wav",
        "s0_wav",
        "s1_wav",
    ]


def test_audiosep_audioset_index_is_a_class_and_may_repeat(tmp_path: Path) -> None:
    rows = ["idx,caption,src_wav,noise_wav"]
    for take in range(2):
        stem = f"evaluation/data/audioset/class_id=0/class_id=0,index=00{take},"
        rows.append(f'0,Speech,"{stem}source.wav","{stem}mixture.wav"')
        tone(tmp_path / f"{stem}source.wav")
        tone(tmp_path / f"{stem}mixture.wav")
    write(tmp_path / "evaluation/metadata/audioset_eval.csv", "\n".join(rows) + "\n")
    reading = read_audiosep(tmp_path)
    assert [item.id for item in reading.mixtures] == ["audioset-0-0", "audioset-0-1"]
    assert all(item.mixture and item.mixture.endswith("mixture.wav") for item in reading.mixtures)


def test_audiosep_esc50_repeated_idx_names_both_lines(tmp_path: Path) -> None:
    write(
        tmp_path / "esc50_eval.csv", "idx,caption,src_wav,noise_wav\n0,dog,a.wav,b.wav\n0,cat,c.wav,d.wav\n"
    )
    tone(tmp_path / "esc50/segment-0.wav")
    tone(tmp_path / "esc50/mixture-0.wav")
    with pytest.raises(DataError, match=r"esc50_eval\.csv:3: id 'esc50-0' occurs twice.*csv:2"):
        read_audiosep(tmp_path)


def test_audiosep_training_list_comes_back_as_written(tmp_path: Path) -> None:
    clips = [
        Clip("a", str(tone(tmp_path / "wav/-a.wav")), captions=("one, two", "drei ü")),
        Clip("b", str(tone(tmp_path / "wav/b_.wav")), labels=("dog",)),
    ]
    path = tmp_path / "list.json"
    assert write_audiosep_json(clips, path, root=tmp_path) == 3
    assert json.loads(path.read_text())["data"][0] == {"wav": "wav/-a.wav", "caption": "one, two"}
    back = read_audiosep_json(path)
    assert [(clip.audio, clip.captions) for clip in back.clips] == [
        (clips[0].audio, ("one, two", "drei ü")),
        (clips[1].audio, ("dog",)),
    ]
    assert not list(tmp_path.glob("*.tmp"))


def test_audiosep_training_list_of_another_machine_is_rerooted(tmp_path: Path) -> None:
    tone(tmp_path / "clips" / "dog.wav")
    path = write(tmp_path / "l.json", '{"data": [{"wav": "/mnt/else/clips/dog.wav", "caption": "dog"}]}')
    reading = read_audiosep_json(path)
    assert reading.clips[0].audio == str(tmp_path / "clips" / "dog.wav")
    assert "1 paths were found by their ends" in reading.notes[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"data": [{"wav": "a.wav"}]}', r"l\.json\[0\]: field 'caption' is absent"),
        ('{"data": [{"wav": "../a.wav", "caption": "x"}]}', "leaves the folder"),
        ('{"data": [{"wav": "a.wav", "caption": "x"}, {"wav": "a.wav", "caption": "x"}]}', r"twice.*\[0\]"),
        ('{"data": [{"wav": "a.wav", "caption": "x"}]}', "none of the 1 sounds"),
        ('{"data": []}', "no usable row"),
    ],
)
def test_bad_training_lists_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_audiosep_json(write(tmp_path / "l.json", text))


@pytest.mark.parametrize("clip", [Clip("a", "a.wav"), Clip("a", "a.wav", captions=("x",), offset_s=1.0)])
def test_clip_that_the_list_cannot_hold_is_refused(tmp_path: Path, clip: Clip) -> None:
    with pytest.raises(DataError, match="clip 'a'"):
        write_audiosep_json([clip], tmp_path / "l.json")
    assert not list(tmp_path.iterdir())


# ---- DCASE 2024 task 9


def dcase(root: Path, *, column: str = "caption") -> Path:
    write(
        root / "lass_synthetic_validation.csv",
        f'source,noise,snr,{column}\nS001,S002,-15,"Rain, hard"\nS002,S009,3,Dog\n',
    )
    about = [
        {"Index": "S001", "Tags": ["Rain"], "Captions": ["a", "b", "c"]},
        {"Index": "S002", "Captions": ["d", "e", "f"]},
    ]
    write(root / "lass_validation.json", json.dumps(about))
    tone(root / "lass_validation" / "S001.wav")
    tone(root / "lass_validation" / "S002.wav")
    return root


@pytest.mark.parametrize("column", ["caption", "query"])
def test_dcase_validation_gives_recipes_and_clips(tmp_path: Path, column: str) -> None:
    reading = read_dcase24t9(dcase(tmp_path, column=column))
    item = reading.mixtures[0]
    folder = tmp_path / "lass_validation"
    assert (item.target, item.interferers) == (str(folder / "S001.wav"), (str(folder / "S002.wav"),))
    assert (item.query, item.snr_db, item.mixture, item.rule) == ("Rain, hard", -15.0, None, "dcase24t9")
    assert [(c.id, c.captions, c.labels) for c in reading.clips] == [
        ("S001", ("a", "b", "c"), ("Rain",)),
        ("S002", ("d", "e", "f"), ()),
    ]
    assert [entry.reason.split(" in ")[0] for entry in reading.missing] == ["S009.wav"]


def test_dcase_validation_json_may_be_by_column(tmp_path: Path) -> None:
    root = dcase(tmp_path)
    write(root / "lass_validation.json", '{"Index": ["S001"], "Captions": [["a", "b", "c"]]}')
    assert read_dcase24t9(root).clips[0].captions == ("a", "b", "c")


def test_dcase_evaluation_has_mixtures_without_targets(tmp_path: Path) -> None:
    write(tmp_path / "lass_synthetic_evaluation.csv", "wav,query\nm1.wav,a dog\n")
    path = tone(tmp_path / "lass_evaluation_synth" / "m1.wav")
    item = read_dcase24t9(tmp_path, split="synthetic").mixtures[0]
    assert (item.mixture, item.target, item.rule) == (str(path), "", "premixed")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("S001,S002,loud,x", "column 'snr' holds 'loud'"),
        ("S001,S001,3,x", "same clip"),
        ("../S001,S002,3,x", "without a folder"),
        ("S001,S002,inf,x", "finite"),
    ],
)
def test_bad_dcase_rows_are_named(tmp_path: Path, row: str, message: str) -> None:
    root = dcase(tmp_path)
    write(root / "lass_synthetic_validation.csv", f"source,noise,snr,caption\n{row}\n")
    with pytest.raises(DataError, match=rf"lass_synthetic_validation\.csv:2: .*{message}"):
        read_dcase24t9(root)


def test_every_rule_that_readers_name_is_defined() -> None:
    assert {"dcase24t9", "clipsep", "audiosep", "bisep", "premixed"} == set(RULES)
