from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.integrate
import scipy.special
import torch
from hypothesis import given
from hypothesis import strategies as st

from auralign.audio.io import read
from auralign.errors import UsageError
from auralign.metrics.intelligibility import pesq_wb
from auralign.metrics.sdr import si_sdr
from auralign.models.enhancer import Enhancer
from auralign.models.log_mmse import LogMmse, exponential_integral, gains, log_mmse_gain, noise_power

SPEECH = Path(__file__).parents[1] / "fixtures" / "sounds" / "speech.flac"


@pytest.fixture(scope="module")
def speech() -> torch.Tensor:
    return torch.from_numpy(read(SPEECH, rate_hz=16000).samples)


def noisy(speech: torch.Tensor, snr_db: float) -> torch.Tensor:
    noise = torch.randn(speech.shape, generator=torch.Generator().manual_seed(1))
    return speech + noise * speech.square().mean().sqrt() * 10 ** (-snr_db / 20)


def test_the_exponential_integral_is_scipys():
    x = np.logspace(-10, 2.8, 2000)
    np.testing.assert_allclose(exponential_integral(x), scipy.special.exp1(x), rtol=3e-7)


@pytest.mark.parametrize("xi_db", [-25, -10, 0, 15, 30])
@pytest.mark.parametrize("gamma_db", [-20, 0, 10, 25])
def test_the_gain_is_the_formulas_integrated_numerically(xi_db, gamma_db):
    xi, gamma = 10 ** (xi_db / 10), 10 ** (gamma_db / 10)
    v = xi / (1 + xi) * gamma
    near, _ = scipy.integrate.quad(lambda t: np.exp(-t) / t, v, v + 1, epsabs=0, epsrel=1e-10)
    far, _ = scipy.integrate.quad(lambda t: np.exp(-t) / t, v + 1, np.inf, epsabs=1e-300, epsrel=1e-10)
    expected = xi / (1 + xi) * np.exp(0.5 * (near + far))
    assert log_mmse_gain(np.array([xi]), np.array([gamma]))[0] == pytest.approx(expected, rel=1e-6)


@given(xi=st.floats(1e-3, 1e4), gamma=st.floats(1e-4, 1e4))
def test_the_gain_exceeds_wieners_and_grows_with_the_a_priori_snr(xi, gamma):
    gain = log_mmse_gain(np.array([xi, 1.01 * xi]), np.array([gamma, gamma]))
    assert gain[0] >= xi / (1 + xi) * (1 - 1e-9)
    assert gain[1] >= gain[0] * (1 - 1e-6)


def test_the_power_of_white_noise_is_found():
    rng = np.random.default_rng(0)
    power = rng.exponential(3.0, (700, 1, 257))
    found_db = 10 * np.log10(noise_power(power)[250:].mean(axis=0) / 3.0)
    assert abs(found_db.mean()) < 0.5
    assert np.abs(found_db).max() < 2.0


def test_a_rise_of_the_noise_is_followed_within_two_searches():
    rng = np.random.default_rng(0)
    power = rng.exponential(1.0, (900, 1, 257))
    power[400:] *= 100
    found = noise_power(power).mean(axis=(1, 2))
    assert found[395] < 2
    assert found[400 + 2 * 125 + 60 :].mean() > 60


def test_a_word_at_the_very_beginning_is_no_noise():
    rng = np.random.default_rng(0)
    power = rng.exponential(1.0, (400, 1, 257))
    power[:60] *= 1000
    assert noise_power(power)[:60].mean() < 50  # of 1000: each onset leaks in a little


def test_steady_noise_is_taken_down_and_bursts_pass():
    rng = np.random.default_rng(0)
    power = rng.exponential(1.0, (500, 1, 257))
    power[300:330] *= 1e4
    gain = gains(power)
    assert gain.max() <= 1.0
    assert 20 * np.log10(gain[200:290].mean()) < -15
    assert gain[302:330].mean() > 0.95


@pytest.mark.parametrize("snr_db", [0, 5, 15])
def test_speech_in_steady_noise_becomes_clearer(speech, snr_db):
    before = noisy(speech, snr_db)
    after = LogMmse().enhance_wave(before)
    assert after.shape == before.shape
    assert float(si_sdr(est=after, ref=speech)) > float(si_sdr(est=before, ref=speech)) + 2
    scores = [pesq_wb(est=one[0], ref=speech[0], rate_hz=16000).value for one in (before, after)]
    assert scores[1] > scores[0] + 0.05


def test_clean_speech_is_left_nearly_alone(speech):
    after = LogMmse().enhance_wave(speech)
    assert float(si_sdr(est=after, ref=speech)) > 15


@pytest.mark.parametrize("level", [1e-30, 1e-6, 1e20])
def test_the_level_changes_nothing(speech, level):
    before = noisy(speech, 5)[:, :20_000]
    plain, scaled = LogMmse().enhance_wave(before), LogMmse().enhance_wave(before * level)
    torch.testing.assert_close(scaled / level, plain, atol=1e-5, rtol=1e-4)


def test_items_of_a_batch_do_not_meet(speech):
    both = torch.cat([speech, noisy(speech, 0)])[:, :16_000]
    together = LogMmse().enhance_wave(both)
    torch.testing.assert_close(together[1:], LogMmse().enhance_wave(both[1:]), atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("length", [0, 1, 2, 127, 128, 513])
def test_any_length_is_kept(length):
    assert LogMmse().enhance_wave(torch.full((2, length), 0.5)).shape == (2, length)


def test_silence_stays_silence():
    assert not LogMmse().enhance_wave(torch.zeros(1, 5000)).any()


def test_silence_before_a_sound_is_no_trouble(speech):
    wave = torch.cat([torch.zeros(1, 16_000), noisy(speech, 10)[:, :16_000], torch.zeros(1, 8_000)], dim=-1)
    after = LogMmse().enhance_wave(wave)
    assert after.isfinite().all()
    assert not after[:, :15_000].any()


def test_samples_that_are_not_finite_are_refused():
    wave = torch.zeros(1, 100)
    wave[0, 7] = torch.nan
    with pytest.raises(UsageError, match="not finite"):
        LogMmse().enhance_wave(wave)


def test_it_is_an_enhancer():
    assert isinstance(LogMmse(), Enhancer)
