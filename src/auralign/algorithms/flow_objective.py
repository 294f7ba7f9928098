"""From scored groups to an objective: the four families of updates, on some items of a chunk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from auralign.algorithms.flow_collect import Chunk
from auralign.algorithms.flowse_grpo_config import RolloutConfig, UpdateConfig
from auralign.flow.sde import FlowPolicy
from auralign.models.enhancer import EnhancerModel
from auralign.models.low_rank import base_model
from auralign.rl.flow_steps import kl_to_reference, step_ratios
from auralign.rl.flow_surrogate import surrogate
from auralign.rl.forward_process import ForwardUpdate, Penalties, Velocities, advantage_flow, awm, nft
from auralign.rl.matching import Noised, excess_error, matching_error, noise_again
from auralign.rl.preference import best_against_worst, crpo, diffusion_dpo
from auralign.rl.selection import filtered_matching, reward_filter


@dataclass(frozen=True, eq=False)
class Policies:
    """The network that is trained, and what it is compared with.

    Attributes:
        model: π_θ.
        reference: The frozen start; none where low-rank additions can be switched off instead.
        old: The policy that drew (forward-process updates).
        average: A moving average (awm).
    """

    model: EnhancerModel
    reference: EnhancerModel | None
    old: EnhancerModel | None = None
    average: EnhancerModel | None = None


@dataclass(frozen=True, eq=False)
class Objective:
    """What an update climbs, and the numbers to watch."""

    value: Float[Tensor, ""]
    """To be maximised."""
    numbers: dict[str, float]
    """By name."""
    count: int
    """Rows in the mean: weighs micro-batches."""


def train_items(
    chunk: Chunk, advantage: Float[Tensor, " item"], kept: Bool[Tensor, " item"], cfg: UpdateConfig
) -> Int[Tensor, " some"]:
    """Items that the update uses, in the order it needs them.

    Trajectory and forward-process updates leave out members without an advantage, which would only cost time;
    preference updates take a winner and a loser of each group, selection what passes its filter.
    """
    family = cfg.spec.family
    if family == "preference":
        return best_against_worst(chunk.scored.total, least_gap=cfg.least_gap).interleaved.cpu()
    if family == "selection":
        keep = "best" if cfg.name == "best_of_n" else cfg.keep
        return reward_filter(chunk.scored.total, keep=keep, quantile=cfg.quantile).item.cpu()
    return (kept & (advantage != 0)).nonzero()[:, 0].cpu()


def objective(
    policies: Policies,
    chunk: Chunk,
    item: Int[Tensor, " some"],
    advantage: Float[Tensor, " item"],
    cfg: UpdateConfig,
    rollout: RolloutConfig,
    *,
    bfloat16: bool,
    generator: torch.Generator,
) -> Objective:
    """Objective of some items of a chunk; of whole pairs in preference updates.

    Args:
        policies: The networks.
        chunk: The scored groups.
        item: Items, from :func:`train_items`.
        advantage: A of every item of the chunk.
        cfg: The update.
        rollout: How the chunk was drawn.
        bfloat16: Arithmetic of the network, as in the rollout.
        generator: Times and noise of the forward process, on the processor.
    """
    family = cfg.spec.family
    if family == "trajectory":
        return _trajectory(policies, chunk, item, advantage, cfg, rollout, bfloat16=bfloat16)
    noised = _noised(
        policies.model, chunk, item, rollout, shared=1 + (family == "preference"), generator=generator
    )
    v = _ask(policies.model, chunk, item, noised.x_t, noised.t, bfloat16=bfloat16)
    if family == "selection":
        return Objective(filtered_matching(matching_error(v, noised)), {}, len(item))
    if family == "preference":
        return _preference(v, _reference(policies, chunk, item, noised, bfloat16=bfloat16), noised, cfg)
    if family == "forward_process":
        return _forward(policies, chunk, item, v, noised, advantage, cfg, bfloat16=bfloat16)
    assert_never(family)


def _ask(model: EnhancerModel, chunk: Chunk, item: Tensor, x: Tensor, t: Tensor, *, bfloat16: bool) -> Tensor:
    """Velocities of the states of items."""
    with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=bfloat16):
        return model.velocity(chunk.noisy_of(item.to(x.device)))(x, t)


@torch.no_grad()
def _reference(policies: Policies, chunk: Chunk, item: Tensor, noised: Noised, *, bfloat16: bool) -> Tensor:
    return _ask_reference(policies, chunk, item, noised.x_t, noised.t, bfloat16=bfloat16)


@torch.no_grad()
def _ask_reference(
    policies: Policies, chunk: Chunk, item: Tensor, x: Tensor, t: Tensor, *, bfloat16: bool
) -> Tensor:
    """Velocities of the frozen start."""
    if policies.reference is not None:
        return _ask(policies.reference, chunk, item, x, t, bfloat16=bfloat16)
    with base_model(policies.model):
        return _ask(policies.model, chunk, item, x, t, bfloat16=bfloat16)


def _trajectory(
    policies: Policies,
    chunk: Chunk,
    item: Tensor,
    advantage: Tensor,
    cfg: UpdateConfig,
    rollout: RolloutConfig,
    *,
    bfloat16: bool,
) -> Objective:
    """Ratios of the stochastic steps, and the divergence from the start."""
    steps = chunk.drawn.transitions.take(chunk.rows_of(item.to(chunk.noisy.device)))
    policy = FlowPolicy(rollout.noise(), chunk.path(steps.item))
    v = _ask(policies.model, chunk, steps.item, steps.state, steps.t, bfloat16=bfloat16)
    new = policy.step(steps.state, v, steps.t, steps.t_next)
    ratios = step_ratios(new, steps, advantage)
    found = surrogate(ratios, cfg.region(float(chunk.drawn.transitions.std.mean())))
    value, kl = found.objective, torch.zeros(())
    if cfg.kl:
        v_ref = _ask_reference(policies, chunk, steps.item, steps.state, steps.t, bfloat16=bfloat16)
        there = policy.step(steps.state, v_ref, steps.t, steps.t_next)
        kl = kl_to_reference(new, there, ratios.duration, form=cfg.kl_form).mean()
        value = value - cfg.kl * kl
    numbers = {
        "ratio": float(found.ratio_mean),
        "clip_share": float(found.clip_share),
        "kl_old_nats": float(found.kl_old_nats),
        "kl_reference": float(kl.detach()),
    }
    return Objective(value, numbers, found.count)


def _noised(
    model: EnhancerModel,
    chunk: Chunk,
    item: Tensor,
    rollout: RolloutConfig,
    *,
    shared: int,
    generator: torch.Generator,
) -> Noised:
    """Clean samples with fresh noise, at the times that the sampler visits."""
    times = model.times(rollout.nfe)[:-1].float()
    drawn = torch.randint(len(times), (len(item) // shared,), generator=generator).repeat_interleave(shared)
    device = chunk.noisy.device
    item = item.to(device)
    x_0 = chunk.drawn.final[item]
    generator = (
        generator if device.type == "cpu" else torch.Generator(device).manual_seed(generator.initial_seed())
    )
    return noise_again(chunk.path(item), x_0, times[drawn].to(device), generator=generator, shared=shared)


def _preference(v: Tensor, v_ref: Tensor, noised: Noised, cfg: UpdateConfig) -> Objective:
    excess = excess_error(v, v_ref, noised)
    winner, loser = excess[0::2], excess[1::2]
    if cfg.name == "crpo":
        found = crpo(winner, loser, matching_error(v, noised)[0::2], strength=cfg.preference)
    else:
        found = diffusion_dpo(winner, loser, strength=cfg.preference)
    numbers = {"pair_accuracy": float(found.accuracy.detach()), "pair_margin": float(found.margin.detach())}
    return Objective(found.objective, numbers, len(winner))


def _forward(
    policies: Policies,
    chunk: Chunk,
    item: Tensor,
    v: Tensor,
    noised: Noised,
    advantage: Tensor,
    cfg: UpdateConfig,
    *,
    bfloat16: bool,
) -> Objective:
    assert policies.old is not None  # the loop makes what the update's specification needs
    needs = cfg.spec.needs
    with torch.no_grad():
        at = (chunk, item, noised.x_t, noised.t)
        old = _ask(policies.old, *at, bfloat16=bfloat16)
        ref = _ask_reference(policies, *at, bfloat16=bfloat16) if "reference" in needs else None
        mean = _ask(policies.average, *at, bfloat16=bfloat16) if policies.average is not None else None
    gain = advantage[item.to(advantage.device)]
    velocities = Velocities(v, old, ref, mean)
    found: ForwardUpdate
    if cfg.name == "nft":
        found = nft(
            noised, velocities, gain, strength=cfg.strength, penalties=Penalties(reference=cfg.reference)
        )
    elif cfg.name == "awm":
        found = awm(noised, velocities, gain, penalties=Penalties(average=cfg.average))
    else:
        found = advantage_flow(noised, velocities, gain, reference_weight=cfg.reference)
    numbers = {"moved": float(found.moved.detach()), "clip_share": float(found.clip_share)}
    numbers |= {"drift": float(found.drift.detach())} if ref is not None else {}
    return Objective(found.objective, numbers, len(item))
