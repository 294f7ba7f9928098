r"""What happens to frequencies that the enhancer does not hear.

The part above is what is left of the recording when it has been to the enhancer's rate and back. With ``mask`` it is
multiplied by the gain of the octave below (4-8 kHz at 16 kHz), smoothed over 40 ms:

.. math:: g_k = \min\Bigl(1, \sqrt{\tfrac{\sum_j w_j P^E_{k+j}}{\sum_j w_j P^X_{k+j}}}\Bigr)

with the power P of enhanced (E) and heard (X) sound in that octave in frame k. An octave that holds nothing (a
billionth of the frame's power) says nothing, and the part above passes.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from auralign.audio.stft import Stft, StftStream

Upper = Literal["pass", "mask", "drop"]
_N_FFT, _HOP = 512, 128
_REACH = 2  # frames to each side that a gain is smoothed over
_NOTHING = 1e-9


class UpperGain:
    """Gains of a stream for the part above, by sample of the recording.

    Args:
        channels: Channels of the recording.
        heard_hz: The enhancer's rate.
        rate_hz: The recording's rate.
        linked: One gain for all channels.
    """

    def __init__(self, channels: int, heard_hz: int, rate_hz: int, *, linked: bool) -> None:
        self.rows = 1 if linked else channels
        self._streams = tuple(StftStream(Stft(_N_FFT, _HOP), channels) for _ in range(2))
        top = min(heard_hz, rate_hz) / 2
        self._octave = slice(round(top / 2 / heard_hz * _N_FFT), round(top / heard_hz * _N_FFT) + 1)
        self._frames_per_sample = heard_hz / _HOP / rate_hz
        self._power = torch.zeros(3, self.rows, _REACH, dtype=torch.float64)  # enhanced, heard, heard in all
        self._gain = torch.zeros(self.rows, 0, dtype=torch.float64)
        self._first = 0  # frame of the first gain
        self._ended = False

    def process(
        self, heard: Float[Tensor, "channel time"], enhanced: Float[Tensor, "channel time"], last: bool
    ) -> None:
        """Take what the enhancer heard and said, in step."""
        x, e = (
            stream.process(wave, last).spec
            for stream, wave in zip(self._streams, (heard, enhanced), strict=True)
        )
        power_x, power_e = self._of(x), self._of(e)
        new = [power_e[:, self._octave].sum(1), power_x[:, self._octave].sum(1), power_x.sum(1)]
        parts = [self._power, torch.stack(new)]
        if last:
            parts.append(torch.zeros(3, self.rows, _REACH, dtype=torch.float64))
        self._power = torch.cat(parts, dim=-1)
        self._ended = last
        count = self._power.shape[-1] - 2 * _REACH
        if count > 0:
            self._gain = torch.cat([self._gain, self._smoothed(count)], dim=-1)
            self._power = self._power[..., count:].clone()

    def _of(self, spec: Tensor) -> Float64[Tensor, "row freq frame"]:
        power: Tensor = spec.abs().double().square()
        return torch.sum(power, dim=0, keepdim=True) if self.rows == 1 else power

    def _smoothed(self, count: int) -> Float64[Tensor, "row frame"]:
        weight = torch.hann_window(2 * _REACH + 3, periodic=False, dtype=torch.float64)[1:-1]
        enhanced, heard, whole = (self._power.unfold(-1, 2 * _REACH + 1, 1)[..., :count, :] * weight).sum(-1)
        nothing = _NOTHING * whole + 1e-200
        ratio: Tensor = (enhanced + nothing) / (heard + nothing)
        return ratio.clamp(0, 1).sqrt()

    def ready(self) -> int:
        """How many samples from the start have their gain."""
        frames = self._first + self._gain.shape[-1]
        return 2**62 if self._ended else max(0, int((frames - 1) / self._frames_per_sample))

    def at(self, first: int, count: int) -> Float[Tensor, "row time"]:
        """Gains of samples ``first .. first + count``; earlier ones are forgotten."""
        place = (
            torch.arange(first, first + count, dtype=torch.float64) * self._frames_per_sample - self._first
        )
        place = place.clamp(0, self._gain.shape[-1] - 1)
        left = place.floor().long()
        right = (left + 1).clamp(max=self._gain.shape[-1] - 1)
        out = torch.lerp(self._gain[:, left], self._gain[:, right], place - left)
        used = min(int((first + count) * self._frames_per_sample) - self._first, self._gain.shape[-1] - 1)
        if used > 0:
            self._gain, self._first = self._gain[:, used:].clone(), self._first + used
        return out.float()
