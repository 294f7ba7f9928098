"""One pass of a separator over a batch of mixtures, and the supervised loss terms of what it says.

Shared by the supervised training (OmniSep) and the reinforcement learning on top of it (MARS-Sep): both start from
masks on the network's own grid, which is 128 bands for the small network and 256 warped rows for the published one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float
from torch import Tensor

from auralign.algorithms.omnisep_loss import (
    binary_target,
    leak_db,
    magnitude_weight,
    mask_error_db,
    soft_bce,
    weighted_bce,
)
from auralign.algorithms.query_banks import RawQueries
from auralign.errors import UsageError
from auralign.models.bands import best_band_mask
from auralign.models.omnisep import OmniSepNet, SmallSeparator
from auralign.models.query_encoder import QueryHeads, info_nce
from auralign.models.separator import SeparatorModel


@dataclass(frozen=True)
class LossConfig:
    """Weights of the supervised loss terms."""

    error_db: float = 0.1
    """Error of present sources in dB (network ``small``)."""
    leak_db: float = 0.03
    """Level of what an absent query lets through, dB."""
    bce: float = 1.0
    """Cross-entropy of the masks: soft target for ``small``, the published weighted binary one for ``omnisep``."""
    presence: float = 0.2
    """Cross-entropy of the presence score."""
    align: float = 0.05
    """InfoNCE between the modalities of a query."""


@dataclass(frozen=True)
class Mixtures:
    """A batch as tensors: sources after equalisation, their sum, and what is asked."""

    sources: Float[Tensor, "batch source time"]
    mixture: Float[Tensor, "batch time"]
    present: Float[Tensor, "batch query"]
    raw: RawQueries

    def to(self, device: torch.device) -> Mixtures:
        """The same batch on another device."""
        return Mixtures(
            self.sources.to(device), self.mixture.to(device), self.present.to(device), self.raw.to(device)
        )


@dataclass(frozen=True)
class SeparatorPass:
    """What a separator says of a batch, on its own grid of rows and frames."""

    spec: Complex[Tensor, "batch bin frame"]
    """STFT of the mixture."""
    energy: Float[Tensor, "batch row frame"]
    """Power of the mixture in each cell of the grid."""
    logits: Float[Tensor, "batch query row frame"]
    """Mask logits; their sigmoid is the proposal P of a mask policy."""
    presence: Float[Tensor, "batch query"]
    """Logits that the queried sound is there."""


def separator_pass(
    model: SeparatorModel,
    mixture: Float[Tensor, "batch time"],
    query: Float[Tensor, "batch query dim"],
    *,
    bfloat16: bool = False,
) -> SeparatorPass:
    """Masks of all queries from one pass; frames are cut to whole hops, as the networks want them in training."""
    spec = model.spectrogram(mixture)[..., : mixture.shape[-1] // model.hop]
    with torch.autocast(spec.device.type, dtype=torch.bfloat16, enabled=bfloat16):
        state = model.net.analyse(spec, mixture)
        out = model.net.respond(state, query)
    return SeparatorPass(spec, state["energy"], out.logits, out.presence)


def hear(
    model: SeparatorModel,
    mask: Float[Tensor, "batch group row frame"],
    spec: Complex[Tensor, "batch bin frame"],
    samples: int,
) -> Float[Tensor, "batch group time"]:
    """What masks let through: mask times the mixture's STFT with its phase, back in time."""
    masked = model.net.to_bins(mask) * spec[:, None]
    masked = F.pad(masked, (0, samples // model.hop + 1 - masked.shape[-1]))
    window = torch.hann_window(model.n_fft, dtype=mask.dtype, device=mask.device)
    flat = torch.istft(masked.flatten(0, 1), model.n_fft, model.hop, window=window, length=samples)
    return flat.view(*mask.shape[:2], samples)


def supervised_terms(
    model: SeparatorModel, out: SeparatorPass, batch: Mixtures, heads: QueryHeads | None = None
) -> dict[str, Tensor]:
    """All supervised loss terms, unweighted; two sources and one absent query a mixture."""
    source_spec = model.spectrogram(batch.sources)[..., : out.spec.shape[-1]]
    if isinstance(model.net, SmallSeparator):
        terms = _small_terms(model.net, out, source_spec, batch)
    elif isinstance(model.net, OmniSepNet):
        terms = _published_terms(model.net, out, source_spec, batch)
    else:
        raise UsageError(
            f"the network {model.network!r} has no supervised loss of single sources",
            hint="train it with its own algorithm, and fine-tune it with anchor = 0",
        )
    terms["presence"] = F.binary_cross_entropy_with_logits(out.presence, batch.present)
    terms["align"] = alignment_loss(model.query_heads if heads is None else heads, batch.raw)
    return terms


def weighted_sum(terms: dict[str, Tensor], weights: LossConfig) -> Float[Tensor, ""]:
    """The supervised loss."""
    share = vars(weights)
    return torch.stack([share[name] * value for name, value in terms.items()]).sum()


def _small_terms(
    net: SmallSeparator, out: SeparatorPass, source_spec: Tensor, batch: Mixtures
) -> dict[str, Tensor]:
    """Of the small network, in the band domain."""
    with torch.no_grad():
        _, best = best_band_mask(out.spec[:, None], source_spec, net.bands)
        source_energy = net.bands(source_spec.real.square() + source_spec.imag.square())
        best = torch.cat([best, torch.zeros_like(best[:, :1])], dim=1)  # the absent query
    mask = torch.sigmoid(out.logits.float())
    audible, silent = batch.present[:, :2], 1 - batch.present
    error = mask_error_db(mask[:, :2], best[:, :2], out.energy, source_energy)
    leak = leak_db(mask, out.energy)
    return {
        "error_db": (error * audible).sum() / audible.sum(),
        "leak_db": (leak * silent).sum() / silent.sum(),
        "bce": soft_bce(out.logits, best, out.energy),
    }


def _published_terms(
    net: OmniSepNet, out: SeparatorPass, source_spec: Tensor, batch: Mixtures
) -> dict[str, Tensor]:
    """Of the published network: weighted BCE to binary masks on the warped axis, N = 2."""
    with torch.no_grad():
        warped = out.energy.sqrt()
        target = binary_target(net.warp(source_spec.abs()), warped)
        weight = magnitude_weight(warped)
    return {
        "bce": weighted_bce(out.logits[:, :2], target * batch.present[:, :2, None, None], weight),
        "leak_db": leak_db(torch.sigmoid(out.logits[:, 2:]), out.energy).mean(),
    }


def alignment_loss(heads: QueryHeads, raw: RawQueries) -> Float[Tensor, ""]:
    """InfoNCE between text and audio and between text and picture of all queries of a batch."""
    labels = raw.labels.flatten()
    scale = heads.log_scale.exp().clamp(max=100)
    text = heads(raw.features["text"], "text").flatten(0, 1)
    audio = heads(raw.features["audio"], "audio").flatten(0, 1)
    loss = info_nce(text, audio, labels, scale)
    shown = raw.has_image.flatten() > 0
    if bool(shown.any()):
        image = heads(raw.features["image"], "image").flatten(0, 1)
        loss = loss + info_nce(text, image, labels, scale, shown)
    return loss
