r"""FlowSE-GRPO's reward as a preset: components on frozen scales, then summed.

.. math:: R = \sum_k w_k \, r_k / \sigma_k

FlowSE-GRPO (arXiv:2601.16483) weighs 0.6 OVRL/4, 1.0 speaker cosine to the clean speech and 1.0 SpeechBERTScore,
each divided by its standard deviation, not centred: a group-relative advantage removes the mean anyway. A standard
deviation of each batch would let the weights drift, so :math:`\sigma_k` is measured once and frozen.
:data:`PUBLISHED_SCALES` are those of a public re-implementation (8,192 clips, 10 steps) with ERes2Net and WavLM as
evaluators; the evaluators here are others, so measure with :func:`auralign.rewards.speech.speech_scales`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from auralign.errors import UsageError
from auralign.rewards.load import RewardConfig


@dataclass(frozen=True)
class FrozenTerm:
    r"""A component of a preset.

    Attributes:
        path: The built-in reward.
        share: Its weight in the sum, :math:`w_k`.
        unit: What its score is divided by before the scale (OVRL counts in fourths).
        scale: Its published standard deviation in that unit, :math:`\sigma_k`.
    """

    path: str
    share: float
    scale: float
    unit: float = 1.0


FLOWSE_GRPO: tuple[FrozenTerm, ...] = (
    FrozenTerm("dnsmos_ovrl", 0.6, 0.0703, unit=4.0),
    FrozenTerm("speaker", 1.0, 0.1387),
    FrozenTerm("spectral_features", 1.0, 0.0955),
)
"""The published shares; spectral features in the place of SpeechBERTScore."""

PUBLISHED_SCALES: dict[str, float] = {term.path: term.scale * term.unit for term in FLOWSE_GRPO}
"""Standard deviation of each reward as it is here (OVRL in MOS)."""


def frozen_rewards(
    scales: Mapping[str, float] | None = None, terms: tuple[FrozenTerm, ...] = FLOWSE_GRPO
) -> tuple[RewardConfig, ...]:
    r"""The preset as reward tables of a recipe: weight :math:`w_k / \sigma_k`, nothing normalised at run time.

    Args:
        scales: Measured standard deviation of each reward; ``None`` takes the published ones.
        terms: The preset.

    >>> [round(one.weight, 3) for one in frozen_rewards()]
    [2.134, 7.21, 10.471]
    """
    known = {term.path: term.scale * term.unit for term in terms} if scales is None else dict(scales)
    missing = [term.path for term in terms if not known.get(term.path, 0.0) > 0]
    if missing:
        raise UsageError(
            f"no scale above 0 for {', '.join(missing)}",
            where="reward preset",
            hint="measure all with speech_scales on the base model's clips",
        )
    return tuple(RewardConfig(path=term.path, weight=term.share / known[term.path]) for term in terms)
