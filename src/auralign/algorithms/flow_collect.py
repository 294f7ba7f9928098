"""Groups of enhancements of the same recordings, drawn by a stochastic flow and scored while the next are drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from auralign.algorithms.flowse_grpo_config import RolloutConfig
from auralign.data.speech_mixer import SpeechBatch
from auralign.flow.ode import solve
from auralign.flow.path import StraightPath, noisy_mean, standard_normal_like
from auralign.flow.rollout import Rollout, rollout
from auralign.flow.sde import FlowPolicy
from auralign.flow.window import StepPlan
from auralign.models.enhancer import EnhancerModel
from auralign.rewards.base import Scene
from auralign.rewards.compose import Composite, Scored
from auralign.rewards.workers import Pending, RewardWorkers
from auralign.runtime.seed import derive


@dataclass(frozen=True, eq=False)
class Chunk:
    """Some recordings, G enhancements of each, and what an update needs of them. Item = recording · G + member."""

    noisy: Complex[Tensor, "recording freq frame"]
    """Spectra y, what the network is given beside a state."""
    group: int
    """G."""
    scale: float
    """σ of the prior."""
    drawn: Rollout
    """Final states and stochastic steps of all items."""
    plan: StepPlan
    """Which steps those are."""
    scored: Scored
    """Rewards, recording by member."""
    base: Mapping[str, Float[Tensor, " recording"]]
    """Rewards of the base model's own enhancement, where it was scored too."""

    @property
    def items(self) -> int:
        """Number of enhancements."""
        return len(self.noisy) * self.group

    def noisy_of(self, item: Int[Tensor, " row"]) -> Complex[Tensor, "row freq frame"]:
        """Spectra y of items."""
        return self.noisy[item // self.group]

    def path(self, item: Int[Tensor, " row"]) -> StraightPath:
        """Paths of items."""
        return noisy_mean(self.noisy_of(item), scale=self.scale)

    def rows_of(self, item: Int[Tensor, " some"]) -> Int[Tensor, " row"]:
        """Rows of the stochastic steps of items."""
        each = len(self.drawn.transitions.item) // self.items
        return (item[:, None] * each + torch.arange(each, device=item.device)).flatten()


def draw(
    model: EnhancerModel,
    noisy: Complex[Tensor, "recording freq frame"],
    cfg: RolloutConfig,
    *,
    group: int,
    bfloat16: bool,
    seed: int,
) -> tuple[Rollout, StepPlan]:
    """Stochastic trajectories of a group of members of each recording; windows are shared by all of them.

    Where the start is shared, the deterministic steps before the window are walked once a recording.
    """
    many = noisy.repeat_interleave(group, 0)
    chance = torch.Generator().manual_seed(derive(seed, "noise"))
    window = cfg.drawn_window().draw(
        cfg.nfe,
        groups=1,
        members=len(many),
        generator=torch.Generator().manual_seed(derive(seed, "window")),
    )
    times = model.times(cfg.nfe)
    first = int(window.noisy[0].nonzero()[0]) if cfg.shared_start else 0
    with torch.autocast(noisy.device.type, dtype=torch.bfloat16, enabled=bfloat16), torch.no_grad():
        begun = noisy if cfg.shared_start else many
        noise = standard_normal_like(begun.cpu(), generator=chance).to(noisy.device)
        x = noisy_mean(begun, scale=model.scale).restore(noise)
        if first:
            x = solve(model.velocity(begun), x, times[: first + 1])
        x = x.repeat_interleave(group, 0) if cfg.shared_start else x
        plan = StepPlan(window.noisy[:, first:], window.kept[:, first:])
        policy = FlowPolicy(cfg.noise(), noisy_mean(many, scale=model.scale))
        own = torch.Generator(noisy.device).manual_seed(derive(seed, "steps"))
        return rollout(model.velocity(many), x, times[first:], policy, plan, generator=own), plan


def collect(
    model: EnhancerModel,
    base: EnhancerModel | None,
    batches: Iterator[tuple[int, SpeechBatch]],
    cfg: RolloutConfig,
    *,
    group: int,
    bfloat16: bool,
    score: Composite,
    workers: RewardWorkers | None,
) -> list[Chunk]:
    """Chunk after chunk; workers score one while the next is drawn.

    Args:
        model: The policy, in evaluation mode.
        base: Its start: adds one enhancement a recording that gates compare with. None where there are no gates.
        batches: Seed and recordings of each chunk.
        cfg: How to draw.
        group: G.
        bfloat16: Arithmetic of the network.
        score: The rewards.
        workers: Processes that score; none scores here.
    """
    begun = []
    for seed, batch in batches:
        clean, wave = batch.clean.to(model.device), batch.noisy.to(model.device)
        gain = model.gain(wave)
        noisy = model.spectrogram(wave * gain)
        drawn, plan = draw(model, noisy, cfg, group=group, bfloat16=bfloat16, seed=seed)
        length = wave.shape[-1]
        estimate = (model.waveform(drawn.final, length) / gain.repeat_interleave(group, 0)).unflatten(
            0, (-1, group)
        )
        if base is not None:
            own = base.enhance_wave(wave, seed=derive(seed, "base"))
            estimate = torch.cat([estimate, own[:, None]], dim=1)
        scene = Scene(estimate, wave, model.rate_hz, target=clean, interferer=wave - clean)
        begun.append((noisy, drawn, plan, workers.submit(scene) if workers else scene))
    return [
        _chunk(noisy, group, model.scale, drawn, plan, _parts(pending, score), score)
        for noisy, drawn, plan, pending in begun
    ]


def _parts(pending: Pending | Scene, score: Composite) -> dict[str, Tensor]:
    """Every reward of every member, from the workers or from here."""
    if isinstance(pending, Scene):
        return {term.name: term.reward(pending) for term in score.terms}
    return pending.result()


def _chunk(
    noisy: Tensor,
    group: int,
    scale: float,
    drawn: Rollout,
    plan: StepPlan,
    parts: Mapping[str, Tensor],
    score: Composite,
) -> Chunk:
    members = {name: part[:, :group] for name, part in parts.items()}
    base = {name: part[:, group] for name, part in parts.items() if part.shape[1] > group}
    return Chunk(noisy, group, scale, drawn, plan, score.learn_parts(members), base)
