"""DNSMOS against the published procedure, one window at a time, and what has no score."""

from __future__ import annotations

import math
import sys

import numpy as np
import onnxruntime
import pytest
import torch

from auralign.errors import ModelUnavailableError, UsageError
from auralign.metrics import dnsmos
from auralign.metrics.dnsmos import NAMES, WINDOW, DnsMos, calibrate, p808_features, window_starts
from auralign.runtime import weights

P808_ROW = (-1.0, 0.10444049537181854, -0.2934710383415222)
P808_SUM = 9391.206320238976
SPEECHMOS = {
    "dnsmos_ovrl": 1.4926672529154752,
    "dnsmos_sig": 1.7876144680589063,
    "dnsmos_bak": 2.1459944057866296,
    "dnsmos_p808": 2.6210782527923584,
}


@pytest.fixture(scope="module")
def scorer():
    return DnsMos(threads=1)


def published_windows(audio: np.ndarray) -> list[np.ndarray]:
    """The windows of the published script, in its own arithmetic."""
    while len(audio) < int(9.01 * 16000):
        audio = np.append(audio, audio)
    windows = []
    for index in range(int(np.floor(len(audio) / 16000) - 9.01) + 1):
        part = audio[int(index * 16000) : int((index + 9.01) * 16000)]
        if len(part) >= int(9.01 * 16000):
            windows.append(part)
    return windows


def published_scores(audio: np.ndarray) -> np.ndarray:
    """SIG, BAK, OVRL: each window alone through the network, polynomial, mean."""
    session = onnxruntime.InferenceSession(weights.path("dnsmos") / "p835.onnx")
    polynomials = [
        np.poly1d([-0.08397278, 1.22083953, 0.0052439]),
        np.poly1d([-0.13166888, 1.60915514, -0.39604546]),
        np.poly1d([-0.06766283, 1.11546468, 0.04602535]),
    ]
    rows = []
    for window in published_windows(audio):
        raw = session.run(None, {"input_1": window[None].astype(np.float32)})[0][0]
        rows.append([p(x) for p, x in zip(polynomials, raw, strict=True)])
    return np.mean(rows, axis=0)


@pytest.mark.parametrize(
    "samples", [1, 16000, 64000, 65536, 144159, 144160, 160000, 170000, 16000 * 17, 16000 * 35]
)
def test_windows_are_the_published_ones(samples):
    ramp = np.arange(samples)
    length, starts = window_starts(samples)
    doubled = np.tile(ramp, length // samples)
    ours = [doubled[start : start + WINDOW] for start in starts]
    theirs = published_windows(ramp)
    assert len(ours) == len(theirs)
    assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_all_windows_of_all_clips_at_once_equal_the_published_loop(scorer, voice):
    clips = [voice(5.2, 120.0, 0), voice(11.1, 220.0, 1)]  # one window of a doubled clip, two of a long one
    results = scorer([torch.from_numpy(clip) for clip in clips], 16000)
    for clip, result in zip(clips, results, strict=True):
        ours = [result[name].value for name in NAMES[:3]]
        np.testing.assert_allclose(ours, published_scores(clip), atol=1e-5)
        assert all(1 <= one.value <= 5 for one in result.values())


def test_clips_do_not_hear_each_other_and_have_their_reasons(scorer, voice, monkeypatch):
    """The network is replaced by one that tells the windows apart, which a score hardly does."""

    def loudness(session, batch):
        del session
        return batch.abs().amax(dim=1, keepdim=True).expand(-1, 3).numpy()

    monkeypatch.setattr(dnsmos, "_raw_p835", loudness)
    short = DnsMos(p808=False, at_once=2)
    clip = torch.from_numpy(voice(3.0, 120.0, 0))
    bad = clip.clone()
    bad[5] = torch.nan
    clips = [clip, 0 * clip, clip / 2, bad, 4 * clip, clip[:0], clip / 4]
    results = short(clips, 16000)
    assert [one["dnsmos_sig"].reason for one in results] == [
        "",
        "silent estimate",
        "",
        "estimate has NaN or infinite samples",
        "estimate has samples beyond ±1",
        "estimate has no samples",
        "",
    ]
    for place, gain in ((0, 1.0), (2, 0.5), (6, 0.25)):
        expected = calibrate(np.full((1, 3), 0.3 * gain))[0, 0]
        assert results[place]["dnsmos_sig"].value == pytest.approx(expected, abs=1e-6)
    assert all(math.isnan(results[i]["dnsmos_ovrl"].value) for i in (1, 3, 4, 5))
    assert short([], 16000) == []


def test_equal_windows_run_once_and_count_as_often_as_they_occur(monkeypatch):
    ran = []

    def first_sample(session, batch):
        del session
        ran.append(len(batch))
        return batch[:, :1].expand(-1, 3).numpy()

    monkeypatch.setattr(dnsmos, "_raw_p835", first_sample)
    clip = torch.rand(4 * 16000, generator=torch.Generator().manual_seed(0))
    ours = DnsMos(p808=False)([clip], 16000)[0]["dnsmos_sig"].value
    windows = published_windows(clip.numpy())
    each = calibrate(np.asarray([[w[0]] * 3 for w in windows]))[:, 0]
    assert ours == pytest.approx(each.mean(), abs=1e-6)
    assert sum(ran) == len({float(w[0]) for w in windows})


def test_fewer_windows_are_spread_evenly(monkeypatch):
    monkeypatch.setattr(dnsmos, "_raw_p835", lambda _, batch: batch[:, :1].expand(-1, 3).numpy())
    clip = torch.linspace(0, 0.9, 14 * 16000 + 160)
    few = DnsMos(p808=False, most_windows=2)([clip], 16000)[0]["dnsmos_sig"].value
    last = 16000 * (len(window_starts(len(clip))[1]) - 1)
    ends = calibrate(np.asarray([[float(clip[at])] * 3 for at in (0, last)]))[:, 0]
    assert few == pytest.approx(ends.mean(), abs=1e-6)


def test_calibration_is_the_published_polynomial():
    raw = np.linspace(1, 5, 9)[:, None].repeat(3, axis=1)
    x = raw[:, 2]
    np.testing.assert_allclose(calibrate(raw)[:, 2], -0.06766283 * x**2 + 1.11546468 * x + 0.04602535)


def test_p808_features_equal_librosas(voice):
    """Golden numbers of librosa 0.11: ``melspectrogram`` with n_fft 321, ``power_to_db`` with ref = max."""
    wave = torch.from_numpy(voice(10.5, 220.0, 1)[:WINDOW])
    mel = p808_features(wave[None])[0]
    assert tuple(mel.shape) == (900, 120)
    np.testing.assert_allclose(mel[100, [0, 30, 119]].numpy(), P808_ROW, atol=2e-5)
    assert float(mel.double().sum()) == pytest.approx(P808_SUM, abs=0.5)


def test_equals_the_speechmos_package(scorer, voice):
    """Golden numbers of speechmos 0.0.1.1, P.808 among them."""
    result = scorer([torch.from_numpy(voice(10.5, 220.0, 1))], 16000)[0]
    for name, value in SPEECHMOS.items():
        assert result[name].value == pytest.approx(value, abs=2e-4), name


def test_a_wrong_rate_or_setting_is_an_error(scorer, monkeypatch):
    with pytest.raises(UsageError, match="8000 Hz"):
        scorer([torch.zeros(8000)], 8000)
    with pytest.raises(UsageError, match="at_once = 0"):
        DnsMos(at_once=0)
    with pytest.raises(UsageError, match="most_repeated = 0"):
        DnsMos(most_repeated=0)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert DnsMos(p808=False).names == NAMES[:3]  # P.835 runs without it
    with pytest.raises(ModelUnavailableError, match="onnxruntime"):
        DnsMos()
