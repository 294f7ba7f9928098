r"""Low-rank adaptation (LoRA, Hu et al. 2021, arXiv:2106.09685) of linear and convolutional layers.

:math:`W' = W + \frac{\alpha}{r} B A` with B = 0 at first, so that nothing changes before training. A kernel is a matrix
of output channels by everything else. The frozen base is the same network with the addition switched off, which
costs no second copy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from auralign.errors import UsageError


@final
class LowRank(nn.Module):
    """The addition to one weight.

    Args:
        weight: Its shape is taken.
        rank: r, at most the smaller side.
        alpha: α.
    """

    def __init__(self, weight: Float[Tensor, "out *rest"], rank: int, alpha: float) -> None:
        super().__init__()
        rows, columns = weight.shape[0], weight[0].numel()
        rank = min(rank, rows, columns)
        self.a = nn.Parameter(torch.empty(rank, columns, device=weight.device))
        self.b = nn.Parameter(torch.zeros(rows, rank, device=weight.device))
        self.gain, self.on = alpha / rank, True
        nn.init.normal_(self.a, std=1 / math.sqrt(columns))

    def forward(self, weight: Float[Tensor, "out *rest"]) -> Float[Tensor, "out *rest"]:
        """W', or W while the addition is off."""
        return weight + self.gain * (self.b @ self.a).view_as(weight) if self.on else weight


def adapt(model: nn.Module, *, rank: int, alpha: float, least: int = 8) -> list[nn.Parameter]:
    """Put additions on all linear and convolutional layers, freeze everything else, return what is trained.

    Args:
        model: Changed in place.
        rank: r.
        alpha: α.
        least: Layers with fewer outputs or inputs stay frozen.
    """
    if rank < 1 or not alpha > 0:
        raise UsageError(
            f"rank {rank} with alpha {alpha} adapts nothing", where="LoRA", hint="rank 32, alpha 64"
        )
    model.requires_grad_(False)
    for layer in list(model.modules()):
        if isinstance(layer, nn.Linear | nn.Conv2d) and min(layer.weight.shape[:2]) >= least:
            parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank, alpha))
    trained = [p for part in _additions(model) for p in (part.a, part.b)]
    if not trained:
        raise UsageError("no layer is large enough to adapt", where="LoRA", why=f"least is {least}")
    for parameter in trained:
        parameter.requires_grad_(True)
    return trained


@contextmanager
def base_model(model: nn.Module) -> Iterator[None]:
    """The network as it was before adaptation, for the duration of the context."""
    parts = list(_additions(model))
    for part in parts:
        part.on = False
    try:
        yield
    finally:
        for part in parts:
            part.on = True


def merge(model: nn.Module) -> None:
    """Make the additions part of the weights, and plain layers of the layers."""
    for layer in list(model.modules()):
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)


def _additions(model: nn.Module) -> Iterator[LowRank]:
    return (part for part in model.modules() if isinstance(part, LowRank))
