r"""What a sound is made of, as one vector: time statistics of log-mel bands and of YAMNet's maps.

The tagger's mean embedding says which class is loudest. A reward must also hear what else is there, and tell violin
from viola; that is in the spread over time, in earlier maps and in the bands themselves. With :math:`x_{ct}` a band or
the mean over frequency of a map's channel at frame t, the vector holds for each

.. math:: \mu_c = \tfrac1T \sum_t x_{ct}, \qquad \sigma_c = \sqrt{\tfrac1T \sum_t (x_{ct} - \mu_c)^2 + \epsilon},

the spread of maps over both axes, and for the bands also the log of the mean magnitude and the mean step between
frames.
Everything is differentiable with respect to the wave.
"""

from __future__ import annotations

import contextlib

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from auralign.models.yamnet import CHANNELS, HOP, LOG_OFFSET, MELS, N_FFT, YamNet

EMBEDDING_FIRST = 1024
"""The first numbers are the mean of the last map: what the tagger's own embedding is the mean of."""
TAPS = (13, 11, 5)
"""Maps that are read, last one first."""
FEATURES = sum(2 * CHANNELS[tap] for tap in TAPS) + 4 * MELS
LEVEL = 0.1
"""Root mean square that every sound is brought to (-20 dBFS)."""
SHORTEST = N_FFT + 31 * HOP
"""Shorter sounds are padded with silence to this many samples (0.34 s)."""
_MICRO_BATCH = 16  # larger batches fall out of the processor's caches
_EPS = 1e-5


def at_level(wave: Float[Tensor, "batch time"]) -> Float[Tensor, "batch time"]:
    """Each sound at -20 dBFS; silence stays silence.

    >>> at_level(torch.tensor([[1.0, -1.0], [0.0, 0.0]])).tolist()[1]
    [0.0, 0.0]
    """
    power = wave.square().mean(dim=1, keepdim=True)
    return wave * (LEVEL / (power + 1e-12).sqrt())


def _mean_and_spread(x: Float[Tensor, "batch channel *place"]) -> Float[Tensor, "batch twice"]:
    flat = x.float().flatten(2)
    mean = flat.mean(dim=2)
    spread = ((flat - mean[..., None]).square().mean(dim=2) + _EPS).sqrt()
    return torch.cat([mean, spread], dim=1)


def _bands(log_mel: Float[Tensor, "batch frame mel"]) -> Float[Tensor, "batch four"]:
    loud = (log_mel.exp().mean(dim=1) + LOG_OFFSET).log()
    step = (log_mel.diff(dim=1).square() + _EPS).sqrt().mean(dim=1)
    return torch.cat([_mean_and_spread(log_mel.transpose(1, 2)), loud, step], dim=1)


def _statistics(yamnet: YamNet, wave: Float[Tensor, "batch time"], *, narrow: bool) -> Tensor:
    log_mel = yamnet.log_mel(at_level(wave))
    autocast = torch.autocast(wave.device.type, dtype=torch.bfloat16) if narrow else contextlib.nullcontext()
    with autocast:
        maps = yamnet.maps(log_mel)
    return torch.cat([*(_mean_and_spread(maps[tap]) for tap in TAPS), _bands(log_mel)], dim=1)


def audio_statistics(
    yamnet: YamNet, wave: Float[Tensor, "batch time"], *, narrow: bool = False
) -> Float[Tensor, "batch features"]:
    """Statistics of mono 16-kHz sounds of any length, their level taken out.

    Args:
        yamnet: The frozen tagger, on the sounds' device.
        wave: The sounds.
        narrow: Run the tagger in bfloat16 (half the time; numbers agree to about 1 %).
    """
    if wave.shape[1] < SHORTEST:
        wave = F.pad(wave, (0, SHORTEST - wave.shape[1]))
    return torch.cat([_statistics(yamnet, part, narrow=narrow) for part in wave.split(_MICRO_BATCH)])
