r"""Spectrograms as small PNG pictures: logarithmic frequency, decibels under a common reference.

Power at frequency :math:`f` and time :math:`t` is :math:`P = |\mathrm{STFT}|^2`, averaged over channels and
over the frames of one picture column; its level is :math:`10 \log_{10}(P / P_0)` dB, where :math:`P_0` is the
loudest pixel of the pictures that belong together, so that their colours can be compared.
"""

from __future__ import annotations

import dataclasses
import io

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from auralign.audio.sound import Sound

LOWEST_HZ = 40.0
RANGE_DB = 80.0
_WINDOW_S = 0.046
# Control points of the colour scale, dark and quiet to light and loud; lightness rises evenly.
_COLOURS = (
    (8, 10, 24),
    (28, 22, 68),
    (70, 27, 110),
    (122, 36, 121),
    (176, 48, 107),
    (222, 76, 80),
    (247, 124, 60),
    (253, 182, 86),
    (253, 231, 150),
    (255, 252, 224),
)


@dataclasses.dataclass(frozen=True)
class Picture:
    """A spectrogram before it is coloured.

    Attributes:
        power: Mean power per pixel; row 0 is the highest frequency.
        lowest_hz: Frequency at the lower edge.
        highest_hz: Frequency at the upper edge.
        duration_s: Time at the right edge.
    """

    power: Float[np.ndarray, "row column"]
    lowest_hz: float
    highest_hz: float
    duration_s: float


def picture(sound: Sound, *, width: int = 960, height: int = 176, highest_hz: float | None = None) -> Picture:
    """The log-frequency power spectrogram of a sound.

    Args:
        sound: Any number of channels and samples.
        width: Columns; a short sound has fewer frames than columns and repeats them.
        height: Rows.
        highest_hz: Upper edge; half the rate by default.
    """
    highest = highest_hz or sound.rate_hz / 2
    lowest = min(LOWEST_HZ, highest / 4)
    n_fft = 2 ** int(np.ceil(np.log2(max(16.0, _WINDOW_S * sound.rate_hz))))
    centres = (np.arange(2 * width) + 0.5) * sound.frames / (2 * width)
    spectra = _power_at(sound.samples, centres.astype(np.int64), n_fft)
    columns = spectra.reshape(width, 2, -1).mean(axis=1)
    weights = _row_weights(n_fft, sound.rate_hz, lowest, highest, height)
    return Picture(weights @ columns.T, lowest, highest, sound.duration_s)


def png(shown: Picture, *, reference: float) -> bytes:
    """Colours a picture: ``reference`` power is the lightest, 80 dB below it and silence the darkest."""
    with np.errstate(divide="ignore"):
        level_db = 10.0 * np.log10(shown.power / max(reference, 1e-20))
    index = np.clip(np.nan_to_num(1.0 + level_db / RANGE_DB, neginf=0.0), 0.0, 1.0) * 255.0
    image = Image.fromarray(index.round().astype(np.uint8)).convert("P")
    image.putpalette(palette().ravel().tolist())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def palette() -> UInt8[np.ndarray, "256 3"]:
    """The 256 colours from quiet to loud."""
    points = np.linspace(0.0, 255.0, len(_COLOURS))
    channels = [np.interp(np.arange(256), points, [colour[i] for colour in _COLOURS]) for i in range(3)]
    return np.stack(channels, axis=1).round().astype(np.uint8)


def frequency_ticks(shown: Picture) -> list[tuple[str, float]]:
    """Labels with their height as a fraction of the picture from the bottom."""
    span = np.log(shown.highest_hz / shown.lowest_hz)
    ticks = []
    for hz in (100, 300, 1000, 3000, 10000, 30000):
        place = float(np.log(hz / shown.lowest_hz) / span)
        if 0.04 < place < 0.97:
            ticks.append((f"{hz} Hz" if hz < 1000 else f"{hz // 1000} kHz", place))
    return ticks


def time_ticks(duration_s: float, *, start_s: float = 0.0, about: int = 8) -> list[tuple[str, float]]:
    """Labels with their place as a fraction from the left; the labels count from the recording's start."""
    if duration_s <= 0:
        return []
    step = next(
        (s for s in (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 300, 600) if duration_s / s <= about),
        1800,
    )
    first = np.ceil(start_s / step - 1e-9)
    count = int((start_s + duration_s) / step - first + 1e-9) + 1
    marks = [float(first + i) * step for i in range(count)]
    return [(clock(mark), (mark - start_s) / duration_s) for mark in marks]


def clock(seconds: float) -> str:
    """Seconds as people write them.

    >>> clock(0.25), clock(12.0), clock(75.0), clock(3725.0)
    ('0.25 s', '12 s', '1:15', '1:02:05')
    """
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _power_at(
    samples: Float[np.ndarray, "channel time"], centres: np.ndarray, n_fft: int
) -> Float[np.ndarray, "frame bin"]:
    """Power spectra of Hann windows around the given samples, a full-scale sine giving 0 dB at its bin."""
    window = np.hanning(n_fft + 1)[:-1]
    window = (window / (window.sum() / 2)).astype(np.float32)
    padded = np.pad(samples, ((0, 0), (n_fft // 2, n_fft // 2)))
    power = np.zeros((len(centres), n_fft // 2 + 1), np.float64)
    offsets = np.arange(n_fft)
    for first in range(0, len(centres), 256):
        part = slice(first, first + 256)
        for channel in padded:
            frames = channel[centres[part, None] + offsets] * window
            power[part] += np.abs(np.fft.rfft(frames, axis=1)) ** 2
    return power / len(samples)


def _row_weights(
    n_fft: int, rate_hz: int, lowest: float, highest: float, height: int
) -> Float[np.ndarray, "row bin"]:
    """How much each FFT bin adds to each row: triangles at least two bins wide, spaced evenly in octaves."""
    centre = lowest * (highest / lowest) ** ((np.arange(height)[::-1] + 0.5) / height)
    bins = np.arange(n_fft // 2 + 1) * rate_hz / n_fft
    half = np.maximum(rate_hz / n_fft, centre * (np.log(highest / lowest) / height))
    weights = np.maximum(0.0, 1.0 - np.abs(bins[None] - centre[:, None]) / half[:, None])
    scaled: np.ndarray = weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-12)
    return scaled
