"""Checkpoints of the form ``hub:owner/model``, where the user writes so; never pickles."""

from __future__ import annotations

from pathlib import Path

from auralign.errors import ModelUnavailableError

PATTERNS = ["*.safetensors", "*.json", "*.txt"]
PREFIX = "hub:"


def hub_folder(name: str, *, offline: bool) -> Path:
    """Folder with the safetensors of ``hub:owner/model``, in huggingface_hub's own cache.

    Raises:
        ModelUnavailableError: The package is missing, or the model cannot be had.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ModelUnavailableError(
            f"'{name}' needs huggingface_hub",
            why=str(error),
            hint="pip install 'auralign[clap]', or give a local folder",
        ) from error
    try:
        return Path(
            snapshot_download(name.removeprefix(PREFIX), allow_patterns=PATTERNS, local_files_only=offline)
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelUnavailableError(
            f"the hub model '{name}' is not available",
            why=str(error).splitlines()[0] + ("; offline is set" if offline else ""),
            hint="check the id, or give a local folder",
        ) from error
