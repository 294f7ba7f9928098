from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from auralign import cli
from auralign.algorithms.training import load_corpus
from auralign.data import folder_corpus
from auralign.data.folder_corpus import build, split_files, split_time
from auralign.data.folder_sounds import decode, label_of, read_folder
from auralign.data.manifest import read_manifest
from auralign.data.mixer import MixConfig
from auralign.data.sound_bank import SoundBank
from auralign.errors import DataError, UsageError

NAMES = ("Dog_barking", "rain", "violin", "whistle")


def tone(seconds: float, *, hertz: float = 440.0, rate_hz: int = 16_000, seed: int = 0) -> np.ndarray:
    t = np.arange(round(seconds * rate_hz)) / rate_hz
    noise = np.random.default_rng(seed).normal(0, 0.01, len(t))
    return 0.3 * np.sin(2 * np.pi * hertz * t) + noise


def write(path: Path, wave: np.ndarray, rate_hz: int = 16_000, **options: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, rate_hz, **options)
    return path


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    """Four classes of three short sounds each."""
    root = tmp_path / "my_sounds"
    for n, name in enumerate(NAMES):
        for take in range(3):
            write(root / name / f"take {take}.wav", tone(1.0, hertz=300 + 200 * n, seed=10 * n + take))
    return root


@pytest.fixture
def background(tmp_path: Path) -> Path:
    """A built corpus of five classes to borrow from, and one that is only tested."""
    root = tmp_path / "background"
    classes, rows = {}, []
    for n, label in enumerate(("crickets", "fiddle music", "rain", "viola", "wind", "secret")):
        for k, split in enumerate(("train", "train", "val", "test")):
            if label == "secret" and split != "test":
                continue
            name = f"{label.replace(' ', '-')}-{k}"
            write(
                root / "audio" / f"{name}.ogg",
                tone(1.0, hertz=250 + 90 * n, seed=100 + 10 * n + k),
                format="OGG",
            )
            rows.append(
                {"id": name, "audio": f"audio/{name}.ogg", "labels": [label], "kind": "event", "split": split,
                 "source": name, "sha256": name}
            )  # fmt: skip
        classes[label] = {
            "kind": "instrument" if label in ("viola", "fiddle music") else "event",
            "texts": [label, "violin"] if label == "fiddle music" else [label],
            "texts_test": ["kept from training"],
            "pictures": {"train": ["pictures/rain.png"] if label == "rain" else [], "test": []},
            "confusable": ["viola"] if label == "fiddle music" else [],
        }
    (root / "pictures").mkdir()
    Image.new("RGB", (8, 8)).save(root / "pictures" / "rain.png")
    (root / "classes.json").write_text(json.dumps(classes))
    (root / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "corpus.json").write_text('{"name": "soundbox"}')
    return root


def test_the_corpus_trains_like_any_other(sounds, tmp_path):
    out = tmp_path / "corpora" / "mine"
    card = build(sounds, out)
    corpus = load_corpus(out, MixConfig(samples=8192))
    assert corpus.labels == ["dog barking", "rain", "violin", "whistle"]
    assert corpus.texts[2] == ["violin", "the sound of violin", "violin sound"]
    batch = corpus.mixer.batch(np.random.default_rng(0), 4)
    assert np.isfinite(batch.sources).all()
    assert (np.square(batch.sources[:, 0]).sum(axis=1) > 0).all()
    corpus.validation.batch(np.random.default_rng(0), 2)
    assert card["own"] == {label: {"train": 2, "val": 1} for label in corpus.labels}
    assert json.loads((out / "corpus.json").read_text()) == card


def test_what_is_stored_is_what_was_given_at_16_khz_mono(tmp_path):
    t = np.arange(88_200) / 44_100
    stereo = np.stack([0.4 * np.sin(2 * np.pi * 440 * t), np.zeros_like(t)], axis=1)
    wave = decode(write(tmp_path / "a" / "x.wav", stereo, 44_100, subtype="FLOAT"))
    assert len(wave) == 32_000
    expected = 0.2 * np.sin(2 * np.pi * 440 * np.arange(32_000) / 16_000)
    np.testing.assert_allclose(wave[500:-500], expected[500:-500], atol=2e-3)


@pytest.mark.parametrize(
    ("name", "rate_hz", "options"),
    [
        ("a.flac", 48_000, {}),
        ("b.ogg", 22_050, {}),
        ("c.mp3", 44_100, {}),
        ("d.aiff", 8_000, {}),
        ("e.wav", 96_000, {"subtype": "PCM_24"}),
    ],
)
def test_every_format_and_rate_is_taken(tmp_path, name, rate_hz, options):
    wave = decode(write(tmp_path / name, tone(1.0, rate_hz=rate_hz), rate_hz, **options))
    spectrum = np.abs(np.fft.rfft(wave[:16_000]))
    assert abs(int(spectrum.argmax()) - 440) <= 2
    assert len(wave) == pytest.approx(16_000, abs=1200)  # MP3 pads


def test_files_that_are_of_no_use_are_named_with_their_reasons(sounds, tmp_path):
    folder = sounds / "violin"
    write(folder / "silent.wav", np.zeros(16_000))
    write(folder / "hiss.wav", 1e-4 * tone(1.0), subtype="FLOAT")
    write(folder / "blip.wav", tone(0.1))
    write(folder / "opposite.wav", np.stack([tone(1.0), -tone(1.0)], axis=1))
    write(folder / "zcopy.flac", soundfile.read(folder / "take 0.wav")[0])
    write(folder / "nan.wav", np.full(16_000, np.nan), subtype="FLOAT")
    (folder / "broken.wav").write_bytes(b"RIFF and nothing more")
    (folder / "empty.wav").write_bytes(b"")
    whole = (folder / "take 1.wav").read_bytes()
    (folder / "cut.wav").write_bytes(whole[: len(whole) // 2])
    (folder / "notes.txt").write_text("my notes")
    (folder / "picture.png").write_bytes(b"no picture")
    (folder / ".DS_Store").write_bytes(b"x")
    write(sounds / "outside.wav", tone(1.0))
    card = build(sounds, tmp_path / "out")
    reasons = {Path(name).name: reason for name, reason in card["skipped"].items()}
    expected = {
        "silent.wav": "silent: its peak is zero",
        "hiss.wav": "silent: its peak is -90 dB",
        "blip.wav": "too short: 0.10 s",
        "opposite.wav": "channels cancel",
        "zcopy.flac": "the same sound as",
        "nan.wav": "NaN",
        "broken.wav": "cannot be read",
        "empty.wav": "empty",
        "cut.wav": "cannot be read",
        "notes.txt": "not a sound",
        "picture.png": "picture",
        "outside.wav": "outside the subfolders",
    }
    assert set(reasons) == set(expected)
    for name, words in expected.items():
        assert words in reasons[name], (name, reasons[name])
    broken = {Path(name).name for name in card["broken"]}
    assert broken == {"nan.wav", "broken.wav", "empty.wav", "cut.wav", "picture.png"}
    assert card["own"]["violin"] == {"train": 2, "val": 1}


def test_the_same_sound_in_two_classes_is_in_the_corpus_once(sounds, tmp_path):
    write(sounds / "whistle" / "z.wav", soundfile.read(sounds / "rain" / "take 0.wav")[0])
    card = build(sounds, tmp_path / "out")
    assert card["skipped"] == {"whistle/z.wav": "the same sound as rain/take 0.wav"}


@pytest.mark.parametrize("count", [1, 2, 3, 5, 10, 100])
def test_a_fifth_of_the_files_is_held_out_and_at_least_one_trains(count):
    splits = split_files(f"{n}.wav" for n in range(count))
    held = sum(value == "val" for value in splits.values())
    assert held == (0 if count == 1 else max(1, round(0.2 * count)))
    assert len(splits) - held >= 1


def test_splits_follow_from_names_alone_and_files_never_cross_them(sounds, tmp_path):
    first = build(sounds, tmp_path / "one")
    write(sounds / "zither" / "a.wav", tone(1.0, seed=77))
    write(sounds / "zither" / "b.wav", tone(1.0, seed=78))
    second = build(sounds, tmp_path / "deep" / "two")
    one, two = (
        {c.id: c for c in read_manifest(tmp_path / p / "manifest.jsonl")} for p in ("one", "deep/two")
    )
    assert all(two[name] == clip for name, clip in one.items())
    assert first["own"] == {k: v for k, v in second["own"].items() if k != "zither"}
    again = build(sounds, tmp_path / "one")
    assert again["hash"] == second["hash"]


@pytest.mark.parametrize("seconds", [8.0, 9.0, 30.0, 600.0])
def test_a_lone_recording_is_divided_in_time_with_a_gap(seconds):
    end, start = split_time(seconds)
    assert start - end == pytest.approx(1.0)
    assert end >= 5.0
    assert seconds - start == pytest.approx(max(2.0, 0.2 * seconds))
    assert split_time(7.99) is None


def test_the_two_parts_of_a_lone_recording_share_no_sample(sounds, tmp_path):
    ramp = np.linspace(0.1, 0.9, 160_000) * np.where(np.arange(160_000) % 2, 1, -1)
    write(sounds / "ramp" / "long.flac", ramp)
    write(sounds / "short" / "lone.wav", tone(3.0, seed=55))
    card = build(sounds, tmp_path / "out")
    clips = {c.split: c for c in read_manifest(tmp_path / "out" / "manifest.jsonl") if c.labels == ("ramp",)}
    assert clips["train"].source != clips["val"].source
    train, val = (
        np.abs(SoundBank([clips[split]], tmp_path / "out").samples(0)) for split in ("train", "val")
    )
    assert (len(train), len(val)) == (112_000, 32_000)
    assert train.max() < val.min() - 0.07  # a second of ten is a tenth of the ramp's 0.8
    assert card["own"]["short"] == {"train": 1, "val": 0}
    assert any(note.startswith("short: one short recording") for note in card["notes"])


def test_own_wordings_and_pictures_are_taken(sounds, tmp_path):
    (sounds / "texts.json").write_text(json.dumps({"dog barking": ["my dog", "Rex barking", "my dog"]}))
    Image.new("RGB", (400, 300), (9, 9, 9)).save(sounds / "Dog_barking" / "rex.jpg")
    build(sounds, tmp_path / "out")
    corpus = load_corpus(tmp_path / "out", MixConfig(samples=8192))
    assert corpus.texts[0] == ["my dog", "Rex barking"]
    (picture,) = corpus.pictures[0]
    with Image.open(picture) as opened:
        assert opened.size == (224, 168)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[1]", "must be an object"),
        ("{", "cannot be read"),
        ('{"violn": ["x"]}', "did you mean 'violin'"),
        ('{"violin": []}', "list of texts"),
        ('{"violin": "x"}', "list of texts"),
        ('{"violin": [" "]}', "list of texts"),
    ],
)
def test_wordings_that_do_not_fit_are_refused(sounds, tmp_path, content, words):
    (sounds / "texts.json").write_text(content)
    with pytest.raises(DataError, match=words):
        build(sounds, tmp_path / "out")


def test_too_few_classes_are_explained_with_a_way_out(tmp_path):
    source = tmp_path / "mine"
    for take in range(3):
        write(source / "violin" / f"{take}.wav", tone(1.0, seed=take))
    write(source / "drum" / "a.wav", np.zeros(16_000))
    with pytest.raises(DataError) as caught:
        build(source, tmp_path / "out")
    message = str(caught.value)
    assert all(
        words in message for words in ("1 class with", "violin", "4 or more", "--with", "drum/a.wav: silent")
    )
    assert not (tmp_path / "out").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_four_classes_of_lone_short_sounds_cannot_be_validated_and_say_so(tmp_path):
    for n in range(4):
        write(tmp_path / "mine" / f"class {n}" / "a.wav", tone(1.0, seed=n))
    with pytest.raises(DataError, match="0 classes with sounds to validate with"):
        build(tmp_path / "mine", tmp_path / "out")


def test_one_class_of_sounds_is_enough_with_borrowed_ones(tmp_path, background):
    for take in range(3):
        write(tmp_path / "mine" / "violin" / f"{take}.wav", tone(1.0, seed=take))
    card = build(tmp_path / "mine", tmp_path / "out", borrow=background)
    clips = read_manifest(tmp_path / "out" / "manifest.jsonl")
    assert {clip.split for clip in clips} == {"train", "val"}
    assert card["own"] == {"violin": {"train": 2, "val": 1}}
    assert card["borrowed"] == {"from": "background", "clips": 15}
    corpus = load_corpus(tmp_path / "out", MixConfig(samples=8192))
    assert "secret" not in corpus.labels
    rng = np.random.default_rng(0)
    drawn = np.concatenate([corpus.mixer.batch(rng, 8).labels for _ in range(8)])
    own = (drawn == corpus.labels.index("violin")).any(axis=1)
    assert own.mean() > 0.5  # kinds are drawn before classes, so one class is not lost among many
    alone = {
        "viola",
        "fiddle music",
    }  # "violin" is one of the wordings of "fiddle music", which is like a viola
    for row in drawn[own]:
        assert not alone & {corpus.labels[n] for n in row}


def test_a_borrowed_class_of_the_same_name_gives_words_and_pictures_but_no_sounds(
    sounds, tmp_path, background
):
    build(sounds, tmp_path / "out", borrow=background)
    corpus = load_corpus(tmp_path / "out", MixConfig(samples=8192))
    rain = corpus.labels.index("rain")
    assert corpus.texts[rain] == ["rain", "the sound of rain", "rain sound"]
    assert corpus.pictures[rain][0].exists()
    clips = [clip for clip in read_manifest(tmp_path / "out" / "manifest.jsonl") if clip.labels == ("rain",)]
    assert len(clips) == 3
    assert not any(clip.id.startswith("borrowed/") for clip in clips)


def test_the_corpus_stays_whole_when_the_lender_goes(sounds, tmp_path, background):
    build(sounds, tmp_path / "out", borrow=background)
    background.rename(tmp_path / "gone")
    load_corpus(tmp_path / "out", MixConfig(samples=8192))


def test_a_copy_is_made_where_no_link_can_be(sounds, tmp_path, background, monkeypatch):
    def refused(*_: object) -> None:
        raise OSError("other disk")

    monkeypatch.setattr(os, "link", refused)
    build(sounds, tmp_path / "out", borrow=background)
    load_corpus(tmp_path / "out", MixConfig(samples=8192))
    with pytest.raises(DataError, match="auralign data build soundbox"):
        build(sounds, tmp_path / "other", borrow=tmp_path / "nothing")


def test_an_interrupted_build_leaves_the_earlier_corpus_and_no_half(sounds, tmp_path, monkeypatch):
    build(sounds, tmp_path / "out")
    before = (tmp_path / "out" / "manifest.jsonl").read_bytes()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(folder_corpus, "_write", interrupted)
    write(sounds / "new" / "a.wav", tone(1.0, seed=5))
    for name in ("out", "fresh"):
        with pytest.raises(KeyboardInterrupt):
            build(sounds, tmp_path / name)
    assert (tmp_path / "out" / "manifest.jsonl").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my_sounds", "out"]


def test_nobodys_folder_is_overwritten(sounds, tmp_path, background):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.doc").write_text("years of work")
    for out in (taken, background, sounds, sounds / "out", tmp_path):
        with pytest.raises(UsageError):
            build(sounds, out)
    with pytest.raises(UsageError, match="borrow from the place"):
        build(sounds, tmp_path / "x", borrow=tmp_path / "x")
    assert (taken / "thesis.doc").exists()
    assert len(list(sounds.rglob("*.wav"))) == 12
    (tmp_path / "empty").mkdir()
    build(sounds, tmp_path / "empty")


@pytest.mark.parametrize(
    ("folders", "words"),
    [((), "no subfolders"), (("Violin", "violin"), "two subfolders name the class"), (("__",), "no word")],
)
def test_folders_that_name_no_classes_are_refused(tmp_path, folders, words):
    (tmp_path / "mine").mkdir()
    for name in folders:
        (tmp_path / "mine" / name).mkdir()
    with pytest.raises(DataError, match=words):
        build(tmp_path / "mine", tmp_path / "out")
    with pytest.raises(DataError, match="no such folder"):
        build(tmp_path / "nowhere", tmp_path / "out")


def test_names_in_any_script_and_depth_are_kept_apart(tmp_path):
    (tmp_path / "staging").mkdir()
    for n, name in enumerate(("小提琴/一.wav", "小提琴/二/一.wav", "чайник/1.wav")):
        write(tmp_path / "mine" / name, tone(1.0, seed=n))
    found = read_folder(tmp_path / "mine", tmp_path / "staging")
    assert found.labels == ["чайник", "小提琴"]
    assert len({sound.audio for sound in found.sounds}) == 3
    assert all((tmp_path / "staging" / sound.audio).exists() for sound in found.sounds)
    assert label_of("  Dog-barking__loud ") == "dog barking loud"


def test_the_command_builds_it_and_says_what_was_skipped(sounds, tmp_path):
    (sounds / "violin" / "broken.wav").write_bytes(b"RIFF")
    words = ["data", "build", "folder", "--source", str(sounds), "--out", str(tmp_path / "out")]
    found = subprocess.run(
        [sys.executable, "-m", "auralign", *words], capture_output=True, text=True, timeout=200, check=False
    )
    assert found.returncode == 1, found.stderr  # one input failed
    assert found.stdout.strip() == str(tmp_path / "out")
    assert "skipped: violin/broken.wav: it cannot be read" in found.stderr
    assert "violin: 2 to train on, 1 held out" in found.stderr
    assert (tmp_path / "out" / "classes.json").exists()


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["folder"], "--source"),
        (["foldr"], "auralign data build folder"),
        (["soundbox", "--source", "x"], "build folder"),
        (["folder", "--source", "x", "--packages", "y"], "build soundbox"),
    ],
)
def test_options_of_the_other_corpus_are_refused(words, hint, capsys):
    assert cli.main(["data", "build", *words]) == 2
    assert hint in capsys.readouterr().err


def test_the_command_prints_its_card_as_json(sounds, tmp_path, background, capsys):
    words = ["--source", str(sounds), "--out", str(tmp_path / "out"), "--with", str(background), "--json"]
    assert cli.main(["data", "build", "folder", *words, "--kind", "instrument"]) == 0
    card = json.loads(capsys.readouterr().out)
    assert card["borrowed"]["clips"] == 12
    kinds = json.loads((tmp_path / "out" / "classes.json").read_text())
    assert kinds["violin"]["kind"] == "instrument"
    assert kinds["viola"]["kind"] == "event"
