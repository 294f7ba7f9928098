"""MARS-Sep on BiSep: its control is BiSep exactly, its rewards hear no reference, its runs go on bit for bit."""

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
from auralign.algorithms import bisep_rl, bisep_watch
from auralign.algorithms.bisep_config import LossConfig
from auralign.algorithms.bisep_data import PairConfig, Pairs
from auralign.algorithms.bisep_rl import Config, Parts, policy_terms, scene_of, set_up, train, update
from auralign.algorithms.bisep_set_up import build
from auralign.algorithms.bisep_terms import ask, chosen_rows, loss_terms
from auralign.algorithms.mars_sep_config import PolicyConfig
from auralign.algorithms.separator_pass import SeparatorPass
from auralign.algorithms.training import TrainState, cosine_rate, decay_groups
from auralign.errors import AuralignError, UsageError
from auralign.models.separator import SeparatorModel
from auralign.policy.exploration import Exploration
from auralign.rewards.base import Scene
from auralign.rewards.guard import GuardConfig
from auralign.rewards.load import RewardConfig
from auralign.rl.surrogate import Coefficients
from auralign.runtime import config as configuration
from auralign.runtime.checkpoint import load_checkpoint
from auralign.runtime.distributed import World
from auralign.runtime.run import Run
from auralign.runtime.seed import derive

RECIPES = Path(__file__).parents[2] / "recipes"
NOTHING = Coefficients(entropy=0.0, kl_old=0.0)
NO_LOSS = {"contrast": 0.0, "mixtures": 0.0, "phrases": 0.0, "presence": 0.0}
QUIET = GuardConfig(fall_db=1e6, all_pass=1.0, all_zero=0.0)
HIGH = {"a bell", "a hiss", "a saw"}


@pytest.fixture(autouse=True)
def tiny(tiny_bisep, fake_backbones, monkeypatch) -> None:
    monkeypatch.setattr(bisep_rl.Backbones, "calls", [], raising=False)
    monkeypatch.setattr(bisep_rl.Backbones, "texts", type(fake_backbones).texts)


@pytest.fixture(scope="module")
def start(tmp_path_factory, bisep_config, install_tiny_bisep) -> Path:
    """An untrained network whose masks vary."""
    with pytest.MonkeyPatch.context() as patch:
        install_tiny_bisep(patch)
        model = build(bisep_config()).eval()
        torch.nn.init.normal_(model.net.scale, std=2.0, generator=torch.Generator().manual_seed(1))
        folder = tmp_path_factory.mktemp("start")
        model.save(folder, {"name": "tiny"}, half=False)
    return folder


@pytest.fixture(scope="module")
def rl_config(captioned_root, aligned_folder, start):
    """A toy configuration; ``policy``, ``explore``, ``pairs`` and ``loss`` change the nested ones."""

    def make(*, policy=None, explore=None, pairs=None, loss=None, **changes) -> Config:
        explored = Exploration(**{"tile": (32, 4), **(explore or {})})
        tiny = {
            "start": start,
            "corpus": captioned_root,
            "encoder": str(aligned_folder),
            "policy": PolicyConfig(**{"explore": explored, **(policy or {})}),
            "items": 3,
            "rewards": (RewardConfig(f"semantic:{aligned_folder}"),),
            "guard": QUIET,
            "pairs": PairConfig(**{"samples": 4096, **(pairs or {})}),
            "loss": LossConfig(**(loss or {})),
            "batch": 2,
            "warmup": 2,
            "steps": 4,
            "validate_every": 2,
            "precision": "float32",
        }
        return Config(**{**tiny, **changes})

    return make


@pytest.fixture
def toy(monkeypatch):
    """Makes a function the reward ``toy.reward``."""

    def install(function) -> tuple[RewardConfig, ...]:
        monkeypatch.setitem(sys.modules, "toy", types.SimpleNamespace(reward=function))
        return (RewardConfig("toy.reward"),)

    return install


def unscored(scene):
    return torch.full(scene.estimate.shape[:2], torch.nan)


def power(scene):
    """Of what is let through, relative to the mixture."""
    return scene.estimate.square().sum(-1) / scene.mixture.square().sum(-1, keepdim=True)


def first_batch(cfg: Config, parts: Parts, step: int = 0, micro: int = 0) -> Pairs:
    return parts.mixer.batch(np.random.default_rng(derive(cfg.seed, "batch", step, micro)), cfg.batch)


def a_batch(cfg: Config) -> tuple[Parts, TrainState, Pairs, SeparatorPass]:
    """What the first micro-batch of a run begins with."""
    parts, state, _ = set_up(cfg, World())
    batch = first_batch(cfg, parts)
    return parts, state, batch, ask(cfg, state.model.eval(), batch, parts.mixer.texts, phrased=True)


def weights_of(state: TrainState) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in state.model.state_dict().items()}


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


def a_run(folder: Path, cfg: Config) -> Run:
    return Run.create(folder.parent, cfg, folder.name, algorithm="bisep_rl", folder=folder)


# the control


def test_without_a_policy_the_loss_and_every_gradient_are_those_of_bisep(rl_config):
    cfg = rl_config(policy={"weight": 0.0}, rewards=(), accumulate=2)
    parts, state, _ = set_up(cfg, World())
    assert parts.rewards is None
    plain = copy.deepcopy(state.model).eval()
    optimiser = torch.optim.AdamW(decay_groups(plain, cfg.weight_decay), lr=cfg.rate, betas=(0.9, 0.98))
    for step in range(2):
        numbers = update(cfg, parts, state, World())
        optimiser.zero_grad(set_to_none=True)
        terms = []
        for micro in range(2):
            chance = torch.Generator().manual_seed(derive(cfg.seed, "rows", step, micro))
            batch = first_batch(cfg, parts, step, micro)
            terms.append(loss_terms(cfg.weak, plain, batch, parts.mixer.texts, parts.teacher, chance))
            (terms[-1]["loss"] / 2).backward()
        for name in ("url", "crl", "cnt", "presence", "loss"):
            assert numbers[name] == pytest.approx(sum(float(t[name].detach()) for t in terms) / 2, rel=1e-6)
        torch.nn.utils.clip_grad_norm_(plain.parameters(), cfg.clip)
        for (name, mine), theirs in zip(state.model.named_parameters(), plain.parameters(), strict=True):
            assert (mine.grad is None) == (theirs.grad is None), name
            assert mine.grad is None or torch.equal(mine.grad, theirs.grad), name
        for group in optimiser.param_groups:
            group["lr"] = cosine_rate(step, cfg.steps, cfg.warmup, cfg.rate)
        optimiser.step()
    assert_same(dict(state.model.named_parameters()), dict(plain.named_parameters()))
    assert state.step == state.average.count == 2


def test_the_reward_adds_to_biseps_loss_by_its_weight_on_the_same_batch(rl_config):
    numbers = {}
    for weight in (0.0, 1.0, 3.0):
        parts, state, _ = set_up(cfg := rl_config(policy={"weight": weight}), World())
        numbers[weight] = update(cfg, parts, state, World())
    for name in ("url", "crl", "cnt", "presence"):
        assert numbers[0.0][name] == numbers[1.0][name] == numbers[3.0][name]
    one, three = (numbers[weight]["loss"] - numbers[0.0]["loss"] for weight in (1.0, 3.0))
    assert abs(one) > 1e-4
    assert three == pytest.approx(3 * one, rel=1e-2, abs=1e-5)  # small differences of larger losses


def test_a_batch_that_no_reward_can_score_learns_from_bisep_alone(rl_config, toy):
    found = []
    for changes in (
        {"policy": {"coefficients": NOTHING}, "rewards": toy(unscored)},
        {"policy": {"weight": 0.0}, "rewards": ()},
    ):
        parts, state, _ = set_up(cfg := rl_config(**changes), World())
        numbers = update(cfg, parts, state, World())
        assert numbers.get("unscored_share", 1.0) == 1
        found.append(weights_of(state))
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], msg=name)


def test_batch_norm_statistics_stay_as_bisep_left_them(rl_config):
    cfg = rl_config(rate=1e-2)
    parts, state, _ = set_up(cfg, World())
    before = weights_of(state)
    update(cfg, parts, state, World())
    after = weights_of(state)
    running = [name for name in before if "running" in name or "num_batches" in name]
    assert running
    assert all(torch.equal(before[name], after[name]) for name in running)
    assert not torch.equal(before["net.scale"], after["net.scale"])


# the policy


@pytest.mark.parametrize("form", ["bin", "tile"])
@pytest.mark.parametrize(("ratio", "precision"), [("mean_log", "bfloat16"), ("joint", "float32")])
def test_the_first_ratio_is_one_and_nothing_is_clipped(rl_config, form, ratio, precision):
    cfg = rl_config(policy={"ratio": ratio}, explore={"form": form}, precision=precision, batch=1)
    parts, state, _ = set_up(cfg, World())
    numbers = update(cfg, parts, state, World())
    assert numbers["ratio"] == pytest.approx(1.0, abs=1e-6)
    assert numbers["clip_share"] == numbers["approx_kl"] == numbers["kl_old"] == 0
    assert numbers["unscored_share"] == 0
    assert 0 < numbers["mask"] < 1


def test_only_the_explored_phrases_masks_get_a_gradient_from_the_reward(rl_config):
    cfg = rl_config(policy={"coefficients": NOTHING}, items=3)
    parts, state, batch, out = a_batch(cfg)
    batch.share[0, 1, 1] = 0  # padding is never explored
    leaf = out.logits.detach().requires_grad_()
    for micro in range(3):
        again = dataclasses.replace(out, logits=leaf)
        loss, _ = policy_terms(cfg, parts, state.model, batch, again, (0, micro))
        (gradient,) = torch.autograd.grad(loss, leaf)
        touched = gradient.abs().sum((2, 3)) > 0
        there = (batch.share.flatten(1) > 0).nonzero()
        chance = torch.Generator().manual_seed(derive(cfg.seed, "items", 0, micro))
        chosen = there[chosen_rows(len(there), 3, chance)]
        assert touched.nonzero().tolist() == [[int(n), 2 + int(k)] for n, k in chosen]


def test_what_is_explored_and_drawn_follows_from_seed_step_and_micro_batch_alone(rl_config, toy):
    heard = []

    def reward(scene):
        heard.append((scene.texts, scene.estimate.clone()))
        return power(scene)

    cfg = rl_config(rewards=toy(reward))
    parts, state, batch, out = a_batch(cfg)
    for seed in ((3, 1), (3, 1), (4, 1), (3, 0)):
        torch.manual_seed(len(heard))
        policy_terms(cfg, parts, state.model, batch, out, seed)
    assert heard[0][0] == heard[1][0]
    assert torch.equal(heard[0][1], heard[1][1])
    assert not any(torch.equal(heard[0][1], other) for _, other in heard[2:])


def test_each_sound_is_what_the_mask_of_its_own_phrase_lets_through(rl_config, toy):
    heard = []

    def reward(scene):
        heard.append(scene)
        return power(scene)

    cfg = rl_config(rewards=toy(reward), items=99)
    parts, state, batch, out = a_batch(cfg)
    for number in batch.phrases.unique().tolist():
        opened = torch.where(batch.phrases.flatten(1) == number, 12.0, -12.0)
        logits = torch.full_like(out.logits, 12.0)  # captions and the absent text pass everything
        logits[:, 2:-1] = opened[:, :, None, None]
        policy_terms(cfg, parts, state.model, batch, dataclasses.replace(out, logits=logits), (0, 0))
        scene = heard[-1]
        assert len(scene.texts) == int((batch.share > 0).sum())
        passed = (power(scene) > 0.3).all(dim=1).tolist()
        assert passed == [text == parts.mixer.texts.names[number] for text in scene.texts]


def test_masks_of_phrases_without_a_network_learn_what_their_words_ask_for(rl_config, toy):
    """Free masks, one logit a cell, from the reward alone; the band that is wanted follows from the words."""

    def reward(scene):
        spectrum = torch.fft.rfft(scene.estimate).abs().square()
        above = spectrum[..., spectrum.shape[-1] // 8 :].sum(-1) / spectrum.sum(-1)  # 1 kHz
        high = torch.tensor([text in HIGH for text in scene.texts])[:, None]
        return torch.where(high, above, 1 - above)

    def shuffled(scene):
        return reward(scene).roll(1, dims=0)  # what another phrase would have got

    gained = {}
    for name, function in (("true", reward), ("shuffled", shuffled)):
        cfg = rl_config(
            policy={"group": 8, "coefficients": NOTHING}, rewards=toy(function), items=99, steps=40, seed=2
        )
        parts, state, batch, out = a_batch(cfg)
        logits = torch.zeros_like(out.logits, requires_grad=True)
        optimiser = torch.optim.Adam([logits], lr=0.2)
        item, flat = (batch.share.flatten(1) > 0).nonzero(as_tuple=True)

        def score(*, parts=parts, state=state, batch=batch, out=out, item=item, flat=flat, logits=logits):
            with torch.no_grad():
                mask = logits[item, 2 + flat].sigmoid()[:, None]
                estimate = bisep_rl.hear(state.model, mask, out.spec[item], 4096)
                return float(reward(scene_of(parts, batch, estimate, item, flat)).mean())

        before = score()
        for step in range(40):
            optimiser.zero_grad()
            free = dataclasses.replace(out, logits=logits)
            policy_terms(cfg, parts, state.model, batch, free, (step, 0))[0].backward()
            optimiser.step()
        gained[name] = score() - before
    assert gained["true"] > 0.15
    assert gained["shuffled"] < 0.5 * gained["true"]


def test_the_network_opens_its_masks_for_a_reward_that_likes_them_open(rl_config, toy):
    cfg = rl_config(
        policy={"coefficients": NOTHING},
        explore={"tile": (64, 16)},
        loss=NO_LOSS | {"rows": 1},
        rewards=toy(power),
        rate=1e-2,
        steps=25,
        items=8,
    )
    parts, state, _ = set_up(cfg, World())
    numbers = [update(cfg, parts, state, World()) for _ in range(25)]
    assert numbers[-1]["mask"] > numbers[0]["mask"] + 0.1
    assert numbers[-1]["reward/total"] > numbers[0]["reward/total"] + 0.1


# what the rewards see


def test_no_scene_has_a_reference(rl_config, toy, monkeypatch):
    made = []
    init = Scene.__init__

    def recorded(self, *args, **fields):
        init(self, *args, **fields)
        made.append(self)

    monkeypatch.setattr(Scene, "__init__", recorded)
    cfg = rl_config(rewards=toy(power), accumulate=2)
    parts, state, _ = set_up(cfg, World())
    for _ in range(2):
        update(cfg, parts, state, World())
    assert len(made) == 4
    for scene in made:
        assert scene.target is None
        assert scene.interferer is None
        assert scene.labels == ()
        for cue in (scene.wanted, scene.unwanted):
            assert set(cue.features) == {"text"}


def test_rewards_and_policy_do_not_depend_on_how_the_sum_was_made(rl_config):
    """The mixtures of a mixture of mixtures are BiSep's target; the reward and the policy hear only their sum."""
    cfg = rl_config()
    parts, state, batch, out = a_batch(cfg)
    whole = batch.mixtures.sum(dim=1)
    other = dataclasses.replace(batch, mixtures=torch.stack([whole, torch.zeros_like(whole)], dim=1))
    again = ask(cfg, state.model, other, parts.mixer.texts, phrased=True)
    one = policy_terms(cfg, parts, state.model, batch, out, (0, 0))
    two = policy_terms(cfg, parts, state.model, other, again, (0, 0))
    assert torch.equal(one[0], two[0])
    assert one[1] == two[1]


def test_no_single_sound_is_opened(tmp_path, make_captioned, rl_config):
    root = make_captioned(tmp_path / "corpus")
    for path in (root / "audio" / "train-1").iterdir():
        path.unlink()
    cfg = rl_config(corpus=root, steps=1)
    train(cfg, a_run(tmp_path / "run", cfg))


def scenes(parts: Parts, batch: Pairs):
    item, flat = (batch.share.flatten(1) > 0).nonzero(as_tuple=True)
    return item, flat, scene_of(parts, batch, torch.zeros(len(item), 2, 4096), item, flat)


def unwanted_texts(parts: Parts, batch: Pairs, monkeypatch) -> list[tuple[int, str, str]]:
    """Mixture, wanted and unwanted words of every phrase."""
    asked = []
    real = parts.words.texts
    with monkeypatch.context() as patch:
        patch.setattr(parts.words, "texts", lambda texts: (asked.append(list(texts)), real(texts))[1])
        item, _, scene = scenes(parts, batch)
    wanted, unwanted = asked
    assert tuple(wanted) == scene.texts
    torch.testing.assert_close(scene.wanted.features["text"], real(wanted))
    torch.testing.assert_close(scene.unwanted.features["text"], real(unwanted))
    assert scene.wanted.valid["text"].all()
    assert scene.unwanted.valid["text"].all()
    return list(zip(item.tolist(), wanted, unwanted, strict=True))


def test_what_is_unwanted_is_another_phrase_of_the_same_mixture_of_mixtures(rl_config, monkeypatch):
    cfg = rl_config(batch=6)
    parts, _, _ = set_up(cfg, World())
    names, from_both = parts.mixer.texts.names, set()
    for step in range(4):
        batch = first_batch(cfg, parts, step)
        item, flat, scene = scenes(parts, batch)
        rows = unwanted_texts(parts, batch, monkeypatch)
        torch.testing.assert_close(scene.mixture, batch.mixtures.sum(dim=1)[item])
        for place, (n, wanted, unwanted) in zip(flat.tolist(), rows, strict=True):
            phrases = [names[int(p)] for p in batch.phrases[n].flatten()]
            assert phrases[place] == wanted != unwanted
            assert unwanted in phrases
            width = batch.phrases.shape[2]
            half = phrases[:width] if place < width else phrases[width:]
            from_both.add(unwanted in half)
    assert from_both == {True, False}, "of its own mixture and of the other one"


def test_repeats_and_padding_are_never_unwanted_and_a_lone_phrase_has_only_itself(rl_config, monkeypatch):
    cfg = rl_config()
    parts, _, _ = set_up(cfg, World())
    batch, names = first_batch(cfg, parts), parts.mixer.texts.names
    phrases, share = batch.phrases.clone(), batch.share.clone()
    phrases[0, 1] = phrases[0, 0, 0]  # said three times, beside one other phrase
    share[1] = 0
    share[1, 0, 1] = 1  # all others are padding
    rows = unwanted_texts(parts, dataclasses.replace(batch, phrases=phrases, share=share), monkeypatch)
    said, other = (names[int(p)] for p in phrases[0, 0])
    lone = names[int(phrases[1, 0, 1])]
    expected = [(0, said, other), (0, other, said), (0, said, other), (0, said, other), (1, lone, lone)]
    assert rows == expected


# rewards


@pytest.mark.parametrize("path", ["fidelity", "auralign.rewards.signal.FidelityReward"])
def test_a_reward_that_needs_the_target_is_refused_before_anything_is_encoded(rl_config, path, monkeypatch):
    monkeypatch.setattr(bisep_rl, "prepare", lambda *_: pytest.fail("texts are encoded"))
    cfg = rl_config(rewards=(*rl_config().rewards, RewardConfig(path)))
    with pytest.raises(UsageError, match="no single source is known here") as error:
        set_up(cfg, World())
    assert path in str(error.value)
    assert "To fix: take `semantic:bimodal-small`" in str(error.value)


def test_without_a_weight_it_is_only_logged_as_unknown(rl_config):
    cfg = rl_config(rewards=(*rl_config().rewards, RewardConfig("fidelity", weight=0.0)))
    parts, state, _ = set_up(cfg, World())
    numbers = update(cfg, parts, state, World())
    assert np.isnan(numbers["reward/fidelity"])
    assert numbers["reward/total"] == pytest.approx(numbers["reward/semantic"])
    assert numbers["unscored_share"] == 0


def test_any_python_function_rewards(tmp_path, rl_config, monkeypatch):
    (tmp_path / "taste.py").write_text("def quiet(scene):\n    return -scene.estimate.square().mean(-1)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    cfg = rl_config(rewards=(RewardConfig("taste.quiet"), RewardConfig("taste:quiet", "again", weight=0.5)))
    parts, state, _ = set_up(cfg, World())
    numbers = update(cfg, parts, state, World())
    assert numbers["reward/quiet"] == numbers["reward/again"] < 0
    assert numbers["reward/total"] == pytest.approx(1.5 * numbers["reward/quiet"], rel=1e-5)
    sys.modules.pop("taste")


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ((), "no reward term has a weight"),
        ((RewardConfig("semantics"),), "semantic"),
        ((RewardConfig("no_such_module.reward"),), "no_such_module"),
    ],
)
def test_missing_and_unknown_rewards_are_errors(rl_config, rewards, message):
    with pytest.raises(UsageError, match=message):
        set_up(rl_config(rewards=rewards), World())


def test_what_several_processes_cannot_share_is_refused(rl_config, toy):
    (one,) = toy(power)
    cfg = rl_config(rewards=(dataclasses.replace(one, normalise="running"),), accumulate=2)
    with pytest.raises(UsageError, match="would differ between processes"):
        set_up(cfg, World(0, 2, 0))
    with pytest.raises(UsageError, match="accumulate is 3 for 2 processes"):
        set_up(rl_config(accumulate=3), World(0, 2, 0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 0}, "batch is 0"),
        ({"items": 0}, "items is 0"),
        ({"steps": -1}, "steps is -1"),
        ({"validate_every": 0}, "validate_every is 0"),
        ({"ema": 1.0}, "ema is 1.0"),
        ({"policy": {"weight": -1.0}}, "policy.weight must be 0 or more"),
        ({"policy": {"gradient": "pathwise"}}, "gradient `score`"),
        ({"policy": {"inner_epochs": 2}}, "one inner epoch"),
        ({"policy": {"refine": True}}, "policy.refine"),
        ({"policy": {"asked": 1}}, "`items` says how many"),
        ({"policy": {"coefficients": Coefficients(kl_reference=0.1)}}, "kl_reference"),
        ({"policy": {"group": 2}}, "a group of 2 has no other member"),
        ({"policy": {"group": 5}}, "a group of 5 is not made of mirrored pairs"),
        ({"pairs": {"samples": 5000}}, "pairs.samples is 5000"),
    ],
)
def test_impossible_configurations_name_the_value(rl_config, changes, message):
    with pytest.raises(ValueError, match=message):
        rl_config(**changes)


# the guard


def test_a_reward_that_pays_for_silence_ends_the_run_with_the_best_model(tmp_path, rl_config, toy):
    cfg = rl_config(
        rewards=toy(lambda scene: -torch.log10(power(scene) + 1e-6)),
        policy={"coefficients": NOTHING},
        explore={"tile": (64, 16)},
        loss=NO_LOSS | {"rows": 1},
        guard=GuardConfig(action="stop", all_zero=0.2, fall_db=1e6),
        items=8,
        rate=2e-2,
        ema=0.0,
        steps=60,
        validate_every=3,
    )
    run = a_run(tmp_path / "run", cfg)
    with pytest.raises(AuralignError, match="the mask passes nothing: mean 0") as error:
        train(cfg, run)
    assert "change the rewards or lower policy.weight" in str(error.value)
    records = run.metrics()
    assert records[-1]["guard/rollback"] == 0
    assert records[-1]["step"] < 60
    scores = {r["step"]: r["val/mixtures_si_sdri"] for r in records if "val/mixtures_si_sdri" in r}
    best = load_checkpoint(run.checkpoints.best()).state
    assert best["step"] == max(scores, key=scores.get)
    exported = SeparatorModel.load(run.path / "model").state_dict()
    for name, value in best["average"]["model"].items():
        torch.testing.assert_close(exported[name], value, atol=1e-3, rtol=1e-3, msg=name)


def test_a_fall_of_whole_mixtures_takes_the_weights_back_and_the_step_goes_on(
    tmp_path, rl_config, monkeypatch
):
    heard = iter([5.0, 5.5, 1.0, 5.2])
    monkeypatch.setattr(bisep_watch.Watcher, "__call__", lambda *_: {"mixtures_si_sdri": next(heard)})
    cfg = rl_config(guard=GuardConfig(), validate_every=1, steps=3, rate=1e-2, warmup=1)
    run, seen = a_run(tmp_path / "run", cfg), []

    def watched(cfg, parts, state, here):
        seen.append((state.step, weights_of(state)))
        return update(cfg, parts, state, here)

    monkeypatch.setattr(bisep_rl, "update", watched)
    train(cfg, run)
    assert [step for step, _ in seen] == [0, 1, 2], "no step twice"
    assert_same(seen[2][1], seen[1][1])
    with pytest.raises(AssertionError):
        assert_same(seen[1][1], seen[0][1])
    assert [r["step"] for r in run.metrics() if r.get("guard/rollback") == 1.0] == [2]
    newest = run.checkpoints.load_latest().state
    assert (newest["step"], newest["guard"]["rolled_back"]) == (3, 1)


# whole runs


@pytest.fixture(scope="module")
def whole_config(rl_config):
    """Everything that has a state: running scales, the moving baseline, a schedule, half precision."""
    semantic = dataclasses.replace(rl_config().rewards[0], normalise="running")
    return rl_config(
        policy={"advantage": "published", "kappa": (5.0, 9.0)}, rewards=(semantic,), precision="bfloat16"
    )


@pytest.fixture(scope="module")
def trained() -> list[Run]:
    return []


@pytest.fixture
def uninterrupted(tmp_path_factory, whole_config, trained) -> Run:
    """Trained once, by whoever comes first."""
    if not trained:
        run = a_run(tmp_path_factory.mktemp("runs") / "whole", whole_config)
        train(whole_config, run)
        trained.append(run)
    return trained[0]


def test_a_run_leaves_a_complete_folder(uninterrupted, whole_config, start):
    records = uninterrupted.metrics()
    assert records[0]["step"] == 0
    assert "val/mixtures_si_sdri" in records[0]
    trained = next(record for record in records if "train/loss" in record)
    names = ("url", "crl", "cnt", "presence", "ratio", "clip_share", "entropy", "mask", "kappa")
    names += ("reward/total", "reward/semantic")
    assert {f"train/{name}" for name in names} <= trained.keys()
    assert uninterrupted.config(Config) == whole_config
    state = final(uninterrupted)
    assert state["/baseline/value"] is not None
    assert state["/rewards/semantic/count"] > 0
    model, before = (SeparatorModel.load(path) for path in (uninterrupted.path / "model", start))
    assert not torch.equal(model.net.scale, before.net.scale)


@pytest.mark.parametrize(("last", "kept"), [(1, [0]), (3, [0, 2])])
def test_a_run_that_crashed_goes_on_bit_for_bit(
    tmp_path, whole_config, uninterrupted, monkeypatch, last, kept
):
    run = a_run(tmp_path / "run", whole_config)

    def crash(cfg, parts, state, here):
        if state.step == last:
            raise RuntimeError("power cut")
        return update(cfg, parts, state, here)

    monkeypatch.setattr(bisep_rl, "update", crash)
    with pytest.raises(RuntimeError, match="power cut"):
        train(whole_config, run)
    assert run.checkpoints.steps() == kept
    monkeypatch.setattr(bisep_rl, "update", update)
    torch.manual_seed(12345)  # nothing may depend on the global state
    train(whole_config, run)
    assert_same(final(run), final(uninterrupted))
    saved = "model/model.safetensors"
    assert_same(load_file(run.path / saved), load_file(uninterrupted.path / saved))
    assert [r["step"] for r in run.metrics() if "val/mixtures_si_sdri" in r] == [0, 2, 4], "no record twice"


def test_a_stopped_run_writes_a_checkpoint_at_once_and_goes_on_bit_for_bit(
    tmp_path, whole_config, uninterrupted, monkeypatch
):
    run = a_run(tmp_path / "run", whole_config)

    def interrupt(cfg, parts, state, here):
        values = update(cfg, parts, state, here)
        if state.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return values

    monkeypatch.setattr(bisep_rl, "update", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(whole_config, run)
    assert run.checkpoints.steps()[-1] == 3
    assert not (run.path / "model").exists()
    monkeypatch.setattr(bisep_rl, "update", update)
    train(whole_config, run)
    assert_same(final(run), final(uninterrupted))


def test_a_finished_run_is_not_trained_again(uninterrupted, whole_config, monkeypatch):
    before = final(uninterrupted)
    monkeypatch.setattr(bisep_rl, "update", lambda *_: pytest.fail("one more step"))
    train(whole_config, uninterrupted)
    assert_same(final(uninterrupted), before)


def test_the_program_trains_the_small_recipe_at_toy_size_as_python_does(
    tmp_path, rl_config, aligned_folder, capsys
):
    toy = rl_config()
    changes = [
        *(f"{name}={getattr(toy, name)}" for name in ("corpus", "start", "encoder")),
        f'rewards=[{{path = "semantic:{aligned_folder}"}}]',
        *("batch=2", "steps=2", "warmup=1", "validate_every=2", "items=3", "pairs.samples=4096"),
        *("guard.fall_db=1000.0", "guard.all_zero=0.0", "guard.all_pass=1.0"),
    ]
    recipe, folder = RECIPES / "bisep_rl_small.toml", tmp_path / "cli"
    words = ["train", str(recipe), "-o", str(folder)]
    assert cli.main([*words, *(word for change in changes for word in ("--set", change))]) == 0
    assert str(folder) in capsys.readouterr().out
    cfg = configuration.load(recipe, Config, changes)
    run = a_run(tmp_path / "python", cfg)
    train(cfg, run)
    assert_same(final(run), final(Run.open(folder)))
    assert (folder / "report.html").exists()


def test_the_control_recipe_differs_only_in_the_policy_and_its_rewards():
    small, control = (
        configuration.to_dict(configuration.load(RECIPES / f"bisep_rl_{name}.toml", Config))
        for name in ("small", "control")
    )
    assert {key for key in small if small[key] != control[key]} == {"policy", "rewards"}
    assert (small["policy"]["weight"], control["policy"]["weight"]) == (2.0, 0.0)
    assert [reward["path"] for reward in small["rewards"]] == ["semantic:bimodal-small"]


# other processes

PROGRAM = """
    import runpy, sys

    tiny = runpy.run_path(sys.argv[1])
    tiny["use_tiny_bisep"]()
    from auralign.algorithms import bisep_rl
    from auralign.runtime.run import Run

    bisep_rl.Backbones.calls, bisep_rl.Backbones.texts = [], tiny["FakeBackbones"].texts
    run = Run.open(sys.argv[2])
    bisep_rl.train(run.config(bisep_rl.Config), run)
"""


@pytest.mark.slow
def test_two_processes_train_the_model_of_one_that_accumulates(tmp_path, rl_config):
    cfg = rl_config(accumulate=2, steps=3, validate_every=3)
    set_up(cfg, World())  # encodes the texts, once for all
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
        if isinstance(value, torch.Tensor) and not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(theirs[name], value, atol=1e-6, rtol=1e-5, msg=name)
