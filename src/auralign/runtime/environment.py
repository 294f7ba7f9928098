"""What a result depends on besides the code's arguments: versions, machine, commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "numpy", "safetensors", "soundfile", "soxr", "tokenizers", "pillow", "tyro", "jaxtyping")


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str | None]:
    """Installed version of each package, None where it is absent."""
    found: dict[str, str | None] = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def commit() -> str | None:
    """The commit of the source tree (``-dirty`` with changes), or None outside of one."""
    here = Path(__file__).resolve().parent
    try:
        command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None if answer.returncode == 0 else None


def cores() -> int:
    """Processor cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows do not tell
        return os.cpu_count() or 1


def snapshot() -> dict[str, Any]:
    """Everything for ``env.json``: program, commit, packages, machine, devices, arguments."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "auralign": versions(("auralign",))["auralign"],
        "commit": commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": cores(),
        "torch_threads": torch.get_num_threads(),
        "cuda_devices": gpus,
        "mps": torch.backends.mps.is_available(),
        "packages": versions(),
        "arguments": sys.argv[1:],
    }
