r"""Energy ratios between an estimate and its reference: SNR, SI-SDR, SD-SDR and their improvements.

Symbols: reference :math:`s`, estimate :math:`\hat s`, mixture :math:`x`,
:math:`\alpha = \langle\hat s, s\rangle / \|s\|^2`. Everything is computed in float64 and cut to
±150 dB. Items that cannot be scored are nan; :func:`score` gives the reason with the value.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from auralign.errors import UsageError
from auralign.metrics.contract import (
    CLAMP_DB,
    SILENCE_PEAK,
    MetricResult,
    require_same_shape,
    why_unscorable,
)


def _db_ratio(signal: Tensor, noise: Tensor) -> Tensor:
    """``10 log10(signal / noise)`` cut to ±150 dB; energies are never negative, 0/0 is nan."""
    decibels = 10 * (torch.log10(signal) - torch.log10(noise))
    return decibels.clamp(-CLAMP_DB, CLAMP_DB)


def _scorable(*sounds: Tensor) -> Tensor:
    """True for items whose sounds are finite, longer than one sample and not silent."""
    keep = torch.full(sounds[0].shape[:-1], sounds[0].shape[-1] >= 2, device=sounds[0].device)
    if sounds[0].shape[-1] < 2:
        return keep
    for sound in sounds:
        keep = keep & torch.isfinite(sound).all(-1) & (sound.abs().amax(-1) > SILENCE_PEAK)
    return keep


def _ratio(est: Tensor, ref: Tensor, signal: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    """Energy ratio of the two parts that ``signal`` returns, nan where the item cannot be scored."""
    require_same_shape(est=est, ref=ref)
    keep = _scorable(est, ref)
    wanted, noise = signal(est.double(), ref.double())
    decibels = _db_ratio(wanted.square().sum(-1), noise.square().sum(-1))
    return torch.where(keep, decibels, torch.nan)


def _scaled(est: Tensor, ref: Tensor) -> Tensor:
    """The reference scaled to its best fit of the estimate: ``alpha s``."""
    return ref * ((est * ref).sum(-1, keepdim=True) / ref.square().sum(-1, keepdim=True))


def snr(*, est: Float[Tensor, "*batch time"], ref: Float[Tensor, "*batch time"]) -> Float64[Tensor, "*batch"]:
    r"""Signal-to-noise ratio, called "plain SDR": :math:`10\log_{10}\|s\|^2 / \|\hat s - s\|^2`, in dB.

    Invariant to nothing: gain, delay and DC all count as errors. AudioSep (arXiv:2308.05037) and
    DCASE 2024 task 9. Equals the SDR of BSS Eval 4 for one channel and the whole file.

    >>> round(float(snr(est=torch.tensor([1.1, -1.1]), ref=torch.tensor([1.0, -1.0]))), 3)
    20.0
    """
    return _ratio(est, ref, lambda e, s: (s, e - s))


def si_sdr(
    *, est: Float[Tensor, "*batch time"], ref: Float[Tensor, "*batch time"], zero_mean: bool = False
) -> Float64[Tensor, "*batch"]:
    r"""Scale-invariant SDR: :math:`10\log_{10}\|\alpha s\|^2 / \|\hat s - \alpha s\|^2`, in dB.

    Le Roux et al. 2019 (arXiv:1811.02508). Invariant to the estimate's gain and sign.

    Args:
        est: Estimate.
        ref: Reference.
        zero_mean: Remove the mean of both first (then it is called SI-SNR). AudioSep does not.

    >>> est, ref = torch.tensor([2.2, -1.8]), torch.tensor([1.0, -1.0])
    >>> round(float(si_sdr(est=est, ref=ref)), 3)
    20.0
    """
    require_same_shape(est=est, ref=ref)
    if zero_mean and est.shape[-1] > 0:
        est, ref = (x.double() - x.double().mean(-1, keepdim=True) for x in (est, ref))
    return _ratio(est, ref, lambda e, s: (_scaled(e, s), e - _scaled(e, s)))


def sd_sdr(
    *, est: Float[Tensor, "*batch time"], ref: Float[Tensor, "*batch time"]
) -> Float64[Tensor, "*batch"]:
    r"""Scale-dependent SDR: :math:`10\log_{10}\|\alpha s\|^2 / \|\hat s - s\|^2`, in dB.

    Equals :math:`SNR + 20\log_{10}|\alpha|` and so punishes an estimate that was only made quieter.
    Le Roux et al. 2019 (arXiv:1811.02508), Sec. 4.
    """
    return _ratio(est, ref, lambda e, s: (_scaled(e, s), e - s))


def _improvement(
    metric: Callable[..., Tensor], *, est: Tensor, ref: Tensor, mixture: Tensor, **settings: bool
) -> Tensor:
    require_same_shape(est=est, ref=ref, mixture=mixture)
    gained = metric(est=est, ref=ref, **settings) - metric(est=mixture, ref=ref, **settings)
    return torch.where(_scorable(mixture - ref), gained, torch.nan)


def snri(
    *,
    est: Float[Tensor, "*batch time"],
    ref: Float[Tensor, "*batch time"],
    mixture: Float[Tensor, "*batch time"],
) -> Float64[Tensor, "*batch"]:
    r"""Improvement of :func:`snr`, :math:`SNR(\hat s) - SNR(x)`: "SDRi" in AudioSep and DCASE 24, in dB."""
    return _improvement(snr, est=est, ref=ref, mixture=mixture)


def si_sdri(
    *,
    est: Float[Tensor, "*batch time"],
    ref: Float[Tensor, "*batch time"],
    mixture: Float[Tensor, "*batch time"],
    zero_mean: bool = False,
) -> Float64[Tensor, "*batch"]:
    r"""Improvement of :func:`si_sdr`: :math:`SISDR(\hat s) - SISDR(x)`, in dB."""
    return _improvement(si_sdr, est=est, ref=ref, mixture=mixture, zero_mean=zero_mean)


_PLAIN: dict[str, Callable[..., Tensor]] = {"snr": snr, "si_sdr": si_sdr, "sd_sdr": sd_sdr}
_IMPROVED: dict[str, Callable[..., Tensor]] = {"snri": snri, "si_sdri": si_sdri}


def score(
    name: str,
    *,
    est: Float[Tensor, " time"],
    ref: Float[Tensor, " time"],
    mixture: Float[Tensor, " time"] | None = None,
) -> MetricResult:
    """One of the ratios of this module for one item, with the reason when there is none.

    Args:
        name: ``snr``, ``si_sdr``, ``sd_sdr``, ``snri`` or ``si_sdri``.
        est: Estimate.
        ref: Reference.
        mixture: What the estimate was made from; needed by the improvements.

    >>> score("si_sdr", est=torch.ones(8), ref=torch.zeros(8))
    MetricResult(value=nan, reason='silent reference')
    """
    if name in _IMPROVED and mixture is None:
        raise UsageError(f"{name} needs the mixture", where="metric", hint="pass mixture=")
    if name in _PLAIN:
        reason = why_unscorable(est=est, ref=ref)
        value = _PLAIN[name](est=est, ref=ref)
    elif name in _IMPROVED:
        reason = why_unscorable(est=est, ref=ref, mixture=mixture)
        value = _IMPROVED[name](est=est, ref=ref, mixture=mixture)
    else:
        known = ", ".join((*_PLAIN, *_IMPROVED))
        raise UsageError(f"no ratio is called {name!r}", where="metric", hint=f"use one of {known}")
    return MetricResult(float("nan") if reason else float(value), reason)
