"""CLAP and ImageBind adapters on tiny random models: layout, front ends, unit norms, gradients, refusals."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn import functional as F

from auralign.errors import AudioError, ModelUnavailableError, UsageError
from auralign.models.clap import ClapEncoder, upsample
from auralign.models.imagebind import ImageBind, ImageBindConfig, TrunkConfig, read_clip_picture
from auralign.models.kaldi import fbank, kaldi_mel_bank

SOUNDS = Path(__file__).parent.parent / "fixtures" / "sounds"
WORDS = ["<pad>", "<unk>", "a", "dog", "barks", "violin", "<s>", "</s>"]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def word_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", WORDS.index("<s>")), ("</s>", WORDS.index("</s>"))]
    )
    return tokenizer


# --- CLAP ---


@pytest.fixture(scope="module", params=[False, True], ids=["unfused", "fused"])
def clap_folder(request, tmp_path_factory):
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("clap")
    fusion = {"enable_fusion": True, "fusion_type": "aff_2d"} if request.param else {}
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
            **fusion,
        },
        projection_dim=12,
    )
    ClapModel(config).save_pretrained(folder)
    ClapFeatureExtractor(
        max_length_s=2, truncation="fusion" if request.param else "rand_trunc"
    ).save_pretrained(folder)
    words = PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer(), pad_token="<pad>", unk_token="<unk>", model_max_length=32
    )
    words.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clap(clap_folder):
    return ClapEncoder.from_path(str(clap_folder), offline=True)


def test_clap_features_equal_transformers_extractor(clap, clap_folder):
    from transformers import ClapFeatureExtractor

    extractor = ClapFeatureExtractor.from_pretrained(clap_folder)
    wave = noise(1, 30_000)
    theirs = extractor(wave[0].numpy(), sampling_rate=48_000, return_tensors="np").input_features[0, 0]
    mine = clap.log_mel(clap._windows(wave)[:, 0])[0].numpy()
    np.testing.assert_allclose(mine, theirs, atol=1e-2)  # dB of float32 power near the -100 dB floor


def test_clap_sounds_equal_the_model_fed_by_hand(clap):
    wave = noise(1, 96_000)
    features = clap.log_mel(wave).unsqueeze(1).expand(-1, 4 if clap.fused else 1, -1, -1)
    hidden = clap.model.audio_model(input_features=features, is_longer=torch.zeros(1, 1, dtype=torch.bool))
    expected = F.normalize(clap.model.audio_projection(hidden.pooler_output), dim=-1)
    torch.testing.assert_close(clap.embed_audio(wave, rate_hz=48_000), expected)


@pytest.mark.parametrize("samples", [1, 16_000, 36_000])
def test_clap_any_length_gives_unit_vectors(clap, samples):
    vector = clap.embed_audio(noise(1, samples))
    assert vector.shape == (1, clap.dim)
    torch.testing.assert_close(vector.norm(dim=-1), torch.ones(1))


def test_clap_windows_cover_a_long_sound_to_its_end(clap):
    windows = clap._windows(torch.arange(200_000.0)[None])
    assert windows.shape == (1, 3, 96_000)
    assert windows[0, 0, 0] == 0
    assert windows[0, -1, -1] == 199_999
    assert windows[0, 1, 0] <= windows[0, 0, -1] + 1


def test_clap_gradient_reaches_the_wave_only(clap):
    wave = noise(1, 16_000).requires_grad_()
    clap.embed_audio(wave).sum().backward()
    assert torch.isfinite(wave.grad).all()
    assert wave.grad.abs().max() > 0
    assert not any(p.requires_grad for p in clap.parameters())


def test_clap_texts_have_unit_vectors_the_same_in_any_batch(clap):
    texts = ["a dog", "violin", "", "dog " * 100]
    together = clap.embed_text(texts)
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(4))
    torch.testing.assert_close(
        together, torch.cat([clap.embed_text([t]) for t in texts]), atol=1e-5, rtol=1e-4
    )
    assert clap.embed_text([]).shape == (0, 12)


def test_clap_says_what_does_not_fit(clap, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="44100"):
        clap.embed_audio(noise(1, 100), rate_hz=44_100)
    with pytest.raises(AudioError, match="without samples"):
        clap.embed_audio(torch.zeros(1, 0))
    with pytest.raises(ModelUnavailableError, match=r"config\.json"):
        ClapEncoder.from_path(str(tmp_path), offline=True)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelUnavailableError, match=r"auralign\[clap\]"):
        ClapEncoder.from_path(str(tmp_path))


def test_clap_refuses_pickled_checkpoints(clap, tmp_path):
    clap.model.config.save_pretrained(tmp_path)
    torch.save(clap.model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelUnavailableError, match="cannot be loaded"):
        ClapEncoder.from_path(str(tmp_path), offline=True)


@pytest.mark.parametrize("factor", [1, 3, 6])
def test_upsampling_keeps_band_limited_sounds_in_place(factor):
    time = np.arange(4000) / 16_000
    fine = np.arange(4000 * factor) / (16_000 * factor)
    low = torch.from_numpy(np.sin(2 * np.pi * 1234.5 * time)[None]).float()
    up = upsample(low, factor)[0].numpy()
    inner = slice(50 * factor, -50 * factor)
    np.testing.assert_allclose(up[inner], np.sin(2 * np.pi * 1234.5 * fine)[inner], atol=2e-3)
    np.testing.assert_allclose(up[::factor], low[0].numpy(), atol=1e-5)


# --- ImageBind ---

TINY = ImageBindConfig(
    dim=10,
    audio=TrunkConfig(12, 2, 3),
    text=TrunkConfig(8, 1, 2),
    vision=TrunkConfig(16, 1, 4),
    side=28,
    vocabulary=len(WORDS),
    context=9,
)


@pytest.fixture(scope="module")
def bind():
    torch.manual_seed(0)
    model = ImageBind(TINY, tokenizer=word_tokenizer())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def block_names(trunk: str, index: int, *, bias_kv: bool) -> set[str]:
    parts = ["attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj.weight", "attn.out_proj.bias"]
    parts += [
        f"{name}.{kind}" for name in ("norm_1", "norm_2", "mlp.fc1", "mlp.fc2") for kind in ("weight", "bias")
    ]
    parts += ["attn.bias_k", "attn.bias_v"] if bias_kv else []
    return {f"modality_trunks.{trunk}.blocks.{index}.{part}" for part in parts}


def test_imagebind_names_are_those_of_the_public_checkpoint(bind):
    expected = block_names("audio", 0, bias_kv=True) | block_names("audio", 1, bias_kv=True)
    expected |= block_names("text", 0, bias_kv=False) | block_names("vision", 0, bias_kv=False)
    expected |= {f"modality_trunks.vision.pre_transformer_layer.0.{kind}" for kind in ("weight", "bias")}
    for name in ("audio", "vision"):
        pre = f"modality_preprocessors.{name}."
        expected |= {pre + "cls_token", pre + "pos_embedding_helper.pos_embed"}
        expected |= {f"modality_heads.{name}.{part}" for part in ("0.weight", "0.bias", "2.weight")}
    expected |= {f"modality_preprocessors.audio.rgbt_stem.{p}" for p in ("proj.weight", "norm_layer.weight")}
    expected |= {"modality_preprocessors.audio.rgbt_stem.norm_layer.bias"}
    expected |= {"modality_preprocessors.vision.rgbt_stem.proj.1.weight"}
    expected |= {f"modality_preprocessors.text.{part}" for part in ("pos_embed", "token_embedding.weight")}
    expected |= {f"modality_heads.text.proj.{part}" for part in ("0.weight", "0.bias", "1.weight")}
    expected |= {f"modality_postprocessors.{name}.1.log_logit_scale" for name in ("audio", "text")}
    assert set(bind.state_dict()) == expected


def test_imagebind_huge_has_the_published_sizes():
    with torch.device("meta"):
        model = ImageBind()
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes["modality_preprocessors.audio.pos_embedding_helper.pos_embed"] == (1, 229, 768)
    assert shapes["modality_preprocessors.vision.pos_embedding_helper.pos_embed"] == (1, 257, 1280)
    assert shapes["modality_preprocessors.vision.rgbt_stem.proj.1.weight"] == (1280, 3, 2, 14, 14)
    heads = {n: sum(p.numel() for p in h.parameters()) for n, h in model.modality_heads.items()}
    assert heads == {"audio": 787_968, "text": 1_050_624, "vision": 1_313_280}


def test_imagebind_loads_a_checkpoint_and_ignores_other_modalities(bind, tmp_path):
    state = {name: tensor.half().float() for name, tensor in bind.state_dict().items()}
    extra = {
        "modality_trunks.imu.blocks.0.norm_1.weight": torch.ones(3),
        "modality_preprocessors.text.mask": torch.ones(2),
    }
    file = tmp_path / "imagebind.safetensors"
    save_file(state | extra, file)
    word_tokenizer().save(str(tmp_path / "tokenizer.json"))
    loaded = ImageBind.from_path(tmp_path, TINY)
    assert loaded.embed_text(["a dog"]).shape == (1, 10)
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor, state[name])
    with pytest.raises(ModelUnavailableError, match=r"modality_trunks\.audio\.blocks\.2"):
        ImageBind.from_path(file, ImageBindConfig(**{**vars(TINY), "audio": TrunkConfig(12, 3, 3)}))
    with pytest.raises(UsageError, match="pickled"):
        ImageBind.from_path(tmp_path / "imagebind_huge.pth")


def test_imagebind_vectors_have_length_one_and_batches_do_not_mix(bind):
    sounds, pictures = noise(3, 40_000), noise(3, 3, 28, 28)
    for embed, batch in ((bind.embed_audio, sounds), (bind.embed_pictures, pictures)):
        vectors = embed(batch)
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(3))
        torch.testing.assert_close(embed(batch[1:2]), vectors[1:2], atol=1e-5, rtol=1e-4)
        assert not torch.allclose(vectors[0], vectors[1], atol=1e-4)


def test_imagebind_gradient_reaches_wave_and_picture_only(bind):
    for embed, value in ((bind.embed_audio, noise(1, 33_000)), (bind.embed_pictures, noise(1, 3, 28, 28))):
        value.requires_grad_()
        embed(value)[0, 0].backward()
        assert value.grad.abs().max() > 0
    assert not any(p.requires_grad for p in bind.parameters())


def test_imagebind_text_ignores_what_follows_the_end_token(bind):
    row = torch.tensor([[6, 2, 3, 7, 0, 0, 0, 0, 0]])
    changed = torch.tensor([[6, 2, 3, 7, 5, 4, 3, 2, 1]])
    torch.testing.assert_close(bind.embed_tokens(row), bind.embed_tokens(changed))
    torch.testing.assert_close(bind.embed_text(["a dog"]), bind.embed_tokens(row))
    assert not torch.allclose(bind.embed_text(["a violin"]), bind.embed_text(["a dog"]), atol=1e-4)


def test_imagebind_long_text_keeps_its_end_token(bind):
    cut = torch.tensor([[6, 3, 3, 3, 3, 3, 3, 3, 7]])
    torch.testing.assert_close(bind.embed_text(["dog " * 40]), bind.embed_tokens(cut))
    with pytest.raises(UsageError, match=r"tokenizer\.json"):
        ImageBind(TINY).embed_text(["dog"])


def test_imagebind_clips_are_spread_evenly_and_padded_after_198_frames(bind):
    wave = torch.linspace(-1, 1, 65_536)[None] * noise(1, 65_536)
    clips = bind.audio_clips(wave)
    assert clips.shape == (1, 3, 128, 204)
    torch.testing.assert_close(clips[..., 198:], torch.full((1, 3, 128, 6), 4.268 / 9.138))
    middle = bind.audio_clips(wave[:, 16_768 : 16_768 + 32_000])
    torch.testing.assert_close(clips[:, 1], middle[:, 0])
    with pytest.raises(AudioError, match="399"):
        bind.audio_clips(noise(1, 399))
    assert bind.temperature["vision"] == 1.0
    assert all(0 < value <= 100 for value in bind.temperature.values())


def test_kaldi_filter_bank_equals_transformers():
    from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

    with pytest.warns(UserWarning, match="all zero"):
        bank = mel_filter_bank(
            257, 128, 20, 8000, 16_000, norm=None, mel_scale="kaldi", triangularize_in_mel_space=True
        )
    np.testing.assert_allclose(kaldi_mel_bank(128)[:-1].numpy(), bank[:-1], atol=1e-5)
    wave = noise(1, 32_000)
    theirs = spectrogram(
        wave[0].numpy().astype(np.float64),
        window_function(400, "hann", periodic=False),
        frame_length=400,
        hop_length=160,
        fft_length=512,
        power=2.0,
        center=False,
        preemphasis=0.97,
        mel_filters=kaldi_mel_bank(128).numpy().astype(np.float64),
        log_mel="log",
        mel_floor=1.192092955078125e-07,
        remove_dc_offset=True,
    ).T
    mine = fbank(wave)[0].numpy()
    assert mine.shape == (198, 128)
    np.testing.assert_allclose(mine, theirs, atol=2e-3)  # logarithms of float32 powers


def test_clip_pictures_are_cut_from_the_centre():
    tensor = read_clip_picture(SOUNDS / "rooster.png")
    assert tensor.shape == (3, 224, 224)
    white = (1 - torch.tensor([0.48145466, 0.4578275, 0.40821073])) / torch.tensor(
        [0.26862954, 0.26130258, 0.27577711]
    )
    assert (tensor.amax(dim=(1, 2)) <= white + 1e-5).all()
