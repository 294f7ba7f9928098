r"""SpeechBERTScore, and the spectral features that stand in for its speech model.

Saeki, Maiti, Takamichi, Watanabe, Saruwatari 2024 (arXiv:2401.16812): frames :math:`e_i` of the estimate and
:math:`r_j` of the reference in the space of a self-supervised speech model,

.. math:: P = \frac{1}{n}\sum_i \max_j \cos(e_i, r_j), \qquad R = \frac{1}{m}\sum_j \max_i \cos(e_i, r_j)

The precision :math:`P` is what FlowSE-GRPO trains on. Any function from sounds to frames can be the space
(:data:`Features`). Without a speech model, :func:`spectral_features` serves: the shape of the spectrum over about
a tenth of a second. It knows no words, so frames may only be matched within ``reach``; with it the score says
whether the right spectra come in the right places.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from auralign.audio.mel import mel_power, slaney_mel_bank
from auralign.errors import UsageError
from auralign.metrics.contract import MetricResult, why_unscorable

RATE_HZ = 16_000
WINDOW, HOP, MELS = 512, 160, 40
CONTEXT = 4
"""Frames on either side that belong to a feature: 9 frames, 90 ms."""
REACH = 5
"""How many frames away a match may lie: 50 ms."""
FLOOR_DB = 50.0
"""Bands more than this below the sound's loudest are as good as silent."""
TOO_SHORT = "shorter than one frame of features"

Features = Callable[[Float[Tensor, "batch time"]], Float[Tensor, "batch frame dim"]]
"""A space of frames: sounds at 16 kHz to one vector every few milliseconds."""


def spectral_features(wave: Float[Tensor, "batch time"]) -> Float[Tensor, "batch frame dim"]:
    """Log-mel spectra of 9 frames, 10 ms apart, less the sound's mean spectrum; 360 numbers.

    Bands are cut off 50 dB below the sound's loudest, so that the level does not matter and silence is silence.
    Less the mean, a fixed colouring of the sound does not matter much either.
    """
    bank = slaney_mel_bank(n_fft=WINDOW, mels=MELS, rate_hz=RATE_HZ).to(wave.device)
    power = mel_power(wave.float(), bank, torch.hann_window(WINDOW, device=wave.device), hop=HOP)
    loudest = power.amax(dim=(1, 2), keepdim=True).clamp_min(1e-20)
    log = torch.log10((power / loudest).clamp_min(10 ** (-FLOOR_DB / 10)))
    log = log - log.mean(dim=1, keepdim=True)
    padded = torch.cat([log[:, :1]] * CONTEXT + [log] + [log[:, -1:]] * CONTEXT, dim=1)
    return padded.unfold(1, 2 * CONTEXT + 1, 1).flatten(2)


def best_match(
    *,
    est: Float[Tensor, "batch frame dim"],
    ref: Float[Tensor, "batch frame2 dim"],
    reach: int | None = None,
) -> Float[Tensor, " batch"]:
    r"""Precision: the mean over frames of the estimate of the best cosine with a frame of the reference.

    Swap the two for the recall.

    Args:
        est: Frames of the estimates.
        ref: Frames of their references.
        reach: How many frames away the best may lie; ``None``: anywhere, as published.

    >>> frames = torch.eye(3)[None]
    >>> best_match(est=frames, ref=frames.flip(1)).item(), best_match(est=frames, ref=frames.flip(1), reach=0).item()
    (1.0, 0.3333333432674408)
    """
    if not est.shape[1] or not ref.shape[1]:
        return torch.full(est.shape[:1], torch.nan, device=est.device)
    e, r = torch.nn.functional.normalize(est, dim=-1), torch.nn.functional.normalize(ref, dim=-1)
    cosine = e @ r.transpose(1, 2)
    if reach is not None:
        i = torch.arange(e.shape[1], device=e.device)[:, None]
        j = torch.arange(r.shape[1], device=e.device)[None, :]
        near = (i - j).abs() <= reach
        if not bool(near.any(dim=1).all()):
            raise UsageError(
                f"{e.shape[1]} frames have no match within {reach} of {r.shape[1]}",
                where="best_match",
                hint="make the sounds equally long, or set reach to None",
            )
        cosine = torch.where(near, cosine, -torch.inf)
    return cosine.amax(dim=2).mean(dim=1)


def feature_score(
    *,
    est: Float[Tensor, " time"],
    ref: Float[Tensor, " time"],
    rate_hz: int,
    features: Features = spectral_features,
    reach: int | None = REACH,
) -> MetricResult:
    """SpeechBERTScore precision of one clip, -1 to 1, in the space of ``features``.

    Args:
        est: Processed speech.
        ref: Clean speech.
        rate_hz: Their rate, 16 kHz.
        features: The space; with a speech model, set ``reach`` to ``None``.
        reach: See :func:`best_match`.
    """
    if rate_hz != RATE_HZ:
        raise UsageError(
            f"the sounds are at {rate_hz} Hz, the features hear {RATE_HZ}",
            where="feature_score",
            hint="resample them first",
        )
    if reason := why_unscorable(est=est, ref=ref):
        return MetricResult(math.nan, reason)
    frames = features(torch.stack([est, ref]).detach().float())
    score = float(best_match(est=frames[:1], ref=frames[1:], reach=reach))
    return MetricResult(score, TOO_SHORT if math.isnan(score) else "")
