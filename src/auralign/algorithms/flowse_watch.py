"""What a run of an enhancer is watched by: fixed validation recordings, scored with few and with one evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from auralign.data.speech_lists import load_speech_list
from auralign.metrics.intelligibility import estoi, pesq_wb
from auralign.metrics.sdr import si_sdr
from auralign.models.enhancer import RATE_HZ, Enhancer, EnhancerModel
from auralign.runtime.tracker import Tracker

ITEMS = 48
"""Recordings that are heard of a list, spread evenly."""
AT_ONCE = 8
SAMPLES = 3


def enhance_all(
    enhancer: Enhancer, sounds: list[Float[Tensor, " _"]], *, steps: int | None = None, seed: int = 0
) -> list[Float[Tensor, " _"]]:
    """Recordings one after another, those of equal length together; seeds belong to places in the list."""
    found: list[Tensor] = []
    for first in range(0, len(sounds), AT_ONCE):
        part = sounds[first : first + AT_ONCE]
        whole = len({len(sound) for sound in part}) == 1
        groups = [torch.stack(part)] if whole else [sound[None] for sound in part]
        for number, group in enumerate(groups):
            found.extend(enhancer.enhance_wave(group, steps=steps, seed=seed + first + number))
    return found


@dataclass(frozen=True)
class SpeechWatcher:
    """Validation recordings in memory.

    Attributes:
        clean: What was said.
        noisy: What is enhanced.
    """

    clean: list[Tensor]
    noisy: list[Tensor]

    @classmethod
    def load(cls, name: str, corpus: Path, noises: Path, items: int = ITEMS) -> SpeechWatcher:
        """Recordings of a list, a name or a file, spread evenly."""
        every = load_speech_list(Path(name) if name.endswith(".jsonl") else name, corpus, noises)
        chosen = [every[k * len(every) // items] for k in range(items)] if len(every) > items else every
        pairs = [(item.clean, item.noisy) for item in chosen if item.clean is not None]
        return cls([torch.from_numpy(c) for c, _ in pairs], [torch.from_numpy(y) for _, y in pairs])

    def __call__(self, model: EnhancerModel) -> dict[str, float]:
        """SI-SDR improvement with the model's own number of evaluations and with one; PESQ and ESTOI."""
        one = enhance_all(model, self.noisy, steps=1)
        more = {"si_sdri_1": self._improvement(one), "pesq_wb_1": self._pesq(one)}
        return self.scores(enhance_all(model, self.noisy)) | more | {"pesq_wb_noisy": self._pesq(self.noisy)}

    def scores(self, est: list[Float[Tensor, " _"]]) -> dict[str, float]:
        """Mean SI-SDR improvement, PESQ and ESTOI of enhanced recordings."""
        intelligible = [estoi(est=e, ref=c, rate_hz=RATE_HZ).value for e, c in self._pairs(est)]
        return {
            "si_sdri": self._improvement(est),
            "pesq_wb": self._pesq(est),
            "estoi": _mean(intelligible),
        }

    def write_samples(self, model: EnhancerModel, tracker: Tracker, step: int) -> None:
        """A few recordings, enhanced and clean, as sounds of the run."""
        for n, est in enumerate(enhance_all(model, self.noisy[:SAMPLES])):
            for name, sound in (("enhanced", est), ("noisy", self.noisy[n]), ("clean", self.clean[n])):
                tracker.sound(step, f"{n}-{name}", sound[None].numpy(), RATE_HZ)

    def _pairs(self, est: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        return list(zip(est, self.clean, strict=True))

    def _pesq(self, est: list[Tensor]) -> float:
        return _mean([pesq_wb(est=e, ref=c, rate_hz=RATE_HZ).value for e, c in self._pairs(est)])

    def _improvement(self, est: list[Tensor]) -> float:
        """Mean SI-SDR improvement, dB."""
        after = [float(si_sdr(est=e, ref=c)) for e, c in self._pairs(est)]
        before = [float(si_sdr(est=y, ref=c)) for y, c in self._pairs(self.noisy)]
        return _mean([a - b for a, b in zip(after, before, strict=True)])


def _mean(values: list[float]) -> float:
    """Mean of what could be scored."""
    return float(torch.tensor(values, dtype=torch.float64).nanmean())
