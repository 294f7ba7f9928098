"""Show versions, devices, weights, disk and optional parts: what works here and what would be added."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import platform
import shutil
import sys
from typing import Any

from auralign import __version__
from auralign.cli.options import Flag
from auralign.cli.terminal import print_json

EXTRAS = {
    "av": ("pip install 'auralign[video]'", "m4a, mp4, mkv and other video files"),
    "transformers": ("pip install 'auralign[clap]'", "CLAP and ImageBind query encoders of your own"),
    "music21": ("pip install 'auralign[data]'", "real scores for building the soundbox corpus"),
    "tinysoundfont": ("pip install --no-deps tinysoundfont", "rendering of instruments for the corpus"),
    "tensorboard": ("pip install tensorboard", "TensorBoard beside metrics.jsonl"),
    "wandb": ("pip install wandb", "Weights & Biases beside metrics.jsonl"),
    "trackio": ("pip install trackio", "trackio beside metrics.jsonl"),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """How to print it."""

    json: Flag = False
    """Print JSON, for a fault report."""


def run(options: Options) -> int:
    """Prints the state of this installation; 1 when a needed package does not import."""
    found = examine()
    if options.json:
        print_json(found)
    else:
        _print(found)
    return 1 if found["broken"] else 0


def examine() -> dict[str, Any]:
    """Everything that doctor tells, as plain values."""
    from auralign.runtime import environment, weights

    cache = weights.cache_dir()
    existing = next(path for path in (cache, *cache.parents) if path.exists())
    broken = {}
    for name in ("torch", "numpy", "soundfile", "soxr", "safetensors", "tokenizers", "PIL"):
        try:
            importlib.import_module(name)
        except (ImportError, OSError) as error:
            broken[name] = str(error)
    device = "none, torch does not import"
    if "torch" not in broken:
        from auralign.runtime.device import pick

        device = str(pick("auto"))
    return {
        "auralign": __version__,
        "commit": environment.commit(),
        "python": f"{platform.python_version()} ({sys.executable})",
        "platform": platform.platform(),
        "cores": environment.cores(),
        "device": device,
        "packages": environment.versions(),
        "broken": broken,
        "weights": {name: weights.is_cached(name) for name in weights.registry()},
        "cache": str(cache),
        "cache_free_gb": round(shutil.disk_usage(existing).free / 1e9, 1),
        "offline": weights.is_offline(None),
        "apt": shutil.which("apt-get") is not None,
        "extras": {name: importlib.util.find_spec(name) is not None for name in EXTRAS},
    }


def _print(found: dict[str, Any]) -> None:
    commit = f" (commit {found['commit']})" if found["commit"] else ""
    print(f"auralign {found['auralign']}{commit}")
    for key in ("python", "platform", "cores", "device"):
        print(f"  {key:<10}{found[key]}")
    print(f"  {'cache':<10}{found['cache']} ({found['cache_free_gb']} GB free)")
    if found["offline"]:
        print(f"  {'network':<10}switched off by AURALIGN_OFFLINE")
    print("packages")
    for name, version in found["packages"].items():
        print(f"  {name:<20}{version or 'missing'}")
    for name, why in found["broken"].items():
        print(f"  {name} does not import: {why}")
    print("weights")
    for name, ready in found["weights"].items():
        print(f"  {name:<20}{'ready' if ready else f'not here; auralign models download {name}'}")
    print("optional")
    for name, there in found["extras"].items():
        command, adds = EXTRAS[name]
        print(f"  {name:<20}{'installed' if there else f'not installed; {command}'}: {adds}")
    if not found["apt"]:
        print("  apt                 absent: data build soundbox needs a folder of .deb files (--packages)")
