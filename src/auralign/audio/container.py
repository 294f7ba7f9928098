"""What a file's own header promises, so that a truncated file is noticed before it is trusted.

libsndfile shortens the promise to what is there and says nothing; these few fields are read independently.
"""

from __future__ import annotations

import os
from typing import Protocol, runtime_checkable


@runtime_checkable
class BinaryFile(Protocol):
    """What is asked of a file object: a seekable source of bytes."""

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes, none at the end."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Move to a position and return it."""

    def tell(self) -> int:
        """The position."""

    def close(self) -> None:
        """Give the file back."""


_UNKNOWN = (0, 0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000, 0xFFFFF000, 0x80000000)  # what streaming writers leave


def missing_bytes(file: BinaryFile) -> int:
    """How many bytes of sound the header declares beyond the end of the file; 0 when it is whole or unknown.

    Covers WAV, RIFX, RF64, W64, AIFF, AU, CAF, MP4 and Matroska; an Ogg stream without its last page counts
    as 1. The position in the file is kept.
    """
    position = file.tell()
    try:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        head = file.read(16)
        if head[:4] in (b"RIFF", b"RIFX", b"RF64") and head[8:12] == b"WAVE":
            return _riff(file, size, "big" if head[:4] == b"RIFX" else "little")
        if head[:4] == b"FORM" and head[8:11] == b"AIF":
            return _chunks(file, size, 12, b"SSND", "big")
        if head == bytes.fromhex("726966662e91cf11a5d628db04c10000"):
            return _w64(file, size)
        if head[:4] == b".snd":
            start, length = (int.from_bytes(head[i : i + 4], "big") for i in (4, 8))
            return 0 if length in _UNKNOWN else max(0, start + length - size)
        if head[:4] == b"caff":
            return _caf(file, size)
        if head[:4] == b"OggS":
            return _ogg(file, size)
        if head[4:8] == b"ftyp":
            return _mp4(file, size)
        if head[:4] == b"\x1a\x45\xdf\xa3":
            return _matroska(file, size)
        return 0
    finally:
        file.seek(position)


def _chunks(file: BinaryFile, size: int, start: int, name: bytes, order: str, length_if_ff: int = 0) -> int:
    """Walk 8-byte chunk headers to the chunk called name; its missing bytes."""
    while start + 8 <= size:
        file.seek(start)
        head = file.read(8)
        length = int.from_bytes(head[4:], "little" if order == "little" else "big")
        if head[:4] == name:
            if length == 0xFFFFFFFF and length_if_ff:
                return max(0, start + 8 + length_if_ff - size)
            return 0 if length in _UNKNOWN else max(0, start + 8 + length - size)
        start += 8 + length + length % 2
    return 0


def _riff(file: BinaryFile, size: int, order: str) -> int:
    file.seek(12)
    ds64 = file.read(36)
    long_data = int.from_bytes(ds64[16:24], "little") if ds64[:4] == b"ds64" else 0
    return _chunks(file, size, 12, b"data", order, 0 if long_data >= 2**63 else long_data)


def _w64(file: BinaryFile, size: int) -> int:
    start = 40
    while start + 24 <= size:
        file.seek(start)
        head = file.read(24)
        length = int.from_bytes(head[16:24], "little")
        if head[:4] == b"data":
            return 0 if length >= 2**62 or length <= 24 else max(0, start + length - size)
        start += max(24, (length + 7) // 8 * 8)
    return 0


def _caf(file: BinaryFile, size: int) -> int:
    start = 8
    while start + 12 <= size:
        file.seek(start)
        head = file.read(12)
        length = int.from_bytes(head[4:], "big", signed=True)
        if head[:4] == b"data":
            return 0 if length < 0 else max(0, start + 12 + length - size)
        start += 12 + max(0, length)
    return 0


def _ogg(file: BinaryFile, size: int) -> int:
    """Every logical stream must end in a page that carries the end-of-stream flag (RFC 3533, section 6)."""
    file.seek(max(0, size - 131072))
    tail = file.read(131072)
    last = tail.rfind(b"OggS\0")
    if last < 0 or last + 27 > len(tail):
        return 1
    segments = tail[last + 26]
    body = sum(tail[last + 27 : last + 27 + segments])
    whole = last + 27 + segments + body <= len(tail)
    return 0 if whole and tail[last + 5] & 4 else 1


def _mp4(file: BinaryFile, size: int) -> int:
    """Boxes follow one another to the end (ISO/IEC 14496-12, 4.2); length 0 means up to the end."""
    start = 0
    while start + 8 <= size:
        file.seek(start)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length < 8:
            return 0
        start += length
    return max(0, start - size)


def _matroska(file: BinaryFile, size: int) -> int:
    """The EBML header, then one Segment with its length (RFC 9559); live streams leave it unknown."""
    start = 0
    for name in (b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"):
        file.seek(start)
        head = file.read(12)
        if head[:4] != name or len(head) < 12 or not head[4]:
            return 0
        width = 9 - head[4].bit_length()
        value = int.from_bytes(head[4 : 4 + width], "big") - (1 << 7 * width)
        if value == (1 << 7 * width) - 1:
            return 0
        start += 4 + width + value
    return max(0, start - size)
