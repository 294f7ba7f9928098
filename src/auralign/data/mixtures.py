"""Frozen mixture lists: recipes of two or more clips, rendered on the fly, guarded by a hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from jaxtyping import Float32

from auralign.data.clip import Clip
from auralign.errors import DataError

RATE_HZ = 16_000
LENGTH = 65_536  # samples: 4.096 s
_ACTIVE_DB = 40.0

Mono = Float32[np.ndarray, "_"]


@dataclass(frozen=True)
class Component:
    """One clip of a mixture.

    Args:
        clip: Its id in the manifest.
        gain_db: Gain applied to the stored samples.
        offset_s: Where the excerpt starts; clips shorter than the mixture are repeated.
    """

    clip: str
    gain_db: float
    offset_s: float = 0.0


@dataclass(frozen=True)
class MixtureSpec:
    """A recipe for one mixture.

    Args:
        id: Unique within its list.
        components: What is summed.
        target: Index of the component that is asked for.
        query: Text that asks for it.
        seed: Seed the recipe was drawn with.
        level_rule: How the gains were chosen.
    """

    id: str
    components: tuple[Component, ...]
    target: int
    query: str
    seed: int = 0
    level_rule: str = "equal-power"


@dataclass(frozen=True)
class Mixture:
    """A rendered recipe: target and interferer sum to the mixture, all 16 kHz."""

    target: Float32[np.ndarray, "time"]
    interferer: Float32[np.ndarray, "time"]
    mixture: Float32[np.ndarray, "time"]


def write_list(path: Path, specs: Sequence[MixtureSpec]) -> str:
    """Write a list and, beside it, `<name>.sha256`; return the hash."""
    text = "".join(json.dumps(asdict(spec), ensure_ascii=False) + "\n" for spec in specs)
    path.write_text(text, encoding="utf-8")
    digest = hashlib.sha256(text.encode()).hexdigest()
    path.with_suffix(".sha256").write_text(f"{digest}  {path.name}\n", encoding="utf-8")
    return digest


def list_path(name: str) -> Path:
    """Return the file of a list that comes with the package, such as "soundbox-val"."""
    path = Path(str(resources.files("auralign.data") / "lists" / f"{name}.jsonl"))
    if not path.is_file():
        known = ", ".join(list_names()) or "none"
        raise DataError(f"there is no mixture list {name!r}", hint=f"lists: {known}")
    return path


def list_names() -> list[str]:
    """Name the mixture lists that come with the package; lists of noisy speech have recipes of their own."""
    folder = Path(str(resources.files("auralign.data") / "lists"))
    return sorted(path.stem for path in folder.glob("soundbox-*.jsonl"))


def read_list(path: Path, *, check: bool = True) -> list[MixtureSpec]:
    """Read a mixture list.

    Args:
        path: The list.
        check: Compare it with `<name>.sha256` beside it.

    Raises:
        DataError: The list is missing, was changed, or a line is not valid.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError("the mixture list cannot be read", where=str(path), why=str(error)) from error
    if check:
        check_hash(path, data)
    lines = data.decode("utf-8", "replace").splitlines()
    specs = [_spec(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if len({spec.id for spec in specs}) != len(specs):
        raise DataError("two mixtures have the same id", where=str(path))
    return specs


def check_hash(path: Path, data: bytes) -> None:
    """Refuse a list whose bytes are not those that `<name>.sha256` beside it was written for."""
    beside = path.with_suffix(".sha256")
    if not beside.is_file():
        raise DataError("the list has no .sha256 file beside it", where=str(path))
    expected = beside.read_text(encoding="utf-8").split()[:1]
    found = hashlib.sha256(data).hexdigest()
    if expected != [found]:
        raise DataError(
            "the mixture list is not the frozen one",
            where=str(path),
            why=f"its SHA-256 is {found}, expected {expected[0] if expected else 'nothing'}",
            hint="restore the file, or give a changed list a new name",
        )


def _spec(line: str, where: str) -> MixtureSpec:
    try:
        row: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError("the line is not JSON", where=where, why=str(error)) from error
    field = "id"
    try:
        known = {"id", "components", "target", "query", "seed", "level_rule"}
        if unknown := sorted(set(row) - known):
            raise DataError(f"unknown field {unknown[0]!r}", where=where)
        name = str(row["id"])
        field = "components"
        components = tuple(
            Component(str(item["clip"]), float(item["gain_db"]), float(item.get("offset_s", 0.0)))
            for item in row["components"]
        )
        field = "target"
        target = int(row["target"])
        field = "query"
        query = str(row["query"])
        field = "seed"
        seed = int(row.get("seed", 0))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"the field {field!r} is missing or not valid",
            where=where,
            why=f"{type(error).__name__}: {error}",
        ) from error
    if len(components) < 2 or not 0 <= target < len(components):
        raise DataError("the field 'target' must point at one of at least two components", where=where)
    if any(not np.isfinite(item.gain_db) or item.offset_s < 0 for item in components):
        raise DataError("the field 'components' holds a gain or offset that is not valid", where=where)
    return MixtureSpec(name, components, target, query, seed, str(row.get("level_rule", "equal-power")))


def excerpt(samples: Mono, offset: int, length: int = LENGTH) -> Mono:
    """Cut `length` samples from `offset` on; a clip that is too short is repeated from its start.

    >>> excerpt(np.arange(3, dtype=np.float32), 0, 7).tolist()
    [0.0, 1.0, 2.0, 0.0, 1.0, 2.0, 0.0]
    """
    if len(samples) < length:
        return np.resize(samples, length).astype(np.float32)
    start = min(max(offset, 0), len(samples) - length)
    return samples[start : start + length].astype(np.float32)


def active_power(samples: Mono, frame: int = 320) -> float:
    """Mean power over the frames of 20 ms that lie at most 40 dB below the loudest one; 0 for silence."""
    whole = len(samples) // frame * frame
    if not whole:
        return float(np.mean(samples.astype(np.float64) ** 2)) if len(samples) else 0.0
    power = np.mean(samples[:whole].astype(np.float64).reshape(-1, frame) ** 2, axis=1)
    loud = power > power.max() * 10 ** (-_ACTIVE_DB / 10)
    return float(power[loud].mean()) if loud.any() else 0.0


class MixtureRenderer:
    """Renders recipes from a corpus folder; keeps decoded clips in memory while they are in use.

    Args:
        root: Folder that holds the manifest and the sounds.
        clips: The manifest, by id.
        keep: How many decoded clips to hold.
    """

    def __init__(self, root: Path, clips: Mapping[str, Clip], *, keep: int = 512) -> None:
        self._root, self._clips, self._keep = root, clips, keep
        self._cache: dict[str, np.ndarray] = {}

    def samples(self, clip_id: str) -> Mono:
        """Return the decoded samples of a clip."""
        if clip_id in self._cache:
            return self._cache[clip_id]
        clip = self._clips.get(clip_id)
        if clip is None:
            raise DataError(
                f"the clip {clip_id!r} is not in the manifest",
                where=str(self._root),
                hint="the corpus and the list are of different versions: build the corpus again",
            )
        path = self._root / clip.audio
        try:
            data, rate = soundfile.read(str(path), dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, RuntimeError) as error:
            raise DataError(
                f"the clip {clip_id!r} cannot be read", where=str(path), why=str(error)
            ) from error
        if rate != RATE_HZ or not len(data):
            raise DataError(f"the clip {clip_id!r} is not 16 kHz sound", where=str(path))
        while len(self._cache) >= self._keep:
            self._cache.pop(next(iter(self._cache)))
        self._cache[clip_id] = data.mean(axis=1).astype(np.float32)
        return self._cache[clip_id]

    def render(self, spec: MixtureSpec, length: int = LENGTH) -> Mixture:
        """Sum the components of a recipe; everything but the target is the interferer."""
        target = np.zeros(length, np.float32)
        interferer = np.zeros(length, np.float32)
        for index, item in enumerate(spec.components):
            piece = excerpt(self.samples(item.clip), round(item.offset_s * RATE_HZ), length)
            piece = piece * np.float32(10 ** (item.gain_db / 20))
            if index == spec.target:
                target = target + piece
            else:
                interferer = interferer + piece
        return Mixture(target, interferer, target + interferer)
