r"""Building blocks of NCSN++: smoothed resampling, residual blocks that hear the time, attention, Fourier times.

Song et al. 2021 (arXiv:2011.13456), Appendix H: residual blocks as in BigGAN, resampling with the FIR filter
(1, 3, 3, 1) of StyleGAN2, sums scaled by :math:`1/\sqrt 2`, Fourier features of the logarithm of the noise level.
Every map is "batch channel freq frame".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Map = Float[Tensor, "batch channel freq frame"]

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)

FIR = (1.0, 3.0, 3.0, 1.0)
"""Filter of the resampling, along frequency and along time; it sums to 8."""
NORM_EPS = 1e-6
NEARLY_ZERO = 1e-10
"""Scale of weights that begin at zero: a residual block begins as its shortcut."""


def halve(x: Map) -> Float[Tensor, "batch channel freq2 frame2"]:
    r"""Every second value of the smoothed map, :math:`y_n = \tfrac18 (x_{2n-1} + 3x_{2n} + 3x_{2n+1} + x_{2n+2})`.

    Along both axes, with zeros outside; both lengths must be even.

    >>> halve(torch.ones(1, 1, 8, 8))[0, 0, 1].tolist()
    [0.875, 1.0, 1.0, 0.875]
    """
    return F.conv2d(x, _kernel(x, 1 / 64), stride=2, padding=1, groups=x.shape[1])


def double(x: Map) -> Float[Tensor, "batch channel freq2 frame2"]:
    r"""Twice the resolution, :math:`y_{2n} = \tfrac14 (x_{n-1} + 3x_n)`, :math:`y_{2n+1} = \tfrac14 (3x_n + x_{n+1})`.

    Along both axes, with zeros outside; four times the transpose of :func:`halve`.

    >>> double(torch.ones(1, 1, 2, 2))[0, 0, 1].tolist()
    [0.75, 1.0, 1.0, 0.75]
    """
    return F.conv_transpose2d(x, _kernel(x, 1 / 16), stride=2, padding=1, groups=x.shape[1])


RESAMPLE: Mapping[str, Callable[[Tensor], Tensor]] = {"": lambda x: x, "halve": halve, "double": double}
"""What a residual block does to the resolution."""


def _kernel(x: Tensor, gain: float) -> Tensor:
    taps = torch.tensor(FIR, dtype=x.dtype, device=x.device)
    return (torch.outer(taps, taps) * gain).expand(x.shape[1], 1, -1, -1)


def group_norm(channels: int) -> nn.GroupNorm:
    """Group norm of at least four channels a group, at most 32 groups."""
    return nn.GroupNorm(min(channels // 4, 32), channels, eps=NORM_EPS)


def convolution(inputs: int, outputs: int, size: int, *, scale: float = 1.0) -> nn.Conv2d:
    """A convolution that keeps the size of maps, begun by :func:`begin`."""
    return begin(nn.Conv2d(inputs, outputs, size, padding=size // 2), scale)


def begin(layer: Layer, scale: float = 1.0) -> Layer:
    r"""Uniform weights of variance ``scale`` / mean of inputs and outputs of a weight, no bias.

    Args:
        layer: What is begun.
        scale: 1, or :data:`NEARLY_ZERO` for the last layer of a residual.
    """
    weight = layer.weight
    fan = weight[0, 0].numel() * (weight.shape[0] + weight.shape[1]) / 2
    reach = math.sqrt(3 * scale / fan)
    nn.init.uniform_(weight, -reach, reach)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class FourierTime(nn.Module):
    r"""Times to vectors: :math:`\sin` and :math:`\cos` of :math:`2\pi w \ln t`, two linear layers, SiLU between them.

    Args:
        width: Number of frequencies :math:`w`, drawn once from N(0, scale²) and never trained.
        scale: Their spread; 16 in SGMSE and flowmse.
    """

    frequencies: Tensor

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(width) * scale)
        self.first = begin(nn.Linear(2 * width, 4 * width))
        self.second = begin(nn.Linear(4 * width, 4 * width))

    def forward(self, t: Float[Tensor, " batch"]) -> Float[Tensor, "batch dim"]:
        """Vectors of times above 0."""
        # The product is taken in the order of the published networks: at ln t of some units times 16 a different
        # rounding of the angle would show in the sixth digit.
        angle = t.log()[:, None] * self.frequencies[None, :] * 2 * math.pi
        features = torch.cat([angle.sin(), angle.cos()], dim=-1)
        heard: Tensor = self.second(F.silu(self.first(features)))
        return heard


class ResidualBlock(nn.Module):
    r"""Norm, SiLU, resampling, 3×3 convolution plus the time, norm, SiLU, 3×3 convolution; (shortcut + that) / √2.

    Args:
        inputs: Channels that come in.
        outputs: Channels made.
        time: Length of the time vector.
        resample: ``halve``, ``double`` or neither; the shortcut is resampled too.
    """

    def __init__(self, inputs: int, outputs: int, time: int, resample: str = "") -> None:
        super().__init__()
        self.resample = RESAMPLE[resample]
        self.norm_1 = group_norm(inputs)
        self.conv_1 = convolution(inputs, outputs, 3)
        self.time = begin(nn.Linear(time, outputs))
        self.norm_2 = group_norm(outputs)
        self.conv_2 = convolution(outputs, outputs, 3, scale=NEARLY_ZERO)
        same = inputs == outputs and not resample
        self.shortcut = nn.Identity() if same else convolution(inputs, outputs, 1)

    def forward(
        self, x: Map, time: Float[Tensor, "batch dim"]
    ) -> Float[Tensor, "batch channel2 freq2 frame2"]:
        """The map at its new resolution."""
        h = self.resample(F.silu(self.norm_1(x)))
        h = self.conv_1(h) + self.time(F.silu(time))[:, :, None, None]
        h = self.conv_2(F.silu(self.norm_2(h)))
        shortcut: Tensor = self.shortcut(self.resample(x))
        out: Tensor = (shortcut + h) / math.sqrt(2)
        return out


class Attention(nn.Module):
    """One head of self-attention over all places of a map, without positions; (map + that) / √2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        # The published layers begin the three projections with a tenth of the usual variance.
        self.query, self.key, self.value = (begin(nn.Linear(channels, channels), 0.1) for _ in range(3))
        self.out = begin(nn.Linear(channels, channels), NEARLY_ZERO)

    def forward(self, x: Map) -> Map:
        """Same shape out."""
        places = self.norm(x).flatten(2).transpose(1, 2)
        heard = F.scaled_dot_product_attention(self.query(places), self.key(places), self.value(places))
        h: Tensor = self.out(heard).transpose(1, 2).reshape(x.shape)
        out: Tensor = (x + h) / math.sqrt(2)
        return out


class HearInput(nn.Module):
    """The downsampled input, 1×1 convolved, added to a map: the input-skip pyramid."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.conv = convolution(inputs, channels, 1)

    def forward(self, x: Float[Tensor, "batch input freq frame"], h: Map) -> Map:
        """Sum of both at the resolution of the map."""
        heard: Tensor = self.conv(x)
        return heard + h


class Answer(nn.Module):
    """Norm, SiLU, 3×3 convolution: what one level adds to the output-skip pyramid."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.conv = convolution(channels, outputs, 3, scale=NEARLY_ZERO)

    def forward(self, h: Map) -> Float[Tensor, "batch output freq frame"]:
        """What this level says, four channels."""
        answer: Tensor = self.conv(F.silu(self.norm(h)))
        return answer
