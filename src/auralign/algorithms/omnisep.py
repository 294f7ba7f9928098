r"""OmniSep: query-conditioned separation learned by mix-and-separate.

Cheng et al., "OmniSep: Unified Omni-Modality Sound Separation with Query-Mixup", ICLR 2025 (arXiv:2410.21269), on the
U-Net, warp and weighted cross-entropy of Sound-of-Pixels and CLIPSep.

The algorithm::

    for each step
        draw two clips of different classes, scale, add                      -> mixture X = S_1 + S_2
        embed each source's text, picture and example; mix them at random    -> queries Q_1, Q_2 (Query-Mixup)
        one U-Net pass over log |X|, gated by each query                     -> masks M_1, M_2
        minimise  1/2 sum_n mean( w BCE(M_n, 1[|S_n| > |X|/2]) )             -> update

Symbols: X mixture, S_n source, M_n mask, w = clamp(ln(1+|X|), 1e-3, 10), Q query, R best band mask.

Deviations, each a switch of :class:`Config`:

1. Queries come from learned heads over frozen MiniLM, YAMNet and EfficientNet-Lite0 (ImageBind is non-commercial); an
   InfoNCE term keeps the three modalities together.
2. Each mixture also gets a query that is not in it. Its mask must close, and a presence score learns to say so.
3. ``network = "small"`` trades the U-Net for :class:`~auralign.models.query_mask_net.QueryMaskNet` and the binary
   target for the error in dB of the phase-sensitive band mask; ``"omnisep"`` keeps the published net, target, weight.
"""

from __future__ import annotations

import logging
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from auralign.algorithms.batches import draw, query_vectors
from auralign.algorithms.query_banks import QueryBanks
from auralign.algorithms.separator_pass import (
    LossConfig,
    Mixtures,
    separator_pass,
    supervised_terms,
    weighted_sum,
)
from auralign.algorithms.training import (
    Averager,
    BatchNormMean,
    Corpus,
    TrainState,
    average_gradients,
    cosine_rate,
    decay_groups,
    load_corpus,
    validate,
    write_samples,
)
from auralign.data.mixer import MixConfig
from auralign.errors import UsageError
from auralign.models.separator import SeparatorModel
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

    corpus: Path = Path("corpora/soundbox")
    """Folder made by `auralign data build soundbox`."""
    network: Literal["omnisep", "small"] = "small"
    """Published U-Net or the small trunk-and-head network."""
    encoder: str = "builtin"
    """Frozen query encoders: builtin, clap:FOLDER_OR_HUB_ID or imagebind:FILE."""
    query_dim: int = 256
    """Size of the query space (paper: 1024, ImageBind)."""
    widths: tuple[int, int, int, int] = (32, 64, 128, 224)
    """Channels of the small network at its four resolutions."""
    blocks: tuple[int, int, int, int] = (1, 2, 2, 2)
    """Residual blocks of the small network at its four resolutions."""
    fine: int = 16
    """Fine features a bin of the small network."""
    hidden: int = 96
    """Width of the small network's query head."""
    levels: int = 7
    """U-Net steps (paper: 7)."""
    width: int = 64
    """U-Net base width (paper: 64)."""
    mix: MixConfig = field(default_factory=MixConfig)
    """How mixtures are made."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Weights of the loss terms."""
    modalities: tuple[float, float, float, float] = (0.45, 0.2, 0.1, 0.25)
    """Chances of a text, audio, picture and mixed-up query."""
    query_noise: float = 0.1
    """Length of a random vector added to each query."""
    batch: int = 16
    """Mixtures a micro-batch."""
    accumulate: int = 1
    """Micro-batches a step over all processes; must be a multiple of their number."""
    steps: int = 10_000
    """Updates."""
    rate: float = 1.5e-3
    """Peak learning rate of AdamW, reached after the warm-up and brought down along a cosine."""
    warmup: int = 300
    """Steps of linear warm-up."""
    weight_decay: float = 0.02
    """AdamW's weight decay."""
    clip: float = 1.0
    """Largest gradient norm (OmniSep: 1.0)."""
    ema: float = 0.999
    """Decay of the averaged weights, which are what is saved and scored."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Arithmetic of the network; losses stay in float32."""
    device: str = "auto"
    """Where to train: auto (CUDA where there is one), cpu, cuda or cuda:N."""
    validate_every: int = 500
    """Steps between validations, checkpoints and sound samples."""
    seed: int = 0
    """Every random number follows from it."""

    def __post_init__(self) -> None:
        for name in ("batch", "accumulate", "steps", "validate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema is {self.ema}; it must lie in [0, 1)")
        if self.mix.samples < 4096 or self.mix.samples % 4096:
            raise ValueError(f"mix.samples is {self.mix.samples}; take a multiple of 4096")

    @property
    def network_options(self) -> dict[str, Any]:
        """Keyword arguments of the network."""
        if self.network == "omnisep":
            return {"query_dim": self.query_dim, "levels": self.levels, "width": self.width}
        return {
            "widths": self.widths,
            "blocks": self.blocks,
            "fine": self.fine,
            "hidden": self.hidden,
            "query_dim": self.query_dim,
        }


def loss_terms(
    cfg: Config, model: SeparatorModel, batch: Mixtures, rng: torch.Generator
) -> dict[str, Tensor]:
    """All terms of one micro-batch, unweighted, and their weighted sum as ``loss``."""
    query = query_vectors(cfg, model, batch.raw, rng)
    out = separator_pass(model, batch.mixture, query, bfloat16=cfg.precision == "bfloat16")
    terms = supervised_terms(model, out, batch)
    return {**terms, "loss": weighted_sum(terms, cfg.loss)}


def build(cfg: Config, corpus: Corpus) -> SeparatorModel:
    """A fresh separator for a corpus; the published network keeps mixed queries at their own length."""
    torch.manual_seed(derive(cfg.seed, "weights"))
    model = SeparatorModel(
        cfg.network,
        cfg.network_options,
        labels=corpus.labels,
        phrases=[texts[0] for texts in corpus.texts],
        unit_queries=cfg.network == "small",
        encoder=cfg.encoder,
    )
    moved: SeparatorModel = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved


def update(
    cfg: Config, corpus: Corpus, banks: QueryBanks, state: TrainState[SeparatorModel], here: World
) -> dict[str, float]:
    """One step: this process's share of the micro-batches, averaged gradients, one AdamW update."""
    model, optimiser = state.model.train(), state.optimiser
    for group in optimiser.param_groups:
        group["lr"] = cosine_rate(state.step, cfg.steps, cfg.warmup, cfg.rate)
    optimiser.zero_grad(set_to_none=True)
    sums: dict[str, float] = {}
    norms = BatchNormMean(model)
    for micro in here.share(cfg.accumulate):
        batch = draw(cfg, corpus, banks, state.step, micro).to(model.device)
        noise = torch.Generator().manual_seed(derive(cfg.seed, "noise", state.step, micro))
        with norms:
            terms = loss_terms(cfg, model, batch, noise)
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
        corpus = load_corpus(cfg.corpus, cfg.mix)
        model = build(cfg, corpus).to(device)
        banks = corpus.query_banks(model.backbones)
        optimiser = torch.optim.AdamW(decay_groups(model, cfg.weight_decay), lr=cfg.rate, betas=(0.9, 0.98))
        state = TrainState(model, Averager(model, cfg.ema), optimiser)
        state.restore(run)
        stopping = False
        with run.tracker(resumed_step=state.step or None) if here.is_first else nullcontext() as tracker:
            while state.step < cfg.steps and not stopping:
                began = time.monotonic()
                values = update(cfg, corpus, banks, state, here)
                values["seconds_per_step"] = time.monotonic() - began
                stopping = bool(here.mean(torch.tensor(float(stop.requested))) > 0)  # all leave together
                if tracker is not None:
                    _record(cfg, state, tracker, values)
                    _keep(cfg, corpus, state, tracker, run, stopping)
    if state.step < cfg.steps:
        log.warning("stopped by %s after step %d; `auralign resume` goes on", stop.signal_name, state.step)
        raise KeyboardInterrupt
    if here.is_first:
        state.average.model.save(run.path / "model", {"name": run.path.name, "recipe": run.table()})


def _record(
    cfg: Config, state: TrainState[SeparatorModel], tracker: Tracker, values: dict[str, float]
) -> None:
    """Every so often the numbers of a step."""
    if state.step % 50 and state.step != 1:
        return
    tracker.log(
        state.step,
        {name if name == "seconds_per_step" else f"train/{name}": value for name, value in values.items()},
    )
    log.info("step %d of %d: %s", state.step, cfg.steps, {k: round(v, 4) for k, v in values.items()})


def _keep(
    cfg: Config, corpus: Corpus, state: TrainState[SeparatorModel], tracker: Tracker, run: Run, stopping: bool
) -> None:
    """Every so often a validation, sounds and a checkpoint; a run that must stop only writes the checkpoint."""
    if state.step % cfg.validate_every and state.step != cfg.steps:
        if stopping:
            state.save(run, None)
        return
    scores = validate(state.average.model, corpus, cfg.seed)
    tracker.log(state.step, {f"val/{name}": value for name, value in scores.items()})
    log.info("step %d: %s", state.step, {name: round(value, 3) for name, value in scores.items()})
    write_samples(state.average.model, corpus, cfg.seed, tracker, state.step)
    state.save(run, scores["si_sdri"])
