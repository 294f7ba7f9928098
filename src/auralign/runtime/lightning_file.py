"""Checkpoints that PyTorch Lightning wrote, read without running anything that is in them.

Such a file is a pickle. It is read by torch's restricted unpickler (``weights_only=True``), memory-mapped. Its settings
often name classes, such as the data module of the training script; these become stand-ins without any code, and only
for the packages that the caller expects. A file that names anything else is refused before it is read.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from auralign.errors import ModelUnavailableError

LIGHTNING = ("pytorch_lightning", "lightning", "lightning_fabric", "argparse", "pathlib")
"""Packages whose classes Lightning itself leaves in checkpoints."""
_NUMPY = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype")


class StandIn:
    """In the place of an object whose class is not known here; it keeps nothing and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> StandIn:
        """An empty one, whatever is given."""
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Takes what the pickle gives it and drops it."""

    def __setstate__(self, state: Any) -> None:
        """Drops the state."""


def read_lightning(path: Path, *, packages: Sequence[str]) -> dict[str, Any]:
    """What the checkpoint holds, tensors on the CPU and mapped to the file.

    Args:
        path: A ``.ckpt`` file.
        packages: Top-level packages whose classes the file may name besides Lightning's own.

    Raises:
        ModelUnavailableError: There is no such file, it is damaged, or it wants more than tensors and settings.
    """
    import torch

    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        _refuse(path, [name for name in named if not _is_known(name, packages)])
        allowed: list[Any] = [(_stand_in(name), name) for name in named if name not in _NUMPY]
        with torch.serialization.safe_globals(allowed + _numpy_scalars()):
            held = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise ModelUnavailableError(
            "the checkpoint cannot be read",
            where=str(path),
            why=_reason(error),
            hint="give the .ckpt file as it was published",
        ) from error
    if not isinstance(held, dict):
        raise ModelUnavailableError("the checkpoint is not a dictionary", where=str(path))
    return held


def _reason(error: Exception) -> str:
    """The cause alone: torch wraps it in advice to read the file without the restriction."""
    text = str(error).rpartition("WeightsUnpickler error:")[2].strip()
    return text.splitlines()[0] if text else type(error).__name__


def _is_known(name: str, packages: Sequence[str]) -> bool:
    return name in _NUMPY or name.split(".")[0] in (*LIGHTNING, *packages)


def _stand_in(name: str) -> type:
    last = name.rsplit(".", 1)[-1]
    # Some versions of Lightning keep the settings in a dictionary with attributes.
    return OrderedDict if last == "AttributeDict" else type(last, (StandIn,), {})


def _refuse(path: Path, names: list[str]) -> None:
    if names:
        raise ModelUnavailableError(
            "the checkpoint names code that is no part of such a checkpoint",
            where=str(path),
            why=", ".join(sorted(names)[:5]),
            hint="it was not opened; take the file from its authors",
        )


def _numpy_scalars() -> list[Any]:
    """Scores that callbacks remember are numpy numbers."""
    import numpy as np

    rebuild = np.float64(0.0).__reduce__()[0]
    kinds = [type(np.dtype(kind)) for kind in ("f8", "f4", "i8", "i4")]
    return [*[(rebuild, name) for name in _NUMPY[:2]], (np.dtype, _NUMPY[2]), *kinds]
