"""Which steps of a trajectory are stochastic, and which of those are kept for the update.

A window is shared by all members of a group. They then differ by noise of the same kind at the same times, which is
what group-relative advantages compare; windows of their own let the step's position decide the reward.

Flow-GRPO (arXiv:2505.05470) makes every step stochastic and trains all but the last; Flow-GRPO-Fast and FlowSE-GRPO
take 2 steps that start at a random place, MixGRPO (arXiv:2507.21802) 4 steps that slide along the trajectory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from auralign.errors import UsageError


@final
@dataclass(frozen=True, eq=False)
class StepPlan:
    """What happens at each step of each item."""

    noisy: Bool[Tensor, "batch step"]
    """Steps that follow the SDE; the others are Euler steps of the ODE."""
    kept: Bool[Tensor, "batch step"]
    """Noisy steps that the update trains on; equally many in every item."""

    def __post_init__(self) -> None:
        """Refuses what cannot be trained."""
        counts = self.kept.sum(1)
        if bool((self.kept & ~self.noisy).any()):
            raise UsageError(
                "a step without noise has no density to train on",
                where="StepPlan.kept",
                hint="keep noisy steps only",
            )
        if self.kept.shape[0] == 0 or int(counts.min()) < 1 or int(counts.min()) != int(counts.max()):
            raise UsageError(
                "the items keep different numbers of steps, or none",
                where="StepPlan.kept",
                hint="keep as many steps in every item, at least one",
            )

    @property
    def chosen(self) -> Int[Tensor, "batch chosen"]:
        """Numbers of the kept steps of each item, rising."""
        return self.kept.nonzero()[:, 1].view(self.kept.shape[0], -1)


@final
@dataclass(frozen=True)
class Window:
    """Some consecutive steps, beginning at a random one, the same for a whole group.

    >>> plan = Window(size=2, first=1, last=3).draw(5, groups=1, members=2, generator=torch.Generator().manual_seed(0))
    >>> plan.noisy.int().tolist()
    [[0, 0, 0, 1, 1], [0, 0, 0, 1, 1]]
    """

    size: int = 2
    """Number of stochastic steps."""
    first: int = 1
    """Earliest step it may begin at, from 0; step 0 is singular under Flow-SDE."""
    last: int = 3
    """Latest step it may begin at, itself included."""

    def __post_init__(self) -> None:
        """Refuses an empty window."""
        if self.size < 1 or not 0 <= self.first <= self.last:
            raise UsageError(
                f"a window of {self.size} steps that begins at {self.first} to {self.last} is none",
                where="Window",
                hint="FlowSE-GRPO uses size 2, first 1, last 3",
            )

    def draw(self, steps: int, *, groups: int, members: int, generator: torch.Generator) -> StepPlan:
        """One beginning for each group, uniform over first to last; items are in the order of the groups.

        Args:
            steps: Steps of the whole trajectory.
            groups: Number of groups; 1 with all items as members gives everyone the same window.
            members: Items of each group.
            generator: Source of randomness; of its own, so that windows do not move when noise is drawn differently.
        """
        if self.last + self.size > steps:
            raise UsageError(
                f"a window of {self.size} steps from step {self.last} does not fit into {steps} steps",
                where="Window",
                hint="lower last or size, or take more steps",
            )
        device = generator.device
        begin = torch.randint(self.first, self.last + 1, (groups,), generator=generator, device=device)
        offset = torch.arange(steps, device=device) - begin.repeat_interleave(members).unsqueeze(1)
        noisy = (offset >= 0) & (offset < self.size)
        return StepPlan(noisy, noisy)


def sliding_window(iteration: int, *, steps: int, size: int = 4, every: int = 25) -> Window:
    """MixGRPO (arXiv:2507.21802), progressive: the window moves on by 1 every so many iterations, then starts anew.

    >>> [sliding_window(i, steps=6, every=1).first for i in range(4)]
    [0, 1, 2, 0]
    """
    if not 1 <= size <= steps or every < 1 or iteration < 0:
        raise UsageError(
            f"a window of {size} steps cannot slide over {steps} (every {every}, iteration {iteration})",
            where="sliding_window",
            hint="MixGRPO uses 4 steps of 25, every 25 iterations",
        )
    begin = iteration // every % (steps - size + 1)
    return Window(size, begin, begin)


def every_step(steps: int, batch: int, *, kept: int) -> StepPlan:
    """Flow-GRPO (arXiv:2505.05470): noise at every step, the first `kept` are trained.

    It leaves out the last step, whose noise is smallest and whose log-probability therefore the least exact.

    >>> every_step(3, 1, kept=2).kept.tolist()
    [[True, True, False]]
    """
    if not 1 <= kept <= steps:
        raise UsageError(
            f"{kept} of {steps} steps cannot be kept", where="every_step", hint="all but the last"
        )
    noisy = torch.ones(batch, steps, dtype=torch.bool)
    return StepPlan(noisy, (torch.arange(steps) < kept).expand(batch, -1))
