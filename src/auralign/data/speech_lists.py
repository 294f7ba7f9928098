"""Frozen lists of noisy speech: recipes that name clips, gains and rooms, rendered the same everywhere.

| list | what is in it |
|---|---|
| `speech-val` | 100 pieces of 4 s, validation speakers and noise, 0 to 15 dB |
| `speech-dry` | 300 pieces of 4 to 6 s, speakers, languages and noise recordings that training never heard |
| `speech-reverb` | 200 pieces of 4 to 6 s likewise, in rooms of 0.3 to 0.8 s |
| `speech-real` | recordings that were noisy, reverberant or of a telephone's band when they were made; no reference |
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from jaxtyping import Float32

from auralign.data.clip import Clip
from auralign.data.manifest import read_manifest
from auralign.data.mixtures import check_hash, list_path
from auralign.data.speech_mixer import SpeechMixConfig, SpeechMixer
from auralign.data.speech_recipes import (
    RATE_HZ,
    Mono,
    NoisePart,
    RoomDraw,
    SpeechRecipe,
    Spoken,
    render,
)
from auralign.errors import DataError

NAMES = ("speech-val", "speech-dry", "speech-reverb", "speech-real")
_SNRS_DB = (0.0, 5.0, 10.0, 15.0)
_LEAST_MIN = 0.5  # minutes of a speaker in mixed lists
_REAL_S = (2.0, 8.0)  # pieces of real recordings
_GAP = 4_800  # samples between them: 0.3 s
_NARROW_DB = -50.0
_WORD_S = 3.0


@dataclass(frozen=True)
class SpeechItem:
    """One piece of a list, 16 kHz mono; what a real recording has no truth for is ``None``.

    Args:
        id: Unique within the list.
        noisy: What an enhancer is given.
        clean: What it should give.
        received: The speech with the whole room, without noise.
        snr_db: Ratio of active received speech to noise.
        speaker: Who speaks.
        language: What is spoken, as an ISO 639 code; empty if unknown.
        noise: Classes of the noise.
        rt60_s: Reverberation time of the room, if there is one.
        recipe: What it was made of.
    """

    id: str
    noisy: Float32[np.ndarray, "time"]
    clean: Float32[np.ndarray, "time"] | None
    received: Float32[np.ndarray, "time"] | None
    snr_db: float | None
    speaker: str
    language: str
    noise: tuple[str, ...]
    rt60_s: float | None
    recipe: SpeechRecipe


@dataclass(frozen=True)
class _Plan:
    count: int
    split: str
    seconds: tuple[float, float]
    snr_db: tuple[float, ...]
    spread_db: float
    reverberant: float = 0.0


_PLANS = {
    "speech-val": _Plan(100, "val", (4.0, 4.0), (7.5,), 7.5),
    "speech-dry": _Plan(300, "test", (4.0, 6.0), _SNRS_DB, 2.5),
    "speech-reverb": _Plan(200, "test", (4.0, 6.0), _SNRS_DB, 2.5, 1.0),
}


def load_speech_list(name: str | Path, speech_root: Path, soundbox_root: Path) -> list[SpeechItem]:
    """Render a list.

    Args:
        name: One of `NAMES`, or a file of the same form.
        speech_root: The built speech corpus.
        soundbox_root: The built soundbox; its noise is added.

    Raises:
        DataError: The list was changed, or names a clip that the corpora do not have.
    """
    path = name if isinstance(name, Path) else list_path(name)
    recipes = read_speech_list(path)
    words, sounds = Shelf(speech_root), Shelf(soundbox_root)
    return [_item(recipe, words, sounds) for recipe in recipes]


class Shelf:
    """Reads the clips of a corpus by id and keeps what was read last."""

    def __init__(self, root: Path, *, keep: int = 400) -> None:
        self.root, self._keep = root, keep
        self.clips = {clip.id: clip for clip in read_manifest(root / "manifest.jsonl")}
        self._read: dict[str, Mono] = {}

    def __call__(self, name: str) -> Mono:
        """Samples of a clip, 16 kHz mono."""
        if name not in self._read:
            if name not in self.clips:
                raise DataError(
                    f"the clip {name!r} is not in the manifest",
                    where=str(self.root),
                    hint="the corpus and the list are of different versions: build the corpus again",
                )
            path = self.root / self.clips[name].audio
            try:
                wave, rate = soundfile.read(str(path), dtype="float32", always_2d=True)
            except (soundfile.LibsndfileError, RuntimeError) as error:
                raise DataError("the clip cannot be read", where=str(path), why=str(error)) from error
            if rate != RATE_HZ or not len(wave):
                raise DataError("the clip is not 16 kHz sound", where=str(path))
            while len(self._read) >= self._keep:
                self._read.pop(next(iter(self._read)))
            self._read[name] = wave.mean(axis=1).astype(np.float32)
        return self._read[name]


def _item(recipe: SpeechRecipe, words: Shelf, sounds: Shelf) -> SpeechItem:
    made = render(recipe, words, sounds)
    real = not np.isfinite(recipe.snr_db)
    return SpeechItem(
        id=recipe.id,
        noisy=made.noisy,
        clean=None if real else made.clean,
        received=None if real else made.received,
        snr_db=None if real else recipe.snr_db,
        speaker=recipe.speaker,
        language=words.clips[recipe.speech[0].clip].language,
        noise=tuple(sounds.clips[part.clip].labels[0] for part in recipe.noise),
        rt60_s=made.rt60_s,
        recipe=recipe,
    )


def read_speech_list(path: Path) -> list[SpeechRecipe]:
    """Read the recipes of a list and compare it with `<name>.sha256` beside it.

    Raises:
        DataError: The list is missing, was changed, or a line is not valid.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError("the list cannot be read", where=str(path), why=str(error)) from error
    check_hash(path, data)
    recipes = []
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        try:
            recipes.append(_recipe(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError("the recipe is not valid", where=f"{path}:{number}", why=repr(error)) from error
    return recipes


def _recipe(row: Mapping[str, Any]) -> SpeechRecipe:
    snr_db = row["snr_db"]
    return SpeechRecipe(
        id=row["id"],
        samples=int(row["samples"]),
        speaker=row["speaker"],
        speech=tuple(Spoken(**part) for part in row["speech"]),
        noise=tuple(NoisePart(**part) for part in row["noise"]),
        snr_db=float("inf") if snr_db is None else float(snr_db),
        gain_db=float(row["gain_db"]),
        room=RoomDraw(**row["room"]) if row["room"] else None,
    )


def write_speech_list(path: Path, recipes: Sequence[SpeechRecipe]) -> str:
    """Write a list and, beside it, `<name>.sha256`; return the hash."""
    rows = [asdict(recipe) for recipe in recipes]
    for row in rows:
        row["snr_db"] = row["snr_db"] if np.isfinite(row["snr_db"]) else None
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    digest = hashlib.sha256(text.encode()).hexdigest()
    path.with_suffix(".sha256").write_text(f"{digest}  {path.name}\n", encoding="utf-8")
    return digest


def draw_speech_lists(
    speech_root: Path, soundbox_root: Path, out: Path, names: Sequence[str] = NAMES
) -> dict[str, int]:
    """Draw lists again from the corpora and write them to `out`; return the lengths."""
    out.mkdir(parents=True, exist_ok=True)
    lengths = {}
    for name in names:
        if name == "speech-real":
            recipes = _real(Shelf(speech_root))
        else:
            recipes = _mixed(name, _PLANS[name], speech_root, soundbox_root)
        write_speech_list(out / f"{name}.jsonl", recipes)
        lengths[name] = len(recipes)
    return lengths


def _mixed(name: str, plan: _Plan, speech_root: Path, soundbox_root: Path) -> list[SpeechRecipe]:
    """Recipes of one list; speakers take turns, and so do the ratios of speech to noise."""
    base = SpeechMixConfig(
        samples=RATE_HZ, reverberant=plan.reverberant, rt60_s=(0.3, 0.8), rooms=40, hiss=0.0, clean=0.0,
        band_limited=0.0, clipped=0.0, speed=0.0, level_db=(-30.0, -22.0),
    )  # fmt: skip
    mixer = SpeechMixer.load(speech_root, soundbox_root, plan.split, base)
    minutes: dict[str, float] = defaultdict(float)
    for entry in mixer.speech.clips:
        minutes[entry.clip.speaker] += entry.length / RATE_HZ / 60
    speakers = [name for name in mixer.speakers if minutes[name] >= _LEAST_MIN] or list(mixer.speakers)
    recipes: list[SpeechRecipe] = []
    for index in range(plan.count):
        rng = np.random.default_rng([index, *name.encode()])
        middle = plan.snr_db[index % len(plan.snr_db)]
        samples = round(float(rng.uniform(*plan.seconds)) * RATE_HZ / 160) * 160
        ratio = ((middle - plan.spread_db, middle + plan.spread_db, 1.0),)
        cfg = replace(base, samples=samples, snr_db=ratio)
        speaker = speakers[(index // len(plan.snr_db)) % len(speakers)]
        recipes.append(mixer.draw_recipe(rng, f"{name}-{index:03d}", cfg=cfg, speaker=speaker))
    return recipes


def _real(shelf: Shelf) -> list[SpeechRecipe]:
    """Pieces of real recordings: one long, or several short ones of a speaker after another with 0.3 s between.

    At most eight of a speaker, and two where there are but single words in a telephone's band. Nothing is added and
    no level is changed.
    """
    speakers: dict[str, list[Clip]] = defaultdict(list)
    for clip in sorted(shelf.clips.values(), key=lambda item: (-(item.duration_s or 0.0), item.id)):
        if clip.split == "real":
            speakers[clip.speaker].append(clip)
    recipes: list[SpeechRecipe] = []
    for speaker, own in sorted(speakers.items()):
        queue = list(own)
        words = (own[0].duration_s or 0.0) < _WORD_S
        narrow = words and _high_db(np.concatenate([shelf(clip.id) for clip in own[:8]])) < _NARROW_DB
        for _ in range(2 if narrow else 8):
            parts: list[Spoken] = []
            at = 0
            while queue and at < _REAL_S[0] * RATE_HZ:
                clip = queue.pop(0)
                parts.append(Spoken(clip.id, at, 0, 0.0))
                at += len(shelf(clip.id)) + _GAP
            samples = min(at - _GAP, round(_REAL_S[1] * RATE_HZ))
            if samples < RATE_HZ:
                break
            name = f"speech-real-{len(recipes):03d}"
            recipes.append(SpeechRecipe(name, samples, speaker, tuple(parts), (), float("inf"), 0.0))
    return recipes


def _high_db(wave: Mono) -> float:
    """Energy above 4.2 kHz, relative to all, dB."""
    power = np.square(np.abs(np.fft.rfft(wave.astype(np.float64))))
    edge = round(len(power) * 4200 / (RATE_HZ / 2))
    return 10 * float(np.log10(max(float(power[edge:].sum() / max(float(power.sum()), 1e-30)), 1e-12)))
