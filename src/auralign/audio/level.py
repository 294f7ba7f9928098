"""Level policies: what may be done to the loudness of a result. The default does nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from auralign.errors import UsageError

LevelKind = Literal["keep", "peak", "lufs"]
DEFAULT_PEAK_DBFS, DEFAULT_LUFS = -1.0, -23.0


@dataclass(frozen=True)
class Level:
    """A level policy; ``keep`` changes nothing, ``peak`` and ``lufs`` reach a target by one constant gain.

    >>> Level.parse("peak:-3")
    Level(kind='peak', target_db=-3.0)
    """

    kind: LevelKind = "keep"
    target_db: float = 0.0

    def __post_init__(self) -> None:
        """Check the target."""
        if self.kind not in ("keep", "peak", "lufs"):
            raise UsageError(f"no level policy {self.kind!r}", where="--level", hint="keep, peak or lufs")
        if not math.isfinite(self.target_db) or not -120 <= self.target_db <= 0:
            raise UsageError(
                f"the level target {self.target_db} is outside -120…0 dB", where=f"--level {self.kind}"
            )

    @classmethod
    def parse(cls, text: str) -> Level:
        """Read ``keep``, ``peak``, ``peak:-3``, ``lufs`` or ``lufs:-16``."""
        kind, colon, number = text.strip().lower().partition(":")
        hint = "keep, peak, peak:-3 (dBFS), lufs or lufs:-16"
        try:
            target = (
                float(number) if colon else {"peak": DEFAULT_PEAK_DBFS, "lufs": DEFAULT_LUFS}.get(kind, 0.0)
            )
        except ValueError as error:
            raise UsageError(
                f"the level target {number!r} is not a number", where="--level", hint=hint
            ) from error
        if kind == "keep" and not colon:
            return cls("keep")
        if kind == "peak":
            return cls("peak", target)
        if kind == "lufs":
            return cls("lufs", target)
        raise UsageError(f"no level policy {text!r}", where="--level", hint=hint)

    def gain_db(self, *, peak: float, lufs: float = math.nan) -> float:
        """The gain that reaches the target from a measured peak (linear) or loudness; 0 for silence.

        >>> Level("peak", -6.0).gain_db(peak=1.0)
        -6.0
        """
        if self.kind == "peak" and peak > 0:
            return self.target_db - 20 * math.log10(peak)
        if self.kind == "lufs" and math.isfinite(lufs):
            return self.target_db - lufs
        return 0.0
