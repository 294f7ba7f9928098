"""Trust regions of flow steps: each objective against plain arithmetic, and what holds before the first update."""

from __future__ import annotations

import math

import pytest
import torch

from auralign.errors import UsageError
from auralign.flow.gaussian_step import GaussianStep
from auralign.flow.path import noise_prior, noisy_mean
from auralign.flow.rollout import Transitions, rollout
from auralign.flow.schedule import uniform
from auralign.flow.sde import DanceSDE, FlowPolicy, FlowSDE
from auralign.flow.window import Window
from auralign.rl.flow_steps import FlowStepRatios, by_step, kl_to_reference, step_ratios
from auralign.rl.flow_surrogate import ClipRange, TrustRegion, surrogate

KINDS = ["flow_grpo", "guard", "dppo", "gspo"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_steps(rows: int = 12, per_item: int = 2, *, spread: float = 0.02) -> FlowStepRatios:
    """Rows of any kind, in double precision."""

    def normal(seed: int) -> torch.Tensor:
        return torch.randn(rows, generator=seeded(seed), dtype=torch.float64)

    item = torch.arange(rows) // per_item
    return FlowStepRatios(
        log_ratio=spread * normal(0),
        kl_old=(spread * normal(1)).square(),
        scalars=torch.full((rows,), 64.0, dtype=torch.float64),
        std=0.1 + normal(2).abs(),
        duration=0.05 + 0.1 * normal(3).abs(),
        advantage=normal(4)[item],
        item=item,
        kept=torch.ones(rows, dtype=torch.bool),
    )


def changed(steps: FlowStepRatios, **fields: torch.Tensor) -> FlowStepRatios:
    return FlowStepRatios(**{**vars(steps), **fields})


def drawn(*, complex_states: bool = False, seed: int = 0) -> tuple[FlowPolicy, Transitions, torch.Tensor]:
    """Steps of a small linear flow, and its parameter."""
    gain = torch.tensor(0.3, requires_grad=True)
    dtype = torch.complex64 if complex_states else torch.float32
    like = torch.zeros(6, 2, 5, dtype=dtype)
    center = torch.randn(like.shape, dtype=dtype, generator=seeded(8))
    policy = FlowPolicy(FlowSDE(0.4), noisy_mean(center))
    plan = Window(2, 1, 3).draw(6, groups=3, members=2, generator=seeded(2))
    start = policy.path.draw(like, generator=seeded(seed))
    done = rollout(lambda x, t: gain * x, start, uniform(6), policy, plan, generator=seeded(seed + 1))
    return policy, done.transitions, gain


def again(policy: FlowPolicy, rows: Transitions, gain: torch.Tensor) -> GaussianStep:
    return policy.at(rows.item).step(rows.state, gain * rows.state, rows.t, rows.t_next)


ADVANTAGE = torch.tensor([1.0, -1.0, 0.5, -0.5, 2.0, -2.0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("complex_states", [False, True])
def test_before_the_first_update_the_ratio_is_1_and_the_gradient_is_advantage_times_score(
    kind, complex_states
):
    policy, rows, gain = drawn(complex_states=complex_states)
    new = again(policy, rows, gain)
    steps = step_ratios(new, rows, ADVANTAGE)
    found = surrogate(steps, TrustRegion(kind))
    assert found.ratio_mean.item() == pytest.approx(1.0, abs=1e-6)
    assert found.clip_share.item() == 0.0
    assert found.kl_old.item() == 0.0
    assert found.kl_old_nats.item() == 0.0
    (slope,) = torch.autograd.grad(found.objective, gain)
    weight = ADVANTAGE[rows.item]
    if kind == "guard":
        each = 2 if complex_states else 1
        weight = weight * rows.std / each**0.5 / (rows.t - rows.t_next)
    (expected,) = torch.autograd.grad((weight * again(policy, rows, gain).log_prob(rows.action)).mean(), gain)
    torch.testing.assert_close(slope, expected, rtol=1e-3, atol=1e-6)
    assert slope.abs() > 1e-3


@pytest.mark.parametrize("unit", ["nats", "mean"])
def test_flow_grpo_is_the_clipped_ratio_of_every_step(unit):
    steps = some_steps(spread=0.1)
    clip = ClipRange(2.0, 3.0, "nats") if unit == "nats" else ClipRange(0.02, 0.03, "mean")
    low, high = (math.exp(-2 / 64), math.exp(3 / 64)) if unit == "nats" else (0.98, 1.03)
    total, stopped, above = 0.0, 0, 0
    for log_ratio, a in zip(steps.log_ratio.tolist(), steps.advantage.tolist(), strict=True):
        ratio = math.exp(log_ratio)
        total += min(ratio * a, min(max(ratio, low), high) * a)
        stopped += (a > 0 and ratio > high) or (a < 0 and ratio < low)
        above += a > 0 and ratio > high
    found = surrogate(steps, TrustRegion("flow_grpo", clip))
    assert found.objective.item() == pytest.approx(total / 12)
    assert found.clip_share.item() == pytest.approx(stopped / 12)
    assert found.clip_above.item() == pytest.approx(above / 12)
    assert 0 < above < stopped
    assert found.clipped.sum().item() == stopped
    assert found.kl_old_nats.item() == pytest.approx(64 * steps.kl_old.mean().item())


@pytest.mark.parametrize("unit", ["nats", "mean"])
def test_guard_is_the_centred_ratio_in_units_of_the_spread(unit):
    steps = some_steps(spread=0.1)
    clip = ClipRange(2.0, 2.0, "nats") if unit == "nats" else ClipRange(0.02, 0.02, "mean")
    total, stopped = 0.0, 0
    for k in range(12):
        s, a = steps.std[k].item(), steps.advantage[k].item()
        ratio = math.exp((steps.log_ratio[k].item() + steps.kl_old[k].item()) * s)
        low, high = (math.exp(-2 * 0.4 / 64), math.exp(2 * 0.4 / 64)) if unit == "nats" else (0.98, 1.02)
        total += min(ratio * a, min(max(ratio, low), high) * a) / steps.duration[k].item()
        stopped += (a > 0 and ratio > high) or (a < 0 and ratio < low)
    found = surrogate(steps, TrustRegion("guard", clip, typical_std=0.4))
    assert found.objective.item() == pytest.approx(total / 12)
    assert found.clip_share.item() == pytest.approx(stopped / 12)
    own = surrogate(steps, TrustRegion("guard", clip)).objective
    same = surrogate(steps, TrustRegion("guard", clip, typical_std=steps.std.mean().item())).objective
    assert own.item() == pytest.approx(same.item())


def test_dppo_masks_steps_that_are_too_far_and_would_go_further():
    steps = some_steps()
    largest = steps.kl_old.median().item()
    live = steps.log_ratio.clone().requires_grad_()
    found = surrogate(changed(steps, log_ratio=live), TrustRegion("dppo", largest_kl=largest))
    (slope,) = torch.autograd.grad(found.objective, live)
    masked = 0
    for k in range(12):
        ratio, a = math.exp(steps.log_ratio[k].item()), steps.advantage[k].item()
        out = steps.kl_old[k].item() > largest and ((a > 0 and ratio > 1) or (a < 0 and ratio < 1))
        assert slope[k].item() == pytest.approx(0.0 if out else ratio * a / 12)
        masked += out
    assert 0 < masked < 12
    assert found.clip_share.item() == pytest.approx(masked / 12)
    expected = (steps.log_ratio.exp() * steps.advantage).mean()
    assert found.objective.item() == pytest.approx(expected.item())


def test_gspo_has_one_ratio_and_one_clip_for_a_trajectory():
    steps = some_steps(12, 3, spread=0.1)
    total, stopped = 0.0, []
    for item in range(4):
        here = steps.item == item
        ratio, a = math.exp(steps.log_ratio[here].mean().item()), steps.advantage[here][0].item()
        low, high = math.exp(-2 / 64), math.exp(2 / 64)
        total += min(ratio * a, min(max(ratio, low), high) * a)
        stopped.append((a > 0 and ratio > high) or (a < 0 and ratio < low))
    region = TrustRegion("gspo", ClipRange(2.0, 2.0))
    found = surrogate(steps, region)
    assert found.objective.item() == pytest.approx(total / 4)
    assert found.clipped.view(4, 3)[:, 0].tolist() == stopped
    assert found.count == 4
    order = torch.randperm(12, generator=seeded(9))
    assert surrogate(steps.take(order), region).objective.item() == pytest.approx(total / 4)


def test_gspo_refuses_a_cut_trajectory():
    with pytest.raises(UsageError, match="cuts some"):
        surrogate(some_steps().take(torch.arange(11)), TrustRegion("gspo"))


def test_the_centred_ratio_of_guard_is_centred_and_the_plain_one_is_not():
    count, shift, s = 200_000, torch.tensor([0.3, -0.2]), torch.tensor(0.5)
    old = GaussianStep(torch.zeros(count, 2), s.expand(count))
    new = GaussianStep(shift.expand(count, 2), s.expand(count))
    action = old.sample(generator=seeded(5))
    plain, bias = new.log_ratio(old, action), new.kl(old)
    # the geometric mean of a plain ratio is exp(−δ); the centred one's is 1, and so is that of its power s
    noise = 5 * plain.std().item() / count**0.5
    assert plain.mean().item() == pytest.approx(-bias[0].item(), abs=noise)
    assert (plain + bias).mean().item() == pytest.approx(0.0, abs=noise)
    assert bias[0].item() > 10 * noise
    # and whole-state plain ratios have mean 1, as importance weights do
    assert (2 * plain).exp().mean().item() == pytest.approx(1.0, abs=0.02)
    # the centred ratio in units of s is ⟨μ − μ_old, ξ⟩, whatever the spread
    direct = (shift * (action / s)).mean(1)
    torch.testing.assert_close((plain + bias) * s, direct, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_in_nats_is_the_same_for_states_of_any_size(kind):
    """D independent scalars with the same log-ratio each, or twice as many with half of it: as many nats."""
    steps = some_steps(spread=0.05)
    twice = changed(steps, log_ratio=steps.log_ratio / 2, kl_old=steps.kl_old / 2, scalars=2 * steps.scalars)
    region = TrustRegion(kind, ClipRange(1.0, 1.4), typical_std=0.5, largest_kl=1e-9)
    one, other = surrogate(steps, region), surrogate(twice, region)
    assert torch.equal(one.clipped, other.clipped)
    assert 0 < one.clip_share.item() < 1
    assert one.kl_old_nats.item() == pytest.approx(other.kl_old_nats.item())
    if kind in ("flow_grpo", "gspo"):
        published = TrustRegion(kind, ClipRange(1 / 64, 1.4 / 64, "mean"))
        assert surrogate(steps, published).clip_share.item() == pytest.approx(one.clip_share.item(), abs=0.1)
        assert not torch.equal(surrogate(twice, published).clipped, one.clipped)


def test_common_scalars_weigh_sounds_by_their_length():
    steps = changed(some_steps(spread=0.01), scalars=torch.linspace(10, 120, 12, dtype=torch.float64))
    live = steps.log_ratio.clone().requires_grad_()
    for common, weight in ((None, torch.ones(12)), (100.0, steps.scalars / 100)):
        region = TrustRegion("flow_grpo", ClipRange(50.0, 50.0), common_scalars=common)
        (slope,) = torch.autograd.grad(surrogate(changed(steps, log_ratio=live), region).objective, live)
        expected = weight * (weight * steps.log_ratio).exp() * steps.advantage / 12
        torch.testing.assert_close(slope, expected, rtol=1e-6, atol=1e-9)
    nats = steps.log_ratio * steps.scalars
    region = TrustRegion("flow_grpo", ClipRange(0.3, 0.3), common_scalars=77.0)
    out = ((nats > 0.3) & (steps.advantage > 0)) | ((nats < -0.3) & (steps.advantage < 0))
    assert torch.equal(surrogate(steps, region).clipped, out)
    assert bool(out.any())


@pytest.mark.parametrize("kind", KINDS)
def test_padded_scalars_change_nothing(kind):
    policy, rows, gain = drawn()
    valid = torch.ones(6, 1, 5, dtype=torch.bool)
    valid[1, :, 3:] = False
    masked = FlowPolicy(policy.law, policy.path, valid)

    def objective(noise: float) -> torch.Tensor:
        hidden = ~valid[rows.item]
        action = rows.action + noise * hidden
        mean = rows.mean - noise * hidden
        moved = Transitions(rows.item, rows.t, rows.t_next, rows.state, action, mean, rows.std, rows.log_prob)
        new = masked.at(rows.item).step(rows.state, (gain + 0.01) * rows.state, rows.t, rows.t_next)
        found = surrogate(step_ratios(new, moved, ADVANTAGE), TrustRegion(kind, largest_kl=1.0))
        return torch.stack([found.objective, found.kl_old, found.ratio_mean])

    torch.testing.assert_close(objective(0.0), objective(7.0))
    short = step_ratios(again(masked, rows, gain), rows, ADVANTAGE)
    assert short.scalars.view(6, 2)[:, 0].tolist() == [10, 6, 10, 10, 10, 10]


@pytest.mark.parametrize("kind", KINDS)
def test_complex_states_are_real_ones_of_twice_the_channels(kind):
    policy, rows, gain = drawn(complex_states=True)
    moved = (gain + 0.05).detach()

    def parts(z: torch.Tensor) -> torch.Tensor:
        return torch.cat([z.real, z.imag], 1)

    real = Transitions(
        rows.item,
        rows.t,
        rows.t_next,
        *[parts(z) for z in (rows.state, rows.action, rows.mean)],
        rows.std / 2**0.5,
        rows.log_prob,
    )
    new = again(policy, rows, moved)
    new_real = GaussianStep(parts(new.mean), new.std / 2**0.5)
    one = step_ratios(new, rows, ADVANTAGE)
    other = step_ratios(new_real, real, ADVANTAGE)
    for name in ("log_ratio", "kl_old", "scalars", "std"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-4, atol=1e-6)
    region = TrustRegion(kind, ClipRange(0.1, 0.1))
    assert surrogate(one, region).objective.item() == pytest.approx(
        surrogate(other, region).objective.item(), rel=1e-4
    )


@pytest.mark.parametrize("kind", KINDS)
def test_items_without_a_reward_do_not_count_and_a_batch_of_none_is_zero(kind):
    steps = some_steps()
    kept = torch.ones(12, dtype=torch.bool)
    kept[2:6] = False
    odd = torch.where(kept, steps.log_ratio, 50.0)
    region = TrustRegion(kind, typical_std=0.3, largest_kl=1e-4)
    found = surrogate(changed(steps, kept=kept, log_ratio=odd), region)
    fewer = surrogate(steps.take(kept.nonzero()[:, 0]), region)
    for name in ("objective", "ratio_mean", "clip_share", "kl_old", "kl_old_nats", "count"):
        assert float(getattr(found, name)) == pytest.approx(float(getattr(fewer, name)))
    live = steps.log_ratio.clone().requires_grad_()
    none = surrogate(changed(steps, kept=torch.zeros_like(kept), log_ratio=live), region)
    assert none.objective.item() == 0.0
    assert none.count == 0
    none.objective.backward()
    assert live.grad.abs().max() == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_weighed_by_their_counts_are_the_batch(kind):
    steps = some_steps()
    region = TrustRegion(kind, typical_std=0.3, largest_kl=1e-4)
    whole = surrogate(steps, region)
    parts = [surrogate(steps.take(torch.arange(a, b)), region) for a, b in ((0, 4), (4, 12))]
    total = sum(part.objective * part.count for part in parts) / whole.count
    assert total.item() == pytest.approx(whole.objective.item())


def test_tiny_clip_ranges_are_not_lost_to_single_precision():
    log_ratio = torch.tensor([1.5e-6, 2.5e-6, -2.5e-6])
    steps = some_steps(3, 1)
    steps = changed(steps, log_ratio=log_ratio.double(), advantage=torch.ones(3, dtype=torch.float64))
    single = FlowStepRatios(**{k: v.float() if v.is_floating_point() else v for k, v in vars(steps).items()})
    found = surrogate(single, TrustRegion("flow_grpo", ClipRange(2e-6, 2e-6, "mean")))
    assert found.clipped.tolist() == [False, True, False]


def test_huge_log_ratios_stay_finite():
    steps = changed(some_steps(4, 1), log_ratio=torch.tensor([900.0, -900.0, 900.0, -900.0]).double())
    for kind in KINDS:
        assert surrogate(steps, TrustRegion(kind)).objective.isfinite()


def test_divergence_from_the_reference_is_the_closed_form_and_as_coded_lacks_the_duration():
    policy, rows, gain = drawn()
    new, reference = again(policy, rows, gain), again(policy, rows, torch.tensor(0.2, requires_grad=True))
    duration = rows.t - rows.t_next
    exact = kl_to_reference(new, reference, duration, form="exact")
    coded = kl_to_reference(new, reference, duration)
    sigma = 0.4 * (rows.t / (1 - rows.t)).sqrt() * 0.487
    for k in range(len(rows.t)):
        shift = (new.mean[k] - reference.mean[k]).square().mean().item()
        s = sigma[k].item()
        assert exact[k].item() == pytest.approx(shift / (2 * s**2 * duration[k].item()), rel=1e-4)
        assert coded[k].item() == pytest.approx(shift / (2 * s**2), rel=1e-4)
        # spec: (|Δ| / 2) (1/σ + σ (1 − t) / (2 t))² |v − v_ref|², in units of the prior's scale
        t, unit = rows.t[k].item(), s / 0.487
        slope = (0.1 * rows.state[k] / 0.487).square().mean().item()
        closed = duration[k].item() / 2 * (1 / unit + unit * (1 - t) / (2 * t)) ** 2 * slope
        assert exact[k].item() == pytest.approx(closed, rel=1e-4)
    coded.sum().backward()
    assert gain.grad.abs() > 0
    assert kl_to_reference(new, new, duration).abs().max() == 0.0


def test_ratios_of_a_moved_policy_are_differences_of_densities():
    policy, rows, gain = drawn(seed=3)
    policy = FlowPolicy(DanceSDE(0.3), noise_prior())
    old = again(policy, rows, gain.detach())
    rows = Transitions(
        rows.item, rows.t, rows.t_next, rows.state, rows.action, old.mean, old.std, old.log_prob(rows.action)
    )
    new = again(policy, rows, gain + 0.05)
    steps = step_ratios(new, rows, ADVANTAGE, kept=ADVANTAGE > -2)
    torch.testing.assert_close(
        steps.log_ratio, new.log_prob(rows.action) - rows.log_prob, rtol=1e-3, atol=1e-4
    )
    assert steps.kept.tolist() == [True] * 10 + [False] * 2
    assert torch.equal(steps.advantage, ADVANTAGE.repeat_interleave(2))


def test_numbers_by_time_hide_nothing():
    t = torch.tensor([0.2, 0.8, 0.2, 0.8])
    assert by_step(t, torch.tensor([1.0, 2.0, 3.0, 6.0])) == {0.8: 4.0, 0.2: 2.0}
    assert by_step(t, torch.ones(4), torch.tensor([True, False, True, False])) == {0.2: 1.0}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ClipRange(0.0, 1.0), "allows no step"),
        (lambda: ClipRange(1.0, 1e-4, "mean"), "allows no step"),
        (lambda: ClipRange(math.nan, 1.0), "allows no step"),
        (lambda: TrustRegion("dppo", largest_kl=0.0), "largest_kl"),
        (lambda: TrustRegion("guard", typical_std=-1.0), "typical_std"),
    ],
)
def test_regions_that_allow_nothing_are_refused(make, words):
    with pytest.raises(UsageError, match=words):
        make()
