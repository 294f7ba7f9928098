from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from auralign.errors import UsageError
from auralign.models.bimodal import BimodalEncoder
from auralign.models.blind import REFERENCE_TEXTS, BlindSeparator, against_rest, presence_logit
from auralign.models.reward_encoder import RewardEncoder
from auralign.models.separator import SeparatorModel

TINY = {"widths": (8, 12, 16, 20), "blocks": (1, 1, 1, 1), "fine": 4, "hidden": 8, "n_bands": 64}
SAMPLES = 64 * 256


def _noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class BandEncoder(BimodalEncoder):
    """Hears how much of a sound lies in each quarter of the spectrum; ``band 2`` is the text of the third."""

    rate_hz = 16_000
    dim = 4
    scale = 20.0

    def texts(self, texts: list[str]) -> torch.Tensor:
        rows = [
            F.one_hot(torch.tensor(int(text[-1])), 4).float() if text[:4] == "band" else torch.full((4,), 0.5)
            for text in texts
        ]
        return torch.stack(rows)

    def audio(self, wave: torch.Tensor) -> torch.Tensor:
        power = torch.fft.rfft(wave).abs().square()[:, 1:]
        return F.normalize(power.unflatten(1, (4, -1)).sum(dim=2).sqrt(), dim=1)

    def to(self, device: torch.device) -> BandEncoder:
        return self


def _net(**options) -> BlindSeparator:
    torch.manual_seed(0)
    net = BlindSeparator(**{**TINY, **options})
    net.share_encoder(BandEncoder())
    return net.eval()


def _state(net: BlindSeparator, wave: torch.Tensor) -> dict[str, torch.Tensor]:
    window = torch.hann_window(1024)
    spec = torch.stft(wave, 1024, 256, window=window, pad_mode="constant", return_complex=True)
    return net.analyse(spec, wave)


def _quarters(net: BlindSeparator, frames: int, level: float = 8.0) -> torch.Tensor:
    """Logits that give each of the four outputs a quarter of the spectrum, the last one first."""
    middle = net.projector.weight @ torch.arange(513.0) / net.projector.weight.sum(dim=1)
    owner = 3 - (middle / 128.25).long().clamp(max=3)
    return level * F.one_hot(owner, 4).float().T[None, :, :, None].expand(1, 4, -1, frames)


def test_masks_of_all_outputs_sum_to_one_in_every_cell_and_the_sounds_sum_to_the_mixture():
    net, wave = _net(), _noise(2, SAMPLES)
    with torch.no_grad():
        state = _state(net, wave)
        logits = net.outputs(state)
        sounds = net.separate(state)
    assert logits.shape == (2, 4, 64, 65)
    torch.testing.assert_close(torch.sigmoid(against_rest(logits)).sum(dim=1), torch.ones(2, 64, 65))
    assert sounds.shape == (2, 4, SAMPLES)
    torch.testing.assert_close(sounds.sum(dim=1), wave, rtol=1e-4, atol=1e-4)


def test_masks_against_the_rest_equal_the_softmax_even_where_it_saturates():
    logits = 30 * _noise(1, 5, 3, 2).double()
    ours = against_rest(logits)
    assert torch.isfinite(ours).all()
    torch.testing.assert_close(torch.sigmoid(ours), logits.softmax(dim=1))


def test_outputs_differ_and_every_trained_parameter_gets_a_gradient():
    net = _net().train()
    state = _state(net, _noise(1, SAMPLES))
    sounds = net.separate(state)
    assert float((sounds[:, 0] - sounds[:, 1]).detach().abs().max()) > 1e-4
    (sounds * _noise(*sounds.shape, seed=1)).sum().backward()
    missing = [name for name, p in net.named_parameters() if p.grad is None]
    assert missing == []


@pytest.mark.parametrize("band", range(4))
def test_text_picks_the_output_that_sounds_like_it(band):
    net, wave = _net(), _noise(1, SAMPLES)
    state = _state(net, wave)
    logits = _quarters(net, 65)
    net.outputs = lambda _: logits
    query = net.encoder.texts([f"band {band}", f"band {3 - band}"])[None]
    out = net.respond(state, query)
    expected = logits.softmax(dim=1)[:, [3 - band, band]]
    torch.testing.assert_close(torch.sigmoid(out.logits), expected)
    assert (out.presence > 0).all()


def test_each_query_is_answered_as_if_it_were_alone():
    net = _net()
    with torch.no_grad():
        state = _state(net, _noise(2, SAMPLES))
        query = F.normalize(_noise(2, 3, 4, seed=3), dim=2)
        together = net.respond(state, query)
        for q in range(3):
            alone = net.respond(state, query[:, q : q + 1])
            torch.testing.assert_close(alone.logits[:, 0], together.logits[:, q])
            torch.testing.assert_close(alone.presence[:, 0], together.presence[:, q])


def test_sound_that_is_not_there_is_less_likely_than_not():
    net = _net()
    quarter = torch.fft.rfft(_noise(1, SAMPLES))
    quarter[:, SAMPLES // 8 :] = 0  # nothing but the lowest quarter
    wave = torch.fft.irfft(quarter, n=SAMPLES)
    state = _state(net, wave)
    logits = _quarters(net, 65)
    net.outputs = lambda _: logits
    out = net.respond(state, net.encoder.texts(["band 0", "band 3"])[None])
    assert out.presence[0, 0] > 0
    assert out.presence[0, 1] < 0


@pytest.mark.parametrize(("gain", "picked"), [(0.03, True), (0.003, False)])
def test_output_40_db_below_the_loudest_is_not_picked_however_similar_it_is(gain, picked):
    net = _net()
    spectrum = torch.fft.rfft(_noise(1, SAMPLES))
    spectrum[:, SAMPLES // 3 :] *= gain  # from below the last quarter on, for bands overlap
    state = _state(net, torch.fft.irfft(spectrum, n=SAMPLES))
    logits = _quarters(net, 65, level=40.0)
    net.outputs = lambda _: logits
    mask = torch.sigmoid(net.respond(state, net.encoder.texts(["band 3"])[None]).logits)
    assert torch.allclose(mask, logits.softmax(dim=1)[:, :1]) == picked


def test_presence_is_the_mean_likelihood_ratio_over_audible_outputs():
    similarity, reference = _noise(2, 3, 4), _noise(2, 5, 4, seed=1)
    audible = torch.tensor([[True, True, False, True], [True, False, False, False]])
    ours = presence_logit(similarity, reference, audible, 3.0)
    for b in range(2):
        for q in range(3):
            ratios = [
                math.exp(3 * similarity[b, q, m]) / (sum(math.exp(3 * r) for r in reference[b, :, m]) / 5)
                for m in range(4)
                if audible[b, m]
            ]
            assert float(ours[b, q]) == pytest.approx(math.log(sum(ratios) / len(ratios)), abs=1e-5)


def test_presence_ignores_what_the_encoder_adds_to_all_texts_of_an_output():
    similarity, reference = _noise(1, 2, 4), _noise(1, 6, 4, seed=1)
    audible, shift = torch.ones(1, 4, dtype=torch.bool), _noise(1, 1, 4, seed=2)
    torch.testing.assert_close(
        presence_logit(similarity + shift, reference + shift, audible, 5.0),
        presence_logit(similarity, reference, audible, 5.0),
    )


def test_silent_mixture_gives_finite_answers():
    net = _net()
    with torch.no_grad():
        out = net.respond(_state(net, torch.zeros(1, SAMPLES)), net.encoder.texts(["band 0"])[None])
    assert torch.isfinite(out.logits).all()
    assert torch.isfinite(out.presence).all()


def test_answer_has_one_mask_on_bins_a_query_even_when_the_spectrum_has_no_phase():
    net, wave = _net(), _noise(1, SAMPLES)
    window = torch.hann_window(1024)
    spec = torch.stft(wave, 1024, 256, window=window, pad_mode="constant", return_complex=True)[..., :64]
    query = net.encoder.texts(["band 0", "band 3"])[None]
    with torch.no_grad():
        whole = net.answer(net.analyse(spec, wave), query)
        bare = net.answer(net.analyse(torch.complex(spec.abs(), 0 * spec.real), wave), query)
    assert whole.mask.shape == (1, 2, 513, 64)
    assert bool(((whole.mask >= 0) & (whole.mask <= 1)).all())
    torch.testing.assert_close(bare.mask, whole.mask, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(bare.presence, whole.presence, rtol=1e-4, atol=1e-4)


def test_encoder_is_no_part_of_the_weights_and_shared_by_copies():
    net = _net()
    assert {name.split(".")[0] for name in net.state_dict()} == {"small", "slots"}
    assert copy.deepcopy(net).encoder is net.encoder
    fresh = BlindSeparator(**TINY)  # opens nothing before the first query
    fresh.load_state_dict(net.state_dict())


def test_what_does_not_fit_is_refused():
    with pytest.raises(UsageError, match="slots is 1"):
        BlindSeparator(**TINY, slots=1)
    net = _net()
    with torch.no_grad(), pytest.raises(UsageError, match="384 numbers"):
        net.respond(_state(net, _noise(1, SAMPLES)), _noise(1, 1, 384))


def test_model_file_with_a_real_encoder_answers_sentences_and_comes_back_the_same(tmp_path):
    torch.manual_seed(1)
    RewardEncoder(dim=16, hidden=8, rank=4).save(tmp_path / "space", {})
    place = str(tmp_path / "space")
    model = SeparatorModel("blind", {**TINY, "encoder": place}, encoder=f"bimodal:{place}").eval()
    assert len(set(REFERENCE_TEXTS)) == len(REFERENCE_TEXTS)
    query = torch.stack([q.vector for q in model.text_queries(["a dog barking", "rain on a roof"])])[None]
    wave = 0.1 * _noise(1, SAMPLES)
    model.save(tmp_path / "model", {}, half=False)
    again = SeparatorModel.load(tmp_path / "model")
    with torch.no_grad():
        sounds, presence = model.separate_wave(wave, query)
        same, likely = again.separate_wave(wave, query)
    assert sounds.shape == (1, 2, SAMPLES)
    assert bool(((presence > 0) & (presence < 1)).all())
    assert torch.equal(same, sounds)
    assert torch.equal(likely, presence)
