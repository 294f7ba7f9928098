r"""A small network for flows of compressed spectra: a U-Net on 64 bands that answers in all bins.

It is asked for clean data, not for a velocity: :math:`\hat x_0 = A \odot y + B \odot x_t + r` with complex masks
A, B and a residual r from one decoder; :math:`v = (x_t - \hat x_0) / t` follows. Near t = 0 that is the velocity of
a state that hardly changes, and near t = 1 a predictive enhancer, which a network of this size learns well.

Patches of four bins by two frames enter together (a strided convolution) and leave together (a convolution whose
channels are the patch), so nearly all work is done on an eighth of the places; a place then stands for 16 ms, as in
other small enhancers. Two levels halve rows and frames, the third halves rows; the deepest blocks are dilated in time
and hear about two seconds on each side. Batch norms are frozen outside training: the answer for one item depends on
nothing but that item.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Complex, Float
from torch import Tensor, nn

BINS, FRAMES = 4, 2
"""Bins and frames that make a patch."""
PARTS = 6
"""Real numbers that say what becomes of a bin: two complex masks and a complex residual."""
TIMES = 16
"""Sines and cosines that tell the time."""


def time_features(t: Float[Tensor, " batch"]) -> Float[Tensor, "batch 32"]:
    """Sines and cosines of t, from one half turn over [0, 1] to 64 turns."""
    turns = 2.0 ** torch.linspace(-1, 6, TIMES, device=t.device)
    angle = 2 * math.pi * t[:, None] * turns
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class ResidualBlock(nn.Module):
    """Two 3 × 3 convolutions with a norm, a gain and shift by time and a SiLU between, added to their input.

    Args:
        channels: Width.
        clock: Length of the time's embedding.
        dilation: Of both convolutions, in frames.
    """

    def __init__(self, channels: int, clock: int, dilation: int = 1) -> None:
        super().__init__()
        pad = (1, dilation)
        self.conv = nn.Conv2d(channels, channels, 3, padding=pad, dilation=(1, dilation), bias=False)
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.film = nn.Linear(clock, 2 * channels)
        self.out = nn.Conv2d(channels, channels, 3, padding=pad, dilation=(1, dilation))
        nn.init.zeros_(self.out.weight)  # a block begins as the identity

    def forward(
        self, x: Float[Tensor, "batch channel row frame"], clock: Float[Tensor, "batch clock"]
    ) -> Float[Tensor, "batch channel row frame"]:
        """Same shape out."""
        gain, shift = self.film(clock)[:, :, None, None].chunk(2, dim=1)
        inner = self.norm(self.conv(x))
        out: Tensor = x + self.out(F.silu(torch.addcmul(shift.to(inner), inner, 1 + gain.to(inner))))
        return out


class BandUnet(nn.Module):
    """See the module.

    Args:
        widths: Channels of the levels, from 64 rows down to 8.
        blocks: Residual blocks of each level on the way down; the way up has one each.
        clock: Length of the time's embedding.
        bins: Frequencies, a multiple of 32.
    """

    def __init__(
        self,
        *,
        widths: Sequence[int] = (32, 64, 96, 128),
        blocks: Sequence[int] = (1, 2, 2, 4),
        clock: int = 64,
        bins: int = 256,
    ) -> None:
        super().__init__()
        if len(widths) != 4 or len(blocks) != 4 or bins % 32:
            raise ValueError(
                f"widths {widths}, blocks {blocks}, bins {bins}: needs 4, 4 and a multiple of 32"
            )
        self.clock = nn.Sequential(nn.Linear(2 * TIMES, clock), nn.SiLU(), nn.Linear(clock, clock), nn.SiLU())
        self.stem = nn.Conv2d(
            PARTS, widths[0], (BINS, 2 * FRAMES), stride=(BINS, FRAMES), padding=(0, FRAMES // 2)
        )
        self.pitch = nn.Parameter(torch.zeros(widths[0], bins // BINS, 1))
        strides = ((2, 2), (2, 2), (2, 1))
        self.down = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=stride, padding=1)
            for a, b, stride in zip(widths[:-1], widths[1:], strides, strict=True)
        )
        self.levels = nn.ModuleList(
            nn.ModuleList(
                ResidualBlock(width, clock, 2**k if level == len(widths) - 1 else 1) for k in range(count)
            )
            for level, (width, count) in enumerate(zip(widths, blocks, strict=True))
        )
        self.up = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in itertools.pairwise(widths))
        self.join = nn.ModuleList(nn.Conv2d(2 * a, a, 1) for a in widths[:-1])
        self.rise = nn.ModuleList(ResidualBlock(a, clock) for a in widths[:-1])
        self.head = nn.Conv2d(widths[0], BINS * FRAMES * PARTS, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        with torch.no_grad():  # begins as an equal mean of both inputs
            said = torch.tensor([0.5, 0.0, 0.5, 0.0, 0.0, 0.0]).repeat(BINS * FRAMES)
            self.head.get_parameter("bias").copy_(said)

    def forward(
        self,
        x_t: Complex[Tensor, "batch freq frame"],
        noisy: Complex[Tensor, "batch freq frame"],
        t: Float[Tensor, " batch"],
    ) -> Complex[Tensor, "batch freq frame"]:
        """Expected clean data x̂₀ of the states x_t around the noisy recordings y."""
        frames = x_t.shape[-1]
        size = frames + -frames % (4 * FRAMES)
        seen = torch.stack([x_t.real, x_t.imag, noisy.real, noisy.imag, x_t.abs(), noisy.abs()], dim=1)
        seen = F.pad(seen, (0, size - frames)).contiguous(memory_format=torch.channels_last)
        clock = self.clock(time_features(t))
        x = self.stem(seen) + self.pitch
        kept: list[Tensor] = []
        for level, blocks in enumerate(self.levels):
            if level:
                kept.append(x)
                x = self.down[level - 1](x)
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x, clock)
        for level in reversed(range(len(kept))):
            above = F.interpolate(self.up[level](x), size=kept[level].shape[-2:])
            x = self.rise[level](self.join[level](torch.cat([kept[level], above], dim=1)), clock)
        said = self.head(F.silu(x)).float()
        said = rearrange(
            said, "b (bin tick part) row frame -> part b (row bin) (frame tick)", bin=BINS, tick=FRAMES
        )[..., :frames]
        of_noisy, of_state, rest = (torch.complex(said[k], said[k + 1]) for k in (0, 2, 4))
        return of_noisy * noisy + of_state * x_t + rest
