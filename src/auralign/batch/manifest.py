"""The record beside a recording's stems: what made them, so that a batch can go on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from auralign.batch.names import Job
from auralign.batch.outcome import FileOutcome


def fingerprint(network: nn.Module) -> str:
    """Of a network's weights: a model trained further must not pass for the one before."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def digest_of(path: str) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read(path: Path) -> dict[str, Any]:
    """A manifest that an earlier run left; empty where there is none that can be read."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def finished(job: Job, wanted: dict[str, Any], *, done: str) -> FileOutcome | None:
    """The earlier outcome, if the same file went through the same settings and its stems are whole.

    Args:
        job: The input and its stems.
        wanted: What the stems depend on.
        done: What has happened to the file, for the note: ``separated``.
    """
    kept = read(job.manifest)
    if kept.get("settings") != json.loads(json.dumps(wanted)) or not os.path.isfile(job.source):
        return None
    sizes = {stem: path.stat().st_size for stem, path in job.paths.items() if path.is_file()}
    if kept.get("bytes") != sizes or kept.get("input_sha256") != digest_of(job.source):
        return None
    outputs, presence = tuple(job.paths.values()), kept.get("presence", {})
    return FileOutcome(job.source, True, outputs, presence=presence, note=f"already {done}")


def made_from_another(job: Job) -> str:
    """The other recording whose stems are in this place, if that recording is still there."""
    kept = read(job.manifest).get("input")
    if not isinstance(kept, str):
        return ""
    other = os.path.join(os.path.realpath(job.manifest.parent), kept)
    if not os.path.exists(other) or os.path.realpath(other) == os.path.realpath(job.source):
        return ""
    return other


def write(job: Job, record: dict[str, Any]) -> None:
    """Write the manifest of stems that are in their places; it appears whole or not at all."""
    base = os.path.realpath(job.manifest.parent)
    found = {
        "name": job.track,
        "input": os.path.relpath(os.path.realpath(job.source), base),
        "input_sha256": digest_of(job.source),
        "stems": {stem: os.path.relpath(os.path.realpath(path), base) for stem, path in job.paths.items()},
        "bytes": {stem: path.stat().st_size for stem, path in job.paths.items()},
        **record,
    }
    text = json.dumps(found, indent=2, ensure_ascii=False) + "\n"
    temporary = job.manifest.with_name(f".{job.manifest.name}.tmp")
    try:
        temporary.write_bytes(
            text.encode("utf-8", "backslashreplace")
        )  # names that are no UTF-8 stay readable
        temporary.replace(job.manifest)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
