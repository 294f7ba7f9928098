r"""Separation of a sound of any length and rate in constant memory.

Two transforms run side by side. The *model's* STFT at 16 kHz feeds the network in windows of ``WINDOW`` frames that
overlap by ``OVERLAP``; neighbouring windows' masks are cross-faded. The *native* STFT, at the recording's own rate with
the same window length and hop in seconds, is what the masks are applied to, so nothing but the mask passes through the
resampler. Above the model's band the mask goes on as its mean over the band's upper quarter. All channels share one
mask, which keeps the stereo image. What comes out does not depend on the sizes of the blocks that go in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from auralign.audio.channels import representative
from auralign.audio.reader import AudioReader
from auralign.audio.resample import StreamResampler
from auralign.audio.stft import IstftStream, Stft, StftStream
from auralign.errors import AudioError
from auralign.models.separator import SeparatorModel

WINDOW = 256
OVERLAP = 64
STEP = WINDOW - OVERLAP
MIN_RATE_HZ = 1000  # below it there is hardly a bin of the model's spectrum to mask
_BLOCK_S = 1.0
_QUIET = 1e-10  # windows below this mean power say nothing about presence
_LOUD = 1e15  # amplitudes above it are scaled down before they are squared, or float32 would overflow
_TOP_HZ = 6000.0


@dataclass
class Presence:
    """How likely each queried sound is there, window by window."""

    times_s: list[float] = field(default_factory=list)
    values: list[list[float]] = field(default_factory=list)

    def overall(self, queries: int) -> list[float]:
        """The largest value over the recording; 0 where all of it is silent."""
        return [max((row[q] for row in self.values), default=0.0) for q in range(queries)]


@dataclass(frozen=True)
class StemBlock:
    """The next samples of all stems and of what is left: ``targets.sum(0) + residual == mixture``."""

    targets: Float[np.ndarray, "query channel time"]
    residual: Float[np.ndarray, "channel time"]


class MaskStream:
    """Masks on the model's time-frequency grid, window by window, cross-faded.

    Args:
        model: The separator.
        query: One row a query.
        channels: Channels of the recording.
        shared: Scale masks down where they add up to more than one, so that stems do not hold a sound twice.
        separations: See :meth:`SeparatorModel.answer`.
    """

    def __init__(
        self,
        model: SeparatorModel,
        query: Float[Tensor, "query dim"],
        channels: int,
        *,
        shared: bool = True,
        separations: int = 1,
    ) -> None:
        self.model, self.query, self.shared, self.separations = model, query, shared, separations
        self.presence = Presence()
        self._stft = StftStream(Stft(model.n_fft, model.hop), channels)
        self._magnitude = torch.zeros(channels, model.n_fft // 2 + 1, 0)
        self._wave = torch.zeros(channels, 0)
        self._start = 0  # first frame of the next window
        self._base = 0  # frame of the first buffered column
        self._tail: Tensor | None = None  # the previous window's last OVERLAP masks

    def process(
        self, block: Float[Tensor, "channel time"], last: bool = False
    ) -> Float[Tensor, "query bin frame"]:
        """Take 16-kHz samples, give the masks that are final."""
        self._magnitude = torch.cat([self._magnitude, self._stft.process(block, last).spec.abs()], dim=-1)
        self._wave = torch.cat([self._wave, block], dim=-1)
        total = self._base + self._magnitude.shape[-1]
        out = []
        while self._start + WINDOW < total:  # one frame more than a window: this window is not the last
            out.append(self._emit(self._start, self._start + WINDOW, last=False))
        if last:  # the last window ends with the sound and reaches back as far as it must to be a whole one
            out.append(self._emit(max(0, min(self._start, total - WINDOW)), total, last=True))
        return torch.cat(out, dim=-1) if out else torch.zeros(len(self.query), self._magnitude.shape[1], 0)

    def _emit(self, begin: int, end: int, *, last: bool) -> Tensor:
        """Run one window and give the masks from ``_start`` on that no later window changes."""
        mask = self._window(begin, end)[..., self._start - begin :]
        if self._tail is not None:
            length = min(self._tail.shape[-1], mask.shape[-1])
            fade = (torch.arange(length) + 0.5) / max(1, self._tail.shape[-1])
            mask[..., :length] = self._tail[..., :length] * (1 - fade) + mask[..., :length] * fade
        if last:
            return mask
        self._tail = mask[..., STEP:].clone()
        self._start += STEP
        drop = max(0, self._start - STEP) - self._base  # the last window may reach back by less than a step
        if drop > 0:
            self._magnitude = self._magnitude[..., drop:].clone()
            self._wave = self._wave[:, drop * self.model.hop :].clone()
            self._base += drop
        return mask[..., :STEP]

    def _window(self, begin: int, end: int) -> Float[Tensor, "query bin frame"]:
        hop = self.model.hop
        magnitude = self._magnitude[..., begin - self._base : end - self._base]
        wave = self._wave[:, (begin - self._base) * hop : (end - self._base) * hop]
        loudest = float(magnitude.max())
        if loudest > _LOUD:
            magnitude, wave = magnitude / loudest, wave / loudest
        power = magnitude.square()
        wave, magnitude = representative(wave), power.mean(dim=0).sqrt()[None]
        with torch.inference_mode():
            spec = torch.complex(magnitude, torch.zeros_like(magnitude))
            answer = self.model.answer(spec, wave[None], self.query[None], separations=self.separations)
        if float(power.mean()) / self.model.n_fft > _QUIET:
            self.presence.times_s.append(begin * hop / self.model.rate_hz)
            self.presence.values.append([float(p) for p in answer.presence[0]])
        mask = answer.mask[0].float().clone()
        return mask / mask.sum(dim=0, keepdim=True).clamp_min(1.0) if self.shared and len(mask) > 1 else mask


class NativeGrid:
    """Carries masks from the model's grid to the STFT grid of the recording's own rate.

    Args:
        model: Gives rate, window and hop of the masks.
        rate_hz: Rate of the recording.
    """

    def __init__(self, model: SeparatorModel, rate_hz: int) -> None:
        self.same = rate_hz == model.rate_hz
        scale = rate_hz / model.rate_hz
        n_fft = max(4, 2 * round(model.n_fft * scale / 2))
        self.stft = Stft(n_fft, min(n_fft // 2, max(1, round(model.hop * scale))))
        self.frames_per_mask = self.stft.hop / rate_hz * model.rate_hz / model.hop
        bins = torch.arange(self.stft.bins) * (rate_hz / n_fft) / (model.rate_hz / model.n_fft)
        top = model.n_fft // 2
        self._above = bins > top
        bins = bins.clamp(max=top)
        self._low = bins.floor().long().clamp(max=top - 1)
        self._share = (bins - self._low)[:, None]
        self._top_from = round(_TOP_HZ / model.rate_hz * model.n_fft)

    def needed(self, frame: int) -> int:
        """How many masks must be there before native frame ``frame`` can be masked."""
        return int(np.floor(frame * self.frames_per_mask)) + 2

    def masks(
        self, masks: Float[Tensor, "query bin mask"], offset: int, first: int, count: int
    ) -> Float[Tensor, "query freq frame"]:
        """Masks of native frames ``first .. first + count`` from model masks that start at ``offset``."""
        if self.same:
            return masks[..., first - offset : first - offset + count]
        place = (torch.arange(first, first + count, dtype=torch.float64) * self.frames_per_mask) - offset
        place = place.clamp(0, masks.shape[-1] - 1)
        left = place.floor().long()
        right = (left + 1).clamp(max=masks.shape[-1] - 1)
        share = (place - left).float()
        in_time = torch.lerp(masks[..., left], masks[..., right], share)
        out = torch.lerp(in_time[:, self._low], in_time[:, self._low + 1], self._share)
        if bool(self._above.any()):
            out[:, self._above] = in_time[:, self._top_from :].mean(dim=1, keepdim=True)
        return out


class StemStream:
    """From blocks of a recording to blocks of its stems.

    Args:
        model: The separator.
        query: One row a query.
        rate_hz: Rate of the recording.
        channels: Its channels.
        shared: See :class:`MaskStream`.
        separations: See :class:`MaskStream`.
    """

    def __init__(
        self,
        model: SeparatorModel,
        query: Float[Tensor, "query dim"],
        rate_hz: int,
        channels: int,
        *,
        shared: bool = True,
        separations: int = 1,
    ) -> None:
        if rate_hz < MIN_RATE_HZ:
            raise AudioError(
                f"the sample rate is {rate_hz} Hz",
                why=f"separation needs {MIN_RATE_HZ} Hz or more",
                hint="check the header; if it is wrong, set the rate that the recording was made with",
            )
        self.queries, self.channels = len(query), channels
        self.grid = NativeGrid(model, rate_hz)
        self.masks = MaskStream(model, query, channels, shared=shared, separations=separations)
        self._resampler = None if self.grid.same else StreamResampler(rate_hz, model.rate_hz, channels)
        self._forward = StftStream(self.grid.stft, channels)
        self._inverse = IstftStream(self.grid.stft, self.queries * channels)
        self._spec = torch.zeros(channels, self.grid.stft.bins, 0, dtype=torch.complex64)
        self._pending = torch.zeros(self.queries, model.n_fft // 2 + 1, 0)
        self._pending_from = 0
        self._frame = 0
        self._mixture = np.zeros((channels, 0), dtype=np.float32)
        self._input = np.zeros((channels, 0), dtype=np.float32)
        self._step = max(1, round(_BLOCK_S * rate_hz))
        self._length = 0

    def process(self, block: Float[np.ndarray, "channel time"], last: bool = False) -> StemBlock:
        """Take samples of the recording, give the stems' samples that are final; with ``last`` all that remain.

        The work is done in steps of one second whatever comes in, so that sums are always taken in the same order
        and the stems are the same bit for bit.
        """
        self._length += block.shape[1]
        if last and not self._length:
            raise AudioError("there are no samples to separate")
        waiting = np.concatenate([self._input, block], axis=1) if self._input.shape[1] else block
        whole = waiting.shape[1] // self._step * self._step
        with torch.inference_mode():
            out = [
                self._advance(waiting[:, at : at + self._step].copy()) for at in range(0, whole, self._step)
            ]
            self._input = waiting[:, whole:].copy()
            if last:
                out.append(self._advance(self._input, last=True))
        return _joined(out, self.queries, self.channels)

    def _advance(self, block: Float[np.ndarray, "channel time"], *, last: bool = False) -> StemBlock:
        """One step through both transforms."""
        self._mixture = np.concatenate([self._mixture, block], axis=1)
        low = block if self._resampler is None else self._resampler.process(block, last)
        masks = self.masks.process(torch.from_numpy(low), last)
        self._pending = torch.cat([self._pending, masks], dim=-1)
        spec = self._forward.process(torch.from_numpy(block), last).spec
        self._spec = torch.cat([self._spec, spec], dim=-1)
        return self._give(self._ready(last), last)

    def _ready(self, last: bool) -> int:
        """Native frames whose masks are there."""
        if last:
            return self._spec.shape[-1]
        masks = self._pending_from + self._pending.shape[-1]
        frames = int((masks - 2) / self.grid.frames_per_mask) - self._frame
        count = max(0, min(frames, self._spec.shape[-1]))
        while count and self.grid.needed(self._frame + count - 1) > masks:
            count -= 1
        return count

    def _give(self, count: int, last: bool) -> StemBlock:
        length = self._length if last else None
        masked = self._masked(count)
        wave = self._inverse.process(masked, length).numpy()
        targets = np.ascontiguousarray(wave).reshape(self.queries, self.channels, -1)
        ready = targets.shape[-1]
        mixture, self._mixture = self._mixture[:, :ready], self._mixture[:, ready:].copy()
        return StemBlock(targets, mixture - targets.sum(axis=0, dtype=np.float32))

    def _masked(self, count: int) -> Complex[Tensor, "stem freq frame"]:
        if count == 0:
            empty = torch.zeros(self.queries * self.channels, self.grid.stft.bins, 0)
            return torch.complex(empty, empty)
        masks = self.grid.masks(self._pending, self._pending_from, self._frame, count)
        masked = (masks[:, None] * self._spec[None, ..., :count]).flatten(0, 1)
        self._spec = self._spec[..., count:].clone()
        self._frame += count
        used = max(0, int(self._frame * self.grid.frames_per_mask) - 1 - self._pending_from)
        self._pending = self._pending[..., used:].clone()
        self._pending_from += used
        return masked


def _joined(blocks: list[StemBlock], queries: int, channels: int) -> StemBlock:
    if len(blocks) == 1:
        return blocks[0]
    if not blocks:
        empty = np.zeros((queries, channels, 0), dtype=np.float32)
        return StemBlock(empty, empty[0])
    return StemBlock(
        np.concatenate([one.targets for one in blocks], axis=-1),
        np.concatenate([one.residual for one in blocks], axis=-1),
    )


def stem_blocks(stream: StemStream, reader: AudioReader) -> Iterator[StemBlock]:
    """Read a recording to its end, one second at a time, and give its stems."""
    size = max(1, round(_BLOCK_S * reader.info.rate_hz))
    while True:
        block = reader.read(size)
        last = block.shape[1] == 0
        out = stream.process(block, last)
        if out.residual.shape[1]:
            yield out
        if last:
            return
