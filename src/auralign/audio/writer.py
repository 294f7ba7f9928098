"""Sounds out: streamed, atomic, never clipped in silence.

Blocks go to a scratch file of raw float32 beside the target; peak and loudness are therefore known before
the first sample is quantised. On a clean exit the scratch is converted to the wanted format under a temporary
name and renamed; after an error nothing is left.
"""

from __future__ import annotations

import io
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import final

import numpy as np
import soundfile
from jaxtyping import Float32

from auralign.audio.level import Level
from auralign.audio.loudness import LoudnessMeter
from auralign.audio.quantise import ceiling, quantise
from auralign.audio.reader import AudioInfo, reason
from auralign.audio.sound import check_rate, first_true, nonfinite, refuse_nonfinite
from auralign.errors import AudioError, UsageError

_FORMATS = {
    ".wav": "WAV",
    ".w64": "W64",
    ".rf64": "RF64",
    ".flac": "FLAC",
    ".ogg": "OGG",
    ".oga": "OGG",
    ".opus": "OGG",
    ".mp3": "MP3",
    ".aiff": "AIFF",
    ".aif": "AIFF",
    ".caf": "CAF",
    ".au": "AU",
}
_LOSSY = {".ogg": "VORBIS", ".oga": "VORBIS", ".opus": "OPUS", ".mp3": "MPEG_LAYER_III"}
_SIXTEEN = ("PCM_16", "PCM_S8", "PCM_U8", "ULAW", "ALAW", "ADPCM", "GSM", "DPCM", "G72", "DWVW_12", "DWVW_16")
_FLOATS = ("FLOAT", "DOUBLE", "FLT", "DBL", "PCM_32", "ALAC_32")
_BLOCK_SAMPLES = 1 << 16
_RIFF_LIMIT = 2**32 - 2**16
_SUBTYPES = {"PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", *_LOSSY.values()}


@dataclass(frozen=True)
class WrittenAudio:
    """What was written: ``subtype`` and ``gain_db`` may differ from the wish, and then ``note`` says why."""

    path: str
    rate_hz: int
    channels: int
    frames: int
    format: str
    subtype: str
    peak: float
    gain_db: float
    note: str = ""
    clipped: bool = False


def kept_subtype(like: AudioInfo | None, suffix: str) -> str:
    """The subtype that keeps a source's bit depth in a container: 16, 24 or float.

    8-bit and telephone codes become 16 bit, 32-bit integers float, decoded lossy sound 24 bit; an array or no
    source gives float. FLAC has no float and takes 24 bit.

    >>> kept_subtype(None, ".wav"), kept_subtype(None, ".flac")
    ('FLOAT', 'PCM_24')
    """
    if suffix in _LOSSY:
        return _LOSSY[suffix]
    subtype = "FLOAT" if like is None else like.subtype.upper()
    if any(word in subtype for word in _FLOATS):
        return "PCM_24" if suffix == ".flac" else "FLOAT"
    return "PCM_16" if any(word in subtype for word in _SIXTEEN) else "PCM_24"


@final
class AudioWriter:
    """Write a sound block by block; the file appears, whole, when the ``with`` statement ends cleanly.

    A peak above full scale is never clipped: where the container has float, the subtype becomes float32;
    elsewhere (FLAC, OGG, OPUS, MP3) the whole file gets one constant gain. ``result.note`` says so.
    WAV beyond 4 GB becomes RF64. An existing file is replaced.

    Args:
        path: Target; its suffix chooses the format (wav w64 rf64 flac ogg opus mp3 aiff caf au).
        rate_hz: Sample rate.
        channels: Number of channels.
        subtype: ``keep`` (the bit depth of ``like``), or a name such as ``PCM_16``, ``PCM_24``, ``FLOAT``.
        like: What the source was.
        level: Level policy; keeps levels by default.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        rate_hz: int,
        channels: int,
        subtype: str = "keep",
        like: AudioInfo | None = None,
        level: Level = Level(),  # noqa: B008 - frozen
    ) -> None:
        self.path = Path(path)
        self.rate_hz, self.channels, self.level = check_rate(rate_hz, where=str(path)), channels, level
        suffix = self.path.suffix.lower()
        if suffix not in _FORMATS:
            raise UsageError(
                f"no audio format has the suffix {suffix!r}", where=str(path), hint=" ".join(sorted(_FORMATS))
            )
        self.format = _FORMATS[suffix]
        self.subtype = kept_subtype(like, suffix) if subtype == "keep" else subtype.upper()
        self._try_format()
        self.frames, self.peak, self.result = 0, 0.0, None
        self._meter: LoudnessMeter | None = None
        if level.kind == "lufs":
            self._meter = LoudnessMeter(self.rate_hz, channels)
        token = f".{self.path.name}.{secrets.token_hex(4)}"
        self._scratch = self.path.with_name(token + ".f32.tmp")
        self._partial = self.path.with_name(token + ".tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.is_dir():
                raise AudioError("a directory has this name", where=str(path))
            self._file = self._scratch.open("wb")
        except OSError as error:
            raise AudioError(
                "cannot write here", where=str(path), why=error.strerror or str(error)
            ) from error

    result: WrittenAudio | None

    def _try_format(self) -> None:
        """Open the format in memory once: an impossible rate or channel count fails before the work."""
        if self.subtype not in _SUBTYPES:
            raise UsageError(
                f"no subtype {self.subtype!r}", where=str(self.path), hint=" ".join(sorted(_SUBTYPES))
            )
        try:
            with soundfile.SoundFile(
                io.BytesIO(), "w", self.rate_hz, self.channels, self.subtype, format=self.format
            ):
                pass
        except (soundfile.SoundFileError, ValueError, TypeError) as error:
            raise UsageError(
                f"{self.format} {self.subtype} cannot hold {self.channels} channels at {self.rate_hz} Hz",
                where=str(self.path),
                why=reason(error),
                hint="use .wav",
            ) from error

    def write(self, block: Float32[np.ndarray, "channel time"]) -> None:
        """Append a block; samples that are NaN or infinite are refused."""
        if block.shape[0] != self.channels:
            raise AudioError(
                f"a block of {block.shape[0]} channels for a file of {self.channels}", where=str(self.path)
            )
        bad = nonfinite(block)
        if bad is not None:
            channel, frame = first_true(bad)
            raise refuse_nonfinite(int(bad.sum()), channel, self.frames + frame, where=str(self.path))
        if not block.shape[1]:
            return
        self.peak = max(self.peak, float(np.abs(block).max()))
        if self._meter is not None:
            self._meter.process(block)
        try:
            self._file.write(np.ascontiguousarray(block.T).data)
        except OSError as error:
            raise AudioError("writing failed", where=str(self.path), why=error.strerror or "") from error
        self.frames += block.shape[1]

    def gain_db(self) -> float:
        """The gain that this writer's level policy asks for, from what has been written so far."""
        lufs = self._meter.integrated() if self._meter is not None else float("nan")
        return self.level.gain_db(peak=self.peak, lufs=lufs)

    def close(self, *, gain_db: float | None = None) -> WrittenAudio:
        """Convert and rename; ``gain_db`` overrides the level policy (one gain for several stems)."""
        if self.result is not None:
            return self.result
        try:
            self._file.close()
            if not self.frames:
                raise AudioError("nothing was written", where=str(self.path))
            self.result = self._convert(self.gain_db() if gain_db is None else gain_db)
            os.replace(self._partial, self.path)
        except (OSError, soundfile.SoundFileError) as error:
            self.result = None
            raise AudioError("writing failed", where=str(self.path), why=reason(error)) from error
        finally:
            self.discard()
        return self.result

    def discard(self) -> None:
        """Give up: no file appears."""
        self._file.close()
        for path in (self._scratch, self._partial):
            with suppress(FileNotFoundError):
                path.unlink()

    def _plan(self, gain_db: float) -> tuple[str, str, float, str]:
        """Format, subtype, gain and note that hold the peak without clipping."""
        subtype, notes = self.subtype, []
        peak = self.peak * 10 ** (gain_db / 20)
        if self.level.kind != "keep" and gain_db:
            notes.append(f"level {self.level.kind} {self.level.target_db:g} dB: gain {gain_db:+.2f} dB")
        if peak > ceiling(subtype):
            over = f"the peak is {20 * np.log10(peak):+.2f} dBFS"
            if soundfile.check_format(self.format, "FLOAT"):
                notes.append(f"{over}: written as float32 instead of {subtype}")
                subtype = "FLOAT"
            else:
                down = -float(20 * np.log10(peak)) - 0.01
                gain_db += down
                subtype = "PCM_24" if subtype == "PCM_16" else subtype
                notes.append(f"{over}: gain {down:+.2f} dB, because {self.format} cannot hold it")
        bytes_each = {"PCM_16": 2, "PCM_24": 3, "DOUBLE": 8}.get(subtype, 4)
        file_format = self.format
        if file_format == "WAV" and self.frames * self.channels * bytes_each > _RIFF_LIMIT:
            file_format = "RF64"
            notes.append("more than 4 GB: written as RF64")
        if file_format == "MP3":
            notes.append("MP3 adds silence at start and end unless the player removes it")
        return file_format, subtype, gain_db, "; ".join(notes)

    def _convert(self, gain_db: float) -> WrittenAudio:
        file_format, subtype, gain_db, note = self._plan(gain_db)
        gain = np.float32(10 ** (gain_db / 20))
        with soundfile.SoundFile(
            str(self._partial), "w", self.rate_hz, self.channels, subtype, format=file_format
        ) as out:
            for block in self._blocks():
                out.write(quantise(block * gain if gain_db else block, subtype))
        with self._partial.open("rb+") as written:
            os.fsync(written.fileno())
        return WrittenAudio(
            path=str(self.path),
            rate_hz=self.rate_hz,
            channels=self.channels,
            frames=self.frames,
            format=file_format,
            subtype=subtype,
            peak=self.peak * float(gain),
            gain_db=gain_db,
            note=note,
        )

    def _blocks(self) -> Iterator[Float32[np.ndarray, "time channel"]]:
        frames = max(1, _BLOCK_SAMPLES // self.channels)
        with self._scratch.open("rb") as scratch:
            while (flat := np.fromfile(scratch, np.float32, frames * self.channels)).size:
                yield flat.reshape(-1, self.channels)

    def __enter__(self) -> AudioWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()


def close_together(writers: Sequence[AudioWriter]) -> list[WrittenAudio]:
    """Close stems that belong together with one gain, the smallest that any of them asks for.

    Stems scaled one by one would no longer add up to their mixture.
    """
    gain_db = min((writer.gain_db() for writer in writers), default=0.0)
    return [writer.close(gain_db=gain_db) for writer in writers]
