"""Containers that libsndfile does not know (m4a, mp4, webm, mkv, g722, …), through PyAV."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
from jaxtyping import Float32

from auralign.audio.container import BinaryFile, missing_bytes
from auralign.audio.reader import AudioInfo, AudioReader, truncated
from auralign.audio.sound import MAX_CHANNELS, check_rate, to_float32
from auralign.errors import AudioError

if TYPE_CHECKING:
    from av.container import InputContainer

_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (4, b"ftyp", "mov"),
    (4, b"moov", "mov"),
    (0, b"\x1a\x45\xdf\xa3", "matroska"),
    (0, b"\xff\xf1", "aac"),
    (0, b"\xff\xf9", "aac"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),
    (0, b"FLV\x01", "flv"),
    (0, b"wvpk", "wv"),
    (0, b"MAC ", "ape"),
    (0, b"TTA1", "tta"),
    (0, b"#!AMR", "amr"),
    (0, b"\x00\x00\x01\xba", "mpeg"),
    (8, b"AVI ", "avi"),
)
_HEADERLESS = {".g722": "g722"}
_TEXT = frozenset(range(0x20, 0x7F)) | {9, 10, 13}


def demuxer_for(head: bytes, where: str) -> str | None:
    """FFmpeg's demuxer for the first bytes of a file; None leaves it to libsndfile.

    Named from content, so that nothing is guessed, and playlists that open other files are never followed.

    >>> demuxer_for(bytes(4) + b"ftypM4A ", "song.wav")
    'mov'
    """
    for offset, magic, demuxer in _MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return demuxer
    demuxer = _HEADERLESS.get(Path(where).suffix.lower(), "")
    known = head[:4] in (b"RIFF", b"fLaC", b"OggS")
    if demuxer and not known and not _TEXT.issuperset(head):
        return demuxer
    return None


def _require_av(where: str) -> Any:
    try:
        import av
        import av.error
    except ImportError as error:
        raise AudioError(
            "this container needs the PyAV package, which is not installed",
            where=where,
            hint="pip install 'auralign[video]'",
        ) from error
    return av


@final
class AvReader(AudioReader):
    """The first audio stream of a container, decoded by FFmpeg frame by frame."""

    def __init__(
        self, file: BinaryFile, where: str, demuxer: str, *, owns_file: bool, allow_truncated: bool
    ) -> None:
        self._file, self._owns = file, owns_file
        self._container: InputContainer | None = None
        self._failure: Exception | None = None
        try:
            self._av = _require_av(where)
            missing = missing_bytes(file)
            if missing and not allow_truncated:
                raise truncated(where, f"{missing} bytes are missing at the end")
            try:
                self._container = self._av.open(file, format=demuxer, metadata_errors="ignore")
            except (self._av.error.FFmpegError, OSError, ValueError, TypeError) as error:
                raise AudioError("this container cannot be read", where=where, why=_words(error)) from error
            self._frames = self._packets()
            self._pending: list[np.ndarray] = []
            info = self._describe(where, demuxer)
        except BaseException:
            self.close()
            raise
        super().__init__(info, allow_truncated=allow_truncated)

    def _describe(self, where: str, demuxer: str) -> AudioInfo:
        """Decode one frame: only that tells rate and channels for certain."""
        assert self._container is not None  # set just before
        if not self._container.streams.audio:
            raise AudioError("the file has no audio stream", where=where)
        stream = self._container.streams.audio[0]
        first = next(self._frames, None)
        if first is None:
            why = _words(self._failure) if self._failure else ""
            raise AudioError("the file has no audio that can be decoded", where=where, why=why)
        self._pending.append(_samples(first, where))
        self._rate_hz = check_rate(first.sample_rate, where=where)
        self._channels = self._pending[0].shape[0]
        if not 1 <= self._channels <= MAX_CHANNELS:
            raise AudioError(f"the stream has {self._channels} channels", where=where)
        self._expected = 0
        if stream.duration is not None and stream.time_base is not None and demuxer == "mov":
            self._expected = round(float(stream.duration * stream.time_base) * self._rate_hz)
        codec = stream.codec_context.name.upper()
        return AudioInfo(where, self._rate_hz, self._channels, None, demuxer.upper(), codec)

    def _packets(self) -> Iterator[Any]:
        assert self._container is not None  # set before the first use
        try:
            yield from self._container.decode(audio=0)
        except (self._av.error.FFmpegError, OSError, ValueError) as error:
            self._failure = error

    def _decode(self, frames: int) -> Float32[np.ndarray, "channel time"]:
        held = sum(part.shape[1] for part in self._pending)
        while held < frames and (frame := next(self._frames, None)) is not None:
            part = _samples(frame, self.info.path)
            if part.shape[0] != self._channels or frame.sample_rate != self._rate_hz:
                raise AudioError("rate or channel count changes inside the stream", where=self.info.path)
            self._pending.append(part)
            held += part.shape[1]
        joined = (
            np.concatenate(self._pending, axis=1)
            if self._pending
            else np.empty((self._channels, 0), np.float32)
        )
        self._pending = [joined[:, frames:]] if joined.shape[1] > frames else []
        return np.ascontiguousarray(joined[:, :frames])

    def _check_end(self) -> None:
        super()._check_end()
        if self.allow_truncated:
            return
        if self._failure is not None:
            raise AudioError(
                f"decoding failed after {self.position} frames",
                where=self.info.path,
                why=_words(self._failure),
            )
        if self.position < self._expected - max(4096, self._rate_hz // 5):  # encoder padding and edit lists
            raise truncated(
                self.info.path, f"its header declares {self._expected} frames, {self.position} could be read"
            )

    def close(self) -> None:
        """Close FFmpeg's container, and the file when it was opened here."""
        if self._container is not None:
            self._container.close()
            self._container = None
        if self._owns:
            self._file.close()


def _words(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def _samples(frame: Any, where: str) -> Float32[np.ndarray, "channel time"]:
    """An FFmpeg frame as float32 planes."""
    array = frame.to_ndarray()
    if not frame.format.is_planar:
        array = array.reshape(-1, len(frame.layout.channels)).T
    return np.ascontiguousarray(to_float32(array, where=where))
