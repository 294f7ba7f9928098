from __future__ import annotations

import copy
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import textwrap
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from auralign import cli
from auralign.algorithms import mars_sep, watching
from auralign.algorithms.batches import draw
from auralign.algorithms.mars_sep import policy_loss, roll_out, train, update
from auralign.algorithms.mars_sep_parts import set_up
from auralign.algorithms.scenes import Items, first_decision
from auralign.algorithms.separator_pass import separator_pass
from auralign.data.mixer import MixConfig
from auralign.errors import AuralignError
from auralign.models.judge import Judge
from auralign.models.separator import SeparatorModel
from auralign.rewards.guard import GuardConfig
from auralign.rewards.load import RewardConfig
from auralign.rewards.signal import FidelityReward
from auralign.rl.surrogate import Coefficients
from auralign.runtime import config as configuration
from auralign.runtime.checkpoint import load_checkpoint
from auralign.runtime.distributed import World
from auralign.runtime.run import Run

RECIPES = Path(__file__).parents[2] / "recipes"
NOTHING = Coefficients(entropy=0.0, kl_old=0.0)
TWO_SOURCES = MixConfig(samples=4096, single=0.0, distractor=0.0, gain_db=0.0)

pytestmark = pytest.mark.usefixtures("tiny_watcher")


def a_run(folder: Path, cfg) -> Run:
    return Run.create(folder.parent, cfg, folder.name, algorithm="mars_sep", folder=folder)


def leaves(tree: Any, name: str = "") -> dict[str, Any]:
    """Every number, text and tensor of a checkpoint by its path."""
    if isinstance(tree, dict):
        items = tree.items()
    elif isinstance(tree, list | tuple):
        items = enumerate(tree)
    else:
        return {name: tree}
    return {key: value for k, item in items for key, value in leaves(item, f"{name}/{k}").items()}


def final(run: Run) -> dict[str, Any]:
    return leaves(run.checkpoints.load_latest().state)


def assert_same(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a.keys() == b.keys()
    different = [
        name
        for name, value in a.items()
        if not (torch.equal(value, b[name]) if isinstance(value, torch.Tensor) else value == b[name])
    ]
    assert not different, different[:5]


@pytest.fixture
def toy(monkeypatch):
    """Makes a function the reward ``toy.reward``."""

    def install(function):
        monkeypatch.setitem(sys.modules, "toy", types.SimpleNamespace(reward=function))
        return (RewardConfig("toy.reward"),)

    return install


def shuffled(reward):
    """The same values, handed to the wrong members."""
    generator = torch.Generator().manual_seed(5)

    def give(scene):
        value = reward(scene)
        return value.gather(1, torch.rand(value.shape, generator=generator).argsort(dim=1))

    return give


# learning


def follow(cfg, parts, model, first, steps: int) -> float:
    """Mean fidelity of free masks, one logit a cell, after so many steps of the policy's update."""
    logits = torch.zeros_like(first.proposal, requires_grad=True)
    optimiser = torch.optim.Adam([logits], lr=0.2)
    for step in range(steps):
        decision = dataclasses.replace(first, proposal=logits.sigmoid())
        roll = roll_out(cfg, parts, model, decision, (step, 0))
        optimiser.zero_grad()
        policy_loss(cfg.policy, roll, decision.proposal)[0].backward()
        optimiser.step()
    with torch.no_grad():
        heard = first.hear(model, logits.sigmoid()[:, None])
        return float(FidelityReward()(parts.scene(first, heard)).mean())


@pytest.mark.parametrize("explore", [{"tile": (16, 4)}, {"form": "bin"}], ids=["tile", "bin"])
def test_masks_without_a_network_learn_to_separate_and_not_from_shuffled_rewards(mars_config, toy, explore):
    gained = {}
    for name, reward in (("true", FidelityReward()), ("shuffled", shuffled(FidelityReward()))):
        cfg = mars_config(
            policy={"group": 8, "coefficients": NOTHING},
            explore=explore,
            rewards=toy(reward),
            mix=TWO_SOURCES,
            anchor=0.0,
            steps=40,
        )
        parts, state, _ = set_up(cfg, World())
        batch = draw(cfg, parts.corpus, parts.banks, 0, 0)
        with torch.no_grad():
            query = batch.raw.embed(state.model.heads, unit=False)
            out = separator_pass(state.model, batch.mixture, query)
        first = first_decision(batch, Items.of(batch, 2), out)
        gained[name] = follow(cfg, parts, state.model, first, 40) - follow(cfg, parts, state.model, first, 0)
    assert gained["true"] > 0.3
    assert gained["shuffled"] < 0.1


def error(scene):
    """Negative squared error relative to the target: best at half the mixture while queries are not told apart."""
    wrong = (scene.estimate - scene.target[:, None]).square().sum(-1)
    return -wrong / scene.target.square().sum(-1, keepdim=True)


def learned(cfg, steps: int, monkeypatch) -> float:
    """Rise of the reward of the most likely masks on one batch, from almost closed masks."""
    monkeypatch.setattr(mars_sep, "draw", lambda c, corpus, banks, step, micro: draw(c, corpus, banks, 0, 0))
    parts, state, _ = set_up(cfg, World())
    batch = draw(cfg, parts.corpus, parts.banks, 0, 0)
    with torch.no_grad():
        state.model.net.bias -= 4

    def score() -> float:
        with torch.no_grad():
            query = batch.raw.embed(state.model.heads, unit=False)
            out = separator_pass(state.model, batch.mixture, query)
            decision = first_decision(batch, Items.of(batch, 2), out)
            heard = decision.hear(state.model, decision.proposal[:, None])
        return float(error(parts.scene(decision, heard)).mean())

    before = score()
    for _ in range(steps):
        update(cfg, parts, state, World())
    return score() - before


def test_a_network_with_almost_closed_masks_opens_them_for_its_reward_and_not_for_a_shuffled_one(
    mars_config, toy, monkeypatch
):
    risen = {}
    for name, reward in (("true", error), ("shuffled", shuffled(error))):
        cfg = mars_config(
            policy={"coefficients": NOTHING},
            explore={"tile": (32, 16)},
            rewards=toy(reward),
            mix=TWO_SOURCES,
            query_noise=0.0,
            anchor=0.0,
            steps=30,
            rate=3e-3,
            seed=1,
        )
        risen[name] = learned(cfg, 30, monkeypatch)
    assert risen["true"] > 0.15
    assert risen["shuffled"] < 0.05


# the guard


def loudness(scene):
    """A reward that any hacker would like: the louder the better, whatever it is."""
    heard = scene.estimate.square().sum(-1) / scene.mixture.square().sum(-1, keepdim=True)
    return torch.log10(heard + 1e-6)


def test_a_reward_that_can_be_hacked_ends_the_run_by_name_with_the_best_model(tmp_path, mars_config, toy):
    cfg = mars_config(
        rewards=toy(loudness),
        anchor=0.0,
        policy={"coefficients": NOTHING},
        guard=GuardConfig(action="stop", all_pass=0.6, all_zero=0.0, fall_db=1e6, fidelity_slack_db=1e6),
        rate=1e-2,
        ema=0.0,
        steps=60,
        validate_every=3,
    )
    run = a_run(tmp_path / "run", cfg)
    with pytest.raises(AuralignError, match="the mask passes everything: mean 0"):
        train(cfg, run)
    records = run.metrics()
    rewards = [record["val/reward"] for record in records if "val/reward" in record]
    assert records[-1]["guard/rollback"] == 0
    assert rewards[-1] > rewards[0]
    assert records[-1]["step"] < 60
    best = load_checkpoint(run.checkpoints.best()).state["average"]["model"]
    exported = SeparatorModel.load(run.path / "model").state_dict()
    for name, value in best.items():
        torch.testing.assert_close(exported[name], value, atol=1e-3, rtol=1e-3, msg=name)
    newest = run.checkpoints.load_latest().state
    assert newest["guard"]["start"]["reward"] == pytest.approx(rewards[0])


def test_a_rollback_takes_the_weights_back_and_lets_the_step_go_on(tmp_path, mars_config, monkeypatch):
    cfg = mars_config(guard=GuardConfig(confirm=1, fall_db=1e6, fidelity_slack_db=1e6), rate=1e-2, warmup=1)
    run, seen = a_run(tmp_path / "run", cfg), []
    step = update

    def watched(cfg, parts, state, here):
        seen.append((state.step, copy.deepcopy(leaves(state.model.state_dict()))))
        values = step(cfg, parts, state, here)
        return {**values, "mask": 1.0 if state.step == 3 else 0.5}

    monkeypatch.setattr(mars_sep, "update", watched)
    train(cfg, run)
    assert [at for at, _ in seen] == [0, 1, 2, 3], "no step twice"
    records = run.metrics()
    assert [record["step"] for record in records if record.get("guard/rollback") == 1.0] == [3]
    scores = {r["step"]: r["val/si_sdri"] for r in records if "val/si_sdri" in r and r["step"] < 3}
    best = max(scores, key=scores.get)
    assert_same(seen[3][1], seen[best][1])
    with pytest.raises(AssertionError):
        assert_same(seen[3][1], seen[1][1])
    newest = run.checkpoints.load_latest().state
    assert newest["step"] == 4
    assert newest["guard"]["rolled_back"] == 1, "the guard itself is not taken back"


def test_an_alarm_after_the_last_rollback_ends_the_run(tmp_path, mars_config, monkeypatch):
    guard = GuardConfig(confirm=1, rollbacks=1, fall_db=1e6, fidelity_slack_db=1e6)
    cfg = mars_config(guard=guard, steps=6)
    run, step = a_run(tmp_path / "run", cfg), update
    monkeypatch.setattr(
        mars_sep, "update", lambda *a: {**step(*a), "mask": 1.0 if a[2].step in (1, 3) else 0.5}
    )
    with pytest.raises(AuralignError, match="already rolled back 1 times"):
        train(cfg, run)
    assert (run.path / "model").exists()


# whole runs


@pytest.fixture(scope="module")
def whole_config(mars_config):
    """Everything that has a state: running scales, the moving baseline, inner epochs, leftovers, half precision."""
    return mars_config(
        policy={"advantage": "published", "inner_epochs": 2, "refine": True, "kappa": (5.0, 9.0)},
        rewards=(RewardConfig("fidelity", normalise="running"),),
        precision="bfloat16",
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, whole_config, install_tiny_watcher) -> Run:
    with pytest.MonkeyPatch.context() as patch:
        install_tiny_watcher(patch)
        run = a_run(tmp_path_factory.mktemp("runs") / "whole", whole_config)
        train(whole_config, run)
    return run


def test_a_run_leaves_a_complete_folder(uninterrupted, whole_config, corpus_root):
    records = uninterrupted.metrics()
    first = records[0]
    assert first["step"] == 0
    assert {"val/si_sdri", "val/reward", "val/reward/fidelity", "val/mask"} <= first.keys()
    trained = next(record for record in records if "train/loss" in record)
    names = ("ratio", "clip_share", "kl_old", "entropy", "reward/total", "anchor", "mask", "kappa")
    assert {f"train/{name}" for name in names} <= trained.keys()
    assert [record["step"] for record in records if "val/si_sdri" in record] == [0, 2, 4]
    assert len(list(uninterrupted.samples_path.rglob("*.flac"))) >= 5
    assert uninterrupted.config(mars_sep.Config) == whole_config
    state = final(uninterrupted)
    assert state["/baseline/value"] is not None
    assert state["/rewards/fidelity/count"] > 0
    model = SeparatorModel.load(uninterrupted.path / "model")
    start = SeparatorModel.load(Path(whole_config.start))
    assert (model.labels, model.phrases) == (start.labels, start.phrases)
    assert not torch.equal(model.net.frame_net.weight, start.net.frame_net.weight)


@pytest.mark.parametrize(("last", "kept"), [(1, [0]), (3, [0, 2])])
def test_a_run_that_crashed_goes_on_bit_for_bit(
    tmp_path, whole_config, uninterrupted, monkeypatch, last, kept
):
    run = a_run(tmp_path / "run", whole_config)

    def crash(cfg, parts, state, here):
        if state.step == last:
            raise RuntimeError("power cut")
        return update(cfg, parts, state, here)

    monkeypatch.setattr(mars_sep, "update", crash)
    with pytest.raises(RuntimeError, match="power cut"):
        train(whole_config, run)
    assert run.checkpoints.steps() == kept
    monkeypatch.setattr(mars_sep, "update", update)
    torch.manual_seed(12345)  # nothing may depend on the global state
    train(whole_config, run)
    assert_same(final(run), final(uninterrupted))
    saved = "model/model.safetensors"
    assert_same(load_file(run.path / saved), load_file(uninterrupted.path / saved))
    steps = [record["step"] for record in run.metrics() if "val/si_sdri" in record]
    assert steps == [0, 2, 4], "no record twice"


def test_a_stopped_run_writes_a_checkpoint_at_once_and_goes_on_bit_for_bit(
    tmp_path, whole_config, uninterrupted, monkeypatch
):
    run = a_run(tmp_path / "run", whole_config)

    def interrupt(cfg, parts, state, here):
        values = update(cfg, parts, state, here)
        if state.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return values

    monkeypatch.setattr(mars_sep, "update", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(whole_config, run)
    assert run.checkpoints.steps()[-1] == 3
    assert not (run.path / "model").exists()
    monkeypatch.setattr(mars_sep, "update", update)
    train(whole_config, run)
    assert_same(final(run), final(uninterrupted))


def test_a_finished_run_is_not_trained_again(uninterrupted, whole_config, monkeypatch):
    before = final(uninterrupted)
    monkeypatch.setattr(mars_sep, "update", lambda *_: pytest.fail("one more step"))
    train(whole_config, uninterrupted)
    assert_same(final(uninterrupted), before)


def test_the_program_trains_the_paper_recipe_at_toy_size_as_python_does(
    tmp_path, mars_config, corpus_root, capsys
):
    toy = mars_config()
    changes = [
        f"corpus={corpus_root}",
        f"start={toy.start}",
        'rewards=[{path = "fidelity"}]',
        *("batch=2", "steps=2", "warmup=1", "validate_every=2", "judge=false", "mix.samples=4096"),
        "guard.fall_db=1000.0",
    ]
    recipe, folder = RECIPES / "mars_sep_paper.toml", tmp_path / "cli"
    words = ["train", str(recipe), "-o", str(folder)]
    assert cli.main([*words, *(word for change in changes for word in ("--set", change))]) == 0
    assert str(folder) in capsys.readouterr().out
    cfg = configuration.load(recipe, mars_sep.Config, changes)
    assert cfg.policy.group == 1
    run = a_run(tmp_path / "python", cfg)
    train(cfg, run)
    assert_same(final(run), final(Run.open(folder)))
    assert (folder / "report.html").exists()


# what a validation sees


class FakeJudge(Judge):
    def __init__(self):
        torch.nn.Module.__init__(self)

    def embed(self, wave, at_once=None):
        return torch.fft.rfft(wave[:, :512], n=1022).abs()


def test_a_validation_reports_the_raw_reward_the_mask_and_the_judge_of_the_most_likely_mask(
    mars_config, monkeypatch
):
    monkeypatch.setattr(watching, "load_judge", FakeJudge)
    terms = (
        RewardConfig("fidelity", weight=2.0, normalise="running"),
        RewardConfig("fidelity", "b", weight=-0.5),
    )
    cfg = mars_config(rewards=terms, judge=True)
    parts, state, watcher = set_up(cfg, World())
    update(cfg, parts, state, World())
    before = parts.rewards.state_dict()
    scores = watcher(state.model)
    assert watcher(state.model) == scores, "the same mixtures every time"
    assert parts.rewards.state_dict() == before, "a validation teaches the running scales nothing"
    assert scores["reward"] == pytest.approx(2 * scores["reward/fidelity"] - 0.5 * scores["reward/b"])
    assert 0 < scores["mask"] < 1
    assert -1 <= scores["judge"] <= 1
    with torch.no_grad():
        state.model.net.bias += 30
    opened = watcher(state.model)
    assert opened["mask"] > 0.99
    assert opened["reward/fidelity"] == pytest.approx(0, abs=0.05), "the mixture itself"
    assert np.isfinite(list(opened.values())).all()


# other processes

PROGRAM = """
    import runpy, sys

    tiny = runpy.run_path(sys.argv[1])
    tiny["use_tiny_watcher"]()
    from auralign.algorithms import mars_sep
    from auralign.runtime.run import Run

    run = Run.open(sys.argv[2])
    mars_sep.train(run.config(mars_sep.Config), run)
"""


@pytest.mark.slow
def test_two_processes_train_the_model_of_one_that_accumulates(tmp_path, mars_config):
    cfg = mars_config(accumulate=2, steps=3, validate_every=3, policy={"inner_epochs": 2})
    alone, shared = a_run(tmp_path / "alone", cfg), a_run(tmp_path / "shared", cfg)
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(one.getsockname()[1]), "WORLD_SIZE": "2"}
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM)]
    command += [str(Path(__file__).with_name("conftest.py")), str(shared.path)]
    processes = []
    for rank in range(2):
        env = os.environ | {"OMP_NUM_THREADS": "1", "RANK": str(rank), "LOCAL_RANK": str(rank)} | address
        processes.append(
            subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    train(cfg, alone)
    for process in processes:
        output, _ = process.communicate(timeout=250)
        assert process.returncode == 0, output
    mine, theirs = final(alone), final(shared)
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(theirs[name], value, atol=1e-6, rtol=1e-5, msg=name)
