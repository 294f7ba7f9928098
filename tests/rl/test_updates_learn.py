"""Every update on a flow that is known exactly: a Gaussian of two dimensions whose mean is to move to a target."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn

from auralign.errors import UsageError
from auralign.flow.ode import solve
from auralign.flow.path import noise_prior
from auralign.flow.rollout import rollout
from auralign.flow.schedule import uniform
from auralign.flow.sde import DanceSDE, FlowPolicy
from auralign.flow.window import Window
from auralign.rl.flow_steps import step_ratios
from auralign.rl.flow_surrogate import TrustRegion, surrogate
from auralign.rl.forward_process import (
    Penalties,
    Velocities,
    advantage_flow,
    awm,
    nft,
    old_policy_decay,
)
from auralign.rl.matching import excess_error, matching_error, noise_again
from auralign.rl.multi_reward import scaled_advantage
from auralign.rl.preference import best_against_worst, crpo, diffusion_dpo
from auralign.rl.selection import filtered_matching, reward_filter
from auralign.rl.updates import UPDATES, find_update

TARGET = torch.tensor([1.0, -0.5])
GROUPS, MEMBERS, STEPS = 6, 8, 6
ITEMS = GROUPS * MEMBERS


class GaussianFlow(nn.Module):
    """The exact velocity from unit noise to N(mean, scale²), which has three parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(2))
        self.log_scale = nn.Parameter(torch.tensor(math.log(0.5)))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        t = t.unsqueeze(1)
        data, noise = ((1 - t) * self.log_scale.exp()).square(), t.square()
        inward = (t - (1 - t) * self.log_scale.exp().square()) / (data + noise)
        return inward * (x - (1 - t) * self.mean) - self.mean


def copy_of(net: GaussianFlow) -> GaussianFlow:
    other = GaussianFlow()
    other.load_state_dict(net.state_dict())
    return other


def reward_of(x: torch.Tensor) -> torch.Tensor:
    return -(x - TARGET).square().sum(1).view(GROUPS, MEMBERS)


def expected_reward(net: GaussianFlow) -> float:
    with torch.no_grad():
        x = torch.randn(512, 2, generator=torch.Generator().manual_seed(99))
        return float(-(solve(net, x, uniform(STEPS)) - TARGET).square().sum(1).mean())


class Loop:
    """The shortest loop that can run every update; what it needs is in `UPDATES`."""

    def __init__(self, kind: str, *, signal: bool = True, seed: int = 0) -> None:
        self.kind, self.signal = kind, signal
        self.net = GaussianFlow()
        self.old, self.base = copy_of(self.net), copy_of(self.net)
        self.average = copy_of(self.net)
        self.optimiser = torch.optim.Adam(self.net.parameters(), lr=0.03)
        self.generator = torch.Generator().manual_seed(seed)
        self.updates = 0

    def reward(self, x: torch.Tensor) -> torch.Tensor:
        return reward_of(x) if self.signal else torch.zeros(GROUPS, MEMBERS)

    def step(self, loss: torch.Tensor) -> None:
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.updates += 1

    def iterate(self) -> None:
        family = find_update(self.kind).family
        getattr(self, family)(noise_prior().draw(torch.zeros(ITEMS, 2), generator=self.generator))

    def trajectory(self, start: torch.Tensor) -> None:
        policy = FlowPolicy(DanceSDE(0.5), noise_prior())
        plan = Window(2, 1, 3).draw(STEPS, groups=GROUPS, members=MEMBERS, generator=self.generator)
        done = rollout(self.net, start, uniform(STEPS), policy, plan, generator=self.generator)
        advantage, rows = scaled_advantage(self.reward(done.final)), done.transitions
        region = TrustRegion(self.kind, largest_kl=0.02, typical_std=float(rows.std.mean()))
        for _ in range(2):
            v = self.net(rows.state, rows.t)
            new = policy.at(rows.item).step(rows.state, v, rows.t, rows.t_next)
            steps = step_ratios(new, rows, advantage.value.flatten(), kept=advantage.kept.flatten())
            self.step(-surrogate(steps, region).objective)

    def forward_process(self, start: torch.Tensor) -> None:
        with torch.no_grad():
            samples = solve(self.old, start, uniform(STEPS))
        advantage = scaled_advantage(self.reward(samples)).value.flatten()
        for _ in range(2):
            t = 0.1 + 0.9 * torch.rand(ITEMS, generator=self.generator)
            noised = noise_again(noise_prior(), samples, t, generator=self.generator)
            with torch.no_grad():
                rest = [net(noised.x_t, t) for net in (self.old, self.base, self.average)]
            v = Velocities(self.net(noised.x_t, t), *rest)
            if self.kind == "nft":
                found = nft(noised, v, advantage)
            elif self.kind == "awm":
                penalties = Penalties(average=0.1) if self.signal else Penalties()
                found = awm(noised, v, advantage, penalties=penalties)
            else:
                found = advantage_flow(noised, v, advantage)
            self.step(-found.objective)
        follow(
            self.old, self.net, old_policy_decay(self.updates, "ramp" if self.kind == "nft" else "on_policy")
        )
        follow(self.average, self.net, 0.9)

    def preference(self, start: torch.Tensor) -> None:
        with torch.no_grad():
            samples = solve(self.net, start, uniform(STEPS))
        pairs = best_against_worst(self.reward(samples), least_gap=0.1)
        chosen = samples[pairs.interleaved]
        t = torch.rand(len(pairs.winner), generator=self.generator).repeat_interleave(2)
        noised = noise_again(noise_prior(), chosen, t, generator=self.generator, shared=2)
        v, base = self.net(noised.x_t, t), self.base(noised.x_t, t)
        excess = excess_error(v, base, noised)
        if self.kind == "dpo":
            found = diffusion_dpo(excess[::2], excess[1::2], strength=2.0)
        else:
            found = crpo(excess[::2], excess[1::2], matching_error(v, noised)[::2], strength=2.0)
        self.step(-found.objective)
        follow(self.base, self.net, 0.9)  # as in CRPO and online DPO, the reference follows

    def selection(self, start: torch.Tensor) -> None:
        with torch.no_grad():
            samples = solve(self.net, start, uniform(STEPS))
        keep = "best" if self.kind == "best_of_n" else "quantile"
        chosen = reward_filter(self.reward(samples), keep=keep).item
        t = torch.rand(len(chosen), generator=self.generator)
        noised = noise_again(noise_prior(), samples[chosen], t, generator=self.generator)
        self.step(-filtered_matching(matching_error(self.net(noised.x_t, t), noised)))


def follow(slow: GaussianFlow, fast: GaussianFlow, decay: float) -> None:
    with torch.no_grad():
        for mine, other in zip(slow.parameters(), fast.parameters(), strict=True):
            mine.lerp_(other, 1 - decay)


@pytest.mark.parametrize("kind", UPDATES)
def test_every_update_raises_the_reward(kind):
    loop = Loop(kind)
    before = expected_reward(loop.net)
    for _ in range(20):
        loop.iterate()
    after = expected_reward(loop.net)
    assert before == pytest.approx(-1.25 - 2 * 0.5**2, abs=0.3)  # six Euler steps narrow it
    assert after > before / 2


@pytest.mark.parametrize("kind", UPDATES)
def test_without_a_difference_in_reward_no_update_moves(kind):
    loop = Loop(kind, signal=False)
    for _ in range(3):
        loop.iterate()
    for now, then in zip(loop.net.parameters(), GaussianFlow().parameters(), strict=True):
        torch.testing.assert_close(now, then, atol=1e-6, rtol=0)


def test_the_registry_names_functions_that_exist_and_what_they_need():
    import importlib

    for name, spec in UPDATES.items():
        module, function = spec.function.split(".")
        assert callable(getattr(importlib.import_module(f"auralign.rl.{module}"), function))
        assert spec.name == name
        assert spec.meaning
        assert spec.source
        assert ("noisy_steps" in spec.needs) == (spec.family == "trajectory")
        assert ("pairs" in spec.needs) == (spec.family == "preference")
    assert len({spec.family for spec in UPDATES.values()}) == 4
    with pytest.raises(TypeError):
        UPDATES["mine"] = UPDATES["nft"]  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        UPDATES["nft"].name = "mine"  # type: ignore[misc]


def test_an_update_that_does_not_exist_is_refused_with_the_names():
    with pytest.raises(UsageError, match="flow_grpo, guard"):
        find_update("ppo")
