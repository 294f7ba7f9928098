"""Programme loudness by Recommendation ITU-R BS.1770-4: K weighting, channel sum, two-stage gating."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import final

import numpy as np
from jaxtyping import Float, Float32, Float64

from auralign.errors import AudioError

MIN_RATE_HZ = 4000  # the shelf sits at 1.7 kHz
_OFFSET_DB = -0.691
_BLOCK_S, _STEP_S = 0.4, 0.1
_TAIL_S = 0.25  # the impulse response is below -200 dB after it


def k_weighting(
    rate_hz: int,
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    """Coefficients b, a of the two biquads (shelf, high pass) at any rate.

    BS.1770-4 lists them for 48 kHz; the analogue prototypes behind (shelf 1681.97 Hz, +4.0 dB, Q 0.7072; high
    pass 38.135 Hz, Q 0.5003) go through the bilinear transform, which gives back the list at 48 kHz.

    >>> [round(x, 6) for x in k_weighting(48000)[0]]
    [1.535125, -2.691696, 1.198393]
    """
    k, q = math.tan(math.pi * 1681.974450955533 / rate_hz), 0.7071752369554196
    v_high = 10 ** (3.999843853973347 / 20)
    v_band = v_high**0.4996667741545416
    a0 = 1 + k / q + k * k
    shelf_b = (
        (v_high + v_band * k / q + k * k) / a0,
        2 * (k * k - v_high) / a0,
        (v_high - v_band * k / q + k * k) / a0,
    )
    shelf_a = (1.0, 2 * (k * k - 1) / a0, (1 - k / q + k * k) / a0)
    k, q = math.tan(math.pi * 38.13547087602444 / rate_hz), 0.5003270373238773
    a0 = 1 + k / q + k * k
    return shelf_b, shelf_a, (1.0, -2.0, 1.0), (1.0, 2 * (k * k - 1) / a0, (1 - k / q + k * k) / a0)


@lru_cache(maxsize=8)
def _impulse_response(rate_hz: int) -> Float64[np.ndarray, " tap"]:
    """K weighting as a finite filter: the inverse FFT of its response."""
    shelf_b, shelf_a, high_b, high_a = k_weighting(rate_hz)
    n = 1 << (rate_hz - 1).bit_length()

    def response(c: tuple[float, ...]) -> np.ndarray:
        return np.asarray(np.fft.rfft(np.asarray(c), n))

    h = np.fft.irfft(response(shelf_b) * response(high_b) / (response(shelf_a) * response(high_a)), n)
    return np.asarray(h[: max(8, round(_TAIL_S * rate_hz))])


def channel_weights(channels: int) -> Float64[np.ndarray, " channel"]:
    """BS.1770-4 table 3 for L R C [LFE] Ls Rs; other layouts weigh every channel 1.

    >>> channel_weights(6).tolist()
    [1.0, 1.0, 1.0, 0.0, 1.41, 1.41]
    """
    known = {5: [1, 1, 1, 1.41, 1.41], 6: [1, 1, 1, 0, 1.41, 1.41]}
    return np.asarray(known.get(channels, [1.0] * channels), np.float64)


@final
class LoudnessMeter:
    """Integrated loudness in blocks and constant memory (one number for each 100 ms).

    >>> meter = LoudnessMeter(48000, channels=2)
    >>> meter.process(np.zeros((2, 48000), np.float32))
    >>> meter.integrated()
    -inf
    """

    def __init__(self, rate_hz: int, channels: int) -> None:
        if rate_hz < MIN_RATE_HZ:
            raise AudioError(
                f"loudness is not defined at {rate_hz} Hz", where="loudness", why=f"at least {MIN_RATE_HZ} Hz"
            )
        self.rate_hz, self.channels = rate_hz, channels
        taps = _impulse_response(rate_hz)
        self._size = 1 << (4 * len(taps) - 1).bit_length()
        self._step = self._size - len(taps) + 1
        self._filter = np.fft.rfft(taps, self._size)
        self._weights = channel_weights(channels)
        self._history = np.zeros((channels, len(taps) - 1))
        self._waiting = np.zeros((channels, 0))
        self._frames = 0
        self._energy = [0.0]  # weighted energy of each 100 ms, the last one still filling

    def process(self, block: Float32[np.ndarray, "channel time"]) -> None:
        """Measure the next samples."""
        if block.shape[0] != self.channels:
            raise AudioError(f"a block of {block.shape[0]} channels, not {self.channels}", where="loudness")
        self._waiting = np.concatenate([self._waiting, block.astype(np.float64)], axis=1)
        while self._waiting.shape[1] >= self._step:
            self._measure(self._waiting[:, : self._step])
            self._waiting = self._waiting[:, self._step :]

    def _measure(self, block: Float64[np.ndarray, "channel time"]) -> None:
        """Overlap-save convolution, then energies added to their 100 ms."""
        tail = self._history.shape[1]
        joined = np.concatenate([self._history, block], axis=1)
        self._history = joined[:, joined.shape[1] - tail :]
        weighted = np.fft.irfft(np.fft.rfft(joined, self._size) * self._filter, self._size)
        power = self._weights @ np.square(weighted[:, tail : tail + block.shape[1]])
        start = 0
        while start < power.size:
            end_frame = round(len(self._energy) * _STEP_S * self.rate_hz)
            stop = min(power.size, start + end_frame - self._frames)
            self._energy[-1] += float(power[start:stop].sum())
            self._frames += stop - start
            start = stop
            if self._frames == end_frame:
                self._energy.append(0.0)

    def integrated(self) -> float:
        r"""Gated loudness :math:`-0.691 + 10 \log_{10} \sum_i G_i z_i` in LUFS of everything so far.

        ``-inf`` when no 400 ms block is above -70 LUFS (silence); ``nan`` for less than 400 ms.
        """
        if self._waiting.shape[1]:
            self._measure(self._waiting)
            self._waiting = self._waiting[:, :0]
        steps = np.asarray(self._energy[:-1])
        per_block = round(_BLOCK_S / _STEP_S)
        if steps.size < per_block:
            return math.nan
        power = np.convolve(steps, np.ones(per_block), "valid") / (_BLOCK_S * self.rate_hz)
        power = power[power > _power(-70.0)]
        if power.size:
            power = power[power > power.mean() * 0.1]  # 10 LU below the mean of what passed the first gate
        return _OFFSET_DB + 10 * math.log10(float(power.mean())) if power.size else -math.inf


def _power(lufs: float) -> float:
    return float(10 ** ((lufs - _OFFSET_DB) / 10))


def integrated_loudness(samples: Float[np.ndarray, "channel time"], rate_hz: int) -> float:
    """Integrated loudness in LUFS; see :meth:`LoudnessMeter.integrated` for silence and short sounds."""
    meter = LoudnessMeter(rate_hz, samples.shape[0])
    for start in range(0, samples.shape[1], 1 << 18):
        meter.process(samples[:, start : start + (1 << 18)].astype(np.float32, copy=False))
    return meter.integrated()
