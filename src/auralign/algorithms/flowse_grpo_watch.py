"""What a FlowSE-GRPO run is watched by: its rewards and held-out scores on fixed validation recordings."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from auralign.algorithms.flowse_watch import SpeechWatcher, enhance_all
from auralign.metrics.perceptual import distill_mos
from auralign.models.enhancer import RATE_HZ, EnhancerModel
from auralign.rewards.base import Scene
from auralign.rewards.compose import Composite
from auralign.rewards.workers import RewardWorkers


@dataclass(frozen=True)
class RewardWatcher:
    """Validation recordings, the rewards, and a judge that no reward uses.

    Attributes:
        speech: The recordings.
        score: The rewards.
        workers: Processes that score; none scores here.
        judge: Distill-MOS; none where its weights are not wanted.
    """

    speech: SpeechWatcher
    score: Composite
    workers: RewardWorkers | None
    judge: torch.nn.Module | None

    def __call__(self, model: EnhancerModel) -> dict[str, float]:
        """Mean of every reward and of their sum, SI-SDR improvement, PESQ, ESTOI, and the judge's score."""
        est = enhance_all(model, self.speech.noisy)
        scenes = [self._scene(n, e) for n, e in enumerate(est)]
        if self.workers is not None:
            pending = [self.workers.submit(scene) for scene in scenes]
            scored = [self.score.combine(one.result()) for one in pending]
        else:
            scored = [self.score.score(scene) for scene in scenes]
        total = torch.cat([one.total.flatten() for one in scored])
        names = scored[0].parts
        parts = {name: torch.cat([one.parts[name].flatten() for one in scored]).nanmean() for name in names}
        numbers = {"reward": float(total.nanmean()), **{f"reward_{k}": float(v) for k, v in parts.items()}}
        if self.judge is not None:
            heard = distill_mos(est, RATE_HZ, judge=self.judge, at_once=1)
            numbers["judge"] = float(torch.tensor([one.value for one in heard]).nanmean())
        return numbers | self.speech.scores(est)

    def _scene(self, n: int, est: Tensor) -> Scene:
        noisy, clean = self.speech.noisy[n][None], self.speech.clean[n][None]
        return Scene(est[None, None], noisy, RATE_HZ, target=clean, interferer=noisy - clean)
