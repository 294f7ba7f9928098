"""What a held-out judge hears: cosines between its embeddings of estimate, reference, interferer and mixture.

The judge is a model and lives above this layer; the caller passes embeddings of any norm. A cosine alone says
little (two unrelated sounds are rarely at 0), so every figure is relative: to the interferer, to the mixture,
or to all other classes.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from auralign.errors import UsageError


def cosine(
    *, est: Float[Tensor, "*batch dim"], ref: Float[Tensor, "*batch dim"]
) -> Float64[Tensor, "*batch"]:
    r"""Cosine :math:`\langle a, b\rangle / (\|a\|\|b\|)`; nan for a zero or non-finite vector.

    >>> cosine(est=torch.tensor([2.0, 0.0]), ref=torch.tensor([1.0, 0.0])).item()
    1.0
    """
    a, b = est.double(), ref.double()
    size = torch.linalg.vector_norm(a, dim=-1) * torch.linalg.vector_norm(b, dim=-1)
    inside = ((a * b).sum(-1) / size).clamp(-1, 1)
    return torch.where((size > 0) & torch.isfinite(size), inside, torch.nan)


def margin(
    *, est: Float[Tensor, "*batch dim"], ref: Float[Tensor, "*batch dim"], other: Float[Tensor, "*batch dim"]
) -> Float64[Tensor, "*batch"]:
    r"""How much closer the estimate is to its reference than to another sound, :math:`\cos(e,r) - \cos(e,o)`.

    Args:
        est: Embedding of the estimate.
        ref: Embedding of the reference.
        other: Embedding of the interferer, or of the mixture.
    """
    return cosine(est=est, ref=ref) - cosine(est=est, ref=other)


def class_rank(
    *,
    est: Float[Tensor, "*batch dim"],
    prototypes: Float[Tensor, "class dim"],
    target: Int[Tensor, "*batch"],
) -> Float64[Tensor, "*batch"]:
    r"""Rank of the target's class among all class prototypes by cosine, 1 is best; ties take the middle.

    :math:`1 + |\{c : \cos_c > \cos_t\}| + \tfrac12 |\{c \ne t : \cos_c = \cos_t\}|`.

    Args:
        est: Embedding of the estimate.
        prototypes: One embedding per class (for example the mean over its training clips).
        target: Index of the right class.

    >>> prototypes = torch.eye(3)
    >>> class_rank(est=torch.tensor([0.9, 0.5, 0.1]), prototypes=prototypes, target=torch.tensor(1)).item()
    2.0
    """
    if target.numel() and not bool(((target >= 0) & (target < len(prototypes))).all()):
        raise UsageError(
            f"target outside 0…{len(prototypes) - 1}", where="class_rank", hint="index the rows of prototypes"
        )
    agreement = cosine(
        est=est.unsqueeze(-2).expand(*est.shape[:-1], len(prototypes), est.shape[-1]),
        ref=prototypes.expand(*est.shape[:-1], *prototypes.shape),
    )
    own = agreement.gather(-1, target.unsqueeze(-1))
    rank = 1 + (agreement > own).sum(-1).double() + 0.5 * ((agreement == own).sum(-1).double() - 1)
    return torch.where(torch.isfinite(agreement).all(-1), rank, torch.nan)
