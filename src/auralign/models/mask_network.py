"""What every separator network offers: masks on a grid of its own, for any number of queries after one analysis."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from auralign.models.bands import BandProjector
from auralign.models.encoders import Backbones


@dataclass(frozen=True)
class GridAnswer:
    """What a network says of each query on its own grid of rows and frames, in float32."""

    logits: Float[Tensor, "batch query row frame"]
    """Their sigmoid is the mask."""
    presence: Float[Tensor, "batch query"]
    """Logits that the queried sound is there."""


@dataclass(frozen=True)
class MaskAnswer:
    """Masks over the linear bins and the probability that each queried sound is there."""

    mask: Float[Tensor, "batch query bin frame"]
    presence: Float[Tensor, "batch query"]


class MaskNetwork(nn.Module, ABC):
    """A network that analyses a mixture once and then answers queries.

    The grid is whatever the network works on: pooled bands, warped rows or the linear bins themselves. Losses and mask
    policies live there; :meth:`to_bins` brings a mask to the STFT.

    Attributes:
        n_fft: Window of the STFT it reads, samples at 16 kHz.
        hop: Its hop, samples.
    """

    n_fft: int = 1024
    hop: int = 256

    @property
    def projector(self) -> BandProjector | None:
        """The way to its bands, where the grid is one of bands."""
        return None

    @abstractmethod
    def analyse(
        self, spec: Complex[Tensor, "batch bin frame"], wave: Float[Tensor, "batch time"]
    ) -> dict[str, Tensor]:
        """The part that no query takes part in.

        Returns:
            What :meth:`respond` needs, and ``energy``: the power in each cell of the grid, ``batch row frame``,
            float32 and without gradient.
        """

    @abstractmethod
    def respond(self, state: dict[str, Tensor], query: Float[Tensor, "batch query dim"]) -> GridAnswer:
        """Mask and presence logits of any number of queries after one :meth:`analyse`, for all its frames."""

    @abstractmethod
    def to_bins(self, mask: Float[Tensor, "batch any row frame"]) -> Float[Tensor, "batch any bin frame"]:
        """Masks of the grid spread over the linear STFT bins."""

    def answer(self, state: dict[str, Tensor], query: Float[Tensor, "batch query dim"]) -> MaskAnswer:
        """Masks over the linear bins and presence probabilities."""
        out = self.respond(state, query)
        return MaskAnswer(self.to_bins(torch.sigmoid(out.logits)), torch.sigmoid(out.presence))

    def share(self, backbones: Backbones) -> None:
        """Use frozen encoders that are loaded elsewhere already; most networks read none."""
