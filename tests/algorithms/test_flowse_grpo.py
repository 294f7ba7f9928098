"""FlowSE-GRPO: first steps, every update on one path, vetoes, whole runs, resumption and two processes' numbers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from auralign.algorithms import flow_collect, flowse_grpo
from auralign.algorithms.flow_objective import Policies, objective, train_items
from auralign.algorithms.flowse_grpo_config import Config, GateConfig, RolloutConfig, UpdateConfig
from auralign.data.speech_lists import write_speech_list
from auralign.data.speech_mixer import SpeechMixConfig, SpeechMixer
from auralign.errors import UsageError
from auralign.models.enhancer import EnhancerModel
from auralign.rewards.load import RewardConfig, compose
from auralign.rl.updates import UPDATES
from auralign.runtime.distributed import World
from auralign.runtime.run import Run

MIX = SpeechMixConfig(samples=8192, speed=0.0, hiss=0.0, clipped=0.0, band_limited=0.0, rooms=4)
NET = {"widths": [8, 8, 16, 16], "blocks": [1, 1, 1, 1]}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A base model with random weights that listens to all its inputs."""
    torch.manual_seed(0)
    model = EnhancerModel(options=NET, steps=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("base")
    model.save(folder, {"name": "base"}, half=False)
    return folder


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_speech: Path, tiny_noise: Path, base: Path) -> Config:
    """Two collections of four groups of four."""
    mixer = SpeechMixer.load(tiny_speech, tiny_noise, "val", MIX)
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("lists") / "val.jsonl"
    write_speech_list(path, [mixer.draw_recipe(rng, f"v{n}", cfg=MIX) for n in range(2)])
    return Config(
        corpus=tiny_speech,
        noises=tiny_noise,
        watch=str(path),
        start=base,
        rewards=(RewardConfig("si_sdr"), RewardConfig("spectral_features", weight=2.0)),
        workers=0,
        rollout=RolloutConfig(nfe=4, level=0.7, window=2, first=1, last=1),
        mix=MIX,
        group=4,
        groups=2,
        chunks=2,
        rows=8,
        steps=2,
        rate=1e-3,
        precision="float32",
        device="cpu",
        validate_every=2,
        validate_items=2,
    )


@pytest.fixture
def silent_judge(monkeypatch):
    """No held-out judge: its weights are large and its score is tested elsewhere."""
    monkeypatch.setattr(flowse_grpo, "load_distill_mos", lambda **_: None)


def collection(
    cfg: Config, model: EnhancerModel, base: EnhancerModel | None = None
) -> list[flow_collect.Chunk]:
    mixer = SpeechMixer.load(cfg.corpus, cfg.noises, "train", cfg.mix)
    return flow_collect.collect(
        model,
        base,
        flowse_grpo._recordings(cfg, mixer, 0, World()),
        cfg.rollout,
        group=cfg.group,
        bfloat16=False,
        score=compose(flowse_grpo.rewards_of(cfg)),
        workers=None,
    )


def test_members_share_the_past_and_the_window_and_differ_in_noise(config, base):
    model = EnhancerModel.load(base)
    chunk = collection(config, model)[0]
    steps = chunk.drawn.transitions
    assert chunk.items == 8
    assert steps.t.unique().tolist() == pytest.approx([0.5, 0.75])
    first = steps.state[0::2].unflatten(0, (2, 4))  # the state before the window, of each member
    assert torch.equal(first[:, :1].expand_as(first), first)
    assert not torch.equal(chunk.drawn.final[0], chunk.drawn.final[1])
    assert chunk.scored.total.shape == (2, 4)
    assert float(chunk.scored.total.std(1).min()) > 0


def test_members_with_starts_of_their_own_differ_from_the_first_step(config, base):
    cfg = dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, shared_start=False))
    chunk = collection(cfg, EnhancerModel.load(base))[0]
    first = chunk.drawn.transitions.state[0::2]
    assert not torch.equal(first[0], first[1])


def test_rows_and_conditions_belong_to_their_items(config, base):
    chunk = collection(config, EnhancerModel.load(base))[0]
    item = torch.tensor([5, 2])
    assert torch.equal(chunk.drawn.transitions.take(chunk.rows_of(item)).item, torch.tensor([5, 5, 2, 2]))
    assert torch.equal(chunk.noisy_of(item), chunk.noisy[[1, 0]])


@pytest.mark.parametrize("name", ["flow_grpo", "guard", "dppo", "gspo"])
def test_before_the_first_update_every_ratio_is_one_and_nothing_has_moved(config, base, name):
    model = EnhancerModel.load(base)
    cfg = UpdateConfig(name, kl=0.1)
    chunk = collection(config, model)[0]
    advantage = torch.linspace(-1, 1, 8)
    item = train_items(chunk, advantage, torch.ones(8, dtype=torch.bool), cfg)
    assert len(item) == 8
    found = objective(
        Policies(model, EnhancerModel.load(base)),
        chunk,
        item[[3, 0, 6]],  # another batch than the rollout's
        advantage,
        cfg,
        config.rollout,
        bfloat16=False,
        generator=torch.Generator(),
    )
    assert found.numbers["ratio"] == pytest.approx(1, abs=1e-5)
    assert found.numbers["clip_share"] == 0
    assert found.numbers["kl_old_nats"] < 1e-3
    assert found.numbers["kl_reference"] < 1e-9
    torch.autograd.backward(found.value)
    assert any(float(p.grad.abs().max()) > 0 for p in model.parameters() if p.grad is not None)


def test_a_policy_that_has_moved_is_seen(config, base):
    model = EnhancerModel.load(base)
    chunk = collection(config, model)[0]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    cfg = UpdateConfig("flow_grpo", kl=0.1)
    found = objective(
        Policies(model, EnhancerModel.load(base)),
        chunk,
        torch.arange(8),
        torch.ones(8),
        cfg,
        config.rollout,
        bfloat16=False,
        generator=torch.Generator(),
    )
    assert found.numbers["kl_old_nats"] > 0.1
    assert found.numbers["kl_reference"] > 0


@pytest.mark.parametrize("name", sorted(UPDATES))
def test_every_update_takes_a_step_and_reports_it(config, base, name, silent_judge):
    cfg = dataclasses.replace(config, update=UpdateConfig(name, per_collection=2), steps=1)
    with flowse_grpo.set_up(cfg, torch.device("cpu")) as (parts, state):
        before = [p.clone() for p in state.model.parameters()]
        numbers = flowse_grpo.update(cfg, parts, state, World())
        assert np.isfinite(list(numbers.values())).all()
        assert numbers["scored_clips"] == 16
        moved = sum(
            float((a - b).detach().abs().sum()) for a, b in zip(before, state.model.parameters(), strict=True)
        )
        assert moved > 0
        assert state.step == 1
        if parts.policies.old is not None and name != "nft":  # the next collection is the new policy's
            pairs = zip(parts.policies.old.parameters(), state.model.parameters(), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)


def test_equal_rewards_move_nothing(config, base, silent_judge):
    cfg = dataclasses.replace(config, rewards=(RewardConfig("tests_equal"),), update=UpdateConfig(kl=0.0))
    import auralign.rewards.load as load

    builtin = {**load.BUILTIN, "tests_equal": lambda: lambda scene: torch.ones(scene.estimate.shape[:2])}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "BUILTIN", builtin)
        with flowse_grpo.set_up(cfg, torch.device("cpu")) as (parts, state):
            before = [p.clone() for p in state.model.parameters()]
            numbers = flowse_grpo.update(cfg, parts, state, World())
    assert numbers["flat_groups"] == 1
    assert all(torch.equal(a, b) for a, b in zip(before, state.model.parameters(), strict=True))


def test_a_gate_takes_gains_away_where_its_metric_fell(config, base, silent_judge):
    gates = (GateConfig("si_sdr", limit=0.0, action="no_gain"),)
    cfg = dataclasses.replace(config, gates=gates)
    model = EnhancerModel.load(base)
    chunks = collection(cfg, model, EnhancerModel.load(base))
    assert chunks[0].base["si_sdr"].shape == (2,)
    values, kept, numbers = flowse_grpo.advantages(cfg, chunks, World())
    for chunk, value in zip(chunks, values, strict=True):
        fell = chunk.scored.parts["si_sdr"] < chunk.base["si_sdr"][:, None]
        assert bool((value[fell] <= 0).all())
    assert 0 < numbers["gate_si_sdr"] <= 1
    assert all(bool(k.all()) for k in kept)
    unknown = dataclasses.replace(config, gates=(GateConfig("speaker"),))
    with (
        pytest.raises(UsageError, match="watches no reward"),
        flowse_grpo.set_up(unknown, torch.device("cpu")),
    ):
        pass


def test_low_rank_additions_train_and_are_merged_into_the_model(config, tmp_path, base, silent_judge):
    cfg = dataclasses.replace(config, rank=4)
    run = Run.create(tmp_path, cfg, "lora", algorithm="flowse_grpo")
    flowse_grpo.train(cfg, run)
    a, b = EnhancerModel.load(base).state_dict(), EnhancerModel.load(run.path / "model").state_dict()
    assert a.keys() == b.keys()
    changed = {name for name in a if not torch.allclose(a[name], b[name], atol=1e-3)}
    assert changed
    assert all(name.endswith("weight") for name in changed)
    with pytest.raises(ValueError, match="rank = 0"):
        dataclasses.replace(config, rank=4, update=UpdateConfig("nft"))


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(config, tmp_path, monkeypatch, silent_judge):
    whole = Run.create(tmp_path, config, "whole", algorithm="flowse_grpo")
    flowse_grpo.train(config, whole)
    half = Run.create(tmp_path, config, "half", algorithm="flowse_grpo")
    plain = flowse_grpo.update

    def once(*arguments):
        import os
        import signal

        values = plain(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)
        return values

    monkeypatch.setattr(flowse_grpo, "update", once)
    with pytest.raises(KeyboardInterrupt):
        flowse_grpo.train(config, half)
    monkeypatch.setattr(flowse_grpo, "update", plain)
    flowse_grpo.train(config, Run.open(half.path))
    a, b = (EnhancerModel.load(run.path / "model").state_dict() for run in (whole, half))
    assert all(torch.equal(a[name], b[name]) for name in a)
    card = EnhancerModel.load(whole.path / "model").card
    assert "si_sdr" in card["trained_on"]


def test_chunks_may_be_shared_by_processes(config, base):
    """Advantages of a process are those of one process that has all chunks."""
    model = EnhancerModel.load(base)
    chunks = collection(config, model)
    whole, _, _ = flowse_grpo.advantages(config, chunks, World())

    class Second(World):
        def gather(self, value):
            others = {id(chunks[1]): chunks[0]}[id(chunks[1])]
            for name, part in chunks[1].scored.parts.items():
                if torch.equal(part, value):
                    return torch.cat([others.scored.parts[name], value])
            return torch.cat([others.scored.total, value])

    part, _, _ = flowse_grpo.advantages(config, chunks[1:], Second(rank=1, size=2))
    torch.testing.assert_close(part[0], whole[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group": 1}, "group"),
        ({"ema": 1.0}, "ema"),
        ({"rank": -1}, "rank"),
    ],
)
def test_settings_without_a_meaning_are_refused(config, change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, **change)


def test_windows_must_fit_and_updates_must_exist():
    with pytest.raises(ValueError, match="passes the end"):
        RolloutConfig(nfe=3, window=2, last=2)
    with pytest.raises(ValueError, match="no update 'ppo'"):
        UpdateConfig("ppo")


def test_a_reward_that_can_be_followed_is_followed(config, silent_judge, monkeypatch):
    """The simplest reward, a softer output, rises within six collections; equal steps against it lower it."""
    import auralign.rewards.load as load

    def softer(sign: float):
        def score(scene):
            power = scene.estimate.square().mean(-1) / scene.mixture.square().mean(-1)[:, None]
            return -sign * power.log10()

        return lambda: score

    monkeypatch.setattr(load, "BUILTIN", {**load.BUILTIN, "softer": softer(1.0), "louder": softer(-1.0)})
    level = {}
    for name in ("softer", "louder"):
        cfg = dataclasses.replace(
            config,
            rewards=(RewardConfig(name),),
            group=8,
            steps=6,
            rate=2e-3,
            ema=0.0,
            update=UpdateConfig(kl=0.0),
        )
        with flowse_grpo.set_up(cfg, torch.device("cpu")) as (parts, state):
            before = parts.watcher(state.model.eval())["reward"]
            for _ in range(cfg.steps):
                flowse_grpo.update(cfg, parts, state, World())
            level[name] = parts.watcher(state.model.eval())["reward"] - before
    assert level["softer"] > 0.02
    assert level["louder"] > 0.02
