"""Captioned recordings in memory: texts, stretches, shares, and what is wrong with a corpus."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from auralign.data.captioned import CaptionedSounds, load_captioned
from auralign.data.clip import Clip
from auralign.data.manifest import write_manifest
from auralign.errors import AuralignError, DataError

RATE_HZ = 16_000


def write(root: Path, waves: dict[str, np.ndarray], **more) -> list[Clip]:
    clips = []
    for name, wave in waves.items():
        soundfile.write(root / f"{name}.flac", wave, RATE_HZ)
        fields = {"captions": (f"{name} and rain",), "phrases": (name, "rain"), "split": "train-2"}
        fields |= {"labels": ("dog",), "kind": "event", "sha256": name}
        clips.append(Clip(name, f"{name}.flac", len(wave) / RATE_HZ, RATE_HZ, 1, **(fields | more)))
    return clips


def manifest(root: Path, clips: list[Clip]) -> None:
    write_manifest(root / "manifest.jsonl", clips)


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return 0.05 * np.random.default_rng(seed).standard_normal(samples)


def cut(sounds: CaptionedSounds, index: int = 0, seed: int = 0):
    return sounds.cut(np.random.default_rng(seed), index)


@pytest.mark.parametrize("level", [1e-3, 1.0])
def test_a_stretch_is_a_part_of_the_recording_at_one_level(tmp_path, level):
    wave = level * noise(6000)
    sounds = CaptionedSounds(write(tmp_path, {"dog": wave}), tmp_path, samples=2000)
    one = cut(sounds)
    assert one.wave.dtype == np.float32
    assert float(np.sqrt(np.square(one.wave).mean())) == pytest.approx(0.1, rel=1e-3)
    stored = soundfile.read(tmp_path / "dog.flac")[0]
    parts = np.lib.stride_tricks.sliding_window_view(stored, 2000)
    likeness = parts @ one.wave / np.linalg.norm(parts, axis=1) / np.linalg.norm(one.wave)
    assert likeness.max() > 0.999
    assert not np.array_equal(cut(sounds, seed=1).wave, one.wave)
    assert np.array_equal(cut(sounds).wave, one.wave)


def test_a_shorter_recording_is_repeated(tmp_path):
    sounds = CaptionedSounds(write(tmp_path, {"dog": noise(700)}), tmp_path, samples=2000)
    wave = cut(sounds).wave
    np.testing.assert_array_equal(wave[700:1400], wave[:700])
    np.testing.assert_array_equal(wave[1400:], wave[:600])


def test_silence_stays_silence_and_a_stretch_with_sound_is_preferred(tmp_path):
    clips = write(tmp_path, {"still": np.zeros(4000), "late": np.r_[np.zeros(4000), noise(8000)]})
    sounds = CaptionedSounds(clips, tmp_path, samples=2000)
    assert not cut(sounds).wave.any()
    heard = [bool(cut(sounds, 1, seed).wave.any()) for seed in range(40)]
    assert np.mean(heard) > 0.95  # a single look would find silence in a fifth of the cases


def test_texts_are_every_caption_and_phrase_once_and_bare_captions_are_their_own_phrase(tmp_path):
    clips = write(tmp_path, {"dog": noise(100), "cat": noise(100)})
    clips += write(tmp_path, {"bell": noise(100)}, captions=("a bell", "ding"), phrases=())
    clips += write(tmp_path, {"cow": noise(100)}, captions=("cows",), phrases=("a cow", "a cow", "moo"))
    sounds = CaptionedSounds(clips, tmp_path, samples=100)
    assert sounds.texts() == [
        "dog and rain", "dog", "rain", "cat and rain", "cat", "a bell", "ding", "cows", "a cow", "moo",
    ]  # fmt: skip
    assert sounds.phrases(2) == ("a bell",)
    assert sounds.phrases(3) == ("a cow", "moo")
    captions = {cut(sounds, 2, seed).caption for seed in range(20)}
    assert captions == {"a bell", "ding"}


def test_only_the_named_splits_and_the_first_share_of_them_are_opened(tmp_path):
    clips = write(tmp_path, {f"s{n}": noise(100) for n in range(5)})
    others = write(tmp_path, {"other": noise(100)}, split="train-1")
    manifest(tmp_path, [clips[0], others[0], *clips[1:]])
    for name in ("other", "s2", "s3", "s4"):
        (tmp_path / f"{name}.flac").unlink()
    sounds = load_captioned(tmp_path, ["train-2"], samples=100, share=0.4)
    assert [clip.id for clip in sounds.clips] == ["s0", "s1"]
    assert len(sounds) == 2
    assert cut(sounds, 1).phrases == ("s1", "rain")
    assert len(load_captioned(tmp_path, ["train-2"], samples=100, share=1e-6)) == 1


def test_what_is_no_corpus_says_how_to_make_one(tmp_path):
    with pytest.raises(DataError, match="no captioned corpus is there") as error:
        load_captioned(tmp_path / "nowhere", ["train-2"], samples=100)
    assert "auralign data build captions" in str(error.value)
    assert str(tmp_path / "nowhere") in str(error.value)


def test_a_split_without_recordings_names_those_there_are(tmp_path):
    manifest(tmp_path, write(tmp_path, {"dog": noise(100)}))
    with pytest.raises(DataError, match="no recording is in the split train-3 or train-4") as error:
        load_captioned(tmp_path, ["train-3", "train-4"], samples=100)
    assert "splits: train-2" in str(error.value)


def test_a_recording_without_a_caption_is_named(tmp_path):
    manifest(tmp_path, write(tmp_path, {"dog": noise(100)}, captions=()))
    with pytest.raises(DataError, match="'dog' has no caption") as error:
        load_captioned(tmp_path, ["train-2"], samples=100)
    assert str(tmp_path) in str(error.value)
    assert "To fix" in str(error.value)


def test_a_recording_that_is_not_there_is_named(tmp_path):
    manifest(tmp_path, write(tmp_path, {"dog": noise(100)}))
    (tmp_path / "dog.flac").unlink()
    with pytest.raises(AuralignError, match=r"dog\.flac"):
        load_captioned(tmp_path, ["train-2"], samples=100)
