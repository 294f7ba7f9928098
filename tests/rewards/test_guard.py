from __future__ import annotations

import json
import math

import numpy as np
import pytest

from auralign.errors import UsageError
from auralign.rewards.guard import Guard, GuardConfig, Reading, Verdict

STOP = GuardConfig(action="stop")


def _watch(guard: Guard, rows: list[Reading]) -> Verdict | None:
    for row in rows:
        verdict = guard.observe(row)
        if verdict is not None:
            return verdict
    return None


def _curve(si_sdri, reward=None, judge=None) -> list[Reading]:
    count = len(si_sdri)
    columns = [
        [None] * count if values is None else [float(v) for v in values]
        for values in (si_sdri, reward, judge)
    ]
    return [
        Reading(step=10 * n, si_sdri=s, reward=r, judge=j)
        for n, (s, r, j) in enumerate(zip(*columns, strict=True))
    ]


@pytest.mark.parametrize("field", ["loss", "gradient_norm", "mean_mask", "si_sdri"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_stops_at_once(field, value):
    verdict = Guard(STOP).observe(Reading(7, **{field: value}))
    assert verdict is not None
    assert (verdict.alarm, verdict.action, verdict.step) == ("not-finite", "stop", 7)
    assert str(value) in verdict.reason


def test_an_unscorable_reward_or_judge_is_no_fault_but_an_infinite_one_is():
    assert Guard(STOP).observe(Reading(1, reward=math.nan, judge=math.nan, si_sdri=1.0)) is None
    assert Guard(STOP).observe(Reading(1, reward=math.inf)).alarm == "not-finite"


@pytest.mark.parametrize(
    ("mask", "alarm"), [(0.951, "all-pass"), (0.019, "all-zero"), (0.95, None), (0.02, None), (0.5, None)]
)
def test_a_mask_that_passes_everything_or_nothing_is_seen(mask, alarm):
    verdict = _watch(Guard(STOP), [Reading(n, mean_mask=mask) for n in range(5)])
    assert (verdict and verdict.alarm) == alarm
    if verdict:
        assert verdict.step == 1
        assert f"{mask:.3f}" in verdict.reason


def test_one_odd_batch_is_no_collapse():
    masks = [0.5, 0.99, 0.5, 0.99, 0.01, 0.99, 0.01, 0.5]
    assert _watch(Guard(STOP), [Reading(n, mean_mask=m) for n, m in enumerate(masks)]) is None


def test_a_fall_below_the_start_needs_to_be_seen_twice_unless_it_is_large():
    assert _watch(Guard(STOP), _curve([4.0, 3.65, 4.0, 3.65, 4.0])) is None
    verdict = _watch(Guard(STOP), _curve([4.0, 3.65, 3.68]))
    assert verdict.alarm == "fidelity-fell"
    assert verdict.step == 20
    assert "4.00 dB" in verdict.reason
    assert "3.68 dB" in verdict.reason
    assert _watch(Guard(STOP), _curve([4.0, 3.39])).step == 10
    assert _watch(Guard(STOP), _curve([4.0, *[3.71] * 20])) is None


def test_a_fall_from_the_best_is_seen_although_the_start_was_lower():
    rise = [2.0, 2.5, 3.0, 3.3, 3.4, 3.4, 3.4]
    verdict = _watch(Guard(STOP), _curve([*rise, 3.1, 3.0, 2.9, 2.9]))
    assert verdict.alarm == "fidelity-fell"
    assert "at its best" in verdict.reason
    assert _watch(Guard(STOP), _curve([*rise, 3.3, 3.2, 3.25, 3.2, 3.3])) is None


def test_reward_up_while_fidelity_is_down_is_called_hacking_after_three_evaluations():
    verdict = _watch(Guard(STOP), _curve([4.0, 3.8, 3.8, 3.8], reward=[0.30, 0.31, 0.33, 0.36]))
    assert (verdict.alarm, verdict.step) == ("hacked-fidelity", 30)
    assert all(number in verdict.reason for number in ("0.3000", "0.3600", "4.0000", "3.8000"))


def test_reward_up_while_the_judge_is_down_is_called_hacking():
    si_sdri, reward = [4.0, 4.1, 4.1, 4.2], [0.30, 0.31, 0.33, 0.36]
    verdict = _watch(Guard(STOP), _curve(si_sdri, reward, judge=[0.5, 0.48, 0.47, 0.47]))
    assert verdict.alarm == "hacked-judge"
    assert _watch(Guard(STOP), _curve(si_sdri, reward, judge=[0.5, 0.51, 0.52, 0.5])) is None


@pytest.mark.parametrize(
    ("si_sdri", "reward"),
    [
        ([4.0, 3.8, 3.95, 3.8, 3.8], [0.3, 0.4, 0.4, 0.4, 0.4]),  # not three in a row
        ([4.0, 3.8, 3.8, 3.8, 3.8], [0.3, 0.3, 0.29, 0.25, 0.2]),  # both fall
        ([4.0, 3.86, 3.86, 3.86, 3.86], [0.3, 0.4, 0.5, 0.6, 0.7]),  # within the slack
        ([4.0, 4.1, 4.2, 4.3, 4.4], [0.3, 0.4, 0.5, 0.6, 0.7]),  # as it should be
    ],
)
def test_what_is_no_hacking_raises_no_alarm(si_sdri, reward):
    assert _watch(Guard(STOP), _curve(si_sdri, reward)) is None


def test_training_steps_between_evaluations_do_not_break_a_row():
    guard, found = Guard(STOP), []
    for row in _curve([4.0, 3.8, 3.8, 3.8], reward=[0.3, 0.4, 0.5, 0.6]):
        found += [
            guard.observe(row),
            guard.observe(Reading(row.step + 1, loss=1.0, mean_mask=0.4, reward=0.1)),
        ]
    assert [verdict.alarm for verdict in found if verdict] == ["hacked-fidelity"]


@pytest.mark.parametrize("gain_db", [0.0, 0.5])
def test_a_healthy_noisy_run_raises_no_alarm(gain_db):
    alarms = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        way = 1 - np.exp(-np.arange(40) / 10)
        rows = _curve(
            4 + gain_db * way + rng.normal(0, 0.05, 40),
            0.3 + 0.05 * way + rng.normal(0, 0.01, 40),
            0.5 + 0.02 * gain_db * way + rng.normal(0, 0.002, 40),
        )
        alarms += _watch(Guard(STOP), rows) is not None
    assert alarms <= 2  # of 200 runs with 40 evaluations each


def test_a_hacked_noisy_run_is_found_before_a_decibel_is_lost():
    for seed in range(50):
        rng = np.random.default_rng(seed)
        si_sdri = 4 - 0.05 * np.arange(40) + rng.normal(0, 0.05, 40)
        rows = _curve(si_sdri, 0.3 + 0.01 * np.arange(40) + rng.normal(0, 0.005, 40))
        verdict = _watch(Guard(STOP), rows)
        assert verdict is not None
        assert si_sdri[verdict.step // 10] > 3.3


def test_it_rolls_back_so_many_times_and_then_stops():
    guard = Guard(GuardConfig(rollbacks=2))
    actions = [guard.observe(Reading(n, loss=math.nan)).action for n in range(4)]
    assert actions == ["rollback", "rollback", "stop", "stop"]


def test_after_a_rollback_the_row_starts_again_and_the_start_stays():
    guard = Guard(GuardConfig())
    assert _watch(guard, _curve([4.0, 3.6, 3.6])).action == "rollback"
    assert guard.observe(Reading(40, si_sdri=3.6)) is None
    assert guard.observe(Reading(50, si_sdri=3.6)).reason.startswith("validation SI-SDRi fell from 4.00 dB")


def test_a_restored_guard_gives_the_same_verdicts():
    rows = _curve([4.0, 3.9, 3.8, 3.8, 3.6, 3.6], [0.3, 0.4, 0.4, 0.4, 0.4, 0.4], [0.5] * 6)
    rows += [Reading(99, mean_mask=0.97)] * 2
    for cut in range(len(rows)):
        whole, first, second = Guard(), Guard(), Guard()
        expected = [whole.observe(row) for row in rows]
        found = [first.observe(row) for row in rows[:cut]]
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        found += [second.observe(row) for row in rows[cut:]]
        assert found == expected
    with pytest.raises(UsageError, match="not the state of a guard"):
        Guard().load_state_dict({"start": {}})


@pytest.mark.parametrize(
    "bad",
    [
        {"all_pass": 0.01},
        {"all_pass": 1.5},
        {"patience": 0},
        {"fall_db": 0.0},
        {"rollbacks": -1},
        {"rise": -0.1},
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        GuardConfig(**bad)
