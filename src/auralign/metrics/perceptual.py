"""The held-out judge of speech quality on clips of any length: Distill-MOS, windows and means.

The network itself lives above this layer and is passed in. Clips are cut as published: a shorter one is followed
by silence, a longer one by windows of 7.68 s, at most 1 s apart and spread evenly from its start to its end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from auralign.errors import UsageError
from auralign.metrics.contract import SILENT_ESTIMATE, MetricResult, is_silent

RATE_HZ = 16_000
WINDOW = 122_880
MOST_APART = 16_000
NO_SAMPLES = "estimate has no samples"

Judge = Callable[[Float[Tensor, "window 122880"]], Float[Tensor, " window"]]
"""Quality of windows of 7.68 s."""


def window_starts(samples: int) -> list[int]:
    """First sample of each window of a clip.

    >>> window_starts(1000), window_starts(WINDOW + 16001)
    ([0], [0, 8000, 16001])
    """
    over = max(0, samples - WINDOW)
    windows = math.ceil(over / MOST_APART) + 1
    return [int(share * over) for share in np.linspace(0, 1, windows)]


def distill_mos(
    sounds: Sequence[Float[Tensor, " _"]], rate_hz: int, *, judge: Judge, at_once: int = 8
) -> list[MetricResult]:
    """Speech quality of each clip, 1 to 5; nan and a reason where there is nothing to judge.

    Args:
        sounds: Clips of any lengths, one channel each.
        rate_hz: Their rate, 16 kHz.
        judge: The network.
        at_once: Windows that go through it together.
    """
    if rate_hz != RATE_HZ:
        raise UsageError(
            f"the sounds are at {rate_hz} Hz, the judge hears {RATE_HZ}",
            where="distill_mos",
            hint="resample them first",
        )
    reasons = [_why_not(sound) for sound in sounds]
    starts = [[] if why else window_starts(len(sound)) for sound, why in zip(sounds, reasons, strict=True)]
    places = [(clip, start) for clip, mine in enumerate(starts) for start in mine]
    scores: list[float] = []
    with torch.inference_mode():
        for first in range(0, len(places), at_once):
            cut = [sounds[clip][start : start + WINDOW] for clip, start in places[first : first + at_once]]
            batch = torch.stack([F.pad(one.float(), (0, WINDOW - len(one))) for one in cut])
            scores += judge(batch).double().tolist()
    results, at = [], 0
    for mine, reason in zip(starts, reasons, strict=True):
        mean = sum(scores[at : at + len(mine)]) / len(mine) if mine else math.nan
        at += len(mine)
        results.append(MetricResult(mean, reason))
    return results


def _why_not(sound: Float[Tensor, " time"]) -> str:
    if not sound.numel():
        return NO_SAMPLES
    if not bool(sound.isfinite().all()):
        return "estimate has NaN or infinite samples"
    return SILENT_ESTIMATE if is_silent(sound) else ""
