r"""Semantic reward: how close the separated sound is to what was asked for, and how far from what was not.

MARS-Sep (arXiv:2510.10509), Sec. 3.2: :math:`R = \cos(\phi_a(\hat y), z^*)`, from which the similarity to the
interferer's anchor is taken here where it is known (synthetic mixtures):

.. math:: R = \cos(\phi_a(\hat y), z^*) - \nu \cos(\phi_a(\hat y), z^*_{unwanted})
"""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from auralign.errors import UsageError
from auralign.models.query_encoder import Modality
from auralign.models.reward_encoder import RewardEncoder
from auralign.rewards.base import Cue, Scene

SILENT = 1e-5
"""Below this root mean square (-100 dBFS) a sound is nothing at all, and gets the worst score."""


@final
class SemanticReward:
    r"""Similarity to the wanted cue less a share of that to the unwanted one.

    Gradients reach the estimate where it asks for them, so that the same reward serves sampling and backpropagation.

    Args:
        encoder: A trained reward encoder, in evaluation mode.
        negative: ν; scenes without an unwanted cue go without this part.
        references: Let the clean target itself take part in its anchor where the scene has it, as the paper's
            :math:`\phi_a(y^*)`; otherwise only what a listener could say is used.
    """

    def __init__(self, encoder: RewardEncoder, *, negative: float = 0.5, references: bool = True) -> None:
        if negative < 0:
            raise UsageError(f"negative is {negative}", hint="0 leaves the unwanted sound out; 0.5 is usual")
        self.encoder, self.negative, self.references = encoder, negative, references

    def __call__(self, scene: Scene) -> Float[Tensor, "batch group"]:
        """A score for each estimate; nan without a wanted cue or for a sound that is not finite; -1 for silence."""
        if scene.rate_hz != self.encoder.rate_hz:
            raise UsageError(
                f"the scene is at {scene.rate_hz} Hz, the reward encoder works at {self.encoder.rate_hz}",
                hint="resample the sounds first",
            )
        if scene.wanted is None:
            return torch.full(scene.estimate.shape[:2], torch.nan, device=scene.estimate.device)
        grad = torch.is_grad_enabled() and scene.estimate.requires_grad
        flat = scene.estimate.flatten(0, 1)
        finite = flat.isfinite().all(dim=1)
        safe = torch.where(finite[:, None], flat, 0.0)
        with torch.set_grad_enabled(grad):
            raw = self.encoder.audio_features(safe, grad=grad)
            sound = self.encoder.embed(raw, "audio").unflatten(0, scene.estimate.shape[:2])
            score = torch.einsum("bgd,bd->bg", sound, self._anchor(scene.wanted, scene.target))
            if scene.unwanted is not None and self.negative > 0:
                anchor = self._anchor(scene.unwanted, None)
                against = torch.einsum("bgd,bd->bg", sound, anchor)
                score = score - self.negative * against.nan_to_num(0.0)
        quiet = (safe.square().mean(dim=1).sqrt() < SILENT).unflatten(0, scene.estimate.shape[:2])
        score = torch.where(quiet & ~score.isnan(), -1.0, score)
        return torch.where(finite.unflatten(0, scene.estimate.shape[:2]), score, torch.nan)

    def _anchor(self, cue: Cue, sound: Float[Tensor, "batch time"] | None) -> Float[Tensor, "batch dim"]:
        """The cue's anchor, together with the sound itself where it is known and can be heard."""
        with torch.no_grad():
            if sound is not None and self.references:
                audible = sound.isfinite().all(dim=1) & (sound.square().mean(dim=1).sqrt() >= SILENT)
                raw = self.encoder.audio_features(torch.where(audible[:, None], sound, 0.0))
                features: dict[Modality, Tensor] = {**cue.features, "audio": raw}
                cue = Cue(features, {**cue.valid, "audio": audible})
            return self.encoder.anchor(cue)
