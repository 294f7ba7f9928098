from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from auralign.algorithms import alignment
from auralign.algorithms.alignment import Config, begin, build, loss_terms, train, unfreeze, update
from auralign.algorithms.alignment_data import SIZE, TARGET, SceneConfig
from auralign.algorithms.alignment_pairs import (
    Material,
    draw,
    held_out_cues,
    load_material,
    make_cue,
    only,
    validate,
)
from auralign.models import reward_encoder
from auralign.models.reward_encoder import RewardEncoder
from auralign.rewards.base import Cue
from auralign.runtime.checkpoint import load_checkpoint
from auralign.runtime.run import Run

SCENES = SceneConfig(scenes=2 * SIZE, validation=SIZE, seconds=(0.512,), separator="")


@pytest.fixture(autouse=True)
def _fake_words_and_pictures(monkeypatch, fake_backbones):
    monkeypatch.setattr(reward_encoder, "open_backbones", lambda _: fake_backbones)


@pytest.fixture
def tiny(corpus_root):
    def make(**changes) -> Config:
        values = {
            "corpus": corpus_root,
            "scenes": SCENES,
            "dim": 16,
            "hidden": 16,
            "rank": 8,
            "batch": 12,
            "warmup": 2,
            "steps": (3, 3, 4),
            "validate_every": 2,
        }
        return Config(**{**values, **changes})

    return make


@pytest.fixture
def material(corpus_root) -> Material:
    return load_material(corpus_root, SCENES, RewardEncoder(), 0)


def _weights(encoder: RewardEncoder) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in encoder.named_parameters()}


def _changed(before: dict[str, torch.Tensor], encoder: RewardEncoder) -> set[str]:
    now = dict(encoder.named_parameters())
    moved = {name for name, old in before.items() if not torch.equal(old, now[name])}
    return {
        ".".join(name.split(".")[:2]) if name.startswith("heads") else name.split(".")[0] for name in moved
    }


def test_each_stage_moves_only_its_own_parts(tiny, material):
    cfg = tiny(steps=(2, 2, 2))
    state = begin(cfg, build(cfg, material))
    members = material.partners()
    expected = {
        1: {"heads.text", "heads.audio", "log_scale"},
        2: {"heads.audio"},
        3: {"heads.audio", "heads.image", "pooling"},
    }
    for stage, parts in expected.items():
        update(cfg, material, members, state)
        before = _weights(state.encoder)
        update(cfg, material, members, state)
        assert _changed(before, state.encoder) == parts, f"stage {stage}"
        state.best = alignment._copy(state.average)


def test_the_joint_control_moves_everything_from_the_first_step(tiny, material):
    cfg = tiny(schedule="joint")
    state = begin(cfg, build(cfg, material))
    before = _weights(state.encoder)
    for _ in range(2):
        update(cfg, material, material.partners(), state)
    assert _changed(before, state.encoder) == {
        "heads.text",
        "heads.audio",
        "heads.image",
        "pooling",
        "log_scale",
    }
    assert cfg.place(4) == (4, 10)


def test_a_stage_starts_from_the_best_of_the_one_before(tiny, material):
    cfg = tiny(steps=(2, 2, 2), rate=1e-12, warmup=1)
    state = begin(cfg, build(cfg, material))
    members = material.partners()
    update(cfg, material, members, state)
    update(cfg, material, members, state)
    state.best = {name: tensor * 0.5 for name, tensor in alignment._copy(state.encoder).items()}
    state.best_score = 0.9
    update(cfg, material, members, state)
    weight = state.encoder.heads["audio"].linear.weight.detach()
    torch.testing.assert_close(weight, state.best["heads.audio.linear.weight"], atol=1e-6, rtol=1e-4)
    assert state.best_score == -1.0


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_loss_of_a_stage_falls_on_its_own_batch(tiny, material, stage):
    cfg = tiny(dropout=0.0, bare_example=0.0)
    encoder = build(cfg, material)
    learned = unfreeze(encoder, cfg, stage)
    batch = draw(np.random.default_rng(0), material, material.partners(), 12, 8)
    optimiser = torch.optim.AdamW(learned, lr=3e-3)
    losses = []
    for _ in range(12):
        optimiser.zero_grad()
        loss = loss_terms(cfg, encoder, batch, stage, torch.Generator().manual_seed(0))
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learned if p.requires_grad)
    assert losses[-1] < 0.8 * losses[0]


def test_partners_share_the_class_and_come_from_another_recording(material):
    members = material.partners()
    batch = draw(np.random.default_rng(1), material, members, 24, 6)
    clean = material.train.audio[:, TARGET].float()
    for n in range(24):
        label = int(batch.labels[n, 0])
        found = [s for s in members[label].tolist() if torch.equal(clean[s], batch.partner[n])]
        own = [s for s in range(len(clean)) if torch.equal(clean[s], batch.sounds[n, TARGET])]
        assert found
        if len({int(material.train.sources[s, 0]) for s in members[label]}) > 1:
            sources = {int(material.train.sources[s, 0]) for s in own}
            assert all(int(material.train.sources[s, 0]) not in sources for s in found)
    assert batch.sounds.shape[:2] == (24, 6)
    assert torch.equal(batch.shown, torch.tensor([len(material.images[i]) > 0 for i in batch.labels[:, 0]]))


def test_every_cue_keeps_something_whatever_is_dropped():
    features = {m: torch.ones(8, 4) for m in ("text", "audio", "image")}
    shown = torch.tensor([True, False] * 4)
    keep = torch.zeros(8, 3, dtype=torch.bool)
    keep[:4, 2] = True
    cue = make_cue(features, shown, keep)
    assert cue.valid["image"].tolist() == [True, False, True, False] + [False] * 4
    assert cue.valid["audio"].tolist() == [False, True, False, True] + [True] * 4
    assert only(cue, "text").features.keys() == {"text"}


def test_validation_of_a_perfect_and_of_a_reversed_order(material, monkeypatch):
    held = material.held
    encoder = RewardEncoder(dim=16, hidden=16, rank=8).eval()
    axis = torch.nn.functional.one_hot(torch.tensor(0), 16).float()
    other = torch.nn.functional.one_hot(torch.tensor(1), 16).float()

    def embed(raw, modality):
        share = (held.si_sdr.flatten()[:, None] + 31) / 62
        return torch.nn.functional.normalize(share * axis + (1 - share) * other, dim=1)

    answers = iter([axis, other, other, axis])
    monkeypatch.setattr(encoder, "embed", embed)
    monkeypatch.setattr(encoder, "anchor", lambda cue: next(answers).expand(len(held), -1))
    cues = held_out_cues(material, 0)
    perfect, reverse = (validate(encoder, material, cues, 3) for _ in range(2))
    assert perfect["triples"] == perfect["pairs"] == 1
    assert perfect["spearman"] == pytest.approx(1, abs=1e-6)
    assert perfect["gap"] > 0 > reverse["gap"]
    assert reverse["triples"] == reverse["pairs"] == 0
    assert reverse["spearman"] == pytest.approx(-1, abs=1e-6)


def test_held_out_cues_use_training_recordings_only(material):
    wanted, unwanted = held_out_cues(material, 0)
    assert isinstance(wanted, Cue)
    assert wanted.size == unwanted.size == len(material.held)
    lows, highs = (f(material.train.audio[:, TARGET].float(), dim=0).values for f in (torch.min, torch.max))
    known = wanted.valid["audio"]
    assert (wanted.features["audio"][known] >= lows - 1e-3).all()
    assert (wanted.features["audio"][known] <= highs + 1e-3).all()


def test_a_stage_counts_no_gradient_of_parts_that_it_froze(tiny, material):
    cfg = tiny(steps=(2, 2, 2))
    state = begin(cfg, build(cfg, material))
    members = material.partners()
    for _ in range(2):
        update(cfg, material, members, state)
    state.best = alignment._copy(state.average)
    update(cfg, material, members, state)  # the first of stage 2 teaches heads.audio alone
    left = {name for name, p in state.encoder.named_parameters() if p.grad is not None}
    assert left
    assert all(name.startswith("heads.audio") for name in left)


@pytest.mark.parametrize("pooling", ["mlbp", "mean"])
def test_a_run_learns_saves_and_resumes_bit_for_bit(tiny, tmp_path, pooling):
    cfg = tiny(pooling=pooling)
    run = Run.create(tmp_path, cfg, "whole", algorithm="alignment", folder=tmp_path / "whole")
    train(cfg, run)
    model = RewardEncoder.load(run.path / "model")
    assert model.options["pooling"] == pooling
    logged = {key for row in run.metrics() for key in row}
    assert {"train/loss", "val/stage1/triples", "val/stage2/gap", "val/stage3/score"} <= logged
    whole = load_checkpoint(run.checkpoints.latest()).state
    halved = tmp_path / "halved"
    shutil.copytree(run.path, halved)
    steps = run.checkpoints.steps()
    assert steps[-1] == 10
    (halved / "checkpoints" / "step_000000010.safetensors").unlink()
    shutil.rmtree(halved / "model")
    train(cfg, Run.open(halved))
    again = load_checkpoint(Run.open(halved).checkpoints.latest()).state
    for part in ("model", "average", "best"):
        for name, tensor in whole[part].items():
            assert torch.equal(tensor, again[part][name]), f"{part} {name}"
    shipped = [load_file(folder / "model" / "model.safetensors") for folder in (run.path, halved)]
    assert shipped[0].keys() == shipped[1].keys()
    assert all(torch.equal(tensor, shipped[1][name]) for name, tensor in shipped[0].items())


def test_a_stopped_run_says_so_and_leaves_a_checkpoint(tiny, tmp_path, monkeypatch):
    cfg = tiny()
    run = Run.create(tmp_path, cfg, "stopped", algorithm="alignment", folder=tmp_path / "stopped")
    real = alignment.update

    def stops(cfg, material, members, state):
        values = real(cfg, material, members, state)
        if state.step == 5:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGTERM)
        return values

    monkeypatch.setattr(alignment, "update", stops)
    with pytest.raises(KeyboardInterrupt):
        train(cfg, run)
    assert run.checkpoints.steps()[-1] == 5
    assert not (run.path / "model").exists()


@pytest.mark.parametrize(
    "wrong",
    [{"batch": 0}, {"steps": (0, 0, 0)}, {"variants": 3}, {"validate_every": 0}],
)
def test_settings_that_cannot_work_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Config(**wrong)


def test_the_recipe_is_a_valid_configuration():
    from auralign.runtime import config

    path = Path(__file__).parents[2] / "recipes" / "alignment_small.toml"
    table = config.read_table(path)
    cfg = config.from_dict(table, Config, source=str(path))
    assert sum(cfg.steps) > 0
    assert cfg.pooling == "mlbp"
