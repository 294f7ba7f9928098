from __future__ import annotations

import json
import math

import pytest
import torch

from auralign.errors import UsageError
from auralign.rewards.base import Scene
from auralign.rewards.compose import Composite, RunningScale, Term
from auralign.rewards.signal import FidelityReward

NAN = math.nan
SCENE = Scene(torch.zeros(2, 3, 8), torch.zeros(2, 8), 16_000)
A = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 9.0]])
B = torch.tensor([[10.0, 20.0, 60.0], [0.0, 0.0, 0.0]])


def gives(value: torch.Tensor):
    return lambda scene: value


def test_the_total_is_the_weighted_sum_and_the_parts_are_raw():
    scored = Composite([Term("a", gives(A), 2.0), Term("b", gives(B), -0.5, "running")]).score(SCENE)
    torch.testing.assert_close(scored.total, 2 * A - 0.5 * B)  # nothing was learnt, so nothing is scaled
    torch.testing.assert_close(scored.parts["b"], B)
    assert scored.means() == {"a": 4.0, "b": 15.0}


def test_running_normalisation_is_that_of_all_rewards_seen():
    batches = [torch.randn(5, 4, generator=torch.Generator().manual_seed(n)) * 3 + 7 for n in range(6)]
    at = iter(batches)
    composite = Composite([Term("a", lambda scene: next(at), normalise="running")])
    for _ in batches:
        total = composite.learn(SCENE).total
    seen = torch.cat(batches)
    expected = (batches[-1] - seen.mean()) / seen.std(correction=0)
    torch.testing.assert_close(total, expected)


def test_group_normalisation_divides_by_the_spread_within_groups():
    rewards = torch.tensor([[0.0, 2.0], [100.0, 102.0], [NAN, 5.0], [NAN, NAN]])
    scale = RunningScale()
    scale.update(rewards)
    assert scale.group_std == pytest.approx(math.sqrt(2))  # unbiased: each pair has one degree of freedom
    assert scale.std > 40
    composite = Composite([Term("a", gives(rewards), normalise="group")])
    total = composite.learn(SCENE).total
    assert float(total[0, 1] - total[0, 0]) == pytest.approx(2 / math.sqrt(2), abs=1e-4)


def test_two_rewards_of_any_units_weigh_the_same_after_normalisation():
    small = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
    large = 1e4 * torch.randn(64, 8, generator=torch.Generator().manual_seed(2)) + 5e5
    terms = [Term(n, gives(v), normalise="group") for n, v in (("small", small), ("large", large))]
    total = Composite(terms).learn(SCENE).total
    for part in (small, large):
        assert float(torch.corrcoef(torch.stack([total.flatten(), part.flatten()]))[0, 1]) == pytest.approx(
            1 / math.sqrt(2), abs=0.05
        )


def test_scoring_alone_learns_nothing():
    composite = Composite([Term("a", gives(A), normalise="running")])
    before = json.dumps(composite.state_dict())
    composite.score(SCENE)
    composite(SCENE)
    assert json.dumps(composite.state_dict()) == before
    composite.learn(SCENE)
    assert json.dumps(composite.state_dict()) != before


def test_a_constant_reward_and_a_lone_one_are_not_blown_up():
    for value in (torch.full((2, 3), 0.7), torch.full((2, 3), NAN), torch.tensor([[5.0], [NAN]])):
        for way in ("running", "group"):
            total = Composite([Term("a", gives(value), normalise=way)]).learn(SCENE).total
            assert torch.equal(total.isnan(), value.isnan())
            assert (total[~total.isnan()].abs() < 1e-6).all()


def test_what_one_term_cannot_score_is_not_scored_unless_the_term_may_be_skipped():
    holes = A.clone()
    holes[0, 1] = NAN
    holes[1] = NAN
    left = Composite([Term("a", gives(holes)), Term("b", gives(B))]).score(SCENE).total
    assert torch.equal(left.isnan(), holes.isnan())
    skipped = Composite([Term("a", gives(holes), unscorable="skip"), Term("b", gives(B))]).score(SCENE).total
    torch.testing.assert_close(skipped[0], torch.tensor([11.0, 22.0, 63.0]))  # 2 = mean of its group
    torch.testing.assert_close(skipped[1], B[1])


def test_skipping_neither_favours_nor_punishes():
    holes = torch.tensor([[1.0, NAN, 3.0, 2.0]])
    other = torch.zeros(1, 4)
    total = (
        Composite([Term("a", gives(holes), unscorable="skip"), Term("b", gives(other))]).score(SCENE).total
    )
    assert float(total[0, 1]) == pytest.approx(float(holes.nanmean()))


def test_what_no_term_can_score_stays_nan_even_when_all_may_be_skipped():
    empty = torch.full((2, 3), NAN)
    terms = [Term(name, gives(empty), unscorable="skip") for name in "ab"]
    assert Composite(terms).score(SCENE).total.isnan().all()


def test_a_term_without_weight_is_logged_and_not_trained_on():
    composite = Composite(
        [
            Term("a", gives(A)),
            Term("judge", gives(torch.full((2, 3), NAN)), 0.0),
            Term("f", FidelityReward(), 0.0),
        ]
    )
    scored = composite.score(SCENE)
    torch.testing.assert_close(scored.total, A)
    assert composite.trained_on == {"a": True, "judge": False, "f": False}
    assert composite.trained_metrics == ()
    assert "si_sdri" in Composite([Term("f", FidelityReward())]).trained_metrics


def test_resumed_statistics_continue_bit_for_bit():
    batches = [torch.randn(3, 4, generator=torch.Generator().manual_seed(n)) for n in range(8)]

    def run(composite: Composite, part: list[torch.Tensor]) -> list[torch.Tensor]:
        return [composite.learn(Scene(b[..., None], b[:, :1], 16_000)).total for b in part]

    def make() -> Composite:
        return Composite(
            [Term(n, lambda scene: scene.estimate[..., 0], normalise=n) for n in ("running", "group")]
        )

    whole = run(make(), batches)
    first, second = make(), make()
    run(first, batches[:5])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for found, expected in zip(run(second, batches[5:]), whole[5:], strict=True):
        assert torch.equal(found, expected)


def test_old_rewards_fade_beyond_the_memory():
    scale = RunningScale(memory=100)
    scale.update(torch.zeros(10, 100))
    for _ in range(10):
        scale.update(torch.ones(1, 100))
    assert scale.mean > 0.99
    assert RunningScale().memory > 10_000


def test_gradients_pass_through_to_the_estimate():
    estimate = torch.ones(2, 3, 8, requires_grad=True)
    composite = Composite([Term("a", lambda scene: scene.estimate.mean(-1), 3.0, "running")])
    total = composite.learn(Scene(estimate, torch.zeros(2, 8), 16_000)).total
    total.sum().backward()
    torch.testing.assert_close(estimate.grad, torch.full((2, 3, 8), 3 / 8))


def test_composites_that_make_no_sense_are_refused():
    with pytest.raises(UsageError, match="'a'"):
        Composite([Term("a", gives(A)), Term("a", gives(B))])
    with pytest.raises(UsageError, match="no reward term has a weight"):
        Composite([Term("a", gives(A), 0.0)])
    with pytest.raises(UsageError, match="no reward term has a weight"):
        Composite([])
    with pytest.raises(UsageError, match="must be finite"):
        Term("a", gives(A), math.inf)
    with pytest.raises(UsageError, match="other rewards"):
        Composite([Term("a", gives(A))]).load_state_dict({"b": {}})
