"""Matching of the policy's own samples: errors, DiffusionNFT, AWM and AdvantageFlow against plain arithmetic."""

from __future__ import annotations

import pytest
import torch

from auralign.errors import UsageError
from auralign.flow.path import noise_prior, noisy_mean
from auralign.rl.flow_surrogate import ClipRange
from auralign.rl.forward_process import (
    ForwardUpdate,
    Penalties,
    Velocities,
    advantage_flow,
    awm,
    nft,
    old_policy_decay,
    optimality,
)
from auralign.rl.matching import (
    Noised,
    excess_error,
    matching_error,
    mean_modulus,
    mean_square,
    noise_again,
    real_scalars,
)

ROWS = 5
ADVANTAGE = torch.tensor([1.5, -0.7, 0.0, 4.0, -9.0], dtype=torch.float64)
METHODS = ["nft", "awm", "awm_clipped", "awm_uniform", "advantage_flow"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(seed: int, *, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(ROWS, 2, 3, generator=seeded(seed), dtype=dtype)


def set_up(dtype: torch.dtype = torch.float64) -> tuple[Noised, Velocities]:
    t = torch.linspace(0.1, 0.9, ROWS, dtype=torch.float64)
    noised = noise_again(noise_prior(), normal(0, dtype=dtype), t, generator=seeded(1))
    old = normal(2, dtype=dtype)
    new = (old + 0.1 * normal(3, dtype=dtype)).requires_grad_()
    return noised, Velocities(new, old, old - 0.2, old + 0.1)


def run(
    method: str, noised: Noised, v: Velocities, advantage: torch.Tensor = ADVANTAGE, **more
) -> ForwardUpdate:
    if method == "nft":
        return nft(noised, v, advantage, **more)
    if method == "awm":
        return awm(noised, v, advantage, **more)
    if method == "awm_clipped":
        return awm(noised, v, advantage, clip=ClipRange(0.01, 0.02, "mean"), **more)
    if method == "awm_uniform":
        return awm(noised, v, advantage, weight="uniform", penalties=Penalties(reference=0.3), **more)
    return advantage_flow(noised, v, advantage, reference_weight=0.1, **more)


def with_new(v: Velocities, new: torch.Tensor) -> Velocities:
    return Velocities(new, v.old, v.reference, v.average)


def test_noise_again_is_the_path_and_pairs_share_it():
    path = noisy_mean(normal(7).repeat_interleave(2, 0)[: ROWS * 2])
    x_0 = normal(0).repeat_interleave(2, 0)
    t = torch.linspace(0, 1, ROWS, dtype=torch.float64).repeat_interleave(2)
    noised = noise_again(path, x_0, t, generator=seeded(), shared=2)
    torch.testing.assert_close(noised.x_t, x_0 + t.view(-1, 1, 1) * noised.target)
    assert torch.equal(noised.target[::2], noised.target[1::2])
    assert torch.equal(noised.x_t[0], x_0[0])
    some = noised.take(torch.tensor([3]))
    assert torch.equal(some.x_t[0], noised.x_t[3])
    assert some.valid is None


def test_errors_are_means_over_real_scalars():
    noised, v = set_up()
    v = with_new(v, v.new.detach())
    expected = [float(((v.new - noised.target)[k] ** 2).mean()) for k in range(ROWS)]
    assert matching_error(v.new, noised).tolist() == pytest.approx(expected)
    direct = matching_error(v.new, noised) - matching_error(v.old, noised)
    torch.testing.assert_close(excess_error(v.new, v.old, noised), direct)
    valid = torch.tensor([True, True, False]).expand(ROWS, 1, 3)
    assert mean_square(normal(0), valid).tolist() == pytest.approx(
        normal(0)[:, :, :2].square().mean((1, 2)).tolist()
    )
    assert real_scalars(normal(0), valid).tolist() == [4.0] * ROWS
    assert mean_square(normal(0), torch.zeros(ROWS, 1, 1, dtype=torch.bool)).tolist() == [0.0] * ROWS


def test_a_small_excess_keeps_its_digits_in_single_precision():
    noised, v = set_up(torch.float32)
    close = v.old + 1e-5 * normal(4, dtype=torch.float32)
    wide = Noised(noised.x_0.double(), noised.x_t.double(), noised.t, noised.target.double())
    exact = excess_error(close.double(), v.old.double(), wide)
    ours = (excess_error(close, v.old, noised) - exact).abs().max()
    naive = (matching_error(close, noised) - matching_error(v.old, noised) - exact).abs().max()
    assert 20 * ours < naive


def test_nft_is_the_published_sum_over_two_implicit_policies():
    noised, v = set_up()
    for strength in (1.0, 0.1):
        total = 0.0
        for k in range(ROWS):
            r = min(max(float(ADVANTAGE[k]) / 10 + 0.5, 0), 1)
            old, new, t = v.old[k], v.new[k].detach(), float(noised.t[k])
            for share, velocity in (
                (r, (1 - strength) * old + strength * new),
                (1 - r, (1 + strength) * old - strength * new),
            ):
                miss = noised.x_t[k] - t * velocity - noised.x_0[k]
                total += share * float((miss**2).mean() / miss.abs().mean()) / strength * 5 / ROWS
        base = 1e-4 * float((v.new.detach() - v.reference).square().mean())
        assert nft(noised, v, ADVANTAGE, strength=strength).objective.item() == pytest.approx(-total - base)


def test_the_divisor_of_nft_is_a_constant():
    noised, v = set_up()
    (slope,) = torch.autograd.grad(nft(noised, v, ADVANTAGE, penalties=Penalties()).objective, v.new)
    t, old, new = noised.t.view(-1, 1, 1), v.old, v.new.detach()
    expected = torch.zeros_like(new)
    for share, sign in ((optimality(ADVANTAGE), 1.0), (1 - optimality(ADVANTAGE), -1.0)):
        miss = noised.x_t - t * (old + sign * (new - old)) - noised.x_0
        by_miss = 2 * miss / 6 / miss.abs().mean((1, 2), keepdim=True)
        expected += 5 / ROWS * share.view(-1, 1, 1) * sign * t * by_miss
    torch.testing.assert_close(slope, expected)


def test_nft_moves_towards_good_samples_and_away_from_bad_ones():
    noised, v = set_up()
    new = v.old.clone().requires_grad_()
    found = nft(noised, with_new(v, new), ADVANTAGE, penalties=Penalties())
    (slope,) = torch.autograd.grad(found.objective, new)
    along_target = (slope * (noised.target - v.old)).sum((1, 2))
    assert torch.equal(along_target.sign(), ADVANTAGE.sign())


@pytest.mark.parametrize("weight", ["uniform", "t", "t_squared", "huber", "ghuber"])
def test_awm_is_the_policy_gradient_of_the_matching_error(weight):
    noised, v = set_up()

    def likelihood(velocity: torch.Tensor, k: int) -> float:
        e, t = float((velocity[k] - noised.target[k]).square().mean()), float(noised.t[k])
        return {
            "uniform": -e,
            "t": -t * e,
            "t_squared": -t * t * e,
            "huber": -t * e**0.5,
            "ghuber": -t * e**0.25 / 0.25,
        }[weight]

    gains = [likelihood(v.new.detach(), k) - likelihood(v.old, k) for k in range(ROWS)]
    plain = awm(noised, v, ADVANTAGE, weight=weight, penalties=Penalties())
    expected = sum(float(a) * g for a, g in zip(ADVANTAGE, gains, strict=True)) / ROWS
    assert plain.objective.item() == pytest.approx(expected, rel=1e-6)
    ratios = torch.tensor(gains, dtype=torch.float64).exp()
    held = torch.minimum(ratios * ADVANTAGE, ratios.clamp(0.99, 1.02) * ADVANTAGE)
    clip = ClipRange(0.01, 0.02, "mean")
    clipped = awm(noised, v, ADVANTAGE, weight=weight, clip=clip, penalties=Penalties())
    assert clipped.objective.item() == pytest.approx(held.mean().item(), rel=1e-6)
    assert clipped.clip_share.item() == pytest.approx(
        float((held < ratios * ADVANTAGE - 1e-12).double().mean())
    )


def test_awm_clips_in_nats_by_the_size_of_the_state():
    noised, v = set_up()
    nats = awm(noised, v, ADVANTAGE, weight="uniform", clip=ClipRange(0.06, 0.06), penalties=Penalties())
    gain = -excess_error(v.new, v.old, noised) * 6
    out = ((gain > 0.06) & (ADVANTAGE > 0)) | ((gain < -0.06) & (ADVANTAGE < 0))
    assert nats.clip_share.item() == pytest.approx(out.double().mean().item())


def test_advantage_flow_is_the_sum_of_three_squares_up_to_a_constant():
    noised, v = set_up()

    def data(velocity: torch.Tensor) -> torch.Tensor:
        return noised.x_t - noised.t.view(-1, 1, 1) * velocity

    def three(new: torch.Tensor) -> torch.Tensor:
        a, x = ADVANTAGE.clamp(-1, 1), data(new)
        parts = [(x - other).square().mean((1, 2)) for other in (noised.x_0, data(v.old), data(v.reference))]
        return -(a * parts[0] + (1 - a) * parts[1] + 0.1 * parts[2]).mean()

    (slope,) = torch.autograd.grad(
        advantage_flow(noised, v, ADVANTAGE, reference_weight=0.1).objective, v.new
    )
    (expected,) = torch.autograd.grad(three(v.new), v.new)
    torch.testing.assert_close(slope, expected)


@pytest.mark.parametrize("method", METHODS)
def test_where_nothing_was_learned_yet_the_numbers_say_so(method):
    noised, v = set_up()
    new = v.old.clone().requires_grad_()
    found = run(method, noised, with_new(v, new))
    assert found.moved.item() == 0.0
    assert found.clip_share.item() == 0.0
    assert found.drift.item() == pytest.approx(0.04)
    assert found.error.item() == pytest.approx(matching_error(v.old, noised).mean().item())
    (slope,) = torch.autograd.grad(found.objective, new)
    assert slope.abs().max() > 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_without_advantage_the_gradient_is_exactly_zero(method):
    noised, v = set_up(torch.float32)
    new = v.old.clone().requires_grad_()
    still = Velocities(new, v.old, v.old, v.old)
    (slope,) = torch.autograd.grad(run(method, noised, still, torch.zeros(ROWS)).objective, new)
    assert slope.abs().max() == 0.0


@pytest.mark.parametrize("method", METHODS)
def test_padding_changes_nothing(method):
    noised, v = set_up()
    valid = torch.ones(ROWS, 1, 3, dtype=torch.bool)
    valid[1, :, 1:] = False

    def objective(noise: float) -> ForwardUpdate:
        hidden = noise * ~valid
        dirty = Noised(noised.x_0 + hidden, noised.x_t - hidden, noised.t, noised.target + hidden, valid)
        other = [v.new - hidden, v.old + 2 * hidden, v.reference - 3 * hidden, v.average + hidden]
        return run(method, dirty, Velocities(*other))

    one, other = objective(0.0), objective(5.0)
    for name in ("objective", "error", "moved", "drift", "clip_share"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("method", METHODS)
def test_complex_samples_are_real_ones_of_twice_the_channels(method):
    noised, v = set_up(torch.complex128)

    def parts(z: torch.Tensor) -> torch.Tensor:
        return torch.cat([z.real, z.imag], 1)

    real = Noised(parts(noised.x_0), parts(noised.x_t), noised.t, parts(noised.target))
    same = Velocities(*[parts(z) for z in (v.new, v.old, v.reference, v.average)])
    one, other = run(method, noised, v), run(method, real, same)
    for name in ("objective", "error", "moved", "drift", "clip_share"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name))
    assert mean_modulus(noised.x_0).tolist() == pytest.approx(mean_modulus(real.x_0).tolist())
    assert real_scalars(noised.x_0).tolist() == [12.0] * ROWS


@pytest.mark.parametrize("method", METHODS)
def test_rows_that_left_do_not_count_and_none_at_all_is_zero(method):
    noised, v = set_up()
    kept = torch.tensor([True, False, True, False, True])
    index = kept.nonzero()[:, 0]
    odd = torch.where(kept, ADVANTAGE, torch.nan)
    one = run(method, noised, v, odd, kept=kept)
    fewer = Velocities(*[z[index] for z in (v.new, v.old, v.reference, v.average)])
    other = run(method, noised.take(index), fewer, ADVANTAGE[index])
    torch.testing.assert_close(one.objective, other.objective)
    torch.testing.assert_close(one.error, other.error)
    none = run(method, noised, v, kept=torch.zeros(ROWS, dtype=torch.bool))
    assert none.objective.item() == 0.0
    none.objective.backward()
    assert v.new.grad.abs().max() == 0.0


def test_only_the_current_velocity_has_a_gradient():
    noised, v = set_up()
    rest = [z.clone().requires_grad_() for z in (v.old, v.reference, v.average)]
    for method in METHODS:
        run(method, noised, Velocities(v.new, *rest)).objective.backward()
    assert all(z.grad is None for z in rest)


def test_the_fixed_point_of_nft_moves_a_gaussian_towards_what_is_rewarded():
    """Of N(m, 1) with reward x: minimising over all velocities that are linear in x, the new mean is larger."""
    x_0 = torch.randn(2000, 1, generator=seeded(), dtype=torch.float64)
    t = torch.full((2000,), 0.5, dtype=torch.float64)
    noised = noise_again(noise_prior(), x_0, t, generator=seeded(1))
    old = torch.zeros(2000, 1, dtype=torch.float64)  # E[x₁ − x₀ | x_½] of two unit Gaussians
    shift = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    found = {}
    for sign in (1.0, -1.0, 0.0):
        optimiser = torch.optim.SGD([shift], lr=0.1)
        with torch.no_grad():
            shift.zero_()
        for _ in range(40):
            new = old - shift  # data predicted larger by t · shift
            objective = nft(noised, Velocities(new, old), sign * x_0[:, 0], penalties=Penalties()).objective
            optimiser.zero_grad()
            (-objective).backward()
            optimiser.step()
        found[sign] = shift.item()
    # r = ½ + A / 10, so that E[(2r − 1) (x₀ − x̂₀,old)] / β = 0.2 E[x (x − x_½)] = 0.1 in x₀, at t = ½ 0.2 in v
    assert found[1.0] == pytest.approx(0.2, rel=0.15)  # 2000 draws, and the divisors differ a little
    assert found[-1.0] == pytest.approx(-found[1.0], rel=0.1)
    assert abs(found[0.0]) < 0.02


def test_optimality_and_old_policy_schedules_are_the_published_ones():
    assert optimality(torch.tensor([5.0, -5.0, 1.0])).tolist() == pytest.approx([1.0, 0.0, 0.6])
    assert [old_policy_decay(n, "on_policy") for n in (0, 999)] == [0.0, 0.0]
    assert [old_policy_decay(n) for n in (0, 100, 9999)] == [0.0, 0.1, 0.5]
    assert [old_policy_decay(n, "late_ramp") for n in (0, 75, 95, 9999)] == [0.0, 0.0, 0.15, 0.999]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda n, v: nft(n, Velocities(v.new, v.old), ADVANTAGE), "reference"),
        (lambda n, v: awm(n, Velocities(v.new, v.old), ADVANTAGE), "average"),
        (lambda n, v: advantage_flow(n, Velocities(v.new, v.old), ADVANTAGE), "no velocity"),
        (lambda n, v: nft(n, v, ADVANTAGE, strength=0.0), "strength"),
    ],
)
def test_what_is_missing_is_named(call, words):
    with pytest.raises(UsageError, match=words):
        call(*set_up())
