"""Text, picture and audio example in one space: learned heads over frozen backbones.

The heads are trained together with a separator and travel with it (one file, one version). The backbones are
pretrained, frozen, loaded only when a query of their kind arrives, and never change.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from auralign.errors import UsageError

Modality = Literal["text", "audio", "image"]
MODALITIES: tuple[Modality, ...] = get_args(Modality)
BACKBONE_DIMS: dict[Modality, int] = {"text": 384, "audio": 1024, "image": 1280}


class _Head(nn.Module):
    """Linear map plus a small residual network, then a unit vector."""

    def __init__(self, inputs: int, outputs: int, hidden: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.first = nn.Linear(inputs, hidden)
        self.second = nn.Linear(hidden, outputs)
        nn.init.orthogonal_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = F.normalize(x.float(), dim=-1)
        return F.normalize(self.linear(x) + self.second(F.gelu(self.first(x))), dim=-1)


class QueryHeads(nn.Module):
    """One head a modality into a shared space of ``dim`` dimensions.

    Args:
        dim: Size of the shared space.
        hidden: Width of the heads' residual part.
        inputs: Feature sizes of the backbones; those of the built-in ones by default.
    """

    def __init__(
        self, dim: int = 256, hidden: int = 256, *, inputs: Mapping[Modality, int] | None = None
    ) -> None:
        super().__init__()
        self.dim = dim
        sizes = BACKBONE_DIMS if inputs is None else inputs
        self.heads = nn.ModuleDict(
            {name: _Head(sizes[name], dim, hidden) for name in MODALITIES if name in sizes}
        )
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(
        self, raw: Float[Tensor, "*batch features"], modality: Modality
    ) -> Float[Tensor, "*batch dim"]:
        """Backbone features of one modality to unit vectors of the shared space."""
        if modality not in self.heads:
            raise UsageError(
                f"this model's encoder takes no {modality} query", hint=f"use {', '.join(self.heads)}"
            )
        unit: Tensor = self.heads[modality](raw)
        return unit


def query_mixup(
    embeddings: Float[Tensor, "*batch modality dim"], weights: Float[Tensor, "*batch modality"]
) -> Float[Tensor, "*batch dim"]:
    r"""Query-Mixup, :math:`Q = \sum_m w_m e_m` with weights that sum to one (OmniSep, Cheng et al. 2025, Sec. 3.2).

    The published query is *not* brought back to unit length.

    >>> query_mixup(torch.eye(2), torch.tensor([0.25, 0.75])).tolist()
    [0.25, 0.75]
    """
    total = weights.sum(dim=-1, keepdim=True)
    return torch.einsum("...m,...md->...d", weights / total, embeddings)


def negative_query(
    query: Float[Tensor, "*batch dim"], unwanted: Float[Tensor, "*batch dim"], strength: float = 0.5
) -> Float[Tensor, "*batch dim"]:
    r"""Move away from what must not be heard: :math:`Q' = (1 + a) Q - a Q_N` (OmniSep, Sec. 3.3; a = 0.5).

    >>> negative_query(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])).tolist()
    [1.5, -0.5]
    """
    return (1 + strength) * query - strength * unwanted


def query_augment(
    query: Float[Tensor, "*batch dim"], bank: Float[Tensor, "entry dim"]
) -> tuple[Float[Tensor, "*batch dim"], Int[Tensor, "*batch"]]:
    """Query-Aug: replace a free-form query by its nearest entry of an in-domain bank (OmniSep, Sec. 3.4).

    Args:
        query: Any vectors.
        bank: Unit vectors of queries that the separator was trained on.

    Returns:
        The entries and their numbers.
    """
    index = (query @ bank.t()).argmax(dim=-1)
    return bank[index], index


def info_nce(
    first: Float[Tensor, "batch dim"],
    second: Float[Tensor, "batch dim"],
    labels: Int[Tensor, "batch"],
    scale: Float[Tensor, ""],
    valid: Bool[Tensor, "batch"] | None = None,
) -> Float[Tensor, ""]:
    r"""Symmetric InfoNCE in which every pair of the same label is a positive.

    With :math:`S = s\,A B^\top` and targets uniform over equal labels, the mean of both cross-entropies. Rows that are
    not ``valid`` are left out; with none left the loss is zero.
    """
    if valid is not None:
        first, second, labels = first[valid], second[valid], labels[valid]
    if len(labels) == 0:
        return scale * 0.0
    target = (labels[:, None] == labels[None, :]).to(first)
    target = target / target.sum(dim=1, keepdim=True)
    logits = scale * first @ second.t()
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target)) / 2
