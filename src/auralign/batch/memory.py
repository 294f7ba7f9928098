"""Results held in memory, written together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float

from auralign.audio.writer import AudioWriter, close_together


def save_stems(
    folder: str | Path, stems: Mapping[str, Float[np.ndarray, "channel time"]], rate_hz: int
) -> dict[str, Path]:
    """Write ``<stem>.wav`` as float32 WAV for every stem, all or none; returns the paths by stem."""
    paths = {name: Path(folder) / f"{name}.wav" for name in stems}
    writers: list[AudioWriter] = []
    try:
        for name, path in paths.items():
            writers.append(AudioWriter(path, rate_hz=rate_hz, channels=len(stems[name])))
            writers[-1].write(np.ascontiguousarray(stems[name], dtype=np.float32))
        close_together(writers)
    except BaseException:
        for writer in writers:
            writer.discard()
            if writer.result is not None:
                writer.path.unlink(missing_ok=True)
        raise
    return paths
