"""Separators with tiny random networks, or with networks that answer a mask of our choice."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from auralign.models.mask_network import MaskAnswer
from auralign.models.separator import SeparatorModel
from auralign.separation import Separator
from auralign.separation.stream import StemBlock, StemStream

TINY = {"widths": (16, 32, 48, 64), "fine": 8, "hidden": 32, "query_dim": 256}


class Answering(nn.Module):
    """A network that gives every query the mask that a function of the frames' count makes."""

    n_fft, hop = 1024, 256

    def __init__(self, make: Callable[[int, int], torch.Tensor], presence: float = 1.0) -> None:
        super().__init__()
        self.make, self.presence = make, presence

    def analyse(self, spec, wave):
        return {"frames": torch.tensor(spec.shape[-1])}

    def answer(self, state, query):
        queries = query.shape[1]
        mask = self.make(queries, int(state["frames"]))[None]
        return MaskAnswer(mask, torch.full((1, queries), self.presence))


@pytest.fixture(scope="session")
def tiny() -> SeparatorModel:
    torch.manual_seed(7)
    model = SeparatorModel("small", dict(TINY)).eval()
    torch.nn.init.normal_(model.net.net.head.filters.weight, std=0.3)  # masks that vary
    return model


@pytest.fixture(scope="session")
def separator(tiny) -> Separator:
    return Separator(tiny, "tiny")


@pytest.fixture
def answering(tiny) -> Callable[..., SeparatorModel]:
    """A model whose masks are all ``value``, or what a function of (queries, frames) says."""

    def build(value: float | Callable[[int, int], torch.Tensor], presence: float = 1.0) -> SeparatorModel:
        model = SeparatorModel("small", dict(TINY)).eval()
        model.backbones = tiny.backbones
        make = value if callable(value) else lambda queries, frames: torch.full((queries, 513, frames), value)
        model.net = Answering(make, presence)
        return model

    return build


@pytest.fixture
def queries() -> Callable[[int], torch.Tensor]:
    def make(count: int) -> torch.Tensor:
        vectors = torch.randn(count, 256, generator=torch.Generator().manual_seed(3))
        return torch.nn.functional.normalize(vectors, dim=-1)

    return make


@pytest.fixture
def noise() -> Callable[..., np.ndarray]:
    def make(channels: int, frames: int, seed: int = 0) -> np.ndarray:
        return (np.random.default_rng(seed).standard_normal((channels, frames)) * 0.1).astype(np.float32)

    return make


@pytest.fixture
def through() -> Callable[..., StemBlock]:
    """All stems of a sound that goes through a stream in blocks of these sizes, over and over."""

    def run(stream: StemStream, wave: np.ndarray, sizes: tuple[int, ...] = ()) -> StemBlock:
        blocks, start, turn = [], 0, 0
        sizes = sizes or (wave.shape[1],)
        while start < wave.shape[1]:
            size = sizes[turn % len(sizes)]
            blocks.append(stream.process(wave[:, start : start + size]))
            start, turn = start + size, turn + 1
        blocks.append(stream.process(wave[:, :0], True))
        return StemBlock(
            np.concatenate([block.targets for block in blocks], axis=-1),
            np.concatenate([block.residual for block in blocks], axis=-1),
        )

    return run
