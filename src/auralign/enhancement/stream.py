r"""Enhancement of a recording of any length, rate and number of channels in constant memory.

The recording x goes to the enhancer's rate, :math:`\ell`, through the windows, e, and both come back to the recording's
rate by the same filters. With U for that way back, gain g of the part above (see :mod:`auralign.enhancement.upper`) and
strength s:

.. math:: y = (1 - s) x + s \, \bigl(U e + g \, (x - U \ell)\bigr), \qquad r = x - y

so that an enhancer that changes nothing gives x back, whatever the filters do, and y + r is always x. What comes out
does not depend on the sizes of the blocks that go in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float

from auralign.audio.reader import AudioReader
from auralign.audio.resample import StreamResampler
from auralign.enhancement.upper import Upper, UpperGain
from auralign.enhancement.windows import Channels, Request, WindowStream
from auralign.errors import AudioError, UsageError
from auralign.models.enhancer import Enhancer

MIN_RATE_HZ = 4000  # below it speech has lost most of what is understood
MOST_STEPS = 200
_BLOCK_S = 1.0


@dataclass(frozen=True)
class Treatment:
    """What is done to a recording.

    Attributes:
        steps: Evaluations of the network; the model's own number when ``None``.
        seed: Equal seeds give equal results.
        strength: 0 leaves the recording as it is, 1 takes out all that the model takes out; between them
            ``20 log10(1 - strength)`` dB of it stays.
        upper: What happens above the model's band: ``mask``, ``pass`` or ``drop``.
        channels: ``linked``: one gain for all; ``separate``: every channel for itself.
    """

    steps: int | None = None
    seed: int = 0
    strength: float = 1.0
    upper: Upper = "mask"
    channels: Channels = "linked"

    def __post_init__(self) -> None:
        if not 0.0 <= self.strength <= 1.0:
            raise UsageError(
                f"the strength {self.strength:g} is not between 0 and 1",
                where="--strength",
                hint="1 takes out all noise that is found, 0.7 leaves it 10 dB lower",
            )
        if self.steps is not None and not 1 <= self.steps <= MOST_STEPS:
            raise UsageError(
                f"{self.steps} steps cannot be made",
                where="--steps",
                hint=f"take 1 to {MOST_STEPS}; 4 is usual",
            )
        if self.seed < 0:
            raise UsageError(f"the seed {self.seed} is negative", where="--seed")
        if self.upper not in ("pass", "mask", "drop"):
            raise UsageError(
                f"no upper band policy {self.upper!r}", where="--upper", hint="pass, mask or drop"
            )
        if self.channels not in ("linked", "separate"):
            raise UsageError(
                f"no way {self.channels!r} to treat channels", where="--channels", hint="linked or separate"
            )


@dataclass(frozen=True)
class EnhanceBlock:
    """The next samples; ``enhanced + residual`` is the recording."""

    enhanced: Float[np.ndarray, "channel time"]
    residual: Float[np.ndarray, "channel time"]


@dataclass
class Energy:
    """Sums of squares over what has come out so far."""

    recording: float = 0.0
    enhanced: float = 0.0
    residual: float = 0.0

    def add(self, block: EnhanceBlock) -> None:
        """Count a block."""
        enhanced, residual = block.enhanced.astype(np.float64), block.residual.astype(np.float64)
        self.recording += float(np.square(enhanced + residual).sum())
        self.enhanced += float(np.square(enhanced).sum())
        self.residual += float(np.square(residual).sum())


@dataclass
class _Waiting:
    """Samples that are not finished: the recording, what the enhancer heard, and both ways back."""

    recording: np.ndarray
    heard: torch.Tensor
    returned: np.ndarray
    block: np.ndarray
    done: int = 0
    taken: int = 0
    energy: Energy = field(default_factory=Energy)


class EnhanceStream:
    """From blocks of a recording to blocks of enhanced sound and of what was taken out.

    Args:
        enhancer: The model.
        rate_hz: Rate of the recording.
        channels: Its channels.
        treatment: What is done.
    """

    def __init__(
        self, enhancer: Enhancer, rate_hz: int, channels: int, treatment: Treatment | None = None
    ) -> None:
        if rate_hz < MIN_RATE_HZ:
            raise AudioError(
                f"the sample rate is {rate_hz} Hz",
                why=f"speech enhancement needs {MIN_RATE_HZ} Hz or more",
                hint="check the header; if it is wrong, set the rate that the recording was made with",
            )
        self.treatment = treatment or Treatment()
        self.channels, self.rate_hz, self.heard_hz = channels, rate_hz, enhancer.rate_hz
        request = Request(self.treatment.steps, self.treatment.seed, self.treatment.channels)
        self._windows = WindowStream(enhancer, channels, request)
        self._same = rate_hz == enhancer.rate_hz
        linked = self.treatment.channels == "linked"
        self._upper = UpperGain(channels, enhancer.rate_hz, rate_hz, linked=linked)
        self._down = StreamResampler(rate_hz, enhancer.rate_hz, channels)
        self._back = StreamResampler(enhancer.rate_hz, rate_hz, 2 * channels)
        none = np.zeros((channels, 0), np.float32)
        self._waiting = _Waiting(
            none, torch.zeros(channels, 0), np.zeros((2 * channels, 0), np.float32), none
        )
        self._step = max(1, round(_BLOCK_S * rate_hz))

    @property
    def energy(self) -> Energy:
        """Of what has come out."""
        return self._waiting.energy

    def process(self, block: Float[np.ndarray, "channel time"], last: bool = False) -> EnhanceBlock:
        """Take samples of the recording, give those that are final; with ``last`` all that remain.

        The work is done in steps of one second whatever comes in, so that results are the same bit for bit.
        """
        now = self._waiting
        now.taken += block.shape[1]
        if last and not now.taken:
            raise AudioError("there are no samples to enhance")
        waiting = np.concatenate([now.block, block], axis=1) if now.block.shape[1] else block
        whole = waiting.shape[1] // self._step * self._step
        out = [self._advance(waiting[:, at : at + self._step].copy()) for at in range(0, whole, self._step)]
        now.block = waiting[:, whole:].copy()
        if last:
            out.append(self._advance(now.block, last=True))
        found = _joined(out, self.channels)
        now.energy.add(found)
        return found

    def _advance(self, block: Float[np.ndarray, "channel time"], *, last: bool = False) -> EnhanceBlock:
        """One step through the windows and back."""
        now = self._waiting
        now.recording = np.concatenate([now.recording, block], axis=1)
        heard = torch.from_numpy(self._down.process(block, last))
        now.heard = torch.cat([now.heard, heard], dim=-1)
        said = self._windows.process(heard, last)
        count = said.shape[-1]
        heard, now.heard = now.heard[:, :count], now.heard[:, count:].clone()
        if not self._same:
            self._upper.process(heard, said, last)
        both = torch.cat([said, heard]).numpy()
        back = self._back.process(both, last) if count or last else both
        now.returned = np.concatenate([now.returned, back], axis=1)
        return self._give(last)

    def _give(self, last: bool) -> EnhanceBlock:
        """What is ready, from the buffers."""
        now = self._waiting
        length = now.recording.shape[1]
        if last:  # two conversions may end a few samples early or late
            missing = max(0, length - now.returned.shape[1])
            now.returned = np.pad(now.returned, ((0, 0), (0, missing)))
        ready = min(length, now.returned.shape[1])
        if not self._same:
            ready = min(ready, max(0, self._upper.ready() - now.done))
        recording, now.recording = now.recording[:, :ready], now.recording[:, ready:].copy()
        returned, now.returned = now.returned[:, :ready], now.returned[:, ready:].copy()
        said, heard = returned[: self.channels], returned[self.channels :]
        full = said if self._same or not ready else said + self._above(now.done, ready) * (recording - heard)
        now.done += ready
        strength = np.float32(self.treatment.strength)
        enhanced = (1 - strength) * recording + strength * full
        return EnhanceBlock(enhanced.astype(np.float32), (recording - enhanced).astype(np.float32))

    def _above(self, first: int, count: int) -> Float[np.ndarray, "row time"]:
        """Gains of the part above; the sliver that conversion of a low-rate recording loses is never dropped."""
        gain = self._upper.at(first, count).numpy()
        if self.treatment.upper == "pass":
            return np.ones_like(gain)
        if self.treatment.upper == "drop" and self.rate_hz > self.heard_hz:
            return np.zeros_like(gain)
        return gain


def _joined(blocks: list[EnhanceBlock], channels: int) -> EnhanceBlock:
    none = np.zeros((channels, 0), np.float32)
    return EnhanceBlock(
        np.concatenate([none, *(one.enhanced for one in blocks)], axis=-1),
        np.concatenate([none, *(one.residual for one in blocks)], axis=-1),
    )


def enhanced_blocks(stream: EnhanceStream, reader: AudioReader) -> Iterator[EnhanceBlock]:
    """Read a recording to its end, one second at a time."""
    size = max(1, round(_BLOCK_S * reader.info.rate_hz))
    while True:
        block = reader.read(size)
        last = block.shape[1] == 0
        out = stream.process(block, last)
        if out.residual.shape[1]:
            yield out
        if last:
            return
