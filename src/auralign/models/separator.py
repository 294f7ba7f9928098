"""A separator, its query heads and what it was trained on, as one object with one version."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float
from torch import Tensor, nn

from auralign.errors import ModelUnavailableError, UsageError
from auralign.models.bimodal import BimodalTexts
from auralign.models.bisep_small import SmallBiSep
from auralign.models.blind import BlindSeparator
from auralign.models.conditional_unet import ConditionalUNet
from auralign.models.encoders import Backbones, QueryBackbones, open_backbones
from auralign.models.mask_network import MaskAnswer, MaskNetwork
from auralign.models.model_file import read_model, write_model
from auralign.models.omnisep import OmniSepNet, SmallSeparator
from auralign.models.query_encoder import Modality, QueryHeads, negative_query, query_augment
from auralign.models.token_heads import TokenHeads

FORMAT = "auralign-separator-1"
NETWORKS: dict[str, Callable[..., MaskNetwork]] = {
    "omnisep": OmniSepNet,
    "small": SmallSeparator,
    "bisep": ConditionalUNet,
    "bisep_small": SmallBiSep,
    "blind": BlindSeparator,
}


@dataclass(frozen=True)
class QueryVector:
    """A query in the space of one particular encoder version.

    Attributes:
        vector: One row.
        space: Fingerprint of the heads that made it.
    """

    vector: Float[Tensor, "dim"]
    space: str


class SeparatorModel(nn.Module):
    """Network and query heads that were trained together.

    Args:
        network: One of :data:`NETWORKS`.
        options: Keyword arguments of the network.
        labels: Classes seen in training.
        phrases: Text vectors' wording of the in-domain bank for Query-Aug, one per class.
        unit_queries: Whether mixed queries are brought back to unit length.
        encoder: The frozen encoders, see :func:`~auralign.models.encoders.open_backbones`.
        probe: What they gave for a fixed sentence when the model was trained; other encoders are refused.
    """

    rate_hz = 16_000

    def __init__(
        self,
        network: str,
        options: dict[str, Any],
        *,
        labels: Sequence[str] = (),
        phrases: Sequence[str] = (),
        unit_queries: bool = True,
        encoder: str = "builtin",
        probe: Sequence[float] = (),
    ) -> None:
        super().__init__()
        if network not in NETWORKS:
            raise UsageError(f"there is no network {network!r}", hint=f"one of {', '.join(NETWORKS)}")
        self.network, self.options = network, dict(options)
        self.labels, self.phrases = tuple(labels), tuple(phrases)
        self.unit_queries = unit_queries
        self.net = NETWORKS[network](
            **{k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
        )
        self.encoder, self._probe = encoder, tuple(probe)
        self.backbones: QueryBackbones = open_backbones(encoder)
        if self._probe:
            self.backbones.require_same(self._probe, where=encoder)
        if isinstance(self.backbones, Backbones):
            self.net.share(self.backbones)
        if isinstance(self.net, BlindSeparator) and isinstance(self.backbones, BimodalTexts):
            self.net.share_encoder(self.backbones.bimodal)  # before the query side asks for its length
        self.heads = self._query_side()

    def _query_side(self) -> QueryHeads | TokenHeads:
        """Learned heads into a query space, or words as they are where the network reads words."""
        net = self.net
        if isinstance(net, ConditionalUNet | SmallBiSep | BlindSeparator):
            heads = (
                TokenHeads(pooled_dim=net.encoder.dim, tokens=0, token_dim=1)
                if isinstance(net, BlindSeparator)
                else TokenHeads(pooled_dim=net.pooled_dim, tokens=net.tokens, token_dim=net.token_dim)
            )
            if self.backbones.dims.get("text") != heads.dim:
                raise UsageError(
                    f"the query encoder {self.encoder!r} does not fit the network {self.network!r}",
                    why=f"the network takes texts of {heads.dim} numbers",
                    hint="take tokens, clap-tokens:PLACE, or for blind separation bimodal:ENCODER",
                )
            return heads
        return QueryHeads(int(self.options.get("query_dim", 256)), inputs=self.backbones.dims)

    @property
    def query_heads(self) -> QueryHeads:
        """The learned heads of a network whose queries are vectors.

        Raises:
            UsageError: This network reads words.
        """
        if not isinstance(self.heads, QueryHeads):
            raise UsageError(
                f"the network {self.network!r} reads words and has no heads for other queries",
                hint="train it on captions: algorithm = bisep",
            )
        return self.heads

    @property
    def token_heads(self) -> TokenHeads:
        """The query side of a network that reads words.

        Raises:
            UsageError: This network's queries are vectors.
        """
        if not isinstance(self.heads, TokenHeads):
            raise UsageError(f"the network {self.network!r} reads no words", hint="take bisep or bisep_small")
        return self.heads

    @property
    def n_fft(self) -> int:
        """Window of the network's STFT, samples."""
        return self.net.n_fft

    @property
    def hop(self) -> int:
        """Hop of the network's STFT, samples."""
        return self.net.hop

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def space(self) -> str:
        """Fingerprint of the query heads; vectors of other heads are refused."""
        digest = hashlib.sha256(self.encoder.encode() if isinstance(self.heads, TokenHeads) else b"")
        for name, tensor in sorted(self.heads.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def text_queries(self, texts: Sequence[str]) -> list[QueryVector]:
        """Texts as query vectors."""
        return self._vectors(self.backbones.texts(texts), "text")

    def audio_queries(self, wave: Float[Tensor, "batch time"]) -> list[QueryVector]:
        """Mono 16-kHz examples as query vectors."""
        return self._vectors(self.backbones.audio(wave), "audio")

    def image_queries(self, images: Float[Tensor, "batch 3 height width"]) -> list[QueryVector]:
        """Pictures (or frames of a video) as query vectors."""
        return self._vectors(self.backbones.images(images), "image")

    def combine(
        self,
        wanted: Sequence[QueryVector],
        unwanted: Sequence[QueryVector] = (),
        *,
        strength: float = 0.5,
        augment: bool = False,
    ) -> QueryVector:
        """The mean of several queries, moved away from the mean of the unwanted ones.

        Args:
            wanted: At least one vector of this model's space.
            unwanted: What must not be heard.
            strength: How far the negative query pushes (OmniSep: 0.5).
            augment: Replace the result by its nearest trained text query (Query-Aug).
        """
        if not wanted:
            raise UsageError("no query is given", hint="say what to listen for")
        space = self.space
        for query in (*wanted, *unwanted):
            if query.space != space:
                raise UsageError(
                    "a query was made by another encoder version",
                    why=f"its space is {query.space}, the separator's is {space}",
                    hint="encode the query with the model that will use it",
                )
        vectors = torch.stack([q.vector for q in wanted])
        if augment and not self.phrases:
            raise UsageError("this model has no bank of queries", hint="leave out the augmentation")
        bank = torch.stack([q.vector for q in self.text_queries(self.phrases)]) if augment else None
        if isinstance(self.heads, TokenHeads):
            if unwanted:
                raise UsageError(
                    "this model cannot keep a sound out by words",
                    hint="ask for that sound as a stem of its own; stems share what both claim",
                )
            vector = self.heads.merge(vectors) if len(vectors) > 1 else vectors[0]
            return QueryVector(vector if bank is None else self.heads.nearest(vector, bank), space)
        vector = F.normalize(vectors.mean(dim=0), dim=-1)
        if bank is not None:
            vector = query_augment(vector, bank)[0]
        if unwanted:
            against = F.normalize(torch.stack([q.vector for q in unwanted]).mean(dim=0), dim=-1)
            vector = negative_query(vector, against, strength)
            vector = F.normalize(vector, dim=-1) if self.unit_queries else vector
        return QueryVector(vector, space)

    def spectrogram(self, wave: Float[Tensor, "*batch time"]) -> Tensor:
        """The network's STFT: Hann window, centred on zeros."""
        flat = wave.reshape(-1, wave.shape[-1])
        window = torch.hann_window(self.n_fft, dtype=wave.dtype, device=wave.device)
        spec = torch.stft(
            flat, self.n_fft, self.hop, window=window, center=True, pad_mode="constant", return_complex=True
        )
        return spec.reshape(*wave.shape[:-1], *spec.shape[-2:])

    def forward(
        self,
        wave: Float[Tensor, "batch time"],
        query: Float[Tensor, "batch query dim"],
        *,
        separations: int = 1,
    ) -> MaskAnswer:
        """Masks of every query over the whole sound in one pass (mono, 16 kHz); see :meth:`answer`."""
        return self.answer(self.spectrogram(wave), wave, query, separations=separations)

    def answer(
        self,
        spec: Complex[Tensor, "batch bin frame"],
        wave: Float[Tensor, "batch time"],
        query: Float[Tensor, "batch query dim"],
        *,
        separations: int = 1,
    ) -> MaskAnswer:
        r"""Masks of every query; with more than one separation, what is left over is separated again.

        With :math:`M_t` the mask found in the :math:`t`-th residual, :math:`M = 1 - \prod_t (1 - M_t)`; presence is
        that of the first separation.

        Args:
            spec: STFT of the sound, or its magnitude as a complex tensor.
            wave: The sound (mono, 16 kHz).
            query: Query vectors.
            separations: How often; each further one costs a pass for each query.
        """
        answer = self.net.answer(self.net.analyse(spec, wave), query)
        mask = answer.mask
        for _ in range(1, separations):
            left = 1 - mask
            waves = self._masked(left, wave)
            rest = (left * spec[:, None]).flatten(0, 1)
            again = self.net.answer(self.net.analyse(rest, waves.flatten(0, 1)), query.flatten(0, 1)[:, None])
            mask = 1 - left * (1 - again.mask.view_as(mask))
        return MaskAnswer(mask, answer.presence)

    def separate_wave(
        self,
        wave: Float[Tensor, "batch time"],
        query: Float[Tensor, "batch query dim"],
        *,
        separations: int = 1,
    ) -> tuple[Float[Tensor, "batch query time"], Float[Tensor, "batch query"]]:
        """Mono 16-kHz estimates with the mixture's phase, and presence probabilities."""
        answer = self(wave, query, separations=separations)
        return self._masked(answer.mask, wave), answer.presence

    def _masked(
        self, mask: Float[Tensor, "batch query bin frame"], wave: Float[Tensor, "batch time"]
    ) -> Float[Tensor, "batch query time"]:
        """Masks applied to a sound; a mask with fewer frames than the sound goes on as its last one."""
        spec = self.spectrogram(wave)
        missing = spec.shape[-1] - mask.shape[-1]
        if missing > 0:
            mask = torch.cat([mask, mask[..., -1:].expand(*mask.shape[:-1], missing)], dim=-1)
        flat = (mask[..., : spec.shape[-1]] * spec[:, None]).flatten(0, 1)
        window = torch.hann_window(self.n_fft, dtype=wave.dtype, device=wave.device)
        out = torch.istft(flat, self.n_fft, self.hop, window=window, center=True, length=wave.shape[-1])
        return out.view(*mask.shape[:2], -1)

    def _vectors(self, raw: Tensor, modality: Modality) -> list[QueryVector]:
        space = self.space
        with torch.no_grad():
            return [QueryVector(row, space) for row in self.heads(raw.to(self.device), modality)]

    def save(self, folder: Path, card: dict[str, Any], *, half: bool = True) -> None:
        """Write ``model.safetensors`` and ``card.json``.

        Args:
            folder: Made when missing.
            card: What the model is, as JSON values.
            half: Store matrices and kernels as float16; gains, biases and running statistics stay float32.
        """
        meta = {
            "format": FORMAT,
            "network": self.network,
            "options": json.dumps(self.options),
            "labels": json.dumps(self.labels),
            "phrases": json.dumps(self.phrases),
            "unit_queries": json.dumps(self.unit_queries),
            "encoder": self.encoder,
            "probe": json.dumps([] if self.encoder == "builtin" else self.backbones.probe()),
        }
        write_model(folder, self.state_dict(), meta, card, half=half)

    @classmethod
    def load(cls, folder: Path) -> SeparatorModel:
        """Read what :meth:`save` wrote; the file is checked against its card.

        Raises:
            ModelUnavailableError: The file is missing, damaged or of another kind.
        """
        tensors, meta, path = read_model(folder, kind="separator", wanted=FORMAT)
        try:
            fields = {
                name: json.loads(meta[name]) for name in ("options", "labels", "phrases", "unit_queries")
            }
            fields["probe"] = json.loads(meta.get("probe", "[]"))
            model = cls(meta["network"], **fields, encoder=meta.get("encoder", "builtin"))
        except (KeyError, TypeError, ValueError, UsageError) as error:
            raise ModelUnavailableError(
                "the model's description is damaged",
                where=str(path),
                why=str(error),
                hint="see `auralign models list`",
            ) from error
        try:
            model.load_state_dict(tensors)
        except RuntimeError as error:
            raise ModelUnavailableError(
                "the weights do not fit the network", where=str(path), why=str(error).splitlines()[-1].strip()
            ) from error
        return model.eval()
