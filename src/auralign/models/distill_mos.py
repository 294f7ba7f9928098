r"""The held-out judge of speech: Distill-MOS as plain PyTorch.

Stahl, Gamper 2025, *Distillation and pruning for scalable self-supervised representation-based speech quality
assessment* (arXiv:2502.05356), published variant 7. Nothing in auralign trains against it.

Front end: 16 kHz, 7.68 s divided by its peak, Hann window of 320 samples every 160, reflected ends; complex bins
compressed to :math:`|X|^{0.3} e^{i \angle X}`. Body: six 3×3 convolutions with leaky ReLU (0.1), no padding over
frequency, stride 2 over frequency from the second, over time in the last: 384 frames of 1024 numbers. Two batch
norms, a linear layer to 200, sinusoidal positions, seven transformer layers (8 heads, 400, post-norm, ReLU), batch
norm, attention pooling, sigmoid; :math:`1 + 4\sigma`.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from auralign.runtime import weights
from auralign.runtime.device import bfloat16_is_fast

RATE_HZ = 16_000
N_FFT, HOP = 320, 160
COMPRESSION, TINY = 0.3, 1e-12
WIDTHS = (2, 64, 64, 128, 256, 256, 256)
DIM, HEADS, LAYERS, FRAMES = 200, 8, 7, 384


class _Attention(nn.Module):
    """Mean over frames with learned weights, then one number."""

    def __init__(self) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(DIM, 2 * DIM), nn.Linear(2 * DIM, 1)
        self.linear3 = nn.Linear(DIM, 1)

    def forward(self, x: Float[Tensor, "batch frame dim"]) -> Float[Tensor, " batch"]:
        share = self.linear2(F.relu(self.linear1(x))).softmax(dim=1)
        pooled: Tensor = self.linear3((share * x).sum(dim=1))
        return pooled.squeeze(1)


class _Encoder(nn.Module):
    """Batch norm, projection, positions and transformer layers."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(inputs)
        self.linear_proj = nn.Linear(inputs, DIM)
        self.pe = nn.Parameter(torch.empty(1, FRAMES, DIM))
        layer = nn.TransformerEncoderLayer(DIM, HEADS, 2 * DIM, dropout=0.0, batch_first=True)
        self.transformer_encoder = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)

    def forward(self, x: Float[Tensor, "batch channel frame"]) -> Float[Tensor, "batch frame dim"]:
        frames: Tensor = self.linear_proj(self.norm(x).transpose(1, 2)) + self.pe
        heard: Tensor = self.transformer_encoder(frames)
        return heard


class DistillMos(nn.Module):
    """Frozen judge of windows of 7.68 s; :func:`auralign.metrics.perceptual.distill_mos` cuts clips into them.

    Args:
        narrow: Convolve in bfloat16, where the CPU is faster at it; elsewhere in float32 all the same.
    """

    window: Tensor
    rate_hz = RATE_HZ

    def __init__(self, *, narrow: bool = False) -> None:
        super().__init__()
        self.narrow = narrow and bfloat16_is_fast()
        convs: list[nn.Module] = []
        last = len(WIDTHS) - 2
        for i, (inputs, outputs) in enumerate(pairwise(WIDTHS)):
            stride = (2 if i else 1, 2 if i == last else 1)
            convs += [nn.Conv2d(inputs, outputs, 3, stride, (0, 1)), nn.LeakyReLU(0.1)]
        self.cnn = nn.Sequential(*convs)
        self.norm_input = nn.BatchNorm1d(1024)
        self.transformer = _Encoder(1024)
        self.norm_trans = nn.BatchNorm1d(DIM)
        self.pool = _Attention()
        self.register_buffer("window", torch.hann_window(N_FFT), persistent=False)

    def forward(self, wave: Float[Tensor, "batch 122880"]) -> Float[Tensor, " batch"]:
        """Quality of each window, 1 to 5."""
        wave = wave / (wave.abs().amax(dim=1, keepdim=True) + 1e-8)
        wave = F.pad(wave[:, None], ((N_FFT - HOP) // 2,) * 2, mode="reflect")[:, 0]
        spectrum = torch.stft(wave, N_FFT, HOP, N_FFT, self.window, center=False, return_complex=True)
        size = spectrum.abs().clamp_min(TINY)
        bins = torch.view_as_real(spectrum * size ** (COMPRESSION - 1)).permute(0, 3, 1, 2)
        bins = bins.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.narrow):
            maps = self.cnn(bins)
        maps = maps.float().flatten(1, 2)
        frames = self.transformer(self.norm_input(maps))
        pooled: Tensor = self.pool(self.norm_trans(frames.transpose(1, 2)).transpose(1, 2))
        return 1 + 4 * pooled.sigmoid()


def load_distill_mos(*, narrow: bool = False, offline: bool | None = None) -> DistillMos:
    """The judge with its published weights, frozen, in evaluation mode, on the CPU."""
    model = DistillMos(narrow=narrow)
    state = {}
    for name, tensor in weights.tensors("distillmos", offline=offline).items():
        name = name.removeprefix("cnn.").removeprefix("transformer_pool_attn.")
        state[name.replace("transformer.position_encoding.pe", "transformer.pe")] = tensor
    counters = {name: torch.zeros_like(t) for name, t in model.state_dict().items() if "num_batches" in name}
    model.load_state_dict(state | counters)
    return model.eval().requires_grad_(False)
