from __future__ import annotations

import gzip
import io
import lzma
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest

from auralign.data.soundbox import containers, deb
from auralign.data.soundbox.fetch import fetch
from auralign.errors import DataError

FILES = {"/usr/share/a.wav": b"RIFFa", "/usr/share/deep/b b.txt": "ä text".encode(), "/etc/empty": b""}


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        folder = tarfile.TarInfo("./usr")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, data in files.items():
            info = tarfile.TarInfo("." + name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("./usr/share/link")
        link.type, link.linkname = tarfile.SYMTYPE, "a.wav"
        tar.addfile(link)
    return buffer.getvalue()


def ar_of(parts: list[tuple[str, bytes]]) -> bytes:
    out = b"!<arch>\n"
    for name, data in parts:
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}".encode() + b"`\n" + data
        out += b"\n" * (len(data) % 2)
    return out


def make_deb(path: Path, files: dict[str, bytes], ending: str = "xz", name: str = "mini") -> Path:
    pack = {"xz": lzma.compress, "gz": gzip.compress, "": bytes, "zst": bytes}[ending]
    control = tar_of({"/control": f"Package: {name}\nVersion: 1.2-3\nDescription: x\n more\n".encode()})
    data_name = "data.tar" + (f".{ending}" if ending else "")
    path.write_bytes(
        ar_of(
            [
                ("debian-binary", b"2.0\n"),
                ("_odd", b"odd"),
                ("control.tar.gz", gzip.compress(control)),
                (data_name, pack(tar_of(files))),
            ]
        )
    )
    return path


@pytest.mark.parametrize("ending", ["xz", "gz", ""])
def test_a_package_unpacks_to_the_same_files_as_tarfile(tmp_path: Path, ending: str) -> None:
    path = make_deb(tmp_path / "mini_1_all.deb", FILES, ending)
    assert dict(deb.members(path)) == FILES
    assert deb.control(path)["Version"] == "1.2-3"


def test_only_wanted_files_are_read(tmp_path: Path) -> None:
    path = make_deb(tmp_path / "mini_1_all.deb", FILES)
    assert list(dict(deb.members(path, lambda name: name.endswith(".wav")))) == ["/usr/share/a.wav"]


@pytest.mark.parametrize("keep", [0, 7, 60, 100, 300, -20])
def test_a_truncated_package_is_refused(tmp_path: Path, keep: int) -> None:
    path = make_deb(tmp_path / "mini_1_all.deb", {**FILES, "/big": bytes(range(256)) * 40}, "xz")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"mini_1_all\.deb.*cannot be read"):
        list(deb.members(path))


def test_a_flipped_byte_in_the_data_is_noticed(tmp_path: Path) -> None:
    path = make_deb(tmp_path / "mini_1_all.deb", FILES, "xz")
    data = bytearray(path.read_bytes())
    data[-60] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="cannot be read"):
        list(deb.members(path))


def test_zstandard_without_the_package_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    path = make_deb(tmp_path / "mini_1_all.deb", FILES, "zst")
    with pytest.raises(DataError, match="zstandard"):
        list(deb.members(path))


def test_a_missing_package_is_named_with_what_to_do(tmp_path: Path) -> None:
    make_deb(tmp_path / "here_1_all.deb", FILES)
    with pytest.raises(DataError, match=r"1 Debian packages are missing: gone.*apt-get download"):
        fetch(["here", "gone"], tmp_path, download=False)
    assert fetch(["here"], tmp_path, download=False)["here"].name == "here_1_all.deb"


def test_no_apt_get_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DataError, match="no apt-get"):
        fetch(["gone"], tmp_path)


def cat_of(sounds: list[tuple[str, bytes]]) -> bytes:
    """OpenTTD catalogue after its published layout: (offset, size) table, then length, label, data."""
    table, body = b"", b""
    base = 8 * len(sounds)
    for label, data in sounds:
        name = label.encode() + b"\0"
        table += struct.pack("<II", (base + len(body)) | 0x80000000, len(data))
        body += bytes([len(name)]) + name + data + b"tail"
    return table + body


def rcc_of(name: str, data: bytes) -> bytes:
    """Qt resource with one file in one folder, format version 1."""
    names = b""
    offsets = []
    for text in ("dir", name):
        offsets.append(len(names))
        names += struct.pack(">HI", len(text), 0) + text.encode("utf-16-be")
    tree = struct.pack(">IHII", 0, 2, 1, 1) + struct.pack(">IHII", offsets[0], 2, 1, 2)
    tree += struct.pack(">IHHHI", offsets[1], 0, 0, 1, 0)
    blob = struct.pack(">I", len(data)) + data
    head = 20
    return (
        b"qres"
        + struct.pack(">IIII", 1, head, head + len(tree), head + len(tree) + len(blob))
        + tree
        + blob
        + names
    )


def test_openttd_catalogues_are_read_by_title() -> None:
    data = cat_of([('"Cow/Ox". By someone.', b"RIFFcow"), ('"Wind"', b"RIFFwind")])
    assert dict(containers.expand("/x.cat", data)) == {
        "/x.cat/Cow Ox.wav": b"RIFFcow",
        "/x.cat/Wind.wav": b"RIFFwind",
    }


def test_qt_resources_are_read_by_path() -> None:
    assert dict(containers.expand("/x.rcc", rcc_of("a.ogg", b"OggS"))) == {"/x.rcc/dir/a.ogg": b"OggS"}


def test_zip_archives_are_read_and_filtered() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("s/a.ogg", b"1")
        archive.writestr("s/b.xml", b"2")
    found = dict(containers.expand("/p.zip", buffer.getvalue(), lambda name: name.endswith(".ogg")))
    assert found == {"/p.zip/s/a.ogg": b"1"}


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("/x.cat", b""),
        ("/x.cat", b"\xff" * 40),
        ("/x.rcc", b""),
        ("/x.rcc", b"qre"),
        ("/x.rcc", b"qres\xff\xff"),
        ("/x.zip", b""),
        ("/x.zip", b"PK" + bytes(40)),
    ],
)
def test_a_broken_container_is_named(name: str, data: bytes) -> None:
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        list(containers.expand(name, data))


def test_other_files_pass_through() -> None:
    assert list(containers.expand("/a.wav", b"x")) == [("/a.wav", b"x")]
