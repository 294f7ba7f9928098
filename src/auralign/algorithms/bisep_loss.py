r"""Losses of BiSep (Mahmud et al., ICLR 2024, arXiv:2404.01740) as pure functions.

Symbols: :math:`M = \sum_n x_n` mixture of mixtures, :math:`x_n` mixture with caption :math:`c_n` and phrases
:math:`t_{n,k}`, :math:`m(\cdot)` predicted mask, :math:`|\cdot|` STFT magnitude, :math:`w(S) = \mathrm{clip}(\ln(1+S),
10^{-3}, 10)` perceptual weight. Every mean runs over bins and frames; items of the batch are kept apart, so that each
can have its own weight.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


def perceptual_weight(magnitude: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r""":math:`w(S) = \mathrm{clip}(\ln(1 + S), 10^{-3}, 10)`.

    >>> perceptual_weight(torch.tensor([0.0, 1.0])).tolist()
    [0.0010000000474974513, 0.6931471824645996]
    """
    return torch.log1p(magnitude).clamp(1e-3, 10.0)


def weighted_l1(
    estimate: Float[Tensor, "*item bin frame"],
    target: Float[Tensor, "*item bin frame"],
    weight: Float[Tensor, "*item bin frame"],
) -> Float[Tensor, "*item"]:
    r""":math:`\mathrm{mean}(w\,|a - b|)` over bins and frames."""
    return (weight * (estimate - target).abs()).mean(dim=(-2, -1))


def reconstruction_of_mixtures(
    mask: Float[Tensor, "batch mix bin frame"],
    whole: Float[Tensor, "batch bin frame"],
    mixture: Float[Tensor, "batch mix bin frame"],
) -> Float[Tensor, "batch mix"]:
    r"""URL: :math:`\mathrm{WL1}(m(c_n)|M|, |x_n|; w(|M|))` for every mixture; the published loss sums over n.

    Args:
        mask: Of each mixture's caption.
        whole: :math:`|M|`.
        mixture: :math:`|x_n|`.
    """
    heard = mask * whole[:, None]
    return weighted_l1(heard, mixture, perceptual_weight(whole)[:, None].expand_as(heard))


def consistent_reconstruction(
    masks: Float[Tensor, "batch mix phrase bin frame"],
    share: Float[Tensor, "batch mix phrase"],
    whole: Float[Tensor, "batch bin frame"],
    mixture: Float[Tensor, "batch mix bin frame"],
) -> Float[Tensor, "batch mix"]:
    r"""CRL: :math:`\mathrm{WL1}(\sum_k a_{n,k} m(t_{n,k})|M|, |x_n|; w(|x_n|))` for every mixture.

    Args:
        masks: Of each mixture's phrases.
        share: :math:`a_{n,k}`: 0 for padding, 1 for a phrase, 1/multiplicity where the published code repeats it.
        whole: :math:`|M|`.
        mixture: :math:`|x_n|`.
    """
    together = torch.einsum("bnk,bnkft->bnft", share, masks) * whole[:, None]
    return weighted_l1(together, mixture, perceptual_weight(mixture))


def gather(
    masks: Float[Tensor, "batch mix phrase row frame"],
    share: Float[Tensor, "batch mix phrase"],
    how: Literal["sum", "union"],
) -> Float[Tensor, "batch mix row frame"]:
    r"""What the phrases of each mixture let through together, as a mask.

    The published :math:`\sum_k a_k m_k` has a comfortable wrong answer: where the separator cannot tell two phrases
    apart, both take half. The union :math:`1 - \prod_k (1 - a_k m_k)` asks only that every part of the mixture is
    claimed; who claims it is the contrastive term's to decide.

    >>> half = torch.full((1, 1, 2, 1, 1), 0.5)
    >>> [float(gather(half, torch.ones(1, 1, 2), how)) for how in ("sum", "union")]
    [1.0, 0.75]
    """
    each = share[..., None, None] * masks
    return each.sum(dim=2) if how == "sum" else 1 - (1 - each).prod(dim=2)


def contrastive(
    audio: Float[Tensor, "row dim"],
    text: Float[Tensor, "column dim"],
    scale: float,
    number: Int[Tensor, "column"],
    *,
    multi_positive: bool = True,
    symmetric: bool = True,
    left_out: Bool[Tensor, "row column"] | None = None,
) -> Float[Tensor, ""]:
    r"""CNT: cross-entropy of :math:`s A T^\top` with each estimate's own phrase.

    As published the label is the diagonal, even where two columns hold the same words, and only estimates choose among
    texts. With ``multi_positive`` columns with the same words are all positives.

    Args:
        audio: Unit vectors of the estimates.
        text: Unit vectors of their phrases, and after them of phrases whose estimate is not heard.
        scale: s, constant.
        number: Which words a column has; equal numbers, equal words.
        multi_positive: Targets uniform over columns with the same words.
        symmetric: Also the estimates' own texts choose among them; the mean of both directions.
        left_out: Pairs that are no negatives, such as words that say nearly the same.
    """
    rows = len(audio)
    if rows == 0:
        return audio.sum()
    same = torch.eye(rows, len(text), dtype=torch.bool, device=audio.device)
    if multi_positive:
        same = number[:rows, None] == number[None, :]
    logits = scale * audio @ text.t()
    if left_out is not None:
        logits = logits.masked_fill(left_out & ~same, -1e4)
    loss = F.cross_entropy(logits, same.to(audio) / same.sum(dim=1, keepdim=True))
    if not symmetric:
        return loss
    own = same[:, :rows].t()
    back = F.cross_entropy(logits[:, :rows].t(), own.to(audio) / own.sum(dim=1, keepdim=True))
    return (loss + back) / 2


def repeat_phrases(
    count: int, size: int, picks: Int[Tensor, "size"]
) -> tuple[Int[Tensor, "size"], Float[Tensor, "size"]]:
    """The published padding of a phrase list: random repeats at its end, each with 1/multiplicity.

    Args:
        count: Phrases there are, at most ``size``.
        size: Length of the padded list.
        picks: Random numbers below ``count``; those from place ``count`` on are used.

    Returns:
        Which phrase stands at each place, and its share.

    >>> repeat_phrases(2, 3, torch.tensor([0, 0, 1]))
    (tensor([0, 1, 1]), tensor([1.0000, 0.5000, 0.5000]))
    """
    index = torch.arange(size)
    index = torch.where(index < count, index, picks)
    return index, 1.0 / torch.bincount(index, minlength=count)[index].float()
