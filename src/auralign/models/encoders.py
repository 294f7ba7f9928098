"""The frozen encoders that queries go through: built-in ones, or CLAP and ImageBind checkpoints of the user's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from auralign.errors import ModelUnavailableError, UsageError
from auralign.models.query_encoder import BACKBONE_DIMS, Modality
from auralign.models.yamnet import YamNet

_PROBE = "a dog barks while somebody plays the violin"
_PROBE_TOLERANCE = 1e-3


class QueryBackbones(ABC):
    """Raw features of texts, sounds and pictures.

    Attributes:
        spec: What :func:`open_backbones` was given; kept in every model file.
        dims: Feature size of each modality it takes.
    """

    spec: str
    dims: Mapping[Modality, int]

    def __deepcopy__(self, memo: dict[int, Any]) -> QueryBackbones:
        return self  # frozen: copies of a separator share them

    @abstractmethod
    def texts(self, texts: Sequence[str]) -> Float[Tensor, "batch features"]:
        """Features of texts."""

    @abstractmethod
    def audio(self, wave: Float[Tensor, "batch time"]) -> Float[Tensor, "batch features"]:
        """Features of mono 16-kHz sounds."""

    @abstractmethod
    def images(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]:
        """Features of pictures as :meth:`read_picture` gives them."""

    @abstractmethod
    def read_picture(self, path: str | Path) -> Float[Tensor, "3 height width"]:
        """A picture as this encoder expects it."""

    def probe(self) -> list[float]:
        """Features of one fixed sentence: two encoders that differ here are not the same."""
        return [float(x) for x in self.texts([_PROBE])[0]]

    def require_same(self, probe: Sequence[float], *, where: str) -> None:
        """Refuse to stand in for the encoder that a model was trained with.

        Raises:
            ModelUnavailableError: The fixed sentence comes out differently.
        """
        mine = torch.tensor(self.probe())
        theirs = torch.tensor(list(probe))
        if mine.shape == theirs.shape and float((mine - theirs).norm()) <= _PROBE_TOLERANCE * float(
            theirs.norm()
        ):
            return
        raise ModelUnavailableError(
            f"the query encoder {self.spec!r} is not the one this model was trained with",
            where=where,
            why="a fixed sentence gives another vector",
            hint="give the same checkpoint, or train the model again with this one",
        )


def _refuse_empty(texts: Sequence[str]) -> None:
    if any(not text.strip() for text in texts):
        raise UsageError("a text query is empty", hint="say what to listen for, for example 'violin'")


def _text() -> nn.Module:
    from auralign.models.minilm import load_minilm

    return load_minilm()


def _audio() -> nn.Module:
    from auralign.models.yamnet import load_yamnet

    return load_yamnet()


def _image() -> nn.Module:
    from auralign.models.efficientnet import load_efficientnet_lite0

    return load_efficientnet_lite0()


_LOADERS = {"text": _text, "audio": _audio, "image": _image}


class Backbones(QueryBackbones):
    """The built-in encoders, each loaded on first use.

    Texts go through MiniLM, audio examples through YAMNet (mean of the patch embeddings), pictures through
    EfficientNet-Lite0. Their files are pinned by hash, so every copy is the same.
    """

    spec = "builtin"
    dims = BACKBONE_DIMS

    def __init__(self) -> None:
        self._loaded: dict[str, Any] = {}

    def _get(self, name: Modality) -> Any:
        if name not in self._loaded:
            self._loaded[name] = _LOADERS[name]()
        return self._loaded[name]

    @property
    def yamnet(self) -> YamNet:
        """The audio backbone, which the small separator's trunk also reads."""
        network: YamNet = self._get("audio")
        return network

    def texts(self, texts: Sequence[str]) -> Float[Tensor, "batch features"]:
        """Sentence vectors."""
        _refuse_empty(texts)
        vectors: Tensor = self._get("text").encode(list(texts))
        return vectors

    def audio(self, wave: Float[Tensor, "batch time"]) -> Float[Tensor, "batch features"]:
        """Mean YAMNet embedding, the level brought to -20 dBFS."""
        rms = wave.square().mean(dim=1, keepdim=True).sqrt()
        with torch.no_grad():
            embedding: Tensor = self._get("audio")(wave * (0.1 / rms.clamp_min(1e-6))).embedding
        return embedding.mean(dim=1)

    def images(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]:
        """Pooled picture features."""
        with torch.no_grad():
            features: Tensor = self._get("image").embed(images)
        return features

    def read_picture(self, path: str | Path) -> Float[Tensor, "3 height width"]:
        """A picture fitted into 224 x 224 on white."""
        from auralign.models.efficientnet import read_picture

        return read_picture(path)


class ClapBackbones(QueryBackbones):
    """A CLAP checkpoint for texts and sounds; it knows no pictures.

    Args:
        place: Folder or hub id.
    """

    def __init__(self, place: str) -> None:
        from auralign.models.clap import ClapEncoder

        self.spec = f"clap:{place}"
        self._encoder = ClapEncoder.from_path(place)
        self.dims = {"text": self._encoder.dim, "audio": self._encoder.dim}

    def texts(self, texts: Sequence[str]) -> Float[Tensor, "batch features"]:
        """CLAP text vectors."""
        _refuse_empty(texts)
        with torch.no_grad():
            return self._encoder.embed_text(list(texts))

    def audio(self, wave: Float[Tensor, "batch time"]) -> Float[Tensor, "batch features"]:
        """CLAP audio vectors."""
        with torch.no_grad():
            return self._encoder.embed_audio(wave, rate_hz=16_000)

    def images(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]:
        """CLAP takes no pictures: always an error."""
        raise UsageError("CLAP takes no picture query", hint="use words or a recorded example")

    def read_picture(self, path: str | Path) -> Float[Tensor, "3 height width"]:
        """CLAP takes no pictures: always an error."""
        raise UsageError(
            "CLAP takes no picture query", where=str(path), hint="use words or a recorded example"
        )


class ImageBindBackbones(QueryBackbones):
    """An ImageBind checkpoint (non-commercial licence) for all three modalities.

    Args:
        place: Safetensors file or folder.
    """

    def __init__(self, place: str) -> None:
        from auralign.models.imagebind import ImageBind

        self.spec = f"imagebind:{place}"
        self._encoder = ImageBind.from_path(place)
        dim = self._encoder.cfg.dim
        self.dims = {"text": dim, "audio": dim, "image": dim}

    def texts(self, texts: Sequence[str]) -> Float[Tensor, "batch features"]:
        """ImageBind text vectors."""
        _refuse_empty(texts)
        with torch.no_grad():
            return self._encoder.embed_text(list(texts))

    def audio(self, wave: Float[Tensor, "batch time"]) -> Float[Tensor, "batch features"]:
        """ImageBind audio vectors."""
        with torch.no_grad():
            return self._encoder.embed_audio(wave)

    def images(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]:
        """ImageBind picture vectors."""
        with torch.no_grad():
            return self._encoder.embed_pictures(images)

    def read_picture(self, path: str | Path) -> Float[Tensor, "3 height width"]:
        """A picture in CLIP's normalisation."""
        from auralign.models.imagebind import read_clip_picture

        return read_clip_picture(path)


def _tokens() -> QueryBackbones:
    from auralign.models.text_tokens import TokenBackbones

    return TokenBackbones()


def _clap_tokens(place: str, *, keep_padding: bool = False) -> QueryBackbones:
    from auralign.models.text_tokens import ClapTokenBackbones

    return ClapTokenBackbones(place, keep_padding)


def _bimodal(place: str) -> QueryBackbones:
    from auralign.models.bimodal import as_backbones

    return as_backbones(place)


_ADAPTERS: dict[str, Callable[[str], QueryBackbones]] = {
    "clap": ClapBackbones,
    "imagebind": ImageBindBackbones,
    "bimodal": _bimodal,
    "clap-tokens": _clap_tokens,
    "clap-padded-tokens": partial(_clap_tokens, keep_padding=True),
}
_BUILT_IN: dict[str, Callable[[], QueryBackbones]] = {"builtin": Backbones, "tokens": _tokens}


def open_backbones(spec: str) -> QueryBackbones:
    """The encoders that a model asks for, by name or as ``KIND:PLACE`` of a checkpoint of the user's.

    ``builtin`` gives one vector a query and ``tokens`` the words one by one. ``clap:`` and ``imagebind:`` stand for the
    first with other checkpoints, ``clap-tokens:`` for the second (``clap-padded-tokens:`` with the padding that BiSep
    attends to), and ``bimodal:`` gives the text vectors of a bimodal encoder.

    >>> open_backbones("builtin").dims["text"]
    384
    """
    if spec in _BUILT_IN:
        return _BUILT_IN[spec]()
    kind, _, place = spec.partition(":")
    if kind not in _ADAPTERS or not place:
        raise UsageError(
            f"there is no query encoder {spec!r}",
            hint="one of builtin, tokens, clap:FOLDER_OR_HUB_ID, imagebind:FILE, clap-tokens:FOLDER_OR_HUB_ID",
        )
    return _ADAPTERS[kind](place)
