"""What a supervised training loop needs beside its equations: corpus, schedule, averages, validation."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from auralign.algorithms.query_banks import QueryBanks, build_banks
from auralign.data.manifest import read_manifest
from auralign.data.mixer import MixConfig, Mixer
from auralign.data.sound_bank import SoundBank
from auralign.errors import DataError
from auralign.metrics.sdr import si_sdr
from auralign.models.encoders import QueryBackbones
from auralign.models.separator import SeparatorModel
from auralign.runtime.distributed import World
from auralign.runtime.run import Run
from auralign.runtime.seed import derive
from auralign.runtime.tracker import Tracker

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Corpus:
    """A corpus ready for training: decoded clips, classes and their texts and pictures."""

    root: Path
    mixer: Mixer
    validation: Mixer
    labels: list[str]
    texts: list[list[str]]
    pictures: list[list[Path]]

    def query_banks(self, backbones: QueryBackbones) -> QueryBanks:
        """Backbone features of all training queries, cached in the corpus folder."""
        return build_banks(self.mixer.bank, self.texts, self.pictures, backbones, self.root / ".cache")


def load_corpus(root: Path, mix: MixConfig) -> Corpus:
    """Read a soundbox folder: training and validation clips of the classes that training has.

    Raises:
        DataError: The folder is not a built corpus.
    """
    if not (root / "classes.json").exists():
        raise DataError(
            "no corpus is there",
            where=str(root),
            hint=f"make it with: auralign data build soundbox --out {root}",
        )
    classes: dict[str, dict[str, Any]] = json.loads((root / "classes.json").read_text(encoding="utf-8"))
    clips = read_manifest(root / "manifest.jsonl")
    training = [clip for clip in clips if clip.split == "train"]
    labels = sorted({clip.labels[0] for clip in training})
    held = [clip for clip in clips if clip.split == "val" and clip.labels[0] in set(labels)]
    kinds = {label: str(classes[label]["kind"]) for label in labels}
    confusable = {label: set(classes[label].get("confusable", [])) for label in labels}
    cache = root / ".cache"
    plain = replace(
        mix, samples=65_536, gain_db=0.0, speed=0.0, equaliser_db=0.0, distractor=0.0, single=0.0, tile=1.0
    )
    return Corpus(
        root=root,
        mixer=Mixer(SoundBank(training, root, cache=cache), labels, kinds, mix, confusable),
        validation=Mixer(SoundBank(held, root, cache=cache), labels, kinds, plain, confusable),
        labels=labels,
        texts=[list(classes[label]["texts"]) for label in labels],
        pictures=[
            [root / p for p in classes[label].get("pictures", {}).get("train", [])] for label in labels
        ],
    )


def cosine_rate(step: int, steps: int, warmup: int, peak: float) -> float:
    """Linear warm-up, then half a cosine down to a hundredth of the peak.

    >>> [round(cosine_rate(s, 100, 10, 1.0), 2) for s in (0, 9, 55, 99)]
    [0.1, 1.0, 0.51, 0.01]
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def equalise(
    wave: Float[Tensor, "*batch time"], rng: np.random.Generator, spread_db: float
) -> Float[Tensor, "*batch time"]:
    """Apply a random smooth gain curve over log frequency to each sound, its power kept."""
    bins = wave.shape[-1] // 2 + 1
    knots = torch.from_numpy(rng.normal(0, spread_db, size=(*wave.shape[:-1], 6))).float()
    place = torch.log1p(torch.arange(bins) * (200.0 / bins)) / math.log1p(200.0) * 5
    left = place.long().clamp(max=4)
    gain_db = torch.lerp(knots[..., left], knots[..., left + 1], place - left)
    out: Tensor = torch.fft.irfft(torch.fft.rfft(wave) * 10 ** (gain_db / 20), n=wave.shape[-1])
    power = wave.square().sum(-1, keepdim=True) / out.square().sum(-1, keepdim=True).clamp_min(1e-12)
    return out * power.sqrt()


class Averager(Generic[Model]):
    """Exponential moving average of a model's parameters; buffers are copied.

    Args:
        model: What to follow.
        decay: Weight of the past; the first steps use ``(1 + n) / (10 + n)`` where that is smaller.
    """

    def __init__(self, model: Model, decay: float) -> None:
        self.model: Model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay, self.count = decay, 0

    @torch.no_grad()
    def update(self, model: Model) -> None:
        """Take one more step into account."""
        self.count += 1
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        theirs = dict(model.named_parameters())
        torch._foreach_lerp_(
            [p for _, p in self.model.named_parameters()],
            [theirs[name] for name, _ in self.model.named_parameters()],
            1 - decay,
        )
        for mine, other in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(other)

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"model": self.model.state_dict(), "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From the checkpoint."""
        self.model.load_state_dict(state["model"])
        self.count = int(state["count"])


@runtime_checkable
class Stateful(Protocol):
    """What a checkpoint can hold."""

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From the checkpoint."""


@dataclass
class TrainState(Generic[Model]):
    """Everything that changes during a run, and what a checkpoint holds.

    Attributes:
        more: Further parts of an algorithm's state by name, each with ``state_dict`` and ``load_state_dict``.
    """

    model: Model
    average: Averager[Model]
    optimiser: torch.optim.Optimizer
    step: int = 0
    more: Mapping[str, Stateful] = field(default_factory=dict)

    def restore(self, run: Run) -> None:
        """Go on from the newest checkpoint, if there is one."""
        if run.checkpoints.latest() is None:
            return
        state = run.checkpoints.load_latest().state
        self.load_weights(state)
        for name, part in self.more.items():
            part.load_state_dict(state[name])
        self.step = int(state["step"])

    def load_weights(self, state: dict[str, Any]) -> None:
        """Take model, average and optimiser from a checkpoint's state, and nothing else."""
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])

    def save(self, run: Run, score: float | None) -> None:
        """Write a checkpoint; without a score it is never the best one."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            **{name: part.state_dict() for name, part in self.more.items()},
        }
        run.checkpoints.save(self.step, state, score=score)


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices and kernels, none for norms, gains and biases."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    return [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]


class BatchNormMean:
    """Running statistics that do not depend on who computed which micro-batch.

    Every micro-batch of a step starts from the same running statistics, and the step ends with the mean of the
    results, so that accumulation and several processes agree.
    """

    def __init__(self, model: nn.Module) -> None:
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        self._buffers = [b for m in norms for b in (m.running_mean, m.running_var) if b is not None]
        self._before = [b.clone() for b in self._buffers]
        self._sums = [torch.zeros_like(b) for b in self._buffers]

    def __enter__(self) -> None:
        for buffer, before in zip(self._buffers, self._before, strict=True):
            buffer.copy_(before)

    def __exit__(self, *error: object) -> None:
        for buffer, total in zip(self._buffers, self._sums, strict=True):
            total += buffer

    def finish(self, count: int, here: World) -> None:
        """Leave the mean over all ``count`` micro-batches of all processes in the model."""
        for buffer, total in zip(self._buffers, self._sums, strict=True):
            buffer.copy_(here.mean(total) * (here.size / count))


def average_gradients(model: nn.Module, here: World) -> None:
    """Sum the processes' gradients, each of which is already divided by the number of micro-batches."""
    for parameter in model.parameters():
        if here.size > 1 and parameter.grad is not None:
            parameter.grad = here.mean(parameter.grad) * here.size


@contextmanager
def evaluation(model: SeparatorModel) -> Iterator[None]:
    """Evaluation mode without gradients for the duration of the context."""
    was = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was)


def validation_improvements(
    model: SeparatorModel, corpus: Corpus, seed: int, *, batches: int = 12, size: int = 16
) -> Float[Tensor, " source"]:
    """SI-SDR improvement, dB, of every source of the mixtures of :func:`validate`; nan for a silent one."""
    return _validation_pass(model, corpus, seed, batches, size)[0].flatten()


def validate(
    model: SeparatorModel, corpus: Corpus, seed: int, *, batches: int = 12, size: int = 16
) -> dict[str, float]:
    """Text-query separation of fixed validation mixtures of two sources at equal power.

    Returns:
        Mean SI-SDR improvement, the share of improved sources, and how well presence tells queried from absent.
    """
    improvement, presence = _validation_pass(model, corpus, seed, batches, size)
    gain = improvement.flatten()
    gain = gain[gain.isfinite()]
    here, gone = presence[:, :2].flatten().cpu(), presence[:, 2].cpu()
    auc = ((here[:, None] > gone).double() + 0.5 * (here[:, None] == gone).double()).mean()
    return {
        "si_sdri": float(gain.mean()),
        "si_sdri_median": float(gain.median()),
        "win_rate": float((gain > 0).double().mean()),
        "presence_auc": float(auc),
    }


def _validation_pass(
    model: SeparatorModel, corpus: Corpus, seed: int, batches: int, size: int
) -> tuple[Float[Tensor, "mixture 2"], Float[Tensor, "mixture 3"]]:
    """SI-SDR improvement of both sources, and presence of both and of a class that is not there."""
    improvements: list[Tensor] = []
    presences: list[Tensor] = []
    with evaluation(model):
        phrases = torch.stack([q.vector for q in model.text_queries([texts[0] for texts in corpus.texts])])
        for number in range(batches):
            rng = np.random.default_rng(derive(seed, "validation", number))
            batch = corpus.validation.batch(rng, size)
            sources = torch.from_numpy(batch.sources).to(model.device)
            mixture = sources.sum(dim=1)
            wanted = np.concatenate([batch.labels, batch.absent[:, None]], axis=1)
            estimate, presence = model.separate_wave(mixture, phrases[torch.from_numpy(wanted)])
            before = si_sdr(est=mixture[:, None].expand_as(sources), ref=sources)
            improvements.append(si_sdr(est=estimate[:, :2], ref=sources) - before)
            presences.append(presence)
    return torch.cat(improvements), torch.cat(presences)


def write_samples(
    model: SeparatorModel, corpus: Corpus, seed: int, tracker: Tracker, step: int, count: int = 3
) -> None:
    """A few fixed validation mixtures with both sources' estimates and references, as sounds of the run."""
    batch = corpus.validation.batch(np.random.default_rng(derive(seed, "samples")), count)
    sources = torch.from_numpy(batch.sources)
    with evaluation(model):
        phrases = [[corpus.texts[label][0] for label in row] for row in batch.labels]
        query = torch.stack([torch.stack([q.vector for q in model.text_queries(row)]) for row in phrases])
        estimate = model.separate_wave(sources.sum(dim=1).to(model.device), query)[0].cpu()
    for n in range(count):
        tracker.sound(step, f"{n}-mixture", sources[n].sum(dim=0, keepdim=True).numpy(), model.rate_hz)
        for k, words in enumerate(phrases[n]):
            tracker.sound(step, f"{n}-{slug(words)}", estimate[n, k : k + 1].numpy(), model.rate_hz)
            tracker.sound(step, f"{n}-{slug(words)}-reference", sources[n, k : k + 1].numpy(), model.rate_hz)


def slug(text: str) -> str:
    """Letters, digits and dashes of a text.

    >>> slug("Dog barking!")
    'dog-barking'
    """
    return re.sub(r"[^\w]+", "-", text.lower()).strip("-")
