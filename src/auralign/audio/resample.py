"""Sample-rate conversion: soxr for files, whole and streamed alike; a windowed sinc for gradients."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import final

import numpy as np
import soxr
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from auralign.audio.sound import check_rate
from auralign.errors import AudioError

_LARGEST_BANK = 1 << 24  # coefficients: 64 MiB


def resampled_length(frames: int, from_hz: int, to_hz: int) -> int:
    r"""Frames after conversion, :math:`\mathrm{round}(n \cdot f_{to} / f_{from})`, never 0 for a sound.

    >>> resampled_length(44100, 44100, 16000)
    16000
    """
    return max(1 if frames else 0, round(frames * to_hz / from_hz))


def resample(
    samples: Float32[np.ndarray, "channel time"], from_hz: int, to_hz: int
) -> Float32[np.ndarray, "channel new_time"]:
    """Convert the rate of a whole sound: zero delay, exactly :func:`resampled_length` frames (soxr, HQ).

    >>> resample(np.zeros((1, 441), np.float32), 44100, 16000).shape
    (1, 160)
    """
    stream = StreamResampler(from_hz, to_hz, samples.shape[0])
    return stream.process(samples, last=True)


@final
class StreamResampler:
    """Rate conversion in blocks: the concatenated output is the same as :func:`resample` of the whole.

    >>> stream = StreamResampler(48000, 16000, channels=1)
    >>> stream.process(np.zeros((1, 480), np.float32), last=True).shape
    (1, 160)
    """

    def __init__(self, from_hz: int, to_hz: int, channels: int) -> None:
        self.from_hz = check_rate(from_hz, where="resample")
        self.to_hz = check_rate(to_hz, where="resample")
        self.channels = channels
        self._soxr: soxr.ResampleStream | None = None
        if from_hz != to_hz:
            # soxr's stream takes 64-bit rates; quality HQ: 20 bits, pass band 0.913 of the lower Nyquist
            self._soxr = soxr.ResampleStream(from_hz, to_hz, channels, dtype="float32", quality="HQ")
        self._taken = self._given = 0
        self._done = False

    def process(
        self, block: Float32[np.ndarray, "channel time"], last: bool = False
    ) -> Float32[np.ndarray, "channel new_time"]:
        """Take any number of frames, give what is ready; with ``last`` give everything that remains."""
        if self._done:
            raise AudioError("process() was called after the last block", where="resample")
        if block.shape[0] != self.channels:
            raise AudioError(f"a block of {block.shape[0]} channels, not {self.channels}", where="resample")
        if not np.isfinite(block).all():
            raise AudioError("the samples contain NaN or infinity", where="resample")
        self._taken += block.shape[1]
        self._done = last
        if self._soxr is None:
            return block.copy()
        out = self._convert(block, last)
        if last:
            remaining = resampled_length(self._taken, self.from_hz, self.to_hz) - self._given
            out = np.pad(out, ((0, 0), (0, max(0, remaining - out.shape[1]))))[:, :remaining]
        self._given += out.shape[1]
        return np.ascontiguousarray(out)

    def _convert(self, block: np.ndarray, last: bool) -> np.ndarray:
        assert self._soxr is not None  # narrowed by the caller
        frames = np.ascontiguousarray(block.T)
        if self.channels == 1:
            return np.asarray(self._soxr.resample_chunk(frames[:, 0], last=last))[None]
        return np.asarray(self._soxr.resample_chunk(frames, last=last)).T


@lru_cache(maxsize=16)
def _sinc_bank(old: int, new: int, zeros: int, rolloff: float) -> tuple[Float[Tensor, "phase 1 tap"], int]:
    r"""One filter for each of the ``new`` output phases in a period of ``old`` input samples.

    :math:`h_i(k) = \frac{c}{old} \, \mathrm{sinc}(c\,t) \, w(t / z)` with :math:`t = k/old - i/new` in units
    of the period, cutoff :math:`c = rolloff \cdot \min(old, new)` and a Kaiser window (β = 14.77) of z zero
    crossings each side. Smith, "Digital Audio Resampling", https://ccrma.stanford.edu/~jos/resample/.
    """
    cutoff = rolloff * min(old, new)
    width = math.ceil(zeros * old / cutoff)
    if new * (2 * width + old) > _LARGEST_BANK:
        raise AudioError(
            f"rates in the ratio {old}:{new} need too large a filter bank",
            where="resample_torch",
            hint="use resample, or rates with a larger common divisor",
        )
    taps = torch.arange(-width, width + old, dtype=torch.float64)
    phase = torch.arange(new, dtype=torch.float64)[:, None]
    t = (taps / old - phase / new) * cutoff
    window = torch.special.i0(14.769656459379492 * (1 - (t / zeros) ** 2).clamp(min=0).sqrt())
    window = torch.where(t.abs() <= zeros, window / torch.special.i0(torch.tensor(14.769656459379492)), 0.0)
    return (torch.sinc(t) * window * cutoff / old)[:, None], width


def resample_torch(
    wave: Float[Tensor, "*batch time"], from_hz: int, to_hz: int, *, zeros: int = 32, rolloff: float = 0.945
) -> Float[Tensor, "*batch new_time"]:
    """Differentiable rate conversion by a Kaiser-windowed sinc, zero delay, :func:`resampled_length` samples.

    Args:
        wave: Real waveforms.
        from_hz: Rate of ``wave``.
        to_hz: Rate of the result.
        zeros: Zero crossings of the sinc on each side; more is steeper.
        rolloff: Cutoff as a share of the lower Nyquist frequency.

    >>> resample_torch(torch.zeros(2, 441), 44100, 16000).shape
    torch.Size([2, 160])
    """
    from_hz, to_hz = check_rate(from_hz, where="resample_torch"), check_rate(to_hz, where="resample_torch")
    length = resampled_length(wave.shape[-1], from_hz, to_hz)
    common = math.gcd(from_hz, to_hz)
    old, new = from_hz // common, to_hz // common
    if old == new:
        return wave
    bank, width = _sinc_bank(old, new, zeros, rolloff)
    flat = wave.reshape(-1, 1, wave.shape[-1])
    flat = torch.nn.functional.pad(flat, (width, width + old))
    phases = torch.nn.functional.conv1d(flat, bank.to(flat), stride=old)
    out = phases.transpose(1, 2).reshape(*wave.shape[:-1], -1)
    return out[..., :length]
