"""Sounds that lie inside other files: OpenTTD `.cat`, Qt resource `.rcc`, and `.zip`.

Each inner file is named `<path of the container>/<inner path>`.
"""

from __future__ import annotations

import io
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator

from auralign.errors import DataError

CONTAINERS = (".cat", ".rcc", ".zip")


def is_container(path: str) -> bool:
    """Say whether `path` names a file that `expand` can look into.

    >>> is_container("/usr/share/opensfx.cat"), is_container("a.wav")
    (True, False)
    """
    return path.endswith(CONTAINERS)


def expand(
    path: str, data: bytes, wanted: Callable[[str], bool] | None = None
) -> Iterator[tuple[str, bytes]]:
    """Yield the wanted files inside a container, or the file itself when it is none.

    Args:
        path: Name of the file that holds `data`; its ending selects the format.
        data: Its bytes.
        wanted: Filter on the inner names; all by default.

    Raises:
        DataError: The container is damaged.
    """
    readers = {".cat": _cat, ".rcc": _rcc, ".zip": _zip}
    reader = readers.get(path[-4:])
    if reader is None:
        yield path, data
        return
    try:
        yield from reader(path, data, wanted or (lambda _: True))
    except (struct.error, zipfile.BadZipFile, zlib.error, IndexError, UnicodeDecodeError) as error:
        raise DataError("the container cannot be read", where=path, why=str(error)) from error


def _zip(path: str, data: bytes, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for info in archive.infolist():
            name = f"{path}/{info.filename}"
            if not info.is_dir() and wanted(name):
                yield name, archive.read(info)


def _cat(path: str, data: bytes, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """OpenTTD sample catalogue: a table of (offset, size), then name, RIFF data for each sample."""
    (first,) = struct.unpack_from("<I", data, 0)
    for index in range((first & 0x7FFFFFFF) // 8):
        offset, size = struct.unpack_from("<II", data, 8 * index)
        offset &= 0x7FFFFFFF
        length = data[offset]
        label = data[offset + 1 : offset + length].decode("utf-8", "replace")
        quoted = re.match(r'"([^"]+)"', label)
        name = f"{path}/{(quoted.group(1) if quoted else label).replace('/', ' ')}.wav"
        start = offset + 1 + length
        if wanted(name):
            yield name, data[start : start + size]


def _rcc(path: str, data: bytes, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Qt binary resources: a tree of 14-byte (version 1) or 22-byte nodes, names in UTF-16."""
    if data[:4] != b"qres":
        raise DataError("the Qt resource signature is missing", where=path)
    version, tree, blobs, names = struct.unpack_from(">IIII", data, 4)
    width = 14 if version < 2 else 22

    def name_at(offset: int) -> str:
        (length,) = struct.unpack_from(">H", data, names + offset)
        return data[names + offset + 6 : names + offset + 6 + 2 * length].decode("utf-16-be")

    def walk(index: int, prefix: str) -> Iterator[tuple[str, bytes]]:
        node = tree + width * index
        name_offset, flags = struct.unpack_from(">IH", data, node)
        name = f"{prefix}/{name_at(name_offset)}" if index else prefix
        if flags & 2:
            count, child = struct.unpack_from(">II", data, node + 6)
            for k in range(child, child + count):
                yield from walk(k, name)
        elif wanted(name):
            (offset,) = struct.unpack_from(">I", data, node + 10)
            (length,) = struct.unpack_from(">I", data, blobs + offset)
            blob = data[blobs + offset + 4 : blobs + offset + 4 + length]
            yield name, zlib.decompress(blob[4:]) if flags & 1 else blob

    yield from walk(0, path)
