"""An enhancer over a sound of any length: windows of six seconds that overlap and are cross-faded.

Window i begins at sample ``i * STEP`` of the enhancer's rate and has a seed of its own, so that the result is the same
whatever blocks come in. The last window ends with the sound and reaches back as far as it must to be a whole one.

Several channels are *linked* unless asked otherwise: the enhancer hears their mean M (the strongest channel where they
cancel) and answers E; every channel X is then multiplied by the real gain

    G = min(|E| / |M|, 1)

in each bin of a short-time spectrum. One gain for all channels leaves level and phase differences between them as they
are, so that the stereo image cannot move. Where the channels are practically the same (differences 30 dB below the
mean), they become E + G (X - M): a voice in two equal channels is then exactly what it would be in one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from auralign.audio.channels import representative
from auralign.audio.stft import Stft
from auralign.errors import AudioError
from auralign.models.enhancer import Enhancer
from auralign.runtime.seed import derive

Channels = Literal["linked", "separate"]
WINDOW_S, STEP_S = 6.0, 5.2
_SAME = (
    1e-3  # power of differences between channels, relative to their mean's, below which they are one voice
)
_EXTREME = 2.0**12  # peaks beyond it, or below its inverse, are brought to 1 and back by a power of two


@dataclass(frozen=True)
class Request:
    """How windows are enhanced.

    Attributes:
        steps: Evaluations of the network; the model's own number when ``None``.
        seed: Of the whole recording.
        channels: ``linked`` or ``separate``.
    """

    steps: int | None = None
    seed: int = 0
    channels: Channels = "linked"


class WindowStream:
    """Enhanced samples of a stream at the enhancer's rate.

    Args:
        enhancer: What takes the noise out.
        channels: Channels of the recording.
        request: How.
    """

    def __init__(self, enhancer: Enhancer, channels: int, request: Request) -> None:
        self.enhancer, self.request = enhancer, request
        self.window, self.step = (round(s * enhancer.rate_hz) for s in (WINDOW_S, STEP_S))
        self._wave = torch.zeros(channels, 0)
        self._number = 0
        self._base = 0  # place of the first buffered sample
        self._tail: Tensor | None = None  # what the window before says where the next one begins

    @property
    def overlap(self) -> int:
        """Samples that two neighbouring windows share."""
        return self.window - self.step

    def process(
        self, block: Float[Tensor, "channel time"], last: bool = False
    ) -> Float[Tensor, "channel time2"]:
        """Take samples, give those that no later window changes."""
        self._wave = torch.cat([self._wave, block], dim=-1)
        total = self._base + self._wave.shape[-1]
        out = [self._wave[:, :0]]
        while self._number * self.step + self.window < total:  # one sample more: this window is not the last
            begin = self._number * self.step
            out.append(self._emit(begin, begin + self.window, last=False))
        if last and total:
            out.append(
                self._emit(max(0, min(self._number * self.step, total - self.window)), total, last=True)
            )
        return torch.cat(out, dim=-1)

    def _emit(self, begin: int, end: int, *, last: bool) -> Tensor:
        """Run one window and give its samples from its own place on."""
        start = self._number * self.step
        heard = self._wave[:, begin - self._base : end - self._base]
        wave = enhance_window(self.enhancer, heard, self.request, number=self._number)[:, start - begin :]
        if self._tail is not None:
            fade = _fade(self.overlap)
            wave[:, : self.overlap] = self._tail * (1 - fade) + wave[:, : self.overlap] * fade
        if last:
            return wave
        self._tail = wave[:, self.step :].clone()
        self._wave = self._wave[:, start - self._base :].clone()  # the last window may reach back to here
        self._base = start
        self._number += 1
        return wave[:, : self.step]


def _fade(length: int) -> Float[Tensor, "time"]:
    """From 0 to 1 by a raised cosine over the middle half; before and after, one window alone is heard."""
    place = ((torch.arange(length) + 0.5) / length * 2 - 0.5).clamp(0, 1)
    return torch.sin(0.5 * math.pi * place).square()


def enhance_window(
    enhancer: Enhancer, wave: Float[Tensor, "channel time"], request: Request, *, number: int = 0
) -> Float[Tensor, "channel time"]:
    """One window; silence stays silence, and every channel alone has the same seed.

    Raises:
        AudioError: The enhancer answers samples that are not finite.
    """
    peak = float(wave.abs().max())
    if not peak:
        return torch.zeros_like(wave)
    scale = 1.0 if 1 / _EXTREME < peak < _EXTREME else 2.0 ** -math.frexp(peak)[1]
    heard = wave * scale
    seed = request.seed if not number else derive(request.seed, "window", number)
    if len(wave) == 1 or request.channels == "separate":
        out = torch.cat([_alone(enhancer, one[None], request.steps, seed) for one in heard])
    else:
        middle = representative(heard)[None]
        out = _linked(heard, middle, _alone(enhancer, middle, request.steps, seed))
    if not bool(out.isfinite().all()):
        raise AudioError("the enhancer gave samples that are not finite", where=enhancer.name)
    return out / scale


def _alone(
    enhancer: Enhancer, wave: Float[Tensor, "1 time"], steps: int | None, seed: int
) -> Float[Tensor, "1 time"]:
    if not bool(wave.any()):
        return torch.zeros_like(wave)
    return enhancer.enhance_wave(wave, steps=steps, seed=seed).to(wave).clone()


def _linked(
    wave: Float[Tensor, "channel time"], middle: Float[Tensor, "1 time"], answer: Float[Tensor, "1 time"]
) -> Float[Tensor, "channel time"]:
    """All channels by the gain that turned `middle` into `answer`; see the module."""
    stft = Stft(512, 128)
    side = wave - middle
    same = float(side.square().mean(dim=-1).max()) <= _SAME * float(middle.square().mean())
    if same and not bool(side.any()):
        return answer.expand_as(wave).clone()
    before, after = stft.forward(middle).abs(), stft.forward(answer).abs()
    gain = (after / before.clamp_min(1e-30)).clamp_max(1.0)
    scaled = stft.inverse(gain * stft.forward(side if same else wave), wave.shape[-1])
    return answer + scaled if same else scaled
