r"""Complex spectra with compressed magnitudes, in which speech is enhanced by diffusion and flows.

.. math:: X = \beta \, |S|^{\alpha} e^{i \angle S}

with α = 0.5, β = 0.15 (Welker et al. 2022, arXiv:2203.17004; Richter et al. 2023, arXiv:2208.05830, SGMSE+): the heavy
tail of speech spectra becomes light enough for Gaussian noise of one level. 510 samples a frame make 256 bins.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from jaxtyping import Complex, Float
from torch import Tensor

from auralign.audio.stft import Stft
from auralign.errors import UsageError

LEAST = 1e-12
"""Magnitudes below are raised to it where they are divided by, so that zeros stay zeros."""


@dataclass(frozen=True)
class CompressedSpectrum:
    """STFT and compression, and back.

    >>> import torch
    >>> front = CompressedSpectrum()
    >>> wave = torch.randn(1, 1000)
    >>> bool((front.waveform(front.spectrum(wave), 1000) - wave).abs().max() < 1e-4)
    True
    """

    n_fft: int = 510
    """Samples a frame."""
    hop: int = 128
    """Samples from frame to frame."""
    exponent: float = 0.5
    """α."""
    factor: float = 0.15
    """β."""

    def __post_init__(self) -> None:
        """Refuses what cannot be undone."""
        if not 0 < self.exponent <= 1 or not self.factor > 0:
            raise UsageError(
                f"exponent {self.exponent} with factor {self.factor} is no compression",
                where="CompressedSpectrum",
                hint="SGMSE uses 0.5 and 0.15",
            )

    @cached_property
    def stft(self) -> Stft:
        """The transform below the compression; periodic Hann."""
        return Stft(self.n_fft, self.hop)

    @property
    def bins(self) -> int:
        """Number of frequencies."""
        return self.stft.bins

    def spectrum(self, wave: Float[Tensor, "*batch time"]) -> Complex[Tensor, "*batch freq frame"]:
        """X of waveforms of any length from 1 sample on."""
        return self.compress(self.stft.forward(wave))

    def waveform(
        self, spec: Complex[Tensor, "*batch freq frame"], length: int
    ) -> Float[Tensor, "*batch time"]:
        """The waveform of so many samples."""
        return self.stft.inverse(self.expand(spec), length)

    def compress(self, spec: Complex[Tensor, "..."]) -> Complex[Tensor, "..."]:
        """β |S|^α e^{i∠S}."""
        packed: Tensor = spec * (self.factor * spec.abs().clamp_min(LEAST) ** (self.exponent - 1))
        return packed

    def expand(self, spec: Complex[Tensor, "..."]) -> Complex[Tensor, "..."]:
        """S = (|X| / β)^(1/α) e^{i∠X}."""
        magnitude = spec.abs() ** (1 / self.exponent - 1) / self.factor ** (1 / self.exponent)
        unpacked: Tensor = spec * magnitude
        return unpacked
