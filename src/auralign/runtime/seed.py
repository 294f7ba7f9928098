"""Seeds that are derived, never shared, and random states that can be put away and taken out again."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

Generators = Mapping[str, np.random.Generator | torch.Generator]


def seed_all(seed: int) -> None:
    """Seeds Python, numpy's legacy state and torch on every device.

    Code of this package draws from generators that it is given; this is for libraries that do not.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - other libraries draw from the legacy state
    torch.manual_seed(seed)


def derive(seed: int, *names: str | int) -> int:
    """A seed of its own for each purpose: 63 bits of BLAKE2b over the seed and the names.

    The same seed and names give the same number on every machine; different names give independent ones.

    >>> derive(0, "mixtures", 3) == derive(0, "mixtures", 3)
    True
    >>> derive(0, "mixtures", 3) == derive(0, "mixtures", 4)
    False
    """
    text = "\x1f".join([str(int(seed)), *(f"{type(name).__name__}:{name}" for name in names)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def capture_rng(generators: Generators | None = None) -> dict[str, Any]:
    """Every random state as a tree that :func:`auralign.runtime.checkpoint.save_checkpoint` can store.

    Args:
        generators: Named generators of the caller, saved beside the global states.
    """
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),  # noqa: NPY002 - the global state, on purpose
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "generators": {},
    }
    for name, generator in (generators or {}).items():
        own = (
            generator.get_state() if isinstance(generator, torch.Generator) else generator.bit_generator.state
        )
        state["generators"][name] = own
    return state


def restore_rng(state: Mapping[str, Any], generators: Generators | None = None) -> None:
    """Puts back what :func:`capture_rng` saved; generators that were not saved stay as they are.

    CUDA states are put back only where there are as many devices as when they were saved.
    """
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002 - the global state, on purpose
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and torch.cuda.is_available() and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all([one.cpu() for one in state["cuda"]])
    for name, generator in (generators or {}).items():
        if name not in state["generators"]:
            continue
        if isinstance(generator, torch.Generator):
            generator.set_state(state["generators"][name].cpu())
        else:
            generator.bit_generator.state = state["generators"][name]
