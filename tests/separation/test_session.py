from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import auralign
from auralign.errors import AudioError, AuralignError, ModelUnavailableError, UsageError
from auralign.models.separator import SeparatorModel
from auralign.separation import Query, Separation, Separator

RATE_HZ = 22050


@pytest.fixture
def wave(noise) -> np.ndarray:
    return noise(2, 20_000)


@pytest.fixture(scope="session")
def folder(tiny, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny-one"
    tiny.save(path, {"name": "tiny-one"}, half=False)
    return path


def test_a_path_a_file_object_and_an_array_give_the_same(separator, wave, tmp_path):
    path = tmp_path / "mix.wav"
    soundfile.write(path, wave.T, RATE_HZ, subtype="FLOAT")
    by_array = separator.separate((wave, RATE_HZ), "violin")
    for source in (path, str(path), io.BytesIO(path.read_bytes())):
        found = separator.separate(source, "violin")
        assert np.array_equal(found.target, by_array.target)
    assert by_array.target.shape == by_array.residual.shape == wave.shape
    assert by_array.target.dtype == np.float32
    assert by_array.rate_hz == RATE_HZ
    assert 0.0 <= by_array.presence <= 1.0
    assert by_array.query["texts"] == ["violin"]


def test_target_and_residual_add_up(separator, wave):
    found = separator.separate((wave, RATE_HZ), "violin")
    np.testing.assert_allclose(found.target + found.residual, wave, atol=6e-8)


def test_several_queries_add_up_with_one_residual(separator, wave):
    found = separator.separate((wave, RATE_HZ), "violin", Query(texts=("dog",)), Query(texts=("rain",)))
    assert [one.stem for one in found] == ["violin", "dog", "rain"]
    total = sum(one.target for one in found) + found[0].residual
    np.testing.assert_allclose(total, wave, atol=2e-7)


def test_several_queries_cost_one_trunk_pass(separator, wave, monkeypatch):
    calls = []
    trunk = separator.model.net.analyse
    monkeypatch.setattr(separator.model.net, "analyse", lambda *given: calls.append(1) or trunk(*given))
    separator.separate((wave, RATE_HZ), "violin")
    alone = len(calls)
    separator.separate((wave, RATE_HZ), "violin", "dog", "rain", "wind")
    assert len(calls) == 2 * alone


def test_the_same_call_gives_the_same_bytes(separator, wave):
    one, two = (separator.separate((wave, RATE_HZ), "violin") for _ in range(2))
    assert np.array_equal(one.target, two.target)
    assert one.presence == two.presence


def test_the_callers_array_is_left_alone(separator, wave):
    before = wave.copy()
    found = separator.separate((wave, RATE_HZ), "violin")
    found.target[:] = 9
    found.residual[:] = 9
    assert np.array_equal(wave, before)


@pytest.mark.parametrize(
    "source",
    [(np.zeros((1, 0), np.float32), 16000), (np.full((1, 9), np.nan, np.float32), 16000), "gone.wav", 7],
)
def test_what_cannot_be_separated_is_refused(source, separator):
    with pytest.raises(AudioError):
        separator.separate(source, "violin")


def test_no_query_is_a_usage_error(separator, wave, tmp_path):
    with pytest.raises(UsageError, match="no query"):
        separator.separate((wave, RATE_HZ))
    with pytest.raises(UsageError, match="no query"):
        separator.separate_files([tmp_path / "x.wav"], [])


def test_saved_stems_are_float_and_add_up(separator, wave, tmp_path):
    found = separator.separate((wave, RATE_HZ), "violin")
    paths = found.save(tmp_path / "o")
    assert {name: path.name for name, path in paths.items()} == {
        "violin": "violin.wav",
        "residual": "residual.wav",
    }
    total = sum(soundfile.read(path, dtype="float32")[0] for path in paths.values())
    np.testing.assert_allclose(total.T, wave, atol=6e-8)


def test_a_result_called_residual_does_not_lose_its_target(wave, tmp_path):
    found = Separation(wave, np.zeros_like(wave), RATE_HZ, 1.0, {}, "m", stem="residual")
    assert set(found.save(tmp_path)) == {"target", "residual"}


def test_a_folder_that_cannot_be_written_leaves_nothing(separator, wave, tmp_path):
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "residual.wav").mkdir()
    with pytest.raises(AudioError):
        separator.separate((wave, RATE_HZ), "violin").save(tmp_path / "o")
    assert [path.name for path in (tmp_path / "o").iterdir()] == ["residual.wav"]


def test_models_load_from_a_folder_and_separate_the_same(separator, folder, wave):
    loaded = Separator.load(folder)
    assert loaded.name == "tiny-one"
    assert loaded.encode("violin").space == separator.encode("violin").space
    ours, theirs = (one.separate((wave, RATE_HZ), "violin").target for one in (separator, loaded))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_the_package_says_the_same_in_one_line(folder, wave):
    found = auralign.separate((wave, RATE_HZ), "violin", model=str(folder))
    again = auralign.load(str(folder)).separate((wave, RATE_HZ), "violin")
    assert np.array_equal(found.target, again.target)


def test_models_that_are_not_there_or_broken_are_refused(folder, tmp_path):
    with pytest.raises(AuralignError, match="no-such-model"):
        Separator.load("no-such-model")
    with pytest.raises(ModelUnavailableError):
        Separator.load(tmp_path)
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("model.safetensors", "card.json"):
        (broken / name).write_bytes((folder / name).read_bytes())
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    (broken / "model.safetensors").write_bytes(bytes(data[: len(data) // 2]))
    with pytest.raises(ModelUnavailableError):
        Separator.load(broken)


def test_a_device_that_is_not_used_is_refused(folder):
    with pytest.raises(UsageError, match="does not run on 'cuda'"):
        Separator.load(folder, device="cuda")


def test_the_paper_preset_separates_too(queries, noise):
    torch.manual_seed(0)
    options = {"query_dim": 256, "levels": 7, "width": 8}
    separator = Separator(SeparatorModel("omnisep", options), "omnisep")
    found = separator.separate((noise(1, 16000), 16000), "violin")
    np.testing.assert_allclose(found.target + found.residual, noise(1, 16000), atol=6e-8)
