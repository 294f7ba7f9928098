"""The held-out judge as a trial uses it: anchors once a mixture, outputs in small batches, optionally in bfloat16.

In bfloat16 a sound costs half. On sets of 32 outputs a separator it moved single cosines by up to 0.0011 and their mean
by up to 0.0003. The summary of a trial names the arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from auralign.metrics import semantic
from auralign.models.judge import Judge

JUDGED = (
    "judge_similarity",
    "judge_margin_interferer",
    "judge_margin_mixture",
    "judge_rank",
    "judge_top1",
)
ANCHORS = ("anchor_mixture", "anchor_interferer")
"""Cosines of the untouched mixture and of the interferer to the clean target: what no separation scores."""

Precision = Literal["float32", "bfloat16"]
_AT_ONCE = 4  # sounds a pass; more do not fit into a processor's cache


class TrialJudge:
    """Embeddings and semantic scores of 16-kHz sounds.

    Args:
        network: The judge.
        precision: Arithmetic of its convolutions; the front end and all cosines stay in float32 and float64.
        prototypes: One embedding per class, for the rank of the target's class; empty leaves the rank out.
    """

    def __init__(
        self, network: Judge, precision: Precision, prototypes: Mapping[str, np.ndarray] | None = None
    ) -> None:
        network.pairs.to(torch.bfloat16 if precision == "bfloat16" else torch.float32)
        self._network = network
        self._classes = sorted(prototypes or {})
        self._prototypes = (
            torch.from_numpy(np.stack([prototypes[name] for name in self._classes])) if prototypes else None
        )

    def embed(
        self, waves: Sequence[Float[np.ndarray, " time"]], rate_hz: int = 16_000
    ) -> Float[Tensor, "sound 512"]:
        """Unit vectors of sounds of one length."""
        return self._network.hear(waves, rate_hz, at_once=_AT_ONCE)

    def scores(
        self,
        est: Float[Tensor, "est 512"],
        anchors: Float[Tensor, "3 512"],
        label: str,
    ) -> dict[str, list[float]]:
        """Semantic scores of many outputs for one mixture.

        Args:
            est: Embeddings of the outputs.
            anchors: Embeddings of target, interferer and mixture.
            label: Class of the target.
        """
        ref, other, mixture = (anchor.expand_as(est) for anchor in anchors)
        found = {
            "judge_similarity": semantic.cosine(est=est, ref=ref),
            "judge_margin_interferer": semantic.margin(est=est, ref=ref, other=other),
            "judge_margin_mixture": semantic.margin(est=est, ref=ref, other=mixture),
            "anchor_mixture": semantic.cosine(est=mixture, ref=ref),
            "anchor_interferer": semantic.cosine(est=other, ref=ref),
        }
        if self._prototypes is not None and label in self._classes:
            target = torch.full((len(est),), self._classes.index(label))
            rank = semantic.class_rank(est=est, prototypes=self._prototypes, target=target)
            found["judge_rank"] = rank
            found["judge_top1"] = torch.where(rank.isnan(), rank, (rank == 1).double())
        return {name: [float(value) for value in values] for name, values in found.items()}
