r"""MixIT and MixPIT: separation learned from mixtures alone, without a word. The blind controls of BiSep.

Wisdom, Tzinis, Erdogan, Weiss, Wilson, Hershey, "Unsupervised Sound Separation Using Mixture Invariant Training",
NeurIPS 2020 (arXiv:2006.12701); Karamatlı and Kırbız, "MixCycle: Unsupervised Speech Separation via Cyclic Mixture
Permutation Invariant Training", 2022 (arXiv:2202.03875).

The algorithm::

    for each step
        draw two mixtures x_1, x_2; add                        -> mixture of mixtures
        outputs s_1 .. s_M of the network                      -> they sum to the mixture of mixtures
        best assignment A of outputs to mixtures               -> mixit_loss, all of them searched
        minimise  sum_n loss(x_n, [A s]_n)                     -> update

==============  ==========================================  =====================================
assignment      outputs                                     A
==============  ==========================================  =====================================
``mixit``       ``slots``, 2 or more                        each output in exactly one mixture
``mixpit``      as many as mixtures, two                    a permutation
==============  ==========================================  =====================================

No text takes part in the separation; afterwards a text picks the output that a frozen encoder finds nearest
(:mod:`auralign.models.blind`). So that a comparison with BiSep compares the losses and nothing else, the pairs of
mixtures are those of :mod:`auralign.algorithms.bisep_data`: equal seeds, corpora and ``pairs`` give the sounds of a
weakly supervised BiSep run in every step.

Deviations from the papers:

1. The network masks an STFT instead of a learned basis, and the outputs sum to the mixture by a softmax over them
   instead of a projection.
2. Two recordings with a similar phrase are not mixed, as in BiSep: the only use of captions. ``pairs.apart = false``
   removes it.
3. Mixtures are at equal power before a random gain.
"""

from __future__ import annotations

import logging
import time
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from auralign.algorithms.bisep_data import PairConfig, PairMixer, Texts
from auralign.algorithms.bisep_watch import Watcher, load_watcher
from auralign.algorithms.mixit_loss import MixtureLoss, mixit, mixpit
from auralign.algorithms.training import (
    Averager,
    BatchNormMean,
    TrainState,
    average_gradients,
    cosine_rate,
    decay_groups,
)
from auralign.data.captioned import load_captioned
from auralign.errors import UsageError
from auralign.models.blind import BlindSeparator
from auralign.models.encoders import open_backbones
from auralign.models.separator import SeparatorModel
from auralign.models.text_tokens import TOKEN_DIM
from auralign.runtime.device import training_device
from auralign.runtime.distributed import World, world
from auralign.runtime.run import Run
from auralign.runtime.seed import derive
from auralign.runtime.signals import GracefulStop
from auralign.runtime.tracker import Tracker

log = logging.getLogger(__name__)

MIXTURES = 2
"""Mixtures that are added."""


@dataclass(frozen=True)
class Config:
    """Everything a run depends on."""

    corpus: Path = Path("corpora/captions")
    """Folder of captioned recordings."""
    mixtures: tuple[str, ...] = ("train-2",)
    """Splits of recordings of several sounds."""
    held_out: tuple[str, ...] = ("val-2",)
    """Splits to watch."""
    sounds: Path | None = None
    """A soundbox corpus: also watch phrases on its mixtures with known sources (never trained on)."""
    encoder: str = "builtin"
    """What picks an output for a text: builtin, clap:FOLDER_OR_HUB_ID, or the folder of an aligned encoder."""
    slots: int = 4
    """Outputs of the network."""
    assignment: Literal["mixit", "mixpit"] = "mixit"
    """Every output in exactly one mixture, or one output for each mixture."""
    loss: MixtureLoss = "snr"
    """Loss of a mixture: negative SNR with a ceiling of 30 dB, negative SI-SDR with the same, or squared error."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the network."""
    pairs: PairConfig = field(default_factory=PairConfig)
    """How mixtures of mixtures are made; what it says of phrases counts for equal pairs only."""
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
    """AdamW's weight decay."""
    clip: float = 1.0
    """Largest gradient norm."""
    ema: float = 0.99
    """Decay of the averaged weights, which are what is saved and scored."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Arithmetic of the network; losses stay in float32."""
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
        if self.pairs.samples < 4096 or self.pairs.samples % 256:
            raise ValueError(f"pairs.samples is {self.pairs.samples}; take a multiple of 256, 4096 or more")
        if self.assignment == "mixpit" and self.slots != MIXTURES:
            raise ValueError(f"slots is {self.slots}; mixpit has one output for each of {MIXTURES} mixtures")
        if not MIXTURES <= self.slots <= 16:
            raise ValueError(f"slots is {self.slots}; it must lie in [{MIXTURES}, 16]")
        for name in ("slots", "encoder"):
            if name in self.options:
                raise ValueError(f"options.{name} is set; set {name} itself, beside options")


def build(cfg: Config) -> SeparatorModel:
    """A fresh separator without queries of its own: texts only pick its outputs."""
    torch.manual_seed(derive(cfg.seed, "weights"))
    options = {**cfg.options, "slots": cfg.slots, "encoder": cfg.encoder}
    model = SeparatorModel("blind", options, unit_queries=False, encoder=f"bimodal:{cfg.encoder}")
    moved: SeparatorModel = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved


def separate(
    model: SeparatorModel, whole: Float[Tensor, "batch time"], *, bfloat16: bool = False
) -> Float[Tensor, "batch output time"]:
    """All outputs, which sum to the input; frames are cut to whole hops, as the network wants them in training."""
    net = cast(BlindSeparator, model.net)
    spec = model.spectrogram(whole)[..., : whole.shape[-1] // model.hop]
    with torch.autocast(spec.device.type, dtype=torch.bfloat16, enabled=bfloat16):
        state = net.analyse(spec, whole)
        logits = net.outputs(state)
    return net.waves(state, torch.softmax(logits.float(), dim=1))


def loss_terms(
    cfg: Config, model: SeparatorModel, mixtures: Float[Tensor, "batch mix time"]
) -> dict[str, Tensor]:
    """Loss of one micro-batch, summed over the mixtures, and the share of mixtures that no output went to."""
    outputs = separate(model, mixtures.sum(dim=1), bfloat16=cfg.precision == "bfloat16")
    search = mixit if cfg.assignment == "mixit" else mixpit
    loss, assignment = search(outputs, mixtures, loss=cfg.loss)
    taken = F.one_hot(assignment, mixtures.shape[1]).sum(dim=1)
    return {"loss": loss.mean(), "empty": (taken == 0).float().mean()}


def update(cfg: Config, mixer: PairMixer, state: TrainState[SeparatorModel], here: World) -> dict[str, float]:
    """One step: this process's share of the micro-batches, averaged gradients, one AdamW update."""
    model, optimiser = state.model.train(), state.optimiser
    for group in optimiser.param_groups:
        group["lr"] = cosine_rate(state.step, cfg.steps, cfg.warmup, cfg.rate)
    optimiser.zero_grad(set_to_none=True)
    sums: dict[str, float] = {}
    norms = BatchNormMean(model)
    for micro in here.share(cfg.accumulate):
        rng = np.random.default_rng(derive(cfg.seed, "batch", state.step, micro))
        batch = mixer.batch(rng, cfg.batch)
        with norms:
            terms = loss_terms(cfg, model, batch.mixtures.to(model.device))
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
        mixer = load_pairs(cfg)
        watcher = load_watcher(cfg.corpus, cfg.held_out, cfg.sounds, cfg.seed)
        optimiser = torch.optim.AdamW(decay_groups(model, cfg.weight_decay), lr=cfg.rate, betas=(0.9, 0.98))
        state = TrainState(model, Averager(model, cfg.ema), optimiser)
        state.restore(run)
        stopping = False
        with run.tracker(resumed_step=state.step or None) if here.is_first else nullcontext() as tracker:
            while state.step < cfg.steps and not stopping:
                began = time.monotonic()
                values = update(cfg, mixer, state, here)
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


def load_pairs(cfg: Config) -> PairMixer:
    """The pairs of mixtures that a weakly supervised BiSep run with words ``tokens`` draws."""
    sounds = load_captioned(cfg.corpus, cfg.mixtures, samples=cfg.pairs.samples)
    texts = Texts.of(sounds.texts(), open_backbones("tokens"), TOKEN_DIM, cfg.corpus / ".cache")
    return PairMixer(sounds, None, texts, replace(cfg.pairs, absent_phrase=True))


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
