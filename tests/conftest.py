"""Sounds that several tests use."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from auralign.data.clip import Clip
from auralign.data.manifest import write_manifest

# With AMX tiles oneDNN's bfloat16 convolutions of stride 2 are wrong, often NaN, where the result is one frame wide, as
# in the toy networks here; no real network has maps that short. The variable is read when the first kernel is made.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")

RATE_HZ = 16_000


def spoken(seconds: float, pitch_hz: float, seed: int) -> np.ndarray:
    """Something like a voice at 16 kHz: harmonics of a gliding pitch under three formants, syllables, breath."""
    t = np.arange(round(seconds * 16000)) / 16000
    phase = 2 * np.pi * np.cumsum(pitch_hz * (1 + 0.1 * np.sin(2 * np.pi * 0.7 * t))) / 16000
    wave = np.zeros_like(t)
    for k in range(1, 30):
        f = k * pitch_hz
        gain = sum(np.exp(-(((f - c) / w) ** 2)) for c, w in ((600, 200), (1300, 300), (2600, 500)))
        wave += (gain + 0.02) * np.sin(k * phase)
    wave *= 0.55 + 0.45 * np.sin(2 * np.pi * 3 * t)
    wave += 0.02 * np.random.default_rng(seed).standard_normal(len(t))
    return (0.3 * wave / np.abs(wave).max()).astype(np.float32)


@pytest.fixture(scope="session")
def voice():
    """Makes a voice of some seconds, pitch and seed."""
    return spoken


def vowel(speaker: int, word: int, seconds: float) -> np.ndarray:
    """Something like a vowel: a few harmonics that rise and fall."""
    t = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    pitch = 100 + 40 * speaker + 3 * word
    wave = sum(np.sin(2 * np.pi * pitch * k * t) / k for k in range(1, 12))
    return (0.1 * wave * np.sin(np.pi * t / seconds) ** 2).astype(np.float32)


@pytest.fixture(scope="session")
def tiny_speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two speakers a split, six words each of 0.5 to 3 s."""
    root = tmp_path_factory.mktemp("tiny") / "speech"
    clips = []
    for n, split in enumerate(("train", "val", "test", "real")):
        for speaker in (2 * n, 2 * n + 1):
            for word in range(6):
                name = f"voice-{speaker}/word-{word}"
                path = root / "audio" / f"{name}.flac"
                path.parent.mkdir(parents=True, exist_ok=True)
                wave = vowel(speaker, word, 0.5 + 0.5 * word)
                soundfile.write(path, wave, RATE_HZ)
                clips.append(
                    Clip(name, f"audio/{name}.flac", duration_s=len(wave) / RATE_HZ, labels=("speech",),
                         kind="speech", split=split, speaker=f"voice-{speaker}", language="xx",
                         sample_rate=RATE_HZ, channels=1)
                )  # fmt: skip
    write_manifest(root / "manifest.jsonl", clips)
    return root


@pytest.fixture(scope="session")
def tiny_noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noises, music, a crowd, an instrument and speech in every split; "geyser" in test alone."""
    root = tmp_path_factory.mktemp("noises") / "soundbox"
    (root / "audio").mkdir(parents=True)
    clips = []
    rows = [
        (label, kind, split)
        for label, kind in (("rain", "event"), ("drill", "event"), ("music", "instrument"), ("harp", "instrument"),
                            ("crowd talking", "event"), ("man speaking", "speech"))
        for split in ("train", "val", "test")
    ]  # fmt: skip
    for n, (label, kind, split) in enumerate(
        [*rows, ("geyser", "event", "unseen"), ("rain", "event", "cross")]
    ):
        name = f"{label.replace(' ', '-')}-{split}"
        wave = 0.1 * np.random.default_rng(n).standard_normal(int((0.3 + 0.4 * n) * RATE_HZ))
        soundfile.write(root / "audio" / f"{name}.flac", wave.clip(-1, 1), RATE_HZ)
        clips.append(
            Clip(name, f"audio/{name}.flac", labels=(label,), kind=kind, split=split, source=name,
                 sample_rate=RATE_HZ, channels=1)
        )  # fmt: skip
    write_manifest(root / "manifest.jsonl", clips)
    (root / "corpus.json").write_text(json.dumps({"name": "soundbox", "version": "1", "hash": "0" * 64}))
    return root
