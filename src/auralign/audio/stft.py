r"""The short-time Fourier transform: one definition, whole and streamed alike, with perfect reconstruction.

.. math::
    X[f, k] = \sum_n w[n] \, x[n + k h - \lfloor N/2 \rfloor] \, e^{-2 \pi i f n / N}

with zeros outside the sound, so that frame k is centred on sample k·h. The inverse is the least-squares
overlap-add of Griffin and Lim (1984), eq. 6: :math:`\sum_k w y_k / \sum_k w^2`; the hop need not divide N.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from auralign.errors import AudioError


def _window(name: str, n_fft: int) -> Float[Tensor, " n_fft"]:
    """A periodic window in float64."""
    if name == "hann":
        return torch.hann_window(n_fft, periodic=True, dtype=torch.float64)
    if name == "sqrt_hann":
        return torch.hann_window(n_fft, periodic=True, dtype=torch.float64).sqrt()
    if name == "hamming":
        return torch.hamming_window(n_fft, periodic=True, dtype=torch.float64)
    raise AudioError(f"no window {name!r}", where="Stft", hint="use 'hann', 'sqrt_hann' or 'hamming'")


@final
class Stft:
    """STFT and inverse with the same window; see the module for the equations.

    >>> stft = Stft(1024, 256)
    >>> spec = stft.forward(torch.randn(2, 5000))
    >>> spec.shape, stft.inverse(spec, 5000).shape
    (torch.Size([2, 513, 20]), torch.Size([2, 5000]))
    """

    def __init__(self, n_fft: int, hop: int, window: str = "hann") -> None:
        if n_fft < 2 or not 1 <= hop <= n_fft // 2:
            raise AudioError(f"n_fft {n_fft} with hop {hop}: needs 1 <= hop <= n_fft / 2", where="Stft")
        self.n_fft, self.hop, self.window = n_fft, hop, window
        self._windows: dict[tuple[torch.dtype, torch.device], Tensor] = {}
        self._base = _window(window, n_fft)

    @property
    def bins(self) -> int:
        """Number of frequencies, N // 2 + 1."""
        return self.n_fft // 2 + 1

    def frames(self, length: int) -> int:
        """Number of frames for a sound of so many samples."""
        return (length + 2 * (self.n_fft // 2) - self.n_fft) // self.hop + 1

    def taper(self, like: Tensor) -> Float[Tensor, " n_fft"]:
        """The window, in the precision and on the device of a tensor."""
        real = like.real.dtype if like.is_complex() else like.dtype
        key = (real, like.device)
        if key not in self._windows:
            self._windows[key] = self._base.to(device=like.device, dtype=real)
        return self._windows[key]

    def forward(self, wave: Float[Tensor, "*batch time"]) -> Complex[Tensor, "*batch freq frame"]:
        """Spectrum of real waveforms of any length from 1 sample on."""
        if not wave.shape[-1]:
            raise AudioError("no samples to transform", where="Stft.forward")
        half = self.n_fft // 2
        return self.analyse(torch.nn.functional.pad(wave, (half, half)))

    def analyse(self, padded: Float[Tensor, "*batch time"]) -> Complex[Tensor, "*batch freq frame"]:
        """Spectrum of every complete frame, the first at sample 0 (no centring)."""
        flat = padded.reshape(-1, padded.shape[-1])
        spec = torch.stft(
            flat, self.n_fft, self.hop, window=self.taper(padded), center=False, return_complex=True
        )
        return spec.reshape(*padded.shape[:-1], *spec.shape[-2:])

    def inverse(
        self, spec: Complex[Tensor, "*batch freq frame"], length: int
    ) -> Float[Tensor, "*batch time"]:
        """The waveform of so many samples whose spectrum is nearest to ``spec`` in least squares."""
        if spec.shape[-1] != self.frames(length):
            raise AudioError(
                f"{spec.shape[-1]} frames cannot make {length} samples, that takes {self.frames(length)}",
                where="Stft.inverse",
            )
        wave, energy = self.overlap_add(spec)
        half = self.n_fft // 2
        wave = wave[..., half : half + length] / energy[half : half + length].clamp(min=1e-12)
        return torch.nn.functional.pad(wave, (0, length - wave.shape[-1]))

    def overlap_add(
        self, spec: Complex[Tensor, "*batch freq frame"]
    ) -> tuple[Float[Tensor, "*batch time"], Float[Tensor, " time"]]:
        """Windowed frames added at their places, and the summed squared window there."""
        window = self.taper(spec)
        count = spec.shape[-1]
        frames = torch.fft.irfft(spec, n=self.n_fft, dim=-2) * window[:, None]
        length = (count - 1) * self.hop + self.n_fft
        flat = frames.reshape(-1, self.n_fft, count)
        wave = _fold(flat, length, self.hop)
        energy = _fold(window.square()[None, :, None].expand(1, -1, count), length, self.hop)
        return wave.reshape(*spec.shape[:-2], length), energy[0]


def _fold(frames: Float[Tensor, "batch n_fft frame"], length: int, hop: int) -> Float[Tensor, "batch time"]:
    out = torch.nn.functional.fold(frames, (1, length), (1, frames.shape[1]), stride=(1, hop))
    return out[:, 0, 0]


@dataclass(frozen=True)
class SpectrumBlock:
    """Complete frames of a stream; ``first`` is the index of the first of them in the whole sound."""

    first: int
    spec: Complex[Tensor, "channel freq frame"]


@final
class StftStream:
    """The forward transform in blocks: the frames, concatenated, are those of ``Stft.forward`` of the whole.

    >>> stream = StftStream(Stft(8, 4), channels=1)
    >>> [stream.process(torch.ones(1, n), last=n == 3).spec.shape[-1] for n in (5, 6, 3)]
    [1, 1, 2]
    """

    def __init__(self, stft: Stft, channels: int, dtype: torch.dtype = torch.float32) -> None:
        self.stft, self.channels = stft, channels
        self._buffer = torch.zeros(channels, stft.n_fft // 2, dtype=dtype)
        self._next_frame = 0
        self._done = False

    def process(self, block: Float[Tensor, "channel time"], last: bool = False) -> SpectrumBlock:
        """Take any number of samples, give the frames that are complete; with ``last``, all that remain."""
        if self._done:
            raise AudioError("process() was called after the last block", where="StftStream")
        self._done = last
        n_fft, hop = self.stft.n_fft, self.stft.hop
        parts = [self._buffer.to(block.device), block]
        if last:
            parts.append(block.new_zeros(self.channels, n_fft // 2))
        self._buffer = torch.cat(parts, dim=-1)
        first, count = self._next_frame, (self._buffer.shape[-1] - n_fft) // hop + 1
        if count <= 0:
            empty = torch.zeros(self.channels, self.stft.bins, 0, dtype=self._buffer.dtype)
            return SpectrumBlock(first, torch.complex(empty, empty).to(block.device))
        spec = self.stft.analyse(self._buffer[:, : (count - 1) * hop + n_fft])
        self._buffer = self._buffer[:, count * hop :].clone()
        self._next_frame += count
        return SpectrumBlock(first, spec)


@final
class IstftStream:
    """The inverse in blocks of frames: the samples, concatenated, are those of ``Stft.inverse`` of the whole.

    Holds N samples a channel, however long the sound is. Gives a sample once no later frame reaches it.
    """

    def __init__(self, stft: Stft, channels: int, dtype: torch.dtype = torch.float32) -> None:
        self.stft, self.channels = stft, channels
        self._wave = torch.zeros(channels, 0, dtype=dtype)
        self._energy = torch.zeros(0, dtype=dtype)
        self._skip = stft.n_fft // 2  # samples before the sound's start
        self._given = 0
        self._done = False

    def process(
        self, spec: Complex[Tensor, "channel freq frame"], length: int | None = None
    ) -> Float[Tensor, "channel time"]:
        """Take the next frames, give the samples that are complete.

        Args:
            spec: Any number of frames, in order.
            length: Samples in the whole sound; marks the last call, which gives everything that remains.
        """
        if self._done:
            raise AudioError("process() was called after the last block", where="IstftStream")
        self._done = length is not None
        ready = spec.shape[-1] * self.stft.hop
        if spec.shape[-1]:
            wave, energy = self.stft.overlap_add(spec)
            old = self._wave.shape[-1]
            wave[:, :old] += self._wave.to(wave)
            energy[:old] += self._energy.to(energy)
        else:
            wave, energy = self._wave, self._energy
        self._wave, self._energy = wave[:, ready:].clone(), energy[ready:].clone()
        if length is not None:
            ready = wave.shape[-1]
        start = min(self._skip, ready)
        self._skip -= start
        out = wave[:, start:ready] / energy[start:ready].clamp(min=1e-12)
        if length is not None:
            missing = length - self._given - out.shape[-1]
            out = torch.nn.functional.pad(out, (0, max(0, missing)))[:, : length - self._given]
        self._given += out.shape[-1]
        return out
