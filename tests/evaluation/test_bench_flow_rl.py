"""The bench of FlowSE-GRPO: both sides draw, score and learn from equally many clips, the naive one alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from auralign.algorithms.flow_collect import Chunk
from auralign.algorithms.flowse_grpo_config import RolloutConfig
from auralign.data.speech_mixer import SpeechMixConfig
from auralign.evaluation import bench_flow_rl
from auralign.models.enhancer import EnhancerModel
from auralign.rewards.compose import Composite
from auralign.rewards.load import RewardConfig

CASE = replace(
    bench_flow_rl.CASE,
    groups=1,
    chunks=1,
    group=2,
    workers=0,
    precision="float32",
    rollout=RolloutConfig(nfe=4, window=1, first=1, last=1),
    mix=SpeechMixConfig(samples=4_096),
    rewards=(RewardConfig(path="si_sdr"),),
)


@pytest.fixture
def seen(monkeypatch):
    torch.manual_seed(0)
    model = EnhancerModel(options={"widths": (8, 8, 8, 8), "blocks": (1, 1, 1, 1)}).eval()
    torch.nn.init.normal_(next(p for p in model.net.parameters() if p.ndim > 1), std=0.1)
    monkeypatch.setattr(bench_flow_rl, "small_model", lambda: (model, "random"))
    scenes: list[tuple[int, ...]] = []
    score = Composite.score
    learn = Composite.learn_parts

    def scored(self, scene):
        scenes.append(tuple(scene.estimate.shape[:2]))
        return score(self, scene)

    def learned(self, parts):
        scenes.append(tuple(next(iter(parts.values())).shape))
        return learn(self, parts)

    monkeypatch.setattr(Composite, "score", scored)
    monkeypatch.setattr(Composite, "learn_parts", learned)
    return scenes


def test_both_sides_score_equally_many_clips(seen):
    entries = bench_flow_rl.bench(repeats=1, case=CASE)
    assert list(entries) == ["flowse_grpo_vs_naive_same_scorer", "flowse_grpo_vs_naive"]
    assert seen == [(1, 2), (1, 1), (1, 1), (1, 1), (1, 1)] * 2
    for entry in entries.values():
        assert entry["ratio"] == pytest.approx(entry["peer_s"] / entry["ours_s"])
        assert entry["ours_clips_per_s"] == pytest.approx(2 / entry["ours_s"])


def test_the_naive_form_trains_every_step_but_the_ends_and_moves_the_weights(seen, monkeypatch):
    model, _ = bench_flow_rl.small_model()
    plain = replace(CASE, rollout=replace(CASE.rollout, window=0, shared_start=False))
    members: list[Chunk] = []
    drawn = bench_flow_rl._drawn_alone
    monkeypatch.setattr(
        bench_flow_rl, "_drawn_alone", lambda *given: members.extend(drawn(*given)) or list(members)
    )
    states = []
    state_of = bench_flow_rl._state
    monkeypatch.setattr(bench_flow_rl, "_state", lambda *given: states.append(state_of(*given)) or states[-1])
    step = bench_flow_rl._naive(plain, model, bench_flow_rl.compose(CASE.rewards))
    before = {name: p.clone() for name, p in states[0].model.named_parameters()}
    step()
    assert [chunk.items for chunk in members] == [1, 1]
    assert all(int(chunk.plan.kept.sum()) == CASE.rollout.nfe - 2 for chunk in members)
    moved = [name for name, p in states[0].model.named_parameters() if not torch.equal(p, before[name])]
    assert moved
    assert states[0].step == 1
