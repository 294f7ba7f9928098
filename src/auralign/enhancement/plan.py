"""How recordings are enhanced and written."""

from __future__ import annotations

import dataclasses
from typing import Any

from auralign.batch.names import RESIDUAL, OutputOptions
from auralign.enhancement.stream import Treatment
from auralign.enhancement.upper import Upper
from auralign.enhancement.windows import Channels

ENHANCED = "enhanced"
"""Name of the stem that holds the speech."""


@dataclasses.dataclass(frozen=True)
class EnhanceOptions(OutputOptions):
    """See :class:`~auralign.batch.names.OutputOptions` and :class:`~auralign.enhancement.stream.Treatment`.

    Attributes:
        residual: Also write what was taken out.
        steps: Evaluations of the network; the model's own number when ``None``.
        seed: Equal seeds give equal results.
        strength: 0 leaves the recording as it is, 1 takes out all that the model takes out.
        upper: What happens above the model's band: ``mask``, ``pass`` or ``drop``.
        channels: ``linked`` or ``separate``.
    """

    residual: bool = False
    steps: int | None = None
    seed: int = 0
    strength: float = 1.0
    upper: Upper = "mask"
    channels: Channels = "linked"

    def __post_init__(self) -> None:
        _ = self.treatment  # checks the values

    @property
    def treatment(self) -> Treatment:
        """What is done to the sound."""
        return Treatment(self.steps, self.seed, self.strength, self.upper, self.channels)

    @property
    def stems(self) -> tuple[str, ...]:
        """What is written for each recording."""
        return (ENHANCED, RESIDUAL) if self.residual else (ENHANCED,)

    def describe(self) -> dict[str, Any]:
        """What the written sound depends on, in plain values."""
        written = {"level": self.level, "format": self.format, "rate_hz": self.rate_hz}
        return {**written, **dataclasses.asdict(self.treatment)}
