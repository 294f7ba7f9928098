"""The enhancer: spectra that come back, levels, seeds, grids, files; and the small network's shapes and privacy."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from auralign.errors import ModelUnavailableError, UsageError
from auralign.flow.ode import solve
from auralign.flow.path import noisy_mean
from auralign.models.band_unet import BandUnet
from auralign.models.compressed_spectrum import CompressedSpectrum
from auralign.models.enhancer import Enhancer, EnhancerModel
from auralign.models.flow_nets import make_network

NET = {"widths": [8, 8, 16, 16], "blocks": [1, 1, 1, 1]}


@pytest.fixture(scope="module")
def model() -> EnhancerModel:
    """Random weights everywhere, so that nothing is the identity by its start."""
    torch.manual_seed(0)
    made = EnhancerModel(options=NET).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return made


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- compressed spectra


def test_compression_against_numbers_written_out():
    front = CompressedSpectrum()
    z = torch.tensor([3 + 4j, 0j, -16 + 0j], dtype=torch.complex64)
    expected = np.array([0.15 * 5**0.5 * (3 + 4j) / 5, 0, -0.15 * 4])
    np.testing.assert_allclose(front.compress(z).numpy(), expected, atol=1e-6)
    torch.testing.assert_close(front.expand(front.compress(z)), z, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("length", [1, 100, 128, 511, 5000])
def test_waveforms_come_back_at_any_length(length):
    front = CompressedSpectrum()
    wave = noise(2, length)
    spec = front.spectrum(wave)
    assert spec.shape[-2] == front.bins == 256
    torch.testing.assert_close(front.waveform(spec, length), wave, atol=2e-5, rtol=1e-3)


def test_silence_stays_silent_and_finite():
    front = CompressedSpectrum()
    spec = front.spectrum(torch.zeros(1, 1000))
    assert not bool(spec.abs().any())
    assert not bool(front.waveform(spec, 1000).any())


def test_what_is_no_compression_is_refused():
    with pytest.raises(UsageError, match="no compression"):
        CompressedSpectrum(exponent=0.0)


# --- the network


@pytest.mark.parametrize("frames", [1, 7, 8, 33])
def test_the_small_network_answers_in_every_bin_and_frame(frames):
    net = BandUnet(**NET)
    x = torch.randn(2, 256, frames, dtype=torch.complex64)
    out = net.eval()(x, x, torch.rand(2))
    assert out.shape == x.shape
    assert out.is_complex()


def test_before_training_the_small_network_answers_the_mean_of_its_inputs():
    net = BandUnet(**NET).eval()
    x, y = (torch.randn(1, 256, 9, dtype=torch.complex64) for _ in range(2))
    torch.testing.assert_close(net(x, y, torch.tensor([0.3])), (x + y) / 2)


def test_each_patch_of_the_answer_belongs_to_its_place():
    net = BandUnet(**NET).eval()
    with torch.no_grad():  # the residual of bin 3, frame 1 of a patch, and nothing else
        net.head.bias.zero_()
        net.head.bias.view(4, 2, 6)[3, 1, 4] = 1.0
    out = net(*[torch.zeros(1, 256, 16, dtype=torch.complex64)] * 2, torch.ones(1))
    rows, frames = out[0].real.nonzero(as_tuple=True)
    assert set((rows % 4).tolist()) == {3}
    assert set((frames % 2).tolist()) == {1}
    assert len(rows) == 64 * 8


def test_the_time_changes_the_answer(model):
    x = torch.randn(1, 256, 8, dtype=torch.complex64)
    assert not torch.allclose(model.net(x, x, torch.tensor([0.2])), model.net(x, x, torch.tensor([0.9])))


def test_impossible_networks_are_refused_with_a_reason():
    with pytest.raises(UsageError, match="options do not fit"):
        make_network("band_unet", {"widths": [1, 2]})
    with pytest.raises(UsageError, match="no flow network 'unet'"):
        make_network("unet", {})


# --- the enhancer


def test_it_is_an_enhancer(model):
    assert isinstance(model, Enhancer)


def test_enhancement_is_the_flow_of_its_field(model):
    wave = noise(1, 3000)
    gain = model.gain(wave)
    noisy = model.spectrogram(wave * gain)
    # Euler by hand: three evaluations at 1, 2/3 and 1/3, x + v dt, v = (x - data) / t
    from auralign.models.enhancer import _noise_of_each

    x = noisy + model.scale * _noise_of_each(noisy, 5)
    with torch.no_grad():
        for t in (1.0, 2 / 3, 1 / 3):
            data = model.net(x, noisy, torch.tensor([t]))
            x = x - (x - data) / t / 3
    by_hand = model.waveform(x, 3000) / gain
    torch.testing.assert_close(model.enhance_wave(wave, steps=3, seed=5), by_hand, atol=1e-4, rtol=1e-3)


def test_one_evaluation_is_what_the_network_predicts_at_the_prior(model):
    wave = noise(1, 2000)
    gain = model.gain(wave)
    noisy = model.spectrogram(wave * gain)
    path = noisy_mean(noisy, scale=model.scale)
    from auralign.models.enhancer import _noise_of_each

    with torch.no_grad():
        data = model.data(path.restore(_noise_of_each(noisy, 0)), noisy, torch.ones(1))
    torch.testing.assert_close(model.enhance_wave(wave, steps=1), model.waveform(data, 2000) / gain)


def test_louder_in_is_louder_out(model):
    wave = noise(1, 4000)
    soft = model.enhance_wave(wave, seed=1)
    torch.testing.assert_close(model.enhance_wave(64 * wave, seed=1), 64 * soft, rtol=1e-3, atol=1e-4)


def test_seeds_decide_and_items_do_not_meddle(model):
    wave = noise(3, 2500)
    whole = model.enhance_wave(wave, seed=3)
    assert torch.equal(whole, model.enhance_wave(wave, seed=3))
    assert not torch.equal(whole, model.enhance_wave(wave, seed=4))
    torch.testing.assert_close(model.enhance_wave(wave[:2], seed=3), whole[:2], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("length", [0, 1, 2, 129])
def test_any_length_keeps_its_length(model, length):
    assert model.enhance_wave(noise(1, length)).shape == (1, length)


def test_silence_comes_back_finite_and_faint(model):
    out = model.enhance_wave(torch.zeros(1, 2000))
    assert bool(out.isfinite().all())
    assert float(out.abs().max()) < 1e-3


def test_samples_that_are_not_finite_are_refused(model):
    with pytest.raises(UsageError, match="not finite"):
        model.enhance_wave(torch.tensor([[0.0, torch.nan]]))
    with pytest.raises(UsageError, match="0 steps"):
        model.enhance_wave(noise(1, 100), steps=0)


def test_a_stopped_grid_asks_last_at_its_least_time():
    model = EnhancerModel(options=NET, grid="stopped", t_eps=0.03)
    assert model.times(5).tolist() == pytest.approx([1, 0.7575, 0.515, 0.2725, 0.03, 0])
    assert model.times(1).tolist() == [1, 0]


def test_a_field_that_predicts_velocity_is_used_as_it_is(monkeypatch):
    model = EnhancerModel(options=NET)
    monkeypatch.setattr(model, "answer", "velocity")
    x = torch.randn(1, 256, 8, dtype=torch.complex64)
    t = torch.tensor([0.5])
    said = model.eval().net(x, x, t)
    torch.testing.assert_close(model.velocity(x)(x, t), said)
    torch.testing.assert_close(model.data(x, x, t), x - 0.5 * said)
    torch.testing.assert_close(solve(model.velocity(x), x, model.times(1)).shape, x.shape)


def test_a_saved_model_comes_back(model, tmp_path):
    model.save(tmp_path, {"name": "tiny"}, half=False)
    back = EnhancerModel.load(tmp_path)
    assert back.name == "tiny"
    assert back.settings == model.settings
    wave = noise(1, 1000)
    assert torch.equal(back.enhance_wave(wave), model.enhance_wave(wave))


def test_damaged_files_are_named(model, tmp_path):
    model.save(tmp_path, {"name": "tiny"})
    card = json.loads((tmp_path / "card.json").read_text())
    data = bytearray((tmp_path / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(bytes(data))
    with pytest.raises(ModelUnavailableError, match="damaged"):
        EnhancerModel.load(tmp_path)
    assert card["format"] == "auralign-enhancer-1"
    with pytest.raises(ModelUnavailableError, match="cannot be read"):
        EnhancerModel.load(tmp_path / "nowhere")
