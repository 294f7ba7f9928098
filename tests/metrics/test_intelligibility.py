"""STOI and ESTOI against pystoi, PESQ against its package, and what has no score."""

from __future__ import annotations

import math
import re
import sys

import numpy as np
import pesq
import pystoi
import pytest
import torch
from scipy.signal import resample_poly

from auralign.errors import UsageError
from auralign.metrics import intelligibility
from auralign.metrics.intelligibility import estoi, pesq_nb, pesq_wb, stoi, third_octaves, to_10_khz

METRICS = {"stoi": stoi, "estoi": estoi, "pesq": pesq_wb}


@pytest.fixture(scope="module")
def pair(voice):
    clean = voice(2.5, 130.0, 0)
    clean[16000:24000] = 0.0  # a pause, left out of STOI
    noise = np.random.default_rng(1).standard_normal(len(clean)).astype(np.float32)
    return torch.from_numpy(clean), torch.from_numpy(clean + 0.05 * noise)


@pytest.mark.parametrize("rate_hz", [8000, 10000, 16000, 44100])
@pytest.mark.parametrize(("ours", "extended"), [(stoi, False), (estoi, True)])
def test_equals_pystoi(pair, ours, extended, rate_hz):
    clean, noisy = pair
    theirs = pystoi.stoi(clean.numpy().astype(float), noisy.numpy().astype(float), rate_hz, extended)
    assert ours(est=noisy, ref=clean, rate_hz=rate_hz).value == pytest.approx(theirs, abs=1e-7)


@pytest.mark.parametrize("rate_hz", [8000, 16000, 44100, 48000])
@pytest.mark.parametrize("samples", [1, 7, 1000, 1001])
def test_resampling_equals_scipy_with_octaves_filter(rate_hz, samples):
    up, down = 10000 // math.gcd(10000, rate_hz), rate_hz // math.gcd(10000, rate_hz)
    x = np.random.default_rng(samples).standard_normal((2, samples))
    half = math.ceil(52 / (28.714 / (20 * max(up, down))))
    h = np.kaiser(2 * half + 1, 0.1102 * 51.3) * np.sinc(np.arange(-half, half + 1) / max(up, down))
    theirs = resample_poly(x, up, down, axis=1, window=h / h.sum())
    np.testing.assert_allclose(to_10_khz(torch.from_numpy(x), rate_hz).numpy(), theirs, atol=1e-12)


def test_the_bands_are_the_published_ones():
    low, high = (
        [150 * 2 ** ((2 * k - 1) / 6) for k in (0, 14)],
        [150 * 2 ** ((2 * k + 1) / 6) for k in (0, 14)],
    )
    for band, a, b in zip((0, 14), low, high, strict=True):
        bins = third_octaves()[:, band].nonzero().flatten() * (10000 / 512)
        assert abs(float(bins[0]) - a) <= 10000 / 1024
        assert abs(float(bins[-1]) + 10000 / 512 - b) <= 10000 / 1024


def test_the_reference_itself_is_understood_fully(pair):
    clean, _ = pair
    assert stoi(est=clean, ref=clean, rate_hz=16000).value == pytest.approx(1.0, abs=1e-9)
    assert estoi(est=clean, ref=clean, rate_hz=16000).value == pytest.approx(1.0, abs=1e-9)
    assert pesq_wb(est=clean, ref=clean, rate_hz=16000).value == pytest.approx(4.644, abs=1e-3)
    assert pesq_nb(est=clean, ref=clean, rate_hz=16000).value == pytest.approx(4.549, abs=1e-3)


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_more_noise_scores_lower_and_gain_does_not_matter(pair, metric):
    clean, noisy = pair
    worse = clean + 4 * (noisy - clean)
    scores = [metric(est=one, ref=clean, rate_hz=16000).value for one in (clean, noisy, worse, 0.25 * noisy)]
    assert scores[0] > scores[1] > scores[2]
    assert scores[3] == pytest.approx(scores[1], rel=1e-2)  # PESQ aligns levels in float32


def test_pesq_equals_its_package(pair):
    clean, noisy = pair
    theirs = pesq.pesq(16000, clean.numpy(), noisy.numpy(), "wb")
    assert pesq_wb(est=noisy, ref=clean, rate_hz=16000).value == pytest.approx(theirs)


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda e, r: (0 * e, r), "silent estimate"),
        (lambda e, r: (e, 0 * r), "silent reference"),
        (lambda e, r: (e * torch.nan, r), "estimate has NaN"),
        (lambda e, r: (e[:1], r[:1]), "fewer than two samples"),
        (lambda e, r: (e[:200], r[:200]), "fewer than 30 frames|shorter than 0.25 s"),
        (lambda e, r: (e[:4100], r[:4100]), "fewer than 30 frames|"),
    ],
)
def test_what_cannot_be_scored_is_nan_with_a_reason(pair, metric, change, reason):
    est, ref = change(pair[1], pair[0])
    result = metric(est=est, ref=ref, rate_hz=16000)
    assert math.isnan(result.value) == bool(result.reason)
    assert re.search(reason, result.reason)


def test_pesq_gives_reasons_of_its_own(pair, monkeypatch):
    clean, noisy = pair
    long = clean.repeat(13)
    assert pesq_wb(est=long, ref=long, rate_hz=16000).reason == intelligibility.PESQ_TOO_LONG

    def silent_to_pesq(*_):
        raise pesq.NoUtterancesError

    with monkeypatch.context() as patched:
        patched.setattr(pesq, "pesq", silent_to_pesq)
        assert pesq_wb(est=noisy, ref=clean, rate_hz=16000).reason == intelligibility.PESQ_NO_SPEECH
    with pytest.raises(UsageError, match="44100"):
        pesq_wb(est=noisy, ref=clean, rate_hz=44100)
    monkeypatch.setitem(sys.modules, "pesq", None)
    assert pesq_wb(est=noisy, ref=clean, rate_hz=16000).reason == intelligibility.PESQ_MISSING
