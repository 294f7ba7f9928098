from __future__ import annotations

import itertools
import math

import pytest
import torch

from auralign.algorithms.mixit_loss import (
    assignments,
    energy_weights,
    mixit,
    mixpit,
    mixture_consistency,
    permutations,
    thresholded_snr_loss,
)
from auralign.errors import UsageError

LOSSES = ("snr", "si_sdr", "l2")


def _noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _loss(name: str, x: torch.Tensor, estimate: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    """The definitions, for one pair of waveforms, written without a look at the code."""
    error = ((x - estimate) ** 2).sum()
    if name == "l2":
        return error / len(x)
    if not x.any():
        return 10 * torch.log10((error + 0.01 * (total**2).sum()) / (total**2).sum())
    if name == "snr":
        return 10 * torch.log10((error + 0.001 * (x**2).sum()) / (x**2).sum())
    power = (estimate**2).sum()
    cosine = (x @ estimate) ** 2 / ((x**2).sum() * power) if power > 0 else torch.zeros(())
    return 10 * torch.log10((1 - cosine + 0.001) / (cosine + 0.001))


def _loop(name, estimates, mixtures, choices):
    """Every assignment in the time domain, one after the other."""
    losses, picks = [], []
    for outputs, xs in zip(estimates, mixtures, strict=True):
        best = None
        for choice in choices:
            value = torch.zeros(())
            for n, x in enumerate(xs):
                parts = [outputs[m] for m in range(len(outputs)) if choice[m] == n]
                mixed = torch.stack(parts).sum(dim=0) if parts else torch.zeros_like(x)
                value = value + _loss(name, x, mixed, xs.sum(dim=0))
            if best is None or value.detach() < best[0].detach():
                best = (value, choice)
        losses.append(best[0])
        picks.append(list(best[1]))
    return torch.stack(losses), torch.tensor(picks)


def _scene(n_mixtures: int, n_outputs: int, batch: int = 2, time: int = 60) -> tuple:
    """Outputs that are noisy, and mixtures that each output leans to one of."""
    sources = _noise(batch, n_outputs, time, seed=1)
    owner = torch.randint(n_mixtures, (batch, n_outputs), generator=torch.Generator().manual_seed(2))
    one_hot = torch.nn.functional.one_hot(owner, n_mixtures).float()
    mixtures = one_hot.mT @ sources + 0.1 * _noise(batch, n_mixtures, time, seed=3)
    return sources + 0.7 * _noise(batch, n_outputs, time, seed=4), mixtures


@pytest.mark.parametrize(
    ("n_mixtures", "n_outputs", "count"), [(2, 2, 4), (2, 4, 16), (2, 6, 64), (2, 8, 256), (3, 6, 729)]
)
def test_there_are_as_many_assignments_as_published_and_each_output_has_one_mixture(
    n_mixtures, n_outputs, count
):
    matrices = assignments(n_mixtures, n_outputs)
    assert matrices.shape == (count, n_mixtures, n_outputs)
    assert (matrices.sum(dim=1) == 1).all()
    listed = matrices.long().argmax(dim=1).tolist()
    assert [tuple(row) for row in listed] == list(itertools.product(range(n_mixtures), repeat=n_outputs))


def test_permutation_matrices_have_one_entry_in_every_row_and_column():
    matrices = permutations(4)
    assert matrices.shape == (24, 4, 4)
    assert (matrices.sum(dim=1) == 1).all()
    assert (matrices.sum(dim=2) == 1).all()
    assert len({tuple(m.flatten().tolist()) for m in matrices}) == 24


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("n_mixtures", "n_outputs"), [(2, 2), (2, 4), (2, 6), (3, 4), (3, 2), (1, 3)])
def test_search_and_gradient_equal_the_loop_over_all_assignments(name, n_mixtures, n_outputs):
    estimates, mixtures = _scene(n_mixtures, n_outputs)
    ours, theirs = estimates.clone().requires_grad_(), estimates.clone().requires_grad_()
    loss, assignment = mixit(ours, mixtures, loss=name)
    expected, choice = _loop(
        name, theirs, mixtures, list(itertools.product(range(n_mixtures), repeat=n_outputs))
    )
    assert torch.equal(assignment, choice)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    (loss * torch.tensor([1.0, 3.0])).sum().backward()
    (expected * torch.tensor([1.0, 3.0])).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_search_over_256_and_729_assignments_equals_the_loop():
    for n_mixtures, n_outputs in ((2, 8), (3, 6)):
        estimates, mixtures = _scene(n_mixtures, n_outputs, batch=1, time=40)
        choices = list(itertools.product(range(n_mixtures), repeat=n_outputs))
        expected, choice = _loop("snr", estimates, mixtures, choices)
        loss, assignment = mixit(estimates, mixtures)
        assert torch.equal(assignment, choice)
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_mixpit_equals_the_loop_over_permutations(name):
    estimates, mixtures = _scene(3, 3)
    expected, choice = _loop(name, estimates, mixtures, list(itertools.permutations(range(3))))
    loss, assignment = mixpit(estimates, mixtures, loss=name)
    assert torch.equal(assignment, choice)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)


def test_mixpit_is_never_below_mixit_and_equal_where_mixit_chose_a_permutation():
    estimates, mixtures = _noise(40, 2, 30, seed=5), _noise(40, 2, 30, seed=6)
    free, choice = mixit(estimates, mixtures)
    bound, permutation = mixpit(estimates, mixtures)
    one_each = choice.sum(dim=1) == 1
    assert one_each.any()
    assert not one_each.all()
    assert torch.equal(free[one_each], bound[one_each])
    assert torch.equal(choice[one_each], permutation[one_each])
    assert (bound[~one_each] > free[~one_each]).all()


def test_permuting_the_outputs_permutes_the_assignment_and_leaves_the_loss():
    estimates, mixtures = _scene(2, 4, batch=6)
    order = torch.tensor([2, 0, 3, 1])
    loss, assignment = mixit(estimates, mixtures)
    again, permuted = mixit(estimates[:, order], mixtures)
    assert torch.equal(permuted, assignment[:, order])
    torch.testing.assert_close(again, loss, rtol=1e-6, atol=1e-5)


def test_permuting_the_mixtures_renames_the_assignment():
    estimates, mixtures = _scene(2, 4, batch=6)
    loss, assignment = mixit(estimates, mixtures)
    again, renamed = mixit(estimates, mixtures.flip(1))
    assert torch.equal(renamed, 1 - assignment)
    torch.testing.assert_close(again, loss, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("snr_max_db", [20.0, 30.0])
def test_perfect_estimates_reach_the_ceiling_for_every_mixture(snr_max_db):
    sources = _noise(3, 4, 500)
    mixtures = torch.stack([sources[:, 0] + sources[:, 3], sources[:, 1] + sources[:, 2]], dim=1)
    loss, assignment = mixit(sources, mixtures, snr_max_db=snr_max_db)
    torch.testing.assert_close(loss, torch.full((3,), -2 * snr_max_db))
    assert assignment.tolist() == [[0, 1, 1, 0]] * 3


def test_the_winner_is_scored_in_the_time_domain_where_products_would_cancel():
    clean = 1000 * _noise(1, 2, 4000)
    estimates = clean + 1e-3 * _noise(1, 2, 4000, seed=1)
    loss, _ = mixit(estimates, clean, snr_max_db=200.0)
    exact = [
        10 * math.log10(float(e.sub(x).double().square().sum() / x.double().square().sum()))
        for e, x in zip(estimates[0], clean[0], strict=True)
    ]
    assert float(loss) == pytest.approx(sum(exact), abs=1e-3)
    assert float(loss) < -238


def test_silent_mixture_takes_the_outputs_that_are_silent_and_scores_its_own_ceiling():
    sources = _noise(1, 2, 300)
    estimates = torch.cat([sources, torch.zeros(1, 1, 300)], dim=1)
    mixtures = torch.stack([torch.zeros(1, 300), sources.sum(dim=1)], dim=1)
    loss, assignment = mixit(estimates, mixtures)
    assert assignment[0, :2].tolist() == [1, 1]
    assert float(loss) == pytest.approx(-30 - 20, abs=1e-4)


def test_estimate_of_a_silent_reference_is_measured_against_the_mixture():
    mixture = _noise(1000)
    loss = thresholded_snr_loss(0.5 * mixture, torch.zeros(1000), mixture)
    assert float(loss) == pytest.approx(10 * math.log10(0.25 + 0.01), abs=1e-5)


def test_ratio_losses_do_not_depend_on_the_level_and_l2_does():
    estimates, mixtures = _scene(2, 3)
    for name in ("snr", "si_sdr"):
        torch.testing.assert_close(
            mixit(0.01 * estimates, 0.01 * mixtures, loss=name)[0], mixit(estimates, mixtures, loss=name)[0]
        )
    quiet, loud = (
        mixit(0.5 * estimates, 0.5 * mixtures, loss="l2")[0],
        mixit(estimates, mixtures, loss="l2")[0],
    )
    torch.testing.assert_close(4 * quiet, loud)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("silent", ["estimates", "mixtures", "both"])
def test_silence_anywhere_gives_finite_losses_and_gradients(name, silent):
    estimates, mixtures = _scene(2, 3)
    estimates = estimates * (silent == "mixtures")
    mixtures = mixtures * (silent == "estimates")
    estimates.requires_grad_()
    loss, _ = mixit(estimates, mixtures, loss=name)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(estimates.grad).all()


def test_silent_estimate_is_the_worst_for_si_sdr_not_zero_db():
    mixtures = _noise(1, 2, 200)
    loss, _ = mixit(torch.zeros(1, 2, 200), mixtures, loss="si_sdr")
    assert float(loss) == pytest.approx(2 * 10 * math.log10(1.001 / 0.001), abs=1e-4)


def test_gradient_is_the_slope_of_the_loss():
    estimates, mixtures = _scene(2, 3, batch=1, time=12)
    estimates.requires_grad_()
    mixit(estimates, mixtures)[0].sum().backward()
    direction = _noise(1, 3, 12, seed=9)
    step = 1e-2
    ahead, behind = (mixit(estimates.detach() + s * direction, mixtures)[0] for s in (step, -step))
    slope = float((ahead - behind) / (2 * step))
    assert float((estimates.grad * direction).sum()) == pytest.approx(slope, rel=1e-2)


def test_chunks_of_any_size_give_the_same_search():
    estimates, mixtures = _scene(2, 5)
    expected = mixit(estimates, mixtures)
    for chunk in (1, 3, 31, 32):
        loss, assignment = mixit(estimates, mixtures, chunk=chunk)
        assert torch.equal(assignment, expected[1])
        assert torch.equal(loss, expected[0])


def test_reduced_precision_estimates_are_scored_in_float32():
    estimates, mixtures = _scene(2, 4)
    half = estimates.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, assignment = mixit(half, mixtures)
    expected, choice = mixit(half.float(), mixtures)
    assert loss.dtype == torch.float32
    assert torch.equal(assignment, choice)
    assert torch.equal(loss, expected)


def test_what_cannot_be_searched_is_refused_with_the_numbers():
    with pytest.raises(UsageError, match=r"20 outputs in 2 mixtures.*1,000,000"):
        mixit(_noise(1, 20, 4), _noise(1, 2, 4))
    with pytest.raises(UsageError, match="permutations of 10 outputs"):
        mixpit(_noise(1, 10, 4), _noise(1, 10, 4))
    with pytest.raises(UsageError, match="chunk is 0"):
        mixit(_noise(1, 2, 4), _noise(1, 2, 4), chunk=0)


@pytest.mark.parametrize("weighted", [False, True])
def test_consistent_outputs_sum_to_the_mixture_and_a_second_projection_changes_nothing(weighted):
    estimates, mixture = _noise(3, 4, 50), _noise(3, 50, seed=1)
    weights = energy_weights(estimates) if weighted else None
    once = mixture_consistency(estimates, mixture, weights)
    torch.testing.assert_close(once.sum(dim=1), mixture, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mixture_consistency(once, mixture, weights), once, rtol=1e-5, atol=1e-5)


def test_uniform_consistency_is_the_least_squares_projection():
    estimates, mixture = _noise(1, 3, 1).double(), torch.tensor([[2.0]]).double()
    # minimise |y - s|^2 subject to sum(y) = x by the system of Lagrange: y + lambda = s, 1'y = x
    system = torch.tensor([[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 1, 1], [1, 1, 1, 0]]).double()
    exact = torch.linalg.solve(system, torch.cat([estimates[0, :, 0], mixture[0]]))[:3]
    torch.testing.assert_close(mixture_consistency(estimates, mixture)[0, :, 0], exact)


def test_energy_weights_leave_silent_outputs_silent_and_all_silent_share_equally():
    estimates = torch.stack([_noise(20), torch.zeros(20)])[None]
    mixture = _noise(1, 20, seed=1)
    out = mixture_consistency(estimates, mixture, energy_weights(estimates))
    assert not out[0, 1].any()
    nothing = torch.zeros(1, 2, 20)
    shared = mixture_consistency(nothing, mixture, energy_weights(nothing))
    torch.testing.assert_close(shared, mixture[:, None].expand(1, 2, 20) / 2)
