"""Separating files; reading, writing and what happens to bad files is :mod:`auralign.batch`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32

from auralign.audio.reader import AudioInfo, AudioReader
from auralign.batch.files import Batch, Progress, Summary, run
from auralign.batch.names import RESIDUAL, plan
from auralign.batch.outcome import FileOutcome
from auralign.models.separator import QueryVector, SeparatorModel
from auralign.separation import manifest
from auralign.separation.plan import SeparateOptions
from auralign.separation.query import Query, stem_names
from auralign.separation.stream import StemStream, stem_blocks

_UNLIKELY = 0.5
_SPEED, _MEMORY_GB = 20.0, 0.6  # of the shipped model on two cores, for --dry-run


@dataclasses.dataclass(frozen=True)
class Request:
    """What is the same for every file of a batch.

    Attributes:
        model: Network and query heads.
        name: What to call the model in manifests.
        queries: What to separate.
        encoded: The queries as vectors; empty for a dry run.
        options: How to write it.
    """

    model: SeparatorModel
    name: str
    queries: Sequence[Query]
    encoded: Sequence[QueryVector]
    options: SeparateOptions


def separate_files(
    request: Request, inputs: Sequence[str | Path], on_progress: Progress | None = None
) -> list[FileOutcome]:
    """Separate a batch; errors of single files become outcomes, errors of the request are raised before any work."""
    stems, options = stem_names(request.queries), request.options
    jobs = plan([os.fspath(one) for one in inputs], [*stems, RESIDUAL], options)
    settings = (
        {}
        if options.dry_run
        else manifest.settings(request.name, request.model, request.queries, stems, options)
    )
    batch = Batch(
        options,
        settings,
        lambda info: _Separating(request, info),
        done="separated",
        speed=_SPEED,
        memory_gb=_MEMORY_GB,
    )
    return run(batch, jobs, on_progress)


class _Separating:
    """One recording through the stream of stems."""

    def __init__(self, request: Request, info: AudioInfo) -> None:
        self.stream = StemStream(
            request.model,
            torch.stack([query.vector for query in request.encoded]),
            info.rate_hz,
            info.channels,
            shared=request.options.shared,
            separations=request.options.separations,
        )

    def blocks(self, reader: AudioReader) -> Iterator[Sequence[Float32[np.ndarray, "channel time"]]]:
        """Targets, then what is left."""
        for block in stem_blocks(self.stream, reader):
            yield [*block.targets, block.residual]

    def summary(self, stems: Sequence[str], *, silent: bool) -> Summary:
        """Presence over the whole and in time, and what it means."""
        timeline = self.stream.masks.presence
        overall = timeline.overall(self.stream.queries)
        presence = {stem: round(value, 4) for stem, value in zip(stems, overall, strict=False)}
        if silent:
            notes = ["the recording is silent, nothing can be in it"]
        elif not timeline.values:
            notes = ["the recording is too quiet to tell what is in it"]
        else:
            notes = [
                f"{stem}: probably not in this recording (presence {value:.2f})"
                for stem, value in presence.items()
                if value < _UNLIKELY
            ]
        record = {
            "scores": {stem: {"presence": value} for stem, value in presence.items()},
            "presence": presence,
            "presence_timeline": {
                "start_s": timeline.times_s,
                **{stem: [round(row[n], 4) for row in timeline.values] for n, stem in enumerate(presence)},
            },
        }
        return Summary(notes, record, presence)
