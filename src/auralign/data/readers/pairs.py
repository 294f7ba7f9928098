"""Gathers pairs of clean and noisy speech: files matched by a key, headers compared, rates told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, final

from auralign.audio.io import probe
from auralign.data.readers.base import Collector, Reading
from auralign.data.readers.speech_base import RATE_HZ, SpeechPair, with_header
from auralign.errors import AudioError, DataError


@final
class PairCollector:
    """A :class:`~auralign.data.readers.base.Collector` that looks into the headers of what it takes.

    A pair whose files cannot be opened, or differ in length, counts as missing, with the reason.

    Args:
        dataset: Name of the data set, for messages.
        root: Folder that is read.
        headers: Whether headers are read; without them rate and length stay unknown.
        cut_s: By how much the lengths of a pair may differ, in seconds.
    """

    def __init__(self, dataset: str, root: Path, *, headers: bool = True, cut_s: float = 0.0) -> None:
        if not 0 <= cut_s < float("inf"):
            raise DataError(f"cut_s is {cut_s}; it must be 0 or more", where=dataset)
        self.out, self.root = Collector(dataset, root), root
        self.headers, self.cut_s = headers, cut_s
        self._rates: Counter[int] = Counter()

    def add(self, pair: SpeechPair, where: str, *, frames: int | None = None) -> None:
        """Take a pair; ``frames`` is the length that a list states for the noisy file."""
        self.out.claim(pair.id, where)
        if not self.headers:
            self.out.pair(pair)
            return
        try:
            pair = with_header(pair, cut_s=self.cut_s)
            if frames is not None:
                _listed_length(pair, frames)
        except (AudioError, DataError) as error:
            why = f" ({error.why})" if error.why else ""
            hint = f"; {error.hint}" if error.hint else ""
            self.out.miss(pair.id, where, f"{error.what}{why}{hint}")
            return
        self._rates[pair.rate_hz or 0] += 1
        self.out.pair(pair)

    def finish(self) -> Reading:
        """The reading, with a note for each rate that is not the one pairs are read at."""
        for rate_hz, count in sorted(self._rates.items()):
            how = f", read at {RATE_HZ} Hz" if rate_hz != RATE_HZ else ""
            self.out.note(f"{count} noisy recordings at {rate_hz} Hz{how}")
        return self.out.finish()


def _listed_length(pair: SpeechPair, frames: int) -> None:
    there = probe(pair.noisy).frames
    if there is not None and there != frames:
        raise DataError(
            f"the file has {there} samples, the list says {frames}",
            where=pair.noisy,
            hint="render the set again; this rendering was cut short or made with other settings",
        )


def matched(
    out: Collector,
    noisy: Mapping[Any, Path],
    clean: Mapping[Any, Path],
    folders: tuple[Path, Path],
    name: Callable[[Any], str] = str,
) -> Iterator[tuple[Any, Path, Path]]:
    """Key, noisy and clean file of each pair, in the order of the keys; what has no partner counts as missing.

    Args:
        out: Where misses go.
        noisy: Noisy files by key.
        clean: Clean files by key.
        folders: Their folders, for messages.
        name: Id of a key.
    """
    for key in sorted(noisy.keys() | clean.keys()):
        if key not in clean:
            out.miss(name(key), str(noisy[key]), f"a clean file of the same key in {folders[1]}")
        elif key not in noisy:
            out.miss(name(key), str(clean[key]), f"a noisy file of the same key in {folders[0]}")
        else:
            yield key, noisy[key], clean[key]
