"""Where the Debian packages come from: `apt-get download`, or a folder of `.deb` files."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from auralign.errors import DataError


def find_packages(names: Sequence[str], folder: Path) -> dict[str, Path]:
    """Return the `.deb` of every named package that lies in `folder` (the last by name if several)."""
    found = {name: sorted(folder.glob(f"{name}_*.deb")) for name in names}
    return {name: paths[-1] for name, paths in found.items() if paths}


def fetch(names: Sequence[str], folder: Path, *, download: bool = True) -> dict[str, Path]:
    """Return the `.deb` file of each package; download those that `folder` lacks.

    Args:
        names: Debian package names.
        folder: Where `.deb` files lie and are put.
        download: Call `apt-get download` for the missing ones.

    Raises:
        DataError: Packages are missing and cannot be downloaded.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = sorted(set(names) - set(find_packages(names, folder)))
    why = "downloading was switched off"
    if missing and download:
        why = _apt_download(missing, folder)
        missing = sorted(set(names) - set(find_packages(names, folder)))
    if missing:
        raise DataError(
            f"{len(missing)} Debian packages are missing: {', '.join(missing)}",
            where=str(folder),
            why=why,
            hint="download them on a Debian machine with `apt-get download` and copy the files here",
        )
    return find_packages(names, folder)


def _apt_download(names: Sequence[str], folder: Path) -> str:
    if shutil.which("apt-get") is None:
        return "this machine has no apt-get"
    command = ["apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", *names]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return done.stderr.strip().splitlines()[-1] if done.returncode and done.stderr.strip() else ""
