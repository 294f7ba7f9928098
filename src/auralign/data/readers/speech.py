"""Speech enhancement sets by name: their pairs, and the sounds of a pair at 16 kHz.

::

    for pair in load_pairs("voicebank-demand", "VoiceBank", "test"):
        clean, noisy = read_pair(pair)
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from auralign.audio.io import read
from auralign.audio.resample import resample
from auralign.audio.sound import Sound
from auralign.data.readers.base import Reading
from auralign.data.readers.dns import read_dns2020
from auralign.data.readers.librimix import read_librimix
from auralign.data.readers.sgmse import read_sgmse
from auralign.data.readers.speech_base import RATE_HZ, SpeechPair, same_length
from auralign.data.readers.voicebank import read_voicebank_demand
from auralign.data.readers.wham import read_wham
from auralign.errors import DataError, UsageError

SPEECH_READERS: dict[str, Callable[..., Reading]] = {
    "dns2020": read_dns2020,
    "librimix": read_librimix,
    "sgmse": read_sgmse,
    "voicebank-demand": read_voicebank_demand,
    "wham": read_wham,
}
"""Readers that find pairs, by the name that ``auralign data check`` takes too."""


def load_pairs(
    name: str, root: str | Path, part: str | None = None, *, partial: bool = False, cut_s: float = 0.0
) -> list[SpeechPair]:
    """The pairs of a set, in the order of their names; all of them, so that no score hides what is missing.

    Args:
        name: A key of :data:`SPEECH_READERS`.
        root: Folder of the set.
        part: Split; all if not given.
        partial: Return what is there when pairs are missing or damaged.
        cut_s: By how much the lengths of a pair may differ, in seconds; give it to :func:`read_pair` too.

    Raises:
        UsageError: If there is no such set.
        DataError: If the folder is not that set, or pairs are missing and ``partial`` is not set.
    """
    if name not in SPEECH_READERS:
        near = difflib.get_close_matches(name, SPEECH_READERS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(SPEECH_READERS)}"
        raise UsageError(f"there is no speech enhancement set {name!r}", hint=hint)
    reading = SPEECH_READERS[name](Path(root), split=part, cut_s=cut_s)
    if reading.missing and not partial:
        first = reading.missing[0]
        raise DataError(
            f"{len(reading.missing)} of {len(reading.missing) + len(reading.pairs)} pairs are missing or damaged",
            where=str(root),
            why=f"the first is {first.id!r}: {first.reason}",
            hint=f"`auralign data check {name} {root}` lists them; ask for a partial set to go on without",
        )
    return list(reading.pairs)


def read_pair(
    pair: SpeechPair, *, cut_s: float = 0.0
) -> tuple[Float[Tensor, " time"] | None, Float[Tensor, " time"]]:
    """Clean and noisy sound of a pair: float32, 16 kHz, one channel (the mean of several), equally long.

    Args:
        pair: A pair.
        cut_s: By how much the lengths may differ, in seconds; the longer sound loses its end.

    Returns:
        The clean sound, ``None`` if there is none, and the noisy one.

    Raises:
        AudioError: If a file cannot be read.
        DataError: If lengths differ by more, or the numbers of channels differ.
    """
    noisy = read(pair.noisy)
    if pair.clean is None:
        return None, _mono(noisy)
    clean = read(pair.clean)
    if clean.channels != noisy.channels:
        raise DataError(
            f"the noisy recording has {noisy.channels} channels, the clean speech {clean.channels}",
            where=pair.noisy,
            why=f"the clean speech is {pair.clean}",
            hint="make both of one channel",
        )
    # before conversion, so that lengths that only round to the same are told apart
    lengths = (clean.frames, clean.rate_hz), (noisy.frames, noisy.rate_hz)
    same_length(pair, clean=lengths[0], noisy=lengths[1], cut_s=cut_s)
    sounds = _mono(clean), _mono(noisy)
    length = min(len(sound) for sound in sounds)
    return sounds[0][:length], sounds[1][:length]


def _mono(sound: Sound) -> Float[Tensor, " time"]:
    samples = sound.samples.mean(axis=0, keepdims=True, dtype=np.float32)
    return torch.from_numpy(resample(samples, sound.rate_hz, RATE_HZ)[0])
