"""Parts of real scores, taken from the music21 corpus, ready to be played by any instrument."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from auralign.errors import DataError

# What is used of the corpus: folder, file ending, and how many pieces.
_CHOICE = (
    ("bach", ".mxl", 66),
    ("ryansMammoth", ".abc", 60),
    ("opus18no1", ".mxl", 1),
    ("opus59no1", ".mxl", 2),
    ("k156", ".mxl", 3),
    ("k80", ".mxl", 3),
    ("joplin", ".mxl", 1),
    ("k545", ".mxl", 1),
    ("trecento", ".xml", 10),
)


@dataclass(frozen=True)
class Note:
    """One note: onset and duration in quarter notes, MIDI pitch."""

    onset: float
    duration: float
    pitch: int


@dataclass(frozen=True)
class Score:
    """A piece: its name and its parts; every part is a list of notes ordered by onset."""

    name: str
    parts: tuple[tuple[Note, ...], ...]


@dataclass(frozen=True)
class Stroke:
    """One note of a performance: start and end in seconds, MIDI pitch, velocity 1–127."""

    start_s: float
    end_s: float
    pitch: int
    velocity: int


def choose_scores(choice: Sequence[tuple[str, str, int]] = _CHOICE) -> list[str]:
    """List the chosen corpus files, `<folder>/<file>`, spread evenly over each folder."""
    from music21 import corpus

    chosen: list[str] = []
    paths = sorted(str(path) for path in corpus.getPaths())
    for folder, suffix, count in choice:
        fitting = [Path(path) for path in paths if Path(path).parent.name == folder and path.endswith(suffix)]
        step = max(1, len(fitting) // count)
        chosen += [str(path) for path in fitting[::step][:count]]
    if not chosen:
        raise DataError("the music21 corpus holds none of the chosen scores", hint="reinstall music21")
    return chosen


def read_score(path: str) -> Score:
    """Parse one corpus file; parts with fewer than 16 notes are left out, chords keep their top note."""
    from music21 import converter

    file = Path(path)
    parsed = converter.parse(file, forceSource=True)
    parts: list[tuple[Note, ...]] = []
    for part in getattr(parsed, "parts", ()):
        notes = [
            Note(float(item.offset), float(item.quarterLength), int(max(p.midi for p in item.pitches)))
            for item in part.flatten().notes
            if getattr(item, "pitches", ()) and float(item.quarterLength) > 0
        ]
        if len(notes) >= 16:
            parts.append(tuple(sorted(notes, key=lambda note: (note.onset, note.pitch))))
    slug = re.sub(r"[^a-z0-9]+", "-", file.stem.lower()).strip("-")
    return Score(f"{file.parent.name.lower()}-{slug}", tuple(parts))


def split_of(name: str) -> str:
    """Put a score into "train" (60 %), "val" (12 %) or "test" (28 %) by a hash of its name."""
    bucket = hashlib.sha256(f"score:{name}".encode()).digest()[0]
    if bucket < 154:
        return "train"
    return "val" if bucket < 184 else "test"


def perform(
    score: Score,
    rng: np.random.Generator,
    *,
    pitch_range: tuple[int, int],
    voices: int,
    seconds: float,
) -> list[Stroke]:
    """Turn an excerpt of a score into a performance that fits an instrument.

    One part (or up to `voices` parts) is taken from a random place; it is moved by octaves and up to
    three semitones into the range; the tempo is drawn so that the median note lasts 0.15–0.6 s; note
    lengths, velocities and onsets vary a little, as a player's do.

    Args:
        score: Where the notes come from.
        rng: Source of chance.
        pitch_range: Lowest and highest MIDI pitch of the instrument.
        voices: Parts at once.
        seconds: Length of the excerpt.
    """
    count = min(voices if rng.random() < 0.7 else 1, len(score.parts))
    picked = sorted(rng.choice(len(score.parts), size=count, replace=False).tolist())
    parts = [score.parts[index] for index in picked]
    lengths = [note.duration for part in parts for note in part]
    quarter_s = float(np.exp(rng.uniform(np.log(0.15), np.log(0.6)))) / max(float(np.median(lengths)), 0.1)
    quarter_s = float(np.clip(quarter_s, 0.15, 2.0))
    span = seconds / quarter_s
    last = max(part[-1].onset + part[-1].duration for part in parts)
    start = float(rng.uniform(0, last - span)) if last > span else 0.0
    low, high = pitch_range
    shift = int(rng.integers(-3, 4))
    centre = float(np.median([note.pitch for part in parts for note in part])) + shift
    goal = float(rng.uniform(low + 0.35 * (high - low), low + 0.65 * (high - low)))
    shift += 12 * round((goal - centre) / 12)
    sustain = float(rng.uniform(0.6, 1.0))
    loudness = float(rng.uniform(60, 110))
    strokes = []
    for part in parts:
        for note in part:
            onset = (note.onset - start) * quarter_s + float(rng.normal(0, 0.008))
            if not 0 <= onset < seconds - 0.1:
                continue
            end = min(onset + max(0.06, note.duration * quarter_s * sustain), seconds - 0.02)
            swell = loudness + 12 * np.sin(2 * np.pi * onset / 5.0) + rng.normal(0, 5)
            strokes.append(
                Stroke(onset, end, _fold(note.pitch + shift, low, high), int(np.clip(swell, 30, 127)))
            )
    return sorted(strokes, key=lambda stroke: (stroke.start_s, stroke.pitch))


def _fold(pitch: int, low: int, high: int) -> int:
    while pitch < low:
        pitch += 12
    while pitch > high:
        pitch -= 12
    return max(pitch, low)
