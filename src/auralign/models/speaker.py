r"""Who speaks: Resemblyzer's speaker encoder as plain PyTorch.

Wan et al. 2018, *Generalized end-to-end loss for speaker verification* (arXiv:1710.10467), weights by Resemble
AI. Front end: 16 kHz, Hann window of 400 samples (25 ms), hop 160 (10 ms), 40 mel bands of the power spectrum on
Slaney's scale, not logarithmic. Body: three LSTM layers of 256, the last state of the last one, a linear layer,
ReLU, length one:

.. math:: e = \frac{\mathrm{ReLU}(W h_{160} + b)}{\|\mathrm{ReLU}(W h_{160} + b)\|}

An utterance is cut into parts of 160 frames, 1.3 a second; the last one counts when at least three quarters of it
are sound. Its vector is the mean of theirs at length one.

The level matters, since nothing is logarithmic: as in the published code, sounds below -30 dBFS are raised to it.
*Left out*: the published code shortens pauses with a voice activity detector before it listens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from auralign.audio.mel import mel_power, slaney_mel_bank
from auralign.metrics.contract import SILENCE_PEAK
from auralign.runtime import weights

RATE_HZ = 16_000
WINDOW, HOP, MELS = 400, 160, 40
PART_FRAMES = 160
PARTS_PER_SECOND = 1.3
LEAST_COVERAGE = 0.75
LEAST_DBFS = -30.0
EMBEDDING = 256


def part_starts(samples: int) -> list[int]:
    """First frame of each part of an utterance; one part at least.

    >>> part_starts(16000), part_starts(3 * 16000)
    ([0], [0, 77, 154])
    """
    frames = math.ceil((samples + 1) / HOP)
    step = round(RATE_HZ / PARTS_PER_SECOND / HOP)
    starts = list(range(0, max(1, frames - PART_FRAMES + step + 1), step))
    covered = (samples - starts[-1] * HOP) / (PART_FRAMES * HOP)
    return starts[:-1] if covered < LEAST_COVERAGE and len(starts) > 1 else starts


class SpeakerEncoder(nn.Module):
    """Frozen speaker encoder; gradients reach the wave, never the weights."""

    bank: Tensor
    window: Tensor
    rate_hz = RATE_HZ

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(MELS, EMBEDDING, 3, batch_first=True)
        self.linear = nn.Linear(EMBEDDING, EMBEDDING)
        bank = slaney_mel_bank(n_fft=WINDOW, mels=MELS, rate_hz=RATE_HZ)
        self.register_buffer("bank", bank, persistent=False)
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)

    def embed_parts(self, mel: Float[Tensor, "batch frame 40"]) -> Float[Tensor, "batch 256"]:
        """Unit vector of single parts; a part that excites no unit at all has the zero vector."""
        _, (hidden, _) = self.lstm(mel)
        return F.normalize(self.linear(hidden[-1]).relu(), dim=-1)

    def forward(self, wave: Float[Tensor, "batch time"], *, at_once: int = 256) -> Float[Tensor, "batch 256"]:
        """Unit vector of each utterance at 16 kHz; nan where it is silent or not finite.

        Args:
            wave: Utterances of one length.
            at_once: Parts that go through the network together.
        """
        fine = wave.detach().isfinite().all(1) & (wave.detach().abs().amax(1) > SILENCE_PEAK)
        level = torch.where(fine[:, None], wave, torch.ones_like(wave))
        rms = level.detach().square().mean(1, keepdim=True).sqrt()
        level = level * (10 ** (LEAST_DBFS / 20) / rms).clamp_min(1.0)
        starts = part_starts(wave.shape[1])
        end = (starts[-1] + PART_FRAMES) * HOP
        level = F.pad(level, (0, max(0, end - wave.shape[1])))
        mel = mel_power(level, self.bank, self.window, hop=HOP)
        parts = torch.stack([mel[:, start : start + PART_FRAMES] for start in starts], dim=1)
        vectors = torch.cat([self.embed_parts(some) for some in parts.flatten(0, 1).split(at_once)])
        mean = F.normalize(vectors.unflatten(0, (len(wave), len(starts))).mean(dim=1), dim=-1)
        return torch.where(fine[:, None], mean, torch.nan)


def load_speaker_encoder(*, offline: bool | None = None) -> SpeakerEncoder:
    """The encoder with its published weights, frozen, in evaluation mode, on the CPU."""
    model = SpeakerEncoder()
    published: Mapping[str, Tensor] = weights.tensors("resemblyzer", offline=offline)
    kept = {k: v for k, v in published.items() if not k.startswith("similarity_")}  # of the training loss
    model.load_state_dict(kept)
    return model.eval().requires_grad_(False)
