"""What a run is watched by: fixed validation mixtures, their rewards, and a judge that nothing is trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from auralign.algorithms.query_banks import QueryBanks, draw_queries
from auralign.algorithms.scenes import Items, first_decision
from auralign.algorithms.separator_pass import Mixtures, separator_pass
from auralign.algorithms.training import Corpus, evaluation, validate
from auralign.models.judge import Judge, load_judge
from auralign.models.separator import SeparatorModel
from auralign.rewards.compose import Composite
from auralign.runtime.seed import derive


def mean_mask(mask: Float[Tensor, "item row frame"], energy: Float[Tensor, "item row frame"]) -> float:
    """How much of the mixtures' energy masks let through, in [0, 1]: what an all-pass alarm looks at."""
    return float((mask * energy).sum() / energy.sum().clamp_min(1e-20))


@dataclass
class Watcher:
    """Scores a separator on fixed validation mixtures with the mask it would use, not a drawn one.

    Attributes:
        corpus: Where the mixtures come from.
        banks: Features of their queries.
        rewards: What is trained on, if anything; reported unnormalised.
        judge: Whether the held-out judge listens too.
        seed: Of the mixtures.
        size: Mixtures that rewards and judge hear; SI-SDRi uses all of :func:`~.training.validate`.
    """

    corpus: Corpus
    banks: QueryBanks
    rewards: Composite | None
    judge: bool
    seed: int
    size: int = 16
    _listener: Judge | None = field(default=None, init=False, repr=False)
    _clean: Tensor | None = field(default=None, init=False, repr=False)

    def __call__(self, model: SeparatorModel) -> dict[str, float]:
        """SI-SDRi and presence, the mean mask, every reward and their weighted sum, and the judge's similarity."""
        scores = validate(model, self.corpus, self.seed)
        batch = self._batch().to(model.device)
        items = Items.of(batch, 2)
        with evaluation(model):
            query = batch.raw.embed(model.query_heads, unit=model.unit_queries)
            out = separator_pass(model, batch.mixture, query)
            decision = first_decision(batch, items, out)
            estimate = decision.hear(model, decision.proposal[:, None])
        scores["mask"] = mean_mask(decision.proposal, decision.energy)
        if self.rewards is not None:
            texts = [group[0] for group in self.corpus.texts]
            with torch.no_grad():
                scene = decision.scene(estimate.clone(), self.corpus.labels, texts)
                parts = self.rewards.score(scene).means()
            scores |= {f"reward/{name}": value for name, value in parts.items()}
            counted = [
                term for term in self.rewards.terms if term.trained_on and math.isfinite(parts[term.name])
            ]
            if counted:  # a term that cannot score anything here must not blind the guard to the others
                scores["reward"] = sum(term.weight * parts[term.name] for term in counted)
        if self.judge:
            scores["judge"] = self._similarity(estimate[:, 0].cpu(), items.pick(batch.sources).cpu())
        return scores

    def _batch(self) -> Mixtures:
        """Validation mixtures of two sources, asked for in words; training examples stand for the sounds."""
        rng = np.random.default_rng(derive(self.seed, "watched"))
        batch = self.corpus.validation.batch(rng, self.size)
        raw = draw_queries(rng, batch, self.corpus.mixer, self.banks, (1.0, 0.0, 0.0, 0.0))
        sources = torch.from_numpy(batch.sources)
        present = torch.cat([torch.from_numpy(batch.audible).float(), torch.zeros(self.size, 1)], dim=1)
        return Mixtures(sources, sources.sum(dim=1), present, raw)

    def _similarity(self, estimate: Float[Tensor, "item time"], clean: Float[Tensor, "item time"]) -> float:
        """Mean cosine of the judge's embeddings of estimates and clean sources."""
        if self._listener is None:
            self._listener = load_judge()
        if self._clean is None:
            self._clean = self._listener.hear(list(clean.numpy()), SeparatorModel.rate_hz)
        heard = self._listener.hear(list(estimate.numpy()), SeparatorModel.rate_hz)
        return float(F.cosine_similarity(heard, self._clean, dim=-1).mean())
