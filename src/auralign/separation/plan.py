"""How the stems of a separation are made and written."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from auralign.batch.names import OutputOptions
from auralign.errors import UsageError

MOST_SEPARATIONS = 8


@dataclasses.dataclass(frozen=True)
class SeparateOptions(OutputOptions):
    """See :class:`~auralign.batch.names.OutputOptions`.

    Attributes:
        shared: Scale masks down where several stems claim more than all of a bin.
        separations: How often to separate; each further time what was left over is searched again.
    """

    shared: bool = True
    separations: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.separations <= MOST_SEPARATIONS:
            raise UsageError(
                f"{self.separations} separations cannot be made",
                where="--separations",
                hint=f"take 1 to {MOST_SEPARATIONS}; 1 is usual",
            )


def describe(options: SeparateOptions) -> Mapping[str, str | int | bool | None]:
    """The options that change what is in a stem."""
    return {
        "level": options.level,
        "format": options.format,
        "rate_hz": options.rate_hz,
        "shared": options.shared,
        "separations": options.separations,
    }
