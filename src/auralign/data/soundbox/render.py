"""Instruments of a soundfont play performances; the samples come out at 16 kHz, mono, dry."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import soxr

from auralign.data.soundbox.scores import Stroke
from auralign.data.soundbox.sound import RATE_HZ, Mono
from auralign.errors import DataError

_SYNTH_HZ = 44_100
_TAIL_S = 1.2


@runtime_checkable
class Renderer(Protocol):
    """Plays a performance with one program of a soundfont."""

    def play(self, program: int, strokes: Sequence[Stroke]) -> Mono:
        """Return the sound of the performance at 16 kHz; it ends with the decay of the last note."""


class SoundFontRenderer:
    """Plays with TinySoundFont; reads `.sf2` and `.sf3`, no reverberation, no chorus.

    Args:
        path: The soundfont.

    Raises:
        DataError: The soundfont, or the package that plays it, is missing.
    """

    def __init__(self, path: Path) -> None:
        try:
            import tinysoundfont
        except ImportError as error:
            raise DataError(
                "rendering instruments needs the tinysoundfont package",
                where=str(path),
                hint="pip install --no-deps tinysoundfont",
            ) from error
        self._synth = tinysoundfont.Synth(samplerate=_SYNTH_HZ, gain=0.0)
        try:
            self._font = self._synth.sfload(str(path), max_voices=128)
        except Exception as error:
            raise DataError("the soundfont cannot be read", where=str(path), why=str(error)) from error

    def play(self, program: int, strokes: Sequence[Stroke]) -> Mono:
        """Render the strokes with General MIDI program `program` of bank 0."""
        synth = self._synth
        synth.program_select(0, self._font, 0, program)
        events = sorted(
            [(stroke.start_s, 1, stroke.pitch, stroke.velocity) for stroke in strokes]
            + [(stroke.end_s, 0, stroke.pitch, 0) for stroke in strokes]
        )
        pieces: list[np.ndarray] = []
        done = 0
        for at_s, on, pitch, velocity in events:
            frames = int(at_s * _SYNTH_HZ) - done
            if frames > 0:
                pieces.append(self._generate(frames))
                done += frames
            if on:
                synth.noteon(0, pitch, velocity)
            else:
                synth.noteoff(0, pitch)
        pieces.append(self._generate(int(_TAIL_S * _SYNTH_HZ)))
        synth.sounds_off()
        self._generate(2048)
        samples = np.concatenate(pieces)
        samples[-4410:] *= np.linspace(1, 0, 4410, dtype=np.float32)
        return np.asarray(soxr.resample(samples, _SYNTH_HZ, RATE_HZ), np.float32)

    def _generate(self, frames: int) -> np.ndarray:
        stereo = np.frombuffer(self._synth.generate(frames), np.float32).reshape(-1, 2)
        return np.asarray(stereo.mean(axis=1), np.float32)
