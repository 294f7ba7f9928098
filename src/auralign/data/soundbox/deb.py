"""Debian packages read without Debian tools.

A `.deb` is an `ar` archive of three members: `debian-binary`, `control.tar.*` and `data.tar.*`
(deb(5)). The tar members are compressed by gzip, xz, bzip2 or Zstandard.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

from auralign.errors import DataError

_MAGIC = b"!<arch>\n"
_HEADER = 60


def members(path: Path, wanted: Callable[[str], bool] | None = None) -> Iterator[tuple[str, bytes]]:
    """Yield the files of a package in the order in which they are stored.

    Args:
        path: The `.deb`.
        wanted: Says of a path such as `/usr/share/a.wav` whether its bytes are needed; all by default.

    Yields:
        Path from the root, and bytes. Links and folders are left out.

    Raises:
        DataError: The file is missing, is no Debian package, or is damaged.
    """
    with _open_part(path, "data.tar") as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r|") as tar:
                for item in tar:
                    name = "/" + item.name.removeprefix("./").lstrip("/")
                    if not item.isfile() or (wanted is not None and not wanted(name)):
                        continue
                    handle = tar.extractfile(item)
                    if handle is not None:
                        yield name, handle.read()
            while stream.read(1 << 20):  # to the end, so that the checksum is compared
                pass
        except (tarfile.TarError, lzma.LZMAError, EOFError, OSError) as error:
            raise _damaged(path, str(error)) from error


def control(path: Path) -> dict[str, str]:
    """Return the fields of the package's control file, such as `Package` and `Version`."""
    with _open_part(path, "control.tar") as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r|") as tar:
                for item in tar:
                    if item.name.removeprefix("./") == "control":
                        handle = tar.extractfile(item)
                        text = handle.read().decode("utf-8", "replace") if handle else ""
                        return _fields(text)
        except (tarfile.TarError, lzma.LZMAError, EOFError, OSError) as error:
            raise _damaged(path, str(error)) from error
    raise _damaged(path, "no control file inside")


def _fields(text: str) -> dict[str, str]:
    rows = [line.split(":", 1) for line in text.splitlines() if line[:1].strip() and ":" in line]
    return {key.strip(): value.strip() for key, value in rows}


def _damaged(path: Path, why: str) -> DataError:
    return DataError(
        "the Debian package cannot be read", where=str(path), why=why, hint="delete it and fetch it again"
    )


def _open_part(path: Path, part: str) -> io.BufferedIOBase:
    if not path.is_file():
        raise DataError("there is no such package file", where=str(path), hint="fetch the package first")
    handle = path.open("rb")
    try:
        name, size = _seek_part(handle, path, part)
        return _decompressed(_Slice(handle, size), name, path)
    except BaseException:
        handle.close()
        raise


def _seek_part(handle: io.BufferedReader, path: Path, part: str) -> tuple[str, int]:
    if handle.read(len(_MAGIC)) != _MAGIC:
        raise _damaged(path, "the ar signature is missing")
    while len(header := handle.read(_HEADER)) == _HEADER:
        name = header[:16].decode("ascii", "replace").strip().rstrip("/")
        size_text = header[48:58].decode("ascii", "replace").strip()
        if header[58:60] != b"`\n" or not size_text.isdigit():
            raise _damaged(path, "an ar member has no valid header")
        size = int(size_text)
        if name.startswith(part):
            return name, size
        handle.seek(size + size % 2, io.SEEK_CUR)
    raise _damaged(path, f"no {part} member")


def _decompressed(raw: _Slice, name: str, path: Path) -> io.BufferedIOBase:
    buffered = io.BufferedReader(raw, 1 << 20)
    suffix = name.rpartition(".")[2]
    if suffix == "xz":
        return lzma.LZMAFile(buffered)
    if suffix == "gz":
        return gzip.GzipFile(fileobj=buffered)
    if suffix == "bz2":
        return bz2.BZ2File(buffered)
    if suffix == "tar":
        return buffered
    if suffix == "zst":
        try:
            import zstandard
        except ImportError as error:
            raise DataError(
                "the package is compressed by Zstandard, which this Python cannot read",
                where=str(path),
                hint="install the `zstandard` package, or repack the file with `dpkg-deb`",
            ) from error
        return io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(buffered))
    raise _damaged(path, f"unknown compression of {name}")


class _Slice(io.RawIOBase):
    """The next `size` bytes of an open file; closing it closes the file."""

    def __init__(self, handle: io.BufferedReader, size: int) -> None:
        self._handle, self._left = handle, size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        chunk = self._handle.read(min(len(view), self._left))
        view[: len(chunk)] = chunk
        self._left -= len(chunk)
        return len(chunk)

    def close(self) -> None:
        self._handle.close()
        super().close()
