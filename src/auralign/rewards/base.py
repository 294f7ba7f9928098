"""What every reward may look at, and the shape of its answer.

A reward maps a :class:`Scene` to one number an estimate, ``batch group``; ``nan`` says that a member cannot be
scored and must leave its group. Rewards never change a sound: level, rate and length are the policy's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from auralign.errors import UsageError
from auralign.models.query_encoder import Modality


@dataclass(frozen=True, eq=False)
class Cue:
    """What says which sound is meant, as raw features of the frozen backbones.

    Attributes:
        features: Features of each given modality; rows that are not valid may hold anything finite.
        valid: Which items have that modality.
    """

    features: Mapping[Modality, Float[Tensor, "batch _"]]
    valid: Mapping[Modality, Bool[Tensor, " batch"]]

    def __post_init__(self) -> None:
        if set(self.features) != set(self.valid) or not self.features:
            raise UsageError(
                "a cue needs features and a valid mask for the same modalities",
                why=f"features: {sorted(self.features)}, valid: {sorted(self.valid)}",
            )
        sizes = {len(x) for x in self.features.values()} | {len(x) for x in self.valid.values()}
        if len(sizes) != 1:
            raise UsageError("the modalities of a cue differ in batch size", why=f"{sorted(sizes)}")

    @property
    def size(self) -> int:
        """Number of items."""
        return len(next(iter(self.features.values())))


@dataclass(frozen=True, eq=False)
class Scene:
    """Everything that a reward may look at.

    Attributes:
        estimate: Separated sounds, several of each mixture.
        mixture: What was separated.
        rate_hz: Their rate.
        target: Clean reference, known for synthetic mixtures.
        interferer: The mixture less the target.
        labels: Class that is asked for, one a mixture ("" = unknown).
        texts: Words that are asked for ("" = unknown).
        wanted: Cue of the target.
        unwanted: Cue of the interferer.
    """

    estimate: Float[Tensor, "batch group time"]
    mixture: Float[Tensor, "batch time"]
    rate_hz: int
    target: Float[Tensor, "batch time"] | None = None
    interferer: Float[Tensor, "batch time"] | None = None
    labels: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    wanted: Cue | None = None
    unwanted: Cue | None = None


Reward = Callable[[Scene], Float[Tensor, "batch group"]]
"""A score for each member of each group; larger is better, ``nan`` = cannot be scored."""
