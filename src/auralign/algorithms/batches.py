"""Training batches of mix-and-separate: any step's mixtures and queries follow from the seed and the step alone."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from auralign.algorithms.query_banks import QueryBanks, RawQueries, draw_queries
from auralign.algorithms.separator_pass import Mixtures
from auralign.algorithms.training import Corpus, equalise
from auralign.data.mixer import MixBatch, MixConfig
from auralign.models.separator import SeparatorModel
from auralign.runtime.seed import derive


@runtime_checkable
class BatchConfig(Protocol):
    """What a configuration must say about its batches."""

    @property
    def seed(self) -> int:
        """Every random number follows from it."""

    @property
    def batch(self) -> int:
        """Mixtures a micro-batch."""

    @property
    def mix(self) -> MixConfig:
        """How mixtures are made."""

    @property
    def modalities(self) -> tuple[float, float, float, float]:
        """Chances of a text, audio, picture and mixed-up query."""

    @property
    def query_noise(self) -> float:
        """Length of a random vector added to each query."""


def draw(cfg: BatchConfig, corpus: Corpus, banks: QueryBanks, step: int, micro: int) -> Mixtures:
    """Mixtures and queries of one micro-batch; they follow from the seed, the step and its number alone."""
    rng = np.random.default_rng(derive(cfg.seed, "batch", step, micro))
    batch: MixBatch = corpus.mixer.batch(rng, cfg.batch)
    stacked = torch.from_numpy(np.concatenate([batch.sources, batch.distractor[:, None]], axis=1))
    if cfg.mix.equaliser_db > 0:
        stacked = equalise(stacked, rng, cfg.mix.equaliser_db)
    raw = draw_queries(rng, batch, corpus.mixer, banks, cfg.modalities)
    present = torch.cat([torch.from_numpy(batch.audible).float(), torch.zeros(cfg.batch, 1)], dim=1)
    return Mixtures(stacked[:, :2], stacked.sum(dim=1), present, raw)


def query_vectors(
    cfg: BatchConfig, model: SeparatorModel, raw: RawQueries, rng: torch.Generator
) -> Float[Tensor, "batch query dim"]:
    """Query-Mixup of a batch's queries, each moved by a short random vector."""
    query = raw.embed(model.query_heads, unit=model.unit_queries)
    noise = F.normalize(torch.randn(query.shape, generator=rng), dim=-1) * cfg.query_noise
    query = query + noise.to(query.device)
    return F.normalize(query, dim=-1) if model.unit_queries else query
