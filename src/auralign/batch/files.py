"""Recordings through a stream into files: one bad file does not stop the others, and nothing half done is left."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import soundfile
from jaxtyping import Float32

from auralign.audio.io import open_reader
from auralign.audio.level import Level
from auralign.audio.reader import AudioInfo, AudioReader
from auralign.audio.resample import StreamResampler
from auralign.audio.writer import AudioWriter, WrittenAudio
from auralign.batch import manifest
from auralign.batch.names import Job, OutputOptions
from auralign.batch.outcome import FileOutcome
from auralign.errors import AudioError, AuralignError

Progress = Callable[[float, float, str], None]


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a stream knows once it has ended.

    Attributes:
        notes: What the user should know about the recording.
        record: What the manifest says besides files and settings.
        presence: See :class:`FileOutcome`.
    """

    notes: Sequence[str]
    record: Mapping[str, Any]
    presence: Mapping[str, float] = dataclasses.field(default_factory=dict)


@runtime_checkable
class Process(Protocol):
    """One recording on its way."""

    def blocks(self, reader: AudioReader) -> Iterator[Sequence[Float32[np.ndarray, "channel time"]]]:
        """The next samples of every stem, in the order of the job's paths."""

    def summary(self, stems: Sequence[str], *, silent: bool) -> Summary:
        """After the last block; `silent` says that no stem has a sample other than zero."""


@dataclasses.dataclass(frozen=True)
class Batch:
    """What is the same for every file.

    Attributes:
        options: How to write.
        settings: Everything but the recording that a stem depends on, in plain values.
        start: Opens a process for a recording.
        done: What happens to a file, for messages: ``separated``.
        speed: Times real time, for the preview.
        memory_gb: For the preview.
    """

    options: OutputOptions
    settings: dict[str, Any]
    start: Callable[[AudioInfo], Process]
    done: str
    speed: float = 20.0
    memory_gb: float = 0.6


def run(batch: Batch, jobs: Sequence[Job], on_progress: Progress | None = None) -> list[FileOutcome]:
    """Every job, in order; what goes wrong with one becomes its outcome."""
    if batch.options.dry_run:
        return [_guarded(job, lambda job=job: _preview(batch, job)) for job in jobs]  # type: ignore[misc]
    outcomes = []
    for number, job in enumerate(jobs):
        progress = _within(on_progress, number, len(jobs))

        def work(job: Job = job, progress: Progress | None = progress) -> FileOutcome:
            kept = (
                None if batch.options.overwrite else manifest.finished(job, batch.settings, done=batch.done)
            )
            return kept or _process(batch, job, progress)

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


def _preview(batch: Batch, job: Job) -> FileOutcome:
    """What a run would cost; opens the recording and writes nothing."""
    with open_reader(job.source) as reader:
        info = reader.info
    length, cost = "unknown length", ""
    if info.duration_s is not None:
        length = f"{info.duration_s:.1f} s"
        cost = f", about {max(1.0, info.duration_s / batch.speed):.0f} s of work"
    note = f"would read {length}, {info.rate_hz} Hz, {info.channels} channels; {batch.memory_gb} GB of memory{cost}"
    return FileOutcome(job.source, True, tuple(job.paths.values()), note=note)


def _process(batch: Batch, job: Job, on_progress: Progress | None) -> FileOutcome:
    """One recording into its stems and manifest; after an error or an interruption none of them is there."""
    other = "" if batch.options.overwrite else manifest.made_from_another(job)
    if other:
        raise AudioError(
            f"{job.manifest.parent} holds the stems of {other}",
            where=job.source,
            hint="give another --out, or --overwrite",
        )
    began = time.monotonic()
    created = _new_folders(job)
    writers: list[AudioWriter] = []
    try:
        with open_reader(job.source) as reader:
            info = reader.info
            process = batch.start(info)
            _open_writers(writers, job, info, batch.options)
            _write(process, reader, writers, on_progress)
        job.manifest.unlink(missing_ok=True)  # from here on it would describe other stems
        written = _close(writers)
        found = process.summary(tuple(job.paths), silent=not any(writer.peak for writer in writers))
        notes = [*found.notes, *sorted({one.note for one in written if one.note})]
        outcome = FileOutcome(
            job.source,
            True,
            tuple(job.paths.values()),
            presence=dict(found.presence),
            note="; ".join(notes),
        )
        record = {
            "rate_hz": info.rate_hz,
            "channels": info.channels,
            **found.record,
            "note": outcome.note,
            "gain_db": written[0].gain_db,
            "written": {stem: _plain(one) for stem, one in zip(job.paths, written, strict=True)},
            "seconds": round(time.monotonic() - began, 3),
            "settings": batch.settings,
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


def _open_writers(writers: list[AudioWriter], job: Job, info: AudioInfo, options: OutputOptions) -> None:
    rate_hz, level = options.rate_hz or info.rate_hz, Level.parse(options.level)
    for path in job.paths.values():
        writers.append(AudioWriter(path, rate_hz=rate_hz, channels=info.channels, like=info, level=level))


def _write(
    process: Process, reader: AudioReader, writers: Sequence[AudioWriter], on_progress: Progress | None
) -> None:
    """Run the recording into the writers, through resamplers where another rate is wanted."""
    info, rate_hz = reader.info, writers[0].rate_hz
    resamplers = [StreamResampler(info.rate_hz, rate_hz, info.channels) for _ in writers]
    done = 0
    for stems in process.blocks(reader):
        for writer, one, stem in zip(writers, resamplers, stems, strict=True):
            writer.write(one.process(stem) if rate_hz != info.rate_hz else stem)
        done += stems[0].shape[1]
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
