r"""How much cleaner the estimate is than the mixture: the reward that needs the true target.

Symbols: estimate :math:`\hat s`, target :math:`s`, mixture :math:`x`, limit :math:`L`. Synthetic mixtures know
their target; recordings do not, and are nan here.
"""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from auralign.errors import UsageError
from auralign.rewards.base import Scene

_SILENCE_PEAK = 2.0**-24  # as in the metrics: half a step of 24-bit audio
_UNIT_DB = 10.0


def bounded_si_sdr(
    est: Float[Tensor, "*batch time"], ref: Float[Tensor, "*batch time"], *, ceiling_db: float = 40.0
) -> Float[Tensor, "*batch"]:
    r"""SI-SDR that levels off at ± ``ceiling_db``: :math:`10\log_{10}\frac{c^2 + \tau}{1 - c^2 + \tau}`, in dB.

    :math:`c` is the cosine of estimate and reference, :math:`\tau = 10^{-ceiling/10}` (the soft threshold of
    Wisdom et al. 2020, arXiv:2006.12701, Eq. 2, on both sides). Between the ceilings it is the SI-SDR of Le Roux
    et al. 2019, invariant to gain and sign; a perfect or an orthogonal estimate stays finite, gradients too. A
    silent estimate has no SI-SDR and scores the floor; a silent reference gives nan.

    Args:
        est: Estimate.
        ref: Reference.
        ceiling_db: Where it levels off, dB.

    >>> est, ref = torch.tensor([2.2, -1.8]), torch.tensor([1.0, -1.0])
    >>> round(float(bounded_si_sdr(est, ref)), 1)
    20.0
    """
    est, ref = est.float(), ref.float()
    tau = 10 ** (-ceiling_db / 10)
    heard = est.detach().abs().amax(-1, keepdim=True) > _SILENCE_PEAK
    known = ref.detach().abs().amax(-1, keepdim=True) > _SILENCE_PEAK
    unit_est = _unit(torch.where(heard, est, torch.ones_like(est)))
    unit_ref = _unit(torch.where(known, ref, torch.ones_like(ref)))
    cosine = (unit_est * unit_ref).sum(-1, keepdim=True)
    signal = cosine.square().squeeze(-1)
    noise = (unit_est - cosine * unit_ref).square().sum(-1)  # = 1 - c², without its rounding near c = 1
    decibels = 10 * (torch.log10(signal + tau) - torch.log10(noise + tau))
    decibels = torch.where(heard.squeeze(-1), decibels, torch.full_like(decibels, -ceiling_db))
    return torch.where(known.squeeze(-1), decibels, torch.nan)


def _unit(wave: Float[Tensor, "*batch time"]) -> Float[Tensor, "*batch time"]:
    """Sounds at unit energy; the peak goes first, so that faint ones do not underflow."""
    wave = wave / wave.detach().abs().amax(-1, keepdim=True)
    return wave / wave.square().sum(-1, keepdim=True).sqrt()


@final
class FidelityReward:
    r"""Bounded SI-SDR improvement, :math:`\frac{L}{10} \tanh\frac{SISDR(\hat s) - SISDR(x)}{L}`.

    One unit is about 10 dB near zero, the range is ± L/10. The mixture itself scores 0, a silent estimate scores
    close to the minimum (leaving it out would make silence free), and where the mixture *is* the target, the best
    is 0: pass it unchanged. nan where no target is known or where it is silent.

    Args:
        limit_db: L, dB.

    Attributes:
        metrics: Metrics that this reward trains on; reports must mark them so.
    """

    metrics = ("si_sdr", "si_sdri", "snr", "snri", "sd_sdr")

    def __init__(self, limit_db: float = 20.0) -> None:
        if not limit_db > 0:
            raise UsageError(f"limit_db is {limit_db}; it must be above 0", where="FidelityReward")
        self.limit_db = limit_db

    def __call__(self, scene: Scene) -> Float[Tensor, "batch group"]:
        """Score every member of every group."""
        if scene.target is None:
            return torch.full(scene.estimate.shape[:2], torch.nan, device=scene.estimate.device)
        before = bounded_si_sdr(scene.mixture, scene.target)[:, None]
        gained = bounded_si_sdr(scene.estimate, scene.target[:, None].expand_as(scene.estimate)) - before
        return self.limit_db / _UNIT_DB * torch.tanh(gained / self.limit_db)
