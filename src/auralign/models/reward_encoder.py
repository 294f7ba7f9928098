r"""The encoder behind the semantic reward: how much a sound is what was asked for, and nothing else.

Frozen backbones give raw features; small heads bring a sound, words and a picture into one space of unit vectors; a
pooling fuses whatever says what is meant into one anchor (MARS-Sep, arXiv:2510.10509, Sec. 3.2):

.. math:: z^* = \mathrm{MLBP}(\phi_a(y^*), \phi_t(t^*), \phi_v(v^*)), \qquad s(\hat y) = \cos(\phi_a(\hat y), z^*)

Only heads, temperature and pooling are learned (:mod:`auralign.algorithms.alignment`) and stored. A reward encoder is
its own model with its own version: it shares no head with the separator that is trained against it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from auralign.errors import ModelUnavailableError, UsageError
from auralign.models.audio_statistics import EMBEDDING_FIRST, FEATURES, audio_statistics
from auralign.models.encoders import Backbones, QueryBackbones, open_backbones
from auralign.models.model_file import read_model, write_model
from auralign.models.pooling import make_pooling
from auralign.models.query_encoder import MODALITIES, Modality

FORMAT = "auralign-reward-1"


@runtime_checkable
class Views(Protocol):
    """Raw features of what says which sound is meant; :class:`auralign.rewards.base.Cue` is one."""

    @property
    def features(self) -> Mapping[Modality, Tensor]:
        """Features of each given modality, ``batch features``."""
        ...

    @property
    def valid(self) -> Mapping[Modality, Tensor]:
        """Which items have that modality."""
        ...


class _Head(nn.Module):
    """Standardised features, a linear map, a residual network, a unit vector."""

    mean: Tensor
    scale: Tensor

    def __init__(self, inputs: int, dim: int, hidden: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("scale", torch.ones(inputs))
        self.linear = nn.Linear(inputs, dim)
        self.norm = nn.LayerNorm(dim)
        self.first = nn.Linear(dim, hidden)
        self.second = nn.Linear(hidden, dim)
        nn.init.normal_(self.linear.weight, std=inputs**-0.5)
        nn.init.zeros_(self.linear.bias)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, raw: Float[Tensor, "batch inputs"]) -> Float[Tensor, "batch dim"]:
        x = ((raw.float() - self.mean) * self.scale).clamp(-8, 8)
        x = self.norm(self.linear(x))
        return F.normalize(x + self.second(F.gelu(self.first(x))), dim=-1)


class RewardEncoder(nn.Module):
    """Frozen backbones, learned heads, temperature and pooling.

    Args:
        dim: Size of the shared space.
        hidden: Width of the heads' residual part.
        rank: Rank of the bilinear pooling.
        pooling: ``mlbp``, or one of the controls ``mean``, ``max``, ``weighted``.
        modalities: What it has learned to understand; cues of another kind are refused.
        encoder: The frozen encoders, see :func:`~auralign.models.encoders.open_backbones`.
        probe: What they gave for a fixed sentence in training; other encoders are refused.

    Attributes:
        narrow: Run the tagger in bfloat16 when features are computed; off unless set.
    """

    rate_hz = 16_000

    def __init__(
        self,
        *,
        dim: int = 192,
        hidden: int = 384,
        rank: int = 192,
        pooling: str = "mlbp",
        modalities: Sequence[Modality] = MODALITIES,
        encoder: str = "builtin",
        probe: Sequence[float] = (),
    ) -> None:
        super().__init__()
        self.options: dict[str, Any] = {"dim": dim, "hidden": hidden, "rank": rank, "pooling": pooling}
        if set(modalities) != set(MODALITIES):
            self.options["modalities"] = list(modalities)
        self.dim, self.encoder, self.narrow = dim, encoder, False
        self.backbones: QueryBackbones = open_backbones(encoder)
        if probe:
            self.backbones.require_same(probe, where=encoder)
        self.raw_dims: dict[Modality, int] = dict(self.backbones.dims)
        if isinstance(self.backbones, Backbones):
            self.raw_dims["audio"] = FEATURES
        self.heads = nn.ModuleDict(
            {
                m: _Head(self.raw_dims[m], dim, hidden)
                for m in MODALITIES
                if m in self.raw_dims and m in modalities
            }
        )
        self.pooling = make_pooling(pooling, dim=dim, rank=rank)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    @property
    def temperature_scale(self) -> Float[Tensor, ""]:
        """The factor before the softmax of InfoNCE, at most 100."""
        return self.log_scale.exp().clamp(max=100.0)

    def fit_scale(self, raw: Float[Tensor, "item features"], modality: Modality) -> None:
        """Take the mean and spread of training features as the head's standardisation."""
        head = self._head(modality)
        head.mean.copy_(raw.float().mean(dim=0))
        head.scale.copy_(1 / raw.float().std(dim=0).clamp_min(1e-3))

    def standard_mean(self, modality: Modality) -> Float[Tensor, "features"]:
        """Raw features of the average training item: what stands for features that are not known."""
        return self._head(modality).mean

    def audio_features(
        self, wave: Float[Tensor, "batch time"], *, grad: bool = False
    ) -> Float[Tensor, "batch features"]:
        """Raw features of mono 16-kHz sounds; their level does not matter.

        Args:
            wave: Sounds of any length (a third of a second at least carries information).
            grad: Let gradients reach the wave; only the built-in backbones can.
        """
        if isinstance(self.backbones, Backbones):
            yamnet = self.backbones.yamnet.to(wave.device)
            with torch.set_grad_enabled(grad):
                return audio_statistics(yamnet, wave, narrow=self.narrow)
        if grad:
            raise UsageError(
                f"the encoder {self.encoder!r} passes no gradient to the sound", hint="use builtin backbones"
            )
        return self.backbones.audio(wave)

    def embed(self, raw: Float[Tensor, "batch features"], modality: Modality) -> Float[Tensor, "batch dim"]:
        """Raw features of one modality as unit vectors.

        Sounds may also come as the plain mean embedding of the built-in tagger, as query banks hold it; the other
        statistics then stand at their training mean.
        """
        head = self._head(modality)
        if modality == "audio" and raw.shape[1] == EMBEDDING_FIRST < self.raw_dims["audio"]:
            raw = torch.cat([raw.float(), head.mean[EMBEDDING_FIRST:].expand(len(raw), -1)], dim=1)
        if raw.shape[1] != self.raw_dims[modality]:
            raise UsageError(
                f"{modality} features of size {raw.shape[1]} given, {self.raw_dims[modality]} expected",
                hint="compute them with this encoder's backbones",
            )
        unit: Tensor = head(raw)
        return unit

    def anchor(self, cue: Views) -> Float[Tensor, "batch dim"]:
        """One unit vector an item from whichever modalities it has; nan for an item that has none."""
        size = len(next(iter(cue.features.values())))
        device = self.log_scale.device
        parts = torch.zeros(size, len(MODALITIES), self.dim, device=device)
        valid = torch.zeros(size, len(MODALITIES), dtype=torch.bool, device=device)
        columns = []
        for place, modality in enumerate(MODALITIES):
            if modality in cue.features:
                columns.append(self.embed(cue.features[modality].to(device), modality))
                valid[:, place] = cue.valid[modality].to(device)
            else:
                columns.append(parts[:, place])
        return self.fuse(torch.stack(columns, dim=1), valid)

    def fuse(
        self, parts: Float[Tensor, "batch modality dim"], valid: Bool[Tensor, "batch modality"]
    ) -> Float[Tensor, "batch dim"]:
        """The pooling over embedded views in the order text, audio, image."""
        fused: Tensor = self.pooling(parts, valid)
        return fused

    def score(
        self,
        wave: Float[Tensor, "batch time"],
        anchor: Float[Tensor, "batch dim"],
        *,
        grad: bool = False,
    ) -> Float[Tensor, "batch"]:
        """Cosine between each sound and its anchor."""
        with torch.set_grad_enabled(grad):
            return (self.embed(self.audio_features(wave, grad=grad), "audio") * anchor).sum(dim=-1)

    def _head(self, modality: Modality) -> _Head:
        if modality not in self.heads:
            raise UsageError(
                f"this reward encoder takes no {modality}", hint=f"it takes {', '.join(self.heads)}"
            )
        head = self.heads[modality]
        if not isinstance(head, _Head):
            raise TypeError(f"the {modality} head is a {type(head).__name__}")
        return head

    def save(self, folder: Path, card: dict[str, Any], *, half: bool = True) -> None:
        """Write ``model.safetensors`` and ``card.json``.

        Args:
            folder: Made when missing.
            card: What the model is, as JSON values.
            half: Store matrices as float16; vectors stay float32.
        """
        meta = {
            "format": FORMAT,
            "options": json.dumps(self.options),
            "encoder": self.encoder,
            "probe": json.dumps([] if self.encoder == "builtin" else self.backbones.probe()),
        }
        write_model(folder, self.state_dict(), meta, card, half=half)

    @classmethod
    def load(cls, folder: Path) -> RewardEncoder:
        """Read what :meth:`save` wrote; the file is checked against its card.

        Raises:
            ModelUnavailableError: The file is missing, damaged or of another kind.
        """
        tensors, meta, path = read_model(folder, kind="reward encoder", wanted=FORMAT)
        try:
            model = cls(
                **json.loads(meta["options"]), encoder=meta["encoder"], probe=json.loads(meta["probe"])
            )
            model.load_state_dict(tensors)
        except (KeyError, TypeError, ValueError, RuntimeError, UsageError) as error:
            raise ModelUnavailableError(
                "the reward encoder's description or weights are damaged",
                where=str(path),
                why=(str(error).splitlines() or [type(error).__name__])[-1].strip(),
                hint="copy or train it again",
            ) from error
        return model.eval().requires_grad_(False)
