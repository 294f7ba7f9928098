"""What an enhancement gives in memory."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from jaxtyping import Float

from auralign.batch.memory import save_stems


@dataclasses.dataclass(frozen=True)
class Enhancement:
    """Speech, and what was taken out; together they are the recording, sample by sample.

    The sum is exact in float32 but for the rounding of its last place, before any file format rounds it.

    Attributes:
        enhanced: The recording with less noise.
        residual: What was taken out.
        rate_hz: Samples per second, the recording's own.
        model: Name of the model.
    """

    enhanced: Float[np.ndarray, "channel time"]
    residual: Float[np.ndarray, "channel time"]
    rate_hz: int
    model: str

    def save(self, folder: str | Path) -> dict[str, Path]:
        """Write ``enhanced.wav`` and ``residual.wav`` as float32 WAV into ``folder``; returns the paths by name."""
        return save_stems(folder, {"enhanced": self.enhanced, "residual": self.residual}, self.rate_hz)
