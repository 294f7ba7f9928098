"""What a MARS-Sep run depends on; see :mod:`auralign.algorithms.mars_sep`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from auralign.algorithms.separator_pass import LossConfig
from auralign.data.mixer import MixConfig
from auralign.policy.exploration import Exploration
from auralign.rewards.guard import GuardConfig
from auralign.rewards.load import RewardConfig
from auralign.rl.surrogate import CLIP, Coefficients, RatioForm


@dataclass(frozen=True)
class PolicyConfig:
    """How masks are drawn, compared and learned from."""

    weight: float = 1.0
    """Of the policy objective beside the anchor; 0 is the supervised control, trained on the same batches."""
    gradient: Literal["score", "pathwise"] = "score"
    """Score function (the paper), or through a differentiable reward and reparameterised masks of every bin."""
    group: int = 4
    """Masks drawn for each query (paper: 1)."""
    asked: int = 2
    """Queries of each mixture that are explored: 1 or both sources."""
    refine: bool = False
    """Every other step decides on what the first separation left over; the reward judges the final sound."""
    kappa: tuple[float, ...] = (9.0,)
    """Concentration: one value, or knots of a linear schedule (paper: 9)."""
    explore: Exploration = field(default_factory=Exploration)
    """By bins or by tiles, alone or in mirrored pairs."""
    advantage: Literal["leave_one_out", "group", "published"] = "leave_one_out"
    """Less the mean of the others; standardised in the group; or the paper's moving baseline and batch scaling."""
    ratio: RatioForm = "mean_log"
    """How the ratio is formed over coordinates."""
    clip: float = CLIP
    """Range of the ratio in which it still has a gradient."""
    coefficients: Coefficients = field(default_factory=Coefficients)
    """Weights of entropy and divergences."""
    inner_epochs: int = 1
    """Updates for each draw; with one the ratio is exactly 1."""

    @property
    def drawn_together(self) -> int:
        """Masks of a group that share noise."""
        return 2 if self.explore.pairing == "antithetic" else 1

    def check(self) -> None:
        """Masks that are compared need others to be compared with, and mirrored ones come in pairs."""
        alone = {"leave_one_out": self.drawn_together, "group": 1, "published": 0}[self.advantage]
        if self.group <= alone:
            raise ValueError(
                f"a group of {self.group} has no other member to compare with; take more, "
                "or the advantage `published`"
            )
        if self.group % self.drawn_together:
            raise ValueError(
                f"a group of {self.group} is not made of mirrored pairs; take an even one, "
                "or policy.explore.pairing `independent`"
            )


@dataclass(frozen=True)
class Config:
    """Everything a run depends on."""

    corpus: Path = Path("corpora/soundbox")
    """Folder made by `auralign data build`."""
    start: str = "omnisep-small"
    """Supervised separator to start from: a name or a folder."""
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    """The policy and its update."""
    rewards: tuple[RewardConfig, ...] = (RewardConfig("semantic"), RewardConfig("fidelity"))
    """What is rewarded: `semantic`, `fidelity` or the dotted path of any Python function."""
    anchor: float = 1.0
    """Weight of the supervised loss (paper: none)."""
    guard: GuardConfig = field(default_factory=GuardConfig)
    """When to stop or roll back."""
    judge: bool = True
    """Show validation sounds to the held-out judge, for the guard; nothing is trained on it."""
    mix: MixConfig = field(default_factory=MixConfig)
    """How mixtures are made."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Weights inside the supervised loss."""
    modalities: tuple[float, float, float, float] = (0.4, 0.2, 0.15, 0.25)
    """Chances of a text, audio, picture and mixed-up query."""
    query_noise: float = 0.1
    """Length of a random vector added to each query."""
    batch: int = 16
    """Mixtures a micro-batch."""
    accumulate: int = 1
    """Micro-batches a step over all processes; must be a multiple of their number."""
    steps: int = 1000
    """Draws of the policy."""
    rate: float = 3e-4
    """Peak learning rate of AdamW (paper: 2e-4)."""
    warmup: int = 20
    """Steps of linear warm-up, then half a cosine."""
    weight_decay: float = 0.02
    """AdamW's weight decay (paper: 0.01)."""
    clip: float = 1.0
    """Largest gradient norm (paper: 1.0)."""
    ema: float = 0.99
    """Decay of the averaged weights, which are what is saved and scored."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Arithmetic of the network; densities, rewards and losses stay in float32."""
    device: str = "auto"
    """Where to train: auto (CUDA where there is one), cpu, cuda or cuda:N."""
    validate_every: int = 200
    """Steps between validations, checkpoints and sound samples."""
    seed: int = 0
    """Every random number follows from it."""

    def __post_init__(self) -> None:
        for name in ("batch", "accumulate", "steps", "validate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.policy.weight < 0 or self.anchor < 0 or self.policy.weight + self.anchor == 0:
            raise ValueError("policy.weight and anchor must be 0 or more, and one of them above 0")
        if self.policy.inner_epochs < 1 or self.policy.asked not in (1, 2):
            raise ValueError("policy.inner_epochs must be at least 1 and policy.asked 1 or 2")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema is {self.ema}; it must lie in [0, 1)")
        if self.mix.samples < 4096 or self.mix.samples % 4096:
            raise ValueError(f"mix.samples is {self.mix.samples}; take a multiple of 4096")
        if self.policy.gradient == "score":
            self.policy.check()

    @property
    def bfloat16(self) -> bool:
        """Whether the network runs in half precision."""
        return self.precision == "bfloat16"
