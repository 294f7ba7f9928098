"""Whole trajectories: zero noise is the ODE, ratio 1 before the first update, windows, complex states, precision."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from auralign.errors import UsageError
from auralign.flow.ode import solve
from auralign.flow.path import noise_prior, noisy_mean
from auralign.flow.rollout import rollout, simulate
from auralign.flow.schedule import shifted, stopped, uniform
from auralign.flow.sde import CPS, DanceSDE, FlowPolicy, FlowSDE, NoiseLaw
from auralign.flow.window import Window, every_step

LAWS: list[NoiseLaw] = [FlowSDE(0.4), DanceSDE(0.3), CPS(0.8)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class LatentNet(nn.Module):
    """Velocity of 1-D latents, "batch channel frame", with a condition for each item."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(
                nn.Conv1d(6, 16, 3, padding=1), nn.GELU(), nn.Conv1d(16, 4, 3, padding=1)
            )

    def forward(self, x, t, condition):
        rest = torch.stack([t, condition], 1).to(x.dtype)
        return self.net(torch.cat([x, rest.unsqueeze(2).expand(-1, -1, x.shape[2])], 1))


class SpectrogramNet(nn.Module):
    """Velocity of complex spectrograms, "batch channel bin frame"; condition as above."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, 2, 3, padding=1))

    def forward(self, x, t, condition):
        rest = torch.stack([t, condition], 1)[:, :, None, None].expand(-1, -1, *x.shape[2:])
        out = self.net(torch.cat([x.real, x.imag, rest], 1))
        return torch.complex(out[:, :1], out[:, 1:])


def set_up(kind: str, law: NoiseLaw, batch: int = 6):
    """A network, its conditions, a policy and a start, for either kind of data."""
    condition = torch.linspace(-1, 1, batch)
    if kind == "latent":
        net, like, path = LatentNet(), torch.zeros(batch, 4, 9), noise_prior()
    else:
        net, like = SpectrogramNet(), torch.zeros(batch, 1, 5, 7, dtype=torch.complex64)
        path = noisy_mean(torch.randn(like.shape, dtype=like.dtype, generator=seeded(9)))
    return net, condition, FlowPolicy(law, path), path.draw(like, generator=seeded(1))


@pytest.mark.parametrize("law", [FlowSDE(0.0), DanceSDE(0.0), CPS(0.0)])
@pytest.mark.parametrize("times", [uniform(5), shifted(5), stopped(5)])
@pytest.mark.parametrize("kind", ["latent", "spectrogram"])
def test_zero_noise_is_the_ode(law, times, kind):
    net, condition, policy, start = set_up(kind, law)

    def field(x, t):
        return net(x, t, condition)

    assert torch.equal(simulate(field, start, times, policy, generator=seeded()), solve(field, start, times))


@pytest.mark.parametrize("law", LAWS)
def test_outside_the_window_it_is_the_ode(law):
    net, condition, policy, start = set_up("latent", law)

    def field(x, t):
        return net(x, t, condition)

    times = uniform(8)
    plan = Window(2, 3, 3).draw(8, groups=2, members=3, generator=seeded())
    done = rollout(field, start, times, policy, plan, generator=seeded())
    steps = done.transitions
    with torch.no_grad():
        assert torch.equal(steps.state[::2], solve(field, start, times[:4]))
        assert torch.equal(steps.state[1::2], steps.action[::2])
        assert torch.equal(done.final, solve(field, steps.action[1::2], times[5:]))
    still = torch.zeros_like(plan.noisy)
    quiet = simulate(field, start, times, policy, noisy=still, generator=seeded())
    assert torch.equal(quiet, solve(field, start, times))


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("kind", ["latent", "spectrogram"])
def test_ratio_is_one_at_every_step_before_the_first_update(law, kind):
    net, condition, policy, start = set_up(kind, law)
    plan = Window(3, 1, 5).draw(9, groups=3, members=2, generator=seeded(2))
    done = rollout(lambda x, t: net(x, t, condition), start, uniform(9), policy, plan, generator=seeded())
    rows = done.transitions
    new = policy.at(rows.item).step(
        rows.state, net(rows.state, rows.t, condition[rows.item]), rows.t, rows.t_next
    )
    old = type(new)(rows.mean, rows.std)
    log_ratio = new.log_prob(rows.action) - rows.log_prob
    assert torch.equal(new.std, rows.std)
    assert log_ratio.abs().max() < 1e-5
    assert (new.log_ratio(old, rows.action) * new.scalars).abs().max() < 1e-3
    assert new.kl(old).max() < 1e-9
    by_ratio = torch.autograd.grad(log_ratio.exp().sum(), list(net.parameters()), retain_graph=True)
    by_density = torch.autograd.grad(new.log_prob(rows.action).sum(), list(net.parameters()))
    for ratio, density in zip(by_ratio, by_density, strict=True):
        torch.testing.assert_close(ratio, density, rtol=1e-4, atol=1e-5)
        assert bool(density.any())


def test_an_update_moves_the_ratio_towards_what_is_rewarded():
    net, condition, policy, start = set_up("latent", DanceSDE(0.3))
    plan = Window(2, 1, 4).draw(6, groups=3, members=2, generator=seeded(2))
    rows = rollout(
        lambda x, t: net(x, t, condition), start, uniform(6), policy, plan, generator=seeded()
    ).transitions
    advantage = torch.tensor([1.0, -1.0] * 3)[rows.item]

    def log_ratio():
        v = net(rows.state, rows.t, condition[rows.item])
        return (
            policy.at(rows.item).step(rows.state, v, rows.t, rows.t_next).log_prob(rows.action)
            - rows.log_prob
        )

    optimiser = torch.optim.SGD(net.parameters(), lr=0.01)
    (-advantage * log_ratio().exp()).mean().backward()
    optimiser.step()
    assert (advantage * log_ratio()).mean() > 0


def test_rows_are_by_item_and_their_times_are_the_plans():
    net, condition, policy, start = set_up("latent", DanceSDE(0.3))
    plan = Window(2, 0, 6).draw(8, groups=6, members=1, generator=seeded(4))
    times = uniform(8)
    rows = rollout(
        lambda x, t: net(x, t, condition), start, times, policy, plan, generator=seeded()
    ).transitions
    assert rows.item.view(6, 2)[:, 0].tolist() == list(range(6))
    assert torch.equal(rows.t.view(6, 2), times.float()[plan.chosen])
    assert torch.equal(rows.t_next.view(6, 2), times.float()[plan.chosen + 1])
    some = rows.take(torch.tensor([3, 0]))
    assert torch.equal(some.state, rows.state[[3, 0]])
    assert some.log_prob.tolist() == rows.log_prob[[3, 0]].tolist()


def test_all_steps_noisy_and_the_last_left_out():
    net, condition, policy, start = set_up("latent", CPS(0.8))
    field, times = (lambda x, t: net(x, t, condition)), uniform(5)
    done = rollout(field, start, times, policy, every_step(5, 6, kept=4), generator=seeded())
    assert done.transitions.state.shape[0] == 24
    with torch.no_grad():
        assert torch.equal(done.final, simulate(field, start, times, policy, generator=seeded()))
    with pytest.raises(UsageError, match="ends at t = 0"):
        rollout(field, start, times, policy, every_step(5, 6, kept=5), generator=seeded())


def test_the_u_transform_gives_the_same_trajectory():
    net, condition, policy, start = set_up("spectrogram", FlowSDE(0.4))
    path, times = policy.path, stopped(6)
    plan = Window(2, 1, 3).draw(6, groups=2, members=3, generator=seeded(2))

    def field(x, t):
        return net(x, t, condition)

    in_x = rollout(field, start, times, policy, plan, generator=seeded(3))
    plain = FlowPolicy(policy.law, noise_prior())
    in_u = rollout(
        path.standard_velocity(field), path.standardise(start), times, plain, plan, generator=seeded(3)
    )
    torch.testing.assert_close(path.restore(in_u.final), in_x.final, rtol=1e-4, atol=1e-5)
    shift = torch.tensor(path.scale).log()
    torch.testing.assert_close(
        in_u.transitions.log_prob - shift, in_x.transitions.log_prob, rtol=1e-4, atol=1e-4
    )


def test_shared_steps_before_the_window_are_run_once():
    net, condition, policy, start = set_up("latent", DanceSDE(0.3), batch=2)
    times = uniform(6)
    with torch.no_grad():
        middle = solve(lambda x, t: net(x, t, condition), start, times[:3])
    group = torch.arange(2).repeat_interleave(3)

    def field(x, t):
        return net(x, t, condition[group])

    early = rollout(
        field,
        middle[group],
        times[2:],
        policy.at(group),
        Window(2, 0, 0).draw(4, groups=2, members=3, generator=seeded()),
        generator=seeded(5),
    )
    whole = rollout(
        field,
        start[group],
        times,
        policy.at(group),
        Window(2, 2, 2).draw(6, groups=2, members=3, generator=seeded()),
        generator=seeded(5),
    )
    torch.testing.assert_close(early.final, whole.final)


def test_half_precision_networks_leave_single_precision_trajectories():
    net, condition, policy, start = set_up("latent", FlowSDE(0.4))
    net = net.bfloat16()

    def field(x, t, condition=condition):
        return net(x.bfloat16(), t, condition)

    plan = Window(2, 1, 3).draw(6, groups=2, members=3, generator=seeded(2))
    rows = rollout(field, start.bfloat16(), uniform(6), policy, plan, generator=seeded()).transitions
    for kept in (rows.state, rows.action, rows.mean, rows.std, rows.t, rows.log_prob):
        assert kept.dtype == torch.float32

    def error(state, action):
        with torch.no_grad():
            v = field(state, rows.t, condition[rows.item])
            new = policy.at(rows.item).step(state, v.float(), rows.t, rows.t_next)
        return (new.log_prob(action) - rows.log_prob).abs().max()

    assert error(rows.state, rows.action) < 1e-5
    assert error(rows.state.bfloat16().float(), rows.action.bfloat16().float()) > 1e-4


def test_the_seed_decides_the_trajectory():
    net, condition, policy, start = set_up("latent", DanceSDE(0.3))
    plan = every_step(4, 6, kept=3)
    finals = [
        rollout(lambda x, t: net(x, t, condition), start, uniform(4), policy, plan, generator=seeded(s)).final
        for s in (1, 1, 2)
    ]
    assert torch.equal(finals[0], finals[1])
    assert not torch.equal(finals[0], finals[2])


def test_frames_past_the_end_of_a_sound_leave_the_density():
    net, condition, policy, start = set_up("latent", FlowSDE(0.4), batch=2)
    valid = torch.ones(2, 1, 9, dtype=torch.bool)
    valid[1, :, 4:] = False
    masked = FlowPolicy(policy.law, policy.path, valid)
    plan = Window(2, 1, 1).draw(5, groups=1, members=2, generator=seeded())
    rows = rollout(
        lambda x, t: net(x, t, condition), start, uniform(5), masked, plan, generator=seeded()
    ).transitions
    step = masked.at(rows.item).step(
        rows.state, net(rows.state, rows.t, condition[rows.item]), rows.t, rows.t_next
    )
    assert step.scalars.tolist() == [36, 36, 16, 16]
    torch.testing.assert_close(step.log_prob(rows.action), rows.log_prob)


def test_what_cannot_be_trained_is_refused_before_the_first_step():
    _, _, policy, start = set_up("latent", FlowSDE(0.4))

    def never(x, t):
        raise AssertionError("the network was called")

    plan = Window(2, 0, 0).draw(5, groups=2, members=3, generator=seeded())
    with pytest.raises(UsageError, match="t = 1 cannot be stochastic"):
        rollout(never, start, uniform(5), policy, plan, generator=seeded())
    with pytest.raises(UsageError, match="explores nothing"):
        rollout(never, start, uniform(5), FlowPolicy(FlowSDE(0.0), policy.path), plan, generator=seeded())
    with pytest.raises(UsageError, match="does not fit"):
        rollout(never, start, uniform(6), policy, plan, generator=seeded())
    with pytest.raises(UsageError, match="fall strictly"):
        rollout(never, start, uniform(5).flip(0), policy, plan, generator=seeded())
