"""Means, differences, vetoes and the choice against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from auralign.evaluation.enhancement_statistics import (
    ALL,
    LIMITS,
    best_safe,
    by_noise_level,
    compare,
    gather,
    means,
    verdict,
    vetoes,
)
from auralign.evaluation.enhancement_systems import System

METRICS = ("dnsmos_sig", "pesq_wb")
SYSTEMS = (
    System("base", 0, "b", "b"),
    System("arm", 0, "x", "x"),
    System("arm", 1, "y", "y"),
)


def row(
    system: System, n: int, sig: float, pesq: float, *, where: str = "dry", snr: float | None = 2.5
) -> dict:
    head = {"arm": system.arm, "seed": system.seed, "list": where, "id": f"r{n}", "speaker": f"s{n % 2}"}
    return head | {"snr_db": snr, "dnsmos_sig": sig, "pesq_wb": pesq, "reason": ""}


def table(gain: float, pesq_gain: float = 0.1, count: int = 8) -> list[dict]:
    rows = []
    for n in range(count):
        rows.append(row(SYSTEMS[0], n, 2.0 + n / 10, 1.5))
        rows.append(row(SYSTEMS[1], n, 2.0 + n / 10 + gain - 0.01, 1.5 + pesq_gain))
        rows.append(row(SYSTEMS[2], n, 2.0 + n / 10 + gain + 0.01, 1.5 + pesq_gain))
    return rows


def test_differences_are_paired_and_averaged_over_seeds():
    scores = gather(table(0.2), SYSTEMS, METRICS)
    found = {one["metric"]: one for one in compare(scores, ["base"], resamples=200)}
    sig = found["dnsmos_sig"]
    assert (sig["system"], sig["versus"], sig["n"]) == ("arm", "base", 8)
    assert sig["difference"] == pytest.approx(0.2)
    assert sig["ci"] == pytest.approx([0.2, 0.2])  # the same in every pair, however far apart the recordings
    assert sig["seeds"] == pytest.approx([0.19, 0.21])
    assert sig["win_rate"] == 1.0


def test_a_seed_without_a_score_takes_its_recording_out_of_the_pair():
    rows = table(0.2)
    rows[2]["dnsmos_sig"] = None  # second model of the arm, first recording
    scores = gather(rows, SYSTEMS, METRICS)
    found = {one["metric"]: one for one in compare(scores, ["base"], resamples=50)}
    assert (found["dnsmos_sig"]["n"], found["dnsmos_sig"]["n_nan"]) == (7, 1)
    assert found["pesq_wb"]["n"] == 8
    arm = next(one for one in means(scores) if one["system"] == "arm")
    assert arm["dnsmos_sig_nan"] == 1


def test_the_speaker_interval_resamples_speakers():
    rows = []
    for n in range(40):
        rows.append(row(SYSTEMS[0], n, 2.0, 1.5))
        rows.append(row(SYSTEMS[1], n, 2.0 + (0.4 if n % 2 else 0.0), 1.5))
    scores = gather(rows, SYSTEMS[:2], METRICS)
    sig = next(one for one in compare(scores, ["base"]) if one["metric"] == "dnsmos_sig")
    assert sig["speaker_ci"] == pytest.approx([0.0, 0.4])  # two speakers: both may be drawn twice
    low, high = sig["ci"]
    assert 0.1 < low < 0.2 < high < 0.3


def test_a_pair_is_compared_once_and_the_oracle_not_at_all():
    scores = gather(table(0.2), SYSTEMS, METRICS)
    pairs = {(one["system"], one["versus"]) for one in compare(scores, ["base", "arm"], resamples=20)}
    assert pairs == {("arm", "base")}
    assert compare(scores, ["base"], leave_out=["arm"]) == []


def test_pools_are_lists_and_all_of_them():
    rows = table(0.2) + [one | {"list": "wet"} for one in table(0.4)]
    scores = gather(rows, SYSTEMS, METRICS)
    sig = {
        one["list"]: one for one in compare(scores, ["base"], resamples=20) if one["metric"] == "dnsmos_sig"
    }
    assert list(sig) == ["dry", "wet", ALL]
    assert sig[ALL]["difference"] == pytest.approx(0.3)


def test_rows_go_into_their_band_of_noise():
    rows = [row(SYSTEMS[0], n, float(n), 1.0, snr=snr) for n, snr in enumerate((-3.0, 0.0, 5.0, 17.5, None))]
    found = by_noise_level(gather(rows, SYSTEMS[:1], METRICS))
    assert [(one["snr"], one["dnsmos_sig"]) for one in found] == [
        ("below 0 dB", 0.0),
        ("0 to 5 dB", 1.0),
        ("5 to 10 dB", 2.0),
        ("15 dB and more", 3.0),
    ]


def test_verdicts_at_the_limit():
    limit = LIMITS["dnsmos_sig"]
    assert verdict(limit, 1.0, limit) == "safe"
    assert verdict(np.nextafter(limit, -1), 1.0, limit) == "open"
    assert verdict(-1.0, np.nextafter(limit, -1), limit) == "harmed"
    assert verdict(math.nan, 1.0, limit) == "not measured"


@pytest.mark.parametrize(
    ("gain", "pesq_gain", "expected"),
    [(0.2, 0.1, "safe"), (-0.1, 0.3, "harmed"), (0.3, -0.2, "harmed"), (-0.02, -0.04, "safe")],
)
def test_one_harmed_metric_condemns_the_arm(gain, pesq_gain, expected):
    scores = gather(table(gain, pesq_gain), SYSTEMS, METRICS)
    (found,) = vetoes(compare(scores, ["base"], resamples=50), "base")
    assert found["verdict"] == expected
    assert found["estoi"] == "not measured"


@pytest.mark.parametrize(("pesq_gain", "choice", "safe"), [(0.1, "arm", 1), (-0.2, "base", 0)])
def test_the_best_arm_must_be_safe(pesq_gain, choice, safe):
    scores = gather(table(0.5, pesq_gain), SYSTEMS, METRICS)
    checked = vetoes(compare(scores, ["base"], resamples=50), "base")
    (found,) = best_safe(means(scores), checked, base="base", by="dnsmos_sig")
    assert (found["choice"], found["safe"]) == (choice, safe)


def test_an_equal_arm_leaves_the_base():
    rows = [row(system, n, 2.0, 1.5) for n in range(5) for system in SYSTEMS[:2]]
    scores = gather(rows, SYSTEMS[:2], METRICS)
    checked = vetoes(compare(scores, ["base"], resamples=50), "base")
    assert checked[0]["verdict"] == "safe"
    (found,) = best_safe(means(scores), checked, base="base", by="dnsmos_sig")
    assert found["choice"] == "base"
