"""The U-Net of Sound-of-Pixels, CLIPSep and OmniSep: log-magnitude in, latent masks out."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class _Down(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, *, first: bool, innermost: bool) -> None:
        parts: list[nn.Module] = [] if first else [nn.LeakyReLU(0.2)]
        parts.append(nn.Conv2d(inputs, outputs, 4, stride=2, padding=1, bias=False))
        if not (first or innermost):
            parts.append(nn.BatchNorm2d(outputs))
        super().__init__(*parts)


class _Up(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, *, last: bool) -> None:
        parts: list[nn.Module] = [
            nn.ReLU(),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=last),
        ]
        if not last:
            parts.append(nn.BatchNorm2d(outputs))
        super().__init__(*parts)


class MaskUNet(nn.Module):
    """U-Net with ``levels`` stride-2 steps and concatenated skips.

    Widths double from ``width`` up to ``8 * width``. With 7 levels, width 64 and 32 outputs it is the published net.
    The bin and frame counts of the input must be multiples of ``2 ** levels``.

    Args:
        levels: Down-sampling steps, at least 2.
        width: Channels after the first step.
        outputs: Latent masks.
    """

    def __init__(self, *, levels: int = 7, width: int = 64, outputs: int = 32) -> None:
        super().__init__()
        if levels < 2:
            raise ValueError(f"levels is {levels}; the U-Net needs at least 2")
        self.levels = levels
        widths = [min(width * 2**i, width * 8) for i in range(levels)]
        self.norm = nn.BatchNorm2d(1)
        self.downs = nn.ModuleList(
            _Down(i, o, first=n == 0, innermost=n == levels - 1)
            for n, (i, o) in enumerate(zip([1, *widths], widths, strict=False))
        )
        ups = []
        for n in reversed(range(levels)):
            inputs = widths[n] if n == levels - 1 else 2 * widths[n]
            ups.append(_Up(inputs, outputs if n == 0 else widths[n - 1], last=n == 0))
        self.ups = nn.ModuleList(ups)
        self.apply(_initialise)

    def forward(
        self, log_magnitude: Float[Tensor, "batch 1 row frame"]
    ) -> Float[Tensor, "batch mask row frame"]:
        """Latent masks before the gate, one value a bin."""
        x: Tensor = self.norm(log_magnitude)
        skips = []
        for down in self.downs:
            x = down(x)
            skips.append(x)
        x = self.ups[0](skips.pop())
        for up in list(self.ups)[1:]:
            x = up(torch.cat([skips.pop(), x], dim=1))
        return x


def _initialise(module: nn.Module) -> None:
    """Weights as published: convolutions N(0, 0.001), batch norms N(1, 0.02), linear layers N(0, 0.0001)."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.001)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.0001)
        nn.init.zeros_(module.bias)
