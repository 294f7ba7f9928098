"""What a separation gives: sounds in memory, or files with a manifest."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from auralign.audio.writer import AudioWriter, close_together


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
        paths = {name: Path(folder) / f"{name}.wav" for name in stems}
        writers: list[AudioWriter] = []
        try:
            for name, path in paths.items():
                writers.append(AudioWriter(path, rate_hz=self.rate_hz, channels=len(self.target)))
                writers[-1].write(np.ascontiguousarray(stems[name], dtype=np.float32))
            close_together(writers)
        except BaseException:
            for writer in writers:
                writer.discard()
                if writer.result is not None:
                    writer.path.unlink(missing_ok=True)
            raise
        return paths


@dataclasses.dataclass(frozen=True)
class FileOutcome:
    """What became of one input file of a batch.

    Attributes:
        input: The file as it was named.
        ok: Whether its stems are there.
        outputs: The stems' paths.
        error: Why not.
        presence: Probability of each stem's sound, by stem name.
        note: What the user should know: skipped, level changed, nothing found.
    """

    input: str
    ok: bool
    outputs: tuple[Path, ...] = ()
    error: Exception | None = None
    presence: dict[str, float] = dataclasses.field(default_factory=dict)
    note: str = ""
