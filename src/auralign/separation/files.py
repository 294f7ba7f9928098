"""Separating files: names, formats, manifests, resuming, and one bad file that does not stop the others."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import auralign
from auralign.audio.io import open_reader
from auralign.audio.level import Level
from auralign.audio.reader import AudioInfo
from auralign.audio.resample import StreamResampler
from auralign.audio.writer import AudioWriter, WrittenAudio, close_together
from auralign.errors import AudioError, AuralignError, UsageError
from auralign.models.separator import QueryVector, SeparatorModel
from auralign.separation.query import Query, slug
from auralign.separation.result import FileOutcome
from auralign.separation.stream import StemStream, stem_blocks

Progress = Callable[[float, float, str], None]
_LOSSLESS = {".wav", ".flac", ".w64", ".rf64", ".aiff", ".aif", ".caf"}
_UNLIKELY = 0.5


@dataclasses.dataclass(frozen=True)
class SeparateOptions:
    """How stems are written.

    Attributes:
        out: Folder for everything.
        level: ``keep``, ``peak`` or ``lufs``; one gain for all stems of a recording, so that they still add up.
        format: Suffix without dot; the input's where that is lossless, else ``wav``.
        rate_hz: Rate of the stems; ``None`` keeps the recording's.
        name: Path of a stem below ``out``; knows ``{track}``, ``{stem}`` and ``{ext}``.
        overwrite: Do again what is already there.
        dry_run: Only say what would be written.
        report: Also write ``report.html``.
        shared: Scale masks down where several stems claim more than all of a bin.
    """

    out: Path = Path("out")
    level: str = "keep"
    format: str = ""
    rate_hz: int | None = None
    name: str = "{track}/{stem}.{ext}"
    overwrite: bool = False
    dry_run: bool = False
    report: bool = False
    shared: bool = True


@dataclasses.dataclass(frozen=True)
class _Job:
    """One input with the paths that it will fill."""

    source: str
    track: str
    paths: dict[str, Path]
    manifest: Path


def plan(inputs: Sequence[str], queries: Sequence[Query], options: SeparateOptions) -> list[_Job]:
    """Paths of every stem; two stems that would share a path are an error before any work is done."""
    names = [query.stem for query in queries]
    doubled = sorted({name for name in names if names.count(name) > 1} | {n for n in names if n == "residual"})
    if doubled:
        raise UsageError(f"several stems would be called {doubled[0]!r}", hint="give the queries different names")
    jobs: list[_Job] = []
    taken: dict[Path, str] = {}
    tracks = _tracks(inputs)
    for source in inputs:
        suffix = options.format.lower().lstrip(".") or _suffix(source)
        track = tracks[source]
        try:
            paths = {
                stem: options.out / options.name.format(track=track, stem=stem, ext=suffix)
                for stem in (*names, "residual")
            }
        except (KeyError, IndexError, ValueError) as error:
            raise UsageError(
                f"the name template {options.name!r} cannot be filled",
                why=f"{error}",
                hint="use {track}, {stem} and {ext}",
            ) from error
        for path in paths.values():
            _inside(path, options.out)
            if path in taken:
                raise UsageError(
                    f"two stems would be written to {path}",
                    why=f"from {taken[path]} and {source}",
                    hint="put {track} and {stem} into the name template",
                )
            taken[path] = source
        jobs.append(_Job(source, track, paths, paths["residual"].parent / f"{_manifest_name(options, track)}"))
    return jobs


def _manifest_name(options: SeparateOptions, track: str) -> str:
    return "manifest.json" if "{track}/" in options.name else f"{track}.manifest.json"


def _inside(path: Path, out: Path) -> None:
    if not os.path.abspath(path).startswith(os.path.abspath(out) + os.sep):
        raise UsageError(f"{path} lies outside of {out}", hint="leave '..' out of the name template")


def _tracks(inputs: Sequence[str]) -> dict[str, str]:
    """A folder name for each input; equal stems get their suffix or folder, then a number."""
    chosen: dict[str, str] = {}
    used: set[str] = set()
    stems = [slug(Path(source).stem) for source in inputs]
    for source, stem in zip(inputs, stems, strict=True):
        name = stem
        if stems.count(stem) > 1:
            name = slug(f"{Path(source).parent.name} {Path(source).name}")
        number, candidate = 2, name
        while candidate in used:
            candidate, number = f"{name}-{number}", number + 1
        used.add(candidate)
        chosen[source] = candidate
    return chosen


def _suffix(source: str) -> str:
    suffix = Path(source).suffix.lower()
    return suffix.lstrip(".") if suffix in _LOSSLESS else "wav"


def separate_files(
    model: SeparatorModel,
    name: str,
    encoded: Sequence[QueryVector],
    inputs: Sequence[str],
    queries: Sequence[Query],
    options: SeparateOptions,
    on_progress: Progress | None = None,
) -> list[FileOutcome]:
    """Separate a batch; errors of single files become outcomes, errors of the request are raised before any work."""
    outcomes = []
    jobs = plan(inputs, queries, options)
    for number, job in enumerate(jobs):
        settings = _settings(name, model, queries, options)
        try:
            if options.dry_run:
                outcomes.append(_preview(job))
                continue
            done = None if options.overwrite else _finished(job, settings)
            if done is not None:
                outcomes.append(done)
                continue
            outcomes.append(_one(model, encoded, job, options, settings, _within(on_progress, number, len(jobs))))
        except AuralignError as error:
            outcomes.append(FileOutcome(job.source, False, error=error))
        except (OSError, MemoryError) as error:
            failed = AudioError("the file could not be processed", where=job.source, why=str(error))
            outcomes.append(FileOutcome(job.source, False, error=failed))
    return outcomes


def _within(on_progress: Progress | None, number: int, total: int) -> Progress | None:
    if on_progress is None:
        return None
    return lambda done, of, stage: on_progress(number + done / max(of, 1e-9), total, stage)


def _settings(name: str, model: SeparatorModel, queries: Sequence[Query], options: SeparateOptions) -> dict[str, Any]:
    return {
        "model": {"name": name, "network": model.network, "queries": model.space},
        "queries": {query.stem: query.describe() for query in queries},
        "options": {
            "level": options.level,
            "format": options.format,
            "rate_hz": options.rate_hz,
            "shared": options.shared,
        },
        "version": auralign.__version__,
    }


def _preview(job: _Job) -> FileOutcome:
    with open_reader(job.source) as reader:
        info = reader.info
    seconds = "unknown length" if info.duration_s is None else f"{info.duration_s:.1f} s"
    note = f"would read {seconds}, {info.rate_hz} Hz, {info.channels} channels; about 0.6 GB of memory at any length"
    return FileOutcome(job.source, True, tuple(job.paths.values()), note=note)


def _finished(job: _Job, settings: dict[str, Any]) -> FileOutcome | None:
    """The earlier outcome, if the same file was separated in the same way and its stems are still there."""
    try:
        kept = json.loads(job.manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if kept.get("settings") != json.loads(json.dumps(settings)) or not all(p.exists() for p in job.paths.values()):
        return None
    if not os.path.exists(job.source) or kept.get("input_sha256") != _digest(job.source):
        return None
    return FileOutcome(
        job.source, True, tuple(job.paths.values()), presence=kept.get("presence", {}), note="already separated"
    )


def _digest(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _one(
    model: SeparatorModel,
    encoded: Sequence[QueryVector],
    job: _Job,
    options: SeparateOptions,
    settings: dict[str, Any],
    on_progress: Progress | None,
) -> FileOutcome:
    began = time.monotonic()
    with open_reader(job.source) as reader:
        info = reader.info
        rate = options.rate_hz or info.rate_hz
        vectors = torch.stack([query.vector for query in encoded])
        stream = StemStream(model, vectors, info.rate_hz, info.channels, shared=options.shared)
        writers: list[AudioWriter] = []
        try:
            for path in job.paths.values():
                writers.append(
                    AudioWriter(
                        path, rate_hz=rate, channels=info.channels, like=info, level=Level.parse(options.level)
                    )
                )
            _write(model, vectors, reader, stream, writers, info, rate, on_progress)
            written = close_together(writers)
        except BaseException:
            for writer in writers:
                writer.discard()
            raise
    stems = list(job.paths)
    presence = dict(zip(stems, stream.masks.presence.overall(len(encoded)), strict=False))
    _write_manifest(job, settings, info, written, stream, presence, time.monotonic() - began)
    return FileOutcome(job.source, True, tuple(job.paths.values()), presence=presence, note=_note(presence, written))


def _note(presence: dict[str, float], written: Sequence[WrittenAudio]) -> str:
    notes = [
        f"{stem}: probably not in this recording (presence {value:.2f})"
        for stem, value in presence.items()
        if value < _UNLIKELY
    ]
    return "; ".join(notes + sorted({one.note for one in written if one.note}))


def _write(
    model: SeparatorModel,
    vectors: torch.Tensor,
    reader: Any,
    stream: StemStream,
    writers: Sequence[AudioWriter],
    info: AudioInfo,
    rate: int,
    on_progress: Progress | None,
) -> None:
    """Run the stream into the writers, through resamplers where another rate is wanted."""
    resamplers = [StreamResampler(info.rate_hz, rate, info.channels) for _ in writers] if rate != info.rate_hz else []
    done = 0
    for block in stem_blocks(model, vectors, reader, stream):
        stems = [*block.targets, block.residual]
        if resamplers:
            stems = [one.process(stem) for one, stem in zip(resamplers, stems, strict=True)]
        for writer, stem in zip(writers, stems, strict=True):
            writer.write(np.ascontiguousarray(stem))
        done += block.residual.shape[1]
        if on_progress is not None:
            on_progress(done, info.frames or done, Path(info.path).name)
    empty = np.zeros((info.channels, 0), dtype=np.float32)
    for writer, one in zip(writers, resamplers, strict=False):
        writer.write(np.ascontiguousarray(one.process(empty, last=True)))


def _write_manifest(
    job: _Job,
    settings: dict[str, Any],
    info: AudioInfo,
    written: Sequence[WrittenAudio],
    stream: StemStream,
    presence: dict[str, float],
    seconds: float,
) -> None:
    base = job.manifest.parent
    timeline = stream.masks.presence
    manifest = {
        "name": job.track,
        "input": os.path.relpath(job.source, base),
        "input_sha256": _digest(job.source),
        "rate_hz": info.rate_hz,
        "channels": info.channels,
        "stems": {stem: os.path.relpath(path, base) for stem, path in job.paths.items()},
        "scores": {stem: {"presence": round(value, 4)} for stem, value in presence.items()},
        "presence": {stem: round(value, 4) for stem, value in presence.items()},
        "presence_timeline": {
            "start_s": timeline.times_s,
            **{stem: [round(row[n], 4) for row in timeline.values] for n, stem in enumerate(presence)},
        },
        "written": [dataclasses.asdict(one) for one in written],
        "seconds": round(seconds, 3),
        "settings": settings,
    }
    temporary = job.manifest.with_name(f".{job.manifest.name}.tmp")
    temporary.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(job.manifest)
