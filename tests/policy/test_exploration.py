from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from auralign.errors import UsageError
from auralign.policy.beta_mask import MASK_EPS, render_tiles
from auralign.policy.exploration import Exploration, draw_pathwise

TILE = (8, 4)
FORMS = [
    Exploration("bin", TILE, emphasis=0.0),
    Exploration("bin", TILE, emphasis=0.25),
    Exploration("tile", TILE, emphasis=0.0),
    Exploration("tile", TILE, emphasis=0.25),
]
every_form = pytest.mark.parametrize("how", FORMS, ids=lambda how: f"{how.form}-{how.emphasis}")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scene(
    seed: int = 0, shape: tuple[int, int, int] = (2, 20, 9), dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    """A proposal and the energy of its mixture; 20 x 9 leaves cut tiles at both upper edges."""
    generator = seeded(seed)
    proposal = torch.rand(shape, generator=generator, dtype=dtype) * 0.9 + 0.05
    return proposal, torch.randn(shape, generator=generator, dtype=dtype).exp()


def tiles(rows: int, frames: int) -> list[tuple[slice, slice]]:
    return [
        (slice(r, min(r + TILE[0], rows)), slice(t, min(t + TILE[1], frames)))
        for r in range(0, rows, TILE[0])
        for t in range(0, frames, TILE[1])
    ]


def test_bins_have_one_coordinate_a_cell_and_tiles_one_a_tile():
    proposal, energy = scene()
    bins = Exploration("bin", TILE).draw(proposal, energy, seeded(), 4)
    coarse = Exploration("tile", TILE).draw(proposal, energy, seeded(), 4)
    assert bins.action.shape == bins.mask.shape == coarse.mask.shape == (2, 4, 20, 9)
    assert coarse.action.shape == (2, 4, 3, 3)
    assert (bins.coordinates, coarse.coordinates) == (180, 9)
    assert torch.equal(bins.mask, bins.action)


def test_a_tiles_proposal_is_the_mean_of_its_bins_weighted_by_the_mixtures_energy():
    proposal, energy = scene(dtype=torch.float64)
    policy = Exploration("tile", TILE).policy(proposal, energy)
    expected = [
        (proposal[:, r, t] * energy[:, r, t]).sum((1, 2)) / energy[:, r, t].sum((1, 2))
        for r, t in tiles(20, 9)
    ]
    torch.testing.assert_close(policy.proposal.flatten(1), torch.stack(expected, dim=1))


def test_an_action_at_the_coarse_mode_renders_the_proposal():
    proposal, energy = scene()
    policy = Exploration("tile", TILE).policy(proposal, energy)
    mask = render_tiles(policy.mode.unsqueeze(1), policy, proposal, TILE)
    torch.testing.assert_close(mask[:, 0], proposal, atol=1e-6, rtol=0)


def test_opening_one_tile_opens_its_bins_and_leaves_far_ones_alone():
    proposal, energy = scene(shape=(1, 32, 16))
    policy = Exploration("tile", TILE).policy(proposal, energy)
    action = policy.mode.unsqueeze(1).clone()
    action[0, 0, 0, 0] = 0.99
    changed = render_tiles(action, policy, proposal, TILE)[0, 0] - proposal[0]
    assert (changed[:4, :2] > 0.01).all()
    assert changed[16:, 8:].abs().max() < 1e-5


@pytest.mark.parametrize("form", ["bin", "tile"])
def test_without_emphasis_no_coordinate_is_preferred(form):
    assert Exploration(form, TILE, emphasis=0.0).weight(scene()[1]) is None


@pytest.mark.parametrize("emphasis", [0.25, 1.0])
def test_louder_cells_weigh_more_by_the_power_of_their_relative_energy(emphasis):
    _, energy = scene(dtype=torch.float64)
    relative = energy / energy.mean((1, 2), keepdim=True)
    by_bin = Exploration("bin", TILE, emphasis=emphasis).weight(energy)
    torch.testing.assert_close(by_bin, relative**emphasis)
    by_tile = Exploration("tile", TILE, emphasis=emphasis).weight(energy)
    expected = torch.stack([relative[:, r, t].mean((1, 2)) for r, t in tiles(20, 9)], dim=1)
    torch.testing.assert_close(by_tile.flatten(1), expected**emphasis)
    order = energy.flatten(1).argsort(dim=1)
    assert (by_bin.flatten(1).gather(1, order).diff(dim=1) > 0).all()


@every_form
@settings(deadline=None, max_examples=8)
@given(level_db=st.floats(-100, 60))
def test_the_level_of_the_recording_changes_nothing(how, level_db):
    proposal, energy = scene()
    louder = energy * 10 ** (level_db / 10)
    one, other = (how.draw(proposal, e, seeded(3), 2) for e in (energy, louder))
    torch.testing.assert_close(other.old.proposal, one.old.proposal, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(other.mask, one.mask, atol=1e-4, rtol=1e-3)
    if one.weight is not None:
        torch.testing.assert_close(other.weight, one.weight, atol=1e-5, rtol=1e-4)


@every_form
def test_silence_draws_masks_and_finite_log_probabilities(how):
    proposal, energy = scene()
    proposal = proposal.requires_grad_()
    drawn = how.draw(proposal, energy * 0, seeded(), 2)
    terms = drawn.terms(proposal)
    terms.log_prob.sum().backward()
    assert drawn.mask.isfinite().all()
    assert terms.log_prob.isfinite().all()
    assert proposal.grad.isfinite().all()


@every_form
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_policy_that_drew_gives_exactly_the_old_log_probability(how, dtype):
    proposal, energy = scene()
    proposal = proposal.to(dtype)
    drawn = how.draw(proposal, energy, seeded(), 4)
    assert torch.equal(drawn.terms(proposal).log_prob, drawn.old_log_prob())
    assert torch.equal(drawn.log_prob(drawn.policy(proposal)), drawn.log_prob(drawn.old))
    assert drawn.terms(proposal).kl[0].abs().max() == 0
    assert not torch.equal(drawn.terms(proposal * 0.9).log_prob, drawn.old_log_prob())


@every_form
def test_the_log_probability_is_the_weighted_mean_of_scipys(how):
    proposal, energy = scene(dtype=torch.float64)
    drawn = how.draw(proposal, energy, seeded(), 4, kappa=7.0)
    p = drawn.old.proposal[:, None].numpy()
    density = scipy.stats.beta(1 + 7 * p, 1 + 7 * (1 - p)).logpdf(drawn.action.numpy())
    weight = torch.ones_like(drawn.old.proposal) if drawn.weight is None else drawn.weight
    share = (weight / weight.sum((1, 2), keepdim=True))[:, None].numpy()
    np.testing.assert_allclose(drawn.old_log_prob().numpy(), (density * share).sum((2, 3)), atol=1e-9)
    np.testing.assert_allclose(drawn.log_prob(drawn.old).numpy(), density, atol=1e-9)


@every_form
def test_gradients_reach_the_proposal_and_nothing_else(how):
    proposal, energy = (x.requires_grad_() for x in scene())
    drawn = how.draw(proposal, energy, seeded(), 2)
    assert not any(x.requires_grad for x in (drawn.action, drawn.mask, drawn.old.proposal))
    terms = drawn.terms(proposal, reference=how.policy(proposal * 0.5, energy))
    (terms.log_prob.sum() + terms.entropy.sum() + terms.kl[1].sum()).backward()
    assert (proposal.grad != 0).all()
    assert energy.grad is None


def test_the_gradient_of_a_tiles_log_probability_is_shared_by_its_bins_as_their_energy():
    proposal, energy = scene(dtype=torch.float64)
    proposal = proposal.requires_grad_()
    drawn = Exploration("tile", TILE, "independent", 0.0).draw(proposal, energy, seeded(), 1)
    drawn.terms(proposal).log_prob.sum().backward()
    for (r, t), score in zip(tiles(20, 9), drawn.old.score(drawn.action)[:, 0].flatten(1).T, strict=True):
        share = energy[:, r, t] / energy[:, r, t].sum((1, 2), keepdim=True)
        torch.testing.assert_close(proposal.grad[:, r, t], share * score[:, None, None] / 9)


def test_a_draw_keeps_its_concentration_for_the_policy_that_learns():
    proposal, energy = scene()
    for how in FORMS:
        drawn = how.draw(proposal, energy, seeded(), 2, kappa=5.0)
        assert drawn.old.kappa == drawn.policy(proposal).kappa == 5.0


def test_divergences_are_to_the_snapshot_and_then_to_the_reference():
    proposal, energy = scene()
    how = Exploration("tile", TILE, emphasis=0.0)
    drawn = how.draw(proposal, energy, seeded(), 2)
    moved, fixed = proposal * 0.8, how.policy(proposal * 0.5, energy)
    old, reference = drawn.terms(moved, reference=fixed).kl
    policy = how.policy(moved, energy)
    torch.testing.assert_close(old, policy.kl(drawn.old).mean((1, 2)), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(reference, policy.kl(fixed).mean((1, 2)), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("form", ["bin", "tile"])
def test_antithetic_members_are_mirrored_in_pairs_and_others_are_independent(form):
    proposal, energy = torch.full((1, 64, 64), 0.5), torch.ones(1, 64, 64)

    def correlation(pairing):
        drawn = Exploration(form, (2, 2), pairing).draw(proposal, energy, seeded(1), 4)
        return torch.corrcoef(drawn.action[0].flatten(1))

    mirrored, alone = correlation("antithetic"), correlation("independent")
    limit = 5 / 32  # five standard errors on the coarser grid of 32 x 32
    assert mirrored[0, 1] < -0.5
    assert mirrored[2, 3] < -0.5
    assert mirrored[:2, 2:].abs().max() < limit
    assert (alone - torch.eye(4)).abs().max() < limit


def test_an_odd_group_cannot_be_mirrored():
    with pytest.raises(UsageError):
        Exploration("bin", pairing="antithetic").draw(*scene(), seeded(), 3)


def test_masks_follow_from_the_generator_alone():
    proposal, energy = scene()
    for how in FORMS:
        one = how.draw(proposal, energy, seeded(5), 2).mask
        torch.manual_seed(1)
        assert torch.equal(how.draw(proposal, energy, seeded(5), 2).mask, one)
        assert not torch.equal(how.draw(proposal, energy, seeded(6), 2).mask, one)


# pathwise


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_pathwise_draws_have_the_moments_of_the_beta_and_so_have_their_gradients(p):
    torch.manual_seed(0)
    kappa, count = 9.0, 40_000
    proposal = torch.full((1, 1, count), p, requires_grad=True)
    mask = draw_pathwise(proposal, 1, kappa)
    a, b = 1 + kappa * p, 1 + kappa * (1 - p)
    mean, variance = scipy.stats.beta(a, b).stats("mv")
    assert mask.mean().item() == pytest.approx(mean, abs=5 * (variance / count) ** 0.5)
    assert mask.var().item() == pytest.approx(variance, rel=0.05)  # five standard errors
    (first,) = torch.autograd.grad(mask.sum(), proposal, retain_graph=True)
    (second,) = torch.autograd.grad(mask.square().sum(), proposal)
    assert first.mean().item() == pytest.approx(kappa / (kappa + 2), rel=0.02)  # d mean / dP, about 5 s.e.
    slope = kappa * (2 * a + 1) / ((kappa + 2) * (kappa + 3))  # d/dP of a (a + 1) / ((k + 2) (k + 3))
    assert second.mean().item() == pytest.approx(slope, rel=0.03)


def test_pathwise_masks_stay_inside_and_have_finite_gradients_at_closed_and_open_bins():
    torch.manual_seed(0)
    proposal = torch.tensor([[[0.0, 1.0]]]).expand(2, 50, 2).contiguous().requires_grad_()
    mask = draw_pathwise(proposal, 3)
    assert mask.shape == (2, 3, 50, 2)
    assert mask.min() >= MASK_EPS
    assert mask.max() <= 1 - MASK_EPS
    mask.sum().backward()
    assert proposal.grad.isfinite().all()


def test_pathwise_members_differ_and_repeat_with_the_global_seed():
    proposal = scene()[0]
    torch.manual_seed(7)
    one = draw_pathwise(proposal, 2)
    torch.manual_seed(7)
    assert torch.equal(draw_pathwise(proposal, 2), one)
    assert not torch.equal(one[:, 0], one[:, 1])
