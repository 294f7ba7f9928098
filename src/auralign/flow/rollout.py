"""Walking the stochastic flow: samples, and the transitions that an update trains on.

Steps of a `StepPlan` are stochastic for some items and Euler steps for the others, in one batch without loops over
items. Trajectories are kept in single precision at least, whatever the network computes in: stored in bfloat16 the
ratio before the first update is no longer 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import final

import torch
from jaxtyping import Bool, Float, Inexact, Int
from torch import Tensor

from auralign.errors import UsageError
from auralign.flow.gaussian_step import GaussianStep
from auralign.flow.ode import evaluate
from auralign.flow.path import Velocity, real_dtype, wide_dtype
from auralign.flow.schedule import check_grid
from auralign.flow.sde import FlowPolicy
from auralign.flow.window import StepPlan


@final
@dataclass(frozen=True, eq=False)
class Transitions:
    """Stochastic steps, one a row; rows of an item are consecutive and in the order of time."""

    item: Int[Tensor, " row"]
    """Item of the batch it belongs to: index of conditions, advantages and `FlowPolicy.at`."""
    t: Float[Tensor, " row"]
    """Time before the step."""
    t_next: Float[Tensor, " row"]
    """Time after it."""
    state: Inexact[Tensor, "row *shape"]
    """x, before the step."""
    action: Inexact[Tensor, "row *shape"]
    """x', after it."""
    mean: Inexact[Tensor, "row *shape"]
    """μ of the policy that drew it."""
    std: Float[Tensor, " row"]
    """s of that policy."""
    log_prob: Float[Tensor, " row"]
    """Its log-density, a mean over real scalars."""

    def take(self, row: Int[Tensor, " some"]) -> Transitions:
        """Chosen rows, such as a micro-batch."""
        return Transitions(*[getattr(self, field.name)[row] for field in fields(self)])


@final
@dataclass(frozen=True, eq=False)
class Rollout:
    """What sampling leaves."""

    final: Inexact[Tensor, "batch *shape"]
    """States at the last of the times."""
    transitions: Transitions
    """Kept steps; rows divided by items is the number that each kept, so `log_prob.view(batch, -1)` is by item."""


def simulate(
    velocity: Velocity,
    x: Inexact[Tensor, "batch *shape"],
    times: Float[Tensor, " time"],
    policy: FlowPolicy,
    *,
    noisy: Bool[Tensor, "batch step"] | None = None,
    generator: torch.Generator,
) -> Inexact[Tensor, "batch *shape"]:
    """Samples of the SDE, without a record; a level of 0 gives Euler's solution of the ODE exactly.

    Args:
        velocity: dx/dt.
        x: State at the first of the times, such as `path.draw(...)`.
        times: Falling times, see `schedule`.
        policy: Law of the noise, and path of the batch.
        noisy: Items and steps with noise; all by default, which Flow-SDE refuses on grids that begin at 1.
        generator: Source of randomness, on the device of the state.
    """
    if noisy is None:
        noisy = torch.ones(x.shape[0], max(len(times) - 1, 0), dtype=torch.bool)
    for walked in _walk(velocity, x, times, policy, noisy, generator):
        x = walked.action
    return x


@torch.no_grad()
def rollout(
    velocity: Velocity,
    x: Inexact[Tensor, "batch *shape"],
    times: Float[Tensor, " time"],
    policy: FlowPolicy,
    plan: StepPlan,
    *,
    generator: torch.Generator,
) -> Rollout:
    """Samples with the steps to train on, without gradients; the update computes densities anew from the transitions.

    The update of rows r is, with one network call on states of several steps at once,

        v = network(r.state, r.t, condition[r.item])
        new = policy.at(r.item).step(r.state, v, r.t, r.t_next)
        log_ratio = new.log_prob(r.action) - r.log_prob        # or new.log_ratio(old, r.action), more exact

    Args:
        velocity: dx/dt of the policy that explores.
        x: State at the first of the times. Start in the middle where the steps before the window were shared.
        times: Falling times, see `schedule`.
        policy: Law of the noise, and path of the batch.
        plan: Which steps are noisy, and which are kept, from `window`.
        generator: Source of randomness, on the device of the state.
    """
    if policy.law.level == 0:
        raise UsageError(
            "a level of 0 explores nothing",
            where=type(policy.law).__name__,
            hint="sample with ode.solve, or raise it",
        )
    check_grid(times)
    _check_shape(plan.noisy, x, times)
    noise = policy.step_noise(times[:-1], times[1:], noisy=plan.noisy.any(0).to(times.device))
    if bool((plan.kept.any(0).to(times.device) & (noise.spread == 0)).any()):
        raise UsageError(
            "a kept step has no noise, and therefore no density",
            where=type(policy.law).__name__,
            hint="leave out the step that ends at t = 0",
        )
    batch, chosen = plan.chosen.shape
    kept = plan.kept.to(x.device)
    row = torch.arange(batch, device=x.device).unsqueeze(1) * chosen + kept.cumsum(1) - 1
    keep = _Keeper(x, batch * chosen)
    for k, walked in enumerate(_walk(velocity, x, times, policy, plan.noisy, generator)):
        keep.put(walked, kept[:, k], row[:, k])
        x = walked.action
    return Rollout(x, keep.transitions(torch.arange(batch, device=x.device).repeat_interleave(chosen)))


class _Keeper:
    """Buffers of the transitions, filled step by step and then read as one."""

    def __init__(self, x: Tensor, rows: int) -> None:
        state, real = wide_dtype(x), real_dtype(x)
        self.states = [torch.empty(rows, *x.shape[1:], dtype=state, device=x.device) for _ in range(3)]
        self.numbers = [torch.empty(rows, dtype=real, device=x.device) for _ in range(4)]

    def put(self, walked: _Walked, kept: Tensor, row: Tensor) -> None:
        """Stores one step of the items that keep it, each at its row."""
        item = kept.nonzero()[:, 0]
        row, step = row[item], walked.policy.at(item)
        if len(item):
            action = walked.action[item]
            numbers = walked.t[item], walked.t_next[item], step.std, step.log_prob(action)
            for buffer, value in zip(self.states, (walked.state[item], action, step.mean), strict=True):
                buffer[row] = value
            for buffer, value in zip(self.numbers, numbers, strict=True):
                buffer[row] = value

    def transitions(self, item: Tensor) -> Transitions:
        """All rows."""
        t, t_next, std, log_prob = self.numbers
        state, action, mean = self.states
        return Transitions(item, t, t_next, state, action, mean, std, log_prob)


@final
@dataclass(frozen=True, eq=False)
class _Walked:
    """One step of a whole batch."""

    t: Tensor
    t_next: Tensor
    state: Tensor
    policy: GaussianStep
    action: Tensor


def _walk(
    velocity: Velocity,
    x: Tensor,
    times: Tensor,
    policy: FlowPolicy,
    noisy: Tensor,
    generator: torch.Generator,
) -> Iterator[_Walked]:
    check_grid(times)
    _check_shape(noisy, x, times)
    batch, steps = noisy.shape
    x = x.to(wide_dtype(x))
    knots = times.to(device=x.device, dtype=real_dtype(x)).unsqueeze(1).expand(-1, batch)
    any_noisy = noisy.any(0).tolist()
    noisy = noisy.to(x.device)
    for k in range(steps):
        v = evaluate(velocity, x, knots[k])
        step = policy.step(x, v, knots[k], knots[k + 1], noisy=noisy[:, k])
        action = step.sample(generator=generator) if any_noisy[k] else step.mean
        yield _Walked(knots[k], knots[k + 1], x, step, action)
        x = action


def _check_shape(noisy: Tensor, x: Tensor, times: Tensor) -> None:
    if noisy.shape != (x.shape[0], len(times) - 1):
        raise UsageError(
            f"a plan for {tuple(noisy.shape)} does not fit {x.shape[0]} items and {len(times) - 1} steps",
            where="plan",
            hint="plans are item × step, and a grid of K steps has K + 1 times",
        )
