"""A user's folder of sounds, one subfolder a class: what is in it, and what of it can be used."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile

from auralign.audio.io import open_reader
from auralign.audio.resample import StreamResampler
from auralign.data.soundbox.drafts import scale_picture, slug
from auralign.data.soundbox.sound import RATE_HZ, Mono, tidy
from auralign.errors import AudioError, DataError

SILENCE_PEAK = 1e-3  # -60 dB of full scale: 33 steps of 16 bits
SHORTEST_S = 0.25  # of sound, without silence at its ends
_BLOCK_S = 20.0
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
_NO_SOUND = (".txt", ".md", ".json", ".csv", ".toml", ".pdf", ".html", ".url", ".ini", ".db", ".py")
_TEXTS = "texts.json"

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class UserSound:
    """A sound of the folder as it was written into the corpus.

    Attributes:
        label: Its class.
        path: Where it came from, relative to the folder.
        audio: Where it is now, relative to the corpus.
        frames: Samples at 16 kHz.
        sha256: Of the file it came from.
    """

    label: str
    path: str
    audio: str
    frames: int
    sha256: str


@dataclass
class UserFolder:
    """What a folder gave.

    Attributes:
        sounds: Everything usable, in the order of class and path.
        texts: Wordings of each class; the first names it in validation.
        pictures: Pictures of each class, relative to the corpus.
        skipped: Files that are not used, each with the reason.
        broken: Those of them that look like sounds and cannot be read.
    """

    sounds: list[UserSound] = field(default_factory=list)
    texts: dict[str, list[str]] = field(default_factory=dict)
    pictures: dict[str, list[str]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    @property
    def labels(self) -> list[str]:
        """Classes with at least one usable sound."""
        return sorted({sound.label for sound in self.sounds})


def label_of(folder: str) -> str:
    """The class that a folder's name stands for.

    >>> label_of("Dog_barking")
    'dog barking'
    """
    return re.sub(r"[\s_-]+", " ", folder).strip().lower()


def wordings(label: str) -> list[str]:
    """What people say when they ask for a class that nobody described.

    >>> wordings("rain")
    ['rain', 'the sound of rain', 'rain sound']
    """
    return [label, f"the sound of {label}", f"{label} sound"]


def read_folder(source: Path, staging: Path, on_progress: Progress | None = None) -> UserFolder:
    """Decode every sound to 16 kHz mono FLAC in ``staging/audio``; say why others are not used.

    Args:
        source: Folder with one subfolder a class, of sounds in any format and depth; pictures in it show the class.
            ``texts.json`` beside the subfolders may map their names to lists of wordings.
        staging: Folder of the corpus.
        on_progress: Called with files done, files in all, and the current one.

    Raises:
        DataError: There is no such folder, it has no subfolder, or ``texts.json`` is not what it should be.
    """
    folders = _class_folders(source)
    out = UserFolder(texts=_texts(source, folders))
    files = [(label, path) for label, folder in folders.items() for path in _files(folder)]
    for path in sorted(source.iterdir()):
        if path.is_file() and not path.name.startswith(".") and path.name != _TEXTS:
            out.skipped[path.name] = "it lies outside the subfolders, so its class is not known"
    seen: dict[str, str] = {}
    for number, (label, path) in enumerate(files):
        name = path.relative_to(source).as_posix()
        if on_progress is not None:
            on_progress(number, len(files), name)
        if path.suffix.lower() in _PICTURES:
            _take_picture(out, staging, label, path, name)
        elif path.suffix.lower() in _NO_SOUND:
            out.skipped[name] = "not a sound"
        else:
            _take_sound(out, staging, label, path, name, seen)
    return out


def _class_folders(source: Path) -> dict[str, Path]:
    hint = "put the sounds into one subfolder a class, as in my_sounds/violin/take1.wav"
    if not source.is_dir():
        raise DataError("there is no such folder", where=str(source), hint=hint)
    folders: dict[str, Path] = {}
    for path in sorted(source.iterdir()):
        if not path.is_dir() or path.name.startswith("."):
            continue
        label = label_of(path.name)
        if not label:
            raise DataError("the subfolder's name has no word in it", where=str(path), hint="rename it")
        if label in folders:
            raise DataError(
                f"two subfolders name the class {label!r}",
                where=str(source),
                why=f"{folders[label].name} and {path.name}",
                hint="merge or rename one of them",
            )
        folders[label] = path
    if not folders:
        raise DataError("the folder has no subfolders", where=str(source), hint=hint)
    return folders


def _files(folder: Path) -> list[Path]:
    hidden = [".", "__MACOSX"]
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not any(part.startswith(tuple(hidden)) for part in path.relative_to(folder).parts)
    ]


def _texts(source: Path, folders: dict[str, Path]) -> dict[str, list[str]]:
    out = {label: wordings(label) for label in folders}
    path = source / _TEXTS
    if not path.exists():
        return out
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError("the wordings cannot be read", where=str(path), why=str(error)) from error
    if not isinstance(table, dict):
        raise DataError(
            "the wordings must be an object", where=str(path), hint='{"violin": ["violin", "my violin"]}'
        )
    for name, texts in table.items():
        label = label_of(name)
        if label not in folders:
            near = difflib.get_close_matches(label, folders, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"subfolders: {', '.join(folders)}"
            raise DataError(f"there is no subfolder for {name!r}", where=str(path), hint=hint)
        fit = isinstance(texts, list) and texts and all(isinstance(t, str) and t.strip() for t in texts)
        if not fit:
            raise DataError(f"{name!r} must map to a list of texts, one or more", where=str(path))
        out[label] = list(dict.fromkeys(text.strip() for text in texts))
    return out


def _take_picture(out: UserFolder, staging: Path, label: str, path: Path, name: str) -> None:
    try:
        data = scale_picture(name, path.read_bytes())
    except (OSError, DataError) as error:
        out.skipped[name] = str(error).removeprefix(f"{name}: ")
        out.broken.append(name)
        return
    target = f"pictures/{_stem(name)}-{hashlib.sha256(data).hexdigest()[:8]}.png"
    (staging / target).parent.mkdir(parents=True, exist_ok=True)
    (staging / target).write_bytes(data)
    if target not in out.pictures.setdefault(label, []):
        out.pictures[label].append(target)


def _take_sound(
    out: UserFolder, staging: Path, label: str, path: Path, name: str, seen: dict[str, str]
) -> None:
    try:
        wave = decode(path)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, AudioError) as error:
        out.skipped[name] = f"it cannot be read: {str(error).removeprefix(f'{path}: ')}"
        out.broken.append(name)
        return
    if isinstance(wave, str):
        out.skipped[name] = wave
        return
    samples = np.round(np.clip(wave, -1, 1) * 32_767).astype(np.int16)
    content = hashlib.sha256(samples.tobytes()).hexdigest()
    if content in seen:
        out.skipped[name] = f"the same sound as {seen[content]}"
        return
    seen[content] = name
    target = f"audio/{_stem(name)}-{digest[:8]}.flac"
    (staging / target).parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(staging / target, samples, RATE_HZ, subtype="PCM_16")
    out.sounds.append(UserSound(label, name, target, len(samples), digest))


def decode(path: Path) -> Mono | str:
    """A sound at 16 kHz, mono, without an offset and silence at its ends; or the reason why it is of no use.

    It is read in blocks, so that hours of stereo never lie in memory at their own rate.

    Raises:
        AudioError: It cannot be read.
    """
    parts: list[np.ndarray] = []
    peak = 0.0
    with open_reader(path) as reader:
        rate_hz = reader.info.rate_hz
        stream = StreamResampler(rate_hz, RATE_HZ, 1)
        while (block := reader.read(round(_BLOCK_S * rate_hz))).shape[1]:
            peak = max(peak, float(np.abs(block).max()))
            parts.append(stream.process(block.mean(axis=0, keepdims=True)))
        parts.append(stream.process(np.zeros((1, 0), np.float32), last=True))
    wave = np.concatenate(parts, axis=1)[0]
    if peak < SILENCE_PEAK:
        return f"silent: its peak is {_db(peak)}"
    wave = tidy(wave, len(wave) / RATE_HZ + 1)
    if not len(wave) or float(np.abs(wave).max()) < SILENCE_PEAK:
        return "silent in mono: its channels cancel, or it is a constant offset"
    if len(wave) < SHORTEST_S * RATE_HZ:
        return f"too short: {len(wave) / RATE_HZ:.2f} s of sound, {SHORTEST_S} s are needed"
    return wave


def _db(peak: float) -> str:
    return f"{20 * np.log10(peak):.0f} dB" if peak > 0 else "zero"


def _stem(name: str) -> str:
    """A path with plain words only, its folder kept."""
    folder, _, rest = name.partition("/")
    return f"{slug(folder) or 'class'}/{slug(rest.rpartition('.')[0]) or 'sound'}"
