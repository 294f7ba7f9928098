r"""FlowSE-GRPO: a flow-matching enhancer that goes on learning from what its own enhancements score.

Wang, Tian, Jiang, Pan, Zhao, Ma, Chen, Li, "FlowSE-GRPO: Training Flow Matching Speech Enhancement via Online
Reinforcement Learning", ICASSP 2026 (arXiv:2601.16483). Its code is not public; what two reproductions agree on is
followed here: Flow-SDE with a = 0.4 on two steps, the same for a whole group, three rewards on frozen scales.

The algorithm::

    for each collection
        draw recordings y; enhance each G times by the ODE with a few stochastic steps      -> collect
        score them (DNSMOS, speaker, spectral features), while the next are drawn
        advantages A within groups; vetoes                                                  -> advantages
        for each update
            A, ratios to the policy that drew, trust region, divergence from the base       -> objective
            climb it                                                                        -> one AdamW step

The same loop runs every update of :mod:`auralign.rl.updates` on the same samples: those of the forward process,
preferences, and filtered fine-tuning, the control.

Deviations from the paper and its reproductions:

1. The path starts at the noisy recording (flowmse), not at pure noise: the u-transform makes it the same problem.
2. Clip ranges are in nats on the whole state; reproductions clip means over 37,500 numbers at 0.2, which never happens.
3. Advantages are divided by the spread of all group-centred rewards instead of each group's own.
4. Evaluators are ones that can be had: Resemblyzer for ERes2Net, spectral features for SpeechBERTScore.
5. Members share their first noise (``rollout.shared_start``), so that steps before the window run once a recording.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from auralign.algorithms.flow_collect import Chunk, collect
from auralign.algorithms.flow_objective import Objective, Policies, objective, train_items
from auralign.algorithms.flowse_grpo_config import Config, GateConfig, RolloutConfig, UpdateConfig
from auralign.algorithms.flowse_grpo_watch import RewardWatcher
from auralign.algorithms.flowse_watch import SpeechWatcher
from auralign.algorithms.training import Averager, Stateful, TrainState, average_gradients, decay_groups
from auralign.data.speech_mixer import SpeechBatch, SpeechMixer
from auralign.errors import UsageError
from auralign.models.distill_mos import load_distill_mos
from auralign.models.enhancer import EnhancerModel
from auralign.models.low_rank import adapt, merge
from auralign.rewards.compose import Composite
from auralign.rewards.load import RewardConfig, compose
from auralign.rewards.speech_presets import frozen_rewards
from auralign.rewards.workers import RewardWorkers
from auralign.rl.advantage import Advantage
from auralign.rl.forward_process import old_policy_decay
from auralign.rl.multi_reward import Gate, apply_gates, gdpo, scaled_advantage
from auralign.runtime import weights
from auralign.runtime.device import training_device
from auralign.runtime.distributed import World, world
from auralign.runtime.run import Run
from auralign.runtime.seed import derive
from auralign.runtime.signals import GracefulStop
from auralign.runtime.tracker import Tracker

__all__ = ["Config", "GateConfig", "RolloutConfig", "UpdateConfig", "train"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """What a run is made of beside the state that changes."""

    mixer: SpeechMixer
    policies: Policies
    base: EnhancerModel | None
    score: Composite
    workers: RewardWorkers | None
    watcher: RewardWatcher


def rewards_of(cfg: Config) -> tuple[RewardConfig, ...]:
    """The recipe's rewards, or the paper's three."""
    return cfg.rewards or frozen_rewards()


@contextmanager
def set_up(cfg: Config, device: torch.device) -> Iterator[tuple[Parts, TrainState[EnhancerModel]]]:
    """Everything a run needs; worker processes end with the context."""
    start = EnhancerModel.load(weights.path(str(cfg.start)))
    model: EnhancerModel = copy.deepcopy(start).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    start = start.to(device, memory_format=torch.channels_last).requires_grad_(False)  # type: ignore[call-overload]
    if cfg.rank:
        adapt(model, rank=cfg.rank, alpha=cfg.alpha)
    needs = cfg.update.spec.needs
    policies = Policies(
        model,
        None if cfg.rank else start,
        copy.deepcopy(model).requires_grad_(False) if "old_velocity" in needs else None,
    )
    trained = [
        {**group, "params": [p for p in group["params"] if p.requires_grad]}
        for group in decay_groups(model, cfg.weight_decay)
    ]
    # gradients of means over a hundred thousand numbers are of the size of Adam's usual epsilon
    optimiser = torch.optim.AdamW(trained, lr=cfg.rate, betas=(0.9, 0.999), eps=1e-12)
    average = Averager(model, cfg.ema)
    if "average" in needs:
        policies = Policies(model, policies.reference, policies.old, average.model)
    rewards = rewards_of(cfg)
    score = compose(rewards)
    for gate in cfg.gates:
        if gate.name not in {term.name for term in score.terms}:
            raise UsageError(f"the gate {gate.name!r} watches no reward", hint="add it with weight = 0")
    more: dict[str, Stateful] = {"score": score}
    if policies.old is not None:
        more["old"] = policies.old
    paths = {one.title: one.path for one in rewards}
    with RewardWorkers(paths, workers=cfg.workers) if cfg.workers else nullcontext() as workers:
        speech = SpeechWatcher.load(cfg.watch, cfg.corpus, cfg.noises, cfg.validate_items)
        watcher = RewardWatcher(speech, score, workers, load_distill_mos(narrow=True))
        mixer = SpeechMixer.load(cfg.corpus, cfg.noises, "train", cfg.mix, cache=cfg.corpus / ".cache")
        parts = Parts(mixer, policies, start if cfg.gates else None, score, workers, watcher)
        yield parts, TrainState(model, average, optimiser, more=more)


def advantages(
    cfg: Config, chunks: list[Chunk], here: World
) -> tuple[list[Float[Tensor, "recording group"]], list[Bool[Tensor, "recording group"]], dict[str, float]]:
    """A of every chunk of this process, scaled by the spread over all processes, after the vetoes."""
    total = torch.cat([chunk.scored.total for chunk in chunks])
    parts = {
        name: torch.cat([chunk.scored.parts[name] for chunk in chunks]) for name in chunks[0].scored.parts
    }
    base = {name: torch.cat([chunk.base[name] for chunk in chunks]) for name in chunks[0].base}
    mine = slice(here.rank * len(total), (here.rank + 1) * len(total))
    total = here.gather(total)
    parts = {name: here.gather(part) for name, part in parts.items()}
    base = {name: here.gather(part) for name, part in base.items()}
    found = _advantage(cfg, total, parts)
    numbers = {"reward": float(total.nanmean()), "flat_groups": found.degenerate_share}
    numbers |= {f"reward_{name}": float(part.nanmean()) for name, part in parts.items()}
    numbers |= {f"spread_{name}": float(_spread(part)) for name, part in {"all": total, **parts}.items()}
    if cfg.gates:
        gates = [Gate(one.name, one.limit, one.action) for one in cfg.gates]
        gated = apply_gates(found, gates, parts, base)
        found = gated.advantage
        numbers |= {f"gate_{name}": share for name, share in gated.closed_share.items()}
    sizes = [len(chunk.scored.total) for chunk in chunks]
    return list(found.value[mine].split(sizes)), list(found.kept[mine].split(sizes)), numbers


def _advantage(cfg: Config, total: Tensor, parts: dict[str, Tensor]) -> Advantage:
    if cfg.combine == "gdpo":
        return gdpo(parts, {one.title: one.weight for one in rewards_of(cfg) if one.weight})
    return scaled_advantage(total)


def _spread(reward: Float[Tensor, "recording group"]) -> Float[Tensor, ""]:
    """Standard deviation within groups: what an advantage sees."""
    return (reward - reward.nanmean(1, keepdim=True)).square().nanmean().sqrt()


def update(cfg: Config, parts: Parts, state: TrainState[EnhancerModel], here: World) -> dict[str, float]:
    """One collection and its updates; batch-norm statistics stay as supervision left them."""
    model, optimiser = state.model.eval(), state.optimiser
    for group in optimiser.param_groups:
        group["lr"] = cfg.rate * (1 - state.step / cfg.steps)
    began = time.monotonic()
    chunks = collect(
        parts.policies.old or model,
        parts.base,
        _recordings(cfg, parts.mixer, state.step, here),
        cfg.rollout,
        group=cfg.group,
        bfloat16=cfg.precision == "bfloat16",
        score=parts.score,
        workers=parts.workers,
    )
    values, kept, numbers = advantages(cfg, chunks, here)
    numbers["seconds_collect"] = time.monotonic() - began
    for number in range(cfg.update.per_collection):
        optimiser.zero_grad(set_to_none=True)
        numbers |= _climb(cfg, parts.policies, chunks, values, kept, (state.step, number), here)
        average_gradients(model, here)
        trained = [p for p in model.parameters() if p.requires_grad]
        numbers["gradient_norm"] = float(torch.nn.utils.clip_grad_norm_(trained, cfg.clip))
        optimiser.step()
        state.average.update(model)
    if parts.policies.old is not None:
        updates = (state.step + 1) * cfg.update.per_collection
        decay = old_policy_decay(updates) if cfg.update.name == "nft" else 0.0
        _follow(parts.policies.old, model, decay)
    state.step += 1
    numbers["scored_clips"] = state.step * cfg.scored_clips / cfg.steps
    return {**numbers, "rate": optimiser.param_groups[0]["lr"]}


def _recordings(cfg: Config, mixer: SpeechMixer, step: int, here: World) -> Iterator[tuple[int, SpeechBatch]]:
    """Seed and recordings of each chunk of this process."""
    for number in here.share(cfg.chunks):
        rng = np.random.default_rng(derive(cfg.seed, "recordings", step, number))
        yield derive(cfg.seed, "rollout", step, number), mixer.batch(rng, cfg.groups)


def _climb(
    cfg: Config,
    policies: Policies,
    chunks: list[Chunk],
    values: list[Tensor],
    kept: list[Tensor],
    seed: tuple[int, int],
    here: World,
) -> dict[str, float]:
    """Gradients of one update, a micro-batch at a time; means are over everything that counts in all processes."""
    shares = [
        _share(train_items(chunk, a.flatten(), k.flatten(), cfg.update), cfg, (*seed, number))
        for chunk, a, k, number in zip(chunks, values, kept, here.share(cfg.chunks), strict=True)
    ]
    all_items = float(here.mean(torch.tensor(float(sum(len(share) for share in shares))))) * here.size
    sums: dict[str, float] = {"items": all_items}
    each = max(2, cfg.rows // _rows_an_item(cfg))
    for chunk, share, value, number in zip(chunks, shares, values, here.share(cfg.chunks), strict=True):
        for first in range(0, len(share), each):
            item = share[first : first + each]
            chance = torch.Generator().manual_seed(derive(cfg.seed, "forward", *seed, number, first))
            found: Objective = objective(
                policies,
                chunk,
                item,
                value.flatten(),
                cfg.update,
                cfg.rollout,
                bfloat16=cfg.precision == "bfloat16",
                generator=chance,
            )
            part = len(item) / all_items
            torch.autograd.backward(-found.value * part)
            for name, worth in {"objective": float(found.value.detach()), **found.numbers}.items():
                sums[name] = sums.get(name, 0.0) + worth * part
    return {
        name: worth if name == "items" else float(here.mean(torch.tensor(worth))) * here.size
        for name, worth in sums.items()
    }


def _rows_an_item(cfg: Config) -> int:
    """Network rows that an item of the update costs."""
    if cfg.update.spec.family != "trajectory":
        return 1
    return cfg.rollout.window or cfg.rollout.nfe - 2


def _share(item: Tensor, cfg: Config, seed: tuple[int, int, int]) -> Tensor:
    """The items of one update of several, in a drawn order; pairs stay together."""
    size = 2 if cfg.update.spec.family == "preference" else 1
    units = item.view(-1, size)
    order = torch.randperm(
        len(units), generator=torch.Generator().manual_seed(derive(cfg.seed, "order", seed[0], seed[2]))
    )
    return units[order[seed[1] :: cfg.update.per_collection]].flatten()


@torch.no_grad()
def _follow(old: EnhancerModel, model: EnhancerModel, decay: float) -> None:
    """θ_old ← η θ_old + (1 − η) θ."""
    for mine, theirs in zip(old.parameters(), model.parameters(), strict=True):
        mine.lerp_(theirs, 1 - decay)


def train(cfg: Config, run: Run) -> None:
    """Train from the run's newest checkpoint, or from the base model; resuming repeats the run bit for bit.

    Raises:
        UsageError: The chunks cannot be shared equally by the processes, or a gate watches nothing.
        KeyboardInterrupt: The run was asked to stop; its checkpoint is written.
    """
    with ExitStack() as stack:
        here, stop = stack.enter_context(world()), stack.enter_context(GracefulStop())
        if cfg.chunks % here.size:
            raise UsageError(
                f"chunks is {cfg.chunks} for {here.size} processes", hint="take a multiple of their number"
            )
        parts, state = stack.enter_context(set_up(cfg, training_device(cfg.device, here.local_rank)))
        fresh = run.checkpoints.latest() is None
        state.restore(run)
        here.barrier()  # nobody writes before everybody has read
        resumed = None if fresh else state.step
        tracker = stack.enter_context(run.tracker(resumed_step=resumed)) if here.is_first else None
        stopping = False
        if fresh and tracker is not None:
            _look(parts, state, tracker, run)
        while state.step < cfg.steps and not stopping:
            began = time.monotonic()
            values = update(cfg, parts, state, here)
            values["seconds_per_step"] = time.monotonic() - began
            stopping = bool(here.mean(torch.tensor(float(stop.requested))) > 0)  # all leave together
            if tracker is None:
                continue
            _record(cfg, state, tracker, values)
            if state.step % cfg.validate_every == 0 or state.step == cfg.steps:
                _look(parts, state, tracker, run)
            elif stopping:
                state.save(run, None)
    if state.step < cfg.steps:
        log.warning("stopped by %s after step %d; `auralign resume` goes on", stop.signal_name, state.step)
        raise KeyboardInterrupt
    if here.is_first:
        _export(cfg, run, state, parts)


def _export(cfg: Config, run: Run, state: TrainState[EnhancerModel], parts: Parts) -> None:
    """The averaged weights as a model; its card says what it was trained on."""
    model = state.average.model
    if cfg.rank:
        merge(model)
    card = {"name": run.path.name, "recipe": run.table(), "trained_on": list(parts.score.trained_metrics)}
    model.save(run.path / "model", card)


def _look(parts: Parts, state: TrainState[EnhancerModel], tracker: Tracker, run: Run) -> None:
    """Validation of the averaged weights, sounds and a checkpoint."""
    scores = parts.watcher(state.average.model)
    tracker.log(state.step, {f"val/{name}": value for name, value in scores.items()})
    log.info("step %d: %s", state.step, {name: round(value, 3) for name, value in scores.items()})
    parts.watcher.speech.write_samples(state.average.model, tracker, state.step)
    state.save(run, scores["reward"])


def _record(
    cfg: Config, state: TrainState[EnhancerModel], tracker: Tracker, values: dict[str, float]
) -> None:
    """The numbers of a collection."""
    tracker.log(
        state.step,
        {name if name.startswith("seconds") else f"train/{name}": value for name, value in values.items()},
    )
    log.info("step %d of %d: %s", state.step, cfg.steps, {k: round(v, 4) for k, v in values.items()})
