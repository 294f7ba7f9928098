from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from auralign.errors import UsageError
from auralign.evaluation.presets import PRESETS, preset, score_bisep
from auralign.metrics.bss_eval import bss_eval_v3
from auralign.metrics.contract import METRICS
from auralign.metrics.sdr import si_sdr, snr

RNG = np.random.default_rng(0)
REFS = [RNG.standard_normal(3000).astype(np.float32) for _ in range(3)]
MIXTURE = REFS[0] + REFS[1]
TARGET = REFS[0] + 0.2 * REFS[1] + 0.1 * RNG.standard_normal(3000).astype(np.float32)
RESIDUAL = MIXTURE - TARGET


def scores(name: str, refs: list[np.ndarray] | None = None, **changes: np.ndarray) -> dict[str, float]:
    sounds = {"target": TARGET, "residual": RESIDUAL, "mixture": MIXTURE} | changes
    result = preset(name).score(refs=refs or REFS[:2], **sounds)
    return {key: score.value for key, score in result.items()}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_gives_exactly_the_scores_it_names_and_each_has_a_card(name):
    found = preset(name).score(target=TARGET, residual=RESIDUAL, refs=REFS[:2], mixture=MIXTURE)
    assert tuple(found) == preset(name).metrics
    assert set(found) <= set(METRICS)
    assert all(score.scored and not score.reason for score in found.values())
    assert all(isinstance(score.value, float) for score in found.values())


def plain(est: np.ndarray, metric=snr) -> float:
    return float(metric(est=torch.from_numpy(est), ref=torch.from_numpy(REFS[0])))


def test_audiosep_is_plain_sdr_improvement_and_absolute_si_sdr_by_class():
    found = scores("audiosep")
    assert found["snri"] == pytest.approx(plain(TARGET) - plain(MIXTURE), abs=1e-9)
    assert found["si_sdr"] == pytest.approx(plain(TARGET, si_sdr), abs=1e-9)
    assert preset("audiosep").aggregation == "class mean"


def test_dcase_gives_plain_sdr_its_improvement_and_the_mixing_rule():
    found = scores("dcase24t9")
    assert found["snr"] == pytest.approx(plain(TARGET), abs=1e-9)
    assert found["snr"] - found["snri"] == pytest.approx(plain(MIXTURE), abs=1e-9)
    assert "0.9/peak" in preset("dcase24t9").mixing_rule


def test_omnisep_reports_the_first_source_only_with_snr_as_sdr():
    found = scores("omnisep")
    three = bss_eval_v3(
        est=torch.from_numpy(np.stack([TARGET, RESIDUAL])), ref=torch.from_numpy(np.stack(REFS[:2]))
    )
    assert found["sdr_v4"] == pytest.approx(plain(TARGET), abs=1e-9)
    assert found["sir_v4"] == pytest.approx(float(three.sir_db[0]), abs=1e-9)
    assert found["sar_v4"] == pytest.approx(float(three.sar_db[0]), abs=1e-9)


def test_bisep_averages_over_the_sources_in_order():
    found = scores("bisep")
    three = bss_eval_v3(
        est=torch.from_numpy(np.stack([TARGET, RESIDUAL])), ref=torch.from_numpy(np.stack(REFS[:2]))
    )
    assert found["sdr_v3_512"] == pytest.approx(float(three.sdr_db.mean()), abs=1e-9)
    swapped = scores("bisep", target=RESIDUAL, residual=TARGET)
    assert swapped["sdr_v3_512"] < found["sdr_v3_512"]


def test_bisep_leaves_out_examples_with_a_quiet_signal():
    est = torch.randn(2, 3000, dtype=torch.float64)
    found = score_bisep(est=est * torch.tensor([[1.0], [1e-9]]), ref=est)
    assert all(
        math.isnan(score.value) and "leaves the example out" in score.reason for score in found.values()
    )


def test_further_interferers_count_as_one():
    mixture = MIXTURE + REFS[2]
    three = scores("omnisep", refs=REFS, mixture=mixture, residual=mixture - TARGET)
    two = scores("omnisep", refs=[REFS[0], REFS[1] + REFS[2]], mixture=mixture, residual=mixture - TARGET)
    assert three == pytest.approx(two, abs=1e-5)


def test_with_the_target_alone_the_rest_of_the_mixture_interferes():
    assert scores("omnisep", refs=REFS[:1]) == pytest.approx(scores("omnisep"), abs=1e-4)


@pytest.mark.parametrize("name", PRESETS)
def test_a_silent_target_estimate_is_nan_with_a_reason_in_every_preset(name):
    found = preset(name).score(target=np.zeros_like(TARGET), residual=MIXTURE, refs=REFS[:2], mixture=MIXTURE)
    assert all(math.isnan(score.value) and score.reason for score in found.values())


def test_a_silent_residual_does_not_hurt_the_target_in_omnisep():
    assert scores("omnisep", residual=np.zeros_like(TARGET)) == pytest.approx(scores("omnisep"), abs=1e-9)


def test_unknown_presets_and_missing_references_are_usage_errors():
    with pytest.raises(UsageError, match="use one of auralign, omnisep"):
        preset("clean")
    with pytest.raises(UsageError, match="no reference"):
        preset("bisep").score(target=TARGET, residual=RESIDUAL, refs=[], mixture=MIXTURE)
