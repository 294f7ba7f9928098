r"""NCSN++ for complex spectrograms, the network of SGMSE+ and flowmse, in plain PyTorch.

Song et al. 2021 (arXiv:2011.13456), Appendix H, as SGMSE+ (Richter et al. 2023, arXiv:2208.05830) uses it; flowmse
(Lee et al., arXiv:2508.06840) took it over unchanged. A U-Net of seven levels over the four channels Re x_t, Im x_t,
Re y, Im y:

* down: two residual blocks a level (attention after each where the map has 16 frequencies), one that halves, to which
  the input itself is added, halved as often (*input skip*);
* middle: residual block, attention, residual block;
* up: three residual blocks a level, each reading one map of the way down, attention at 16 frequencies, one that
  doubles; every level adds its answer to that of the level below, doubled (*output skip*);
* the sum of answers is divided by t and made complex by a 1×1 convolution, :math:`F(x_t, y, t) = W h / t + b`.

In both projects the model is minus the network. Here the sign is part of W and b (see `public_speech`), so that the
network *is* the velocity (flowmse) or the score (SGMSE+).

Frames are padded with zeros to a multiple of 2^(levels − 1), 64, and cut again: any number of frames goes in.

How it was verified: the authors' code of both projects ran beside it with the same random weights; see
``tests/fixtures/ncsnpp/README.md`` for the numbers, ``tests/models/test_ncsnpp.py`` for the golden file that remains.

Symbols: x_t state, y noisy recording, both compressed complex spectrograms; t time of each item, 0 < t ≤ 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float
from torch import Tensor, nn

from auralign.errors import UsageError
from auralign.models.ncsnpp_blocks import (
    Answer,
    Attention,
    FourierTime,
    HearInput,
    ResidualBlock,
    convolution,
    double,
    halve,
)

MULTIPLIERS = (1, 1, 2, 2, 2, 2, 2)
"""Channels of each level, in units of the width."""
PARAMETERS = 65_590_822
"""Numbers in the network of the default size, the 128 frequencies of the time features included."""
CHANNELS = 4


class _Down(nn.Module):
    """One level of the way down; keeps every map that the way up reads."""

    def __init__(
        self, inputs: int, outputs: int, time: int, blocks: int, *, attend: bool, last: bool
    ) -> None:
        super().__init__()
        widths = [inputs] + [outputs] * blocks
        self.blocks = nn.ModuleList(ResidualBlock(i, outputs, time) for i in widths[:-1])
        self.attention = nn.ModuleList(Attention(outputs) for _ in self.blocks if attend)
        self.coarser = None if last else ResidualBlock(outputs, outputs, time, "halve")
        self.hear = None if last else HearInput(CHANNELS, outputs)
        self.widths = [outputs] * (blocks if last else blocks + 1)

    def forward(self, h: Tensor, image: Tensor, time: Tensor) -> tuple[list[Tensor], Tensor]:
        """Maps made, shallow to deep, and the input at the resolution of the last one."""
        maps = []
        for index, block in enumerate(self.blocks):
            h = block(h, time)
            h = self.attention[index](h) if self.attention else h
            maps.append(h)
        if self.coarser is not None and self.hear is not None:
            image = halve(image)
            maps.append(self.hear(image, self.coarser(h, time)))
        return maps, image


class _Middle(nn.Module):
    """What happens at the lowest resolution."""

    def __init__(self, width: int, time: int) -> None:
        super().__init__()
        self.first, self.second = ResidualBlock(width, width, time), ResidualBlock(width, width, time)
        self.attention = Attention(width)

    def forward(self, h: Tensor, time: Tensor) -> Tensor:
        out: Tensor = self.second(self.attention(self.first(h, time)), time)
        return out


class _Up(nn.Module):
    """One level of the way up."""

    def __init__(
        self, inputs: int, skips: list[int], outputs: int, time: int, *, attend: bool, last: bool
    ) -> None:
        super().__init__()
        widths = [inputs] + [outputs] * (len(skips) - 1)
        self.blocks = nn.ModuleList(
            ResidualBlock(i + s, outputs, time) for i, s in zip(widths, skips, strict=True)
        )
        self.attention = Attention(outputs) if attend else None
        self.answer = Answer(outputs, CHANNELS)
        self.finer = None if last else ResidualBlock(outputs, outputs, time, "double")

    def forward(
        self, h: Tensor, maps: list[Tensor], answer: Tensor | None, time: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The map for the next level, and the sum of answers so far; takes its maps off the list."""
        for block in self.blocks:
            h = block(torch.cat([h, maps.pop()], dim=1), time)
        h = h if self.attention is None else self.attention(h)
        own = self.answer(h)
        answer = own if answer is None else double(answer) + own
        return (h if self.finer is None else self.finer(h, time)), answer


class NCSNpp(nn.Module):
    """Complex spectrograms x_t and y and a time to a complex spectrogram; the defaults are the published size.

    Args:
        width: Channels of the first level; a multiple of 4.
        multipliers: Channels of each level, in units of the width.
        blocks: Residual blocks of a level on the way down; one more on the way up.
        attention: Numbers of frequencies at which maps attend to themselves.
        freqs: Frequencies of the spectrograms.
        time_scale: Spread of the Fourier frequencies of ln t.
        divide_by_time: Divide the answer by t before the last convolution, as both projects do.
    """

    def __init__(
        self,
        *,
        width: int = 128,
        multipliers: Sequence[int] = MULTIPLIERS,
        blocks: int = 2,
        attention: Sequence[int] = (16,),
        freqs: int = 256,
        time_scale: float = 16.0,
        divide_by_time: bool = True,
    ) -> None:
        super().__init__()
        self.freqs, self.divide_by_time = freqs, divide_by_time
        self.grain = 2 ** max(len(multipliers) - 1, 0)
        _check(width, multipliers, freqs, self.grain)
        time, last = 4 * width, len(multipliers) - 1
        self.out = nn.Conv2d(CHANNELS, 2, 1)
        self.time = FourierTime(width, time_scale)
        self.first = convolution(CHANNELS, width, 3)
        widths, skips = [width * m for m in multipliers], [width]
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        inputs = width
        for level, outputs in enumerate(widths):
            attend = freqs // 2**level in attention
            down = _Down(inputs, outputs, time, blocks, attend=attend, last=level == last)
            self.down.append(down)
            skips += down.widths
            inputs = outputs
        self.middle = _Middle(inputs, time)
        for level in reversed(range(last + 1)):
            attend = freqs // 2**level in attention
            taken = [skips.pop() for _ in range(blocks + 1)]
            self.up.append(_Up(inputs, taken, widths[level], time, attend=attend, last=level == 0))
            inputs = widths[level]

    def forward(
        self,
        x_t: Complex[Tensor, "batch freq frame"],
        y: Complex[Tensor, "batch freq frame"],
        t: Float[Tensor, " batch"],
    ) -> Complex[Tensor, "batch freq frame"]:
        """F(x_t, y, t); each item may have a time of its own.

        Raises:
            UsageError: Spectrograms of another number of frequencies, or without frames.
        """
        frames = x_t.shape[-1]
        if x_t.shape[1] != self.freqs or not frames:
            raise UsageError(
                f"spectrograms of {x_t.shape[1]} frequencies and {frames} frames do not fit",
                where="NCSNpp",
                why=f"it was made for {self.freqs} frequencies",
                hint="SGMSE and flowmse use n_fft 510 and hop 128",
            )
        image = torch.stack([x_t.real, x_t.imag, y.real, y.imag], dim=1)
        image = F.pad(image, (0, -frames % self.grain))
        answer = self._answer(image, self.time(t))
        if self.divide_by_time:
            answer = answer / t[:, None, None, None]
        out = self.out(answer)[..., :frames]
        return torch.complex(out[:, 0], out[:, 1])

    def _answer(
        self, image: Float[Tensor, "batch 4 freq frame"], time: Float[Tensor, "batch dim"]
    ) -> Float[Tensor, "batch 4 freq frame"]:
        h = self.first(image)
        maps = [h]
        for down in self.down:
            made, image = down(maps[-1], image, time)
            maps += made
        h, answer = self.middle(maps[-1], time), None
        for up in self.up:
            h, answer = up(h, maps, answer, time)
        return cast(Tensor, answer)


def _check(width: int, multipliers: Sequence[int], freqs: int, grain: int) -> None:
    if width < 4 or width % 4 or not multipliers or min(multipliers) < 1:
        raise UsageError(
            f"no network has width {width} and multipliers {tuple(multipliers)}",
            where="NCSNpp",
            hint="use a multiple of 4, such as 128, and (1, 1, 2, 2, 2, 2, 2)",
        )
    if freqs < 1 or freqs % grain:
        raise UsageError(
            f"{freqs} frequencies cannot be halved {len(multipliers) - 1} times",
            where="NCSNpp",
            hint=f"use a multiple of {grain}, or fewer levels",
        )


def published_modules(network: NCSNpp) -> Iterator[nn.Module]:
    """The parts of the network in the order of the published ``all_modules`` list, which names tensors by index."""
    yield from (network.time, network.time.first, network.time.second, network.first)
    for down in network.down:
        assert isinstance(down, _Down)
        for index, block in enumerate(down.blocks):
            yield block
            yield from down.attention[index : index + 1]
        yield from (part for part in (down.coarser, down.hear) if part is not None)
    yield from (network.middle.first, network.middle.attention, network.middle.second)
    for up in network.up:
        assert isinstance(up, _Up)
        yield from up.blocks
        yield from (part for part in (up.attention,) if part is not None)
        yield from (up.answer.norm, up.answer.conv)
        yield from (part for part in (up.finer,) if part is not None)
