from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from auralign.errors import UsageError
from auralign.metrics.presence import NO_ABSENT, NO_PRESENT, average_precision, roc_auc

items = st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=40)


def auc_by_counting(score: list[float], present: list[bool]) -> float:
    wins = [
        1.0 if a > b else 0.5 if a == b else 0.0
        for a, p in zip(score, present, strict=True)
        if p
        for b, q in zip(score, present, strict=True)
        if not q
    ]
    return sum(wins) / len(wins)


def precision_by_thresholds(score: list[float], present: list[bool]) -> float:
    total, last, area = sum(present), 0.0, 0.0
    for threshold in sorted(set(score), reverse=True):
        taken = [p for s, p in zip(score, present, strict=True) if s >= threshold]
        recall = sum(taken) / total
        area += (recall - last) * sum(taken) / len(taken)
        last = recall
    return area


@settings(max_examples=100, deadline=None)
@given(items)
def test_auc_and_precision_equal_brute_force_with_ties(drawn):
    score, present = [float(s) for s, _ in drawn], [p for _, p in drawn]
    assume(any(present) and not all(present))
    assert roc_auc(score=score, present=present).value == pytest.approx(auc_by_counting(score, present))
    expected = precision_by_thresholds(score, present)
    assert average_precision(score=score, present=present).value == pytest.approx(expected)


@settings(max_examples=50, deadline=None)
@given(items, st.randoms())
def test_order_and_monotone_rescaling_change_nothing(drawn, random):
    assume(any(p for _, p in drawn) and not all(p for _, p in drawn))
    shuffled = list(drawn)
    random.shuffle(shuffled)
    for metric in (roc_auc, average_precision):
        before = metric(score=[float(s) for s, _ in drawn], present=[p for _, p in drawn])
        after = metric(score=[math.exp(s) for s, _ in shuffled], present=[p for _, p in shuffled])
        assert after.value == pytest.approx(before.value)


def test_flipping_the_score_mirrors_the_auc():
    rng = np.random.default_rng(0)
    score, present = rng.normal(size=50), rng.random(50) < 0.4
    forth = roc_auc(score=score, present=present).value
    assert roc_auc(score=-score, present=present).value == pytest.approx(1 - forth)


def test_perfect_useless_and_reversed_scores():
    present = [True, True, False, False]
    assert roc_auc(score=[4.0, 3.0, 2.0, 1.0], present=present).value == 1.0
    assert roc_auc(score=[1.0, 1.0, 1.0, 1.0], present=present).value == 0.5
    assert roc_auc(score=[1.0, 2.0, 3.0, 4.0], present=present).value == 0.0
    assert average_precision(score=[1.0, 1.0, 1.0, 1.0], present=present).value == 0.5


@pytest.mark.parametrize("metric", [roc_auc, average_precision])
def test_what_cannot_be_scored_is_nan_with_its_reason(metric):
    cases = {
        NO_ABSENT: ([0.5], [True]),
        NO_PRESENT: ([], []),
        "a score is NaN or infinite": ([math.nan, 0.0], [True, False]),
    }
    for reason, (score, present) in cases.items():
        result = metric(score=score, present=present)
        assert math.isnan(result.value)
        assert result.reason == reason


def test_scores_and_labels_of_different_length_are_a_usage_error():
    with pytest.raises(UsageError, match="one score and one label"):
        roc_auc(score=[1.0], present=[True, False])
