"""What happens to speech and noise on the way: another speed, drawn noise, clipping, a narrow band."""

from __future__ import annotations

import numpy as np
import scipy.fft
from scipy.signal import butter, sosfilt

from auralign.data.speech_recipes import RATE_HZ, Mono

_LOWEST_HZ = 50.0


def played(wave: Mono, speed: float, samples: int) -> Mono:
    """Play at another speed, by Catmull-Rom interpolation between samples.

    `wave` must hold `samples * speed` samples and two more; at speed 1 it stays as it is.
    """
    position = np.arange(samples, dtype=np.float64) * speed
    left = position.astype(np.int32)
    share = (position - left).astype(np.float32)
    before, here = wave.take(left - 1, mode="clip"), wave.take(left, mode="clip")
    there, after = wave.take(left + 1, mode="clip"), wave.take(left + 2, mode="clip")
    bend = 0.5 * (after - before) + 1.5 * (here - there)
    curve = before - 2.5 * here + 2 * there - 0.5 * after
    out: np.ndarray = ((bend * share + curve) * share + 0.5 * (there - before)) * share + here
    return out


def hiss(samples: int, *, slope: float, generator: np.random.Generator) -> Mono:
    """Gaussian noise of mean power 0.01 whose power falls with frequency as f^-slope above 50 Hz."""
    spectrum = scipy.fft.rfft(generator.standard_normal(samples, dtype=np.float32))
    hertz = np.maximum(scipy.fft.rfftfreq(samples, 1 / RATE_HZ), _LOWEST_HZ).astype(np.float32)
    wave = scipy.fft.irfft(spectrum * np.exp(np.log(hertz) * np.float32(-slope / 2)), samples)
    out: np.ndarray = (wave * np.float32(0.1 / np.sqrt(np.mean(np.square(wave))))).astype(np.float32)
    return out


def clipped(wave: Mono, share: float) -> Mono:
    """Cut off everything above a share of the peak."""
    limit = float(np.abs(wave).max(initial=0.0)) * share
    out: np.ndarray = np.clip(wave, -limit, limit).astype(np.float32)
    return out


def band_limited(wave: Mono, edge_hz: float) -> Mono:
    """Low-pass by a Butterworth filter of order 8."""
    return np.asarray(sosfilt(butter(8, edge_hz, fs=RATE_HZ, output="sos"), wave), np.float32)
