r"""Several views of one sound as a single anchor: multimodal low-rank bilinear pooling, and plain controls.

Every pooling takes unit vectors, ``batch modality dim`` in the order of
:data:`~auralign.models.query_encoder.MODALITIES`, says which are there, and gives one unit vector. An item without any
view gets nan: there is nothing to compare with.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from auralign.errors import UsageError
from auralign.models.query_encoder import MODALITIES


class Pooling(nn.Module, ABC):
    """Fuses whichever views an item has."""

    def forward(
        self, parts: Float[Tensor, "batch modality dim"], valid: Bool[Tensor, "batch modality"]
    ) -> Float[Tensor, "batch dim"]:
        """Unit vectors; nan where no view is valid. What an invalid view holds does not matter."""
        clean = torch.where(valid[..., None], parts, 0.0)
        fused = F.normalize(self.fuse(clean, valid), dim=-1)
        return torch.where(valid.any(dim=1, keepdim=True), fused, torch.nan)

    @abstractmethod
    def fuse(
        self, parts: Float[Tensor, "batch modality dim"], valid: Bool[Tensor, "batch modality"]
    ) -> Float[Tensor, "batch dim"]:
        """The fused vectors before they are brought to unit length; views that are not valid come as zeros."""


@final
class Mlbp(Pooling):
    r"""Multimodal low-rank bilinear pooling (MARS-Sep, App. A; Kim et al. 2017, arXiv:1610.04325).

    .. math::

        h_m = \frac{\tanh(U_m e_m + c_m)}{\tanh(c_m)}, \quad g = \prod_m h_m, \quad
        z^* = \frac{V g + b}{\|V g + b\|}

    with the product taken over the rank. Dividing by :math:`\tanh(c_m)`, which V could absorb when all views are
    there, makes a missing view (:math:`e_m = 0`) exactly the neutral element 1 of the product. ``U`` and ``V`` start
    orthogonal with :math:`b = -V 1`, so that an untrained pooling is close to the mean.

    Args:
        dim: Size d of the vectors.
        rank: Size r of the product.
    """

    def __init__(self, dim: int, rank: int) -> None:
        super().__init__()
        base = torch.empty(rank, dim)
        nn.init.orthogonal_(base)
        self.inward = nn.Parameter(base.expand(len(MODALITIES), rank, dim).clone())
        self.log_shift = nn.Parameter(torch.zeros(len(MODALITIES), rank))
        self.outward = nn.Linear(rank, dim)
        with torch.no_grad():
            self.outward.weight.copy_(base.t())
            self.outward.bias.copy_(-base.sum(dim=0))

    def fuse(
        self, parts: Float[Tensor, "batch modality dim"], valid: Bool[Tensor, "batch modality"]
    ) -> Float[Tensor, "batch dim"]:
        """V g + b."""
        shift = self.log_shift.exp()
        factor = torch.tanh(torch.einsum("mrd,bmd->bmr", self.inward, parts) + shift) / torch.tanh(shift)
        fused: Tensor = self.outward(torch.where(valid[..., None], factor, 1.0).prod(dim=1))
        return fused


@final
class MeanPool(Pooling):
    """Mean of the views; the baseline that needs no training."""

    def fuse(
        self, parts: Float[Tensor, "batch modality dim"], valid: Bool[Tensor, "batch modality"]
    ) -> Float[Tensor, "batch dim"]:
        """Sum over the number of views."""
        return parts.sum(dim=1) / valid.sum(dim=1, keepdim=True).clamp_min(1)


@final
class MaxPool(Pooling):
    """Largest value of each coordinate over the views."""

    def fuse(
        self, parts: Float[Tensor, "batch modality dim"], valid: Bool[Tensor, "batch modality"]
    ) -> Float[Tensor, "batch dim"]:
        """Maximum over valid views; zero where there is none."""
        lowest = torch.where(valid[..., None], parts, -torch.inf).amax(dim=1)
        return torch.where(valid.any(dim=1, keepdim=True), lowest, 0.0)


@final
class WeightedPool(Pooling):
    """Mean with one learned weight a modality, softmax over those that are there."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(len(MODALITIES)))

    def fuse(
        self, parts: Float[Tensor, "batch modality dim"], valid: Bool[Tensor, "batch modality"]
    ) -> Float[Tensor, "batch dim"]:
        """Weighted sum."""
        weights = torch.where(valid, self.logits.exp(), 0.0)
        weights = weights / weights.sum(dim=1, keepdim=True).clamp_min(1e-12)
        return torch.einsum("bm,bmd->bd", weights, parts)


POOLINGS = ("mlbp", "mean", "max", "weighted")
"""Names that :func:`make_pooling` knows."""


def make_pooling(name: str, *, dim: int, rank: int) -> Pooling:
    """A pooling by name.

    >>> type(make_pooling("mean", dim=4, rank=4)).__name__
    'MeanPool'
    """
    if name == "mlbp":
        return Mlbp(dim, rank)
    if name in ("mean", "max"):
        return MeanPool() if name == "mean" else MaxPool()
    if name == "weighted":
        return WeightedPool()
    raise UsageError(f"there is no pooling {name!r}", hint=f"one of {', '.join(POOLINGS)}")
