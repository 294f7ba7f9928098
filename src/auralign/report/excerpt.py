"""The part of long recordings that a page carries, the same part of every stem."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import soundfile
from jaxtyping import Float

from auralign.audio.io import open_reader, read
from auralign.audio.sound import Sound

_BLOCK_S = 0.5
MIXTURE, BEFORE, RESIDUAL = "mixture", "before", "residual"


@dataclasses.dataclass(frozen=True)
class Excerpt:
    """What is shown and heard of one item.

    Attributes:
        stems: Equally long sounds.
        start_s: Where they begin in the recording.
        total_s: How long the recording is.
        gain: Factor on all stems, below 1 where full scale would be exceeded.
    """

    stems: dict[str, Sound]
    start_s: float
    total_s: float
    gain: float

    @property
    def duration_s(self) -> float:
        """Length of the part."""
        return max((stem.duration_s for stem in self.stems.values()), default=0.0)

    @property
    def note(self) -> str:
        """What was done to fit, in words; empty when nothing was."""
        notes = []
        if self.duration_s < self.total_s - 0.01:
            end_s = self.start_s + self.duration_s
            notes.append(f"An excerpt, {self.start_s:.1f} to {end_s:.1f} s of {self.total_s:.1f} s")
        if self.gain < 1.0:
            notes.append(f"All turned down by {-20 * np.log10(self.gain):.1f} dB to fit full scale")
        return ". ".join(notes)


def choose(stems: Mapping[str, Sound | Path], *, longest_s: float = 30.0) -> Excerpt:
    """Takes the part in which the first separated stem has most energy; all of it when short enough.

    Args:
        stems: Sounds, or files, which are then streamed and never held whole.
        longest_s: Longest part.
    """
    envelopes = {name: _envelope(stem) for name, stem in stems.items()}
    total_s = max((duration for _, duration in envelopes.values()), default=0.0)
    start_s = 0.0
    if total_s > longest_s:
        focus = next((name for name in stems if name not in (MIXTURE, BEFORE, RESIDUAL)), next(iter(stems)))
        start_s = _loudest_start(envelopes[focus][0], longest_s, total_s)
    length_s = min(longest_s, total_s)
    parts = {name: _part(stem, start_s, length_s) for name, stem in stems.items()}
    peak = max((float(np.max(np.abs(part.samples), initial=0.0)) for part in parts.values()), default=0.0)
    gain = min(1.0, (1.0 - 2.0**-15) / peak) if peak > 0 else 1.0
    fitted = {name: _fit(part, length_s, gain) for name, part in parts.items()}
    return Excerpt(fitted, start_s, total_s, gain)


def flac_uri(sound: Sound) -> str:
    """The sound as a data URI: 16-bit FLAC, which every current browser decodes without loss."""
    buffer = io.BytesIO()
    samples = sound.samples[:2] if sound.channels > 2 else sound.samples
    soundfile.write(buffer, samples.T, sound.rate_hz, format="FLAC", subtype="PCM_16")
    return data_uri(buffer.getvalue(), "audio/flac")


def data_uri(data: bytes, kind: str) -> str:
    """Bytes inside a page.

    >>> data_uri(b"abc", "text/plain")
    'data:text/plain;base64,YWJj'
    """
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _envelope(stem: Sound | Path) -> tuple[Float[np.ndarray, "block"], float]:
    """Energy of each half second, and the duration."""
    energies = []
    if isinstance(stem, Sound):
        block = max(1, round(_BLOCK_S * stem.rate_hz))
        for first in range(0, stem.frames, block):
            energies.append(float(np.square(stem.samples[:, first : first + block], dtype=np.float64).sum()))
        return np.array(energies), stem.duration_s
    with open_reader(stem) as reader:
        rate_hz, frames = reader.info.rate_hz, 0
        while (part := reader.read(max(1, round(_BLOCK_S * rate_hz)))).shape[1]:
            frames += int(part.shape[1])
            energies.append(float(np.square(part, dtype=np.float64).sum()))
    return np.array(energies), frames / rate_hz


def _loudest_start(energy: Float[np.ndarray, "block"], longest_s: float, total_s: float) -> float:
    blocks = max(1, int(longest_s / _BLOCK_S))
    if len(energy) <= blocks:
        return 0.0
    sums = np.convolve(energy, np.ones(blocks), mode="valid")
    return min(float(np.argmax(sums)) * _BLOCK_S, total_s - longest_s)


def _part(stem: Sound | Path, start_s: float, length_s: float) -> Sound:
    if isinstance(stem, Path):
        return read(stem, start_s=start_s, duration_s=length_s)
    first = round(start_s * stem.rate_hz)
    return Sound(stem.samples[:, first : first + round(length_s * stem.rate_hz)], stem.rate_hz)


def _fit(part: Sound, length_s: float, gain: float) -> Sound:
    frames = max(1, round(length_s * part.rate_hz))
    samples = np.zeros((part.channels, frames), np.float32)
    samples[:, : part.frames] = part.samples[:, :frames] * np.float32(gain)
    return Sound(samples, part.rate_hz)
