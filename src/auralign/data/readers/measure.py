"""Opens every sound of a reading, to fill in what the lists do not say and to find damaged files."""

from __future__ import annotations

from dataclasses import replace

from auralign.audio.io import probe
from auralign.data.clip import Clip
from auralign.data.readers.base import Missing, Reading
from auralign.data.readers.speech_base import with_header
from auralign.errors import AudioError, DataError


def measure(reading: Reading) -> Reading:
    """The reading with duration, rate and channels taken from the files; damaged ones become missing.

    Args:
        reading: What a reader returned.

    Returns:
        A new reading. A note tells how many files could not be opened.
    """
    clips, missing = [], list(reading.missing)
    for clip in reading.clips:
        try:
            clips.append(_measured(clip))
        except AudioError as error:
            missing.append(Missing(clip.id, clip.audio, str(error)))
    mixtures = []
    for item in reading.mixtures:
        try:
            for path in filter(None, (item.target, item.mixture, *item.interferers)):
                probe(path)
            mixtures.append(item)
        except AudioError as error:
            missing.append(Missing(item.id, item.target or item.mixture or "", str(error)))
    pairs, uneven = [], 0
    for pair in reading.pairs:
        try:
            pairs.append(with_header(pair))
        except (AudioError, DataError) as error:
            uneven += isinstance(error, DataError)
            missing.append(Missing(pair.id, pair.noisy, str(error)))
    bad = len(missing) - len(reading.missing) - uneven
    notes = (*reading.notes, f"{bad} files cannot be opened") if bad else reading.notes
    notes = (*notes, f"{uneven} pairs differ in length") if uneven else notes
    return replace(
        reading,
        clips=tuple(clips),
        mixtures=tuple(mixtures),
        missing=tuple(missing),
        notes=notes,
        pairs=tuple(pairs),
    )


def _measured(clip: Clip) -> Clip:
    info = probe(clip.audio)
    seconds = clip.duration_s
    if info.frames is not None:
        seconds = info.frames / info.rate_hz - clip.offset_s
    return replace(clip, duration_s=seconds, sample_rate=info.rate_hz, channels=info.channels)
