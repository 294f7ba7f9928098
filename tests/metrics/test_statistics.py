from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from auralign.errors import UsageError
from auralign.metrics import statistics

VALUES = np.random.default_rng(5).normal(3, 2, 60)
numbers = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=40)


def test_mean_error_and_median_equal_scipy():
    line = statistics.summarise(VALUES)
    assert line.mean == pytest.approx(VALUES.mean())
    assert line.standard_error == pytest.approx(scipy.stats.sem(VALUES))
    assert line.median == np.median(VALUES)
    assert (line.n, line.n_nan) == (60, 0)


def test_interval_equals_scipys_percentile_bootstrap():
    theirs = scipy.stats.bootstrap((VALUES,), np.mean, n_resamples=20_000, method="percentile", rng=1)
    ours = statistics.bootstrap_interval(VALUES, resamples=20_000)
    assert ours == pytest.approx(tuple(theirs.confidence_interval), abs=0.03)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        low, high = statistics.bootstrap_interval(rng.normal(1, 1, 40), resamples=400, seed=trial)
        hits += low <= 1 <= high
    assert 0.88 <= hits / 200 <= 0.99


@settings(max_examples=30, deadline=None)
@given(values=numbers, shift=st.floats(-10, 10))
def test_interval_brackets_the_mean_and_moves_with_the_values(values, shift):
    column = np.asarray(values)
    low, high = statistics.bootstrap_interval(column, resamples=200)
    assert column.min() - 1e-9 <= low <= high <= column.max() + 1e-9
    moved = statistics.bootstrap_interval(column + shift, resamples=200)
    assert moved == pytest.approx((low + shift, high + shift), abs=1e-8)


def test_same_seed_gives_the_same_interval_and_another_seed_another():
    assert statistics.bootstrap_interval(VALUES) == statistics.bootstrap_interval(VALUES)
    assert statistics.bootstrap_interval(VALUES) != statistics.bootstrap_interval(VALUES, seed=1)


def test_interval_does_not_depend_on_how_many_draws_fit_at_once(monkeypatch):
    whole = statistics.bootstrap_interval(VALUES, resamples=500)
    monkeypatch.setattr(statistics, "_DRAWS_AT_ONCE", 7 * 60)
    assert statistics.bootstrap_interval(VALUES, resamples=500) == whole


def test_nan_items_are_counted_and_left_out():
    line = statistics.summarise([1.0, math.nan, 3.0])
    assert (line.n, line.n_nan, line.mean, line.median) == (2, 1, 2.0, 2.0)
    assert statistics.win_rate([1.0, math.nan]) == 1.0


@pytest.mark.parametrize("values", [[], [math.nan], [math.nan, math.inf]])
def test_nothing_to_average_is_nan(values):
    line = statistics.summarise(values)
    assert line.n == 0
    assert all(
        math.isnan(x) for x in (line.mean, line.standard_error, line.median, line.ci_low, line.ci_high)
    )
    assert math.isnan(statistics.win_rate(values))


def test_one_item_has_a_mean_and_no_interval():
    line = statistics.summarise([2.0])
    assert line.mean == 2.0
    assert math.isnan(line.standard_error)
    assert math.isnan(line.ci_low)


def test_pairing_finds_a_small_gain_that_spread_would_hide():
    rng = np.random.default_rng(2)
    base = rng.normal(0, 10, 100)
    better = base + 0.3 + rng.normal(0, 0.5, 100)
    paired = statistics.paired_bootstrap(better, base)
    assert paired.ci_low > 0
    low, high = statistics.bootstrap_interval(better)
    assert low < base.mean() < high


def test_paired_difference_changes_sign_when_systems_swap():
    a, b = VALUES, VALUES[::-1] * 0.9
    forth, back = statistics.paired_bootstrap(a, b), statistics.paired_bootstrap(b, a)
    assert forth.mean == pytest.approx(-back.mean)
    assert (forth.ci_low, forth.ci_high) == pytest.approx((-back.ci_high, -back.ci_low))
    assert forth.win_rate == pytest.approx(1 - back.win_rate)


def test_a_pair_with_one_nan_is_counted_and_left_out():
    paired = statistics.paired_bootstrap([1.0, math.nan, 3.0], [0.0, 1.0, math.nan])
    assert (paired.n, paired.n_nan, paired.mean) == (1, 2, 1.0)


def test_ties_count_half_a_win():
    assert statistics.win_rate([0.0, 0.0, 1.0, -1.0]) == 0.5


def test_class_averages_weigh_every_class_alike():
    values, classes = [1.0, 2.0, 9.0, 5.0], ["a", "a", "a", "b"]
    assert statistics.class_means(values, classes) == {"a": 4.0, "b": 5.0}
    assert statistics.class_medians(values, classes) == {"a": 2.0, "b": 5.0}
    assert statistics.mean(list(statistics.class_means(values, classes).values())) == 4.5


def test_a_class_without_a_number_is_nan():
    means = statistics.class_means([1.0, math.nan], ["a", "b"])
    assert means["a"] == 1.0
    assert math.isnan(means["b"])


def test_mismatched_columns_are_usage_errors():
    with pytest.raises(UsageError, match="pair them by item"):
        statistics.paired_bootstrap([1.0], [1.0, 2.0])
    with pytest.raises(UsageError, match="one class per item"):
        statistics.class_means([1.0, 2.0], ["a"])
    with pytest.raises(UsageError, match="0 < level < 1"):
        statistics.bootstrap_interval(VALUES, level=95.0)
