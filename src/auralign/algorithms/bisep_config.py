"""What a BiSep run depends on; see :mod:`auralign.algorithms.bisep`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from auralign.algorithms.bisep_data import PairConfig


@dataclass(frozen=True)
class LossConfig:
    """Weights and forms of the loss terms."""

    contrast: float = 0.5
    """CNT."""
    mixtures: float = 5.0
    """URL: whole mixtures by their captions."""
    phrases: float = 5.0
    """CRL: whole mixtures by their phrases together (published: as URL)."""
    form: Literal["l1", "db"] = "db"
    """Of the reconstruction: weighted L1 of magnitudes (published), or the masks' error in dB and cross-entropy."""
    presence: float = 0.1
    """Cross-entropy of the presence score (not in the paper)."""
    consistency: Literal["sum", "union"] = "union"
    """What the phrases of a mixture must add up to it by: the sum of their masks (published) or their union."""
    claim: float = 3.0
    """With ``db``, weight of the cross-entropy of the phrases together beside that of captions (1: as heavy)."""
    rows: int = 16
    """Estimates of a micro-batch that the encoder hears, drawn at random (0: all, as published)."""
    among: Literal["batch", "pair", "published"] = "batch"
    """Phrases that an estimate chooses from: those of its mixture of mixtures, of the batch, or (as published) those of
    all first mixtures for a first one and of all second mixtures for a second one."""
    by_level: bool = True
    """A faint estimate's gradient counts by its level in the mixture (published: an encoder's own)."""
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
    start: Path | None = None
    """A model folder to start from instead of random weights; network, words and options are then its own."""
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
        if self.pairs.repeat and self.loss.consistency == "union":
            raise ValueError('repeated phrases add up by their sum only: set loss.consistency = "sum"')
        if self.pairs.samples < 4096 or self.pairs.samples % 256:
            raise ValueError(f"pairs.samples is {self.pairs.samples}; take a multiple of 256, 4096 or more")

    @property
    def phrased(self) -> bool:
        """Whether phrases are asked for, and the encoder is needed."""
        return self.supervision in ("weak", "semi")
