"""What a separation gives: sounds in memory, or files with a manifest."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from auralign.batch.memory import save_stems


@dataclasses.dataclass(frozen=True)
class Separation:
    """One query's result, held in memory.

    ``target + residual`` is the recording, sample by sample (float32, before any file format rounds it).

    Attributes:
        target: What was asked for.
        residual: What is left.
        rate_hz: Samples per second, the recording's own.
        presence: Probability between 0 and 1 that the queried sound is in the recording at all.
        query: The query in plain values.
        model: Name of the model.
    """

    target: Float[np.ndarray, "channel time"]
    residual: Float[np.ndarray, "channel time"]
    rate_hz: int
    presence: float
    query: dict[str, Any]
    model: str
    stem: str = "target"

    def save(self, folder: str | Path) -> dict[str, Path]:
        """Write ``<stem>.wav`` and ``residual.wav`` as float32 WAV into ``folder``.

        Returns:
            The paths by stem name.
        """
        stems = {"target" if self.stem == "residual" else self.stem: self.target, "residual": self.residual}
        return save_stems(folder, stems, self.rate_hz)
