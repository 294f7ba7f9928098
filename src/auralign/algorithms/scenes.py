"""From a training batch to what a policy decides and a reward looks at: one item for each audible source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Int, Shaped
from torch import Tensor

from auralign.algorithms.query_banks import RawQueries
from auralign.algorithms.separator_pass import Mixtures, SeparatorPass, hear, separator_pass
from auralign.models.query_encoder import Modality
from auralign.models.separator import SeparatorModel
from auralign.rewards.base import Cue, Scene


@dataclass(frozen=True)
class Items:
    """The decisions of a batch: which mixture each belongs to and which of its two sources is asked for."""

    mixture: Int[Tensor, " item"]
    source: Int[Tensor, " item"]

    @classmethod
    def of(cls, batch: Mixtures, asked: int) -> Items:
        """Every audible source among the first ``asked`` of each mixture; absent queries have nothing to score."""
        mixture, source = (batch.present[:, : min(asked, 2)] > 0).nonzero(as_tuple=True)
        return cls(mixture, source)

    def pick(self, value: Shaped[Tensor, "batch query *rest"]) -> Shaped[Tensor, "item *rest"]:
        """The rows of a value that has one for each query."""
        picked: Tensor = value[self.mixture, self.source]
        return picked


@dataclass(frozen=True)
class Decision:
    """A mask that is to be chosen for each item, and what is known of the choice."""

    batch: Mixtures
    items: Items
    proposal: Float[Tensor, "item row frame"]
    """P, in float32, with its graph."""
    energy: Float[Tensor, "item row frame"]
    """Power of what is separated, cell by cell."""
    spec: Complex[Tensor, "item bin frame"]
    """STFT of what is separated."""
    before: Float[Tensor, "item time"] | None = None
    """What earlier separations have already found."""

    def hear(
        self, model: SeparatorModel, mask: Float[Tensor, "item group row frame"]
    ) -> Float[Tensor, "item group time"]:
        """The final sounds that masks lead to."""
        found = hear(model, mask, self.spec, self.batch.mixture.shape[-1])
        return found if self.before is None else found + self.before[:, None]

    def scene(
        self, estimate: Float[Tensor, "item group time"], labels: Sequence[str], texts: Sequence[str]
    ) -> Scene:
        """What the rewards see of the final sounds."""
        return scene_of(self.batch, self.items, estimate, labels, texts)


def first_decision(batch: Mixtures, items: Items, out: SeparatorPass) -> Decision:
    """The masks of the mixtures themselves."""
    proposal = torch.sigmoid(items.pick(out.logits).float())
    return Decision(batch, items, proposal, out.energy[items.mixture], out.spec[items.mixture])


def residual_decision(
    model: SeparatorModel,
    first: Decision,
    query: Float[Tensor, "batch query dim"],
    *,
    bfloat16: bool,
) -> Decision:
    """The masks of what the separator left over, after it took its own most likely mask from each mixture.

    One more pass, a mixture for each item. The rewards still judge the final sound: both finds together.
    """
    items = first.items
    with torch.no_grad():
        found = first.hear(model, first.proposal.detach()[:, None])[:, 0]
    left = first.batch.mixture[items.mixture] - found
    out = separator_pass(model, left, items.pick(query)[:, None], bfloat16=bfloat16)
    proposal = torch.sigmoid(out.logits[:, 0].float())
    return Decision(first.batch, items, proposal, out.energy, out.spec, found)


def scene_of(
    batch: Mixtures,
    items: Items,
    estimate: Float[Tensor, "item group time"],
    labels: Sequence[str],
    texts: Sequence[str],
) -> Scene:
    """What the rewards see of the items.

    Args:
        batch: The mixtures.
        items: Which of their sources are asked for.
        estimate: The separated sounds.
        labels: Name of each class.
        texts: A wording of each class.
    """
    target = items.pick(batch.sources)
    mixture = batch.mixture[items.mixture]
    numbers = [int(n) for n in items.pick(batch.raw.labels)]
    other = Items(items.mixture, 1 - items.source)
    return Scene(
        estimate=estimate,
        mixture=mixture,
        rate_hz=SeparatorModel.rate_hz,
        target=target,
        interferer=mixture - target,
        labels=tuple(labels[n] for n in numbers),
        texts=tuple(texts[n] for n in numbers),
        wanted=_cue(batch.raw, items),
        unwanted=_cue(batch.raw, other),
    )


def _cue(raw: RawQueries, items: Items) -> Cue:
    """Words and picture of a source; a reward takes the sound itself from the scene."""
    features: dict[Modality, Tensor] = {
        "text": items.pick(raw.features["text"]),
        "image": items.pick(raw.features["image"]),
    }
    shown = items.pick(raw.has_image) > 0
    return Cue(features, {"text": torch.ones_like(shown), "image": shown})
