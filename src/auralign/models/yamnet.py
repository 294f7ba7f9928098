r"""YAMNet as plain PyTorch: a MobileNet over log-mel patches that tags 521 AudioSet classes.

Plakal, Ellis 2020; Howard et al. 2017 (arXiv:1704.04861). Front end: 16 kHz, Hann window of 400 samples in a
512-point DFT, hop 160, magnitudes, 64 HTK mel bands from 125 to 7,500 Hz,
:math:`\log(x + 0.001)`; patches of 96 frames (0.96 s) every 48. Body: one 3×3 convolution and 13
depthwise-separable blocks, batch norm folded into the weights, ReLU after each convolution. Layers of
stride 2 pad below and to the right only, as TensorFlow does.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from auralign.errors import AudioError, ModelUnavailableError
from auralign.runtime import weights

RATE_HZ = 16_000
N_FFT, WINDOW, HOP, MELS = 512, 400, 160, 64
PATCH_FRAMES, PATCH_HOP = 96, 48
LOG_OFFSET = 0.001
CLASSES, EMBEDDING = 521, 1024
CHANNELS = (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
"""Width after each of the 14 blocks."""
STRIDES = (2, 1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)


@dataclass(frozen=True)
class YamNetOutput:
    """Scores and embedding of each 0.96-s patch."""

    scores: Float[Tensor, "batch patch 521"]
    """Sigmoid probability of each class (they need not sum to one)."""
    embedding: Float[Tensor, "batch patch 1024"]
    """Mean of the last feature map, before the linear layer."""


def mel_filterbank(
    *, n_fft: int, mels: int, rate_hz: int, low_hz: float, high_hz: float
) -> Float[Tensor, "freq mel"]:
    r"""Triangles of height one on the HTK mel scale, :math:`m = 2595 \log_{10}(1 + f / 700)`.

    >>> bank = mel_filterbank(n_fft=512, mels=64, rate_hz=16000, low_hz=125.0, high_hz=7500.0)
    >>> tuple(bank.shape), bool((bank >= 0).all())
    ((257, 64), True)
    """
    ends = torch.tensor([low_hz, high_hz], dtype=torch.float64)
    low, high = (2595.0 * torch.log10(1.0 + ends / 700.0)).tolist()
    corners = 700.0 * (10.0 ** (torch.linspace(low, high, mels + 2, dtype=torch.float64) / 2595.0) - 1.0)
    freqs = torch.linspace(0, rate_hz / 2, n_fft // 2 + 1, dtype=torch.float64)[:, None]
    left, centre, right = corners[:-2], corners[1:-1], corners[2:]
    rising, falling = (freqs - left) / (centre - left), (right - freqs) / (right - centre)
    return torch.minimum(rising, falling).clamp_min(0.0).float()


class _Conv(nn.Module):
    """Convolution with bias, TensorFlow's padding at stride 2, and ReLU."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int, stride: int, groups: int) -> None:
        super().__init__()
        self.stride, self.groups, self.kernel = stride, groups, kernel
        self.weight = nn.Parameter(torch.empty(outputs, inputs // groups, kernel, kernel))
        self.bias = nn.Parameter(torch.empty(outputs))

    def forward(
        self, x: Float[Tensor, "batch inputs rows cols"]
    ) -> Float[Tensor, "batch outputs rows2 cols2"]:
        if self.stride == 2:
            rows, cols = x.shape[2:]
            x = F.pad(x, (0, 1 + cols % 2, 0, 1 + rows % 2))
            padding = 0
        else:
            padding = self.kernel // 2
        return F.conv2d(x, self.weight, self.bias, self.stride, padding, groups=self.groups).relu_()


class YamNet(nn.Module):
    """Frozen tagger; gradients reach the wave, never the weights."""

    bank: Tensor
    window: Tensor

    def __init__(self, class_names: tuple[str, ...]) -> None:
        super().__init__()
        self.class_names = class_names
        convs = [_Conv(1, CHANNELS[0], kernel=3, stride=2, groups=1)]
        for inputs, outputs, stride in zip(CHANNELS, CHANNELS[1:], STRIDES[1:], strict=False):
            convs.append(_Conv(inputs, inputs, kernel=3, stride=stride, groups=inputs))
            convs.append(_Conv(inputs, outputs, kernel=1, stride=1, groups=1))
        self.convs = nn.ModuleList(convs)
        self.classifier = nn.Linear(EMBEDDING, CLASSES)
        bank = mel_filterbank(n_fft=N_FFT, mels=MELS, rate_hz=RATE_HZ, low_hz=125.0, high_hz=7500.0)
        self.register_buffer("bank", bank, persistent=False)
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)

    def log_mel(self, wave: Float[Tensor, "batch time"]) -> Float[Tensor, "batch frame mel"]:
        """Log-mel frames at 16 kHz; one frame each 10 ms, the last starting 32 ms before the end.

        A wave shorter than one DFT (512 samples) is an error: there is no frame to return.
        """
        if wave.shape[-1] < N_FFT:
            raise AudioError(
                f"{wave.shape[-1]} samples are fewer than one frame of {N_FFT}",
                hint="pad the sound with silence",
            )
        spectrum = torch.stft(wave, N_FFT, HOP, WINDOW, self.window, center=False, return_complex=True)
        mel = spectrum.abs().transpose(1, 2) @ self.bank
        return torch.log(mel + LOG_OFFSET)

    def maps(self, log_mel: Float[Tensor, "batch frame mel"]) -> list[Tensor]:
        """Output of each of the 14 blocks, ``batch channel frame/s mel/s``, over any number of frames.

        The stride ``s`` doubles with each block of stride 2 (2, 2, 4, 4, 8, 8, 16 … 32), sizes round up.
        """
        x = log_mel.unsqueeze(1)
        outputs = []
        for index, conv in enumerate(self.convs):
            x = conv(x)
            if index % 2 == 0:
                outputs.append(x)
        return outputs

    def embed_patches(self, log_mel: Float[Tensor, "batch 96 mel"]) -> Float[Tensor, "batch 1024"]:
        """Embedding of single patches of 96 frames."""
        x = log_mel.unsqueeze(1)
        for conv in self.convs:
            x = conv(x)
        return x.mean(dim=(2, 3))

    def forward(self, wave: Float[Tensor, "batch time"]) -> YamNetOutput:
        """Scores and embeddings of patches of 0.96 s every 0.48 s.

        A wave shorter than a patch is padded with silence; frames after the last whole patch are not scored.
        """
        shortest = N_FFT + (PATCH_FRAMES - 1) * HOP
        if wave.shape[-1] < shortest:
            wave = F.pad(wave, (0, shortest - wave.shape[-1]))
        patches = self.log_mel(wave).unfold(1, PATCH_FRAMES, PATCH_HOP).transpose(2, 3)
        batch, patch = patches.shape[:2]
        embedding = self.embed_patches(patches.reshape(batch * patch, PATCH_FRAMES, MELS))
        scores = self.classifier(embedding).sigmoid()
        return YamNetOutput(scores.view(batch, patch, CLASSES), embedding.view(batch, patch, EMBEDDING))


def load_yamnet(*, offline: bool | None = None) -> YamNet:
    """YAMNet with its pretrained weights, frozen, in evaluation mode, on the CPU."""
    folder = weights.path("yamnet", offline=offline)
    with (folder / "classes.csv").open(encoding="utf-8", newline="") as stream:
        names = tuple(row["display_name"] for row in csv.DictReader(stream))
    if len(names) != CLASSES:
        raise ModelUnavailableError(f"{len(names)} class names, {CLASSES} expected", where=str(folder))
    model = YamNet(names)
    model.load_state_dict(weights.tensors("yamnet", offline=offline))
    for parameter in model.convs.parameters():
        if parameter.dim() == 4:  # a third faster on CPUs
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model.eval().requires_grad_(False)
