from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from auralign.audio.stft import Stft
from auralign.evaluation.presets import preset
from auralign.evaluation.separation import (
    EvaluationItem,
    FailedItem,
    Judge,
    evaluate_separation,
    oracle_irm,
    presence_scores,
)
from auralign.metrics.sdr import si_sdr

LENGTH = 4096


def sound(seed: int, hertz: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    tone = np.sin(2 * np.pi * hertz * np.arange(LENGTH) / 16000 + rng.uniform(0, 6))
    return (tone + 0.05 * rng.standard_normal(LENGTH)).astype(np.float32)


def item(name: str, *, present: bool = True, **changes: object) -> EvaluationItem:
    seed = sum(name.encode())
    target = sound(seed, 300) if present else np.zeros(LENGTH, np.float32)
    other = sound(seed + 1, 2000)
    fields = {
        "mixture": target + other,
        "refs": [target, other],
        "query": "low",
        "label": "low",
        "present": present,
    }
    return EvaluationItem(id=name, **(fields | changes))


def halves(mixture: np.ndarray, query: object) -> tuple[np.ndarray, np.ndarray, float | None]:
    """A separator that keeps what is below 1 kHz."""
    spectrum = np.fft.rfft(mixture)
    spectrum[LENGTH // 16 :] = 0
    target = np.fft.irfft(spectrum, n=LENGTH).astype(np.float32)
    return target, mixture - target, float(np.square(target).mean())


def test_every_item_has_one_row_for_model_input_and_oracle():
    table = evaluate_separation(halves, [item("a"), item("b")], preset=preset("auralign"))
    assert [(row["id"], row["system"]) for row in table.rows] == [
        (name, system) for name in "ab" for system in ("model", "input", "oracle_irm")
    ]
    assert all(row["reason"] == "" for row in table.rows)
    model, untouched, oracle = (table.system(name).summary("si_sdri").mean for name in table.systems)
    assert untouched == 0.0
    assert model > 10
    assert oracle > 10
    assert table.definition == preset("auralign").definition


def test_scores_are_those_of_the_preset():
    one = item("a")
    target, residual, _ = halves(one.mixture, "low")
    expected = preset("auralign").score(target=target, residual=residual, refs=one.refs, mixture=one.mixture)
    row = evaluate_separation(halves, [one], preset=preset("auralign")).rows[0]
    assert {name: row[name] for name in expected} == {name: score.value for name, score in expected.items()}


def sometimes(mixture: np.ndarray, query: object) -> tuple[np.ndarray, np.ndarray, float | None]:
    if query == "explode":
        raise RuntimeError("no memory\nat all")
    if query == "short":
        return mixture[:-1], mixture[:-1], 0.5
    if query == "nan":
        return mixture * np.float32(math.nan), mixture, 0.5
    if query == "silence":
        return np.zeros_like(mixture), mixture, 0.1
    return halves(mixture, query)


def test_no_failure_stops_the_run_and_each_has_its_reason():
    items = [item(query, query=query) for query in ("explode", "short", "nan", "silence", "fine")]
    items.insert(2, FailedItem("gone", "AudioError: the file is empty", label="low"))
    table = evaluate_separation(sometimes, items, preset=preset("audiosep")).system("model")
    reasons = {row["id"]: row["reason"] for row in table.rows}
    assert reasons["explode"] == "RuntimeError: no memory at all"
    assert "target has shape (4095,)" in reasons["short"]
    assert reasons["gone"] == "AudioError: the file is empty"
    assert "estimate has NaN" in reasons["nan"]
    assert "silent estimate" in reasons["silence"]
    assert reasons["fine"] == ""
    scored = np.isfinite(table.column("snri")).tolist()
    assert scored == [row["id"] == "fine" for row in table.rows]
    assert table.win_rate("snri") == pytest.approx(1 / 6)


def test_stopping_by_hand_is_not_swallowed():
    def interrupted(mixture: np.ndarray, query: object) -> tuple:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_separation(interrupted, [item("a")], preset=preset("audiosep"))


def test_presence_is_scored_over_present_and_absent_items():
    items = [item(f"p{i}") for i in range(3)] + [item(f"n{i}", present=False) for i in range(3)]
    table = evaluate_separation(halves, items, preset=preset("audiosep"))
    found = presence_scores(table)
    assert found["presence_auc"].value == 1.0
    assert found["presence_ap"].value == 1.0
    absent = table.system("model").rows[-1]
    assert "silent reference" in str(absent["reason"])
    assert math.isnan(float(absent["snri"]))
    assert float(absent["level_change_db"]) < -10


def test_a_separator_without_presence_has_no_presence_score():
    def mute(mixture: np.ndarray, query: object) -> tuple[np.ndarray, np.ndarray, float | None]:
        return (*halves(mixture, query)[:2], None)

    found = presence_scores(evaluate_separation(mute, [item("a")], preset=preset("audiosep")))
    assert math.isnan(found["presence_auc"].value)
    assert found["presence_auc"].reason


def test_silent_output_is_the_lowest_level():
    row = evaluate_separation(sometimes, [item("a", query="silence")], preset=preset("audiosep")).rows[0]
    assert row["level_change_db"] == -150.0


def spectrum_judge(waves: np.ndarray, rate_hz: int) -> np.ndarray:
    assert rate_hz == 16000
    return np.abs(np.fft.rfft(waves))[:, :1024].reshape(len(waves), 64, 16).mean(-1)


def prototypes() -> dict[str, np.ndarray]:
    return {
        name: spectrum_judge(sound(1, hertz)[None], 16000)[0]
        for name, hertz in (("low", 300), ("high", 2000), ("middle", 1000))
    }


def test_the_judge_ranks_the_target_and_measures_margins():
    judge = Judge(spectrum_judge, prototypes(), trained_on=True)
    table = evaluate_separation(halves, [item("a")], preset=preset("audiosep"), judge=judge)
    model, untouched, _ = table.rows
    assert (model["judge_rank"], model["judge_top1"]) == (1.0, 1.0)
    assert float(model["judge_margin_interferer"]) > 0.5
    assert float(model["judge_margin_mixture"]) > float(untouched["judge_margin_mixture"])
    assert "judge_similarity" in table.trained_on
    assert "snri" not in table.trained_on


def test_a_failing_judge_leaves_the_other_scores_standing():
    def broken(waves: np.ndarray, rate_hz: int) -> np.ndarray:
        raise ValueError("no weights")

    row = evaluate_separation(halves, [item("a")], preset=preset("audiosep"), judge=Judge(broken)).rows[0]
    assert math.isfinite(float(row["snri"]))
    assert math.isnan(float(row["judge_similarity"]))
    assert row["reason"] == "judge: ValueError: no weights"


def test_a_class_the_judge_does_not_know_has_no_rank():
    judge = Judge(spectrum_judge, prototypes())
    bell = item("a", label="bell")
    row = evaluate_separation(halves, [bell], preset=preset("audiosep"), judge=judge).rows[0]
    assert math.isnan(float(row["judge_rank"]))
    assert "the judge has no class 'bell'" in str(row["reason"])


def test_oracle_is_the_ratio_mask_written_out():
    one = item("a")
    stft = Stft(1024, 256)
    spectra = [stft.forward(torch.from_numpy(np.asarray(x, np.float64))) for x in (one.mixture, *one.refs)]
    mask = spectra[1].abs() / (spectra[1].abs() + spectra[2].abs())
    expected = stft.inverse(spectra[0] * mask, LENGTH)
    np.testing.assert_allclose(oracle_irm(one.mixture, one.refs), expected.numpy(), atol=1e-6)


def test_the_oracle_row_scores_what_the_oracle_leaves_as_the_second_estimate():
    one = item("a")
    target = oracle_irm(one.mixture, one.refs)
    expected = preset("bisep").score(
        target=target, residual=one.mixture - target, refs=one.refs, mixture=one.mixture
    )
    row = evaluate_separation(halves, [one], preset=preset("bisep")).rows[2]
    assert row["system"] == "oracle_irm"
    assert row["sdr_v3_512"] == expected["sdr_v3_512"].value


def test_oracle_of_one_source_is_the_mixture_and_of_silence_is_silence():
    target = sound(0, 300)
    np.testing.assert_allclose(oracle_irm(target, [target]), target, atol=1e-6)
    zeros = np.zeros_like(target)
    assert not oracle_irm(target, [zeros, target]).any()


class PairBands:
    """Bands of two bins: the last bin alone."""

    def __call__(self, power: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(power, (0, 0, 0, 1)).unflatten(0, (-1, 2)).sum(1)

    def expand(self, mask: torch.Tensor) -> torch.Tensor:
        return mask.repeat_interleave(2, dim=0)[:513]


def test_oracle_in_bands_is_a_row_of_its_own_and_no_better_than_full_resolution():
    rng = np.random.default_rng(0)
    refs = [rng.standard_normal(LENGTH).astype(np.float32) for _ in range(2)]
    noisy = item("a", mixture=refs[0] + refs[1], refs=refs)
    table = evaluate_separation(halves, [noisy], preset=preset("auralign"), bands=PairBands())
    full, banded = (table.system(name).summary("si_sdr").mean for name in ("oracle_irm", "oracle_irm_bands"))
    assert banded < full
    expected = oracle_irm(noisy.mixture, refs, bands=PairBands())
    assert banded == float(si_sdr(est=torch.from_numpy(expected), ref=torch.from_numpy(refs[0])))


def test_progress_counts_items():
    seen: list[int] = []
    evaluate_separation(halves, [item("a"), item("b")], preset=preset("audiosep"), on_progress=seen.append)
    assert seen == [1, 2]


def test_extra_columns_reach_the_rows():
    row = evaluate_separation(halves, [item("a", extra={"split": "test"})], preset=preset("audiosep")).rows[0]
    assert (row["split"], row["query"], row["class"], row["present"]) == ("test", "low", "low", True)
