"""The example rewards that users copy, and the whole way from a path to a checked score."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from auralign.rewards.base import Scene
from auralign.rewards.load import RewardConfig, compose

EXAMPLES = Path(__file__).parents[2] / "examples"
RATE_HZ = 16_000
T = torch.arange(2 * RATE_HZ) / RATE_HZ


def _tone(hertz: float, level: float = 1.0) -> torch.Tensor:
    return level * torch.sin(2 * math.pi * hertz * T)


@pytest.fixture
def score(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def scored(name: str, *sounds: torch.Tensor) -> list[float]:
        estimate = torch.stack(sounds)[None]
        composite = compose([RewardConfig(f"my_rewards.{name}")])
        return composite.score(Scene(estimate, estimate.sum(1), RATE_HZ)).total[0].tolist()

    return scored


def test_less_hum_counts_the_share_of_mains_energy(score):
    found = score("less_hum", _tone(50), _tone(440), _tone(440) + _tone(150), _tone(440) + _tone(100, 0.5))
    assert found == pytest.approx([-1.0, 0.0, -0.5, -0.2], abs=2e-3)


def test_brightness_counts_the_share_above_4_khz(score):
    found = score("brightness", _tone(6000), _tone(1000), _tone(1000) + _tone(6000, 2.0))
    assert found == pytest.approx([1.0, 0.0, 0.8], abs=2e-3)


@pytest.mark.parametrize("name", ["less_hum", "brightness"])
def test_level_does_not_matter_and_silence_is_not_scored(score, name):
    noise = torch.randn(2 * RATE_HZ, generator=torch.Generator().manual_seed(0))
    loud, faint, silent = score(name, noise, 1e-3 * noise, 0 * noise)
    assert loud == pytest.approx(faint, abs=1e-5)
    assert math.isnan(silent)
