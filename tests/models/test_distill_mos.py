"""Distill-MOS against its package's numbers, cut into windows as published, and at its edges."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from auralign.errors import UsageError
from auralign.metrics import perceptual
from auralign.metrics.perceptual import WINDOW, distill_mos, window_starts
from auralign.models.distill_mos import load_distill_mos
from auralign.runtime.device import bfloat16_is_fast

DISTILL = (2.8224892616271973, 3.074845790863037)


@pytest.fixture(scope="module")
def net():
    torch.set_num_threads(1)
    return load_distill_mos()


def test_equals_the_package(net, voice):
    """Golden numbers of distillmos 0.9.1 on one window and on three."""
    clips = [torch.from_numpy(voice(4.0, 120.0, 0)), torch.from_numpy(voice(9.3, 220.0, 1))]
    ours = [one.value for one in distill_mos(clips, 16000, judge=net)]
    np.testing.assert_allclose(ours, DISTILL, atol=2e-5)


def test_the_level_does_not_matter(net, voice):
    clip = torch.from_numpy(voice(2.0, 120.0, 0))
    loud, faint = distill_mos([clip, 0.01 * clip], 16000, judge=net)
    assert faint.value == pytest.approx(loud.value, abs=1e-3)


def test_narrow_is_near_and_falls_back_to_float32(net, voice, monkeypatch):
    clips = [torch.from_numpy(voice(2.0, 120.0, 0))]
    exact = distill_mos(clips, 16000, judge=net)[0].value
    narrow = load_distill_mos(narrow=True)
    assert narrow.narrow == bfloat16_is_fast()
    assert distill_mos(clips, 16000, judge=narrow)[0].value == pytest.approx(exact, abs=0.03)
    monkeypatch.setattr("auralign.models.distill_mos.bfloat16_is_fast", lambda: False)
    assert distill_mos(clips, 16000, judge=load_distill_mos(narrow=True))[0].value == exact


def test_windows_cover_the_clip_at_most_a_second_apart():
    for samples in (1, WINDOW - 1, WINDOW, WINDOW + 1, WINDOW + 16000, WINDOW + 16001, 999_999):
        starts = window_starts(samples)
        assert starts[0] == 0
        assert starts[-1] == max(0, samples - WINDOW)
        assert all(0 < b - a <= 16000 for a, b in pairwise(starts))


def test_each_clip_gets_the_mean_of_its_own_windows():
    def judge(windows: torch.Tensor) -> torch.Tensor:
        assert len(windows) <= 3
        return windows.amax(dim=1)

    clips = [torch.full((length,), value) for length, value in ((9, 0.1), (WINDOW + 40_000, 0.2), (70, 0.3))]
    clips[1][:100] = 0.9
    results = distill_mos(clips, 16000, judge=judge, at_once=3)
    assert [one.value for one in results] == pytest.approx([0.1, (0.9 + 3 * 0.2) / 4, 0.3])


def test_what_cannot_be_judged_is_nan_with_a_reason():
    bad = torch.ones(9)
    bad[3] = torch.inf
    results = distill_mos([torch.zeros(9), bad, torch.zeros(0)], 16000, judge=lambda w: w.amax(1))
    assert all(math.isnan(one.value) for one in results)
    reasons = ["silent estimate", "estimate has NaN or infinite samples", perceptual.NO_SAMPLES]
    assert [one.reason for one in results] == reasons
    with pytest.raises(UsageError, match="44100"):
        distill_mos([], 44100, judge=lambda w: w.amax(1))
