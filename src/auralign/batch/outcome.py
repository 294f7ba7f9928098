"""What became of one file of a batch."""

from __future__ import annotations

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class FileOutcome:
    """What became of one input file of a batch.

    Attributes:
        input: The file as it was named.
        ok: Whether its stems are there.
        outputs: The stems' paths.
        error: Why not.
        presence: Of separations: probability of each stem's sound, by stem name.
        note: What the user should know: skipped, level changed, nothing found.
    """

    input: str
    ok: bool
    outputs: tuple[Path, ...] = ()
    error: Exception | None = None
    presence: dict[str, float] = dataclasses.field(default_factory=dict)
    note: str = ""
