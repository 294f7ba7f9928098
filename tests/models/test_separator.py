from __future__ import annotations

import hashlib
import json
import pickle
import zlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from auralign.errors import ModelUnavailableError, UsageError
from auralign.models.encoders import Backbones
from auralign.models.separator import FORMAT, QueryVector, SeparatorModel

OPTIONS = {"query_dim": 12, "levels": 3, "width": 4, "latents": 6}


class FakeBackbones(Backbones):
    """Vectors that follow from the words or the sound, without any pretrained weights."""

    def texts(self, texts):
        seeds = [zlib.crc32(text.encode()) for text in texts]
        return torch.stack([torch.randn(384, generator=torch.Generator().manual_seed(s)) for s in seeds])

    def audio(self, wave):
        return torch.stack([torch.fft.rfft(one, n=2046).abs() for one in wave])

    def images(self, images):
        return images.flatten(1)[:, :1280]


def _model(seed: int = 0, **more) -> SeparatorModel:
    torch.manual_seed(seed)
    model = SeparatorModel(
        "omnisep", OPTIONS, labels=["dog", "violin"], phrases=["a dog", "a violin"], **more
    ).eval()
    for parameter in model.net.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.2)
    model.backbones = FakeBackbones()
    return model


def _wave(samples: int = 8000, batch: int = 2) -> torch.Tensor:
    return 0.1 * torch.randn(batch, samples, generator=torch.Generator().manual_seed(3))


def _query(model: SeparatorModel, *texts: str) -> torch.Tensor:
    return torch.stack([q.vector for q in model.text_queries(list(texts))])


def test_spectrogram_is_a_centred_hann_stft_of_1024_by_256():
    model, wave = _model(), _wave(4096, 1)
    spec = model.spectrogram(wave)
    assert spec.shape == (1, 513, 17)
    padded = F.pad(wave[0], (512, 512))
    frame = padded[5 * 256 : 5 * 256 + 1024] * torch.hann_window(1024)
    torch.testing.assert_close(spec[0, :, 5], torch.fft.rfft(frame), atol=1e-4, rtol=1e-4)
    assert model.spectrogram(wave[None]).shape == (1, 1, 513, 17)


def test_an_all_pass_mask_gives_the_mixture_back():
    model, wave = _model(), _wave()
    model.net.bias.data.fill_(100)
    model.net.scale.data.zero_()
    with torch.no_grad():
        estimate, _ = model.separate_wave(wave, torch.zeros(2, 1, 12))
    torch.testing.assert_close(estimate[:, 0], wave, atol=1e-6, rtol=0)


@pytest.mark.parametrize("samples", [1, 300, 7001])
def test_estimates_are_as_long_as_the_mixture_and_presence_is_a_probability(samples):
    model = _model()
    with torch.no_grad():
        estimate, presence = model.separate_wave(
            _wave(samples), _query(model, "a", "b", "c").expand(2, 3, 12)
        )
    assert estimate.shape == (2, 3, samples)
    assert estimate.isfinite().all()
    assert ((presence >= 0) & (presence <= 1)).all()


def test_estimate_is_the_masked_mixture_with_its_phase():
    model, wave = _model(), _wave(4096, 1)
    query = _query(model, "a dog")[None]
    with torch.no_grad():
        mask = model(wave, query).mask[0, 0]
        estimate, _ = model.separate_wave(wave, query)
    expected = torch.istft(
        mask * model.spectrogram(wave)[0], 1024, 256, window=torch.hann_window(1024), length=4096
    )
    torch.testing.assert_close(estimate[0, 0], expected)


def test_queries_of_every_kind_are_unit_vectors_of_one_space():
    model = _model()
    found = [
        *model.text_queries(["a dog", "a cat"]),
        *model.audio_queries(_wave()),
        *model.image_queries(torch.rand(1, 3, 32, 32)),
    ]
    assert len(found) == 5
    for query in found:
        assert query.space == model.space
        assert query.vector.shape == (12,)
        assert float(query.vector.norm()) == pytest.approx(1, abs=1e-5)
        assert not query.vector.requires_grad


def test_combining_takes_the_mean_direction():
    model = _model()
    a, b = model.text_queries(["a dog", "a cat"])
    torch.testing.assert_close(model.combine([a, b]).vector, F.normalize((a.vector + b.vector) / 2, dim=-1))
    torch.testing.assert_close(model.combine([a]).vector, a.vector)


@pytest.mark.parametrize("unit", [True, False])
def test_unwanted_queries_push_away_by_the_published_formula(unit):
    model = _model(unit_queries=unit)
    a, b, c = model.text_queries(["a dog", "a cat", "rain"])
    against = F.normalize((b.vector + c.vector) / 2, dim=-1)
    expected = 1.3 * a.vector - 0.3 * against
    expected = F.normalize(expected, dim=-1) if unit else expected
    torch.testing.assert_close(model.combine([a], [b, c], strength=0.3).vector, expected)


def test_augmentation_answers_with_a_trained_phrase():
    model = _model()
    dog = model.text_queries(["a dog"])[0]
    near = QueryVector(F.normalize(dog.vector + 0.05, dim=-1), model.space)
    torch.testing.assert_close(model.combine([near], augment=True).vector, dog.vector)
    bare = SeparatorModel("omnisep", OPTIONS)
    query = QueryVector(dog.vector, bare.space)
    with pytest.raises(UsageError, match="no bank of queries"):
        bare.combine([query], augment=True)


def test_a_query_of_another_encoder_version_is_refused():
    model, other = _model(0), _model(1)
    mine, theirs = model.text_queries(["a dog"])[0], other.text_queries(["a dog"])[0]
    for wanted, unwanted in (([theirs], []), ([mine], [theirs])):
        with pytest.raises(UsageError, match="made by another encoder version"):
            model.combine(wanted, unwanted)


def test_no_query_and_unknown_networks_are_usage_errors():
    with pytest.raises(UsageError, match="no query is given"):
        _model().combine([])
    with pytest.raises(UsageError, match="no network 'omnisepp'"):
        SeparatorModel("omnisepp", {})


def test_the_space_follows_every_weight_of_the_heads_and_nothing_else():
    model = _model()
    before = model.space
    with torch.no_grad():
        model.net.bias.add_(1)
        assert model.space == before
        model.heads.heads["image"].second.bias[0] += 1e-3
    assert model.space != before


@pytest.mark.parametrize("half", [True, False])
def test_saving_and_loading_keeps_the_answers(tmp_path, half):
    model, wave = _model(unit_queries=False), _wave()
    model.save(tmp_path / "m", {"name": "tiny", "licence": "Apache-2.0"}, half=half)
    again = SeparatorModel.load(tmp_path / "m")
    again.backbones = FakeBackbones()
    assert (again.network, again.labels, again.phrases) == (
        "omnisep",
        ("dog", "violin"),
        ("a dog", "a violin"),
    )
    assert again.options == OPTIONS
    assert again.unit_queries is False
    assert not again.training
    with torch.no_grad():
        a = model(wave, _query(model, "a dog").expand(2, 1, 12))
        b = again(wave, _query(again, "a dog").expand(2, 1, 12))
    torch.testing.assert_close(b.mask, a.mask, atol=2e-2 if half else 0, rtol=0)
    torch.testing.assert_close(b.presence, a.presence, atol=2e-2 if half else 0, rtol=0)


def test_loaded_models_agree_on_their_space_and_float32_keeps_the_trained_one(tmp_path):
    model = _model()
    model.save(tmp_path / "half", {})
    model.save(tmp_path / "full", {}, half=False)
    first, second = SeparatorModel.load(tmp_path / "half"), SeparatorModel.load(tmp_path / "half")
    assert first.space == second.space
    first.backbones = second.backbones = FakeBackbones()
    assert second.combine(first.text_queries(["a dog"])).space == second.space
    assert SeparatorModel.load(tmp_path / "full").space == model.space
    assert first.space != model.space, "rounding the heads makes another encoder"


def test_a_model_saved_again_keeps_its_space(tmp_path):
    _model().save(tmp_path / "a", {})
    first = SeparatorModel.load(tmp_path / "a")
    first.save(tmp_path / "b", {})
    assert SeparatorModel.load(tmp_path / "b").space == first.space


def test_the_card_names_the_files_digest_and_the_file_alone_can_be_loaded(tmp_path):
    _model().save(tmp_path / "m", {"name": "tiny"})
    card = json.loads((tmp_path / "m" / "card.json").read_text())
    digest = hashlib.sha256((tmp_path / "m" / "model.safetensors").read_bytes()).hexdigest()
    assert card == {"name": "tiny", "format": FORMAT, "files": {"model.safetensors": digest}}
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["card.json", "model.safetensors"]
    (tmp_path / "m" / "card.json").unlink()
    assert SeparatorModel.load(tmp_path / "m" / "model.safetensors").labels == ("dog", "violin")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    _model().save(tmp_path / "m", {})
    return tmp_path / "m" / "model.safetensors"


def test_one_flipped_bit_is_noticed_through_the_card(saved):
    data = bytearray(saved.read_bytes())
    data[-1] ^= 1
    saved.write_bytes(data)
    with pytest.raises(ModelUnavailableError, match="SHA-256"):
        SeparatorModel.load(saved.parent)


@pytest.mark.parametrize("keep", [0, 4, 100, -1000])
def test_a_truncated_file_is_refused(saved, keep):
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(ModelUnavailableError, match=r"model\.safetensors"):
        SeparatorModel.load(saved.parent)


def test_a_pickle_is_never_opened(saved):
    class Trap:
        def __reduce__(self):
            return exec, ("raise SystemExit('code of the file was run')",)

    saved.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ModelUnavailableError, match="cannot be read"):
        SeparatorModel.load(saved.parent)


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(ModelUnavailableError, match="nowhere"):
        SeparatorModel.load(tmp_path / "nowhere")


def test_safetensors_of_another_kind_are_refused(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ModelUnavailableError, match="not an auralign separator"):
        SeparatorModel.load(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": "other"}, "description is damaged"),
        ({"options": "{"}, "description is damaged"),
        ({"options": '{"depth": 3}'}, "description is damaged"),
        ({"labels": None}, "description is damaged"),
        ({"options": json.dumps({**OPTIONS, "width": 8})}, "do not fit the network"),
    ],
)
def test_a_header_that_does_not_describe_the_weights_is_refused(tmp_path, changes, message):
    good = {
        "format": FORMAT,
        "network": "omnisep",
        "options": json.dumps(OPTIONS),
        "labels": "[]",
        "phrases": "[]",
        "unit_queries": "true",
    }
    meta = {k: v for k, v in {**good, **changes}.items() if v is not None}
    save_file(
        {k: v.contiguous() for k, v in _model().state_dict().items()},
        tmp_path / "x.safetensors",
        metadata=meta,
    )
    with pytest.raises(ModelUnavailableError, match=message):
        SeparatorModel.load(tmp_path / "x.safetensors")


def test_a_damaged_card_is_named(saved):
    (saved.parent / "card.json").write_text("{")
    with pytest.raises(ModelUnavailableError, match=r"card\.json"):
        SeparatorModel.load(saved.parent)


def test_matrices_are_stored_in_half_precision_and_statistics_in_full(saved):
    tensors = load_file(saved)
    assert {t.dtype for t in tensors.values() if t.ndim > 1} == {torch.float16}
    assert {t.dtype for t in tensors.values() if t.ndim <= 1} == {torch.float32, torch.int64}
