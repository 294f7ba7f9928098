"""Text-audio encoders: unit vectors, gradients to the sound alone, a constant scale, how they are opened."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from auralign.errors import ModelUnavailableError, UsageError
from auralign.models.bimodal import AlignedEncoder, BimodalTexts, ClapBimodal, as_backbones, open_bimodal
from auralign.models.clap import upsample
from auralign.models.encoders import open_backbones
from auralign.models.reward_encoder import RewardEncoder

WORDS = ["<pad>", "<unk>", "a", "dog", "violin"]


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture(scope="module")
def clap_folder(tmp_path_factory):
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("clap")
    torch.manual_seed(0)
    config = ClapConfig(
        text_config={
            "vocab_size": 40,
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "max_position_embeddings": 40,
        },
        audio_config={
            "spec_size": 128,
            "window_size": 4,
            "patch_embeds_hidden_size": 8,
            "hidden_size": 64,
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 1, 2, 2],
        },
        projection_dim=12,
    )
    model = ClapModel(config)
    model.logit_scale_a.data.fill_(math.log(7.5))
    model.logit_scale_t.data.fill_(math.log(3.0))
    model.save_pretrained(folder)
    ClapFeatureExtractor(max_length_s=1, truncation="rand_trunc").save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", model_max_length=32
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clap(clap_folder) -> ClapBimodal:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AURALIGN_OFFLINE", "1")
        encoder = open_bimodal(f"clap:{clap_folder}")
    assert isinstance(encoder, ClapBimodal)
    return encoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(3)
    encoder = RewardEncoder(dim=10, hidden=12, rank=4, pooling="mean")
    with torch.no_grad():
        encoder.log_scale.fill_(math.log(11.0))
    folder = tmp_path_factory.mktemp("aligned") / "tiny"
    encoder.save(folder, {"name": "tiny"})
    return folder


@pytest.fixture(scope="module")
def aligned(folder) -> AlignedEncoder:
    encoder = open_bimodal(str(folder))
    assert isinstance(encoder, AlignedEncoder)
    return encoder


def assert_gradient(encoder, wave: torch.Tensor, places: tuple[int, ...], step: float, tolerance: float):
    """The gradient of a direction of the space against differences of the sound in both directions."""
    axis = noise(encoder.dim, seed=8, dtype=wave.dtype)
    wave = wave.clone().requires_grad_()
    (encoder.audio(wave) @ axis).sum().backward()
    gradient = wave.grad[0, list(places)]
    by_hand = []
    for place in places:
        moved = torch.zeros_like(wave)
        moved[0, place] = step
        with torch.no_grad():
            up, down = (float((encoder.audio(wave + s * moved) @ axis).sum()) for s in (1, -1))
        by_hand.append((up - down) / (2 * step))
    expected = torch.tensor(by_hand).to(gradient)
    assert float(gradient.abs().max()) > 0
    assert float((gradient - expected).norm()) <= tolerance * float(expected.norm())


# CLAP


def test_clap_vectors_are_units_and_do_not_depend_on_neighbours(clap):
    texts = clap.texts(["a dog", "violin"])
    sounds = clap.audio(noise(2, 9000))
    for rows in (texts, sounds):
        assert rows.shape == (2, clap.dim) == (2, 12)
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(clap.audio(noise(2, 9000)[:1]), sounds[:1], atol=1e-5, rtol=1e-4)
    assert not texts.requires_grad


def test_claps_scale_is_that_of_its_audio_and_a_constant(clap):
    assert clap.scale == pytest.approx(7.5, rel=1e-6)
    assert isinstance(clap.scale, float)
    assert not any(p.requires_grad for p in clap._clap.parameters())


@pytest.mark.parametrize("samples", [7000, 16_000])
def test_claps_gradient_passes_encoder_repetition_and_upsampling(clap, samples):
    double = copy.copy(clap)
    double._clap = copy.deepcopy(clap._clap).double()
    wave = noise(1, samples, dtype=torch.float64)
    assert_gradient(double, wave, (0, 1234, samples - 1), 1e-6, 1e-3)
    assert all(p.grad is None for p in double._clap.parameters())


def test_upsampling_keeps_a_tone_and_its_gradient_is_its_adjoint():
    t = torch.arange(1600, dtype=torch.float64) / 16_000
    high = upsample(torch.sin(2 * torch.pi * 440 * t)[None], 3)[0]
    t3 = torch.arange(4800, dtype=torch.float64) / 48_000
    inside = slice(300, -300)
    torch.testing.assert_close(high[inside], torch.sin(2 * torch.pi * 440 * t3)[inside], atol=1e-3, rtol=0)
    x = noise(1, 50, dtype=torch.float64).requires_grad_()
    y = noise(1, 150, seed=1, dtype=torch.float64)
    (upsample(x, 3) * y).sum().backward()
    probe = noise(1, 50, seed=2, dtype=torch.float64)
    inner = (upsample(probe, 3) * y).sum()
    torch.testing.assert_close((probe * x.grad).sum(), inner)


# the built-in kind


def test_aligned_vectors_are_those_of_the_heads_at_any_level(aligned):
    wave = noise(2, 8000)
    heads = aligned.encoder
    expected = heads.embed(heads.audio_features(wave), "audio")
    torch.testing.assert_close(aligned.audio(wave), expected)
    torch.testing.assert_close(aligned.audio(0.03 * wave), expected, atol=1e-3, rtol=1e-2)
    texts = aligned.texts(["a dog", "violin"])
    torch.testing.assert_close(texts, heads.embed(heads.backbones.texts(["a dog", "violin"]), "text"))
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(2))
    assert not texts.requires_grad
    assert (aligned.dim, aligned.rate_hz) == (10, 16_000)


def test_the_scale_is_the_learned_one_and_a_constant(aligned):
    assert aligned.scale == pytest.approx(11.0, rel=1e-5)
    assert isinstance(aligned.scale, float)


def test_gradient_reaches_the_sound_and_no_weight(aligned):
    wave = noise(1, 8000).requires_grad_()
    (aligned.audio(wave) @ noise(10, seed=8)).sum().backward()
    assert torch.isfinite(wave.grad).all()
    assert float(wave.grad.abs().max()) > 0
    weights = [*aligned.encoder.parameters(), *aligned.encoder.backbones.yamnet.parameters()]
    assert all(p.grad is None and not p.requires_grad for p in weights)
    with torch.no_grad():
        assert not aligned.audio(wave).requires_grad


def test_a_step_along_the_gradient_moves_the_vector_that_way(aligned):
    axis = noise(10, seed=8)
    wave = noise(1, 8000).requires_grad_()
    before = (aligned.audio(wave) @ axis).sum()
    before.backward()
    with torch.no_grad():
        direction = wave.grad / wave.grad.norm()
        step = 1e-3 * wave.norm()
        gain = float((aligned.audio(wave + step * direction) @ axis).sum()) - float(before)
    assert gain == pytest.approx(float(step * wave.grad.norm()), rel=0.3)


def test_silence_has_a_finite_vector_and_gradient(aligned):
    wave = torch.zeros(1, 8000, requires_grad=True)
    aligned.audio(wave).sum().backward()
    assert torch.isfinite(wave.grad).all()


# opening


def test_copies_share_a_frozen_encoder(aligned):
    assert copy.deepcopy({"a": aligned})["a"] is aligned


def test_it_moves_to_a_device_as_itself(aligned, clap):
    for encoder in (aligned, clap):
        assert encoder.to(torch.device("cpu")) is encoder


def test_what_cannot_be_had_is_named(tmp_path):
    with pytest.raises((UsageError, ModelUnavailableError), match="nothing-there"):
        open_bimodal(str(tmp_path / "nothing-there"))
    with pytest.raises(ModelUnavailableError, match="nothing-there"):
        open_bimodal(f"clap:{tmp_path / 'nothing-there'}")
    with pytest.raises((UsageError, ModelUnavailableError)):
        open_bimodal("clap:")


def test_its_texts_serve_as_queries(folder, aligned):
    backbones = open_backbones(f"bimodal:{folder}")
    assert isinstance(backbones, BimodalTexts)
    assert isinstance(as_backbones(str(folder)), BimodalTexts)
    assert backbones.dims == {"text": 10}
    torch.testing.assert_close(backbones.texts(["a dog"]), aligned.texts(["a dog"]))
    with pytest.raises(UsageError, match="empty"):
        backbones.texts(["a dog", "  "])
    with pytest.raises(UsageError, match="no audio query"):
        backbones.audio(noise(1, 100))
