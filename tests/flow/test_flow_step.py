"""One stochastic step as a Gaussian policy: densities, divergences, refusals, complex against real."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from auralign.errors import UsageError
from auralign.flow.gaussian_step import GaussianStep
from auralign.flow.path import StraightPath, noise_prior, noisy_mean
from auralign.flow.sde import CPS, DanceSDE, FlowPolicy, FlowSDE, NoiseLaw

LAWS: list[NoiseLaw] = [FlowSDE(0.4), DanceSDE(0.3), CPS(0.8)]
T, T_NEXT = torch.tensor([0.9, 0.5, 0.2]).double(), torch.tensor([0.7, 0.4, 0.15]).double()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(seed: int, dtype=torch.float64, shape=(3, 4, 5)):
    return torch.randn(shape, dtype=dtype, generator=seeded(seed))


def some_step(seed: int = 0, law: NoiseLaw = LAWS[0], dtype=torch.float64, valid=None) -> GaussianStep:
    """Steps of the same states under velocities that the seed decides."""
    return FlowPolicy(law, noise_prior(), valid).step(drawn(100, dtype), drawn(seed, dtype), T, T_NEXT)


def test_flow_sde_is_the_printed_equation():
    x, v, a = drawn(0), drawn(1), 0.7
    t, t_next = T.view(3, 1, 1), T_NEXT.view(3, 1, 1)
    sigma, delta = a * (t / (1 - t)).sqrt(), t_next - t
    mean = x * (1 + sigma**2 / (2 * t) * delta) + v * (1 + sigma**2 * (1 - t) / (2 * t)) * delta
    step = FlowPolicy(FlowSDE(a), noise_prior()).step(x, v, T, T_NEXT)
    torch.testing.assert_close(step.mean, mean)
    torch.testing.assert_close(step.std, (sigma * (-delta).sqrt()).flatten())


def test_data_direction_is_the_same_equation():
    """σ = a √((1 − t) / t), mean x + [v + σ² (t v − x) / (2 (1 − t))] dt with v = data − noise (FlowSE-GRPO)."""
    x, v, a = drawn(0), drawn(1), 0.4
    t, dt = (1 - T).view(3, 1, 1), (T - T_NEXT).view(3, 1, 1)
    sigma = a * ((1 - t) / t).sqrt()
    mean = x + (v + sigma**2 / (2 * (1 - t)) * (t * v - x)) * dt
    step = FlowPolicy(FlowSDE(a), noise_prior()).step(x, -v, T, T_NEXT)
    torch.testing.assert_close(step.mean, mean)
    torch.testing.assert_close(step.std, (sigma * dt.sqrt()).flatten())


def test_dance_sde_is_the_printed_equation():
    x, v, eta = drawn(0), drawn(1), 0.3
    t, delta = T.view(3, 1, 1), (T_NEXT - T).view(3, 1, 1)
    score = -(x - (1 - t) * (x - t * v)) / t**2
    step = FlowPolicy(DanceSDE(eta), noise_prior()).step(x, v, T, T_NEXT)
    torch.testing.assert_close(step.mean, x + v * delta - eta**2 * score * delta / 2)
    torch.testing.assert_close(step.std, eta * (T - T_NEXT).sqrt())


def test_cps_is_the_printed_equation():
    x, v, eta = drawn(0), drawn(1), 0.8
    t, t_next = T.view(3, 1, 1), T_NEXT.view(3, 1, 1)
    std = t_next * math.sin(eta * math.pi / 2)
    mean = (1 - t_next) * (x - t * v) + (t_next**2 - std**2).sqrt() * (x + (1 - t) * v)
    step = FlowPolicy(CPS(eta), noise_prior()).step(x, v, T, T_NEXT)
    torch.testing.assert_close(step.mean, mean)
    torch.testing.assert_close(step.std, std.flatten())


def test_noisy_mean_step_is_the_printed_equation():
    """x' = x + [v + s² / (2t) (x − y + (1 − t) v)] Δ + s σ_max √−Δ ξ (flowmse in x-space)."""
    x, v, y = drawn(0, torch.complex128), drawn(1, torch.complex128), drawn(2, torch.complex128)
    t, delta = T.view(3, 1, 1), (T_NEXT - T).view(3, 1, 1)
    s = 0.4 * (t / (1 - t)).sqrt()
    step = FlowPolicy(FlowSDE(0.4), noisy_mean(y)).step(x, v, T, T_NEXT)
    torch.testing.assert_close(step.mean, x + (v + s**2 / (2 * t) * (x - y + (1 - t) * v)) * delta)
    torch.testing.assert_close(step.std, (s * 0.487 * (-delta).sqrt()).flatten())


@pytest.mark.parametrize("law", LAWS)
def test_density_entropy_and_divergence_agree_with_torch_distributions(law):
    step, other = some_step(0, law), some_step(1, law)
    action = step.sample(generator=seeded(2))
    std = step.std.view(3, 1, 1).expand(3, 4, 5)
    ours, theirs = (Independent(Normal(s.mean, std), 2) for s in (step, other))
    assert step.scalars.tolist() == [20.0] * 3
    torch.testing.assert_close(step.log_prob(action) * 20, ours.log_prob(action))
    torch.testing.assert_close(step.entropy() * 20, ours.entropy())
    torch.testing.assert_close(step.kl(other) * 20, kl_divergence(ours, theirs))
    wide = GaussianStep(other.mean, other.std * 1.7)
    torch.testing.assert_close(
        step.kl(wide) * 20, kl_divergence(ours, Independent(Normal(other.mean, std * 1.7), 2))
    )
    torch.testing.assert_close(
        step.log_ratio(other, action) * 20, ours.log_prob(action) - theirs.log_prob(action)
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_divergence_is_the_mean_log_ratio_of_draws(dtype):
    shape, n = (2, 3), 100_000
    near, far = (
        GaussianStep(0.4 * drawn(seed, dtype, shape), torch.tensor([0.3, 0.8]).double()) for seed in (0, 1)
    )
    many = torch.arange(2).repeat_interleave(n)
    action = near.at(many).sample(generator=seeded(2))
    ratio = near.at(many).log_prob(action) - far.at(many).log_prob(action)
    found, spread = ratio.view(2, n).mean(1), ratio.view(2, n).std(1)
    assert bool(((found - near.kl(far)).abs() < 4 * spread / math.sqrt(n)).all())


def test_divergence_is_the_printed_form_in_velocities():
    """KL = (|Δ| / 2) (1 / σ + σ (1 − t) / (2t))² |v − v_ref|² for Flow-SDE; 0 for equal policies."""
    sigma = 0.4 * (T / (1 - T)).sqrt()
    factor = (T - T_NEXT) / 2 * (1 / sigma + sigma * (1 - T) / (2 * T)) ** 2
    square = (drawn(0) - drawn(1)).square().flatten(1).mean(1)
    torch.testing.assert_close(some_step(0).kl(some_step(1)), factor * square)
    assert some_step(0).kl(some_step(0)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("law", LAWS)
def test_complex_data_equals_real_data_of_twice_the_channels(law):
    def parts(z):
        return torch.cat([z.real, z.imag], 1)

    x, v, y, v_other = (drawn(seed, torch.complex128) for seed in range(4))
    valid = torch.rand(3, 1, 5, generator=seeded(4)) > 0.4
    whole = FlowPolicy(law, noisy_mean(y), valid)
    split = FlowPolicy(law, StraightPath(parts(y), 0.487 / math.sqrt(2)), valid)
    ours, theirs = whole.step(x, v, T, T_NEXT), split.step(parts(x), parts(v), T, T_NEXT)
    other, others = whole.step(x, v_other, T, T_NEXT), split.step(parts(x), parts(v_other), T, T_NEXT)
    action = ours.sample(generator=seeded(5))
    torch.testing.assert_close(parts(ours.mean), theirs.mean)
    torch.testing.assert_close(ours.scalars, theirs.scalars)
    torch.testing.assert_close(ours.log_prob(action), theirs.log_prob(parts(action)))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    torch.testing.assert_close(ours.kl(other), theirs.kl(others))
    torch.testing.assert_close(ours.log_ratio(other, action), theirs.log_ratio(others, parts(action)))


def test_complex_density_is_the_printed_one():
    """Sum of −|x' − μ|² / s² − ln(π s²) over complex bins."""
    step = some_step(0, dtype=torch.complex128)
    action, s = step.sample(generator=seeded(1)), step.std.view(3, 1, 1)
    wanted = (-((action - step.mean).abs() ** 2) / s**2 - (math.pi * s**2).log()).flatten(1).sum(1)
    assert step.scalars.tolist() == [40.0] * 3
    torch.testing.assert_close(step.log_prob(action) * 40, wanted)


def test_draws_have_the_mean_and_the_spread():
    step = GaussianStep(torch.full((1, 200_000), 2 - 1j, dtype=torch.complex64), torch.tensor([0.5]))
    sample = step.sample(generator=seeded())
    assert sample.mean().item() == pytest.approx(2 - 1j, abs=0.01)
    assert (sample - step.mean).abs().square().mean().item() == pytest.approx(0.25, rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_invalid_scalars_do_not_count(dtype):
    valid = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0]]).bool().unsqueeze(1)
    step, other = some_step(0, dtype=dtype, valid=valid), some_step(1, dtype=dtype, valid=valid)
    action = step.sample(generator=seeded(2))
    action[1, :, 3:] = float("nan")
    short = GaussianStep(step.mean[1:2, :, :3], step.std[1:2])
    short_other = GaussianStep(other.mean[1:2, :, :3], step.std[1:2])
    torch.testing.assert_close(step.log_prob(action)[1:2], short.log_prob(action[1:2, :, :3]))
    torch.testing.assert_close(step.kl(other)[1:2], short.kl(short_other))
    torch.testing.assert_close(
        step.log_ratio(other, action)[1:2], short.log_ratio(short_other, action[1:2, :, :3])
    )
    assert step.kl(other)[2] == 0
    each = 2 if dtype.is_complex else 1
    assert step.scalars.tolist() == [20 * each, 12 * each, 0]


def test_zero_noise_is_the_euler_step_exactly():
    x, v = drawn(0, torch.float32), drawn(1, torch.float32)
    t, t_next = torch.tensor([1.0, 0.5, 0.1]), torch.tensor([0.9, 0.4, 0.0])
    euler = x + v * (t_next - t).view(3, 1, 1)
    for law in (FlowSDE(0.0), DanceSDE(0.0), CPS(0.0)):
        step = FlowPolicy(law, noise_prior()).step(x, v, t, t_next)
        assert torch.equal(step.sample(generator=seeded()), euler)
    for law in (FlowSDE(0.7), DanceSDE(0.7), CPS(0.7)):
        noisy = torch.tensor([False, True, False])
        step = FlowPolicy(law, noise_prior()).step(x, v, t, t_next, noisy=noisy)
        assert torch.equal(step.sample(generator=seeded())[~noisy], euler[~noisy])
        assert not torch.equal(step.mean[1], euler[1])


def test_log_ratio_keeps_its_digits_where_the_difference_of_densities_loses_them():
    shape = (1, 200_000)
    base, moved = drawn(0, torch.float64, shape), drawn(1, torch.float64, shape) * 1e-6
    std = torch.tensor([0.1]).double()
    action = GaussianStep(base, std).sample(generator=seeded(2))

    def single(mean):
        return GaussianStep(mean.float(), std.float())

    new, old = single(base + moved), single(base)
    exact = GaussianStep(new.mean.double(), std).log_ratio(
        GaussianStep(old.mean.double(), std), action.float().double()
    )
    nats = 200_000
    precise = (new.log_ratio(old, action.float()) - exact).abs().item() * nats
    naive = (new.log_prob(action.float()) - old.log_prob(action.float()) - exact).abs().item() * nats
    assert precise < 1e-4
    assert naive > 10 * precise


def test_gradients_flow_into_the_mean_only():
    v = drawn(0).requires_grad_()
    step = FlowPolicy(LAWS[0], noise_prior()).step(drawn(100), v, T, T_NEXT)
    action = drawn(1).requires_grad_()
    old = some_step(1)
    (step.log_prob(action) + step.kl(old) + step.log_ratio(old, action)).sum().backward()
    assert action.grad is None
    assert bool((v.grad != 0).all())


def test_gradient_of_the_density_agrees_with_finite_differences():
    action, old = drawn(1), some_step(1)

    def value(v):
        step = FlowPolicy(LAWS[0], noise_prior()).step(drawn(100), v, T, T_NEXT)
        return step.log_prob(action), step.kl(old), step.log_ratio(old, action)

    assert torch.autograd.gradcheck(value, drawn(0).requires_grad_())


@pytest.mark.parametrize("start", [1.0, 1.0 - 2**-24])
def test_flow_sde_refuses_a_stochastic_step_from_the_prior(start):
    x, t, t_next = torch.ones(2, 3), torch.tensor([start, 0.5]), torch.tensor([0.9, 0.4])
    policy = FlowPolicy(FlowSDE(0.7), noise_prior())
    with pytest.raises(
        UsageError, match=r"starts at t = 1 cannot be stochastic.*data direction this is t = 0.*step 1"
    ):
        policy.step(x, x, t, t_next)
    policy.step(x, x, t, t_next, noisy=torch.tensor([False, True]))
    guarded = FlowPolicy(FlowSDE(0.7, "guard"), noise_prior()).step(x, x, t, t_next)
    assert guarded.std[0].item() == pytest.approx(0.7, rel=1e-5)
    for law in (DanceSDE(0.3), CPS(0.8)):
        assert bool(FlowPolicy(law, noise_prior()).step(x, x, t, t_next).mean.isfinite().all())


@pytest.mark.parametrize(("t", "t_next"), [(0.0, 0.1), (0.5, 0.5), (0.0, 0.0), (1.1, 0.5), (0.5, -0.1)])
def test_steps_outside_the_flow_are_refused(t, t_next):
    x = torch.ones(1, 2)
    with pytest.raises(UsageError, match="no step starts there"):
        FlowPolicy(DanceSDE(), noise_prior()).step(x, x, torch.tensor([t]), torch.tensor([t_next]))


def test_a_step_without_noise_has_no_density():
    step = FlowPolicy(CPS(), noise_prior()).step(
        torch.ones(1, 2), torch.ones(1, 2), T[2:].float(), torch.zeros(1)
    )
    for call in (lambda: step.log_prob(step.mean), lambda: step.kl(step), step.entropy):
        with pytest.raises(UsageError, match="no density"):
            call()
    with pytest.raises(UsageError, match="different spreads"):
        some_step().log_ratio(GaussianStep(drawn(0), torch.ones(3).double()), drawn(1))


@pytest.mark.parametrize("law", [FlowSDE, DanceSDE, CPS])
@pytest.mark.parametrize("level", [-0.1, float("nan"), float("inf")])
def test_levels_without_a_meaning_are_refused(law, level):
    with pytest.raises(UsageError, match="noise level"):
        law(level)


def test_cps_ends_at_one():
    with pytest.raises(UsageError, match="0 to 1"):
        CPS(1.01)
