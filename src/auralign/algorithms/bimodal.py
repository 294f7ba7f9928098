r"""A text-audio encoder aligned on captioned mixtures: the weak teacher of BiSep, itself taught by no single sound.

Contrastive language-audio pretraining (CLAP; Elizalde et al. 2023, arXiv:2206.04769; Wu et al. 2023,
arXiv:2211.06687) at the size of two CPU cores: frozen YAMNet and MiniLM, learned heads, recordings of several sounds
with their captions. A recording's positives are the phrases of its caption. With
:math:`S_{iu} = s\langle a_i, t_u\rangle` over the recordings i and the distinct phrases u of a batch, :math:`P_{iu}`
which belong together and :math:`K_{iu}` which count at all,

.. math::

    \mathcal L = -\frac1B\sum_i \frac{\sum_u P_{iu}\log\mathrm{softmax}_{u \in K_i} S_{iu}}{\sum_u P_{iu}}
    -\frac1U\sum_u \frac{\sum_i P_{iu}\log\mathrm{softmax}_{i \in K_u} S_{iu}}{\sum_i P_{iu}}.

A phrase that says nearly the same as one of the recording's own (cosine of frozen sentence vectors) is no negative.
"""

from __future__ import annotations

import copy
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from auralign.algorithms.training import cosine_rate, decay_groups
from auralign.data.captioned import CaptionedSounds, load_captioned
from auralign.models.reward_encoder import RewardEncoder
from auralign.runtime.run import Run
from auralign.runtime.seed import derive
from auralign.runtime.signals import GracefulStop

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config:
    """Everything a run depends on."""

    corpus: Path = Path("corpora/captions")
    """Folder of captioned recordings, made by `auralign data build captions`."""
    splits: tuple[str, ...] = ("train-2", "train-3", "train-4")
    """Recordings to learn from."""
    held_out: tuple[str, ...] = ("val-2",)
    """Recordings to watch."""
    samples: int = 32_768
    """Length of a stretch, samples (2.05 s)."""
    crops: int = 2
    """Stretches of each recording whose features are computed once."""
    encoder: str = "builtin"
    """Frozen backbones."""
    dim: int = 128
    """Size of the shared space."""
    hidden: int = 256
    """Width of the heads' residual part."""
    same: float = 0.7
    """Cosine of sentence vectors from which two phrases say the same."""
    dropout: float = 0.2
    """Share of a recording's features that a step does not see."""
    batch: int = 128
    """Recordings a step."""
    steps: int = 1200
    """Updates."""
    rate: float = 1e-3
    """Peak learning rate of AdamW."""
    warmup: int = 50
    """Steps of linear warm-up."""
    weight_decay: float = 0.05
    """AdamW's weight decay."""
    ema: float = 0.99
    """Decay of the averaged weights, which are what is saved."""
    validate_every: int = 200
    """Steps between validations and checkpoints."""
    seed: int = 0
    """Every random number follows from it."""

    def __post_init__(self) -> None:
        for name in ("batch", "steps", "crops", "validate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.dropout < 1 or not 0 <= self.ema < 1:
            raise ValueError("dropout and ema must lie in [0, 1)")


@dataclass(frozen=True)
class Material:
    """Frozen features of recordings and phrases, computed once."""

    audio: Float[Tensor, "recording heard"]
    text: Float[Tensor, "phrase written"]
    own: tuple[tuple[int, ...], ...]
    """Phrases of each recording."""


def phrase_loss(
    similarity: Float[Tensor, "recording phrase"],
    own: Bool[Tensor, "recording phrase"],
    counts: Bool[Tensor, "recording phrase"],
) -> Float[Tensor, ""]:
    """The equation of the module: both directions, positives uniform, what does not count left out.

    >>> own = torch.eye(2, dtype=torch.bool)
    >>> float(phrase_loss(100 * torch.eye(2), own, torch.ones_like(own)))
    0.0
    """
    logits = similarity.masked_fill(~(counts | own), -torch.inf)
    total = similarity.new_zeros(())
    for axis in (1, 0):
        held = own.sum(dim=axis)
        likelihood = torch.log_softmax(logits, dim=axis).masked_fill(~own, 0.0).sum(dim=axis)
        total = total - (likelihood[held > 0] / held[held > 0]).mean()
    return total


def load_material(cfg: Config, encoder: RewardEncoder, splits: tuple[str, ...], crops: int) -> Material:
    """Features of some stretches of all recordings, and of all phrases; kept beside the corpus."""
    sounds = load_captioned(cfg.corpus, splits, samples=cfg.samples)
    owned = [sounds.phrases(n) for n in range(len(sounds))]
    phrases = list(dict.fromkeys(phrase for group in owned for phrase in group))
    number = {phrase: n for n, phrase in enumerate(phrases)}
    key = derive(
        cfg.seed, "bimodal", cfg.encoder, cfg.samples, crops, *(c.sha256 or c.id for c in sounds.clips)
    )
    cached = cfg.corpus / ".cache" / f"bimodal-{key:016x}.safetensors"
    if cached.exists():
        audio = load_file(cached)["audio"].float()
    else:
        audio = _audio_features(sounds, encoder, crops, cfg.seed)
        cached.parent.mkdir(parents=True, exist_ok=True)
        temporary = cached.with_name(f".{cached.name}.{os.getpid()}.tmp")
        save_file({"audio": audio.half()}, temporary)
        temporary.replace(cached)
        audio = audio.half().float()
    own = tuple(tuple(number[p] for p in group) for group in owned for _ in range(crops))
    return Material(audio, encoder.backbones.texts(phrases).float(), own)


def _audio_features(
    sounds: CaptionedSounds, encoder: RewardEncoder, crops: int, seed: int
) -> Float[Tensor, "recording features"]:
    rows = []
    for index in range(len(sounds)):
        rng = np.random.default_rng(derive(seed, "crop", sounds.clips[index].id))
        waves = np.stack([sounds.cut(rng, index).wave for _ in range(crops)])
        rows.append(encoder.audio_features(torch.from_numpy(waves)))
        if index % 500 == 0:
            log.info("features of %d of %d recordings", index, len(sounds))
    return torch.cat(rows)


def _batch(
    material: Material, picked: Tensor, same: float
) -> tuple[Tensor, Float[Tensor, "phrase features"], Bool[Tensor, "r p"], Bool[Tensor, "r p"]]:
    """Recordings, their distinct phrases, which belong together, and which pairs count."""
    rows = [material.own[int(n)] for n in picked]
    used = sorted({phrase for row in rows for phrase in row})
    place = {phrase: n for n, phrase in enumerate(used)}
    own = torch.zeros(len(rows), len(used), dtype=torch.bool)
    for n, row in enumerate(rows):
        own[n, [place[phrase] for phrase in row]] = True
    text = material.text[used]
    unit = F.normalize(text, dim=1)
    close = ((unit @ unit.t()) >= same).float()
    return material.audio[picked], text, own, (own.float() @ close) == 0


def update(
    cfg: Config,
    encoder: RewardEncoder,
    average: RewardEncoder,
    optimiser: torch.optim.Optimizer,
    step: int,
    material: Material,
) -> float:
    """One step on a random batch; returns the loss."""
    for group in optimiser.param_groups:
        group["lr"] = cosine_rate(step, cfg.steps, cfg.warmup, cfg.rate)
    chance = torch.Generator().manual_seed(derive(cfg.seed, "step", step))
    picked = torch.randint(len(material.own), (cfg.batch,), generator=chance)
    raw, text, own, counts = _batch(material, picked, cfg.same)
    hidden = torch.rand(raw.shape, generator=chance) < cfg.dropout
    raw = torch.where(hidden, encoder.standard_mean("audio"), raw)
    similarity = encoder.temperature_scale * encoder.embed(raw, "audio") @ encoder.embed(text, "text").t()
    loss = phrase_loss(similarity, own, counts)
    optimiser.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    optimiser.step()
    with torch.no_grad():
        decay = min(cfg.ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(average.parameters()), list(encoder.parameters()), 1 - decay)
    return float(loss.detach())


@torch.no_grad()
def agreement(encoder: RewardEncoder, material: Material, same: float) -> float:
    """How often a recording is closer to one of its own phrases than to one of another recording; nan for one alone."""
    raw, text, own, counts = _batch(material, torch.arange(len(material.own)), same)
    similarity = encoder.embed(raw, "audio") @ encoder.embed(text, "text").t()
    shares = [
        float((row[mine][:, None] > row[other][None]).float().mean())
        for row, mine, other in zip(similarity, own, counts, strict=True)
        if bool(other.any())  # somebody else's phrase to compare with
    ]
    return float(np.mean(shares)) if shares else float("nan")


def train(cfg: Config, run: Run) -> None:
    """Train from the run's newest checkpoint, or from scratch; a resumed run repeats the uninterrupted one bit for bit.

    Raises:
        KeyboardInterrupt: The run was asked to stop; its checkpoint is written.
    """
    with GracefulStop() as stop:
        torch.manual_seed(derive(cfg.seed, "weights"))
        encoder = RewardEncoder(
            dim=cfg.dim,
            hidden=cfg.hidden,
            pooling="mean",
            modalities=("text", "audio"),
            encoder=cfg.encoder,
        )
        material = load_material(cfg, encoder, cfg.splits, cfg.crops)
        watched = load_material(cfg, encoder, cfg.held_out, 1)
        encoder.fit_scale(material.audio, "audio")
        encoder.fit_scale(material.text, "text")
        average = copy.deepcopy(encoder)
        optimiser = torch.optim.AdamW(decay_groups(encoder, cfg.weight_decay), lr=cfg.rate, betas=(0.9, 0.98))
        step = 0
        if run.checkpoints.latest() is not None:
            state = run.checkpoints.load_latest().state
            encoder.load_state_dict(state["model"])
            average.load_state_dict(state["average"])
            optimiser.load_state_dict(state["optimiser"])
            step = int(state["step"])
        with run.tracker(resumed_step=step or None) as tracker:
            stopping = False
            while step < cfg.steps and not stopping:
                loss = update(cfg, encoder, average, optimiser, step, material)
                step, stopping = step + 1, stop.requested  # asked once: who leaves has written a checkpoint
                if step % cfg.validate_every == 0 or step == cfg.steps or stopping:
                    score = agreement(average, watched, cfg.same)
                    tracker.log(step, {"train/loss": loss, "val/agreement": score})
                    log.info("step %d of %d: loss %.3f, agreement %.4f", step, cfg.steps, loss, score)
                    state = {
                        "model": encoder.state_dict(),
                        "average": average.state_dict(),
                        "optimiser": optimiser.state_dict(),
                        "step": step,
                    }
                    run.checkpoints.save(step, state, score=score)
    if step < cfg.steps:
        raise KeyboardInterrupt
    average.save(run.path / "model", {"name": run.path.name, "recipe": run.table()})
