"""What a FlowSE-GRPO run depends on; see :mod:`auralign.algorithms.flowse_grpo`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from auralign.data.speech_mixer import SpeechMixConfig
from auralign.flow.sde import CPS, DanceSDE, FlowSDE, NoiseLaw
from auralign.flow.window import Window
from auralign.rewards.load import RewardConfig
from auralign.rl.flow_surrogate import ClipRange, TrustRegion
from auralign.rl.selection import Keep
from auralign.rl.updates import UPDATES, UpdateSpec


@dataclass(frozen=True)
class RolloutConfig:
    """How a group of enhancements of one recording is drawn."""

    nfe: int = 5
    """Evaluations of a trajectory."""
    law: Literal["flow_sde", "dance_sde", "cps"] = "flow_sde"
    """Noise of the stochastic steps."""
    level: float = 0.4
    """Its level: a or η."""
    window: int = 2
    """Stochastic steps, which are those that are trained; 0 makes every step but the first and last stochastic."""
    first: int = 1
    """Earliest step a window begins at."""
    last: int = 2
    """Latest one."""
    shared_start: bool = True
    """Members of a group begin from the same noise, so that the steps before the window run once for all of them."""

    def __post_init__(self) -> None:
        if self.nfe < 2 or self.window < 0:
            raise ValueError(f"nfe is {self.nfe}, window {self.window}; a trajectory needs 2 steps or more")
        if self.window and self.last + self.window > self.nfe:
            raise ValueError(
                f"a window of {self.window} from step {self.last} passes the end of {self.nfe} steps"
            )
        self.noise()

    def noise(self) -> NoiseLaw:
        """The law."""
        laws: dict[str, type[FlowSDE | DanceSDE | CPS]] = {
            "flow_sde": FlowSDE,
            "dance_sde": DanceSDE,
            "cps": CPS,
        }
        return laws[self.law](self.level)

    def drawn_window(self) -> Window:
        """Where stochastic steps may be."""
        size = self.window or self.nfe - 2
        return Window(size, self.first, self.last) if self.window else Window(size, 1, 1)


@dataclass(frozen=True)
class UpdateConfig:
    """What is made of scored groups."""

    name: str = "flow_grpo"
    """flow_grpo, guard, dppo, gspo, nft, awm, advantage_flow, dpo, crpo, best_of_n or sft."""
    per_collection: int = 1
    """Updates from one collection, each on its share of the members."""
    clip_below: float = 1.5
    """Range of ratios in nats on the whole state, downwards."""
    clip_above: float = 1.5
    """And upwards."""
    largest_kl: float = 1e-5
    """Threshold of dppo, per real scalar."""
    kl: float = 0.01
    """Weight of the divergence from the base model (trajectory updates)."""
    kl_form: Literal["flow_grpo", "exact"] = "flow_grpo"
    """With or without the step's duration."""
    reference: float = 1e-4
    """Weight of the distance from the base model's velocity (nft), λ of advantage_flow."""
    average: float = 0.1
    """Weight of the distance from the averaged model (awm)."""
    strength: float = 1.0
    """β of nft."""
    preference: float = 500.0
    """β of dpo and crpo."""
    least_gap: float = 0.0
    """Pairs whose rewards are nearer are left out (dpo, crpo)."""
    keep: Keep = "quantile"
    """Which members sft matches."""
    quantile: float = 0.75
    """Of a group, for sft."""

    def __post_init__(self) -> None:
        if self.name not in UPDATES:
            raise ValueError(f"there is no update {self.name!r}; known: {', '.join(UPDATES)}")
        if self.per_collection < 1:
            raise ValueError(f"per_collection is {self.per_collection}; it must be at least 1")
        self.region()

    @property
    def spec(self) -> UpdateSpec:
        """Family and needs."""
        return UPDATES[self.name]

    def region(self, typical_std: float | None = None) -> TrustRegion:
        """Limits of trajectory updates; guard's ratios are in units of the mean spread of a rollout's steps."""
        kind = self.name if self.spec.family == "trajectory" else "flow_grpo"
        clip = ClipRange(self.clip_below, self.clip_above)
        return TrustRegion(kind, clip, self.largest_kl, typical_std)  # type: ignore[arg-type]


@dataclass(frozen=True)
class GateConfig:
    """A metric that no gain may be paid with."""

    name: str = "speaker"
    """One of the rewards, its weight may be 0."""
    limit: float = 0.02
    """How far a member may be below the base model's output for the same recording."""
    action: Literal["no_gain", "worst"] = "no_gain"
    """Its positive advantage becomes 0, or its advantage the worst of the group."""


@dataclass(frozen=True)
class Config:
    """Everything a run depends on."""

    corpus: Path = Path("corpora/speech")
    """Folder of speech."""
    noises: Path = Path("corpora/soundbox")
    """Folder of noises."""
    start: Path = Path("flowse-small")
    """The base model, a name or a folder."""
    rewards: tuple[RewardConfig, ...] = ()
    """What is scored; none takes FlowSE-GRPO's three at the scales of `scales`."""
    combine: Literal["sum", "gdpo"] = "sum"
    """Weighted sum, standardised afterwards; or every reward standardised in its group first (GDPO)."""
    gates: tuple[GateConfig, ...] = ()
    """Vetoes."""
    workers: int = 1
    """Processes that score beside sampling; 0 scores in this one."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    """How groups are drawn."""
    update: UpdateConfig = field(default_factory=UpdateConfig)
    """What is made of them."""
    watch: str = "speech-val"
    """The list that validations hear, a name or a file."""
    mix: SpeechMixConfig = field(default_factory=SpeechMixConfig)
    """How speech and noise are mixed."""
    group: int = 8
    """G, members of a group."""
    groups: int = 2
    """Recordings of a chunk, whose groups are drawn and scored together."""
    chunks: int = 2
    """Chunks of a collection over all processes; must be a multiple of their number."""
    rows: int = 16
    """Rows of a micro-batch of the update."""
    steps: int = 100
    """Collections."""
    rate: float = 1e-4
    """Learning rate at first; it falls linearly to 0."""
    weight_decay: float = 0.0
    """AdamW's."""
    clip: float = 1.0
    """Largest gradient norm."""
    rank: int = 0
    """Rank of low-rank adaptation; 0 trains all weights."""
    alpha: float = 64.0
    """Its α."""
    ema: float = 0.9
    """Decay of the averaged weights, which are what is saved and scored."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Arithmetic of the network; trajectories and densities stay in float32."""
    device: str = "auto"
    """Where to train: auto (CUDA where there is one), cpu, cuda or cuda:N."""
    validate_every: int = 20
    """Collections between validations and checkpoints."""
    validate_items: int = 24
    """Recordings of a validation."""
    seed: int = 0
    """Every random number follows from it."""

    def __post_init__(self) -> None:
        for name in ("groups", "chunks", "rows", "steps", "validate_every", "validate_items"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.group < 2:
            raise ValueError(f"group is {self.group}; a group has 2 members or more")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema is {self.ema}; it must lie in [0, 1)")
        if self.workers < 0 or self.rank < 0:
            raise ValueError(f"workers is {self.workers}, rank {self.rank}; neither is below 0")
        if self.rank and self.update.spec.needs & {"old_velocity", "average"}:
            raise ValueError(f"{self.update.name} follows copies of all weights: set rank = 0")

    @property
    def scored_clips(self) -> int:
        """Clips that rewards score in a whole run, the gates' base clips included."""
        return self.steps * self.chunks * self.groups * (self.group + bool(self.gates))
