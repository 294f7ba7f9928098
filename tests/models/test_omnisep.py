from __future__ import annotations

import pytest
import torch

from auralign.models.omnisep import OmniSepNet, SmallSeparator

SMALL = {"widths": (8, 12, 16, 20), "blocks": (1, 1, 1, 1), "fine": 4, "hidden": 8, "query_dim": 6}


def _noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _spec(batch: int = 2, frames: int = 20, seed: int = 0) -> torch.Tensor:
    return torch.complex(_noise(batch, 513, frames, seed=seed), _noise(batch, 513, frames, seed=seed + 1))


@pytest.fixture
def net() -> OmniSepNet:
    torch.manual_seed(0)
    tiny = OmniSepNet(query_dim=6, levels=3, width=4, latents=5)
    for parameter in tiny.parameters():  # the published start is all but zero; move away from it
        torch.nn.init.normal_(parameter, 0.1, 0.3)
    return tiny.eval()


@pytest.mark.parametrize(("query_dim", "count"), [(1024, 30_307_043), (512, 30_290_659)])
def test_published_net_has_exactly_the_published_number_of_parameters(query_dim, count):
    net = OmniSepNet(query_dim=query_dim)
    assert sum(p.numel() for p in net.separation_parameters()) == count
    assert sum(p.numel() for p in net.parameters()) == count + 5, (
        "our presence read-out: four weights and a bias"
    )


def test_published_start_of_gate_scale_and_bias():
    torch.manual_seed(0)
    net = OmniSepNet(query_dim=512, levels=2, width=2)
    assert torch.equal(net.scale, torch.ones(32))
    assert torch.equal(net.bias, torch.zeros(1))
    assert not net.frame_net.bias.any()
    assert abs(float(net.frame_net.weight.detach().std()) / 1e-4 - 1) < 0.05


def test_mask_logit_is_the_gated_scaled_sum_of_latent_masks(net):
    latents, query = _noise(2, 5, 8, 4), _noise(2, 3, 6, seed=3)
    expected = torch.zeros(2, 3, 8, 4)
    for b in range(2):
        for q in range(3):
            gate = torch.sigmoid(net.frame_net(query[b, q]))
            for j in range(5):
                expected[b, q] += net.scale[j] * gate[j] * latents[b, j]
    torch.testing.assert_close(net.logits(latents, query), expected + net.bias, atol=1e-5, rtol=1e-5)


def test_one_unet_pass_for_many_queries_equals_one_pass_per_query(net):
    spec, query = _spec(), _noise(2, 3, 6, seed=5)
    passes = []
    net.sound_net.register_forward_hook(lambda *_: passes.append(1))
    state = net.analyse(spec, torch.zeros(2, 1))
    together = net.answer(state, query)
    assert len(passes) == 1
    for k in range(3):
        own = net.analyse(spec, torch.zeros(2, 1))
        assert torch.equal(own["latents"], state["latents"])
        alone = net.answer(own, query[:, k : k + 1])
        torch.testing.assert_close(together.mask[:, k : k + 1], alone.mask, atol=1e-6, rtol=0)
        torch.testing.assert_close(together.presence[:, k : k + 1], alone.presence, atol=1e-6, rtol=0)


def test_the_unet_reads_the_log_of_the_warped_magnitude_plus_1e_10(net):
    seen = []
    net.sound_net.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    magnitude = _spec(1, 16).abs()
    magnitude[:, 100:, 3] = 0
    warped, _ = net.latent_masks(magnitude)
    torch.testing.assert_close(warped, net.warp((magnitude + 1e-10)[:, None])[:, 0])
    torch.testing.assert_close(seen[0][:, 0], warped.clamp_min(1e-10).log())
    assert seen[0].min() >= -23.1


@pytest.mark.parametrize("frames", [1, 7, 8, 13])
def test_any_number_of_frames_is_padded_and_cut_back(net, frames):
    seen = []
    net.sound_net.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[-1]))
    answer = net.answer(net.analyse(_spec(1, frames), torch.zeros(1, 1)), _noise(1, 2, 6))
    assert answer.mask.shape == (1, 2, 513, frames)
    assert seen == [-(-frames // 8) * 8]


def test_gradient_reaches_every_parameter(net):
    torch.manual_seed(1)
    net.train().double()
    warped, latents = net.latent_masks(_spec(2, 16).abs().double())
    logits = net.logits(latents, _noise(2, 2, 6).double()).double()
    (logits.square().mean() + net.presence_logits(warped, logits).square().mean()).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("level", [0.0, 1e-8, 1.0, 1e4])
def test_masks_and_presence_are_finite_probabilities_at_any_level(net, level):
    answer = net.answer(net.analyse(_spec() * level, torch.zeros(2, 1)), _noise(2, 2, 6))
    for value in (answer.mask, answer.presence):
        assert value.isfinite().all()
        assert value.min() >= 0
        assert value.max() <= 1


def test_presence_statistics_of_a_constant_mask_are_that_constant_and_no_spread(net):
    seen = []
    net.presence_head.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    net.presence_logits(_noise(1, 8, 4).abs(), torch.zeros(1, 1, 8, 4))
    assert seen[0].flatten().tolist() == pytest.approx([0.5, 0.5, 0.5, 0.0], abs=1e-4)


def test_rows_that_the_levels_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="n_rows is 100"):
        OmniSepNet(levels=3, n_rows=100)


@pytest.fixture(scope="module")
def small() -> SmallSeparator:
    torch.manual_seed(0)
    return SmallSeparator(n_bands=32, **SMALL).eval()


def _wave(samples: int = 8192, seed: int = 0) -> torch.Tensor:
    return 0.1 * _noise(2, samples, seed=seed)


def _stft(wave: torch.Tensor) -> torch.Tensor:
    window = torch.hann_window(1024)
    return torch.stft(wave, 1024, 256, window=window, center=True, pad_mode="constant", return_complex=True)


def _ask(net: SmallSeparator, wave: torch.Tensor):
    with torch.no_grad():
        return net.answer(net.analyse(_stft(wave), wave), _noise(2, 3, 6, seed=7))


@pytest.mark.parametrize("level", [1e-3, 0.1, 10.0])
def test_small_network_does_not_hear_the_recording_level(small, level):
    reference, scaled = _ask(small, _wave()), _ask(small, _wave() * level)
    assert reference.mask.std() > 1e-3, "a constant mask would prove nothing"
    assert (scaled.mask - reference.mask).abs().max() < 1e-4
    assert (scaled.presence - reference.presence).abs().max() < 1e-4


def test_small_network_answers_silence_with_finite_masks(small):
    answer = _ask(small, torch.zeros(2, 8192))
    assert answer.mask.isfinite().all()
    assert answer.presence.isfinite().all()


@pytest.mark.parametrize("samples", [1, 255, 5000])
def test_small_network_takes_any_length(small, samples):
    answer = _ask(small, _wave(samples))
    assert answer.mask.shape == (2, 3, 513, samples // 256 + 1)
    assert answer.mask.isfinite().all()
    assert ((answer.presence >= 0) & (answer.presence <= 1)).all()


def test_small_network_shares_one_pass_between_queries(small):
    wave, query = _wave(), _noise(2, 3, 6, seed=7)
    with torch.no_grad():
        state = small.analyse(_stft(wave), wave)
        together = small.answer(state, query).mask
        for k in range(3):
            alone = small.answer(state, query[:, k : k + 1]).mask
            torch.testing.assert_close(together[:, k : k + 1], alone, atol=1e-6, rtol=1e-5)


def test_log_energy_is_relative_to_the_windows_mean_and_floored_at_minus_60_db(small):
    energy = torch.ones(1, 2, 2)
    assert small.log_energy(energy).abs().max() < 1e-5
    energy[0, 0, 0] = 0
    floor = float(small.log_energy(energy).min())
    assert floor == pytest.approx(-13.8155, abs=1e-3)  # ln(1e-6)


def test_frozen_yamnet_is_no_part_of_the_state(small):
    assert not any("yamnet" in name or "backbone" in name for name in small.state_dict())
    wave = _wave()
    assert not any(tap.requires_grad for tap in small.taps(wave))
