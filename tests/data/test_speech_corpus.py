from __future__ import annotations

import gzip
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from auralign import cli
from auralign.data.manifest import read_manifest
from auralign.data.speech_corpus import SpeechSources, Voice, build, cut_ends, read_sources, unfit
from auralign.errors import DataError

RATE_HZ = 16_000


def wav(wave: np.ndarray, rate_hz: int = RATE_HZ) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, rate_hz, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def word(seconds: float, seed: int, gain: float = 0.2) -> np.ndarray:
    quiet = np.zeros(RATE_HZ // 2)
    return np.concatenate(
        [quiet, gain * np.random.default_rng(seed).uniform(-1, 1, int(seconds * RATE_HZ)), quiet]
    )


def tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo("." + name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return gzip.compress(buffer.getvalue())


def deb(path: Path, files: dict[str, bytes]) -> None:
    parts = {
        "debian-binary": b"2.0\n",
        "control.tar.gz": tar({"/control": b"Package: words\nVersion: 3-1\n"}),
        "data.tar.gz": tar(files),
    }
    out = b"!<arch>\n"
    for name, data in parts.items():
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}".encode() + b"`\n" + data
        out += b"\n" * (len(data) % 2)
    path.write_bytes(out)


SOURCES = SpeechSources(
    {"words": "CC0-1.0"},
    (
        Voice("anna", "en", "train", "words", "*/anna/*.wav"),
        Voice("bert", "fr", "test", "words", "*/bert/*.wav"),
        Voice("old", "", "real", "words", "*/old/*.wav"),
    ),
    not_speech=("*/beep.wav",),
)


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    folder = tmp_path / "packages"
    folder.mkdir()
    files = {f"/usr/anna/{n}.wav": wav(word(0.6 + 0.1 * n, n)) for n in range(6)}
    files |= {f"/usr/bert/{n}.wav": wav(word(0.6, 50 + n)) for n in range(3)}
    files["/usr/anna/empty.wav"] = wav(np.zeros(RATE_HZ))
    files["/usr/anna/short.wav"] = wav(word(0.05, 8)[7000:-7000])
    files["/usr/anna/loud.wav"] = wav(np.sign(word(1.0, 9)))
    files["/usr/anna/beep.wav"] = wav(word(1.0, 10))
    files["/usr/anna/broken.wav"] = b"RIFF"
    files["/usr/bert/twice.wav"] = files["/usr/anna/0.wav"]
    files["/usr/old/loud.wav"] = wav(np.sign(word(1.0, 11)))
    deb(folder / "words_3-1_all.deb", files)
    return folder


def built(packages: Path, soundbox: Path, name: str, sources: SpeechSources = SOURCES) -> Path:
    out = packages.parent / name
    build(soundbox, out, packages=packages, sources=sources, workers=2)
    return out


def test_words_become_clips_with_their_origin(packages: Path, tiny_noise: Path) -> None:
    root = built(packages, tiny_noise, "speech")
    clips = read_manifest(root / "manifest.jsonl")
    assert [clip.speaker for clip in clips] == ["anna"] * 6 + ["bert"] * 3 + ["old"]
    first = clips[0]
    assert (first.split, first.language, first.license, first.version) == ("train", "en", "CC0-1.0", "3-1")
    assert first.source_path.startswith("usr/anna/")
    assert len(first.sha256) == 64
    for clip in clips:
        wave, rate = soundfile.read(root / clip.audio)
        assert rate == RATE_HZ
        assert len(wave) / RATE_HZ == pytest.approx(clip.duration_s)
        assert len(wave) < 1.4 * RATE_HZ  # of 1.6 s and more


def test_what_is_no_clean_speech_is_left_out_and_named(packages: Path, tiny_noise: Path) -> None:
    card = json.loads((built(packages, tiny_noise, "speech") / "corpus.json").read_text())
    reasons = {name.rpartition("/")[2]: why for name, why in card["skipped"].items()}
    assert set(reasons) == {"empty.wav", "short.wav", "loud.wav", "broken.wav", "twice.wav"}
    assert "clipped" in reasons["loud.wav"]
    assert "the same file as anna/" in reasons["twice.wav"]
    assert card["splits"]["test"]["speakers"] == {"bert": pytest.approx(0.04, abs=0.01)}
    assert card["soundbox"]["name"] == "soundbox"


def test_two_builds_are_equal_byte_by_byte(packages: Path, tiny_noise: Path) -> None:
    one, two = built(packages, tiny_noise, "one"), built(packages, tiny_noise, "two")
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(two) for path in two.rglob("*") if path.is_file())
    for name in files:
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_a_speaker_is_bounded(packages: Path, tiny_noise: Path) -> None:
    root = built(packages, tiny_noise, "speech", replace(SOURCES, minutes=2 / 60))
    own = [clip for clip in read_manifest(root / "manifest.jsonl") if clip.speaker == "anna"]
    total = sum(clip.duration_s or 0 for clip in own)
    assert 2.0 <= total < 3.6
    whole = read_manifest(built(packages, tiny_noise, "whole") / "manifest.jsonl")
    assert {clip.id for clip in own} < {clip.id for clip in whole}


def test_a_failed_build_leaves_the_old_corpus(packages: Path, tiny_noise: Path) -> None:
    root = built(packages, tiny_noise, "speech")
    before = (root / "manifest.jsonl").read_bytes()
    nobody = Voice("nobody", "xx", "train", "words", "*/nobody/*")
    with pytest.raises(DataError, match="'nobody'"):
        built(packages, tiny_noise, "speech", replace(SOURCES, voices=(*SOURCES.voices, nobody)))
    assert (root / "manifest.jsonl").read_bytes() == before
    assert not (root.parent / ".speech.partial").exists()


def test_a_missing_soundbox_says_how_to_build_it(packages: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="data build soundbox"):
        build(tmp_path / "none", tmp_path / "out", packages=packages, sources=SOURCES)


def test_cutting_keeps_a_margin_and_bears_edges() -> None:
    wave = word(1.0, 0).astype(np.float32)
    assert len(cut_ends(wave)) == RATE_HZ + 2 * 5 * 320
    assert len(cut_ends(np.zeros(0, np.float32))) == 0
    assert len(cut_ends(np.zeros(999, np.float32))) == 0
    assert len(cut_ends(np.ones(1, np.float32))) == 0  # a constant is no sound
    assert "less than" in unfit(np.zeros(0, np.float32), clean=True)
    assert "dB of full scale" in unfit(np.full(RATE_HZ, 1e-4, np.float32), clean=True)


def test_the_table_keeps_languages_and_speakers_on_one_side() -> None:
    sources = read_sources()
    sides: dict[str, set[str]] = {}
    for voice in sources.voices:
        if voice.split != "real":
            sides.setdefault(voice.language, set()).add(voice.split)
            sides.setdefault(voice.speaker, set()).add(voice.split)
    assert all(len(side) == 1 for side in sides.values())
    assert len({voice.language for voice in sources.voices if voice.split != "real"}) > 20


def test_a_language_on_two_sides_is_refused(tmp_path: Path) -> None:
    rows = "".join(
        f'[[voices]]\nspeaker = "{who}"\nlanguage = "en"\nsplit = "{split}"\npackage = "p"\nfiles = "*"\n'
        for who, split in (("a", "train"), ("b", "test"))
    )
    path = tmp_path / "t.toml"
    path.write_text('minutes = 1\nminutes_real = 1\n[packages]\np = { license = "x" }\n' + rows)
    with pytest.raises(DataError, match="language en is in two splits"):
        read_sources(path)


def test_the_command_names_what_it_cannot_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "build", "speech", "--source", "x"]) == 2
    assert "auralign data build folder" in capsys.readouterr().err
    assert cli.main(["data", "build", "soundbox", "--from", "x"]) == 2
