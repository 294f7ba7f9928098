"""FlowSE-GRPO against its naive form: identical recordings, rewards and number of scored clips, one process each way.

Ours is the step of the recipe: a window of two stochastic steps that all members share, the steps before it walked once
a recording, members drawn and updated in batches, rewards scored by a worker process while the next recordings are
drawn. The naive form draws every member alone through stochastic steps from the first to the last, scores it at once in
this process, and trains all its steps, one member after the other. Both take the published rewards: in the first entry
both by our scorers; in the second the naive form asks DNSMOS as its authors' script does, every window of a clip
through onnxruntime in float32.

The model is the shipped small one where it is installed, else a random one of its size; sounds are synthetic, since
time does not depend on what is heard.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from auralign.algorithms import flowse_grpo
from auralign.algorithms.flow_collect import Chunk, draw
from auralign.algorithms.flow_objective import Policies, objective
from auralign.algorithms.flowse_grpo import Config, Parts
from auralign.algorithms.flowse_grpo_watch import RewardWatcher
from auralign.algorithms.flowse_watch import SpeechWatcher
from auralign.algorithms.training import Averager, TrainState, decay_groups
from auralign.data.speech_mixer import SpeechBatch, SpeechMixConfig, SpeechMixer
from auralign.evaluation.bench_enhancement import RATE_HZ, small_model, smallest_times
from auralign.metrics.dnsmos import WINDOW, calibrate, window_starts
from auralign.models.enhancer import EnhancerModel
from auralign.rewards.base import Scene
from auralign.rewards.compose import Composite
from auralign.rewards.load import BUILTIN, compose
from auralign.rewards.speech import normalise_loudness
from auralign.rewards.workers import RewardWorkers
from auralign.rl.advantage import Advantage
from auralign.rl.multi_reward import scaled_advantage
from auralign.runtime import weights
from auralign.runtime.distributed import World
from auralign.runtime.seed import derive

SAME, PUBLISHED = "flowse_grpo_vs_naive_same_scorer", "flowse_grpo_vs_naive"
CASE = Config(groups=2, chunks=2, group=8, mix=SpeechMixConfig(samples=33_280))


class _Synthetic(SpeechMixer):
    """Recordings without a corpus: pulsing harmonics in hiss."""

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def batch(self, rng: np.random.Generator, size: int) -> SpeechBatch:
        """Some recordings."""
        t = torch.arange(self.samples) / RATE_HZ
        pitch = torch.from_numpy(rng.uniform(90, 260, (size, 1))).float()
        harmonics = torch.stack([torch.sin(2 * torch.pi * k * pitch * t) / k for k in range(1, 12)]).sum(0)
        clean = 0.1 * harmonics * (0.55 + 0.45 * torch.sin(2 * torch.pi * 3 * t))
        noise = 0.03 * torch.from_numpy(rng.standard_normal((size, self.samples))).float()
        no = torch.zeros(size, dtype=torch.bool)
        snr = torch.full((size,), 10.0)
        names = tuple("synthetic" for _ in range(size))
        return SpeechBatch(
            clean, clean + noise, clean, noise, snr, no, no, names, tuple(("hiss",) for _ in range(size))
        )


def bench(*, repeats: int = 3, case: Config = CASE) -> dict[str, dict[str, object]]:
    """Times of a step of both, in the form that ``auralign bench flow_rl --json`` prints.

    Args:
        repeats: Interleaved repeats of each, after one that is not timed.
        case: The recipe that is timed.
    """
    model, title = small_model()
    rewards = flowse_grpo.rewards_of(case)
    with ExitStack() as stack:
        workers = None
        if case.workers:
            paths = {one.title: one.path for one in rewards}
            workers = stack.enter_context(RewardWorkers(paths, workers=case.workers))
        plain = replace(case, rollout=replace(case.rollout, window=0, shared_start=False))
        every = {"dnsmos_ovrl": lambda: onnx_ovrl}
        sides: dict[str, Callable[[], object]] = {
            "ours": _ours(case, model, compose(rewards), workers),
            SAME: _naive(plain, model, compose(rewards)),
            PUBLISHED: _naive(plain, model, compose(rewards, builtin={**BUILTIN, **every})),
        }
        best = smallest_times(sides, repeats)
    clips = case.chunks * case.groups * case.group
    work = (
        f"{title}, {clips} clips of {case.mix.samples / RATE_HZ:.2f} s drawn, scored and learned from, "
        f"{case.rollout.nfe} evaluations, {torch.get_num_threads()} threads, {case.workers} workers"
    )
    return {
        name: {
            "ours_s": best["ours"],
            "peer_s": best[name],
            "ratio": best[name] / best["ours"],
            "ours_clips_per_s": clips / best["ours"],
            "peer_clips_per_s": clips / best[name],
            "peer": f"every step trained, members one by one, scored in this process{heard}",
            "work": work,
        }
        for name, heard in ((SAME, ""), (PUBLISHED, ", DNSMOS by onnxruntime, all windows"))
    }


@lru_cache(maxsize=1)
def _published_network() -> Any:
    onnxruntime = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    file = weights.path("dnsmos") / "p835.onnx"
    return onnxruntime.InferenceSession(file.read_bytes(), options, providers=["CPUExecutionProvider"])


def onnx_ovrl(scene: Scene) -> Float[Tensor, "batch group"]:
    """DNSMOS OVRL clip by clip and window by window, as the published script asks it."""
    session = _published_network()
    name = session.get_inputs()[0].name
    scores = []
    for clip in normalise_loudness(scene.estimate.detach().flatten(0, 1), scene.rate_hz):
        length, starts = window_starts(len(clip))
        long = clip.repeat(length // len(clip)).numpy()
        raw = [session.run(None, {name: long[None, s : s + WINDOW]})[0][0] for s in starts]
        scores.append(float(calibrate(np.stack(raw))[:, 2].mean()))
    return torch.tensor(scores).view(scene.estimate.shape[:2])


def _state(cfg: Config, model: EnhancerModel) -> TrainState[EnhancerModel]:
    own = copy.deepcopy(model)
    optimiser = torch.optim.AdamW(decay_groups(own, cfg.weight_decay), lr=cfg.rate, betas=(0.9, 0.999))
    return TrainState(own, Averager(own, cfg.ema), optimiser)


def _ours(
    cfg: Config, model: EnhancerModel, score: Composite, workers: RewardWorkers | None
) -> Callable[[], object]:
    state = _state(cfg, model)
    base = copy.deepcopy(model).requires_grad_(False)
    watcher = RewardWatcher(SpeechWatcher([], []), score, workers, None)  # nobody watches a bench
    parts = Parts(_Synthetic(cfg.mix.samples), Policies(state.model, base), None, score, workers, watcher)
    return lambda: flowse_grpo.update(cfg, parts, state, World())


def _naive(cfg: Config, model: EnhancerModel, score: Composite) -> Callable[[], object]:
    """The same step, written without any of the savings."""
    state, mixer = _state(cfg, model), _Synthetic(cfg.mix.samples)
    policies = Policies(state.model, copy.deepcopy(model).requires_grad_(False))

    def step() -> None:
        members = list(_drawn_alone(cfg, state.model, mixer, score, state.step))
        total = torch.cat([one.scored.total for one in members]).view(-1, cfg.group)
        value: Advantage = scaled_advantage(total)
        _learn_alone(cfg, policies, state, members, value.value.flatten())
        state.step += 1

    return step


def _drawn_alone(
    cfg: Config, model: EnhancerModel, mixer: SpeechMixer, score: Composite, step: int
) -> Iterator[Chunk]:
    """Member after member, each a chunk of its own, scored before the next is begun."""
    model.eval()
    for number in range(cfg.chunks):
        rng = np.random.default_rng(derive(cfg.seed, "recordings", step, number))
        batch = mixer.batch(rng, cfg.groups)
        for item in range(cfg.groups):
            wave, clean = batch.noisy[item : item + 1], batch.clean[item : item + 1]
            gain = model.gain(wave)
            noisy = model.spectrogram(wave * gain)
            for member in range(cfg.group):
                seed = derive(cfg.seed, "rollout", step, number, item, member)
                drawn, plan = draw(
                    model, noisy, cfg.rollout, group=1, bfloat16=cfg.precision == "bfloat16", seed=seed
                )
                estimate = model.waveform(drawn.final, wave.shape[-1]) / gain
                scene = Scene(estimate[:, None], wave, model.rate_hz, target=clean, interferer=wave - clean)
                yield Chunk(noisy, 1, model.scale, drawn, plan, score.score(scene), {})


def _learn_alone(
    cfg: Config,
    policies: Policies,
    state: TrainState[EnhancerModel],
    members: list[Chunk],
    advantage: Tensor,
) -> None:
    """Gradients of one member after the other, then one step."""
    state.optimiser.zero_grad(set_to_none=True)
    only = torch.zeros(1, dtype=torch.long)
    for chunk, worth in zip(members, advantage, strict=True):
        found = objective(
            policies,
            chunk,
            only,
            worth[None],
            cfg.update,
            cfg.rollout,
            bfloat16=cfg.precision == "bfloat16",
            generator=torch.Generator().manual_seed(0),
        )
        torch.autograd.backward(-found.value / len(members))
    torch.nn.utils.clip_grad_norm_(state.model.parameters(), cfg.clip)
    state.optimiser.step()
    state.average.update(state.model)
