"""Checkpoints without pickle: tensors as safetensors, everything else as JSON in the same file's header.

A state is any tree of dicts, lists, tuples, tensors, arrays, numbers, texts and None: model and EMA state
dicts, ``optimizer.state_dict()``, :func:`auralign.runtime.seed.capture_rng`, a sampler's position. It comes
back as the same tree. One file per checkpoint, renamed into place, so that it is either whole or absent.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from auralign.errors import DataError

FORMAT = "auralign-checkpoint-1"
_TENSOR, _ARRAY, _TUPLE, _ITEMS = "__tensor__", "__array__", "__tuple__", "__items__"
_STEP = re.compile(r"step_(\d+)\.safetensors")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds.

    Attributes:
        state: The tree given to :func:`save_checkpoint`.
        meta: Its description: step, score, configuration, whatever the writer added.
    """

    state: dict[str, Any]
    meta: dict[str, Any]


def save_checkpoint(
    path: str | Path, state: Mapping[str, Any], meta: Mapping[str, Any] | None = None
) -> None:
    """Writes ``state`` and ``meta`` to one file, atomically.

    Args:
        path: Target; its folder is made when missing.
        state: Tree of tensors and plain values, see the module's text.
        meta: JSON values, readable without touching the tensors through :func:`read_meta`.

    Raises:
        DataError: The tree holds something that is neither a tensor nor plain data.
    """
    tensors: dict[str, torch.Tensor] = {}
    tree = _pack(dict(state), "state", tensors)
    header = {"format": FORMAT, "state": json.dumps(tree), "meta": json.dumps(dict(meta or {}))}
    with _renamed_into_place(Path(path)) as temporary:
        save_file(tensors, temporary, metadata=header)


def load_checkpoint(path: str | Path, *, device: str = "cpu") -> Checkpoint:
    """Reads what :func:`save_checkpoint` wrote.

    Raises:
        DataError: The file is missing, truncated or of another kind.
    """
    with _opened(path, device) as file:
        header = _header(file, path)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    return Checkpoint(_unpack(json.loads(header["state"]), tensors), json.loads(header["meta"]))


def read_meta(path: str | Path) -> dict[str, Any]:
    """The description alone, without reading a tensor."""
    with _opened(path, "cpu") as file:
        meta: dict[str, Any] = json.loads(_header(file, path)["meta"])
    return meta


class CheckpointStore:
    """The ``checkpoints/`` of a run: the newest few, and the best.

    Args:
        folder: Where the files are.
        keep_last: How many of the newest ones stay.
        common_meta: Description added to each checkpoint (a run adds its configuration).
    """

    def __init__(
        self, folder: str | Path, *, keep_last: int = 2, common_meta: Mapping[str, Any] | None = None
    ) -> None:
        if keep_last < 1:
            raise ValueError(f"keep_last must be at least 1, got {keep_last}")
        self.folder = Path(folder)
        self.keep_last = keep_last
        self.common_meta = dict(common_meta or {})

    def save(
        self,
        step: int,
        state: Mapping[str, Any],
        meta: Mapping[str, Any] | None = None,
        *,
        score: float | None = None,
    ) -> Path:
        """Writes the checkpoint of ``step``; with a ``score`` (larger is better) also as best if it is.

        A ``nan`` score is never the best.
        """
        path = self.folder / f"step_{step:09d}.safetensors"
        save_checkpoint(path, state, {**self.common_meta, **(meta or {}), "step": step, "score": score})
        best = self.best_score()
        if score is not None and score == score and (best is None or score > best):
            with _renamed_into_place(self.folder / "best.safetensors") as temporary:
                shutil.copyfile(path, temporary)
        for old in self.steps()[: -self.keep_last]:
            (self.folder / f"step_{old:09d}.safetensors").unlink(missing_ok=True)
        return path

    def steps(self) -> list[int]:
        """Steps that are on disk, in order."""
        if not self.folder.is_dir():
            return []
        matches = (_STEP.fullmatch(entry.name) for entry in self.folder.iterdir())
        return sorted(int(match.group(1)) for match in matches if match)

    def latest(self) -> Path | None:
        """The newest checkpoint's file, or None when there is none."""
        steps = self.steps()
        return self.folder / f"step_{steps[-1]:09d}.safetensors" if steps else None

    def best(self) -> Path | None:
        """The best checkpoint's file, or None when no step was scored."""
        path = self.folder / "best.safetensors"
        return path if path.exists() else None

    def best_score(self) -> float | None:
        """Score of the best checkpoint so far."""
        path = self.best()
        return None if path is None else read_meta(path)["score"]

    def load_latest(self, *, device: str = "cpu") -> Checkpoint:
        """Reads the newest checkpoint.

        Raises:
            DataError: There is none, or it is damaged; the message then names the one before it.
        """
        path = self.latest()
        if path is None:
            raise DataError(
                "there is no checkpoint", where=str(self.folder), hint="train from the recipe again"
            )
        try:
            return load_checkpoint(path, device=device)
        except DataError as error:
            older = self.steps()[-2:-1]
            hint = f"delete it to go on from step {older[0]}" if older else "train from the recipe again"
            raise DataError(error.what, where=error.where, why=error.why, hint=hint) from error


def _pack(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """Replaces tensors by their names, and gives what JSON lacks (tuples, int keys, arrays) a mark."""
    if isinstance(value, torch.Tensor):
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {_TENSOR: name}
    if isinstance(value, np.ndarray):
        return {_ARRAY: value.tolist(), "dtype": str(value.dtype), "shape": list(value.shape)}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        packed = [(key, _pack(item, f"{name}/{key}", tensors)) for key, item in value.items()]
        if all(isinstance(key, str) and not key.startswith("__") for key, _ in packed):
            return dict(packed)
        return {_ITEMS: [[_pack(key, name, tensors), item] for key, item in packed]}
    if isinstance(value, list | tuple):
        items = [_pack(item, f"{name}/{i}", tensors) for i, item in enumerate(value)]
        return items if isinstance(value, list) else {_TUPLE: items}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise DataError(
        f"a checkpoint cannot hold {type(value).__name__}",
        where=name,
        hint="store tensors, numbers and texts",
    )


def _unpack(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR in value:
        return tensors[value[_TENSOR]]
    if _ARRAY in value:
        return np.array(value[_ARRAY], dtype=value["dtype"]).reshape(value["shape"])
    if _TUPLE in value:
        return tuple(_unpack(item, tensors) for item in value[_TUPLE])
    if _ITEMS in value:
        return {_unpack(key, tensors): _unpack(item, tensors) for key, item in value[_ITEMS]}
    return {key: _unpack(item, tensors) for key, item in value.items()}


@contextmanager
def _renamed_into_place(path: Path) -> Iterator[Path]:
    """Gives a temporary name beside ``path``; the file becomes ``path`` only when it is whole and on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _opened(path: str | Path, device: str) -> Iterator[Any]:
    try:
        with safe_open(str(path), framework="pt", device=device) as file:
            yield file
    except FileNotFoundError:
        raise DataError("no such checkpoint", where=str(path)) from None
    except (OSError, SafetensorError) as error:
        raise DataError("the checkpoint is damaged or not one", where=str(path), why=str(error)) from error


def _header(file: Any, path: str | Path) -> dict[str, str]:
    header: dict[str, str] = file.metadata() or {}
    if header.get("format") != FORMAT:
        raise DataError(
            "the file is not an auralign checkpoint", where=str(path), why=f"no {FORMAT} in its header"
        )
    return header
