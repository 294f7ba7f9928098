"""Enhancers that are simple enough to know their answer, a tiny network, and real speech."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.signal import firwin

from auralign.audio.io import read
from auralign.enhancement.stream import EnhanceBlock, EnhanceStream
from auralign.models.enhancer import EnhancerModel

SPEECH = Path(__file__).parents[1] / "fixtures" / "sounds" / "speech.flac"


class Plain:
    """An enhancer made of a function of the wave and the seed; it remembers what it was asked."""

    name, rate_hz = "plain", 16_000

    def __init__(self, make: Callable[[torch.Tensor, int], torch.Tensor]) -> None:
        self.make = make
        self.seeds: list[int] = []
        self.lengths: list[int] = []
        self.steps: list[int | None] = []

    def enhance_wave(self, wave, *, steps=None, seed=0):
        self.seeds.append(seed)
        self.lengths.append(wave.shape[-1])
        self.steps.append(steps)
        return self.make(wave, seed)


@pytest.fixture
def plain() -> type[Plain]:
    return Plain


@pytest.fixture
def identity() -> Plain:
    return Plain(lambda wave, seed: wave)


@pytest.fixture
def half() -> Plain:
    return Plain(lambda wave, seed: 0.5 * wave)


@pytest.fixture
def nothing() -> Plain:
    return Plain(lambda wave, seed: torch.zeros_like(wave))


@pytest.fixture
def lowpass() -> Plain:
    """Keeps what lies below 2 kHz, by a filter of 101 taps without delay."""
    taps = torch.from_numpy(firwin(101, 2000, fs=16_000)).float()[None, None]
    return Plain(lambda wave, seed: torch.nn.functional.conv1d(wave[:, None], taps, padding=50)[:, 0])


@pytest.fixture
def seeded() -> Plain:
    """The wave and a little noise of the seed."""

    def make(wave: torch.Tensor, seed: int) -> torch.Tensor:
        return wave + 0.01 * torch.randn(wave.shape, generator=torch.Generator().manual_seed(seed))

    return Plain(make)


@pytest.fixture(scope="session")
def tiny() -> EnhancerModel:
    """A random network of the real kind."""
    torch.manual_seed(3)
    options = {"widths": (4, 4, 8, 8), "blocks": (1, 1, 1, 1), "clock": 16}
    return EnhancerModel("band_unet", options, steps=2, name="tiny").eval()


@pytest.fixture(scope="session")
def speech() -> np.ndarray:
    return read(SPEECH).samples


@pytest.fixture
def noise() -> Callable[..., np.ndarray]:
    def make(channels: int, frames: int, seed: int = 0) -> np.ndarray:
        return (np.random.default_rng(seed).standard_normal((channels, frames)) * 0.1).astype(np.float32)

    return make


@pytest.fixture
def through() -> Callable[..., EnhanceBlock]:
    """All of a sound that goes through a stream in blocks of these sizes, over and over."""

    def run(stream: EnhanceStream, wave: np.ndarray, sizes: tuple[int, ...] = ()) -> EnhanceBlock:
        blocks, start, turn = [], 0, 0
        sizes = sizes or (wave.shape[1],)
        while start < wave.shape[1]:
            size = sizes[turn % len(sizes)]
            blocks.append(stream.process(wave[:, start : start + size]))
            start, turn = start + size, turn + 1
        blocks.append(stream.process(wave[:, :0], True))
        return EnhanceBlock(
            np.concatenate([block.enhanced for block in blocks], axis=-1),
            np.concatenate([block.residual for block in blocks], axis=-1),
        )

    return run
