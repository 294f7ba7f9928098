r"""MARS-Sep on BiSep: a separator that never heard a single source, improved by what its sounds mean.

Neither paper has this. MARS-Sep (arXiv:2510.10509) rewards semantic agreement, but starts from clean sources and keeps
their supervision beside it; BiSep (arXiv:2404.01740) has no sources and follows its encoder's gradient through one
deterministic mask.

The algorithm::

    start from a weakly supervised separator, batch-norm statistics frozen
    for each step
        draw mixtures of mixtures M with captions c_n and phrases t_nk          as BiSep does
        P = f(M, .), one pass; draw G masks around P of some phrases            MARS-Sep Eq. (2)
        listen; R = cos(y, t_nk) - nu cos(y, another phrase of M)               no reference anywhere
        A = advantage of R within the group                                     MARS-Sep Eq. (5)
        minimise  BiSep's own loss - weight * surrogate(A)                      -> update

The control is ``policy.weight = 0``: the same batches, steps and rate with BiSep's loss alone. The guard watches how
well whole mixtures are told apart, which needs no source either.
"""

from __future__ import annotations

import logging
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from auralign.algorithms import bisep_config
from auralign.algorithms.bisep_config import LossConfig
from auralign.algorithms.bisep_data import PairConfig, PairMixer, Pairs
from auralign.algorithms.bisep_set_up import prepare
from auralign.algorithms.bisep_terms import Teacher, ask, chosen_rows, loss_terms
from auralign.algorithms.bisep_watch import Watcher
from auralign.algorithms.guarded import export, go_back, reading, stops
from auralign.algorithms.mars_sep_config import PolicyConfig
from auralign.algorithms.mask_policy import draw_and_compare, policy_loss
from auralign.algorithms.separator_pass import SeparatorPass, hear
from auralign.algorithms.training import Averager, TrainState, average_gradients, cosine_rate, decay_groups
from auralign.algorithms.watching import mean_mask
from auralign.errors import AuralignError, UsageError
from auralign.models.encoders import Backbones
from auralign.models.separator import SeparatorModel
from auralign.policy.beta_mask import kappa_at
from auralign.rewards.base import Cue, Scene
from auralign.rewards.compose import Composite
from auralign.rewards.guard import Guard, GuardConfig, Reading, Verdict
from auralign.rewards.load import RewardConfig, compose
from auralign.rewards.signal import FidelityReward
from auralign.rl.advantage import Baseline
from auralign.runtime import weights
from auralign.runtime.device import training_device
from auralign.runtime.distributed import World, world
from auralign.runtime.run import Run
from auralign.runtime.seed import derive
from auralign.runtime.signals import GracefulStop
from auralign.runtime.tracker import Tracker

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config:
    """Everything a run depends on."""

    start: Path = Path("bisep-small")
    """Weakly supervised separator to start from: a name or a folder."""
    corpus: Path = Path("corpora/captions")
    """Folder of captioned recordings."""
    mixtures: tuple[str, ...] = ("train-2",)
    """Splits of recordings of several sounds."""
    held_out: tuple[str, ...] = ("val-2",)
    """Splits to watch."""
    sounds: Path | None = None
    """A soundbox corpus: also report phrases on its mixtures with known sources."""
    encoder: str = "builtin"
    """BiSep's weak teacher."""
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    """The policy and its update."""
    items: int = 8
    """Phrases of a micro-batch whose masks are explored."""
    rewards: tuple[RewardConfig, ...] = (RewardConfig("semantic:bimodal-small"),)
    """What is rewarded; a scene has no target, so `fidelity` is refused."""
    guard: GuardConfig = field(default_factory=GuardConfig)
    """When to stop or roll back."""
    pairs: PairConfig = field(default_factory=PairConfig)
    """How mixtures of mixtures are made."""
    loss: LossConfig = field(default_factory=LossConfig)
    """BiSep's loss, which stays beside the reward."""
    batch: int = 8
    """Mixtures of mixtures a micro-batch."""
    accumulate: int = 1
    """Micro-batches a step over all processes; must be a multiple of their number."""
    steps: int = 100
    """Updates."""
    rate: float = 3e-4
    """Peak learning rate of AdamW."""
    warmup: int = 10
    """Steps of linear warm-up."""
    weight_decay: float = 0.02
    """AdamW's weight decay."""
    clip: float = 1.0
    """Largest gradient norm."""
    ema: float = 0.98
    """Decay of the averaged weights, which are what is saved and scored."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Arithmetic of the network; densities, rewards and losses stay in float32."""
    device: str = "auto"
    """Where to train: auto (CUDA where there is one), cpu, cuda or cuda:N."""
    validate_every: int = 50
    """Steps between validations and checkpoints."""
    seed: int = 0
    """Every random number follows from it."""

    def __post_init__(self) -> None:
        for name in ("batch", "accumulate", "steps", "validate_every", "items"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.policy.weight < 0 or self.policy.gradient != "score" or self.policy.inner_epochs != 1:
            raise ValueError(
                "policy.weight must be 0 or more; gradient `score` and one inner epoch are supported"
            )
        if self.policy.refine or self.policy.asked != 2 or self.policy.coefficients.kl_reference:
            raise ValueError(
                "policy.refine, policy.asked and policy.coefficients.kl_reference are of mars_sep; "
                "here `items` says how many phrases are explored"
            )
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema is {self.ema}; it must lie in [0, 1)")
        self.policy.check()
        _ = self.weak  # refuses stretches that no network takes

    @property
    def weak(self) -> bisep_config.Config:
        """The same run as BiSep would have it."""
        return bisep_config.Config(
            corpus=self.corpus,
            mixtures=self.mixtures,
            held_out=self.held_out,
            sounds=self.sounds,
            encoder=self.encoder,
            start=self.start,
            pairs=self.pairs,
            loss=self.loss,
            precision=self.precision,
            seed=self.seed,
        )


@dataclass
class Parts:
    """What a run needs beside its weights."""

    mixer: PairMixer
    teacher: Teacher
    rewards: Composite | None
    baseline: Baseline
    words: Backbones
    """Sentence features that rewards compare with."""


def scene_of(
    parts: Parts, batch: Pairs, estimate: Tensor, item: Int[Tensor, " row"], flat: Int[Tensor, " row"]
) -> Scene:
    """What the rewards see: no target, the phrase that is wanted and another one that is also in the mixture.

    Args:
        parts: Texts and their encoder.
        batch: The mixtures.
        estimate: Sounds, ``row group time``.
        item: Mixture of each row.
        flat: Place of its phrase among all of that mixture.
    """
    names, numbers = parts.mixer.texts.names, batch.phrases.flatten(1)
    there = batch.share.flatten(1) > 0
    wanted, other = [], []
    for n, place in zip(item.tolist(), flat.tolist(), strict=True):
        mine = int(numbers[n, place])
        rest = [int(p) for p in numbers[n][there[n]] if int(p) != mine]
        wanted.append(names[mine])
        other.append(names[rest[place % len(rest)]] if rest else names[mine])
    known = torch.ones(len(wanted), dtype=torch.bool)
    return Scene(
        estimate=estimate,
        mixture=batch.mixtures.sum(dim=1)[item],
        rate_hz=SeparatorModel.rate_hz,
        texts=tuple(wanted),
        wanted=Cue({"text": parts.words.texts(wanted)}, {"text": known}),
        unwanted=Cue({"text": parts.words.texts(other)}, {"text": known}),
    )


def policy_terms(
    cfg: Config, parts: Parts, model: SeparatorModel, batch: Pairs, out: SeparatorPass, seed: tuple[int, int]
) -> tuple[Tensor, dict[str, float]]:
    """The mask policy on some phrases of a batch: draw, listen, compare; its loss and the numbers to watch."""
    assert parts.rewards is not None
    step, micro = seed
    item, flat = (batch.share.flatten(1) > 0).nonzero(as_tuple=True)
    chance = torch.Generator().manual_seed(derive(cfg.seed, "items", step, micro))
    rows = chosen_rows(len(item), cfg.items, chance).to(item.device)
    item, flat = item[rows], flat[rows]
    proposal, energy = torch.sigmoid(out.logits[item, 2 + flat].float()), out.energy[item]

    def listen(mask: Tensor) -> Scene:
        estimate = hear(model, mask, out.spec[item], batch.mixtures.shape[-1])
        return scene_of(parts, batch, estimate, item, flat)

    generator = torch.Generator(energy.device).manual_seed(derive(cfg.seed, "mask", step, micro))
    kappa = kappa_at(step, cfg.steps, knots=cfg.policy.kappa)
    roll = draw_and_compare(
        cfg.policy, parts.rewards, parts.baseline, proposal, energy, listen, generator, kappa
    )
    loss, numbers = policy_loss(cfg.policy, roll, proposal)
    return loss, numbers | roll.numbers | {"mask": mean_mask(proposal.detach(), energy)}


def update(cfg: Config, parts: Parts, state: TrainState[SeparatorModel], here: World) -> dict[str, float]:
    """One step; batch-norm statistics stay as BiSep left them."""
    model, optimiser = state.model.eval(), state.optimiser
    for group in optimiser.param_groups:
        group["lr"] = cosine_rate(state.step, cfg.steps, cfg.warmup, cfg.rate)
    optimiser.zero_grad(set_to_none=True)
    sums: dict[str, float] = {}
    for micro in here.share(cfg.accumulate):
        rng = np.random.default_rng(derive(cfg.seed, "batch", state.step, micro))
        batch = parts.mixer.batch(rng, cfg.batch).to(model.device)
        chance = torch.Generator().manual_seed(derive(cfg.seed, "rows", state.step, micro))
        out = ask(cfg, model, batch, parts.mixer.texts, phrased=True)
        terms = loss_terms(cfg, model, batch, parts.mixer.texts, parts.teacher, chance, out)
        numbers = {name: float(value.detach()) for name, value in terms.items() if name != "loss"}
        total = terms["loss"]
        if parts.rewards is not None:
            loss, more = policy_terms(cfg, parts, model, batch, out, (state.step, micro))
            total, numbers = total + cfg.policy.weight * loss, numbers | more
        torch.autograd.backward(total / cfg.accumulate)
        for name, value in (numbers | {"loss": float(total.detach())}).items():
            sums[name] = sums.get(name, 0.0) + value / cfg.accumulate
    average_gradients(model, here)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip)
    optimiser.step()
    state.average.update(model)
    state.step += 1
    totals = {name: float(here.mean(torch.tensor(value))) * here.size for name, value in sums.items()}
    return {**totals, "gradient_norm": float(norm), "rate": optimiser.param_groups[0]["lr"]}


def set_up(cfg: Config, here: World) -> tuple[Parts, TrainState[SeparatorModel], Watcher]:
    """Everything of a fresh run."""
    if cfg.accumulate % here.size:
        raise UsageError(
            f"accumulate is {cfg.accumulate} for {here.size} processes",
            hint="take a multiple of their number",
        )
    device = training_device(cfg.device, here.local_rank)
    loaded = SeparatorModel.load(weights.path(str(cfg.start)))
    model: SeparatorModel = loaded.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    rewards = _rewards(cfg, here) if cfg.policy.weight > 0 else None
    mixer, teacher, watcher = prepare(cfg.weak, model)
    assert teacher is not None
    parts = Parts(mixer, teacher, rewards, Baseline(), Backbones())
    optimiser = torch.optim.AdamW(decay_groups(model, cfg.weight_decay), lr=cfg.rate, betas=(0.9, 0.98))
    more = {"baseline": parts.baseline} | ({"rewards": rewards} if rewards is not None else {})
    return parts, TrainState(model, Averager(model, cfg.ema), optimiser, more=more), watcher


def _rewards(cfg: Config, here: World) -> Composite:
    """The rewards, none of which may need what no scene here has."""
    rewards = compose(cfg.rewards)
    for term, one in zip(rewards.terms, cfg.rewards, strict=True):
        if term.trained_on and isinstance(getattr(term.reward, "reward", None), FidelityReward):
            raise UsageError(
                "it needs the clean target, and no single source is known here: it could score nothing",
                where=f"reward {one.path!r}",
                hint="take `semantic:bimodal-small`, or give it the weight 0",
            )
    if here.size > 1 and any(term.normalise != "none" for term in rewards.terms):
        raise UsageError(
            "a reward's running normalisation would differ between processes",
            hint='set normalise = "none", or train in one process',
        )
    return rewards


def train(cfg: Config, run: Run) -> None:
    """Train from the run's newest checkpoint, or from the weakly supervised separator.

    Raises:
        AuralignError: The guard stopped the run; its best checkpoint and the model made of it are kept.
        UsageError: The micro-batches cannot be shared equally by the processes.
        KeyboardInterrupt: The run was asked to stop; its checkpoint is written.
    """
    with world() as here, GracefulStop() as stop:
        parts, state, watcher = set_up(cfg, here)
        guard = Guard(cfg.guard)
        state.more = {**state.more, "guard": guard}
        fresh = run.checkpoints.latest() is None
        state.restore(run)
        here.barrier()  # nobody writes before everybody has read
        verdict: Verdict | None = None
        stopping = False
        with (
            run.tracker(resumed_step=None if fresh else state.step)
            if here.is_first
            else nullcontext() as tracker
        ):
            if fresh:
                verdict = _look(state, watcher, guard, tracker, run)
            while state.step < cfg.steps and not stopping and not stops(verdict):
                began = time.monotonic()
                values = update(cfg, parts, state, here)
                values["seconds_per_step"] = time.monotonic() - began
                stopping = bool(here.mean(torch.tensor(float(stop.requested))) > 0)  # all leave together
                _record(cfg, state, tracker, values)
                verdict = guard.observe(reading(state.step, values))
                if verdict is None and (state.step % cfg.validate_every == 0 or state.step == cfg.steps):
                    verdict = _look(state, watcher, guard, tracker, run)
                elif verdict is None and stopping and here.is_first:
                    state.save(run, None)
                if verdict is not None:
                    here.barrier()
                    go_back(run, state, verdict, tracker)
    if stops(verdict):
        export(run, state, here)
        raise AuralignError(
            "the guard stopped the run",
            where=str(run.path),
            why=str(verdict),
            hint="its model is the best checkpoint; change the rewards or lower policy.weight",
        )
    if state.step < cfg.steps:
        log.warning("stopped by %s after step %d; `auralign resume` goes on", stop.signal_name, state.step)
        raise KeyboardInterrupt
    export(run, state, here)


def _look(
    state: TrainState[SeparatorModel], watcher: Watcher, guard: Guard, tracker: Tracker | None, run: Run
) -> Verdict | None:
    """Validation of the averaged weights, and what the guard says of it; every process sees the same."""
    scores = watcher(state.average.model)
    verdict = guard.observe(Reading(state.step, si_sdri=scores["mixtures_si_sdri"]))
    if tracker is not None:
        tracker.log(state.step, {f"val/{name}": value for name, value in scores.items()})
        log.info("step %d: %s", state.step, {name: round(value, 3) for name, value in scores.items()})
        if verdict is None:
            state.save(run, scores["mixtures_si_sdri"])
    return verdict


def _record(
    cfg: Config, state: TrainState[SeparatorModel], tracker: Tracker | None, values: dict[str, float]
) -> None:
    """Every so often the numbers of a step."""
    if tracker is None or (state.step % 20 and state.step != 1):
        return
    tracker.log(
        state.step,
        {name if name == "seconds_per_step" else f"train/{name}": value for name, value in values.items()},
    )
    log.info("step %d of %d: %s", state.step, cfg.steps, {k: round(v, 4) for k, v in values.items()})
