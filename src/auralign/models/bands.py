r"""Two ways between linear STFT bins and a shorter logarithmic frequency axis.

``LogWarp`` is the sampling grid of Sound-of-Pixels, CLIPSep and OmniSep. ``BandProjector`` pools *energy* into
overlapping triangles on the same axis, so no bin is skipped and a mask fitted in the band domain is the one that
minimises the error in the STFT domain.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float
from torch import Tensor, nn

_BASE = 21.0  # the published warp: y = (21^((u+1)/2) - 11) / 10 on [-1, 1]


def warp_to_linear(u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""Linear position of a warped one, both in [-1, 1]: :math:`y = (21^{(u+1)/2} - 11)/10`.

    Zhao et al. 2018 (Sound of Pixels), as used by CLIPSep and OmniSep.

    >>> warp_to_linear(torch.tensor([-1.0, 1.0])).tolist()
    [-1.0, 1.0]
    """
    return (_BASE ** ((u + 1) / 2) - 11) / 10


def linear_to_warp(y: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""Inverse of :func:`warp_to_linear`: :math:`u = 2\ln(10y + 11)/\ln 21 - 1`.

    >>> linear_to_warp(warp_to_linear(torch.tensor([0.25]))).tolist()
    [0.25]
    """
    return 2 * torch.log(10 * y + 11) / math.log(_BASE) - 1


class LogWarp(nn.Module):
    """Resample the frequency axis of an image between ``n_bins`` linear and ``n_rows`` warped rows, bilinearly.

    Args:
        n_bins: Linear STFT bins, 513 in the papers.
        n_rows: Warped rows, 256 in the papers.
    """

    def __init__(self, n_bins: int = 513, n_rows: int = 256) -> None:
        super().__init__()
        self.n_bins, self.n_rows = n_bins, n_rows

    def _sample(self, x: Tensor, rows: Tensor) -> Tensor:
        batch, _, _, frames = x.shape
        times = torch.linspace(-1, 1, frames, device=x.device, dtype=x.dtype)
        grid = torch.stack(
            [times.expand(len(rows), -1), rows.to(x)[:, None].expand(-1, frames)], dim=-1
        )  # (row, frame, [x y])
        return F.grid_sample(x, grid.expand(batch, -1, -1, -1), align_corners=True)

    def forward(
        self, x: Float[Tensor, "batch channel bin frame"]
    ) -> Float[Tensor, "batch channel row frame"]:
        """Linear bins to warped rows."""
        return self._sample(x, warp_to_linear(torch.linspace(-1, 1, self.n_rows, dtype=torch.float64)))

    def inverse(
        self, x: Float[Tensor, "batch channel row frame"]
    ) -> Float[Tensor, "batch channel bin frame"]:
        """Warped rows back to linear bins."""
        return self._sample(x, linear_to_warp(torch.linspace(-1, 1, self.n_bins, dtype=torch.float64)))


def band_centres(n_bins: int, n_bands: int) -> Float[Tensor, "band"]:
    """Band centres in bins: the published log axis, but never denser than one band a bin.

    Below the point where the log axis would put several bands into one bin the centres go up by one bin each, so that
    every band holds energy of its own.

    >>> band_centres(513, 128)[[0, 1, 2, 127]].round().tolist()
    [0.0, 1.0, 2.0, 512.0]
    """
    last = float(n_bins - 1)
    low, high = 0.0, 1.0  # the share of bands spent on the one-bin-a-band part
    grow = torch.arange(n_bands, dtype=torch.float64)

    def centres(linear: float) -> Tensor:
        ratio = 1.0 + linear  # geometric growth of the spacing
        steps = torch.clamp(ratio ** (grow - 1), min=1.0)
        steps[0] = 0.0
        return torch.cumsum(steps, 0)

    for _ in range(200):  # bisection on the growth rate: monotone in it
        mid = (low + high) / 2
        if float(centres(mid)[-1]) > last:
            high = mid
        else:
            low = mid
    return centres(low) * (last / float(centres(low)[-1]))


class BandProjector(nn.Module):
    r"""Triangular bands: energy pooling down, linear interpolation of masks up.

    With weights :math:`W_{bk}` (columns sum to one) the band energy is :math:`E_b = \sum_k W_{bk}|X_k|^2` and a band
    mask spreads as :math:`M_k = \sum_b W_{bk} M_b`.
    """

    weight: Tensor

    def __init__(self, n_bins: int = 513, n_bands: int = 128) -> None:
        super().__init__()
        if n_bands > n_bins:
            raise ValueError(f"{n_bands} bands do not fit into {n_bins} bins")
        self.n_bins, self.n_bands = n_bins, n_bands
        centre = band_centres(n_bins, n_bands)
        k = torch.arange(n_bins, dtype=torch.float64)
        upper = torch.searchsorted(centre, k.clamp(max=float(centre[-1]))).clamp(1, n_bands - 1)
        share = ((k - centre[upper - 1]) / (centre[upper] - centre[upper - 1])).clamp(0, 1)
        weight = torch.zeros(n_bands, n_bins, dtype=torch.float64)
        weight[upper, torch.arange(n_bins)] = share
        weight[upper - 1, torch.arange(n_bins)] += 1 - share
        self.register_buffer("weight", weight.float(), persistent=False)

    def forward(self, power: Float[Tensor, "*batch bin frame"]) -> Float[Tensor, "*batch band frame"]:
        """Pool powers (or any per-bin product) of linear bins into bands."""
        return torch.matmul(self.weight, power)

    def expand(self, mask: Float[Tensor, "*batch band frame"]) -> Float[Tensor, "*batch bin frame"]:
        """Spread a band mask over the linear bins."""
        return torch.matmul(self.weight.t(), mask)


def best_band_mask(
    mixture: Complex[Tensor, "*#batch bin frame"],
    source: Complex[Tensor, "*#batch bin frame"],
    bands: BandProjector,
) -> tuple[Float[Tensor, "*#batch band frame"], Float[Tensor, "*#batch band frame"]]:
    r"""Band energies :math:`E_b` of the mixture and the real band mask that brings it nearest to the source.

    Minimising :math:`\sum_k W_{bk}|m X_k - S_k|^2` over :math:`m` gives
    :math:`R_b = \sum_k W_{bk}\Re(X_k^* S_k) / E_b`; the error of any other mask is :math:`E_b (m - R_b)^2` more. It is
    the phase-sensitive mask of Erdogan et al. 2015, pooled.
    """
    energy = bands(mixture.real.square() + mixture.imag.square())
    cross = bands(mixture.real * source.real + mixture.imag * source.imag)
    return energy, cross / energy.clamp_min(1e-12)
