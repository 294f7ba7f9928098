from __future__ import annotations

import math

import fast_bss_eval
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from auralign.errors import UsageError
from auralign.metrics import sdr
from auralign.metrics.contract import CLAMP_DB, METRICS, MetricResult


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def written_out(est: np.ndarray, ref: np.ndarray) -> dict[str, float]:
    """The three ratios, sample by sample, without the library's code."""
    signal = sum(s * s for s in ref)
    alpha = sum(e * s for e, s in zip(est, ref, strict=True)) / signal
    plain = sum((e - s) ** 2 for e, s in zip(est, ref, strict=True))
    scaled = sum((e - alpha * s) ** 2 for e, s in zip(est, ref, strict=True))
    return {
        "snr": 10 * math.log10(signal / plain),
        "si_sdr": 10 * math.log10(alpha**2 * signal / scaled),
        "sd_sdr": 10 * math.log10(alpha**2 * signal / plain),
    }


@pytest.mark.parametrize("name", ["snr", "si_sdr", "sd_sdr"])
def test_ratio_equals_its_definition_written_out(name):
    ref = noise(300)
    est = 0.7 * ref + 0.2 * noise(300, seed=1)
    expected = written_out(est.numpy(), ref.numpy())[name]
    assert float(getattr(sdr, name)(est=est, ref=ref)) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("zero_mean", [False, True])
def test_si_sdr_equals_fast_bss_eval(zero_mean):
    ref = noise(3, 4000) + 0.1
    est = ref + 0.3 * noise(3, 4000, seed=1) + 0.05
    theirs = -fast_bss_eval.si_sdr_loss(est, ref, zero_mean=zero_mean)
    torch.testing.assert_close(sdr.si_sdr(est=est, ref=ref, zero_mean=zero_mean), theirs, atol=1e-9, rtol=0)


def test_mean_removal_matters_only_when_asked():
    ref = noise(4000)
    ref -= ref.mean()
    est = ref + 0.1
    assert float(sdr.si_sdr(est=est, ref=ref)) == pytest.approx(20, abs=0.2)
    assert float(sdr.si_sdr(est=est, ref=ref, zero_mean=True)) == CLAMP_DB


@settings(max_examples=30, deadline=None)
@given(gain=st.floats(0.01, 100) | st.floats(-100, -0.01), seed=st.integers(0, 99))
def test_si_sdr_ignores_gain_and_sign_and_snr_does_not(gain, seed):
    ref = noise(200, seed=seed)
    est = ref + 0.3 * noise(200, seed=seed + 100)
    scaled = float(sdr.si_sdr(est=gain * est, ref=ref))
    assert scaled == pytest.approx(float(sdr.si_sdr(est=est, ref=ref)), abs=1e-8)
    if not 0.5 < gain < 1.5:
        assert float(sdr.snr(est=gain * est, ref=ref)) < float(sdr.snr(est=est, ref=ref))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), gain=st.floats(0.1, 3))
def test_sd_sdr_is_snr_plus_the_gain_of_the_fit(seed, gain):
    ref = noise(100, seed=seed)
    est = gain * ref + 0.2 * noise(100, seed=seed + 1)
    alpha = float((est * ref).sum() / ref.square().sum())
    expected = float(sdr.snr(est=est, ref=ref)) + 20 * math.log10(abs(alpha))
    assert float(sdr.sd_sdr(est=est, ref=ref)) == pytest.approx(expected, abs=1e-9)


def test_improvement_is_the_difference_to_the_mixture():
    ref, other = noise(2, 500), noise(2, 500, seed=3)
    mixture, est = ref + other, ref + 0.1 * other
    torch.testing.assert_close(
        sdr.snri(est=est, ref=ref, mixture=mixture), torch.full((2,), 20.0).double(), atol=1e-9, rtol=0
    )
    expected = sdr.si_sdr(est=est, ref=ref) - sdr.si_sdr(est=mixture, ref=ref)
    torch.testing.assert_close(sdr.si_sdri(est=est, ref=ref, mixture=mixture), expected)
    untouched = sdr.si_sdri(est=mixture, ref=ref, mixture=mixture)
    assert untouched.tolist() == [0.0, 0.0]


def test_batches_of_any_rank_equal_single_items():
    ref, est = noise(2, 3, 100), noise(2, 3, 100, seed=1)
    batched = sdr.si_sdr(est=est, ref=ref)
    assert batched.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            assert batched[i, j] == sdr.si_sdr(est=est[i, j], ref=ref[i, j])


def test_float32_sounds_are_scored_in_float64():
    ref = noise(50_000).float()
    est = ref * (1 + 1e-6)
    assert sdr.snr(est=est, ref=ref).dtype == torch.float64
    assert float(sdr.snr(est=est, ref=ref)) == pytest.approx(
        float(sdr.snr(est=est.double(), ref=ref.double())), abs=1e-9
    )


def test_perfect_and_orthogonal_estimates_meet_the_clamp():
    ref = torch.tensor([1.0, 1.0, 0.0, 0.0])
    assert float(sdr.snr(est=ref, ref=ref)) == CLAMP_DB
    assert float(sdr.si_sdr(est=-3 * ref, ref=ref)) == CLAMP_DB
    assert float(sdr.si_sdr(est=ref.flip(0), ref=ref)) == -CLAMP_DB


GOOD = noise(64)
SICK = GOOD.clone()
SICK[3] = math.nan
ENDLESS = GOOD.clone()
ENDLESS[3] = math.inf


@pytest.mark.parametrize("name", ["snr", "si_sdr", "sd_sdr", "snri", "si_sdri"])
@pytest.mark.parametrize(
    ("est", "ref", "reason"),
    [
        (GOOD, torch.zeros(64), "silent reference"),
        (torch.zeros(64), GOOD, "silent estimate"),
        (SICK, GOOD, "estimate has NaN or infinite samples"),
        (GOOD, ENDLESS, "reference has NaN or infinite samples"),
        (GOOD[:1], GOOD[:1], "fewer than two samples"),
        (GOOD[:0], GOOD[:0], "fewer than two samples"),
    ],
)
def test_what_cannot_be_scored_is_nan_with_its_reason(name, est, ref, reason):
    mixture = noise(est.shape[-1], seed=9)
    result = sdr.score(name, est=est, ref=ref.to(est.dtype), mixture=mixture)
    assert math.isnan(result.value)
    assert result.reason == reason
    assert not result.scored


def test_one_sick_item_leaves_the_rest_of_its_batch_alone():
    ref = torch.stack([GOOD, torch.zeros(64, dtype=torch.float64), GOOD])
    est = torch.stack([GOOD + 0.1, GOOD, SICK])
    for metric in (sdr.snr, sdr.si_sdr, sdr.sd_sdr):
        value = metric(est=est, ref=ref)
        assert torch.isfinite(value).tolist() == [True, False, False]
        assert value[0] == metric(est=est[0], ref=ref[0])


def test_mixture_without_interference_has_no_improvement():
    result = sdr.score("snri", est=GOOD * 0.5, ref=GOOD, mixture=GOOD)
    assert math.isnan(result.value)
    assert "nothing to improve" in result.reason


def test_scored_value_equals_the_function():
    est = GOOD + 0.1
    assert sdr.score("snr", est=est, ref=GOOD) == MetricResult(float(sdr.snr(est=est, ref=GOOD)))


def test_caller_mistakes_are_errors_that_say_what_to_do():
    with pytest.raises(UsageError, match="use one of snr, si_sdr"):
        sdr.score("sdr", est=GOOD, ref=GOOD)
    with pytest.raises(UsageError, match="pass mixture="):
        sdr.score("snri", est=GOOD, ref=GOOD)


def test_estimate_and_reference_cannot_be_swapped_by_position():
    with pytest.raises(TypeError):
        sdr.snr(GOOD, GOOD)  # type: ignore[misc]


def test_every_card_says_unit_direction_and_range():
    for name, card in METRICS.items():
        assert card.name == name
        assert card.low < card.high
        assert card.source
        assert card.title
    assert METRICS["judge_rank"].larger_is_better is False
