r"""Progressive alignment: an encoder whose similarity to what was asked for can serve as a reward.

MARS-Sep (Zhang et al., ICLR 2026, arXiv:2510.10509), Sec. 3.2, three stages, each from the best of the one before.

The algorithm::

    freeze the backbones
    stage 1   pairs (sound, words)        heads of both, temperature    L_S1 = contrast(a, t)   (InfoNCE)
    stage 2   pairs (sound, sound)        head of sounds                L_S2 = l1 contrast + l2 triplet + l3 consistency
    stage 3   pairs (sound, picture)      heads of sounds and pictures  L_S3 = m1 contrast(a, v) + m2 triplet
              pool words, sound, picture  MLBP                                 + m3 L_S1 + m4 L_S2 + m5 contrast(z*, a)

Symbols: a sound, t words, v picture, z* fused anchor, l and m coefficients.

What the paper does not say, or we do differently:

1. Backbones are MiniLM, YAMNet (statistics of several maps) and EfficientNet-Lite0; ImageBind and CLAP checkpoints can
   take their place (``encoder``). Coefficients, margins and rates are ours: none is published.
2. Hard negatives are the unseparated mixture and the interferer, often of an easily confused class.
3. A ranking term orders leaks, masked mixtures and a separator's own estimates by their true SI-SDR, because that is
   what the reward will be asked to do. ``ranking = 0`` leaves it out.
4. A small part of L_S1 stays in stage 2, and every anchor is trained with modalities left out at random.
5. ``schedule = "joint"`` is the control: all terms at once from scratch for as many steps.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from auralign.algorithms.alignment_data import CHANGED, INTERFERER, MIXTURE, TARGET, SceneConfig
from auralign.algorithms.alignment_loss import (
    audio_picture,
    consistency,
    hard_info_nce,
    ranking,
    stage_one,
    stage_three,
    stage_two,
    triplet,
)
from auralign.algorithms.alignment_pairs import (
    Batch,
    Material,
    draw,
    embedding_only,
    held_out_cues,
    load_material,
    validate,
)
from auralign.algorithms.training import cosine_rate, decay_groups
from auralign.models.reward_encoder import RewardEncoder
from auralign.runtime.run import Run
from auralign.runtime.seed import derive
from auralign.runtime.signals import GracefulStop
from auralign.runtime.tracker import Tracker

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LossConfig:
    """Coefficients and margins."""

    stage_two: tuple[float, float, float, float, float] = (1.0, 1.0, 0.1, 4.0, 0.25)
    """λ of InfoNCE, triplet, consistency, ranking and the earlier stage in stage 2."""
    stage_three: tuple[float, float, float, float, float] = (0.5, 0.5, 0.25, 1.0, 1.0)
    """μ of InfoNCE and triplet with pictures, of L_S1, of L_S2 and of the pooled anchor in stage 3."""
    margin: float = 0.2
    """Margin of the triplets."""
    mixture_negative: bool = False
    """Whether the unseparated mixture is a negative of InfoNCE too, besides triplet and ranking."""
    slope: float = 0.02
    """Wanted difference of the score a decibel of SI-SDR."""
    softness: float = 0.05
    """Softness of the ranking."""


@dataclass(frozen=True)
class Config:
    """Everything a run depends on."""

    corpus: Path = Path("corpora/soundbox")
    """Folder made by `auralign data build soundbox`."""
    encoder: str = "builtin"
    """Frozen backbones: builtin, clap:FOLDER_OR_HUB_ID or imagebind:FILE."""
    dim: int = 192
    """Size of the shared space (paper: 1024, ImageBind)."""
    hidden: int = 384
    """Width of the heads' residual part."""
    rank: int = 192
    """Rank of the bilinear pooling."""
    pooling: Literal["mlbp", "mean", "max", "weighted"] = "mlbp"
    """How words, sound and picture become one anchor."""
    scenes: SceneConfig = field(default_factory=SceneConfig)
    """The sounds that are learned from."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Coefficients and margins."""
    schedule: Literal["stages", "joint"] = "stages"
    """Three stages, or as many steps of everything at once."""
    steps: tuple[int, int, int] = (200, 400, 500)
    """Updates of each stage."""
    batch: int = 96
    """Scenes a step."""
    variants: int = 8
    """Sounds of each scene a step."""
    rate: float = 1e-3
    """Peak learning rate of AdamW in each stage."""
    warmup: int = 50
    """Steps of linear warm-up of each stage."""
    weight_decay: float = 0.05
    """AdamW's weight decay."""
    dropout: float = 0.4
    """Share of raw audio features that are left out at random."""
    bare_example: float = 0.3
    """Share of example sounds of which only the tagger's embedding is known."""
    clip: float = 1.0
    """Largest gradient norm."""
    ema: float = 0.98
    """Decay of the averaged weights, which are validated and kept."""
    narrow: bool = True
    """Compute features in bfloat16."""
    validate_every: int = 100
    """Steps between validations and checkpoints."""
    seed: int = 0
    """Every random number follows from it."""

    def __post_init__(self) -> None:
        for name in ("batch", "validate_every", "dim", "hidden", "rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if min(self.steps) < 0 or sum(self.steps) < 1:
            raise ValueError(f"steps are {self.steps}; none may be negative, nor all of them zero")
        if not 4 <= self.variants <= 14:
            raise ValueError(f"variants is {self.variants}; a scene has 4 to 14 sounds")

    def stage(self, step: int) -> int:
        """Stage of a step, 1 to 3; the joint control is always in stage 3.

        >>> [Config(steps=(2, 3, 4)).stage(s) for s in (0, 1, 2, 4, 5, 8)]
        [1, 1, 2, 2, 3, 3]
        """
        if self.schedule == "joint":
            return 3
        first, second, _ = self.steps
        return 1 if step < first else 2 if step < first + second else 3

    def place(self, step: int) -> tuple[int, int]:
        """Steps done in the stage of a step, and how many it has."""
        if self.schedule == "joint":
            return step, sum(self.steps)
        stage = self.stage(step)
        return step - sum(self.steps[: stage - 1]), self.steps[stage - 1]


def build(cfg: Config, material: Material | None = None) -> RewardEncoder:
    """A fresh encoder, its features standardised to the training material."""
    torch.manual_seed(derive(cfg.seed, "weights"))
    encoder = RewardEncoder(
        dim=cfg.dim, hidden=cfg.hidden, rank=cfg.rank, pooling=cfg.pooling, encoder=cfg.encoder
    )
    encoder.narrow = cfg.narrow
    if material is not None:
        encoder.fit_scale(material.train.audio.flatten(0, 1)[::5], "audio")
        encoder.fit_scale(torch.cat(material.texts), "text")
        if "image" in encoder.heads:
            encoder.fit_scale(torch.cat(material.images), "image")
    return encoder


def unfreeze(encoder: RewardEncoder, cfg: Config, stage: int) -> list[torch.nn.Parameter]:
    """Let the parts of a stage learn and freeze the rest."""
    parts: dict[int, tuple[str, ...]] = {
        1: ("heads.text", "heads.audio", "log_scale"),
        2: ("heads.audio",),
        3: ("heads.audio", "heads.image", "pooling"),
    }
    names = ("",) if cfg.schedule == "joint" else parts[stage]
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(name.startswith(names))
    return [p for p in encoder.parameters() if p.requires_grad]


def loss_terms(
    cfg: Config, encoder: RewardEncoder, batch: Batch, stage: int, noise: torch.Generator
) -> Tensor:
    """The stage's loss of one batch."""
    size, variants = batch.quality.shape
    label, scale = batch.labels[:, 0], encoder.temperature_scale
    text = encoder.embed(batch.text, "text")
    if stage == 1:
        sound = encoder.embed(_dropped(cfg, encoder, batch.sounds[:, TARGET], noise), "audio")
        return stage_one(sound, text, label, scale)
    raw = torch.cat([batch.sounds.flatten(0, 1), batch.partner])
    embedded = encoder.embed(_dropped(cfg, encoder, raw, noise), "audio")
    sounds, partner = embedded[: size * variants].unflatten(0, (size, variants)), embedded[size * variants :]
    target, changed, hard = sounds[:, TARGET], sounds[:, CHANGED], sounds[:, [INTERFERER, MIXTURE]]
    places = 2 if cfg.loss.mixture_negative else 1
    hard_labels = torch.stack([batch.labels[:, 1], torch.full_like(label, -1)], dim=1)[:, :places]
    one = stage_one(target, text, label, scale)
    two = stage_two(
        {
            "contrast": hard_info_nce(partner, target, label, scale, hard[:, :places], hard_labels),
            "triplet": triplet(partner, target, hard, cfg.loss.margin),
            "consistency": consistency(target, changed),
            "ranking": (
                _ranked(cfg, sounds, partner, batch.quality) + _ranked(cfg, sounds, changed, batch.quality)
            )
            / 2,
            "earlier": one,
        },
        cfg.loss.stage_two,
    )
    if stage == 2:
        return two
    anchor = _anchor(cfg, encoder, batch, target, noise)
    other = torch.where(batch.own[:, None], partner, target)
    pooled = hard_info_nce(anchor, other, label, scale, hard[:, :places], hard_labels) + cfg.loss.stage_two[
        3
    ] * _ranked(cfg, sounds, anchor, batch.quality)
    nce_av = triplet_av = scale * 0.0
    if "image" in encoder.heads:
        image = encoder.embed(batch.image, "image")
        nce_av, triplet_av = audio_picture(target, image, label, scale, batch.shown, hard, cfg.loss.margin)
    return stage_three(
        {
            "nce_av": nce_av,
            "triplet_av": triplet_av,
            "stage_one": one,
            "stage_two": two,
            "pooling": pooled,
        },
        cfg.loss.stage_three,
    )


def _ranked(cfg: Config, sounds: Tensor, anchor: Tensor, quality: Tensor) -> Tensor:
    score = torch.einsum("bvd,bd->bv", sounds, anchor)
    return ranking(score, quality, slope=cfg.loss.slope, softness=cfg.loss.softness)


def _anchor(
    cfg: Config, encoder: RewardEncoder, batch: Batch, target: Tensor, noise: torch.Generator
) -> Tensor:
    """The pooled anchor; of some examples only the tagger's embedding is known."""
    raw = batch.cue.features["audio"]
    bare = torch.rand(len(raw), 1, generator=noise) < cfg.bare_example
    if encoder.encoder == "builtin":
        raw = torch.where(bare, embedding_only(encoder, raw), raw)
    example = torch.where(batch.own[:, None] & ~bare, target, encoder.embed(raw, "audio"))
    parts = [encoder.embed(batch.cue.features["text"], "text"), example]
    valid = [batch.cue.valid["text"], batch.cue.valid["audio"]]
    if "image" in encoder.heads:
        parts.append(encoder.embed(batch.cue.features["image"], "image"))
        valid.append(batch.cue.valid["image"])
    else:
        parts.append(torch.zeros_like(example))
        valid.append(torch.zeros_like(valid[0]))
    return encoder.fuse(torch.stack(parts, dim=1), torch.stack(valid, dim=1))


def _dropped(cfg: Config, encoder: RewardEncoder, raw: Tensor, noise: torch.Generator) -> Tensor:
    """Raw features with some of them at their training mean."""
    gone = torch.rand(raw.shape, generator=noise) < cfg.dropout
    return torch.where(gone, encoder.standard_mean("audio"), raw)


@dataclass
class State:
    """What changes during a run; the best weights of the stage go with it."""

    encoder: RewardEncoder
    optimiser: torch.optim.Optimizer
    average: RewardEncoder
    best: dict[str, Tensor]
    best_score: float = -1.0
    step: int = 0

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {
            "model": self.encoder.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "best": self.best,
            "best_score": self.best_score,
            "step": self.step,
        }


def _optimiser(cfg: Config, encoder: RewardEncoder, stage: int) -> torch.optim.Optimizer:
    learned = {id(p) for p in unfreeze(encoder, cfg, stage)}
    groups = decay_groups(encoder, cfg.weight_decay)
    for group in groups:
        group["params"] = [p for p in group["params"] if id(p) in learned]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=cfg.rate, betas=(0.9, 0.98))


def begin(cfg: Config, encoder: RewardEncoder) -> State:
    """The state before the first step."""
    return State(encoder, _optimiser(cfg, encoder, cfg.stage(0)), copy.deepcopy(encoder), _copy(encoder))


def restore(cfg: Config, encoder: RewardEncoder, run: Run) -> State:
    """The state of the newest checkpoint, or of a run that begins."""
    if run.checkpoints.latest() is None:
        return begin(cfg, encoder)
    stored = run.checkpoints.load_latest().state
    step = int(stored["step"])
    encoder.load_state_dict(stored["model"])
    optimiser = _optimiser(cfg, encoder, cfg.stage(max(0, step - 1)))
    optimiser.load_state_dict(stored["optimiser"])
    average = copy.deepcopy(encoder)
    average.load_state_dict(stored["average"])
    return State(encoder, optimiser, average, stored["best"], float(stored["best_score"]), step)


def _copy(encoder: RewardEncoder) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in encoder.state_dict().items()}


def update(cfg: Config, material: Material, members: dict[int, Tensor], state: State) -> dict[str, float]:
    """One step; a new stage starts from the best weights of the one before with a fresh optimiser."""
    stage, (done, steps) = cfg.stage(state.step), cfg.place(state.step)
    if done == 0 and state.step:
        state.encoder.load_state_dict(state.best)
        state.average.load_state_dict(state.best)
        state.optimiser, state.best_score = _optimiser(cfg, state.encoder, stage), -1.0
    for group in state.optimiser.param_groups:
        group["lr"] = cosine_rate(done, steps, cfg.warmup, cfg.rate)
    rng = np.random.default_rng(derive(cfg.seed, "batch", state.step))
    noise = torch.Generator().manual_seed(derive(cfg.seed, "noise", state.step))
    batch = draw(rng, material, members, cfg.batch, cfg.variants)
    state.encoder.train()
    # frozen parts too: what the stage before left there would count in the norm, and be lost by a resumed run
    state.encoder.zero_grad(set_to_none=True)
    loss = loss_terms(cfg, state.encoder, batch, stage, noise)
    torch.autograd.backward(loss)
    norm = torch.nn.utils.clip_grad_norm_(state.encoder.parameters(), cfg.clip)
    state.optimiser.step()
    with torch.no_grad():
        decay = min(cfg.ema, (1 + done) / (10 + done))
        torch._foreach_lerp_(list(state.average.parameters()), list(state.encoder.parameters()), 1 - decay)
    state.step += 1
    return {"loss": float(loss.detach()), "gradient_norm": float(norm), "stage": float(stage)}


def train(cfg: Config, run: Run) -> None:
    """Train from the run's newest checkpoint, or from scratch; a resumed run repeats the uninterrupted one bit for bit.

    Raises:
        KeyboardInterrupt: The run was asked to stop; its checkpoint is written.
    """
    with GracefulStop() as stop:
        scout = RewardEncoder(encoder=cfg.encoder)
        scout.narrow = cfg.narrow
        material = load_material(cfg.corpus, cfg.scenes, scout, cfg.seed)
        state = restore(cfg, build(cfg, material), run)
        members, cues, total = material.partners(), held_out_cues(material, cfg.seed), sum(cfg.steps)
        with run.tracker(resumed_step=state.step or None) as tracker:
            while state.step < total and not stop.requested:
                values = update(cfg, material, members, state)
                if state.step % 50 == 0 or state.step == 1:
                    tracker.log(state.step, {f"train/{name}": value for name, value in values.items()})
                    log.info("step %d of %d: %s", state.step, total, values)
                if _at_end(cfg, state.step) or state.step % cfg.validate_every == 0:
                    _keep(cfg, material, cues, state, tracker, run)
            if state.step < total:
                run.checkpoints.save(state.step, state.state_dict())
    if state.step < total:
        log.warning("stopped by %s after step %d; `auralign resume` goes on", stop.signal_name, state.step)
        raise KeyboardInterrupt
    final = copy.copy(state.encoder)
    final.load_state_dict(state.best)
    final.save(run.path / "model", {"name": run.path.name, "recipe": run.table()})


def _at_end(cfg: Config, step: int) -> bool:
    return step == sum(cfg.steps) or cfg.stage(step) != cfg.stage(step - 1)


def _keep(
    cfg: Config, material: Material, cues: tuple[Any, Any], state: State, tracker: Tracker, run: Run
) -> None:
    """Validate, remember the best weights of the stage, write a checkpoint."""
    stage = cfg.stage(state.step - 1)
    scores = validate(state.average.eval(), material, cues, stage)
    if scores["score"] > state.best_score:
        state.best, state.best_score = _copy(state.average), scores["score"]
    tracker.log(state.step, {f"val/stage{stage}/{name}": value for name, value in scores.items()})
    log.info("step %d, stage %d: %s", state.step, stage, {k: round(v, 3) for k, v in scores.items()})
    run.checkpoints.save(state.step, state.state_dict(), score=scores["score"] + stage)
