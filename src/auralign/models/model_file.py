"""A trained model on disk: ``model.safetensors`` with its description inside, and ``card.json`` beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from auralign.errors import ModelUnavailableError

_NAME = "model.safetensors"


def write_model(
    folder: Path,
    tensors: Mapping[str, Tensor],
    meta: Mapping[str, str],
    card: Mapping[str, Any],
    *,
    half: bool,
) -> None:
    """Write a model file and its card, which holds the file's SHA-256.

    Args:
        folder: Made when missing.
        tensors: The state dict.
        meta: Description that travels inside the file; ``format`` says what kind of model it is.
        card: What the model is, as JSON values.
        half: Store matrices and kernels as float16; gains, biases and running statistics stay float32.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{_NAME}.tmp"
    stored = {name: _stored(tensor.detach().cpu(), half=half) for name, tensor in tensors.items()}
    save_file(stored, temporary, metadata=dict(meta))
    temporary.replace(folder / _NAME)
    digest = hashlib.sha256((folder / _NAME).read_bytes()).hexdigest()
    full = {**card, "format": meta["format"], "files": {_NAME: digest}}
    (folder / "card.json").write_text(json.dumps(full, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_model(place: Path, *, kind: str, wanted: str) -> tuple[dict[str, Tensor], dict[str, str], Path]:
    """Read what :func:`write_model` wrote, floats as float32; the file is checked against its card.

    Args:
        place: The folder, or the file itself.
        kind: What the model is called in messages.
        wanted: The ``format`` it must have.

    Returns:
        Tensors, description and the file's path.

    Raises:
        ModelUnavailableError: The file is missing, damaged or of another kind.
    """
    path = place / _NAME if place.is_dir() else place
    try:
        with safe_open(str(path), framework="pt") as file:
            meta = file.metadata() or {}
        tensors = load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise ModelUnavailableError(
            f"the {kind} cannot be read", where=str(path), why=str(error), hint="see `auralign models list`"
        ) from error
    if meta.get("format") != wanted:
        raise ModelUnavailableError(
            f"the file is not an auralign {kind}",
            where=str(path),
            why=f"its format is {meta.get('format')!r}",
        )
    _check_card(path)
    return {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}, meta, path


def kind_of(place: Path) -> str:
    """The ``format`` of a model's file or folder; empty where there is no file that says one."""
    path = place / _NAME if place.is_dir() else place
    try:
        with safe_open(str(path), framework="pt") as file:
            return str((file.metadata() or {}).get("format", ""))
    except (OSError, SafetensorError):
        return ""


def _check_card(path: Path) -> None:
    """Compare the file with the digest in the card beside it; a model without a card is taken as it is."""
    card = path.with_name("card.json")
    if not card.exists():
        return
    try:
        expected = json.loads(card.read_text(encoding="utf-8"))["files"][path.name]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelUnavailableError("the model's card is damaged", where=str(card), why=str(error)) from error
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != expected:
        raise ModelUnavailableError(
            "the model is damaged",
            where=str(path),
            why=f"its SHA-256 is {digest[:12]}…, its card says {str(expected)[:12]}…",
            hint="copy or train it again",
        )


def _stored(tensor: Tensor, *, half: bool) -> Tensor:
    narrow = half and tensor.is_floating_point() and tensor.ndim > 1
    return tensor.to(torch.float16 if narrow else tensor.dtype).contiguous()
