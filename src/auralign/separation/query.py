"""What a listener asks for: words, pictures, videos, recorded examples, and what must stay out."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from auralign.audio.io import read
from auralign.batch.names import RESIDUAL, slug
from auralign.errors import AudioError, UsageError
from auralign.models.separator import QueryVector, SeparatorModel

_EXAMPLE_S = 30.0
_VIDEO_FRAMES = 5
VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v"})


@dataclass(frozen=True)
class Query:
    """One stem's description; everything given is combined into one query.

    Args:
        texts: Words, for example ``("violin",)``, in English.
        images: Pictures or videos of what sounds.
        audios: Recordings of a similar sound: paths, file objects or ``(array, rate_hz)``.
        exclude: Words for what must not be in the stem.
        name: File name of the stem; made from the query when empty.
        strength: How far ``exclude`` pushes away (OmniSep: 0.5).
        augment: Use the nearest class seen in training instead of the words themselves (Query-Aug).

    >>> Query(texts=("Dog barking!",)).stem
    'dog-barking'
    """

    texts: tuple[str, ...] = ()
    images: tuple[Path | str, ...] = ()
    audios: tuple[Any, ...] = ()
    exclude: tuple[str, ...] = ()
    name: str = ""
    strength: float = 0.5
    augment: bool = False

    def __post_init__(self) -> None:
        if not (self.texts or self.images or self.audios):
            raise UsageError(
                "a query names no sound", hint='give words, a picture or an example, such as "violin"'
            )
        if any(not text.strip() for text in (*self.texts, *self.exclude)):
            raise UsageError("a text query is empty", hint="say what to listen for, for example 'violin'")

    @property
    def stem(self) -> str:
        """File name without suffix: letters, digits and dashes, at most 80 characters or 160 bytes."""
        if self.name:
            return slug(self.name)
        parts = [*self.texts, *(_file_stem(one, "image") for one in self.images)]
        parts += [_file_stem(one, "example") for one in self.audios]
        text = " and ".join(parts)
        return slug(text + (" not " + " ".join(self.exclude) if self.exclude else ""))

    def describe(self) -> dict[str, Any]:
        """Plain values for a manifest."""
        return {
            "texts": list(self.texts),
            "images": [str(path) for path in self.images],
            "audios": [str(one) if isinstance(one, str | PathLike) else "<array>" for one in self.audios],
            "exclude": list(self.exclude),
            "strength": self.strength,
            "augment": self.augment,
        }


def stem_names(queries: Sequence[Query]) -> list[str]:
    """A file name for each query; a picture or example that is called like an earlier stem gets its kind added.

    Raises:
        UsageError: Two queries ask for the same thing, or have the same name given by hand.

    >>> stem_names([Query(texts=("violin",)), Query(images=("violin.png",)), Query(texts=("residual",))])
    ['violin', 'violin-image', 'residual-2']
    """
    chosen: list[str] = []
    for number, query in enumerate(queries):
        same = [n for n in range(number) if queries[n].stem == query.stem]
        given = [n for n in same if queries[n] == query or (query.name and queries[n].name)]
        if given or (query.name and query.stem == RESIDUAL):
            raise UsageError(
                f"several stems would be called {query.stem!r}",
                hint="ask for every sound once, and give the queries different names",
            )
        kind = "" if query.texts else "image" if query.images else "example"
        names = [query.stem, f"{query.stem}-{kind}" if kind else query.stem]
        names += [f"{names[-1]}-{n}" for n in range(2, len(queries) + 3)]
        chosen.append(next(name for name in names if name not in (*chosen, RESIDUAL)))
    return chosen


def _file_stem(source: Any, otherwise: str) -> str:
    return Path(source).stem if isinstance(source, str | PathLike) else otherwise


def as_query(value: Query | str) -> Query:
    """A plain text is a query of these words."""
    return value if isinstance(value, Query) else Query(texts=(value,))


def encode(model: SeparatorModel, query: Query) -> QueryVector:
    """The query as one vector of the model's space; only the backbones it needs are loaded."""
    wanted: list[QueryVector] = []
    if query.texts:
        wanted += model.text_queries(query.texts)
    for image in query.images:
        wanted += _mean(model, model.image_queries(_pictures(Path(image))))
    for example in query.audios:
        wanted += model.audio_queries(_example(example))
    unwanted = model.text_queries(query.exclude) if query.exclude else []
    return model.combine(wanted, unwanted, strength=query.strength, augment=query.augment)


def _mean(model: SeparatorModel, vectors: Sequence[QueryVector]) -> list[QueryVector]:
    return [model.combine(vectors)] if len(vectors) > 1 else list(vectors)


def _example(source: Any) -> Float[Tensor, "1 time"]:
    """The first half minute of an example, mono at 16 kHz."""
    sound = read(source, rate_hz=SeparatorModel.rate_hz, duration_s=_EXAMPLE_S)
    wave = torch.from_numpy(sound.samples.mean(axis=0, keepdims=True))
    if float(wave.abs().max()) < 1e-5:
        where = str(source) if isinstance(source, str | PathLike) else "<array>"
        raise AudioError("the example is silent", where=where, hint="give a recording of the wanted sound")
    return wave


def _pictures(path: Path) -> Float[Tensor, "picture 3 height width"]:
    from auralign.models.efficientnet import read_picture

    if path.suffix.lower() not in VIDEO_SUFFIXES:
        return read_picture(path)[None]
    from auralign.separation.video import frames

    with tempfile.TemporaryDirectory(prefix="auralign-") as folder:
        stills = [Path(folder) / f"{n}.png" for n in range(_VIDEO_FRAMES)]
        images = frames(path, _VIDEO_FRAMES)
        for still, image in zip(stills, images, strict=False):
            image.save(still)
        return torch.stack([read_picture(still) for still in stills[: len(images)]])
