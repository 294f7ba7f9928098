from __future__ import annotations

import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from auralign.errors import UsageError
from auralign.flow.schedule import check_grid, draw_logit_normal, draw_uniform, shifted, stopped, uniform


@given(steps=st.integers(2, 60), shift=st.floats(0.1, 20), stop=st.floats(0.001, 0.9))
def test_every_schedule_is_a_grid_from_one_to_zero(steps, shift, stop):
    for times in (uniform(steps), shifted(steps, shift), stopped(steps, stop)):
        check_grid(times)
        assert len(times) == steps + 1
        assert (times[0], times[-1]) == (1, 0)


def test_shift_is_the_time_change_that_scales_the_noise_to_data_ratio():
    inner = slice(1, -1)
    ratio = (shifted(12, 3.0) / (1 - shifted(12, 3.0)))[inner]
    plain = (uniform(12) / (1 - uniform(12)))[inner]
    torch.testing.assert_close(ratio, 3 * plain)
    torch.testing.assert_close(shifted(12, 1.0), uniform(12))


def test_stopped_evaluates_last_at_the_stop():
    assert stopped(5).tolist() == pytest.approx([1, 0.7575, 0.515, 0.2725, 0.03, 0])


@pytest.mark.parametrize(
    "times", [[1.0], [0.0, 1.0], [1.0, 0.5, 0.5, 0.0], [1.1, 0.0], [1.0, -0.1], [1.0, float("nan"), 0.0]]
)
def test_grids_that_do_not_fall_within_the_flow_are_refused(times):
    with pytest.raises(UsageError, match="time"):
        check_grid(torch.tensor(times))


@pytest.mark.parametrize(
    "call",
    [
        lambda: uniform(0),
        lambda: shifted(4, 0.0),
        lambda: shifted(4, float("inf")),
        lambda: stopped(1),
        lambda: stopped(4, 0.0),
        lambda: draw_uniform(2, low=1.0, generator=torch.Generator()),
        lambda: draw_logit_normal(2, scale=0.0, generator=torch.Generator()),
    ],
)
def test_settings_without_a_meaning_are_refused(call):
    with pytest.raises(UsageError):
        call()


def test_training_times_have_the_named_distributions():
    seed = torch.Generator().manual_seed(0)
    even = draw_uniform(20_000, low=0.03, generator=seed, dtype=torch.float64).numpy()
    assert scipy.stats.kstest(even, scipy.stats.uniform(0.03, 0.97).cdf).pvalue > 0.01
    logit = (
        draw_logit_normal(20_000, location=0.5, scale=0.8, generator=seed, dtype=torch.float64)
        .logit()
        .numpy()
    )
    assert scipy.stats.kstest(logit, scipy.stats.norm(0.5, 0.8).cdf).pvalue > 0.01


def test_training_times_follow_their_generator():
    first, second = (draw_uniform(4, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
