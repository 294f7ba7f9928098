r"""Losses of the three alignment stages (MARS-Sep, arXiv:2510.10509, Sec. 3.2, Eq. 7-9), as pure functions.

Unit vectors everywhere. Symbols: a sound, t words, v picture, a⁺ another sound of the class, z* fused anchor, s the
scale before the softmax, q true SI-SDR in dB. The paper names the terms of each stage; their coefficients, margins and
the ranking term are ours.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from auralign.models.query_encoder import info_nce


def stage_one(
    audio: Float[Tensor, "batch dim"],
    text: Float[Tensor, "batch dim"],
    labels: Int[Tensor, "batch"],
    scale: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    r"""Eq. 7: symmetric InfoNCE between sounds and words, :math:`\mathcal L_{S1} = \mathcal L_{contrast}(a, t)`."""
    return info_nce(audio, text, labels, scale)


def hard_info_nce(
    anchor: Float[Tensor, "batch dim"],
    positive: Float[Tensor, "batch dim"],
    labels: Int[Tensor, "batch"],
    scale: Float[Tensor, ""],
    negative: Float[Tensor, "batch hard dim"],
    negative_labels: Int[Tensor, "batch hard"],
) -> Float[Tensor, ""]:
    r"""InfoNCE whose denominators also hold sounds that are no clean example of any class, or of another one.

    .. math:: -\frac1B \sum_i \log \frac{\sum_{j: l_j = l_i} \frac{1}{n_i} e^{s \langle a_i, p_j\rangle}}{
        \sum_j e^{s \langle a_i, p_j\rangle} + \sum_{k \in N_i} e^{s \langle a_i, n_k\rangle}}

    in the form of cross-entropy with uniform targets over equal labels, plus the plain loss from p to a.

    Args:
        anchor: a.
        positive: p.
        labels: Classes of both.
        scale: s.
        negative: n, some for each item; all items see all of them.
        negative_labels: A negative of the same class as an item does not count for it; -1 is nobody's class, but
            counts only for its own item (an unseparated mixture).
    """
    same = labels[:, None] == labels[None, :]
    target = same.to(anchor)
    target = target / target.sum(dim=1, keepdim=True)
    hard = negative.flatten(0, 1)
    classes = negative_labels.flatten()
    owner = torch.arange(len(labels), device=labels.device).repeat_interleave(negative.shape[1])
    mine = owner[None, :] == torch.arange(len(labels), device=labels.device)[:, None]
    counts = torch.where(classes[None, :] < 0, mine, classes[None, :] != labels[:, None])
    extra = (scale * anchor @ hard.t()).masked_fill(~counts, -torch.inf)
    logits = torch.cat([scale * anchor @ positive.t(), extra], dim=1)
    # written out: a target of 0 times a log-probability of minus infinity would be nan
    forward = (torch.logsumexp(logits, dim=1) - (target * logits[:, : len(labels)]).sum(dim=1)).mean()
    backward = F.cross_entropy(scale * positive @ anchor.t(), target)
    return (forward + backward) / 2


def triplet(
    anchor: Float[Tensor, "batch dim"],
    positive: Float[Tensor, "batch dim"],
    negative: Float[Tensor, "batch hard dim"],
    margin: float,
) -> Float[Tensor, ""]:
    r"""Mean of :math:`\max(0, m - \cos(a, p) + \cos(a, n))` over each item's negatives."""
    near = (anchor * positive).sum(dim=1, keepdim=True)
    far = torch.einsum("bd,bhd->bh", anchor, negative)
    return F.relu(margin - near + far).mean()


def consistency(sound: Float[Tensor, "batch dim"], changed: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
    r"""Mean squared distance :math:`\|\phi(y) - \phi(y')\|^2` to the same sound changed in what must not matter."""
    return (sound - changed).square().sum(dim=1).mean()


def ranking(
    score: Float[Tensor, "scene variant"],
    quality: Float[Tensor, "scene variant"],
    *,
    slope: float = 0.02,
    softness: float = 0.05,
    least_db: float = 1.0,
) -> Float[Tensor, ""]:
    r"""The better separation of the same mixture must score higher, by a margin that grows with the difference.

    .. math:: \frac{1}{|P|} \sum_{(u, w) \in P} \sigma\, \mathrm{softplus}\Big(
        \frac{b\,(q_u - q_w) - (s_u - s_w)}{\sigma}\Big), \qquad P = \{(u, w): q_u > q_w + q_{min}\}

    Args:
        score: s, the reward of each sound.
        quality: q, SI-SDR in dB.
        slope: b, wanted difference of the score a decibel.
        softness: σ.
        least_db: Pairs closer than this say nothing.
    """
    gain = quality[:, :, None] - quality[:, None, :]
    ahead = score[:, :, None] - score[:, None, :]
    pairs = (gain > least_db).to(score)
    loss = softness * F.softplus((slope * gain - ahead) / softness)
    return (loss * pairs).sum() / pairs.sum().clamp_min(1.0)


def stage_two(
    terms: dict[str, Float[Tensor, ""]], weights: tuple[float, float, float, float, float]
) -> Float[Tensor, ""]:
    r"""Eq. 8: :math:`\mathcal L_{S2} = \lambda_1 contrast + \lambda_2 tri + \lambda_3 con`, + λ₄ rank + λ₅ L_S1.

    Args:
        terms: ``contrast``, ``triplet``, ``consistency``, ``ranking``, ``earlier``.
        weights: λ₁ to λ₅.
    """
    names = ("contrast", "triplet", "consistency", "ranking", "earlier")
    return torch.stack([w * terms[name] for w, name in zip(weights, names, strict=True)]).sum()


def stage_three(
    terms: dict[str, Float[Tensor, ""]], weights: tuple[float, float, float, float, float]
) -> Float[Tensor, ""]:
    r"""Eq. 9: :math:`\mathcal L_{S3} = \mu_1 contrast + \mu_2 tri + \mu_3 L_{S1} + \mu_4 L_{S2}`, + μ₅ pooling.

    Args:
        terms: ``nce_av``, ``triplet_av``, ``stage_one``, ``stage_two``, ``pooling``.
        weights: μ₁ to μ₅.
    """
    names = ("nce_av", "triplet_av", "stage_one", "stage_two", "pooling")
    return torch.stack([w * terms[name] for w, name in zip(weights, names, strict=True)]).sum()


def audio_picture(
    audio: Float[Tensor, "batch dim"],
    image: Float[Tensor, "batch dim"],
    labels: Int[Tensor, "batch"],
    scale: Float[Tensor, ""],
    shown: Bool[Tensor, "batch"],
    negative: Float[Tensor, "batch hard dim"],
    margin: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """InfoNCE and triplet between sounds and pictures, of the items that have a picture."""
    contrast = info_nce(audio, image, labels, scale, shown)
    if not bool(shown.any()):
        return contrast, scale * 0.0
    return contrast, triplet(image[shown], audio[shown], negative[shown], margin)
