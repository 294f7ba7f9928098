"""The text-audio encoder aligned on captioned mixtures: its loss by loops, its score by hand, whole runs."""

from __future__ import annotations

import copy
import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from auralign.algorithms import bimodal
from auralign.algorithms.bimodal import Config, Material, agreement, load_material, phrase_loss, train, update
from auralign.errors import DataError
from auralign.models import reward_encoder
from auralign.models.bimodal import open_bimodal
from auralign.models.reward_encoder import RewardEncoder
from auralign.runtime.run import Run


@pytest.fixture(autouse=True)
def _fake_words(monkeypatch, fake_backbones):
    monkeypatch.setattr(reward_encoder, "open_backbones", lambda _: fake_backbones)


@pytest.fixture
def tiny(captioned_root):
    def make(**changes) -> Config:
        values = {
            "corpus": captioned_root,
            "splits": ("train-2",),
            "samples": 6000,
            "crops": 2,
            "dim": 8,
            "hidden": 8,
            "batch": 6,
            "warmup": 1,
            "steps": 4,
            "validate_every": 2,
        }
        return Config(**{**values, **changes})

    return make


# the loss


def by_loops(similarity, own, counts) -> float:
    """Both sums of the equation, one recording and one phrase after the other."""
    total = 0.0
    rows, columns = similarity.shape
    held = own | counts
    for i in range(rows):
        norm = math.log(sum(math.exp(float(similarity[i, u])) for u in range(columns) if held[i, u]))
        mine = [float(similarity[i, u]) - norm for u in range(columns) if own[i, u]]
        total -= sum(mine) / len(mine) / rows
    for u in range(columns):
        norm = math.log(sum(math.exp(float(similarity[i, u])) for i in range(rows) if held[i, u]))
        mine = [float(similarity[i, u]) - norm for i in range(rows) if own[i, u]]
        total -= sum(mine) / len(mine) / columns
    return total


@pytest.mark.parametrize("seed", range(4))
def test_the_loss_is_that_of_its_equation(seed):
    draw = torch.Generator().manual_seed(seed)
    similarity = 3 * torch.randn(4, 6, generator=draw)
    own = torch.rand(4, 6, generator=draw) < 0.3
    own |= F.one_hot(torch.arange(4), 6).bool()
    own[0, 4] = own[1, 5] = True
    counts = ~own & (torch.rand(4, 6, generator=draw) < 0.7)
    found = phrase_loss(similarity, own, counts)
    assert float(found) == pytest.approx(by_loops(similarity, own, counts), rel=1e-5)


def test_what_does_not_count_changes_nothing_and_is_not_pulled():
    own = torch.eye(3, dtype=torch.bool)
    counts = ~own
    counts[0, 1] = False
    similarity = torch.randn(3, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
    loss = phrase_loss(similarity, own, counts)
    loss.backward()
    assert float(similarity.grad[0, 1]) == 0
    assert (similarity.grad[own] < 0).all()
    assert (similarity.grad[counts] > 0).all()
    moved = similarity.detach().clone()
    moved[0, 1] += 50
    torch.testing.assert_close(phrase_loss(moved, own, counts), loss.detach())


# which phrases belong to what


def material(audio: list[list[float]], text: list[list[float]], own: list[tuple[int, ...]]) -> Material:
    return Material(torch.tensor(audio), torch.tensor(text), tuple(own))


def plain(monkeypatch) -> RewardEncoder:
    """An encoder whose features are its vectors."""
    encoder = RewardEncoder(dim=8, hidden=8, rank=4, pooling="mean")
    monkeypatch.setattr(RewardEncoder, "embed", lambda self, raw, modality: raw)
    return encoder


def test_agreement_is_the_share_of_pairs_that_are_in_order(monkeypatch):
    encoder = plain(monkeypatch)
    east, north, west = [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]
    two = material([[0.6, 0.8], [0.9, 0.1]], [east, north, west], [(0, 1), (2,)])
    # the first is nearer to both of its phrases than to west: 2 of 2; the second is farthest from its own: 0 of 2
    assert agreement(encoder, two, 0.99) == pytest.approx(0.5)
    right = material([[0.6, 0.8], [-0.9, 0.1]], [east, north, west], [(0, 1), (2,)])
    assert agreement(encoder, right, 0.99) == 1.0


def test_agreement_does_not_ask_about_phrases_that_say_nearly_the_same(monkeypatch):
    encoder = plain(monkeypatch)
    close = material([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.999, -0.04], [0.0, 1.0]], [(0,), (1, 2)])
    strict = agreement(encoder, close, 0.9999)
    spared = agreement(encoder, close, 0.9)
    assert strict == pytest.approx((1 + 1 / 2) / 2)
    assert spared == 1.0


def test_agreement_of_recordings_that_all_say_the_same_is_unknown(monkeypatch):
    encoder = plain(monkeypatch)
    same = material([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0]], [(0,), (0,)])
    assert math.isnan(agreement(encoder, same, 0.7))
    more = material([[1.0, 0.0]] * 3, [[1.0, 0.0], [0.0, 1.0]], [(0,), (0,), (0, 1)])
    assert agreement(encoder, more, 0.7) == 1.0


def test_a_batch_holds_each_phrase_once_and_knows_whose_it_is():
    text = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0], [-1.0, 0.0]])
    all_of_them = Material(torch.arange(6.0).view(3, 2), text, ((0, 1), (2,), (3,)))
    raw, used, own, counts = bimodal._batch(all_of_them, torch.tensor([1, 0, 1]), 0.7)
    assert torch.equal(raw, all_of_them.audio[[1, 0, 1]])
    assert torch.equal(used, text[:3])
    assert own.tolist() == [[False, False, True], [True, True, False], [False, False, True]]
    # phrases 1 and 2 say nearly the same: neither is a negative of the other's recording
    assert counts.tolist() == [[True, False, False], [False, False, False], [True, False, False]]


# features


def test_features_are_kept_and_read_again_the_same(tiny, make_captioned, tmp_path, monkeypatch):
    cfg = tiny(corpus=make_captioned(tmp_path / "corpus"))
    encoder = RewardEncoder(dim=8, hidden=8, rank=4, pooling="mean")
    first = load_material(cfg, encoder, ("val-2",), 2)
    assert first.audio.shape[0] == len(first.own) == 6
    assert [*first.own[0]] == [*first.own[1]] == [0, 1]
    assert not torch.equal(first.audio[0], first.audio[1]), "two stretches"
    monkeypatch.setattr(bimodal, "_audio_features", lambda *_: pytest.fail("computed again"))
    again = load_material(cfg, encoder, ("val-2",), 2)
    assert torch.equal(first.audio, again.audio)
    assert torch.equal(first.text, again.text)
    assert first.own == again.own
    for changes, crops in (({}, 1), ({"samples": 7000}, 2), ({"seed": 1}, 2)):
        with pytest.raises(pytest.fail.Exception, match="computed again"):
            load_material(tiny(corpus=cfg.corpus, **changes), encoder, ("val-2",), crops)


# whole runs


def a_run(folder: Path, cfg: Config) -> Run:
    return Run.create(folder.parent, cfg, folder.name, algorithm="bimodal", folder=folder)


def assert_same(a: Any, b: Any, name: str = "") -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys(), name
        for key in a:
            assert_same(a[key], b[key], f"{name}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for n, (one, other) in enumerate(zip(a, b, strict=True)):
            assert_same(one, other, f"{name}/{n}")
    else:
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, name


def final(run: Run) -> dict[str, Any]:
    return run.checkpoints.load_latest().state


@pytest.fixture
def whole(tmp_path, tiny) -> Run:
    run = a_run(tmp_path / "whole", tiny())
    train(tiny(), run)
    return run


def test_a_run_leaves_an_encoder_that_bisep_can_open(whole):
    encoder = open_bimodal(str(whole.path / "model"))
    assert (encoder.dim, encoder.rate_hz) == (8, 16_000)
    state = final(whole)["average"]
    assert encoder.scale == pytest.approx(float(state["log_scale"].exp()), rel=1e-5)
    torch.testing.assert_close(
        encoder.encoder.heads["text"].linear.weight, state["heads.text.linear.weight"], atol=1e-3, rtol=1e-3
    )
    scores = [record["val/agreement"] for record in whole.metrics() if "val/agreement" in record]
    assert len(scores) == 2
    assert all(0 <= score <= 1 for score in scores)


def test_a_run_that_crashed_or_was_stopped_goes_on_bit_for_bit(tmp_path, tiny, whole, monkeypatch):
    real = update
    calls = []

    def interrupted(cfg, encoder, average, optimiser, step, kept):
        calls.append(step)
        if calls.count(3) == 1 and step == 3:
            raise RuntimeError("power cut")
        loss = real(cfg, encoder, average, optimiser, step, kept)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss

    monkeypatch.setattr(bimodal, "update", interrupted)
    run = a_run(tmp_path / "run", tiny())
    with pytest.raises(KeyboardInterrupt):
        train(tiny(), run)
    assert run.checkpoints.steps() == [2, 3]
    assert not (run.path / "model").exists()
    torch.manual_seed(777)  # nothing may depend on the global state
    with pytest.raises(RuntimeError, match="power cut"):
        train(tiny(), run)
    train(tiny(), run)
    assert calls == [0, 1, 2, 3, 3]
    assert_same(final(run), final(whole))
    saved = "model/model.safetensors"
    assert_same(load_file(run.path / saved), load_file(whole.path / saved))


def test_training_brings_recordings_to_their_phrases(tiny):
    cfg = tiny(steps=60, batch=15, dropout=0.0, rate=5e-3, crops=1)
    torch.manual_seed(0)
    encoder = RewardEncoder(dim=8, hidden=8, rank=4, pooling="mean")
    kept = load_material(cfg, encoder, cfg.splits, 1)
    encoder.fit_scale(kept.audio, "audio")
    encoder.fit_scale(kept.text, "text")
    before = agreement(encoder, kept, cfg.same)
    frozen = {name: value.clone() for name, value in encoder.backbones.yamnet.state_dict().items()}
    average, optimiser = copy.deepcopy(encoder), torch.optim.AdamW(encoder.parameters())
    losses = [update(cfg, encoder, average, optimiser, step, kept) for step in range(cfg.steps)]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    assert agreement(encoder, kept, cfg.same) > before + 0.1
    assert_same(frozen, encoder.backbones.yamnet.state_dict())


def test_the_same_step_draws_the_same_batch_whatever_came_before(tiny):
    cfg = tiny()
    torch.manual_seed(0)
    encoder = RewardEncoder(dim=8, hidden=8, rank=4, pooling="mean")
    kept = load_material(cfg, encoder, ("val-2",), 1)

    def loss(step: int) -> float:
        twin = copy.deepcopy(encoder)
        return update(cfg, twin, copy.deepcopy(twin), torch.optim.SGD(twin.parameters(), lr=0.0), step, kept)

    first = loss(0)
    torch.manual_seed(99)
    assert loss(0) == first
    assert loss(1) != first


def test_a_corpus_that_is_not_there_is_named(tmp_path, tiny):
    cfg = tiny(corpus=tmp_path / "nowhere")
    with pytest.raises(DataError, match="no captioned corpus is there"):
        train(cfg, a_run(tmp_path / "run", cfg))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"batch": 0}, "batch is 0"), ({"crops": 0}, "crops is 0"), ({"dropout": 1.0}, "dropout and ema")],
)
def test_impossible_configurations_name_the_value(tiny, changes, message):
    with pytest.raises(ValueError, match=message):
        tiny(**changes)
