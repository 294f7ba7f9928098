"""The terms of BiSep's loss on one batch: one pass for all captions and phrases, one hearing for all estimates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from auralign.algorithms.bisep_config import LossConfig
from auralign.algorithms.bisep_data import PairConfig, Pairs, Texts
from auralign.algorithms.bisep_loss import contrastive, gather
from auralign.algorithms.bisep_measure import mask_measure, published_measure
from auralign.algorithms.separator_pass import SeparatorPass, hear, separator_pass
from auralign.models.bimodal import BimodalEncoder
from auralign.models.separator import SeparatorModel


@runtime_checkable
class Forms(Protocol):
    """What a configuration must say about the loss."""

    @property
    def loss(self) -> LossConfig:
        """Weights and forms of the terms."""

    @property
    def pairs(self) -> PairConfig:
        """How mixtures of mixtures are made."""

    @property
    def precision(self) -> str:
        """Arithmetic of the network."""


@dataclass(frozen=True)
class Teacher:
    """The frozen encoder and its vectors of all texts."""

    encoder: BimodalEncoder
    texts: Float[Tensor, "text dim"]


def ask(cfg: Forms, model: SeparatorModel, batch: Pairs, texts: Texts, *, phrased: bool) -> SeparatorPass:
    """One pass for both captions, all phrases if they are asked for, and the text that is not there."""
    whole = batch.mixtures.sum(dim=1)
    asked = [batch.captions, *([batch.phrases.flatten(1)] if phrased else []), batch.absent[:, None]]
    query = texts.vectors[torch.cat(asked, dim=1).cpu()].to(whole.device).float()
    return separator_pass(model, whole, query, bfloat16=cfg.precision == "bfloat16")


def loss_terms(
    cfg: Forms,
    model: SeparatorModel,
    batch: Pairs,
    texts: Texts,
    teacher: Teacher | None,
    chance: torch.Generator,
    out: SeparatorPass | None = None,
) -> dict[str, Tensor]:
    """All terms of one micro-batch, unweighted, and their weighted sum as ``loss``.

    Args:
        cfg: Weights and forms.
        model: The separator.
        batch: Mixtures of mixtures.
        texts: What its numbers mean.
        teacher: For phrases; without one only captions count.
        chance: Draws which estimates are heard.
        out: The pass of :func:`ask`, if it was made already.
    """
    if out is None:
        out = ask(cfg, model, batch, texts, phrased=teacher is not None)
    masks = torch.sigmoid(out.logits)
    if cfg.loss.form == "l1":
        reconstruct = published_measure(model, out, batch.mixtures)
    else:
        reconstruct = mask_measure(model, out, batch.mixtures, claim=cfg.loss.claim)
    terms = {
        "url": reconstruct(out.logits[:, :2], masks[:, :2]).sum(dim=1).mean(),
        "presence": _presence(out, batch, phrased=teacher is not None),
    }
    if teacher is not None:
        named = masks[:, 2:-1].unflatten(1, batch.phrases.shape[1:])
        together = gather(named, batch.share, cfg.loss.consistency)
        terms["crl"] = (reconstruct(None, together) * batch.weak).sum(dim=1).mean()
        terms["cnt"] = _contrast(cfg, model, named, out, batch, texts, teacher, chance)
    weights = {"url": cfg.loss.mixtures, "crl": cfg.loss.phrases}
    weights |= {"cnt": cfg.loss.contrast, "presence": cfg.loss.presence}
    total = torch.stack([weights[name] * value for name, value in terms.items()]).sum()
    return {**terms, "loss": total}


def _presence(out: SeparatorPass, batch: Pairs, *, phrased: bool) -> Float[Tensor, ""]:
    """Captions and phrases are there, the last query is not; padding does not count."""
    there = [torch.ones_like(batch.weak)]
    if phrased:
        there.append((batch.share > 0).float().flatten(1))
    counts = torch.cat([*there, torch.ones_like(batch.weak[:, :1])], dim=1)
    target = torch.ones_like(counts)
    target[:, -1] = 0
    return (
        F.binary_cross_entropy_with_logits(out.presence, target, weight=counts, reduction="sum")
        / counts.sum()
    )


def _contrast(
    cfg: Forms,
    model: SeparatorModel,
    masks: Float[Tensor, "batch mix phrase row frame"],
    out: SeparatorPass,
    batch: Pairs,
    texts: Texts,
    teacher: Teacher,
    chance: torch.Generator,
) -> Float[Tensor, ""]:
    """CNT over all phrases of mixtures; the sum over both mixtures as published."""
    counts = (batch.share > 0) & (batch.weak > 0)[..., None]
    item, mix, place = counts.nonzero(as_tuple=True)
    if len(item) == 0:
        return masks.new_zeros(())
    number = batch.phrases[item, mix, place]
    heard = chosen_rows(len(item), cfg.loss.rows, chance).to(item.device)
    pieces = masks[item[heard], mix[heard], place[heard]][:, None]
    wave = hear(model, pieces, out.spec[item[heard]], batch.mixtures.shape[-1])[:, 0]
    if cfg.loss.by_level:
        wave = as_loud_as(wave, batch.mixtures.sum(dim=1)[item[heard]])
    audio = teacher.encoder.audio(wave)
    total, form = masks.new_zeros(()), cfg.loss
    for n in (0, 1) if form.among == "published" else (None,):
        mine = (
            torch.arange(len(heard), device=item.device) if n is None else (mix[heard] == n).nonzero()[:, 0]
        )
        bank = torch.arange(len(item), device=item.device) if n is None else (mix == n).nonzero()[:, 0]
        rows = torch.cat([heard[mine], bank[~torch.isin(bank, heard[mine])]])
        left_out = torch.zeros(len(mine), len(rows), dtype=torch.bool, device=audio.device)
        if form.spare_close:
            unit = texts.unit[number[rows].cpu()]
            left_out |= ((unit[: len(mine)] @ unit.t()) >= cfg.pairs.same).to(audio.device)
        if form.among == "pair":
            left_out |= item[rows[: len(mine)], None] != item[rows][None, :]
        total = total + contrastive(
            audio[mine],
            teacher.texts[number[rows]],
            teacher.encoder.scale,
            number[rows],
            multi_positive=form.multi_positive,
            symmetric=form.symmetric,
            left_out=left_out,
        )
    return total * (1 if form.among == "published" else 2)


def as_loud_as(
    wave: Float[Tensor, "row time"], whole: Float[Tensor, "row time"]
) -> Float[Tensor, "row time"]:
    r"""The same sounds, whose gradient is :math:`\min(1, \mathrm{rms}(y)/\mathrm{rms}(M))` of what it was.

    An encoder that brings every sound to one level has a gradient that grows as the sound fades: a nearly silent
    estimate would outweigh all others. Weighed like this it is the gradient of a sound heard at the mixture's level.
    """
    with torch.no_grad():
        level = wave.square().mean(dim=1, keepdim=True).sqrt()
        factor = (level / whole.square().mean(dim=1, keepdim=True).sqrt().clamp_min(1e-8)).clamp(max=1.0)
    return wave.detach() + factor * (wave - wave.detach())


def chosen_rows(count: int, most: int, chance: torch.Generator) -> Int[Tensor, " row"]:
    """Which of ``count`` estimates are heard, in order; all of them where ``most`` is 0."""
    if most == 0 or count <= most:
        return torch.arange(count)
    return torch.randperm(count, generator=chance)[:most].sort().values
