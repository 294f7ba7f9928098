r"""How far masks are from the mixtures that they should reconstruct: BiSep's magnitudes, or the masks themselves.

Both compare what masks make of the mixture of mixtures with a mixture :math:`x_n` that is known, so neither needs a
single source.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from auralign.algorithms.bisep_loss import consistent_reconstruction, reconstruction_of_mixtures
from auralign.algorithms.omnisep_loss import mask_error_db
from auralign.algorithms.separator_pass import SeparatorPass
from auralign.models.bands import BandProjector
from auralign.models.separator import SeparatorModel

_ERROR = 0.02
_ENTROPY = 0.2


@runtime_checkable
class Measure(Protocol):
    """Error of masks of each mixture."""

    def __call__(
        self, logits: Float[Tensor, "batch mix row frame"] | None, mask: Float[Tensor, "batch mix row frame"]
    ) -> Float[Tensor, "batch mix"]:
        """The error; a sum of masks has no logits."""


def published_measure(
    model: SeparatorModel, out: SeparatorPass, mixtures: Float[Tensor, "batch mix time"]
) -> Measure:
    r"""URL and CRL as published: :math:`\mathrm{WL1}(m|M|, |x_n|; w)`.

    The weight is :math:`w(|M|)` for the mask of a caption and :math:`w(|x_n|)` for a sum of masks.
    """
    whole = out.spec.abs()
    target = model.spectrogram(mixtures)[..., : out.spec.shape[-1]].abs()
    alone = torch.ones(*target.shape[:2], 1, device=target.device)

    def measure(logits: Tensor | None, mask: Tensor) -> Tensor:
        bins = model.net.to_bins(mask)
        if logits is None:
            return consistent_reconstruction(bins[:, :, None], alone, whole, target)
        return reconstruction_of_mixtures(bins, whole, target)

    return measure


def mask_measure(
    model: SeparatorModel,
    out: SeparatorPass,
    mixtures: Float[Tensor, "batch mix time"],
    *,
    claim: float = 0.0,
) -> Measure:
    r"""Ours: :math:`\frac{1}{50}\,\mathrm{error\ in\ dB} + \frac15\,\mathrm{BCE}` of a mask against the best one.

    A magnitude error hardly moves a mask while several answers are possible; the logarithm does, at every level. The
    best mask of :math:`x_n` in M is the phase-sensitive one. A sum of masks is only measured in dB.
    """
    with torch.no_grad():
        spec = model.spectrogram(mixtures)[..., : out.spec.shape[-1]]
        best = _best_mask(out, spec, model.net.projector)
        power = spec.real.square() + spec.imag.square()
        source = power if model.net.projector is None else model.net.projector(power)
        magnitude = out.energy.clamp_min(1e-12).sqrt()
        weight = (magnitude / magnitude.mean(dim=(1, 2), keepdim=True)).clamp(max=10)[:, None]

    def measure(logits: Tensor | None, mask: Tensor) -> Tensor:
        error = _ERROR * mask_error_db(mask, best, out.energy, source)
        if logits is not None:
            entropy = F.binary_cross_entropy_with_logits(logits, best.clamp(0, 1), reduction="none")
            return error + _ENTROPY * (entropy * weight).mean(dim=(2, 3))
        if claim == 0:
            return error
        inside = mask.clamp(1e-4, 1 - 1e-4)
        entropy = F.binary_cross_entropy(inside, best.clamp(0, 1), reduction="none")
        return error + claim * _ENTROPY * (entropy * weight).mean(dim=(2, 3))

    return measure


def _best_mask(
    out: SeparatorPass, source: Tensor, bands: BandProjector | None
) -> Float[Tensor, "batch mix row frame"]:
    """The real mask on the network's grid that brings the mixture of mixtures nearest to each mixture."""
    cross = out.spec.real[:, None] * source.real + out.spec.imag[:, None] * source.imag
    cross = cross if bands is None else bands(cross)
    return cross / out.energy[:, None].clamp_min(1e-12)
