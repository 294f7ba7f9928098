r"""BiSep: separation learned from mixtures alone, with a text-audio encoder as the weak teacher.

Mahmud, Amizadeh, Koishida, Marculescu, "Weakly-supervised Audio Separation via Bi-modal Semantic Similarity", ICLR 2024
(arXiv:2404.01740). No single source is ever heard in the unsupervised and weakly supervised forms.

The algorithm::

    for each step
        draw two captioned mixtures x_1, x_2; add                              -> mixture of mixtures M
        masks of both captions c_n and of all their phrases t_nk               -> m(c_n), m(t_nk), one pass
        URL: m(c_n)|M| must be |x_n|                                           mix-and-separate of mixtures
        CRL: sum_k m(t_nk)|M| must be |x_n|                                    what the phrases name adds up
        CNT: each m(t_nk) M, heard, must be closer to t_nk than to other phrases, by the frozen encoder
        minimise  1/2 CNT + 5 (CRL + URL)                                      -> update

====================  ==========================  =====================================================
supervision           hears                       loss
====================  ==========================  =====================================================
``unsupervised``      mixtures                    URL
``weak``              mixtures                    all three
``semi``              mixtures, some singles      all three; a single sound contributes URL only
``supervised``        singles                     URL (mix-and-separate of single sounds)
====================  ==========================  =====================================================

The released code has only ``weak``. Deviations from it, each a switch (``recipes/bisep_released.toml`` has its values):

1. Two recordings that share a phrase are not mixed; rows with the same words are positives of each other; phrases that
   say nearly the same are no negatives; all phrases of the batch are negatives, not only those of one mixture; both
   directions count.
2. Short phrase lists are masked instead of padded with repeats, and padding tokens are not attended to.
3. Each mixture is at equal power before its gain, targets are scaled once (the released loader scales them twice).
4. A presence score is learned from texts of neither mixture: off the finished mask in the published network, off the
   head in the small one.
5. Reconstruction is measured on masks, in dB; phrases add up to their mixture by the union of their masks; a faint
   estimate's gradient counts by its level.
"""

from __future__ import annotations

import logging
import time
from contextlib import nullcontext

import numpy as np
import torch

from auralign.algorithms.bisep_config import Config, LossConfig
from auralign.algorithms.bisep_data import PairMixer
from auralign.algorithms.bisep_set_up import build, prepare
from auralign.algorithms.bisep_terms import Teacher, loss_terms
from auralign.algorithms.bisep_watch import Watcher
from auralign.algorithms.training import (
    Averager,
    BatchNormMean,
    TrainState,
    average_gradients,
    cosine_rate,
    decay_groups,
)
from auralign.errors import UsageError
from auralign.models.separator import SeparatorModel
from auralign.runtime.device import training_device
from auralign.runtime.distributed import World, world
from auralign.runtime.run import Run
from auralign.runtime.seed import derive
from auralign.runtime.signals import GracefulStop
from auralign.runtime.tracker import Tracker

__all__ = ["Config", "LossConfig", "build", "prepare", "train", "update"]

log = logging.getLogger(__name__)


def update(
    cfg: Config, mixer: PairMixer, teacher: Teacher | None, state: TrainState[SeparatorModel], here: World
) -> dict[str, float]:
    """One step: this process's share of the micro-batches, averaged gradients, one AdamW update."""
    model, optimiser = state.model.train(), state.optimiser
    for group in optimiser.param_groups:
        group["lr"] = cosine_rate(state.step, cfg.steps, cfg.warmup, cfg.rate)
    optimiser.zero_grad(set_to_none=True)
    sums: dict[str, float] = {}
    norms = BatchNormMean(model)
    for micro in here.share(cfg.accumulate):
        rng = np.random.default_rng(derive(cfg.seed, "batch", state.step, micro))
        batch = mixer.batch(rng, cfg.batch).to(model.device)
        chance = torch.Generator().manual_seed(derive(cfg.seed, "rows", state.step, micro))
        with norms:
            terms = loss_terms(cfg, model, batch, mixer.texts, teacher, chance)
        torch.autograd.backward(terms["loss"] / cfg.accumulate)
        for name, value in terms.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach()) / cfg.accumulate
    norms.finish(cfg.accumulate, here)
    average_gradients(model, here)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip)
    optimiser.step()
    state.average.update(model)
    state.step += 1
    totals = {name: float(here.mean(torch.tensor(value))) * here.size for name, value in sums.items()}
    return {**totals, "gradient_norm": float(norm), "rate": optimiser.param_groups[0]["lr"]}


def train(cfg: Config, run: Run) -> None:
    """Train from the run's newest checkpoint, or from scratch; a resumed run repeats the uninterrupted one bit for bit.

    Raises:
        UsageError: The micro-batches cannot be shared equally by the processes.
        KeyboardInterrupt: The run was asked to stop; its checkpoint is written.
    """
    with world() as here, GracefulStop() as stop:
        device = training_device(cfg.device, here.local_rank)
        if cfg.accumulate % here.size:
            raise UsageError(
                f"accumulate is {cfg.accumulate} for {here.size} processes",
                hint="take a multiple of their number",
            )
        model = build(cfg).to(device)
        mixer, teacher, watcher = prepare(cfg, model)
        optimiser = torch.optim.AdamW(decay_groups(model, cfg.weight_decay), lr=cfg.rate, betas=(0.9, 0.98))
        state = TrainState(model, Averager(model, cfg.ema), optimiser)
        state.restore(run)
        stopping = False
        with run.tracker(resumed_step=state.step or None) if here.is_first else nullcontext() as tracker:
            while state.step < cfg.steps and not stopping:
                began = time.monotonic()
                values = update(cfg, mixer, teacher, state, here)
                values["seconds_per_step"] = time.monotonic() - began
                stopping = bool(here.mean(torch.tensor(float(stop.requested))) > 0)  # all leave together
                if tracker is not None:
                    _record(cfg, state, tracker, values)
                    _keep(cfg, watcher, state, tracker, run, stopping)
    if state.step < cfg.steps:
        log.warning("stopped by %s after step %d; `auralign resume` goes on", stop.signal_name, state.step)
        raise KeyboardInterrupt
    if here.is_first:
        state.average.model.save(run.path / "model", {"name": run.path.name, "recipe": run.table()})


def _record(
    cfg: Config, state: TrainState[SeparatorModel], tracker: Tracker, values: dict[str, float]
) -> None:
    """Every so often the numbers of a step."""
    if state.step % 25 and state.step != 1:
        return
    tracker.log(
        state.step,
        {name if name == "seconds_per_step" else f"train/{name}": value for name, value in values.items()},
    )
    log.info("step %d of %d: %s", state.step, cfg.steps, {k: round(v, 4) for k, v in values.items()})


def _keep(
    cfg: Config,
    watcher: Watcher,
    state: TrainState[SeparatorModel],
    tracker: Tracker,
    run: Run,
    stopping: bool,
) -> None:
    """Every so often a validation and a checkpoint; a run that must stop only writes the checkpoint."""
    if state.step % cfg.validate_every and state.step != cfg.steps:
        if stopping:
            state.save(run, None)
        return
    scores = watcher(state.average.model)
    tracker.log(state.step, {f"val/{name}": value for name, value in scores.items()})
    log.info("step %d: %s", state.step, {name: round(value, 3) for name, value in scores.items()})
    state.save(run, scores["mixtures_si_sdri"])
