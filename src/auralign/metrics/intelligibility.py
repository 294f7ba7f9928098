r"""How much of the speech is understood, and how good it sounds against its reference: STOI, ESTOI, PESQ.

STOI: Taal, Hendriks, Heusdens, Jensen 2011 (IEEE TASLP 19(7)). ESTOI: Jensen, Taal 2016 (IEEE/ACM TASLP 24(11)).
Both at 10 kHz: frames of 256 samples every 128, 512-point DFT, frames of the reference more than 40 dB below its
loudest left out of both sounds, 15 third-octave bands from 150 Hz, segments of 30 frames (384 ms) every frame.
STOI correlates each band of a segment, the estimate brought to the reference's energy and cut at
:math:`1 + 10^{15/20}` times it; ESTOI first normalises rows and columns of the segment.

PESQ: ITU-T P.862 with the mapping of P.862.1 (narrow band) or P.862.2 (wide band), by the ``pesq`` package, which
wraps the recommendation's reference code.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn import functional as F

from auralign.errors import UsageError
from auralign.metrics.contract import MetricResult, why_unscorable

STOI_RATE_HZ = 10_000
FRAME, HOP, N_FFT = 256, 128, 512
BANDS, LOWEST_HZ = 15, 150.0
SEGMENT = 30
DYNAMIC_RANGE_DB = 40.0
CLIP_AT = 1.0 + 10 ** (15 / 20)
TOO_LITTLE_SPEECH = "fewer than 30 frames (about 0.4 s) of speech"
PESQ_TOO_SHORT = "shorter than 0.25 s: PESQ is not defined"
PESQ_TOO_LONG = "longer than 30 s: outside the use of P.862, cut it into utterances"
PESQ_NO_SPEECH = "PESQ finds no utterance in it"
PESQ_MISSING = "the package pesq is not installed: pip install 'auralign[metrics]'"
_EPS = float(np.finfo(np.float64).eps)
_PESQ_LONGEST_S, _PESQ_SHORTEST_S = 30.0, 0.25


def stoi(*, est: Float[Tensor, " time"], ref: Float[Tensor, " time"], rate_hz: int) -> MetricResult:
    r"""Short-time objective intelligibility, about 0 to 1.

    Args:
        est: Processed speech.
        ref: Clean speech.
        rate_hz: Their rate.
    """
    bands = _bands(est, ref, rate_hz)
    if isinstance(bands, MetricResult):
        return bands
    y, x = bands.unfold(-1, SEGMENT, 1)  # each: band segment frame
    y = y * x.norm(dim=-1, keepdim=True) / (y.norm(dim=-1, keepdim=True) + _EPS)
    return MetricResult(float(_correlate(torch.minimum(y, CLIP_AT * x), x).mean()))


def estoi(*, est: Float[Tensor, " time"], ref: Float[Tensor, " time"], rate_hz: int) -> MetricResult:
    r"""Extended STOI, about 0 to 1, which also hears modulated maskers.

    Rows (bands over time), then columns (spectra) of each segment are centred and brought to length one; the score
    is the mean inner product of spectra.

    Args:
        est: Processed speech.
        ref: Clean speech.
        rate_hz: Their rate.
    """
    bands = _bands(est, ref, rate_hz)
    if isinstance(bands, MetricResult):
        return bands
    segments = bands.unfold(-1, SEGMENT, 1)  # sound band segment frame
    rows = _unit(segments, dim=3)
    y, x = _unit(rows, dim=1)
    return MetricResult(float((y * x).sum(dim=0).mean()))


def pesq_wb(*, est: Float[Tensor, " time"], ref: Float[Tensor, " time"], rate_hz: int) -> MetricResult:
    """Wide-band PESQ (P.862.2), MOS-LQO from 1.04 to 4.64, at 16 kHz; 0.25 to 30 s.

    Args:
        est: Processed speech.
        ref: Clean speech.
        rate_hz: Their rate, 16 kHz.
    """
    return _pesq(est, ref, rate_hz, "wb", (16_000,))


def pesq_nb(*, est: Float[Tensor, " time"], ref: Float[Tensor, " time"], rate_hz: int) -> MetricResult:
    """Narrow-band PESQ (P.862.1), MOS-LQO from 1.02 to 4.55, at 8 or 16 kHz; 0.25 to 30 s.

    Args:
        est: Processed speech.
        ref: Clean speech.
        rate_hz: Their rate.
    """
    return _pesq(est, ref, rate_hz, "nb", (8_000, 16_000))


def _pesq(
    est: Float[Tensor, " time"], ref: Float[Tensor, " time"], rate_hz: int, mode: str, rates: tuple[int, ...]
) -> MetricResult:
    if rate_hz not in rates:
        known = " or ".join(str(rate) for rate in rates)
        raise UsageError(
            f"PESQ in mode {mode} hears {known} Hz, not {rate_hz}", where="PESQ", hint="resample first"
        )
    if reason := why_unscorable(est=est, ref=ref):
        return MetricResult(math.nan, reason)
    seconds = len(ref) / rate_hz
    if not _PESQ_SHORTEST_S <= seconds <= _PESQ_LONGEST_S:
        short = seconds < _PESQ_SHORTEST_S
        return MetricResult(math.nan, PESQ_TOO_SHORT if short else PESQ_TOO_LONG)
    try:
        import pesq
    except ImportError:
        return MetricResult(math.nan, PESQ_MISSING)
    sounds = [wave.detach().cpu().numpy().astype(np.float32) for wave in (ref, est)]
    try:
        return MetricResult(float(pesq.pesq(rate_hz, *sounds, mode)))
    except pesq.NoUtterancesError:
        return MetricResult(math.nan, PESQ_NO_SPEECH)
    except pesq.PesqError as error:
        return MetricResult(math.nan, f"PESQ: {error}")


def _correlate(
    a: Float64[Tensor, "band segment frame"], b: Float64[Tensor, "band segment frame"]
) -> Float64[Tensor, "band segment"]:
    return (_unit(a, dim=-1) * _unit(b, dim=-1)).sum(-1)


def _unit(x: Float64[Tensor, "*shape"], *, dim: int) -> Float64[Tensor, "*shape"]:
    """Centred and at length one along a dimension; what does not vary becomes zero."""
    x = x - x.mean(dim=dim, keepdim=True)
    length: Tensor = x.norm(dim=dim, keepdim=True)
    return x / (length + _EPS)


def _bands(
    est: Float[Tensor, " time"], ref: Float[Tensor, " time"], rate_hz: int
) -> Float64[Tensor, "2 band frame"] | MetricResult:
    """Third-octave magnitudes of estimate and reference where the reference speaks, or why there are none."""
    if reason := why_unscorable(est=est, ref=ref):
        return MetricResult(math.nan, reason)
    both = to_10_khz(torch.stack([est, ref]).detach().double().cpu(), rate_hz)
    window = torch.hann_window(FRAME + 2, periodic=False, dtype=torch.float64)[1:-1]
    if both.shape[1] <= FRAME:
        return MetricResult(math.nan, TOO_LITTLE_SPEECH)
    both = _without_pauses(both, window)
    frames = _frames(both) * window
    if frames.shape[1] < SEGMENT:
        return MetricResult(math.nan, TOO_LITTLE_SPEECH)
    power: Tensor = torch.fft.rfft(frames, N_FFT).abs().square()
    return (power @ third_octaves()).sqrt().transpose(1, 2)


def _frames(x: Float64[Tensor, "sound time"]) -> Float64[Tensor, "sound frame 256"]:
    """Frames that start before the last whole one, as the published code counts them."""
    return (
        x[:, : max(x.shape[1] - 1, 0)].unfold(1, FRAME, HOP)
        if x.shape[1] > FRAME
        else x.new_zeros(2, 0, FRAME)
    )


def _without_pauses(
    both: Float64[Tensor, "2 time"], window: Float64[Tensor, "256"]
) -> Float64[Tensor, "2 time2"]:
    """Overlap-add of the frames in which the reference is within 40 dB of its loudest frame."""
    frames = _frames(both) * window
    level = 20 * torch.log10(frames[1].norm(dim=-1) + _EPS)
    kept = frames[:, level > level.max() - DYNAMIC_RANGE_DB]
    out = kept.new_zeros(2, (kept.shape[1] + 1) * HOP)
    out[:, :-HOP] += kept[:, :, :HOP].flatten(1)
    out[:, HOP:] += kept[:, :, HOP:].flatten(1)
    return out


@lru_cache(maxsize=1)
def third_octaves() -> Float64[Tensor, "257 15"]:
    """Which bins of the 512-point DFT at 10 kHz make each third-octave band: 0 or 1, edges at the nearest bin.

    >>> tuple(third_octaves().shape), third_octaves()[:, 0].nonzero().flatten().tolist()
    ((257, 15), [7, 8])
    """
    bins = np.linspace(0, STOI_RATE_HZ, N_FFT + 1)[: N_FFT // 2 + 1]
    octave = np.arange(BANDS) / 3
    low, high = LOWEST_HZ * 2 ** (octave - 1 / 6), LOWEST_HZ * 2 ** (octave + 1 / 6)
    first = np.abs(bins[:, None] - low).argmin(axis=0)
    last = np.abs(bins[:, None] - high).argmin(axis=0)
    index = np.arange(len(bins))[:, None]
    return torch.from_numpy(((index >= first) & (index < last)).astype(np.float64))


@lru_cache(maxsize=8)
def _polyphase(up: int, down: int) -> tuple[Float64[Tensor, "up 1 tap"], int]:
    r"""Kaiser-windowed sinc of 60 dB rejection, a tenth of the band wide, as one filter for each output phase.

    Octave's ``resample``, which the published STOI uses. Output :math:`k = up \cdot i + r` is
    :math:`\sum_m h[c + r \cdot down - m \cdot up] \, x[i \cdot down + m]` with the centre :math:`c`.

    Returns:
        The filters, and how many samples before ``i * down`` they begin.
    """
    rejection_db, cut = 60.0, 1 / (2 * max(up, down))
    half = math.ceil((rejection_db - 8) / (28.714 * cut / 10))
    t = np.arange(-half, half + 1)
    h = np.kaiser(2 * half + 1, 0.1102 * (rejection_db - 8.7)) * np.sinc(2 * cut * t)
    h = up * h / h.sum()
    before, after = half // up, ((up - 1) * down + half) // up
    m = np.arange(-before, after + 1)
    at = half + np.arange(up)[:, None] * down - m[None, :] * up
    filters = np.where((at >= 0) & (at <= 2 * half), h[at.clip(0, 2 * half)], 0.0)
    return torch.from_numpy(filters)[:, None, :], before


def to_10_khz(x: Float64[Tensor, "sound time"], rate_hz: int) -> Float64[Tensor, "sound time2"]:
    """The sounds at 10 kHz, ``ceil(time * 10000 / rate)`` samples."""
    common = math.gcd(STOI_RATE_HZ, rate_hz)
    up, down = STOI_RATE_HZ // common, rate_hz // common
    if up == down:
        return x
    filters, before = _polyphase(up, down)
    length = -(-x.shape[1] * up // down)
    steps = -(-length // up)
    after = max(0, (steps - 1) * down + filters.shape[2] - before - x.shape[1])
    out = F.conv1d(F.pad(x, (before, after))[:, None], filters, stride=down)
    return out[:, :, :steps].transpose(1, 2).flatten(1)[:, :length]
