"""Sounds in memory: arrays with a rate, checked once at the door."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Shaped

from auralign.errors import AudioError

MIN_RATE_HZ, MAX_RATE_HZ = 1, 1_000_000
MAX_CHANNELS = 1024


@dataclass(frozen=True)
class Sound:
    """Samples and their rate; nominal full scale is ±1, values beyond it are kept.

    >>> Sound(np.zeros((2, 8000), np.float32), 16000).duration_s
    0.5
    """

    samples: Float32[np.ndarray, "channel time"]
    rate_hz: int

    @property
    def channels(self) -> int:
        """Number of channels."""
        return int(self.samples.shape[0])

    @property
    def frames(self) -> int:
        """Number of sample frames, the same in every channel."""
        return int(self.samples.shape[1])

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.frames / self.rate_hz


def check_rate(rate_hz: object, *, where: str) -> int:
    """The rate as an int, or an error that names the value."""
    if isinstance(rate_hz, bool) or not isinstance(rate_hz, (int, float, np.integer, np.floating)):
        raise AudioError(f"the sample rate {rate_hz!r} is not a number", where=where)
    if not np.isfinite(rate_hz) or float(rate_hz) != int(rate_hz):
        raise AudioError(f"the sample rate {rate_hz!r} is not a whole number of hertz", where=where)
    if not MIN_RATE_HZ <= int(rate_hz) <= MAX_RATE_HZ:
        raise AudioError(
            f"the sample rate {int(rate_hz)} Hz is outside {MIN_RATE_HZ}…{MAX_RATE_HZ} Hz",
            where=where,
            why="the header is damaged, or this is no recording of sound",
        )
    return int(rate_hz)


def to_float32(array: Shaped[np.ndarray, "..."], *, where: str) -> Float32[np.ndarray, "..."]:
    """Samples as float32 with full scale ±1: integers are divided by the size of their negative full scale.

    >>> to_float32(np.array([-32768, 16384], np.int16), where="x").tolist()
    [-1.0, 0.5]
    """
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind == "f":
        with np.errstate(over="ignore"):  # beyond float32 becomes inf, which is refused by name later
            return array.astype(np.float32, copy=False)
    if kind == "i" and size <= 4:
        return np.asarray(array / np.float64(2 ** (8 * size - 1)), np.float32)
    if kind == "u" and size == 1:
        return np.asarray((array - np.float64(128)) / 128, np.float32)
    raise AudioError(
        f"samples of type {array.dtype} have no defined full scale",
        where=where,
        hint="pass float samples, int16, int32 or uint8",
    )


def nonfinite(block: Float32[np.ndarray, "channel time"]) -> Bool[np.ndarray, "channel time"] | None:
    """Where samples are NaN or infinite; None, at the price of one sum, when all are finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(block.sum(dtype=np.float64)):
            return None
    bad = ~np.isfinite(block)
    return bad if bad.any() else None


def refuse_nonfinite(count: int, channel: int, frame: int, *, where: str) -> AudioError:
    """The error for samples that are not numbers."""
    return AudioError(
        f"{count} of its samples are NaN or infinite, the first in channel {channel} at frame {frame}",
        where=where,
        hint="repair the file; samples are never replaced silently",
    )


def from_array(array: Any, rate_hz: object, *, where: str = "<array>") -> Sound:
    """A :class:`Sound` from samples ``(time,)`` or ``(channel, time)`` of any usual type.

    >>> from_array(np.zeros(4, np.int16), 8000).samples.shape
    (1, 4)
    """
    rate = check_rate(rate_hz, where=where)
    try:
        samples = np.asarray(array)
    except (
        TypeError,
        ValueError,
        RuntimeError,
    ) as error:  # a tensor on a GPU or with gradients, ragged lists
        raise AudioError("the samples cannot be made into an array", where=where, why=str(error)) from error
    if samples.ndim == 1:
        samples = samples[None]
    if samples.ndim != 2:
        raise AudioError(
            f"samples of shape {samples.shape} are neither (time,) nor (channel, time)", where=where
        )
    channels, frames = samples.shape
    if not channels or not frames:
        raise AudioError(f"the array has no samples (shape {samples.shape})", where=where)
    if channels > 32 and channels > frames:
        raise AudioError(
            f"samples of shape {samples.shape} look like (time, channel)",
            where=where,
            hint="pass (channel, time): array.T",
        )
    samples = to_float32(samples, where=where)
    bad = nonfinite(samples)
    if bad is not None:
        channel, frame = first_true(bad)
        raise refuse_nonfinite(int(bad.sum()), channel, frame, where=where)
    return Sound(samples, rate)


def first_true(bad: Bool[np.ndarray, "channel time"]) -> tuple[int, int]:
    """Channel and frame of the earliest True.

    >>> first_true(np.array([[False, False], [False, True]]))
    (1, 1)
    """
    frame = int(bad.any(axis=0).argmax())
    return int(bad[:, frame].argmax()), frame
