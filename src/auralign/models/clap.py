"""CLAP as a query encoder and judge, from a folder or hub id that the user gives.

Wu et al. 2023 (arXiv:2211.06687), through transformers' ``ClapModel`` (extra ``auralign[clap]``). The log-mel
front end is recomputed in torch from the checkpoint's own settings, so that gradients reach the wave; sounds
longer than the model's window (10 s) are cut into windows whose unit vectors are averaged, never cropped at
random. Shorter ones are repeated until the window is full, then padded with zeros (``repeatpad``).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from auralign.errors import AudioError, ModelUnavailableError, UsageError
from auralign.runtime import weights

ZEROS = 24
"""Zero crossings of the interpolation filter on each side."""
DB_FLOOR = 1e-10


def upsample(wave: Float[Tensor, "batch time"], factor: int) -> Float[Tensor, "batch time2"]:
    r"""Windowed-sinc interpolation by a whole factor, :math:`y_{n} = \sum_k x_k\, h(n/L - k)`, zero delay.

    >>> upsample(torch.ones(1, 100), 3).shape
    torch.Size([1, 300])
    """
    if factor == 1:
        return wave
    reach = ZEROS * factor
    time = torch.arange(-reach, reach + 1, dtype=wave.dtype, device=wave.device) / factor
    kernel = torch.sinc(time) * torch.cos(0.5 * math.pi * time / ZEROS).square()
    full = F.conv_transpose1d(wave.unsqueeze(1), kernel[None, None], stride=factor)
    return full[:, 0, reach : reach + wave.shape[-1] * factor]


class ClapEncoder(nn.Module):
    """Sounds and texts to unit vectors of one space."""

    mel_bank: Tensor
    window: Tensor

    def __init__(self, model: Any, extractor: Any, tokenizer: Any) -> None:
        """Wrap a transformers model with its feature extractor and tokenizer.

        Args:
            model: A ``ClapModel``.
            extractor: Its ``ClapFeatureExtractor``; only settings and mel filters are read from it.
            tokenizer: Its tokenizer, or anything called the same way.
        """
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self.rate_hz = int(extractor.sampling_rate)
        self.n_fft, self.hop = int(extractor.fft_window_size), int(extractor.hop_length)
        self.window_samples = int(extractor.nb_max_samples)
        self.fused = bool(model.config.audio_config.enable_fusion)
        bank = extractor.mel_filters if self.fused else extractor.mel_filters_slaney
        self.register_buffer("mel_bank", torch.as_tensor(bank, dtype=torch.float32), persistent=False)
        self.register_buffer("window", torch.hann_window(self.n_fft), persistent=False)
        self.eval().requires_grad_(False)

    @classmethod
    def from_path(cls, path_or_hub_id: str, *, offline: bool | None = None) -> ClapEncoder:
        """Load a checkpoint in transformers' layout; its tensors must be safetensors.

        Args:
            path_or_hub_id: A folder, or a hub id such as ``laion/clap-htsat-unfused``.
            offline: Use only what is on disk. ``None`` follows ``$AURALIGN_OFFLINE``.

        Raises:
            ModelUnavailableError: transformers is missing, or the checkpoint cannot be had.
        """
        try:
            from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel
        except ImportError as error:
            raise ModelUnavailableError(
                "CLAP needs the transformers package", why=str(error), hint="pip install 'auralign[clap]'"
            ) from error
        options: dict[str, Any] = {"local_files_only": weights.is_offline(offline)}
        try:
            model = ClapModel.from_pretrained(path_or_hub_id, use_safetensors=True, **options)
            extractor = ClapFeatureExtractor.from_pretrained(path_or_hub_id, **options)
            tokenizer = AutoTokenizer.from_pretrained(path_or_hub_id, **options)
        except (OSError, ValueError) as error:
            raise ModelUnavailableError(
                "the CLAP checkpoint cannot be loaded",
                where=path_or_hub_id,
                why=str(error).splitlines()[0],
                hint="give a folder with config.json, model.safetensors, the preprocessor and a tokenizer",
            ) from error
        return cls(model, extractor, tokenizer)

    @property
    def dim(self) -> int:
        """Length of the vectors."""
        return int(self.model.config.projection_dim)

    def log_mel(self, wave: Float[Tensor, "batch time"]) -> Float[Tensor, "batch frame mel"]:
        """Mel power in dB of waves at the model's rate, frames centred, reflected at the ends."""
        spectrum = torch.stft(wave, self.n_fft, self.hop, window=self.window, return_complex=True)
        power = spectrum.real.square() + spectrum.imag.square()
        mel = power.transpose(1, 2) @ self.mel_bank
        return 10.0 * torch.log10(mel.clamp_min(DB_FLOOR))

    def _windows(self, wave: Float[Tensor, "batch time"]) -> Float[Tensor, "batch window samples"]:
        """Windows that cover the wave, the last one ending with it."""
        size, length = self.window_samples, wave.shape[-1]
        if length < size:
            repeated = wave.repeat(1, size // length)
            return F.pad(repeated, (0, size - repeated.shape[-1])).unsqueeze(1)
        count = -(-length // size)
        starts = [round(index * (length - size) / max(count - 1, 1)) for index in range(count)]
        return torch.stack([wave[:, start : start + size] for start in starts], dim=1)

    def embed_audio(
        self, wave: Float[Tensor, "batch time"], *, rate_hz: int = 16_000
    ) -> Float[Tensor, "batch dim"]:
        """Unit vectors of sounds; differentiable with respect to the wave.

        Args:
            wave: Mono sounds.
            rate_hz: Their rate; the model's rate (48 kHz) must be a whole multiple of it.
        """
        if wave.shape[-1] == 0:
            raise AudioError("a sound without samples has no embedding")
        if self.rate_hz % rate_hz:
            raise UsageError(
                f"{rate_hz} Hz does not divide the model's {self.rate_hz} Hz", hint="resample first"
            )
        windows = self._windows(upsample(wave, self.rate_hz // rate_hz))
        batch, count = windows.shape[:2]
        features = self.log_mel(windows.flatten(0, 1)).unsqueeze(1)
        longer = torch.zeros(batch * count, 1, dtype=torch.bool, device=wave.device)
        if self.fused:
            features = features.expand(-1, 4, -1, -1)
        hidden = self.model.audio_model(input_features=features, is_longer=longer).pooler_output
        vectors = F.normalize(self.model.audio_projection(hidden), dim=-1)
        return F.normalize(vectors.view(batch, count, -1).mean(dim=1), dim=-1)

    @torch.no_grad()
    def embed_text(self, texts: list[str]) -> Float[Tensor, "batch dim"]:
        """Unit vectors of texts."""
        if not texts:
            return torch.zeros(0, self.dim, device=self.window.device)
        tokens = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(
            self.window.device
        )
        hidden = self.model.text_model(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        ).pooler_output
        return F.normalize(self.model.text_projection(hidden), dim=-1)
