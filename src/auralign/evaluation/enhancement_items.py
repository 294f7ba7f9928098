"""What enhancers are tried on: noisy recordings with or without their clean speech, from frozen lists or pairs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from auralign.errors import DataError, UsageError

if TYPE_CHECKING:
    from auralign.data.speech_lists import SpeechItem as ListItem

Found = TypeVar("Found")
RATE_HZ = 16_000
LISTS = ("speech-dry", "speech-reverb")


@dataclass(frozen=True)
class SpeechItem:
    """One recording at 16 kHz."""

    list: str
    """Name of its list."""
    id: str
    """Name in the list."""
    noisy: Float[Tensor, " time"]
    """What is enhanced."""
    clean: Float[Tensor, " _"] | None = None
    """The speech in it, where it is known."""
    snr_db: float | None = None
    """Speech against noise."""
    speaker: str = ""
    """Who speaks; intervals over speakers draw these."""
    noise: str = ""
    """What kind of noise it is."""

    def __post_init__(self) -> None:
        if self.clean is not None and self.clean.shape != self.noisy.shape:
            raise DataError(
                f"{len(self.noisy)} noisy samples, {len(self.clean)} clean ones",
                where=f"{self.list}/{self.id}",
                hint="cut both to the same start and length",
            )

    @cached_property
    def sounds(self) -> str:
        """Digest of the samples: scores belong to these and no others."""
        digest = hashlib.sha256(self.noisy.numpy().astype("<f4").tobytes())
        if self.clean is not None:
            digest.update(self.clean.numpy().astype("<f4").tobytes())
        return digest.hexdigest()[:16]


def _as_item(name: str, found: ListItem) -> SpeechItem:
    return SpeechItem(
        name,
        found.id,
        torch.from_numpy(found.noisy),
        None if found.clean is None else torch.from_numpy(found.clean),
        found.snr_db,
        found.speaker,
        ", ".join(found.noise),
    )


def check_items(items: Sequence[SpeechItem]) -> list[SpeechItem]:
    """The items, when there are some and no name occurs twice."""
    if not items:
        raise UsageError("there is nothing to enhance", hint="name a list or a folder of pairs")
    names = [f"{item.list}/{item.id}" for item in items]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{len(twice)} names occur twice: {', '.join(twice[:3])}", where="items")
    return list(items)


def spread(found: Sequence[Found], limit: int | None) -> list[Found]:
    """So many of them, evenly over all; lists are sorted, and the first ones would be one speaker.

    >>> spread("abcdefg", 3)
    ['a', 'c', 'e']
    """
    if limit is None or limit >= len(found):
        return list(found)
    return [found[n * len(found) // limit] for n in range(limit)]


def read_lists(
    names: Sequence[str], *, speech: Path, soundbox: Path, limit: int | None = None
) -> list[SpeechItem]:
    """Items of frozen lists.

    Args:
        names: Of the lists, or files of their form.
        speech: Folder of the speech corpus.
        soundbox: Folder of the corpus that the noises come from.
        limit: Only so many of each list, spread evenly.
    """
    if not names:
        return []
    from auralign.data.speech_lists import load_speech_list

    found = []
    for name in names:
        place = Path(name) if name.endswith(".jsonl") else name
        shown = Path(name).stem if name.endswith(".jsonl") else name
        found += [_as_item(shown, item) for item in spread(load_speech_list(place, speech, soundbox), limit)]
    return found


def read_pairs(sets: Sequence[str], *, limit: int | None = None) -> list[SpeechItem]:
    """Items of public sets, written ``KIND=DIR`` or ``KIND=DIR:PART``, such as ``voicebank-demand=VB:test``.

    Args:
        sets: Kinds are those of :data:`auralign.data.readers.speech.SPEECH_READERS`.
        limit: Only so many of each, spread evenly.
    """
    found: list[SpeechItem] = []
    for text in sets:
        from auralign.data.readers.speech import load_pairs, read_pair

        kind, equals, place = text.partition("=")
        folder, _, part = place.rpartition(":") if not Path(place).exists() else (place, "", "")
        if not equals or not folder:
            raise UsageError(
                f"{text!r} names no set", where="--pairs", hint="write KIND=DIR or KIND=DIR:PART"
            )
        for pair in spread(load_pairs(kind, folder, part or None), limit):
            clean, noisy = read_pair(pair)
            name = f"{kind}-{pair.split}" if pair.split else kind
            snr = None if pair.snr_db is None else float(pair.snr_db)
            found.append(SpeechItem(name, pair.id, noisy, clean, snr, pair.speaker or "", pair.noise or ""))
    return found
