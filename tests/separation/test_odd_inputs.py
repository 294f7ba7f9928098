"""Damaged and odd recordings through the whole separator: stems that add up, or an error that names the file."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile

from auralign.audio.io import read
from auralign.errors import AuralignError
from auralign.separation import SeparateOptions, Separator

GENERATORS = Path(__file__).parents[1] / "audio" / "test_odd_files.py"
STEP = {"PCM_16": 2.0**-15, "PCM_24": 2.0**-23, "FLOAT": 2.0**-23}


@pytest.fixture(scope="module")
def generators() -> ModuleType:
    spec = importlib.util.spec_from_file_location("odd_files_of_the_reader", GENERATORS)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def files(generators) -> list[tuple[str, bytes]]:
    rng = np.random.default_rng(21)
    parts = (
        generators.every_format(),
        generators.odd_shapes(rng),
        generators.damaged(rng),
        generators.hopeless(rng),
    )
    return [(case.name, case.data) for part in parts for case in part] + own(generators)


def own(generators) -> list[tuple[str, bytes]]:
    """Whole files that matter to a separator rather than to a reader."""
    found = []
    for rate_hz in (999, 1000, 8000, 16000, 44100, 192000):
        for frames in (1, 2, 255, 1023):
            wave = generators.clip(frames, 1)
            found.append(
                (f"short-{rate_hz}-{frames}.wav", generators.encoded(wave, rate_hz, "WAV", "PCM_16"))
            )
    for level in (0.0, 1e-40, 1e-20, 1e10, 1e25):
        wave = (generators.clip(2000, 2) * level).astype(np.float32)
        found.append((f"level-{level}.wav", generators.encoded(wave, 16000, "WAV", "FLOAT")))
        found.append(
            (f"level-{level}.flac", generators.encoded(np.clip(wave, -1, 0.99), 16000, "FLAC", "PCM_24"))
        )
    opposite = generators.clip(3000, 1) * np.array([[1.0, -1.0]], np.float32)
    found.append(("opposite.wav", generators.encoded(opposite, 44100, "WAV", "PCM_24")))
    click = np.zeros((4000, 8), np.float32)
    click[2000] = 1.0
    found.append(("click.wav", generators.encoded(click, 96000, "WAV", "PCM_24")))
    return [(name, data) for name, data in found if data is not None]


def check(outcome, source: Path, out: Path) -> str:
    """'separated' when all is right with the stems, 'refused' when the error names the file."""
    if not outcome.ok:
        assert isinstance(outcome.error, AuralignError), source.name
        assert source.name in str(outcome.error)
        assert outcome.outputs == ()
        return "refused"
    mixture = read(source)
    manifest = json.loads((outcome.outputs[0].parent / "manifest.json").read_text())
    gain = 10 ** (manifest["gain_db"] / 20)
    total, tolerance = np.zeros((mixture.frames, mixture.channels)), 0.0
    for path in outcome.outputs:
        info = soundfile.info(path)
        assert (info.samplerate, info.channels) == (mixture.rate_hz, mixture.channels), source.name
        assert info.frames == mixture.frames, source.name
        stem = soundfile.read(path, always_2d=True)[0]
        assert np.isfinite(stem).all(), source.name
        total += stem
        tolerance += STEP[info.subtype] * max(1.0, float(np.abs(stem).max()))
    assert np.abs(total - gain * mixture.samples.T).max() <= tolerance, source.name
    assert 0.0 <= outcome.presence["violin"] <= 1.0
    return "separated"


def run_through(separator: Separator, files: list[tuple[str, bytes]], folder: Path) -> dict[str, int]:
    """Separate all files in one batch and check every outcome."""
    sources = []
    for number, (name, data) in enumerate(files):
        path = folder / "in" / f"{number:03}-{name}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        sources.append(path)
    handles = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    out = folder / "out"
    outcomes = separator.separate_files([str(path) for path in sources], ["violin"], SeparateOptions(out=out))
    assert [one.input for one in outcomes] == [str(path) for path in sources]
    counts = {"separated": 0, "refused": 0}
    for outcome, source in zip(outcomes, sources, strict=True):
        counts[check(outcome, source, out)] += 1
    left = [path for path in out.rglob("*") if path.is_file()]
    assert not [path.name for path in left if path.name.endswith(".tmp") or path.name.startswith(".")]
    assert len(left) == 3 * counts["separated"]  # two stems and a manifest
    assert len([path for path in out.iterdir()]) == counts["separated"]
    if handles:
        assert len(os.listdir("/proc/self/fd")) <= handles
    return counts


def test_sixty_odd_files_are_separated_right_or_refused_by_name(separator, files, tmp_path):
    chosen = np.random.default_rng(3).choice(len(files), 60, replace=False)
    counts = run_through(separator, [files[n] for n in sorted(chosen)], tmp_path)
    assert counts["separated"] > 15, counts
    assert counts["refused"] > 10, counts


@pytest.mark.slow
def test_five_hundred_odd_files_are_separated_right_or_refused_by_name(separator, files, tmp_path):
    assert len(files) >= 500
    counts = run_through(separator, files, tmp_path)
    assert counts["separated"] > 150, counts
    assert counts["refused"] > 150, counts
