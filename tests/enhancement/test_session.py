from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile

import auralign
from auralign.enhancement import Enhancement, SpeechEnhancer, is_enhancer
from auralign.errors import ModelUnavailableError, UsageError
from auralign.models.log_mmse import LogMmse

RATE_HZ = 16_000


@pytest.fixture
def recording(tmp_path, noise):
    path = tmp_path / "noisy.wav"
    soundfile.write(path, noise(2, 9_000).T, 22_050, subtype="FLOAT")
    return path


def test_a_path_a_file_object_and_an_array_give_the_same(recording, noise):
    session = SpeechEnhancer(LogMmse())
    first = session.enhance(recording)
    assert isinstance(first, Enhancement)
    assert (first.enhanced.shape, first.enhanced.dtype, first.rate_hz) == ((2, 9_000), np.float32, 22_050)
    np.testing.assert_allclose(first.enhanced + first.residual, noise(2, 9_000), atol=1e-7)
    for source in (io.BytesIO(recording.read_bytes()), (noise(2, 9_000), 22_050)):
        assert np.array_equal(session.enhance(source).enhanced, first.enhanced)


def test_files_and_memory_give_the_same(recording, tmp_path):
    session = SpeechEnhancer(LogMmse())
    (outcome,) = session.enhance_files([recording], auralign.enhancement.EnhanceOptions(out=tmp_path / "o"))
    found = soundfile.read(outcome.outputs[0], dtype="float32")[0].T
    assert np.array_equal(found, session.enhance(recording).enhanced)


def test_both_are_saved_in_float(recording, tmp_path):
    out = SpeechEnhancer(LogMmse()).enhance(recording)
    paths = out.save(tmp_path / "o")
    assert set(paths) == {"enhanced", "residual"}
    for name, path in paths.items():
        assert np.array_equal(soundfile.read(path, dtype="float32")[0].T, getattr(out, name))


def test_the_package_enhances_in_one_line_and_loads_once(recording, monkeypatch):
    loads = []
    original = SpeechEnhancer.load.__func__

    def load(cls, name, **options):
        loads.append(name)
        return original(cls, name, **options)

    monkeypatch.setattr(SpeechEnhancer, "load", classmethod(load))
    monkeypatch.setattr(auralign, "_loaded", {})
    for _ in range(2):
        out = auralign.enhance(recording, model="log-mmse", strength=0.0)
    assert not out.residual.any()
    assert loads == ["log-mmse"]


def test_load_tells_enhancers_from_separators(tiny, recording, tmp_path, monkeypatch):
    tiny.save(tmp_path / "tiny", {"name": "tiny"})
    assert is_enhancer(tmp_path / "tiny")
    assert is_enhancer(str(tmp_path / "tiny" / "model.safetensors"))
    assert not is_enhancer("omnisep-small")
    session = auralign.load(str(tmp_path / "tiny"))
    assert isinstance(session, SpeechEnhancer)
    assert session.name == "tiny"
    once, again = (session.enhance(recording, steps=1, seed=seed).enhanced for seed in (3, 3))
    assert np.array_equal(once, again)
    assert isinstance(auralign.load("log-mmse"), SpeechEnhancer)
    monkeypatch.setattr(
        auralign.Separator, "load", classmethod(lambda cls, name, device: f"separator {name}")
    )
    assert auralign.load("omnisep-small") == "separator omnisep-small"


def test_a_separator_is_not_taken_for_an_enhancer():
    with pytest.raises(ModelUnavailableError, match="not an auralign speech enhancer"):
        SpeechEnhancer.load("omnisep-small")


def test_wrong_words_are_refused(recording):
    with pytest.raises(UsageError, match="strength"):
        SpeechEnhancer(LogMmse()).enhance(recording, strength=2.0)
    with pytest.raises(UsageError, match="unknown device"):
        SpeechEnhancer.load("log-mmse", device="abacus")
