"""Sounds that several tests use."""

from __future__ import annotations

import numpy as np
import pytest


def spoken(seconds: float, pitch_hz: float, seed: int) -> np.ndarray:
    """Something like a voice at 16 kHz: harmonics of a gliding pitch under three formants, syllables, breath."""
    t = np.arange(round(seconds * 16000)) / 16000
    phase = 2 * np.pi * np.cumsum(pitch_hz * (1 + 0.1 * np.sin(2 * np.pi * 0.7 * t))) / 16000
    wave = np.zeros_like(t)
    for k in range(1, 30):
        f = k * pitch_hz
        gain = sum(np.exp(-(((f - c) / w) ** 2)) for c, w in ((600, 200), (1300, 300), (2600, 500)))
        wave += (gain + 0.02) * np.sin(k * phase)
    wave *= 0.55 + 0.45 * np.sin(2 * np.pi * 3 * t)
    wave += 0.02 * np.random.default_rng(seed).standard_normal(len(t))
    return (0.3 * wave / np.abs(wave).max()).astype(np.float32)


@pytest.fixture(scope="session")
def voice():
    """Makes a voice of some seconds, pitch and seed."""
    return spoken
