from __future__ import annotations

import pytest
import torch

from auralign.errors import UsageError
from auralign.flow.window import StepPlan, Window, every_step, sliding_window


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_members_of_a_group_share_their_window_and_groups_differ():
    plan = Window(size=2, first=1, last=7).draw(10, groups=40, members=6, generator=seeded())
    by_group = plan.noisy.view(40, 6, 10)
    assert bool((by_group == by_group[:, :1]).all())
    assert len({tuple(row.tolist()) for row in by_group[:, 0]}) == 7


def test_windows_are_consecutive_and_begin_uniformly_within_their_range():
    plan = Window(size=3, first=1, last=4).draw(8, groups=4000, members=1, generator=seeded())
    begin = plan.chosen[:, 0]
    assert bool((plan.chosen.diff(dim=1) == 1).all())
    assert plan.chosen.shape == (4000, 3)
    share = torch.bincount(begin, minlength=8) / 4000
    torch.testing.assert_close(share, torch.tensor([0, 0.25, 0.25, 0.25, 0.25, 0, 0, 0]), rtol=0, atol=0.03)


def test_the_seed_alone_decides():
    window = Window()
    first, second, other = (
        window.draw(10, groups=50, members=2, generator=seeded(s)).noisy for s in (5, 5, 6)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_group_windows_do_not_depend_on_the_size_of_the_groups():
    small, large = (Window().draw(10, groups=20, members=m, generator=seeded(1)).noisy for m in (2, 8))
    assert torch.equal(small[::2], large[::8])


def test_every_step_is_noisy_and_the_first_are_kept():
    plan = every_step(10, 3, kept=9)
    assert bool(plan.noisy.all())
    assert plan.chosen.tolist() == [list(range(9))] * 3


def test_the_sliding_window_visits_every_position_in_turn():
    begins = [sliding_window(i, steps=25, every=25).first for i in range(25 * 23)]
    assert begins[:25] == [0] * 25
    assert sorted(set(begins)) == list(range(22))
    assert begins[25 * 22] == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda: Window(size=0),
        lambda: Window(first=3, last=2),
        lambda: Window(first=-1, last=2),
        lambda: Window(size=2, first=1, last=9).draw(10, groups=1, members=1, generator=seeded()),
        lambda: sliding_window(0, steps=3, size=4),
        lambda: every_step(4, 1, kept=0),
        lambda: every_step(4, 1, kept=5),
    ],
)
def test_windows_that_do_not_fit_are_refused(call):
    with pytest.raises(UsageError):
        call()


def test_plans_that_cannot_be_trained_are_refused():
    noisy = torch.tensor([[True, True, False], [False, True, True]])
    with pytest.raises(UsageError, match="noisy steps only"):
        StepPlan(noisy, torch.ones_like(noisy))
    with pytest.raises(UsageError, match="different numbers"):
        StepPlan(noisy, noisy & torch.tensor([[True, True, True], [False, False, True]]))
    with pytest.raises(UsageError, match="none"):
        StepPlan(noisy, torch.zeros_like(noisy))
