"""Hostile recordings through `auralign enhance` as users run it: the right result, or an error that names the file."""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile

from auralign import cli
from auralign.audio.io import read
from auralign.enhancement import EnhanceOptions, SpeechEnhancer
from auralign.errors import AuralignError
from auralign.models.log_mmse import LogMmse

GENERATORS = Path(__file__).parents[1] / "audio" / "test_odd_files.py"
MUSIC = Path(__file__).parents[1] / "fixtures" / "audio" / "guit_harmonics.flac"
STEP = {"PCM_16": 2.0**-15, "PCM_24": 2.0**-23, "FLOAT": 2.0**-23}


@pytest.fixture(scope="session")
def networks(tiny, tmp_path_factory) -> dict[str, str]:
    """What `--model` gets: the classic enhancer, and the folder of a tiny random network."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny.save(folder, {"name": "tiny"})
    return {"log-mmse": "log-mmse", "network": str(folder)}


def enhance(source: Path, out: Path, model: str, *words: str) -> tuple[int, Path]:
    """Exit code and folder of the results of one file."""
    words = words if model == "log-mmse" else (*words, "--steps", "1")
    code = cli.main(
        ["enhance", str(source), "-o", str(out), "--model", model, "--residual", "--quiet", *words]
    )
    return code, out / source.stem


def written(path: Path, samples: np.ndarray, rate_hz: int, subtype: str = "FLOAT") -> Path:
    soundfile.write(path, samples.T, rate_hz, subtype=subtype)
    return path


def checked(source: Path, folder: Path) -> np.ndarray:
    """The enhanced samples, once shape, sum and numbers are right."""
    before = soundfile.read(source, always_2d=True)[0]
    total, tolerance = np.zeros_like(before), 0.0
    for name in ("enhanced", "residual"):
        info = soundfile.info(folder / f"{name}.wav")
        given = soundfile.info(source)
        assert (info.samplerate, info.channels, info.frames) == (given.samplerate, *before.shape[::-1])
        part = soundfile.read(folder / f"{name}.wav", always_2d=True)[0]
        assert np.isfinite(part).all()
        total += part
        tolerance += STEP[info.subtype] * max(1.0, float(np.abs(part).max()))
    assert np.abs(total - before).max() <= tolerance
    return soundfile.read(folder / "enhanced.wav", always_2d=True)[0].T


@pytest.mark.parametrize("model", ["log-mmse", "network"])
@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 44_100, 48_000, 96_000])
def test_any_rate(rate_hz, model, networks, noise, tmp_path):
    source = written(tmp_path / "a.wav", noise(1, rate_hz // 4), rate_hz, "PCM_16")
    code, folder = enhance(source, tmp_path / "o", networks[model])
    assert code == 0
    checked(source, folder)
    assert soundfile.info(folder / "enhanced.wav").subtype == "PCM_16"


@pytest.mark.parametrize("model", ["log-mmse", "network"])
@pytest.mark.parametrize("frames", [1, 2, 16, 44])
def test_one_millisecond_and_one_sample(frames, model, networks, noise, tmp_path):
    source = written(tmp_path / "a.wav", noise(2, frames), 44_100)
    code, folder = enhance(source, tmp_path / "o", networks[model])
    assert code == 0
    checked(source, folder)


@pytest.mark.parametrize("model", ["log-mmse", "network"])
@pytest.mark.parametrize("channels", [2, 6])
def test_stereo_and_surround(channels, model, networks, noise, tmp_path):
    source = written(tmp_path / "a.wav", noise(channels, 8_000), 48_000, "PCM_24")
    for way in ("linked", "separate") if model == "log-mmse" or channels == 2 else ("linked",):
        code, folder = enhance(source, tmp_path / way, networks[model], "--channels", way)
        assert code == 0
        checked(source, folder)


@pytest.mark.parametrize("model", ["log-mmse", "network"])
def test_silence(model, networks, tmp_path, capsys):
    source = written(tmp_path / "a.wav", np.zeros((2, 20_000)), 44_100)
    code, folder = enhance(source, tmp_path / "o", networks[model])
    assert code == 0
    assert not checked(source, folder).any()
    assert "silent" in json.loads((folder / "manifest.json").read_text())["note"]


@pytest.mark.parametrize("model", ["log-mmse", "network"])
def test_clipped_speech_is_not_clipped_again(model, networks, speech, tmp_path):
    source = written(tmp_path / "a.wav", np.clip(speech[:, :16_000] * 20, -1, 1 - 2**-15), 16_000, "PCM_16")
    code, folder = enhance(source, tmp_path / "o", networks[model])
    assert code == 0
    checked(source, folder)


def test_a_constant_offset_goes_into_the_residual(networks, speech, tmp_path):
    source = written(tmp_path / "a.wav", speech[:, :48_000] + 0.3, 16_000)
    code, folder = enhance(source, tmp_path / "o", networks["log-mmse"])
    assert code == 0
    assert abs(checked(source, folder)[:, 8_000:40_000].mean()) < 0.05


@pytest.mark.parametrize("model", ["log-mmse", "network"])
def test_music_only(model, networks, tmp_path):
    sound = read(MUSIC, duration_s=1.0)
    source = written(tmp_path / "a.wav", sound.samples, sound.rate_hz, "PCM_16")
    code, folder = enhance(source, tmp_path / "o", networks[model])
    assert code == 0
    checked(source, folder)


@pytest.mark.parametrize("model", ["log-mmse", "network"])
@pytest.mark.parametrize("level", [1e-30, 1e-10, 1e10, 1e30])
def test_extreme_levels(level, model, networks, noise, tmp_path):
    source = written(tmp_path / "a.wav", noise(1, 9_000) * level, 16_000)
    code, folder = enhance(source, tmp_path / "o", networks[model])
    assert code == 0
    out = checked(source, folder)
    assert 0 < np.abs(out).max() < 10 * level


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers_are_refused(bad, networks, noise, tmp_path, capsys):
    wave = noise(2, 50_000)
    wave[1, 40_000] = bad
    source = written(tmp_path / "bad.wav", wave, 16_000)
    assert enhance(source, tmp_path / "o", networks["log-mmse"])[0] == 1
    said = capsys.readouterr().err
    assert "bad.wav" in said
    assert "NaN or infinite" in said
    assert not (tmp_path / "o").exists()


def test_one_bad_file_does_not_stop_the_others(networks, noise, tmp_path, capsys):
    (tmp_path / "words.wav").write_text("these are words")
    (tmp_path / "empty.wav").write_bytes(b"")
    good = written(tmp_path / "good.wav", noise(1, 9_000), 16_000)
    (tmp_path / "cut.wav").write_bytes(good.read_bytes()[:9_000])
    slow = written(tmp_path / "slow.wav", noise(1, 900), 1_000)
    names = ["words.wav", "empty.wav", "gone.wav", "cut.wav", slow.name, good.name]
    words = [
        "enhance",
        *(str(tmp_path / name) for name in names),
        "-o",
        str(tmp_path / "o"),
        "--model",
        "log-mmse",
    ]
    assert cli.main(words) == 1
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [str(tmp_path / "o" / "good" / "enhanced.wav")]
    assert "5 of 6 inputs failed" in shown.err
    for name in names[:-1]:
        assert f"{name}: " in shown.err
    assert [path.name for path in (tmp_path / "o").iterdir()] == ["good"]


@pytest.fixture(scope="module")
def generators() -> ModuleType:
    spec = importlib.util.spec_from_file_location("odd_files_of_the_reader_again", GENERATORS)
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
    return [(case.name, case.data) for part in parts for case in part]


def run_through(files: list[tuple[str, bytes]], folder: Path) -> dict[str, int]:
    """Enhance all files in one batch and check every outcome."""
    sources = []
    for number, (name, data) in enumerate(files):
        path = folder / "in" / f"{number:03}-{name}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        sources.append(path)
    out = folder / "out"
    options = EnhanceOptions(out=out, residual=True)
    outcomes = SpeechEnhancer(LogMmse()).enhance_files(sources, options)
    counts = {"enhanced": 0, "refused": 0}
    for outcome, source in zip(outcomes, sources, strict=True):
        if not outcome.ok:
            assert isinstance(outcome.error, AuralignError), source.name
            assert source.name in str(outcome.error)
            counts["refused"] += 1
            continue
        counts["enhanced"] += 1
        before = read(source)
        gain = 10 ** (json.loads((outcome.outputs[0].parent / "manifest.json").read_text())["gain_db"] / 20)
        parts = [soundfile.read(path, always_2d=True)[0] for path in outcome.outputs]
        tolerance = sum(
            STEP[soundfile.info(path).subtype] * max(1.0, float(np.abs(part).max()))
            for path, part in zip(outcome.outputs, parts, strict=True)
        )
        assert np.abs(sum(parts) - gain * before.samples.T).max() <= tolerance, source.name
    left = [path for path in out.rglob("*") if path.is_file()]
    assert len(left) == 3 * counts["enhanced"]
    return counts


def test_forty_odd_files_are_enhanced_right_or_refused_by_name(files, tmp_path):
    chosen = np.random.default_rng(4).choice(len(files), 40, replace=False)
    counts = run_through([files[n] for n in sorted(chosen)], tmp_path)
    assert min(counts.values()) > 8, counts


@pytest.mark.slow
def test_all_odd_files_are_enhanced_right_or_refused_by_name(files, tmp_path):
    counts = run_through(files, tmp_path)
    assert min(counts.values()) > 100, counts


def _long(path: Path, minutes: int, rate_hz: int = 8_000) -> Path:
    """Noise in bursts; a minute is made once and repeated."""
    rng = np.random.default_rng(0)
    minute = rng.standard_normal(60 * rate_hz) * (0.02 + 0.1 * (np.arange(60 * rate_hz) // 4_000 % 3 == 0))
    with soundfile.SoundFile(path, "w", rate_hz, 1, "PCM_16") as file:
        for _ in range(minutes):
            file.write(minute)
    return path


def _peak_mb(source: Path, out: Path) -> float:
    """Memory of a process of its own that enhances one file."""
    program = (
        "import resource, sys; from auralign.cli import main; code = main(sys.argv[1:]); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr); sys.exit(code)"
    )
    words = ["enhance", str(source), "-o", str(out), "--model", "log-mmse", "--residual", "--quiet"]
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True)
    return int(done.stderr.splitlines()[-1]) / (1024 if sys.platform != "darwin" else 2**20)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(os.name == "nt", reason="needs resource usage")
def test_two_hours_take_the_memory_of_two_minutes(tmp_path):
    assert resource.RUSAGE_SELF == 0
    short = _peak_mb(_long(tmp_path / "short.wav", 2), tmp_path / "o")
    long = _peak_mb(_long(tmp_path / "long.wav", 120), tmp_path / "o")
    assert soundfile.info(tmp_path / "o" / "long" / "enhanced.wav").frames == 120 * 60 * 8_000
    assert long < short + 60, (short, long)
