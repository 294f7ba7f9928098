"""The judge against the authors' network code and the Essentia front end, and at its edges."""

from __future__ import annotations

import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
from torch.nn import functional as F

from auralign.models.judge import load_judge
from auralign.runtime import weights, wheels

SOUNDS = Path(__file__).parent.parent / "fixtures" / "sounds"


@pytest.fixture(scope="module")
def net():
    return load_judge()


def crow() -> torch.Tensor:
    samples, rate = soundfile.read(SOUNDS / "crow.flac", dtype="float32", always_2d=True)
    assert rate == 44_100
    return torch.from_numpy(samples.mean(axis=1))[None]


def test_log_mel_equals_essentia(net):
    theirs = np.load(SOUNDS / "crow_essentia_logmel.npy")
    np.testing.assert_allclose(net.log_mel(crow())[0].numpy(), theirs, atol=2e-5)


def test_embedding_equals_the_authors_network(net):
    wheel = wheels.find_wheel(weights.spec_of("aisfx"))
    authors = types.ModuleType("authors")
    with zipfile.ZipFile(wheel) as archive:
        exec(compile(archive.read("aisfx/models/cnn2d.py"), "cnn2d.py", "exec"), authors.__dict__)
    oracle = authors.EmbeddingNet("max", 3, 1, 64)
    state = {k.removeprefix("embedding_net."): v for k, v in weights.tensors("aisfx").items()}
    oracle.load_state_dict(state, strict=False)
    oracle.eval()
    blocks = net.log_mel(crow().repeat(1, 12)).unfold(1, 100, 50)[0].transpose(1, 2)
    assert len(blocks) == 4
    with torch.no_grad():
        torch.testing.assert_close(net.embed_blocks(blocks), oracle(blocks), atol=1e-5, rtol=1e-4)
    expected = F.normalize(oracle(blocks).detach().mean(0, keepdim=True), dim=-1)
    torch.testing.assert_close(net.embed(crow().repeat(1, 12)), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("samples", [1, 1000, 1024, 1025, 60_000])
def test_any_length_has_a_unit_vector_equal_to_the_one_padded_with_silence(net, samples):
    wave = crow().repeat(1, 3)[:, :samples]
    vector = net.embed(wave)
    torch.testing.assert_close(vector.norm(dim=-1), torch.ones(1))
    padded = net.embed(F.pad(wave, (0, 99 * 1024 - samples)))
    torch.testing.assert_close(vector, padded, atol=1e-5, rtol=1e-4)


def test_the_level_changes_the_vector_less_than_the_sound_does(net):
    noise = 0.1 * torch.randn(1, 60_000, generator=torch.Generator().manual_seed(0))
    vectors = net.embed(torch.cat([F.pad(crow().repeat(1, 2), (0, 60_000 - 2 * 21_196)), noise]))
    quieter = net.embed(0.5 * F.pad(crow().repeat(1, 2), (0, 60_000 - 2 * 21_196)))
    assert float(vectors[0] @ quieter[0]) > 0.97
    assert float(vectors[0] @ vectors[1]) < 0.9


def test_silence_is_finite_and_weights_are_frozen(net):
    assert torch.isfinite(net.embed(torch.zeros(2, 44_100))).all()
    assert not any(p.requires_grad for p in net.parameters())
    assert not net.training


def test_hearing_at_another_rate_is_embedding_the_resampled_sounds_in_any_portions(net):
    sounds = 0.1 * np.random.default_rng(0).standard_normal((5, 16_000)).astype(np.float32)
    fast = np.stack([soxr.resample(one, 16_000, 44_100) for one in sounds])
    expected = net.embed(torch.from_numpy(fast))
    torch.testing.assert_close(net.hear(list(sounds), 16_000), expected, atol=0, rtol=0)
    torch.testing.assert_close(net.hear(list(sounds), 16_000, at_once=2), expected, atol=1e-6, rtol=0)


def test_convolutions_in_bfloat16_give_float32_vectors_that_hardly_turn(net):
    narrow = load_judge()
    narrow.pairs.to(torch.bfloat16)
    vector = narrow.embed(crow())
    assert vector.dtype == torch.float32
    assert 0.999 < float((vector * net.embed(crow())).sum()) < 1.0
