"""What a MARS-Sep run is made of beside its equations: corpus, start, rewards, reference, optimiser."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from auralign.algorithms.mars_sep_config import Config
from auralign.algorithms.query_banks import QueryBanks
from auralign.algorithms.scenes import Decision, first_decision
from auralign.algorithms.separator_pass import separator_pass
from auralign.algorithms.training import Averager, Corpus, TrainState, decay_groups, load_corpus
from auralign.algorithms.watching import Watcher
from auralign.errors import UsageError
from auralign.models.separator import SeparatorModel
from auralign.rewards.base import Scene
from auralign.rewards.compose import Composite
from auralign.rewards.load import compose
from auralign.rl.advantage import Baseline
from auralign.runtime import weights
from auralign.runtime.device import training_device
from auralign.runtime.distributed import World


@dataclass
class Parts:
    """What a run needs beside its weights."""

    corpus: Corpus
    banks: QueryBanks
    rewards: Composite | None
    baseline: Baseline
    reference: SeparatorModel | None

    def scene(self, decision: Decision, estimate: Tensor) -> Scene:
        """What the rewards see."""
        return decision.scene(estimate, self.corpus.labels, [group[0] for group in self.corpus.texts])


def set_up(cfg: Config, here: World) -> tuple[Parts, TrainState[SeparatorModel], Watcher]:
    """Everything of a fresh run."""
    if cfg.accumulate % here.size:
        raise UsageError(
            f"accumulate is {cfg.accumulate} for {here.size} processes",
            hint="take a multiple of their number",
        )
    device = training_device(cfg.device, here.local_rank)
    corpus = load_corpus(cfg.corpus, cfg.mix)
    loaded = SeparatorModel.load(weights.path(cfg.start))
    model: SeparatorModel = loaded.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    rewards = None
    if cfg.policy.weight > 0:
        rewards = compose(cfg.rewards, keep_graph=cfg.policy.gradient == "pathwise")
        if here.size > 1 and any(term.normalise != "none" for term in rewards.terms):
            raise UsageError(
                "a reward's running normalisation would differ between processes",
                hint='set normalise = "none", or train in one process',
            )
    reference = None
    if cfg.policy.coefficients.kl_reference > 0:
        reference = copy.deepcopy(model).eval().requires_grad_(False)
    parts = Parts(corpus, corpus.query_banks(model.backbones), rewards, Baseline(), reference)
    optimiser = torch.optim.AdamW(decay_groups(model, cfg.weight_decay), lr=cfg.rate, betas=(0.9, 0.98))
    more: dict[str, Any] = {"baseline": parts.baseline}
    if rewards is not None:
        more["rewards"] = rewards
    state = TrainState(model, Averager(model, cfg.ema), optimiser, more=more)
    return parts, state, Watcher(corpus, parts.banks, rewards, judge=cfg.judge, seed=cfg.seed)


def reference_proposal(cfg: Config, parts: Parts, decision: Decision) -> Tensor | None:
    """P of the separator that the run started from, if the policy shall stay close to it."""
    if parts.reference is None:
        return None
    batch, model = decision.batch, parts.reference
    with torch.no_grad():
        query = batch.raw.embed(model.query_heads, unit=model.unit_queries)
        if decision.before is None:
            out = separator_pass(model, batch.mixture, query, bfloat16=cfg.bfloat16)
            return first_decision(batch, decision.items, out).proposal
        items = decision.items
        left = batch.mixture[items.mixture] - decision.before  # what the policy left over
        out = separator_pass(model, left, items.pick(query)[:, None], bfloat16=cfg.bfloat16)
        return torch.sigmoid(out.logits[:, 0].float())
