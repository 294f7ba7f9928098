"""Separating files: a batch in which one bad file does not stop the others, and nothing half done is left."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from auralign.audio.io import open_reader
from auralign.audio.level import Level
from auralign.audio.reader import AudioInfo, AudioReader
from auralign.audio.resample import StreamResampler
from auralign.audio.writer import AudioWriter, WrittenAudio
from auralign.errors import AudioError, AuralignError
from auralign.models.separator import QueryVector, SeparatorModel
from auralign.separation import manifest
from auralign.separation.plan import Job, SeparateOptions, plan
from auralign.separation.query import Query, stem_names
from auralign.separation.result import FileOutcome
from auralign.separation.stream import StemStream, stem_blocks

Progress = Callable[[float, float, str], None]
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
    jobs = plan([os.fspath(one) for one in inputs], stems, options)
    if options.dry_run:
        return [_guarded(job, lambda job=job: _preview(job)) for job in jobs]  # type: ignore[misc]
    settings = manifest.settings(request.name, request.model, request.queries, stems, options)
    outcomes = []
    for number, job in enumerate(jobs):
        progress = _within(on_progress, number, len(jobs))

        def work(job: Job = job, progress: Progress | None = progress) -> FileOutcome:
            done = None if options.overwrite else manifest.finished(job, settings)
            return done or _separate(request, job, settings, progress)

        outcomes.append(_guarded(job, work))
    return outcomes


def _guarded(job: Job, work: Callable[[], FileOutcome]) -> FileOutcome:
    """The outcome of one file, whatever happens to it; its name is in every error."""
    try:
        return work()
    except AuralignError as error:
        return FileOutcome(job.source, False, error=_naming(error, job.source))
    except (OSError, MemoryError) as error:
        failed = AudioError(
            "the file could not be processed", where=job.source, why=str(error) or "no memory"
        )
        return FileOutcome(job.source, False, error=failed)


def _naming(error: AuralignError, source: str) -> AuralignError:
    if source in str(error):
        return error
    where = f"{source}: {error.where}" if error.where else source
    return type(error)(error.what, where=where, why=error.why, hint=error.hint)


def _within(on_progress: Progress | None, number: int, total: int) -> Progress | None:
    if on_progress is None:
        return None
    return lambda done, of, stage: on_progress(number + done / max(of, 1e-9), total, stage)


def _preview(job: Job) -> FileOutcome:
    """What a run would cost; opens the recording and writes nothing."""
    with open_reader(job.source) as reader:
        info = reader.info
    length, cost = "unknown length", ""
    if info.duration_s is not None:
        length, cost = (
            f"{info.duration_s:.1f} s",
            f", about {max(1.0, info.duration_s / _SPEED):.0f} s of work",
        )
    note = (
        f"would read {length}, {info.rate_hz} Hz, {info.channels} channels; {_MEMORY_GB} GB of memory{cost}"
    )
    return FileOutcome(job.source, True, tuple(job.paths.values()), note=note)


def _separate(
    request: Request, job: Job, settings: dict[str, Any], on_progress: Progress | None
) -> FileOutcome:
    """One recording into its stems and manifest; after an error or an interruption none of them is there."""
    other = "" if request.options.overwrite else manifest.made_from_another(job)
    if other:
        raise AudioError(
            f"{job.paths['residual'].parent} holds the stems of {other}",
            where=job.source,
            hint="give another --out, or --overwrite",
        )
    began = time.monotonic()
    created = _new_folders(job)
    writers: list[AudioWriter] = []
    try:
        with open_reader(job.source) as reader:
            vectors = torch.stack([query.vector for query in request.encoded])
            info, options = reader.info, request.options
            stream = StemStream(
                request.model,
                vectors,
                info.rate_hz,
                info.channels,
                shared=options.shared,
                separations=options.separations,
            )
            _open_writers(writers, job, info, options)
            _write(stream, reader, writers, on_progress)
        job.manifest.unlink(missing_ok=True)  # from here on it would describe other stems
        written = _close(writers)
        outcome = _outcome(job, stream, writers, written)
        timeline = stream.masks.presence
        record = {
            "rate_hz": info.rate_hz,
            "channels": info.channels,
            "scores": {stem: {"presence": value} for stem, value in outcome.presence.items()},
            "presence": outcome.presence,
            "presence_timeline": {
                "start_s": timeline.times_s,
                **{
                    stem: [round(row[n], 4) for row in timeline.values]
                    for n, stem in enumerate(outcome.presence)
                },
            },
            "note": outcome.note,
            "gain_db": written[0].gain_db,
            "written": {stem: _plain(one) for stem, one in zip(job.paths, written, strict=True)},
            "seconds": round(time.monotonic() - began, 3),
            "settings": settings,
        }
        manifest.write(job, record)
    except BaseException:
        _undo(writers, created)
        raise
    return outcome


def _plain(written: WrittenAudio) -> dict[str, Any]:
    """What was written, without the path, which the manifest gives from its own place."""
    return {key: value for key, value in dataclasses.asdict(written).items() if key != "path"}


def _new_folders(job: Job) -> list[Path]:
    """The folders that this job will make, the deepest first."""
    wanted = {folder for path in job.paths.values() for folder in path.parents if not folder.exists()}
    return sorted(wanted, key=lambda folder: len(folder.parts), reverse=True)


def _undo(writers: Sequence[AudioWriter], created: Sequence[Path]) -> None:
    for writer in writers:
        with suppress(OSError):
            writer.discard()
            if writer.result is not None:
                writer.path.unlink(missing_ok=True)
    for folder in created:
        with suppress(OSError):
            folder.rmdir()  # only when empty


def _open_writers(writers: list[AudioWriter], job: Job, info: AudioInfo, options: SeparateOptions) -> None:
    rate_hz, level = options.rate_hz or info.rate_hz, Level.parse(options.level)
    for path in job.paths.values():
        writers.append(AudioWriter(path, rate_hz=rate_hz, channels=info.channels, like=info, level=level))


def _write(
    stream: StemStream, reader: AudioReader, writers: Sequence[AudioWriter], on_progress: Progress | None
) -> None:
    """Run the stream into the writers, through resamplers where another rate is wanted."""
    info, rate_hz = reader.info, writers[0].rate_hz
    resamplers = [StreamResampler(info.rate_hz, rate_hz, info.channels) for _ in writers]
    done = 0
    for block in stem_blocks(stream, reader):
        for writer, one, stem in zip(writers, resamplers, [*block.targets, block.residual], strict=True):
            writer.write(one.process(stem) if rate_hz != info.rate_hz else stem)
        done += block.residual.shape[1]
        if on_progress is not None:
            on_progress(done, max(done, info.frames or 0), Path(info.path).name)
    if rate_hz != info.rate_hz:
        for writer, one in zip(writers, resamplers, strict=True):
            writer.write(one.process(np.zeros((info.channels, 0), dtype=np.float32), last=True))


def _close(writers: Sequence[AudioWriter]) -> list[WrittenAudio]:
    """Close all stems with one gain, so that they still add up.

    It is the smallest that the level policy asks for, or less where a container without floating point would clip.
    """
    gain_db = min(writer.gain_db() for writer in writers)
    peak = max(writer.peak for writer in writers)
    note = ""
    if not soundfile.check_format(writers[0].format, "FLOAT") and peak * 10 ** (gain_db / 20) > 1.0:
        fitting_db = -20 * math.log10(peak) - 0.01
        note = f"gain {fitting_db - gain_db:+.2f} dB on all stems, because {writers[0].format} would clip"
        gain_db = fitting_db
    written = [writer.close(gain_db=gain_db) for writer in writers]
    return [dataclasses.replace(one, note="; ".join(filter(None, (one.note, note)))) for one in written]


def _outcome(
    job: Job, stream: StemStream, writers: Sequence[AudioWriter], written: Sequence[WrittenAudio]
) -> FileOutcome:
    presence = {
        stem: round(value, 4)
        for stem, value in zip(job.paths, stream.masks.presence.overall(stream.queries), strict=False)
    }
    if not any(writer.peak for writer in writers):
        notes = ["the recording is silent, nothing can be in it"]
    elif not stream.masks.presence.values:
        notes = ["the recording is too quiet to tell what is in it"]
    else:
        notes = [
            f"{stem}: probably not in this recording (presence {value:.2f})"
            for stem, value in presence.items()
            if value < _UNLIKELY
        ]
    note = "; ".join(notes + sorted({one.note for one in written if one.note}))
    return FileOutcome(job.source, True, tuple(job.paths.values()), presence=presence, note=note)
