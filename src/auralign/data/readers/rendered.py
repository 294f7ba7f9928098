"""Folders that the scripts of WHAM! and LibriMix render: ``wav<rate>/<mode>/<split>/{mix_*,s1,s2,noise}/``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from auralign.data.readers.base import Collector, MixtureItem
from auralign.data.readers.layout import need_folder, wrong_root
from auralign.data.readers.pairs import PairCollector
from auralign.data.readers.speech_base import SpeechPair, sounds_in
from auralign.errors import DataError

Mix = Literal["mix_single", "mix_both", "mix_clean"]
"""One speaker in noise, two or more in noise, two or more alone."""

RATES, MODES = ("16k", "8k"), ("min", "max")


def find_rendering(
    root: Path, places: Sequence[str], dataset: str, rate: str | None, mode: str | None
) -> Path:
    """The folder of a rate and mode: the one asked for, else the first of 16k, 8k × min, max.

    Raises:
        DataError: If there is none, or the rate or mode is unknown.
    """
    for value, known in ((rate, RATES), (mode, MODES)):
        if value is not None and value not in known:
            raise DataError(f"{dataset} has no rendering {value!r}", hint=f"use one of {', '.join(known)}")
    root = need_folder(root, dataset)
    names = [
        f"{place}wav{one}/{other}"
        for place in places
        for one in ((rate,) if rate else RATES)
        for other in ((mode,) if mode else MODES)
    ]
    found = [root / name for name in names if (root / name).is_dir()]
    if not found:
        raise wrong_root(root, names, dataset)
    return found[0]


def tell_other_renderings(out: Collector, chosen: Path) -> None:
    """Note which rendering is read where there are several."""
    every = [chosen.parents[1] / f"wav{rate}" / mode for rate in RATES for mode in MODES]
    others = [f"{path.parent.name}/{path.name}" for path in every if path.is_dir() and path != chosen]
    if others:
        out.note(f"read {chosen.parent.name}/{chosen.name}; {', '.join(others)} is there too (rate=, mode=)")


def need_splits(base: Path, wanted: Sequence[str]) -> list[str]:
    """The splits that are there; an error if none is."""
    there = [part for part in wanted if (base / part).is_dir()]
    if there:
        return there
    raise DataError(f"there is no folder {' or '.join(wanted)}", where=str(base), hint="render that split")


@dataclass(frozen=True)
class Parts:
    """The sounds of one rendered mixture.

    Args:
        id: Name of the mixture.
        where: File and line that list it, or the mixture itself.
        mixture: Path as listed.
        sources: Paths of the speakers as listed.
        noise: Path of the noise as listed; ``None`` without noise.
        frames: Length as listed.
    """

    id: str
    where: str
    mixture: str
    sources: tuple[str, ...]
    noise: str | None
    frames: int | None = None

    @property
    def paths(self) -> tuple[str, ...]:
        """Every path as listed."""
        return (self.mixture, *self.sources, *((self.noise,) if self.noise else ()))


@dataclass(frozen=True)
class Known:
    """What other lists say of a mixture of one speaker: speaker, SNR in dB, recording of the noise."""

    speaker: str
    snr_db: float | None
    noise: str = ""


def parts_by_name(folder: Path, mix: Mix) -> list[Parts]:
    """The mixtures of a split's folder without a list: all of its sounds have one name.

    Raises:
        DataError: If the folder of the mixtures is absent.
    """
    if not (folder / mix).is_dir():
        raise DataError(
            f"{folder.name} has no folder {mix!r}", where=str(folder), hint="render that type too"
        )
    sources = sorted(path.name for path in folder.glob("s[1-9]") if path.is_dir()) or ["s1"]
    if mix == "mix_single":
        sources = sources[:1]
    found = []
    for stem, path in sounds_in(folder / mix).items():
        paths = [str(folder / one / path.name) for one in (*sources, "noise")]
        noise = paths[-1] if mix != "mix_clean" else None
        found.append(Parts(stem, str(path), str(path), tuple(paths[:-1]), noise))
    return found


def add_pair(
    gather: PairCollector,
    split: str,
    parts: Parts,
    found: Mapping[str, Path | None],
    known: Known,
    *,
    dataset: str,
) -> None:
    """Add the first speaker and the mixture as a pair; it counts as missing if either is absent."""
    noisy, clean = found[parts.mixture], found[parts.sources[0]]
    if noisy is None or clean is None:
        gather.out.miss(parts.id, parts.where, parts.mixture if noisy is None else parts.sources[0])
        return
    noise = found[parts.noise] if parts.noise else None
    pair = SpeechPair(
        f"{split}/{parts.id}",
        str(noisy),
        str(clean),
        speaker=known.speaker,
        noise=known.noise,
        snr_db=known.snr_db,
        noise_audio=None if noise is None else str(noise),
        split=split,
        source=parts.id,
        dataset=dataset,
    )
    gather.add(pair, parts.where, frames=parts.frames)


def add_mixture(
    out: Collector, parts: Parts, found: Mapping[str, Path | None], speakers: Sequence[str]
) -> None:
    """Add one mixture item a speaker: the others and the noise interfere; what is absent counts as missing."""
    for name, path in found.items():
        if path is None:
            out.miss(parts.id, parts.where, name)
            return
    sounds = [str(found[name]) for name in (*parts.sources, *((parts.noise,) if parts.noise else ()))]
    for index in range(len(parts.sources)):
        others = tuple(sound for other, sound in enumerate(sounds) if other != index)
        out.claim(f"{parts.id}/s{index + 1}", parts.where)
        out.mixture(
            MixtureItem(
                f"{parts.id}/s{index + 1}",
                sounds[index],
                others,
                "",
                mixture=str(found[parts.mixture]),
                labels=tuple(speakers),
            )
        )
