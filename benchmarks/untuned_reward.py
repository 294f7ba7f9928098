"""The reward that MARS-Sep warns of: similarity by an encoder that nobody tuned to tell clean from mixed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from auralign.models.yamnet import YamNet, load_yamnet
from auralign.rewards.base import Reward, Scene


def untuned() -> Reward:
    """Makes the reward: cosine between the tagger's mean scores of an estimate and of the clean target."""
    tagger = load_yamnet()

    def score(scene: Scene) -> Float[Tensor, "batch group"]:
        if scene.target is None:
            return torch.full(scene.estimate.shape[:2], torch.nan)
        with torch.no_grad():
            wanted = _tags(tagger, scene.target)
            found = _tags(tagger, scene.estimate.flatten(0, 1)).unflatten(0, scene.estimate.shape[:2])
        return F.cosine_similarity(found, wanted[:, None], dim=-1)

    return score


def _tags(tagger: YamNet, wave: Float[Tensor, "batch time"]) -> Float[Tensor, "batch 521"]:
    """Mean scores of sounds at one level."""
    level = wave.square().mean(dim=1, keepdim=True).sqrt().clamp_min(1e-6)
    with torch.autocast(wave.device.type, dtype=torch.bfloat16):
        scores = tagger(wave * (0.1 / level)).scores
    return scores.float().mean(dim=1)
