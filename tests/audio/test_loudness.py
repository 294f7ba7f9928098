"""Loudness against the numbers of BS.1770 and EBU Tech 3341, and a direct recursion of the two filters."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.signal import lfilter

from auralign.audio.loudness import LoudnessMeter, integrated_loudness, k_weighting
from auralign.errors import AudioError


def sine(dbfs: float, seconds: float, rate_hz: int, channels: int = 2, hz: float = 997.0) -> np.ndarray:
    time = np.arange(round(seconds * rate_hz)) / rate_hz
    wave = 10 ** (dbfs / 20) * np.sin(2 * np.pi * hz * time)
    return np.repeat(wave[None], channels, axis=0).astype(np.float32)


def test_coefficients_at_48_khz_are_those_of_the_recommendation() -> None:
    shelf_b, shelf_a, high_b, high_a = k_weighting(48000)
    assert shelf_b == pytest.approx((1.53512485958697, -2.69169618940638, 1.19839281085285), abs=1e-9)
    assert shelf_a == pytest.approx((1.0, -1.69065929318241, 0.73248077421585), abs=1e-9)
    assert high_b == (1.0, -2.0, 1.0)
    assert high_a == pytest.approx((1.0, -1.99004745483398, 0.99007225036621), abs=1e-9)


@pytest.mark.parametrize("rate_hz", [8000, 16000, 44100, 48000, 96000, 192000])
def test_ebu_3341_case_1_a_sine_at_minus_23_dbfs_reads_minus_23_lufs(rate_hz: int) -> None:
    assert integrated_loudness(sine(-23, 5, rate_hz), rate_hz) == pytest.approx(-23, abs=0.1)


def test_one_channel_reads_3_lu_less() -> None:
    stereo = integrated_loudness(sine(-20, 3, 48000), 48000)
    assert integrated_loudness(sine(-20, 3, 48000, channels=1), 48000) == pytest.approx(
        stereo - 3.01, abs=0.01
    )


@pytest.mark.parametrize(
    "levels",  # EBU Tech 3341, table 1, cases 3, 4 and 5: all read -23.0 ± 0.1
    [
        [(-36, 10), (-23, 60), (-36, 10)],
        [(-72, 10), (-36, 10), (-23, 60), (-36, 10), (-72, 10)],
        [(-26, 20), (-20, 20.1), (-26, 20)],
    ],
)
def test_ebu_3341_gating(levels: list[tuple[float, float]]) -> None:
    wave = np.concatenate([sine(db, seconds, 8000, hz=1000.0) for db, seconds in levels], axis=1)
    assert integrated_loudness(wave, 8000) == pytest.approx(-23, abs=0.1)


def test_the_fourth_of_five_channels_is_a_surround_one() -> None:
    x = np.zeros((5, 48000), np.float32)
    x[3] = sine(-20, 1, 48000)[0]
    front = integrated_loudness(x[[3, 0]], 48000)
    assert integrated_loudness(x, 48000) - front == pytest.approx(10 * math.log10(1.41), abs=0.01)


def test_surround_channels_weigh_more_and_lfe_nothing() -> None:
    silent = np.zeros((6, 48000), np.float32)
    tone = sine(-20, 1, 48000, channels=1)[0]
    values = []
    for channel in (0, 3, 4):
        x = silent.copy()
        x[channel] = tone
        values.append(integrated_loudness(x, 48000))
    assert values[1] == -math.inf
    assert values[2] - values[0] == pytest.approx(10 * math.log10(1.41), abs=0.01)


@pytest.mark.parametrize("rate_hz", [11025, 44100])
def test_the_fft_filter_is_the_recursion(rate_hz: int) -> None:
    x = np.random.default_rng(0).standard_normal((2, rate_hz * 2)) * 0.1
    shelf_b, shelf_a, high_b, high_a = k_weighting(rate_hz)
    weighted = lfilter(high_b, high_a, lfilter(shelf_b, shelf_a, x))
    edges = [round(i * 0.1 * rate_hz) for i in range(21)]
    steps = [float((weighted[:, a:b] ** 2).sum()) for a, b in itertools.pairwise(edges)]
    power = np.convolve(steps, np.ones(4), "valid") / (0.4 * rate_hz)
    want = -0.691 + 10 * math.log10(power.mean())
    assert integrated_loudness(x, rate_hz) == pytest.approx(want, abs=1e-4)


def test_blocks_of_any_size_read_the_same() -> None:
    x = (np.random.default_rng(1).standard_normal((2, 100_000)) * 0.1).astype(np.float32)
    whole = integrated_loudness(x, 22050)
    for block in (1013, 40_000):
        meter = LoudnessMeter(22050, 2)
        for start in range(0, 100_000, block):
            meter.process(x[:, start : start + block])
        assert meter.integrated() == pytest.approx(whole, abs=1e-9)


def test_silence_short_sounds_and_low_rates_are_defined() -> None:
    assert integrated_loudness(np.zeros((2, 48000)), 48000) == -math.inf
    assert integrated_loudness(sine(-75, 1, 48000), 48000) == -math.inf  # below the absolute gate
    assert math.isnan(integrated_loudness(np.ones((1, 100)), 48000))
    with pytest.raises(AudioError, match="1000 Hz"):
        LoudnessMeter(1000, 1)
