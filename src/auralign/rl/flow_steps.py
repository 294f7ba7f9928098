r"""Stochastic steps of a flow as an update sees them: ratios to the policy that drew them, and divergences.

A step is a Gaussian of fixed spread, so the update needs three numbers of each:
:math:`\ln \rho = \ln \pi(x') - \ln \pi_{old}(x')`, the shift of the mean as a divergence
:math:`\delta = |\mu - \mu_{old}|^2 / (2 s^2)`, and s. Rows are (item, kept step)
pairs, as in `flow.rollout.Transitions`.

Everything is a **mean over the real scalars** of the state (Flow-GRPO, arXiv:2505.05470): times D, `scalars`, it is in
nats on the whole state. A complex number is two real scalars whose spread is s / √2 each.

Symbols: ρ ratio, μ mean, s spread, D real scalars of a row, Δ time of a step, A advantage, v velocity.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from auralign.errors import UsageError
from auralign.flow.gaussian_step import GaussianStep
from auralign.flow.rollout import Transitions

ReferenceForm = Literal["exact", "flow_grpo"]
"""Divergence from the reference: the Gaussians' own, or as Flow-GRPO's code has it, without |Δ| in the variance."""


@final
@dataclass(frozen=True, eq=False)
class FlowStepRatios:
    """Kept steps of an update, one a row; made by `step_ratios`. Gradients flow through `log_ratio` and `kl_old`."""

    log_ratio: Float[Tensor, " row"]
    """ln ρ per real scalar."""
    kl_old: Float[Tensor, " row"]
    """δ per real scalar: KL(π ‖ π_old) = KL(π_old ‖ π), exactly, as both have the spread s."""
    scalars: Float[Tensor, " row"]
    """D, real scalars that count."""
    std: Float[Tensor, " row"]
    """s of one real scalar."""
    duration: Float[Tensor, " row"]
    """−Δ, time that the step takes."""
    advantage: Float[Tensor, " row"]
    """A of the item; a constant."""
    item: Int[Tensor, " row"]
    """Item of the batch, the same number for all steps of a trajectory."""
    kept: Bool[Tensor, " row"]
    """Rows that count: items with a reward, and at least one scalar."""

    def take(self, row: Int[Tensor, " some"]) -> FlowStepRatios:
        """Chosen rows."""
        return FlowStepRatios(*[getattr(self, field.name)[row] for field in fields(self)])


def step_ratios(
    new: GaussianStep,
    rows: Transitions,
    advantage: Float[Tensor, " batch"],
    *,
    kept: Bool[Tensor, " batch"] | None = None,
) -> FlowStepRatios:
    """What the current policy says about steps that an older one drew.

    Args:
        new: Steps of π at `rows.state`, that is `policy.at(rows.item).step(rows.state, v, rows.t, rows.t_next)`.
        rows: The steps as drawn; all of a rollout, or some.
        advantage: A of each item of the rollout, so that `rows.item` points into it.
        kept: Items that count (`Advantage.kept`, flattened); all by default.
    """
    old = GaussianStep(rows.mean, rows.std, new.valid)
    each = 2 if new.mean.is_complex() else 1
    scalars = new.scalars
    counted = scalars > 0
    return FlowStepRatios(
        log_ratio=new.log_ratio(old, rows.action),
        kl_old=new.kl(old),
        scalars=scalars,
        std=new.std / each**0.5,
        duration=rows.t - rows.t_next,
        advantage=advantage.detach().to(rows.t.dtype)[rows.item],
        item=rows.item,
        kept=counted if kept is None else counted & kept[rows.item],
    )


def kl_to_reference(
    new: GaussianStep,
    reference: GaussianStep,
    duration: Float[Tensor, " row"],
    *,
    form: ReferenceForm = "flow_grpo",
) -> Float[Tensor, " row"]:
    """KL(π ‖ π_ref) of each row per real scalar; no gradient into the reference.

    exact: |μ − μ_ref|² / (2 s²). flow_grpo: that times |Δ|, so that steps whose time is long do not count less; its
    usual coefficient is 0.04 where the exact form's is 0.004 with ten steps (Flow-GRPO's issue 22).

    Args:
        new: Steps of π.
        reference: Steps of the frozen policy, from the same states.
        duration: −Δ of each row.
        form: Which of the two.
    """
    exact = new.kl(reference.detach())
    return exact * duration if form == "flow_grpo" else exact


def by_step(
    t: Float[Tensor, " row"], value: Float[Tensor, " row"], kept: Bool[Tensor, " row"] | None = None
) -> dict[float, float]:
    """Means of a number by the time at which steps begin, latest (noisiest) first; aggregates hide a bad step.

    >>> by_step(torch.tensor([0.5, 0.9, 0.9]), torch.tensor([1.0, 2.0, 4.0]))
    {0.9: 3.0, 0.5: 1.0}
    """
    if kept is not None:
        t, value = t[kept], value[kept]
    times = torch.unique(t).flip(0)
    return {round(float(time), 6): float(value.detach()[t == time].mean()) for time in times}


def trajectories(steps: FlowStepRatios) -> tuple[Int[Tensor, " row"], int]:
    """Number of the trajectory that each row belongs to, from 0, and how many there are; whole ones only.

    Raises:
        UsageError: Items have different numbers of rows, so that a micro-batch has cut a trajectory.
    """
    _, place, count = torch.unique(steps.item, return_inverse=True, return_counts=True)
    if len(count) and int(count.min()) != int(count.max()):
        raise UsageError(
            f"items have {int(count.min())} to {int(count.max())} steps in one call",
            where="gspo",
            why="its ratio is that of a whole trajectory, and this batch of rows cuts some",
            hint="choose micro-batches by item",
        )
    return place, len(count)
