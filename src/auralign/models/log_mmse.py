r"""Classic speech enhancement: the log-spectral amplitude estimator with a tracked noise spectrum. It learns nothing.

Ephraim and Malah 1985, *Speech enhancement using a minimum mean-square error log-spectral amplitude estimator*
(IEEE TASSP 33(2)): with a-priori SNR ξ, a-posteriori SNR γ = |Y|² / λ and v = γ ξ / (1 + ξ), eq. 20 is

.. math:: G(\xi, \gamma) = \frac{\xi}{1 + \xi} \exp\Bigl(\tfrac12 \int_v^\infty \frac{e^{-t}}{t} dt\Bigr)

and ξ is followed by the decision-directed rule of their 1984 paper, eq. 51. The noise power λ is tracked by
minima-controlled recursive averaging (MCRA): Cohen and Berdugo 2002, *Noise estimation by minima controlled
recursive averaging for robust speech enhancement* (IEEE SPL 9(1)), with the constants of its section III, for frames
of 32 ms every 8 ms. One thing is added: the tracker starts from what it found running backwards over the first
second, because a recording that begins with a word shows no noise at first.

Symbols: Y noisy spectrum, λ noise power, ξ and γ as above, S smoothed power, p probability of speech.
"""

from __future__ import annotations

from typing import final

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from auralign.audio.stft import Stft
from auralign.errors import UsageError

RATE_HZ = 16_000
N_FFT, HOP = 512, 128
ALPHA = 0.98
"""How much the a-priori SNR trusts the frame before."""
XI_MIN = 10 ** (-25 / 10)
"""Least a-priori SNR: the deepest attenuation is about this."""
GAMMA_MAX = 10**4.0
_SMOOTH_S, _SMOOTH_D, _SMOOTH_P = 0.8, 0.95, 0.2  # α_s, α_d, α_p of Cohen and Berdugo
_DELTA = 5.0  # S / S_min above it: speech
_SEARCH_FRAMES = 125  # L: a minimum is forgotten after one to two of these, 1 to 2 s
_FLOOR = 1e-30  # power below it is silence: a full-scale sine has about 1e4


def exponential_integral(x: Float64[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
    r""":math:`E_1(x) = \int_x^\infty e^{-t} / t \, dt` for x > 0, with an error below 3e-7 of the value.

    Abramowitz and Stegun 1964, eq. 5.1.53 up to 1 and 5.1.56 above.

    >>> exponential_integral(np.array([0.5, 2.0])).round(5).tolist()
    [0.55977, 0.0489]
    """
    low = np.clip(x, 1e-300, 1.0)
    series = np.polyval(
        (0.00107857, -0.00976004, 0.05519968, -0.24991055, 0.99999193, -0.57721566), low
    ) - np.log(low)
    high = np.clip(x, 1.0, 700.0)
    above = np.polyval((1.0, 8.5733287401, 18.0590169730, 8.6347608925, 0.2677737343), high)
    below = np.polyval((1.0, 9.5733223454, 25.6329561486, 21.0996530827, 3.9584969228), high)
    return np.asarray(np.where(x <= 1.0, series, above / below * np.exp(-high) / high))


def log_mmse_gain(
    xi: Float64[np.ndarray, "*shape"], gamma: Float64[np.ndarray, "*shape"]
) -> Float64[np.ndarray, "*shape"]:
    """Eq. 20 of Ephraim and Malah 1985; `xi` is the a-priori and `gamma` the a-posteriori SNR, both as power ratios.

    >>> log_mmse_gain(np.array([1e3]), np.array([1e3])).round(3).tolist()
    [0.999]
    """
    share = xi / (1.0 + xi)
    return share * np.exp(0.5 * exponential_integral(np.maximum(share * gamma, 1e-12)))


def noise_power(power: Float64[np.ndarray, "frame batch freq"]) -> Float64[np.ndarray, "frame batch freq"]:
    r"""The noise power of every frame by MCRA.

    .. math::
        \tilde\alpha = \alpha_d + (1 - \alpha_d) p, \quad
        \lambda_{k+1} = \tilde\alpha \lambda_k + (1 - \tilde\alpha) |Y_k|^2

    where p follows whether S / S_min exceeds δ. A steady tone counts as noise, as a steady hiss does.
    """
    head = power[: 2 * _SEARCH_FRAMES][::-1]
    return _track(power, start=_track(head, start=head[0])[-1])


def _track(power: np.ndarray, *, start: np.ndarray) -> np.ndarray:
    """One pass, from the noise power `start`."""
    noise, presence = start.copy(), np.zeros_like(start)
    smooth = np.minimum(_over_bins(power[0]), np.maximum(start, _FLOOR) * _DELTA)
    least = np.minimum(smooth, start)
    latest = least.copy()
    out = np.empty_like(power)
    for k, now in enumerate(power):
        smooth = _SMOOTH_S * smooth + (1 - _SMOOTH_S) * _over_bins(now)
        if k and k % _SEARCH_FRAMES == 0:
            least, latest = np.minimum(latest, smooth), smooth.copy()
        else:
            least, latest = np.minimum(least, smooth), np.minimum(latest, smooth)
        speech = smooth > _DELTA * least
        presence = _SMOOTH_P * presence + (1 - _SMOOTH_P) * speech
        keep = _SMOOTH_D + (1 - _SMOOTH_D) * presence
        noise = keep * noise + (1 - keep) * now
        out[k] = noise
    return out


def _over_bins(power: np.ndarray) -> np.ndarray:
    """Three bins with weights ¼ ½ ¼; at the edges what is there."""
    padded = np.concatenate([power[:, :1], power, power[:, -1:]], axis=1)
    return np.asarray(0.25 * padded[:, :-2] + 0.5 * power + 0.25 * padded[:, 2:])


def gains(power: Float64[np.ndarray, "frame batch freq"]) -> Float64[np.ndarray, "frame batch freq"]:
    r"""The gain of every bin, with ξ followed decision-directed by Ephraim and Malah 1984, eq. 51.

    .. math:: \xi_k = \alpha \, G_{k-1}^2 \gamma_{k-1} + (1 - \alpha) \max(\gamma_k - 1, 0)
    """
    noise = np.maximum(noise_power(power), _FLOOR)
    gamma = np.minimum(power / noise, GAMMA_MAX)
    out = np.empty_like(power)
    before = np.maximum(gamma[0] - 1.0, 0.0)
    for k, now in enumerate(gamma):
        xi = ALPHA * before + (1 - ALPHA) * np.maximum(now - 1.0, 0.0)
        out[k] = log_mmse_gain(np.maximum(xi, XI_MIN), now)
        before = out[k] ** 2 * now
    return np.asarray(np.minimum(out, 1.0))


@final
class LogMmse:
    """The estimator as an :class:`~auralign.models.enhancer.Enhancer`; it has no weights and no randomness.

    >>> LogMmse().enhance_wave(torch.zeros(1, 1000)).abs().max().item()
    0.0
    """

    name = "log-mmse"
    rate_hz = RATE_HZ

    def __init__(self) -> None:
        self._stft = Stft(N_FFT, HOP)

    @torch.inference_mode()
    def enhance_wave(
        self, wave: Float[Tensor, "batch time"], *, steps: int | None = None, seed: int = 0
    ) -> Float[Tensor, "batch time"]:
        """See :class:`~auralign.models.enhancer.Enhancer`; `steps` and `seed` change nothing.

        Raises:
            UsageError: A sample is NaN or infinite.
        """
        if not bool(wave.isfinite().all()):
            raise UsageError("the recording has samples that are not finite", where=self.name)
        if not wave.numel():
            return wave.clone()
        peak = wave.abs().amax(dim=-1, keepdim=True).double()
        scaled = wave.double() / torch.where(peak > 0, peak, 1.0)
        spec = self._stft.forward(scaled)
        power = spec.abs().square().permute(2, 0, 1).contiguous().cpu().numpy()
        gain = torch.from_numpy(gains(power)).permute(1, 2, 0).to(spec.device)
        return (self._stft.inverse(spec * gain, wave.shape[-1]) * peak).to(wave)
