r"""Kaldi's log-mel filter bank in torch, the front end of ImageBind and of audio transformers after AST.

Frames of 25 ms every 10 ms, whole frames only; in each frame the mean is removed, then
:math:`x_n - 0.97\,x_{n-1}` (the first sample against itself), a symmetric Hann window, a 512-point power
spectrum, triangles on the mel scale :math:`1127 \ln(1 + f/700)` from 20 Hz to 8 kHz, natural logarithm
floored at the float32 epsilon. Povey et al. 2011; no dither, no energy.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

RATE_HZ, FRAME, HOP, N_FFT = 16_000, 400, 160, 512
LOW_HZ, PREEMPHASIS = 20.0, 0.97
FLOOR = torch.finfo(torch.float32).eps


@lru_cache(maxsize=4)
def kaldi_mel_bank(mels: int) -> Float[Tensor, "freq mel"]:
    """Triangles linear on the mel scale; the Nyquist bin has no weight.

    >>> kaldi_mel_bank(128).shape
    torch.Size([257, 128])
    """
    freqs = torch.arange(N_FFT // 2 + 1, dtype=torch.float64) * RATE_HZ / N_FFT
    mel = 1127.0 * torch.log1p(freqs / 700.0)
    ends = 1127.0 * torch.log1p(torch.tensor([LOW_HZ, RATE_HZ / 2], dtype=torch.float64) / 700.0)
    step = (ends[1] - ends[0]) / (mels + 1)
    centres = ends[0] + step * torch.arange(1, mels + 1, dtype=torch.float64)
    bank = (1.0 - (mel[:, None] - centres).abs() / step).clamp_min(0.0)
    bank[-1] = 0.0
    return bank.float()


def fbank(wave: Float[Tensor, "batch time"], *, mels: int = 128) -> Float[Tensor, "batch frame mel"]:
    """Log-mel frames of waves at 16 kHz; differentiable. A wave needs at least 400 samples."""
    frames = wave.unfold(-1, FRAME, HOP)
    frames = frames - frames.mean(dim=-1, keepdim=True)
    before = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
    window = torch.hann_window(FRAME, periodic=False, dtype=wave.dtype, device=wave.device)
    frames = F.pad((frames - PREEMPHASIS * before) * window, (0, N_FFT - FRAME))
    spectrum = torch.fft.rfft(frames)
    power = spectrum.real.square() + spectrum.imag.square()
    mel: Tensor = power @ kaldi_mel_bank(mels).to(power)
    return mel.clamp_min(FLOOR).log()
