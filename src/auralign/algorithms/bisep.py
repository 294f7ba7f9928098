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
4. A presence score is learned from phrases of neither mixture. It sees the mask and changes nothing else.
"""

from __future__ import annotations

import logging
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from auralign.algorithms.bisep_data import PairConfig, PairMixer, Pairs, Texts
from auralign.algorithms.bisep_loss import contrastive
from auralign.algorithms.bisep_measure import mask_measure, published_measure
from auralign.algorithms.bisep_watch import Watcher, load_watcher
from auralign.algorithms.separator_pass import SeparatorPass, hear, separator_pass
from auralign.algorithms.training import (
    Averager,
    BatchNormMean,
    TrainState,
    average_gradients,
    cosine_rate,
    decay_groups,
)
from auralign.data.captioned import CaptionedSounds, load_captioned
from auralign.errors import UsageError
from auralign.models.bimodal import BimodalEncoder, open_bimodal
from auralign.models.separator import SeparatorModel
from auralign.runtime.device import training_device
from auralign.runtime.distributed import World, world
from auralign.runtime.run import Run
from auralign.runtime.seed import derive
from auralign.runtime.signals import GracefulStop
from auralign.runtime.tracker import Tracker

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LossConfig:
    """Weights and forms of the loss terms."""

    contrast: float = 0.5
    """CNT."""
    reconstruction: float = 5.0
    """CRL and URL."""
    form: Literal["l1", "db"] = "db"
    """Of the reconstruction: weighted L1 of magnitudes (published), or the masks' error in dB and cross-entropy."""
    presence: float = 0.1
    """Cross-entropy of the presence score (not in the paper)."""
    pooled: bool = True
    """All phrases of a batch are negatives (published: those of the first mixtures, then those of the second)."""
    multi_positive: bool = True
    """Rows with the same words are positives of each other (published: they are negatives)."""
    symmetric: bool = True
    """Texts also choose among estimates (published: no)."""
    spare_close: bool = True
    """Phrases that say nearly the same are no negatives (published: they are)."""


@dataclass(frozen=True)
class Config:
    """Everything a run depends on."""

    corpus: Path = Path("corpora/captions")
    """Folder of captioned recordings."""
    supervision: Literal["unsupervised", "weak", "semi", "supervised"] = "weak"
    """What is heard and which terms count; see the table of the module."""
    mixtures: tuple[str, ...] = ("train-2",)
    """Splits of recordings of several sounds."""
    singles: tuple[str, ...] = ("train-1",)
    """Splits of single sounds, for semi and supervised."""
    single_share: float = 1.0
    """How many of the single sounds may be used, 0 to 1."""
    held_out: tuple[str, ...] = ("val-2",)
    """Splits to watch."""
    sounds: Path | None = None
    """A soundbox corpus: also watch phrases on its mixtures with known sources (never trained on)."""
    encoder: str = "builtin"
    """The weak teacher: builtin, clap:FOLDER_OR_HUB_ID, or the folder of an aligned encoder."""
    network: Literal["bisep", "bisep_small"] = "bisep_small"
    """Published conditional U-Net or the small network."""
    words: str = "tokens"
    """The words' encoder: tokens, clap-tokens:PLACE, clap-padded-tokens:PLACE."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the network."""
    pairs: PairConfig = field(default_factory=PairConfig)
    """How mixtures of mixtures are made."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Weights and forms of the loss terms."""
    batch: int = 8
    """Mixtures of mixtures a micro-batch."""
    accumulate: int = 1
    """Micro-batches a step over all processes; must be a multiple of their number."""
    steps: int = 3000
    """Updates."""
    rate: float = 1.5e-3
    """Peak learning rate of AdamW."""
    warmup: int = 50
    """Steps of linear warm-up."""
    weight_decay: float = 0.02
    """AdamW's weight decay (published: 1e-4 in Adam)."""
    clip: float = 1.0
    """Largest gradient norm."""
    ema: float = 0.99
    """Decay of the averaged weights, which are what is saved and scored."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Arithmetic of the network; encoder and losses stay in float32."""
    device: str = "auto"
    """Where to train: auto (CUDA where there is one), cpu, cuda or cuda:N."""
    validate_every: int = 200
    """Steps between validations and checkpoints."""
    seed: int = 0
    """Every random number follows from it."""

    def __post_init__(self) -> None:
        for name in ("batch", "accumulate", "steps", "validate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema is {self.ema}; it must lie in [0, 1)")
        if not 0 < self.single_share <= 1:
            raise ValueError(f"single_share is {self.single_share}; it must lie in (0, 1]")
        if self.pairs.samples < 4096 or self.pairs.samples % 256:
            raise ValueError(f"pairs.samples is {self.pairs.samples}; take a multiple of 256, 4096 or more")

    @property
    def phrased(self) -> bool:
        """Whether phrases are asked for, and the encoder is needed."""
        return self.supervision in ("weak", "semi")


@dataclass(frozen=True)
class Teacher:
    """The frozen encoder and its vectors of all texts."""

    encoder: BimodalEncoder
    texts: Float[Tensor, "text dim"]


def load_sounds(cfg: Config) -> tuple[CaptionedSounds | None, CaptionedSounds | None]:
    """The mixtures and the single sounds that the form of supervision may hear."""
    mixtures = singles = None
    if cfg.supervision != "supervised":
        mixtures = load_captioned(cfg.corpus, cfg.mixtures, samples=cfg.pairs.samples)
    if cfg.supervision in ("semi", "supervised"):
        singles = load_captioned(cfg.corpus, cfg.singles, samples=cfg.pairs.samples, share=cfg.single_share)
    return mixtures, singles


def build(cfg: Config) -> SeparatorModel:
    """A fresh separator."""
    torch.manual_seed(derive(cfg.seed, "weights"))
    model = SeparatorModel(cfg.network, dict(cfg.options), unit_queries=False, encoder=cfg.words)
    moved: SeparatorModel = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved


def loss_terms(
    cfg: Config, model: SeparatorModel, batch: Pairs, texts: Texts, teacher: Teacher | None
) -> dict[str, Tensor]:
    """All terms of one micro-batch, unweighted, and their weighted sum as ``loss``."""
    whole = batch.mixtures.sum(dim=1)
    asked = [batch.captions]
    if teacher is not None:
        asked.append(batch.phrases.flatten(1))
    asked.append(batch.absent[:, None])
    query = texts.vectors[torch.cat(asked, dim=1).cpu()].to(whole.device).float()
    out = separator_pass(model, whole, query, bfloat16=cfg.precision == "bfloat16")
    masks = torch.sigmoid(out.logits)
    measure = published_measure if cfg.loss.form == "l1" else mask_measure
    reconstruct = measure(model, out, batch.mixtures)
    terms = {
        "url": reconstruct(out.logits[:, :2], masks[:, :2]).sum(dim=1).mean(),
        "presence": _presence(out, batch, phrased=teacher is not None),
    }
    if teacher is not None:
        named = masks[:, 2:-1].unflatten(1, batch.phrases.shape[1:])
        together = torch.einsum("bnk,bnkrt->bnrt", batch.share, named)
        terms["crl"] = (reconstruct(None, together) * batch.weak).sum(dim=1).mean()
        terms["cnt"] = _contrast(cfg, model, named, out, batch, texts, teacher)
    weights = {"url": cfg.loss.reconstruction, "crl": cfg.loss.reconstruction}
    weights |= {"cnt": cfg.loss.contrast, "presence": cfg.loss.presence}
    total = torch.stack([weights[name] * value for name, value in terms.items()]).sum()
    return {**terms, "loss": total}


def _presence(out: SeparatorPass, batch: Pairs, *, phrased: bool) -> Float[Tensor, ""]:
    """Captions and phrases are there, the last query is not; padding does not count."""
    there = [torch.ones_like(batch.weak)]
    if phrased:
        there.append((batch.share > 0).float().flatten(1))
    counts = torch.cat([*there, torch.ones_like(batch.weak[:, :1])], dim=1)
    target = torch.ones_like(counts)
    target[:, -1] = 0
    return (
        F.binary_cross_entropy_with_logits(out.presence, target, weight=counts, reduction="sum")
        / counts.sum()
    )


def _contrast(
    cfg: Config,
    model: SeparatorModel,
    masks: Float[Tensor, "batch mix phrase row frame"],
    out: SeparatorPass,
    batch: Pairs,
    texts: Texts,
    teacher: Teacher,
) -> Float[Tensor, ""]:
    """CNT over all phrases of mixtures; the sum over both mixtures as published."""
    counts = (batch.share > 0) & (batch.weak > 0)[..., None]
    item, mix, place = counts.nonzero(as_tuple=True)
    if len(item) == 0:
        return masks.new_zeros(())
    heard = hear(model, masks[item, mix, place][:, None], out.spec[item], batch.mixtures.shape[-1])[:, 0]
    audio = teacher.encoder.audio(heard)
    number = batch.phrases[item, mix, place]
    words = teacher.texts[number]
    groups = (
        [torch.arange(len(item), device=item.device)]
        if cfg.loss.pooled
        else [(mix == n).nonzero()[:, 0] for n in (0, 1)]
    )
    total = masks.new_zeros(())
    for rows in groups:
        close = None
        if cfg.loss.spare_close:
            unit = texts.unit[number[rows].cpu()]
            close = ((unit @ unit.t()) >= cfg.pairs.same).to(audio.device)
        total = total + contrastive(
            audio[rows],
            words[rows],
            teacher.encoder.scale,
            number[rows],
            multi_positive=cfg.loss.multi_positive,
            symmetric=cfg.loss.symmetric,
            close=close,
        )
    return total * (2 / len(groups))


def update(
    cfg: Config, mixer: PairMixer, teacher: Teacher | None, state: TrainState, here: World
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
        with norms:
            terms = loss_terms(cfg, model, batch, mixer.texts, teacher)
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


def prepare(cfg: Config, model: SeparatorModel) -> tuple[PairMixer, Teacher | None, Watcher]:
    """Recordings, texts, the teacher where one is needed, and what the run is watched by."""
    mixtures, singles = load_sounds(cfg)
    names = [text for part in (mixtures, singles) if part for text in part.texts()]
    texts = Texts.of(names, model.backbones, model.token_heads.pooled_dim, cfg.corpus / ".cache")
    teacher = None
    if cfg.phrased:
        encoder = open_bimodal(cfg.encoder).to(model.device)
        teacher = Teacher(encoder, encoder.texts(list(texts.names)))
    return (
        PairMixer(mixtures, singles, texts, cfg.pairs),
        teacher,
        load_watcher(cfg.corpus, cfg.held_out, cfg.sounds, cfg.seed),
    )


def _record(cfg: Config, state: TrainState, tracker: Tracker, values: dict[str, float]) -> None:
    """Every so often the numbers of a step."""
    if state.step % 25 and state.step != 1:
        return
    tracker.log(
        state.step,
        {name if name == "seconds_per_step" else f"train/{name}": value for name, value in values.items()},
    )
    log.info("step %d of %d: %s", state.step, cfg.steps, {k: round(v, 4) for k, v in values.items()})


def _keep(
    cfg: Config, watcher: Watcher, state: TrainState, tracker: Tracker, run: Run, stopping: bool
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
