r"""The held-out semantic judge: the aisfx embedding of sound effects as plain PyTorch.

Ma, Lerch 2022 (ISMIR), model X-Sequential-CE: nine-layer CNN on log-mel spectrograms at 44.1 kHz. Nothing in
auralign trains against it and no query passes through it; it only scores.

Front end, after the authors' Essentia configuration: frames of 2,048 samples every 1,024, the first one
centred on the first sample; symmetric Hann window; power spectrum; 96 bands, triangles in HTK mels from 0 to
22,050 Hz, each of unit sum; :math:`\log_{10}(10^4 x + 1)`, divided by 9.4578, the largest value of the
training data. Blocks of 100 frames (2.3 s) every 50.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import soxr
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from auralign.runtime import weights

RATE_HZ = 44_100
FRAME, HOP, MELS = 2048, 1024, 96
BLOCK_FRAMES, BLOCK_HOP = 100, 50
LOG_MAX = 9.457798957824707
WIDTHS = (64, 128, 256, 512)
EMBEDDING = 512


def unit_sum_mel_bank() -> Float[Tensor, "freq mel"]:
    """Triangles on the mel scale, :math:`1 - |m(f) - m_i| / d`, each divided by its sum over the bins.

    >>> bank = unit_sum_mel_bank()
    >>> tuple(bank.shape), bool(torch.allclose(bank.sum(0), torch.ones(96)))
    ((1025, 96), True)
    """
    spacing = RATE_HZ / FRAME
    bins = torch.arange(FRAME // 2 + 1, dtype=torch.float64)
    mel = 2595.0 * torch.log10(1.0 + bins * spacing / 700.0)
    corners = torch.linspace(0.0, float(mel[-1]), MELS + 2, dtype=torch.float64)
    step = corners[1] - corners[0]
    weight = (1.0 - (mel[:, None] - corners[1:-1]).abs() / step).clamp_min(0.0)
    return (weight / weight.sum(0)).float()


class _Pair(nn.Module):
    """Two 3×3 convolutions, each with batch norm and ReLU, then a maximum over squares of ``pool``."""

    def __init__(self, inputs: int, outputs: int, *, pool: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.pool = pool

    def forward(
        self, x: Float[Tensor, "batch inputs frame mel"]
    ) -> Float[Tensor, "batch outputs frame2 mel2"]:
        x = self.bn1(self.conv1(x)).relu_()
        x = self.bn2(self.conv2(x)).relu_()
        return x if self.pool == 1 else F.max_pool2d(x, self.pool)


class Judge(nn.Module):
    """Frozen sound-effect encoder."""

    bank: Tensor
    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        pairs = zip((1, *WIDTHS), WIDTHS, (2, 2, 2, 1), strict=False)
        self.pairs = nn.ModuleList(_Pair(inputs, outputs, pool=pool) for inputs, outputs, pool in pairs)
        self.register_buffer("bank", unit_sum_mel_bank(), persistent=False)
        self.register_buffer("window", torch.hann_window(FRAME, periodic=False), persistent=False)

    def log_mel(self, wave_44k: Float[Tensor, "batch time"]) -> Float[Tensor, "batch frame mel"]:
        """Compressed mel frames in about 0…1; ``n`` samples give ``ceil((n + 1024) / 1024)`` frames."""
        frames = -(-(wave_44k.shape[-1] + FRAME // 2) // HOP)
        after = (frames - 1) * HOP + FRAME // 2 - wave_44k.shape[-1]
        padded = F.pad(wave_44k, (FRAME // 2, max(after, 0)))
        spectrum = torch.stft(padded, FRAME, HOP, FRAME, self.window, center=False, return_complex=True)
        power = spectrum.real.square() + spectrum.imag.square()
        return torch.log10(1e4 * (power.transpose(1, 2) @ self.bank) + 1.0) / LOG_MAX

    def embed_blocks(self, blocks: Float[Tensor, "batch frame mel"]) -> Float[Tensor, "batch 512"]:
        """Embedding of blocks of frames: mean over mel, maximum over time of the last feature map."""
        x = blocks.unsqueeze(1)
        for pair in self.pairs:
            x = pair(x)
        return x.mean(dim=3).amax(dim=2)

    def embed(
        self, wave_44k: Float[Tensor, "batch time"], at_once: int | None = None
    ) -> Float[Tensor, "batch 512"]:
        """Unit vector of each sound: the mean of its blocks, scaled to length one.

        A sound shorter than one block is padded with silence; frames after the last whole block are dropped,
        as the authors do. A silent sound has the vector of silence.

        Args:
            wave_44k: Sounds at 44.1 kHz.
            at_once: Sounds that go through the convolutions together; all by default.
        """
        log_mel = self.log_mel(wave_44k)
        log_mel = F.pad(log_mel, (0, 0, 0, max(BLOCK_FRAMES - log_mel.shape[1], 0)))
        return torch.cat([self._pooled(part) for part in log_mel.split(at_once or len(log_mel))])

    def hear(
        self, sounds: Sequence[Float[np.ndarray, " time"]], rate_hz: int, *, at_once: int | None = None
    ) -> Float[Tensor, "sound 512"]:
        """Unit vectors of sounds of one length at any rate, without gradient; ``at_once`` as in :meth:`embed`."""
        fast = np.stack([soxr.resample(np.asarray(one, np.float32), rate_hz, RATE_HZ) for one in sounds])
        with torch.inference_mode():
            return self.embed(torch.from_numpy(fast), at_once)

    def _pooled(self, log_mel: Float[Tensor, "batch frame mel"]) -> Float[Tensor, "batch 512"]:
        """Unit vectors, the convolutions in their weights' own arithmetic."""
        blocks = log_mel.unfold(1, BLOCK_FRAMES, BLOCK_HOP).transpose(2, 3)
        batch, block = blocks.shape[:2]
        flat = blocks.reshape(batch * block, BLOCK_FRAMES, MELS).to(self.precision)
        vectors = self.embed_blocks(flat).float()
        return F.normalize(vectors.view(batch, block, EMBEDDING).mean(dim=1), dim=-1)

    @property
    def precision(self) -> torch.dtype:
        """Arithmetic of the convolutions; the front end and the pooling stay in float32."""
        return next(self.pairs.parameters()).dtype


def load_judge(*, offline: bool | None = None) -> Judge:
    """The judge with its published weights, frozen, in evaluation mode, on the CPU."""
    model = Judge()
    state: dict[str, Tensor] = {}
    for name, tensor in weights.tensors("aisfx", offline=offline).items():
        block, _, rest = name.removeprefix("embedding_net.conv_block").partition(".")
        state[f"pairs.{int(block) - 1}.{rest}"] = tensor
    counters = {name: torch.zeros_like(t) for name, t in model.state_dict().items() if "num_batches" in name}
    model.load_state_dict(state | counters)
    for parameter in model.parameters():
        if parameter.dim() == 4:  # a fifth faster on CPUs
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model.eval().requires_grad_(False)
