"""Mixing rules: powers, ratios, the papers' own rules, silence; numpy and torch agree."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from auralign.audio.mix import (
    SILENCE_DB,
    declip,
    equal_power,
    gain_for_snr,
    mix_at_snr,
    mix_audiosep,
    mix_clipsep,
    mix_dcase_t9,
    mix_sources,
    power_db,
)
from auralign.errors import AudioError


def noise(*shape: int, seed: int = 0, scale: float = 0.1) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def test_power_of_a_sine_is_minus_3_db() -> None:
    x = np.sin(2 * np.pi * 100 * np.arange(8000) / 8000)[None]
    assert power_db(x) == pytest.approx(-3.0103, abs=1e-4)
    assert power_db(torch.from_numpy(x)).item() == pytest.approx(-3.0103, abs=1e-4)
    assert power_db(np.zeros((2, 10))) == SILENCE_DB


def test_active_power_ignores_silence() -> None:
    x = noise(2, 16384)
    padded = np.concatenate([x, np.zeros_like(x)], axis=1)
    assert power_db(padded) == pytest.approx(float(power_db(x)) - 3.01, abs=0.01)
    assert power_db(padded, active=True) == pytest.approx(float(power_db(x)), abs=0.01)
    many = torch.from_numpy(np.stack([padded, padded * 2]))
    got = power_db(many, batch_axes=1, active=True)
    assert got.shape == (2,)
    assert got[1] - got[0] == pytest.approx(6.02, abs=0.01)
    assert power_db(np.zeros((1, 3000)), active=True) == SILENCE_DB


@given(snr_db=st.floats(-40, 40), seed=st.integers(0, 99), channels=st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_the_ratio_in_the_mixture_is_the_one_asked_for(snr_db: float, seed: int, channels: int) -> None:
    target, other = noise(channels, 500, seed=seed), noise(channels, 500, seed=seed + 1, scale=0.003)
    mix = mix_at_snr(target, other, snr_db)
    assert float(power_db(mix.sources[0]) - power_db(mix.sources[1])) == pytest.approx(snr_db, abs=1e-3)
    assert mix.mixture.dtype == np.float32
    assert np.array_equal(mix.mixture, mix.sources[0] + mix.sources[1])
    tensors = mix_at_snr(torch.from_numpy(target), torch.from_numpy(other), snr_db)
    assert np.allclose(tensors.mixture.numpy(), mix.mixture, atol=1e-6)


def test_a_batch_has_its_own_ratio_in_every_row() -> None:
    target, other = torch.from_numpy(noise(3, 2, 800)), torch.from_numpy(noise(3, 2, 800, seed=1, scale=0.5))
    snr = torch.tensor([-10.0, 0.0, 10.0])
    mix = mix_at_snr(target, other, snr, batch_axes=1)
    got = power_db(mix.sources[0], batch_axes=1) - power_db(mix.sources[1], batch_axes=1)
    torch.testing.assert_close(got, snr, atol=1e-3, rtol=0)
    for row in range(3):
        alone = mix_at_snr(target[row], other[row], float(snr[row]))
        torch.testing.assert_close(alone.mixture, mix.mixture[row])


def test_equal_power_brings_all_to_the_first() -> None:
    sources = equal_power([noise(1, 400, scale=s, seed=i) for i, s in enumerate((0.1, 0.9, 0.001))])
    assert [float(power_db(x)) for x in sources] == pytest.approx([float(power_db(sources[0]))] * 3, abs=1e-3)


@pytest.mark.parametrize("snr_db", [-20.0, 0.0, 20.0])
def test_silence_keeps_gains_and_makes_no_nan(snr_db: float) -> None:
    sound, silence = noise(1, 100), np.zeros((1, 100), np.float32)
    for a, b in ((sound, silence), (silence, sound), (silence, silence)):
        for mix in (mix_at_snr(a, b, snr_db), mix_dcase_t9(a, b, snr_db), mix_audiosep(a, [b], [snr_db])):
            assert np.array_equal(mix.mixture, a + b)
    x = torch.zeros(1, 100, requires_grad=True)
    gain_for_snr(torch.ones(1, 100), x, 0.0).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_gains_in_db_are_applied() -> None:
    a, b = noise(2, 50), noise(2, 50, seed=1)
    mix = mix_sources([a, b], [0.0, -6.0])
    assert np.allclose(mix.mixture, a + b * 10 ** (-6 / 20), atol=1e-7)
    assert np.array_equal(mix.mixture, mix.sources[0] + mix.sources[1])


def test_declip_scales_source_and_mixture_alike_only_above_full_scale() -> None:
    source, loud = np.full((1, 4), 0.8, np.float32), np.full((1, 4), 0.8, np.float32)
    mix = mix_dcase_t9(source, loud, 0.0)
    assert np.allclose(mix.mixture, 0.9)
    assert np.allclose(mix.sources[0], 0.45)
    quiet = mix_dcase_t9(source / 4, loud / 4, 0.0)
    assert np.allclose(quiet.sources[0], 0.2)
    both = torch.from_numpy(np.stack([source, source / 4]))
    rows = declip(mix_at_snr(both, both, 0.0, batch_axes=1), batch_axes=1)
    torch.testing.assert_close(rows.sources[0][:, 0, 0], torch.tensor([0.45, 0.2]))


def test_clipsep_divides_by_the_number_of_sources() -> None:
    a, b, c = (noise(1, 50, seed=i) for i in range(3))
    mix = mix_clipsep([a, b, c])
    assert np.allclose(mix.mixture, (a + b + c) / 3, atol=1e-7)


def test_audiosep_places_every_interferer_against_the_target() -> None:
    target, others = noise(1, 900, scale=0.01), [noise(1, 900, seed=i) for i in (1, 2)]
    mix = mix_audiosep(target, others, [5.0, -5.0])
    ratios = [float(power_db(mix.sources[0]) - power_db(x)) for x in mix.sources[1:]]
    assert ratios == pytest.approx([5, -5], abs=1e-3)


def test_wrong_use_is_named() -> None:
    with pytest.raises(AudioError, match="different shapes"):
        mix_at_snr(noise(1, 5), noise(1, 6))
    with pytest.raises(AudioError, match="nothing to mix"):
        mix_sources([], [])
    with pytest.raises(AudioError, match="2 gains"):
        mix_sources([noise(1, 5)], [0.0, 1.0])
    with pytest.raises(AudioError, match="batch_axes"):
        power_db(noise(1, 5), batch_axes=2)
