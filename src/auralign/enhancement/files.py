"""Enhancing files; reading, writing and what happens to bad files is :mod:`auralign.batch`."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32
from torch import nn

from auralign.audio.reader import AudioInfo, AudioReader
from auralign.batch.files import Batch, Progress, Summary, run
from auralign.batch.manifest import fingerprint
from auralign.batch.names import plan
from auralign.batch.outcome import FileOutcome
from auralign.enhancement.plan import ENHANCED, EnhanceOptions
from auralign.enhancement.stream import EnhanceStream, Treatment, enhanced_blocks
from auralign.models.enhancer import Enhancer
from auralign.version import VERSION

_SPEED, _MEMORY_GB = 10.0, 0.6  # of the shipped model on two cores, for --dry-run


def enhance_files(
    enhancer: Enhancer,
    name: str,
    inputs: Sequence[str | Path],
    options: EnhanceOptions,
    on_progress: Progress | None = None,
) -> list[FileOutcome]:
    """Enhance a batch; errors of single files become outcomes, wrong options are raised before any work.

    Args:
        enhancer: The model.
        name: What to call it in manifests.
        inputs: Files.
        options: How to treat and write them.
        on_progress: Called with files done, files in all and the current file's name.
    """
    jobs = plan([os.fspath(one) for one in inputs], options.stems, options)
    batch = Batch(
        options,
        settings(enhancer, name, options),
        lambda info: _Enhancing(enhancer, info, options),
        done="enhanced",
        speed=_SPEED,
        memory_gb=_MEMORY_GB,
    )
    return run(batch, jobs, on_progress)


def settings(enhancer: Enhancer, name: str, options: EnhanceOptions) -> dict[str, Any]:
    """Everything but the recording that the result depends on, in plain values."""
    model: dict[str, Any] = {"name": name}
    if isinstance(enhancer, nn.Module):
        model["weights"] = fingerprint(enhancer)
    return {"model": model, "options": options.describe(), "version": VERSION}


class _Enhancing:
    """One recording through the stream."""

    def __init__(self, enhancer: Enhancer, info: AudioInfo, options: EnhanceOptions) -> None:
        self.name, self.info, self.options = enhancer.name, info, options
        self.heard_hz = enhancer.rate_hz
        self.stream = EnhanceStream(enhancer, info.rate_hz, info.channels, options.treatment)

    def blocks(self, reader: AudioReader) -> Iterator[Sequence[Float32[np.ndarray, "channel time"]]]:
        """Speech, and what was taken out where it is asked for."""
        for block in enhanced_blocks(self.stream, reader):
            yield [block.enhanced, block.residual][: len(self.options.stems)]

    def summary(self, stems: Sequence[str], *, silent: bool) -> Summary:
        """Levels, and what was done to bands and channels."""
        energy = self.stream.energy
        scores = {
            ENHANCED: {"level_change_db": _ratio_db(energy.enhanced, energy.recording)},
            "residual": {"level_below_recording_db": _ratio_db(energy.residual, energy.recording)},
        }
        record = {
            "task": "enhancement",
            "about": about(self.options.treatment, self.info, self.heard_hz),
            "scores": {stem: scores[stem] for stem in stems},
        }
        if energy.recording == 0.0:
            return Summary(["the recording is silent, and so is the result"], record)
        if energy.enhanced == 0.0:
            return Summary(["nothing in it was taken for speech, the result is silent"], record)
        return Summary([], record)


def about(treatment: Treatment, info: AudioInfo, heard_hz: int) -> str:
    """What was done besides enhancing, in words for the report."""
    said = []
    band_khz = heard_hz / 2000
    if info.rate_hz > heard_hz:
        ways = {
            "mask": f"attenuated like {band_khz / 2:g} to {band_khz:g} kHz",
            "pass": "left as it was",
            "drop": "removed",
        }
        said.append(
            f"Above {band_khz:g} kHz, which the model does not hear, the recording is {ways[treatment.upper]}"
        )
    if info.channels > 1:
        linked = "All channels have the same gain, so that the stereo image stays"
        said.append(linked if treatment.channels == "linked" else "Every channel was enhanced for itself")
    if 0 < treatment.strength < 1:
        kept_db = 20 * math.log10(1 - treatment.strength)
        said.append(
            f"Strength {treatment.strength:g}: what was taken out is still there, {-kept_db:.1f} dB lower"
        )
    return ". ".join(said)


def _ratio_db(part: float, whole: float) -> float | None:
    return round(10 * math.log10(part / whole), 2) if part > 0 and whole > 0 else None
