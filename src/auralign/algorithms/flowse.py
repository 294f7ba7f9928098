r"""FlowSE: speech enhancement by a straight flow from the noisy recording to clean speech.

Lee, Cheong, Han, Shin, "FlowSE: Flow Matching-based Speech Enhancement", ICASSP 2025 (arXiv:2508.06840), on the spectra
of SGMSE+ (arXiv:2208.05830). What FlowSE-GRPO goes on from.

The algorithm::

    for each step
        draw clean speech x_0 and its noisy recording y, as compressed complex spectra
        draw a time t and noise z                       -> x_t = (1 - t) x_0 + t (y + sigma z)
        ask the network                                 -> v(x_t, y, t), or x^_0 and v = (x_t - x^_0) / t
        minimise |v - (y + sigma z - x_0)|^2            -> update

Deviations, each a setting:

1. The small network is asked for clean data; ``weighting = "data"`` counts its error |x̂₀ − x₀|² = t² |v̂ − v|² equally
   at all times: the last of few steps is as large as the first. ``"velocity"`` is the published loss.
2. ``magnitude`` adds the error of magnitudes, without which the mean over unknown phases makes speech too quiet.
3. ``at_prior`` is the share of draws with t = 1 exactly, where every sampler begins and one-step enhancement ends.
4. Recordings are brought to one mean square instead of one largest sample.

``recipes/flowse_paper.toml`` has the published values.
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
from jaxtyping import Complex, Float
from torch import Tensor

from auralign.algorithms.flowse_watch import SpeechWatcher
from auralign.algorithms.training import (
    Averager,
    BatchNormMean,
    TrainState,
    average_gradients,
    cosine_rate,
    decay_groups,
)
from auralign.data.speech_mixer import SpeechMixConfig, SpeechMixer
from auralign.errors import UsageError
from auralign.flow.path import noisy_mean, standard_normal_like
from auralign.models.enhancer import EnhancerModel
from auralign.runtime import weights
from auralign.runtime.device import training_device
from auralign.runtime.distributed import World, world
from auralign.runtime.run import Run
from auralign.runtime.seed import derive
from auralign.runtime.signals import GracefulStop
from auralign.runtime.tracker import Tracker

log = logging.getLogger(__name__)

Weighting = Literal["data", "velocity"]


@dataclass(frozen=True)
class Config:
    """Everything a run depends on."""

    corpus: Path = Path("corpora/speech")
    """Folder of speech."""
    noises: Path = Path("corpora/soundbox")
    """Folder of noises."""
    start: Path | None = None
    """A model folder to start from instead of random weights; network and options are then its own."""
    network: str = "band_unet"
    """The network, see auralign.models.flow_nets."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the network."""
    scale: float = 0.487
    """Standard deviation of the prior's noise, in units of the compressed spectrum."""
    level: Literal["rms", "peak"] = "rms"
    """What is made equal among recordings."""
    grid: Literal["uniform", "stopped"] = "uniform"
    """Times that enhancement stops at."""
    nfe: int = 4
    """Evaluations that the saved model enhances with."""
    t_eps: float = 0.03
    """Least time that is drawn."""
    at_prior: float = 0.25
    """Share of draws with t = 1 (published: 0)."""
    weighting: Weighting = "data"
    """Which error counts equally at all times (published: velocity)."""
    magnitude: float = 0.5
    """Weight of the error of magnitudes (published: 0)."""
    watch: str = "speech-val"
    """The list that validations hear, a name or a file."""
    mix: SpeechMixConfig = field(default_factory=SpeechMixConfig)
    """How speech and noise are mixed."""
    batch: int = 16
    """Recordings a micro-batch."""
    accumulate: int = 1
    """Micro-batches a step over all processes; must be a multiple of their number."""
    steps: int = 4000
    """Updates."""
    rate: float = 1e-3
    """Peak learning rate of AdamW."""
    warmup: int = 100
    """Steps of linear warm-up."""
    weight_decay: float = 0.01
    """AdamW's weight decay (published: 0)."""
    clip: float = 1.0
    """Largest gradient norm."""
    ema: float = 0.998
    """Decay of the averaged weights, which are what is saved and scored."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Arithmetic of the network; states and losses stay in float32."""
    device: str = "auto"
    """Where to train: auto (CUDA where there is one), cpu, cuda or cuda:N."""
    validate_every: int = 500
    """Steps between validations and checkpoints."""
    seed: int = 0
    """Every random number follows from it."""

    def __post_init__(self) -> None:
        for name in ("batch", "accumulate", "steps", "validate_every", "nfe"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema is {self.ema}; it must lie in [0, 1)")
        if not 0 < self.t_eps < 1:
            raise ValueError(f"t_eps is {self.t_eps}; it must lie in (0, 1)")
        if not 0 <= self.at_prior <= 1:
            raise ValueError(f"at_prior is {self.at_prior}; it is a share, 0 to 1")


def build(cfg: Config) -> EnhancerModel:
    """A fresh enhancer, or the one to start from."""
    if cfg.start is not None:
        model = EnhancerModel.load(weights.path(str(cfg.start)))
    else:
        torch.manual_seed(derive(cfg.seed, "weights"))
        model = EnhancerModel(
            cfg.network,
            cfg.options,
            scale=cfg.scale,
            steps=cfg.nfe,
            grid=cfg.grid,
            t_eps=cfg.t_eps,
            level=cfg.level,
        )
    moved: EnhancerModel = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved


def draw_times(cfg: Config, count: int, *, generator: torch.Generator) -> Float[Tensor, " batch"]:
    """Times uniform over [t_eps, 1], some of them 1."""
    t = cfg.t_eps + (1 - cfg.t_eps) * torch.rand(count, generator=generator)
    return torch.where(torch.rand(count, generator=generator) < cfg.at_prior, torch.ones(()), t)


def matching_loss(
    data: Complex[Tensor, "batch freq frame"],
    clean: Complex[Tensor, "batch freq frame"],
    t: Float[Tensor, " batch"],
    *,
    weighting: Weighting,
    magnitude: float,
) -> dict[str, Tensor]:
    r"""Error of expected clean spectra x̂₀, per complex bin.

    On a straight path :math:`\hat v - v = (x_0 - \hat x_0) / t`, so that the two weightings differ by t².
    """
    weight = torch.ones_like(t) if weighting == "data" else t**-2
    error = (data - clean).abs().square().mean(dim=(1, 2))
    sizes = (data.abs() - clean.abs()).square().mean(dim=(1, 2))
    matching = (weight * error).mean()
    louder = (weight * sizes).mean()
    return {"matching": matching, "sizes": louder, "loss": matching + magnitude * louder}


def loss_terms(
    cfg: Config,
    model: EnhancerModel,
    clean: Float[Tensor, "batch time"],
    noisy: Float[Tensor, "batch time"],
    *,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Loss of one micro-batch; randomness is drawn on the processor, so that devices agree."""
    gain = model.gain(noisy)
    x_0, y = model.spectrogram(clean * gain), model.spectrogram(noisy * gain)
    t = draw_times(cfg, len(clean), generator=generator).to(model.device)
    noise = standard_normal_like(y.cpu(), generator=generator).to(model.device)
    path = noisy_mean(y, scale=model.scale)
    x_t = path.between(x_0, path.restore(noise), t)
    with torch.autocast(x_t.device.type, dtype=torch.bfloat16, enabled=cfg.precision == "bfloat16"):
        data = model.data(x_t, y, t)
    return matching_loss(data, x_0, t, weighting=cfg.weighting, magnitude=cfg.magnitude)


def update(
    cfg: Config, mixer: SpeechMixer, state: TrainState[EnhancerModel], here: World
) -> dict[str, float]:
    """One step: this process's share of the micro-batches, averaged gradients, one AdamW update."""
    model, optimiser = state.model.train(), state.optimiser
    for group in optimiser.param_groups:
        group["lr"] = cosine_rate(state.step, cfg.steps, cfg.warmup, cfg.rate)
    optimiser.zero_grad(set_to_none=True)
    sums: dict[str, float] = {}
    norms = BatchNormMean(model)
    for micro in here.share(cfg.accumulate):
        batch = mixer.batch(np.random.default_rng(derive(cfg.seed, "batch", state.step, micro)), cfg.batch)
        chance = torch.Generator().manual_seed(derive(cfg.seed, "path", state.step, micro))
        with norms:
            terms = loss_terms(
                cfg, model, batch.clean.to(model.device), batch.noisy.to(model.device), generator=chance
            )
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
        mixer = SpeechMixer.load(cfg.corpus, cfg.noises, "train", cfg.mix, cache=cfg.corpus / ".cache")
        watcher = SpeechWatcher.load(cfg.watch, cfg.corpus, cfg.noises)
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


def _record(
    cfg: Config, state: TrainState[EnhancerModel], tracker: Tracker, values: dict[str, float]
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
    watcher: SpeechWatcher,
    state: TrainState[EnhancerModel],
    tracker: Tracker,
    run: Run,
    stopping: bool,
) -> None:
    """Every so often a validation, sounds and a checkpoint; a run that must stop only writes the checkpoint."""
    if state.step % cfg.validate_every and state.step != cfg.steps:
        if stopping:
            state.save(run, None)
        return
    scores = watcher(state.average.model)
    tracker.log(state.step, {f"val/{name}": value for name, value in scores.items()})
    log.info("step %d: %s", state.step, {name: round(value, 3) for name, value in scores.items()})
    watcher.write_samples(state.average.model, tracker, state.step)
    state.save(run, scores["si_sdri"])
