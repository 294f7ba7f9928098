r"""The P.835 network of DNSMOS as plain PyTorch, and what repetition saves it.

Reddy, Gopal, Cutler 2022 (arXiv:2110.01763); the weights are those of the published ONNX file. Front end: 16 kHz,
frames of 320 samples every 160, DFT by a kernel with the window in it, 161 bins,
:math:`\log_{10} \max(|X|^2, 10^{-12})`. Body: 3×3 convolutions with ReLU, 1 → 128 → 64 → 64 → 32, halved, → 32,
halved, → 32, halved, → 64; the largest value of each map; linear layers 128, 64, 3 with ReLU between.

*Tiles.* The wide layers run on 288 frames at a time and four more on each side, which a zero-padded edge spoils
and which are thrown away: the same numbers, from buffers below 25 MB, which the allocator reuses.

*bfloat16.* Only the convolutions are narrow. The first one's input and weights go as two bfloat16 parts each,
:math:`x = x_1 + x_2`, in four channels, so that a log spectrum keeps 16 bits of its mantissa.

*Repetition.* The body commutes with a shift by 8 frames (1,280 samples) away from its edges, and ends in a maximum.
See :func:`without_repetition`.
"""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from auralign.runtime.device import bfloat16_is_fast
from auralign.runtime.onnx_reader import read_onnx

FRAME, HOP, BINS = 320, 160, 161
TINY_POWER = 1e-12
WIDTHS = (1, 128, 64, 64, 32, 32, 32, 64)
WIDE = 4
"""Convolutions before the first pooling; each reaches one frame to either side."""
DENSE = (64, 128, 64, 3)
STRIDE_FRAMES = 8
EDGE_FRAMES = 44
"""Frames one value of the last map depends on: 18 before its first and 18 after its eighth."""
TILE_FRAMES = 288


def without_repetition(samples: int, period: int) -> int:
    r"""Samples at the head of a periodic window that have the same score as all of it.

    A value of the last map starts at frame :math:`8o` and depends on frames :math:`8o - 18 … 8o + 25`. Take
    away whole periods of a multiple of 8 frames: both edges see what they saw, the frame count modulo 8 (what
    pooling drops at the end) is the same, and every value in between is still there when one period of them is.
    That leaves the maximum as it was. It takes :math:`P + 44` frames, ``P`` those of the period.

    Args:
        samples: Length of the window.
        period: What it repeats after; its least common multiple with 1,280 samples is what can go.

    >>> without_repetition(144_160, 33_280)
    44320
    >>> without_repetition(144_160, 33_281), without_repetition(144_160, 80_000)
    (144160, 144160)
    """
    whole = math.lcm(period, STRIDE_FRAMES * HOP)
    spare = samples // HOP - 1 - EDGE_FRAMES - whole // HOP
    return samples - max(0, spare * HOP // whole) * whole


class P835Net(nn.Module):
    """Frozen network: raw SIG, BAK and OVRL of windows of any one length.

    Args:
        narrow: Convolve in bfloat16, where the CPU is faster at it; elsewhere in float32 all the same.
    """

    spectrum: Tensor

    def __init__(self, *, narrow: bool = False) -> None:
        super().__init__()
        self.narrow = narrow and bfloat16_is_fast()
        self.register_buffer("spectrum", torch.empty(FRAME, 2 * BINS))
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(WIDTHS))
        self.dense = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(DENSE))

    def log_power(self, windows: Float[Tensor, "window time"]) -> Float[Tensor, "window frame 161"]:
        """Log power spectrum; one frame each 10 ms, none that is not whole."""
        real, imag = (windows.unfold(1, FRAME, HOP) @ self.spectrum).chunk(2, dim=-1)
        return (real.square() + imag.square()).clamp_min(TINY_POWER).log10()

    def forward(self, windows: Float[Tensor, "window time"]) -> Float[Tensor, "window 3"]:
        """Raw scores of each window, which needs 80 ms at least for the last map to have a value."""
        maps = [
            self._maps(one) for one in self.log_power(windows).split(1)
        ]  # larger buffers cost more than they save
        heard: Tensor = torch.cat(maps)
        for i, layer in enumerate(self.dense):
            heard = layer(F.relu_(heard) if i else heard)
        return heard

    def _maps(self, log_power: Float[Tensor, "1 frame 161"]) -> Float[Tensor, "1 64"]:
        frames = log_power.shape[1]
        planes, tiles = self._planes(log_power), []
        for first in range(0, frames, TILE_FRAMES):
            last = min(first + TILE_FRAMES, frames)
            from_frame, to_frame = max(first - WIDE, 0), min(last + WIDE, frames)
            x = planes[:, :, from_frame:to_frame]
            for conv in self.convs[:WIDE]:
                x = conv(x).relu_()
            tiles.append(F.max_pool2d(x[:, :, first - from_frame : last - from_frame], 2))
        x = torch.cat(tiles, dim=2)
        for conv in self.convs[WIDE:-1]:
            x = F.max_pool2d(conv(x).relu_(), 2)
        last_map: Tensor = self.convs[-1](x).relu_()
        return last_map.amax(dim=(2, 3)).float()

    def _planes(self, x: Float[Tensor, "1 frame 161"]) -> Float[Tensor, "1 plane frame 161"]:
        """Input of the first convolution, channels last; one channel alone would not be taken for that."""
        if not self.narrow:
            return torch.stack([x, torch.zeros_like(x)], dim=-1).permute(0, 3, 1, 2)
        coarse, fine = _two_parts(x)
        return torch.stack([coarse, fine, coarse, fine], dim=-1).permute(0, 3, 1, 2)

    def prepare(self) -> None:
        """Lays the loaded weights out as :meth:`forward` takes them."""
        if self.narrow:
            coarse, fine = _two_parts(self.convs[0].get_parameter("weight"))
            planes = [coarse, coarse, fine, fine]
            self.convs.to(torch.bfloat16)
        else:
            weight = self.convs[0].get_parameter("weight")
            planes = [weight, torch.zeros_like(weight)]
        self.convs[0].weight = nn.Parameter(torch.cat(planes, dim=1), requires_grad=False)
        for conv in self.convs:
            weight = conv.get_parameter("weight")
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)


def _two_parts(x: Float[Tensor, "..."]) -> tuple[Tensor, Tensor]:
    coarse = x.to(torch.bfloat16)
    return coarse, (x - coarse.float()).to(torch.bfloat16)


def load_p835(file: Path, *, narrow: bool = False) -> P835Net:
    """The network with the weights of the published ONNX file, frozen, in evaluation mode, on the CPU."""
    tensors = {name: torch.from_numpy(x) for name, x in read_onnx(file.read_bytes()).tensors.items()}
    kernels = [tensors[f"time2freq/stft-{part}/kernel:0"][:, :, 0].T for part in ("real", "imag")]
    state = {"spectrum": torch.cat(kernels, dim=1)}
    for i in range(len(WIDTHS) - 1):
        name = f"conv2d_{i}" if i else "conv2d"
        state[f"convs.{i}.weight"] = tensors[f"{name}/kernel:0"]
        state[f"convs.{i}.bias"] = tensors[f"{name}/bias:0"]
    for i, name in enumerate(("dense", "dense_1", "dense_3")):
        place = f"mos_estimator_logpow/{name}"
        state[f"dense.{i}.weight"] = tensors[f"{place}/MatMul/ReadVariableOp/resource:0"].T
        state[f"dense.{i}.bias"] = tensors[f"{place}/BiasAdd/ReadVariableOp/resource:0"]
    model = P835Net(narrow=narrow)
    model.load_state_dict(state)
    model.eval().requires_grad_(False).prepare()
    return model
