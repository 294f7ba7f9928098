"""Networks that hear words, and one whose window is 1022 samples, through everything that separates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from auralign import cli
from auralign.errors import UsageError
from auralign.models.separator import SeparatorModel
from auralign.models.text_tokens import TOKEN_DIM, TOKENS
from auralign.separation import Query, Separator
from auralign.separation.stream import StemStream

WORDS = {"pooled_dim": TOKEN_DIM, "tokens": TOKENS, "token_dim": TOKEN_DIM, "heads": 2}
NETWORKS = {
    "bisep_small": {"widths": (8, 12, 16, 24), "blocks": (1, 1, 1, 1), "fine": 4, "hidden": 8, "n_bands": 32},
    "bisep": {"levels": 4, "width": 2, "channels": 4},
}


def make(network: str) -> SeparatorModel:
    """Random weights whose masks depend on the words."""
    torch.manual_seed(11)
    model = SeparatorModel(network, NETWORKS[network] | WORDS, unit_queries=False, encoder="tokens").eval()
    if network == "bisep":
        torch.nn.init.normal_(model.net.scale, std=4.0)
        torch.nn.init.normal_(model.net.gate.weight, std=2.0)
    else:
        torch.nn.init.normal_(model.net.head.filters.weight, std=1.0)
        torch.nn.init.normal_(model.net.head.film.weight, std=1.0)
    return model


@pytest.fixture(scope="module", params=list(NETWORKS))
def folder(request, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("words") / request.param
    make(request.param).save(path, {"name": request.param}, half=False)
    return path


@pytest.fixture(scope="module")
def separator(folder) -> Separator:
    return Separator.load(str(folder))


def test_a_saved_model_answers_as_before_and_different_words_differently(separator, folder, noise):
    wave = noise(2, 11_025)
    out = separator.separate((wave, 22_050), "violin")
    fresh = Separator(make(folder.name)).separate((wave, 22_050), "violin")
    np.testing.assert_allclose(out.target, fresh.target, atol=1e-6)
    np.testing.assert_allclose(out.target + out.residual, wave, atol=1e-6)
    assert out.target.shape == wave.shape
    assert out.rate_hz == 22_050
    assert 0 <= out.presence <= 1
    other = separator.separate((wave, 22_050), "a dog barks").target
    assert np.abs(other - out.target).max() > 1e-4
    assert separator.model.n_fft == {"bisep": 1022, "bisep_small": 1024}[folder.name]


def test_two_texts_of_one_query_are_merged(separator, noise):
    model = separator.model
    rows = torch.stack([query.vector for query in model.text_queries(["violin", "dog"])])
    vector = separator.encode(Query(texts=("violin", "dog"))).vector
    torch.testing.assert_close(vector, model.token_heads.merge(rows))
    out = separator.separate((noise(1, 8000), 16_000), Query(texts=("violin", "dog")))
    assert np.isfinite(out.target).all()


def test_stems_of_several_queries_add_up(separator, noise):
    wave = noise(1, 16_000)
    first, second = separator.separate((wave, 16_000), "violin", "dog")
    np.testing.assert_allclose(first.target + second.target + second.residual, wave, atol=1e-6)


def test_what_it_cannot_be_asked_is_refused_with_what_to_do(separator, noise, tmp_path):
    wave = noise(1, 8000)
    with pytest.raises(UsageError, match="cannot keep a sound out by words") as error:
        separator.separate((wave, 16_000), Query(texts=("violin",), exclude=("dog",)))
    assert "To fix: ask for that sound as a stem of its own" in str(error.value)
    with pytest.raises(UsageError, match="takes no audio query"):
        separator.separate((wave, 16_000), Query(audios=((wave, 16_000),)))
    picture = tmp_path / "dog.png"
    Image.new("RGB", (30, 30)).save(picture)
    with pytest.raises(UsageError, match=r"takes no (?:picture|image) query"):
        separator.separate((wave, 16_000), Query(images=(picture,)))
    with pytest.raises(UsageError, match="no bank of queries"):
        separator.separate((wave, 16_000), Query(texts=("violin",), augment=True))


def test_vectors_of_a_model_that_reads_no_words_are_refused(separator, tiny):
    foreign = tiny.combine(tiny.text_queries(["violin"]))
    with pytest.raises(UsageError, match="another encoder version"):
        separator.model.combine([foreign])
    with pytest.raises(UsageError, match="has no heads"):
        separator.model.query_heads  # noqa: B018
    with pytest.raises(UsageError, match="reads no words"):
        tiny.token_heads  # noqa: B018


def words(model: SeparatorModel, *texts: str) -> torch.Tensor:
    return torch.stack([query.vector for query in model.text_queries(list(texts))])


@pytest.mark.parametrize("frames", [300, 20_000])
def test_a_sound_of_one_window_is_what_the_network_makes_of_it(separator, frames, noise, through):
    model, wave = separator.model, noise(1, frames)
    query = words(model, "violin", "dog")
    streamed = through(StemStream(model, query, 16_000, 1, shared=False), wave, (4001,))
    with torch.no_grad():
        whole, _ = model.separate_wave(torch.from_numpy(wave), query[None])
    np.testing.assert_allclose(streamed.targets[:, 0], whole[0].numpy(), atol=3e-6)


def test_blocks_of_any_size_give_the_same_bits_over_several_windows(separator, noise, through):
    model, wave = separator.model, noise(1, 90_000)
    query = words(model, "violin")
    whole = through(StemStream(model, query, 16_000, 1), wave)
    parts = through(StemStream(model, query, 16_000, 1), wave, (7777, 3, 30_000))
    assert np.array_equal(parts.targets, whole.targets)
    assert whole.targets.shape[-1] == 90_000
    np.testing.assert_allclose(whole.targets[0] + whole.residual, wave, atol=1e-6)


@pytest.mark.parametrize("rate_hz", [8000, 16_000, 44_100])
def test_a_window_of_1022_samples_opens_fully_and_lands_on_its_own_frequency(rate_hz, noise, through):
    model = make("bisep")
    query = words(model, "violin")
    with torch.no_grad():
        model.net.scale.zero_()
        model.net.bias.fill_(40.0)
    wave = noise(1, rate_hz)
    out = through(StemStream(model, query, rate_hz, 1), wave)
    np.testing.assert_allclose(out.targets[0], wave, atol=2e-6)
    model.net.to_bins = lambda mask: mask * (torch.arange(512) < 128).float()[:, None]
    t = np.arange(rate_hz) / rate_hz
    low, high = 0.3 * np.sin(2 * np.pi * 1500 * t), 0.3 * np.sin(2 * np.pi * 2600 * t)
    heard = through(StemStream(model, query, rate_hz, 1), (low + high)[None].astype(np.float32))
    middle = slice(rate_hz // 4, -rate_hz // 4)
    np.testing.assert_allclose(heard.targets[0, 0, middle], low[middle], atol=1e-3)


def test_the_program_separates_and_reports_with_it(folder, tmp_path, noise, capsys):
    soundfile.write(tmp_path / "mix.wav", noise(1, 12_000).T, 16_000, subtype="FLOAT")
    out = tmp_path / "out"
    command = ["separate", str(tmp_path / "mix.wav"), "-q", "violin", "-q", "dog"]
    assert cli.main([*command, "--model", str(folder), "-o", str(out), "--report"]) == 0
    assert len(list(out.rglob("*.wav")) + list(out.rglob("*.flac"))) >= 3
    assert list(out.rglob("*.html"))
    capsys.readouterr()
    assert cli.main([*command[:4], "--not", "dog", "--model", str(folder), "-o", str(tmp_path / "no")]) != 0
    assert "cannot keep a sound out by words" in capsys.readouterr().err
