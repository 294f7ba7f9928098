"""A MARS-Sep step against a supervised OmniSep step: identical mixtures, one process, interleaved, smallest times.

Both sides start from the same separator and draw the same batch (the draw follows from seed and step alone). The
reinforcement step is the default recipe's: masks drawn for both sources of each mixture, their sounds, the semantic and
the fidelity reward, the policy update, and the supervised anchor beside it. Sounds are synthetic, since time does not
depend on what is heard; the reward encoder is the shipped one where it is installed, else a random one of its size.
"""

from __future__ import annotations

import copy
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile
import torch

from auralign.algorithms import mars_sep, omnisep
from auralign.algorithms.mars_sep_parts import Parts
from auralign.algorithms.query_banks import QueryBanks
from auralign.algorithms.training import Averager, Corpus, TrainState, decay_groups, load_corpus
from auralign.data.mixer import MixConfig
from auralign.errors import AuralignError
from auralign.models.reward_encoder import RewardEncoder
from auralign.models.separator import SeparatorModel
from auralign.rewards.load import compose
from auralign.rewards.semantic import SemanticReward
from auralign.rl.advantage import Baseline
from auralign.runtime import weights
from auralign.runtime.distributed import World

RATE_HZ = 16_000
_LABELS = 8
_CLIPS = 3


@dataclass(frozen=True)
class Work:
    """One size of step."""

    network: str
    """``small`` or ``omnisep``."""
    batch: int
    """Mixtures."""
    samples: int
    """Length of each."""
    group: int = 4
    """Masks drawn for each query."""
    width: int = 64
    """U-Net base width of ``omnisep``."""

    @property
    def text(self) -> str:
        """In words."""
        seconds = self.samples / RATE_HZ
        return f"{self.network}, {self.batch} mixtures of {seconds:.2f} s, G = {self.group}"


CASES = {
    "rl_step_vs_supervised_step": Work("small", 8, 32_768),
    "rl_step_vs_supervised_step_paper_size": Work("omnisep", 2, 65_536),
}


def bench(*, cases: dict[str, Work] | None = None, repeats: int = 3) -> dict[str, dict[str, object]]:
    """Times of both steps, in the form that ``auralign bench rl --json`` prints.

    ``ours_s`` is the reinforcement step, ``peer_s`` the supervised one; ``times_supervised`` is how often the second
    goes into the first.

    Args:
        cases: Work by name of the entry; `CASES` by default.
        repeats: Interleaved repeats of each side, after one that is not timed.
    """
    with tempfile.TemporaryDirectory(prefix="auralign-") as scratch:
        root = _sounds(Path(scratch))
        encoder, title = _encoder()
        return {
            name: {**_case(work, root, encoder, repeats), "reward": title}
            for name, work in (CASES if cases is None else cases).items()
        }


def _case(work: Work, root: Path, encoder: RewardEncoder, repeats: int) -> dict[str, object]:
    mix = MixConfig(samples=work.samples, kinds=(("event", 1.0),))
    size = "omnisep" if work.network == "omnisep" else "small"
    supervised = omnisep.Config(corpus=root, network=size, batch=work.batch, mix=mix, width=work.width)  # type: ignore[arg-type]
    policy = mars_sep.PolicyConfig(group=work.group)
    reinforced = mars_sep.Config(corpus=root, batch=work.batch, mix=mix, policy=policy, judge=False)
    # the same queries on both sides, or the draws would differ
    supervised = replace(supervised, modalities=reinforced.modalities, precision=reinforced.precision)
    corpus = load_corpus(root, mix)
    model = omnisep.build(supervised, corpus)
    banks = corpus.query_banks(model.backbones)
    sides = {
        "ours": _reinforced(reinforced, model, corpus, banks, encoder),
        "peer": _supervised(supervised, model, corpus, banks),
    }
    best = dict.fromkeys(sides, float("inf"))
    for turn in range(repeats + 1):
        for side, step in sides.items():
            start = time.perf_counter()
            step()
            if turn:
                best[side] = min(best[side], time.perf_counter() - start)
    return {
        "ours_s": best["ours"],
        "peer_s": best["peer"],
        "ratio": best["peer"] / best["ours"],
        "times_supervised": best["ours"] / best["peer"],
        "peer": "supervised OmniSep step",
        "work": work.text,
    }


def _state(model: SeparatorModel, rate: float, decay: float) -> TrainState[SeparatorModel]:
    own = copy.deepcopy(model)
    optimiser = torch.optim.AdamW(decay_groups(own, 0.02), lr=rate, betas=(0.9, 0.98))
    return TrainState(own, Averager(own, decay), optimiser)


def _supervised(
    cfg: omnisep.Config, model: SeparatorModel, corpus: Corpus, banks: QueryBanks
) -> Callable[[], object]:
    state = _state(model, cfg.rate, cfg.ema)
    return lambda: omnisep.update(cfg, corpus, banks, state, World())


def _reinforced(
    cfg: mars_sep.Config,
    model: SeparatorModel,
    corpus: Corpus,
    banks: QueryBanks,
    encoder: RewardEncoder,
) -> Callable[[], object]:
    state = _state(model, cfg.rate, cfg.ema)
    rewards = compose(cfg.rewards, builtin={"semantic": lambda: SemanticReward(encoder)})
    parts = Parts(corpus, banks, rewards, Baseline(), None)
    return lambda: mars_sep.update(cfg, parts, state, World())


def _encoder() -> tuple[RewardEncoder, str]:
    """The reward encoder to time, and what to call it."""
    try:
        encoder, title = RewardEncoder.load(weights.path("reward-small", offline=True)), "reward-small"
    except AuralignError:
        encoder, title = RewardEncoder(), "random weights of the shipped size"
    encoder.narrow = True  # as training does
    return encoder.eval().requires_grad_(False), title


def _sounds(root: Path) -> Path:
    """A corpus of noise: eight classes of three recordings, one of them held out."""
    rng = np.random.default_rng(0)
    rows = []
    names = [f"noise {n}" for n in range(_LABELS)]
    for name in names:
        for variant in range(_CLIPS):
            clip = f"{name.replace(' ', '-')}-{variant}"
            wave = 0.1 * rng.standard_normal(5 * RATE_HZ)
            soundfile.write(root / f"{clip}.flac", wave, RATE_HZ)
            row = {
                "id": clip,
                "audio": f"{clip}.flac",
                "duration_s": 5.0,
                "sample_rate": RATE_HZ,
                "channels": 1,
            }
            row |= {"labels": [name], "kind": "event", "source": clip, "sha256": clip}
            rows.append(row | {"split": "val" if variant == _CLIPS - 1 else "train"})
    classes = {name: {"kind": "event", "texts": [name]} for name in names}
    (root / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (root / "classes.json").write_text(json.dumps(classes), encoding="utf-8")
    return root
