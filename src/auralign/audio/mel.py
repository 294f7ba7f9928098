r"""Mel filters as librosa's default defines them: Slaney's scale, each triangle of unit area.

Slaney 1998, Auditory Toolbox (Interval TR 1998-010): linear below 1 kHz (66.67 Hz a mel), logarithmic above
(:math:`\ln(6.4) / 27` a mel). Speech models that were trained on such features hear no other.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

_LINEAR_HZ = 200.0 / 3.0
_CORNER_HZ = 1000.0
_CORNER_MEL = _CORNER_HZ / _LINEAR_HZ
_LOG_STEP = math.log(6.4) / 27.0


def _to_mel(hertz: float) -> float:
    if hertz < _CORNER_HZ:
        return hertz / _LINEAR_HZ
    return _CORNER_MEL + math.log(hertz / _CORNER_HZ) / _LOG_STEP


def slaney_mel_bank(*, n_fft: int, mels: int, rate_hz: int) -> Float[Tensor, "freq mel"]:
    r"""Triangles from 0 Hz to half the rate, band :math:`i` scaled by :math:`2 / (f_{i+2} - f_i)`.

    >>> bank = slaney_mel_bank(n_fft=400, mels=40, rate_hz=16000)
    >>> tuple(bank.shape), bool((bank >= 0).all())
    ((201, 40), True)
    """
    mel = torch.linspace(0.0, _to_mel(rate_hz / 2), mels + 2, dtype=torch.float64)
    above = _CORNER_HZ * torch.exp(_LOG_STEP * (mel - _CORNER_MEL))
    corners = torch.where(mel < _CORNER_MEL, mel * _LINEAR_HZ, above)
    freqs = torch.arange(n_fft // 2 + 1, dtype=torch.float64)[:, None] * (rate_hz / n_fft)
    left, centre, right = corners[:-2], corners[1:-1], corners[2:]
    triangle = torch.minimum((freqs - left) / (centre - left), (right - freqs) / (right - centre))
    return (triangle.clamp_min(0.0) * (2.0 / (right - left))).float()


def mel_power(
    wave: Float[Tensor, "batch time"],
    bank: Float[Tensor, "freq mel"],
    window: Float[Tensor, " window"],
    *,
    hop: int,
) -> Float[Tensor, "batch frame mel"]:
    """Mel bands of the power spectrum, ``1 + time // hop`` frames, the first centred on the first sample.

    The sound is silent outside its ends. The DFT is as long as the window, odd sizes included.

    Args:
        wave: Sounds.
        bank: Filters, for the window's length.
        window: Analysis window.
        hop: Samples between frames.
    """
    n_fft = len(window)
    spectrum = torch.stft(
        wave, n_fft, hop, n_fft, window, center=True, pad_mode="constant", return_complex=True
    )
    power = spectrum.real.square() + spectrum.imag.square()
    return power.transpose(1, 2) @ bank
