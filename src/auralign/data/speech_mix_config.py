"""How noisy speech is made, and what comes out."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from auralign.data.speech_recipes import RATE_HZ
from auralign.errors import DataError


@dataclass(frozen=True)
class SpeechMixConfig:
    """How noisy speech is made."""

    samples: int = 32_768
    """Length in samples (32,768 = 2.05 s at 16 kHz)."""
    snr_db: tuple[tuple[float, float, float], ...] = (
        (-5.0, 0.0, 0.05),
        (0.0, 5.0, 0.30),
        (5.0, 10.0, 0.45),
        (10.0, 20.0, 0.20),
    )
    """Ratios of active speech to noise: lowest, highest (dB) and share of each range, uniform within it."""
    level_db: tuple[float, float] = (-35.0, -15.0)
    """Level of the noisy signal, dB of full scale (mean power)."""
    reverberant: float = 0.25
    """Share of speech in a room."""
    rt60_s: tuple[float, float] = (0.2, 0.8)
    """Reverberation times of the rooms."""
    early_s: float = 0.05
    """The target of reverberant speech is the direct sound and this much after it."""
    rooms: int = 200
    """Rooms that are made when the mixer is loaded."""
    two_noises: float = 0.25
    """Share with two noises at once."""
    hiss: float = 0.10
    """Share whose noise is drawn, with a spectrum of power f^-a, a in 0 to 2, instead of recorded."""
    music: float = 0.15
    """Share of recorded noises that are music."""
    clean: float = 0.03
    """Share without noise; only the room, if any, is removed then."""
    band_limited: float = 0.03
    """Share of inputs without sound above 3.4 to 4 kHz; the target keeps it."""
    clipped: float = 0.03
    """Share of inputs that are clipped at 30 to 80 % of their peak; the target is not."""
    speed: float = 0.1
    """Speech is played faster or slower by a factor of up to ``1 + speed``, log-uniform; pitch follows."""
    pause_s: tuple[float, float] = (0.1, 0.6)
    """Pauses between recordings of a speaker."""

    def __post_init__(self) -> None:
        for name in ("reverberant", "two_noises", "hiss", "music", "clean", "band_limited", "clipped"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise DataError(f"{name} must be a share from 0 to 1", where=f"{name} {value}")
        if self.samples < RATE_HZ // 4:
            raise DataError("samples must be 4,000 or more", where=f"samples {self.samples}")
        if not self.snr_db or any(low > high or share < 0 for low, high, share in self.snr_db):
            raise DataError("snr_db must be ranges (lowest, highest, share)", where=str(self.snr_db))


@dataclass(frozen=True)
class SpeechBatch:
    """One batch; ``noisy = received + noise`` exactly where ``degraded`` is false.

    Args:
        clean: What an enhancer should give.
        noisy: What it is given.
        received: Speech as the microphone hears it: with the whole room, without noise.
        noise: What was added.
        snr_db: Ratio of active received speech to noise; infinite without noise.
        reverberant: Which are in a room.
        degraded: Which inputs are clipped or band-limited.
        speakers: Who speaks.
        noises: What is added, by class; "hiss" for drawn noise.
    """

    clean: Float[Tensor, "batch time"]
    noisy: Float[Tensor, "batch time"]
    received: Float[Tensor, "batch time"]
    noise: Float[Tensor, "batch time"]
    snr_db: Float[Tensor, "batch"]
    reverberant: Bool[Tensor, "batch"]
    degraded: Bool[Tensor, "batch"]
    speakers: tuple[str, ...]
    noises: tuple[tuple[str, ...], ...]
