from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from auralign.algorithms import omnisep
from auralign.algorithms.batches import draw
from auralign.algorithms.omnisep import Config, build, loss_terms, train
from auralign.algorithms.omnisep_loss import binary_target, magnitude_weight, weighted_bce
from auralign.algorithms.separator_pass import LossConfig, alignment_loss
from auralign.algorithms.training import Averager, TrainState, decay_groups, load_corpus
from auralign.data.mixer import MixConfig
from auralign.errors import UsageError
from auralign.models.query_encoder import info_nce
from auralign.models.separator import SeparatorModel
from auralign.runtime.checkpoint import load_checkpoint
from auralign.runtime.distributed import World
from auralign.runtime.run import Run

TINY = {
    "network": "omnisep",
    "query_dim": 16,
    "levels": 4,
    "width": 4,
    "batch": 2,
    "warmup": 2,
    "steps": 4,
    "validate_every": 2,
    "precision": "float32",
    "mix": MixConfig(samples=4096),
}


def _config(corpus_root: Path, **changes) -> Config:
    return Config(**{**TINY, "corpus": corpus_root, **changes})


def _run(folder: Path, cfg: Config) -> Run:
    return Run.create(folder.parent, cfg, folder.name, algorithm="omnisep", folder=folder)


def _tensors(tree, name="") -> dict[str, torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        return {name: tree}
    items = (
        tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    )
    return {key: value for k, item in items for key, value in _tensors(item, f"{name}/{k}").items()}


def _final(run: Run) -> dict[str, torch.Tensor]:
    return _tensors(run.checkpoints.load_latest().state)


def _assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different, different[:5]


# one batch


@pytest.fixture
def parts(corpus_root, tiny_parts, fake_backbones):
    cfg = _config(corpus_root)
    corpus = load_corpus(corpus_root, cfg.mix)
    return cfg, corpus, corpus.query_banks(fake_backbones)


def test_a_batch_follows_from_seed_step_and_micro_batch_alone(parts):
    cfg, corpus, banks = parts
    one, again = draw(cfg, corpus, banks, 3, 1), draw(cfg, corpus, banks, 3, 1)
    assert torch.equal(one.mixture, again.mixture)
    assert torch.equal(one.raw.weights, again.raw.weights)
    others = [(cfg, 4, 1), (cfg, 3, 0), (dataclasses.replace(cfg, seed=1), 3, 1)]
    for changed, step, micro in others:
        assert not torch.equal(draw(changed, corpus, banks, step, micro).mixture, one.mixture)


def test_the_mixture_is_the_sum_of_equalised_sources_and_the_absent_query_is_not_present(parts):
    cfg, corpus, banks = parts
    cfg = dataclasses.replace(cfg, batch=40)
    corpus = load_corpus(cfg.corpus, dataclasses.replace(cfg.mix, distractor=0.0, single=0.4))
    batch = draw(cfg, corpus, banks, 0, 0)
    torch.testing.assert_close(batch.mixture, batch.sources.sum(dim=1), atol=1e-6, rtol=1e-5)
    assert not batch.present[:, 2].any()
    assert batch.present[:, 0].all()
    assert torch.equal(batch.present[:, 1].bool(), batch.sources[:, 1].any(dim=1))


def test_a_distractor_is_heard_and_belongs_to_no_query(parts):
    cfg, _, banks = parts
    corpus = load_corpus(cfg.corpus, dataclasses.replace(cfg.mix, distractor=1.0, single=0.0))
    batch = draw(dataclasses.replace(cfg, batch=20), corpus, banks, 0, 0)
    left = (batch.mixture - batch.sources.sum(dim=1)).square().mean(dim=1)
    assert (left > 1e-5).any()


def test_the_loss_is_the_weighted_sum_of_its_terms(parts):
    cfg, corpus, banks = parts
    cfg = dataclasses.replace(
        cfg, loss=LossConfig(error_db=0.5, leak_db=2.0, bce=3.0, presence=5.0, align=7.0)
    )
    terms = loss_terms(cfg, build(cfg, corpus), draw(cfg, corpus, banks, 0, 0), torch.Generator())
    expected = sum(vars(cfg.loss)[name] * value for name, value in terms.items() if name != "loss")
    torch.testing.assert_close(terms["loss"], expected)
    assert set(terms) == {"loss", *vars(cfg.loss)} - ({"error_db"} if cfg.network == "omnisep" else set())


def test_the_published_network_is_trained_by_the_published_loss(parts):
    cfg, corpus, banks = parts
    cfg = dataclasses.replace(cfg, query_noise=0.0)
    model = build(cfg, corpus).eval()
    batch = draw(cfg, corpus, banks, 0, 0)
    terms = loss_terms(cfg, model, batch, torch.Generator())
    net = model.net
    query = batch.raw.embed(model.heads, unit=False)
    spec, sources = model.spectrogram(batch.mixture)[..., :16], model.spectrogram(batch.sources)[..., :16]
    warped, latents = net.latent_masks(spec.abs())
    target = binary_target(net.warp(sources.abs()), warped) * batch.present[:, :2, None, None]
    expected = weighted_bce(net.logits(latents, query)[:, :2], target, magnitude_weight(warped))
    torch.testing.assert_close(terms["bce"], expected)
    assert model.unit_queries is False, "Query-Mixup is not brought back to unit length"


def test_query_noise_comes_from_the_given_generator_only(parts):
    cfg, corpus, banks = parts
    model, batch = build(cfg, corpus).eval(), draw(cfg, corpus, banks, 0, 0)
    torch.nn.init.normal_(model.net.frame_net.weight)

    def loss(seed: int) -> float:
        return float(loss_terms(cfg, model, batch, torch.Generator().manual_seed(seed))["leak_db"].detach())

    first = loss(1)
    torch.manual_seed(99)
    assert loss(1) == first
    assert loss(2) != first


def test_alignment_pulls_text_to_audio_and_to_the_pictures_that_exist(parts):
    cfg, corpus, banks = parts
    model, batch = build(cfg, corpus), draw(dataclasses.replace(cfg, batch=8), corpus, banks, 0, 0)
    raw, heads = batch.raw, model.heads
    text, audio, image = (heads(raw.features[m], m).flatten(0, 1) for m in ("text", "audio", "image"))
    labels, shown = raw.labels.flatten(), raw.has_image.flatten() > 0
    scale = heads.log_scale.exp()
    expected = info_nce(text, audio, labels, scale) + info_nce(
        text[shown], image[shown], labels[shown], scale
    )
    torch.testing.assert_close(alignment_loss(heads, raw), expected)


def test_weights_follow_from_the_seed(parts):
    cfg, corpus, _ = parts
    _assert_same(build(cfg, corpus).state_dict(), build(cfg, corpus).state_dict())
    other = build(dataclasses.replace(cfg, seed=1), corpus).state_dict()
    assert not torch.equal(
        other["net.frame_net.weight"], build(cfg, corpus).state_dict()["net.frame_net.weight"]
    )


def _state(cfg: Config, corpus) -> TrainState:
    model = build(cfg, corpus)
    optimiser = torch.optim.AdamW(decay_groups(model, cfg.weight_decay), lr=cfg.rate, betas=(0.9, 0.98))
    return TrainState(model, Averager(model, cfg.ema), optimiser)


def test_an_update_averages_the_gradients_of_its_micro_batches(parts):
    cfg, corpus, banks = parts
    cfg = dataclasses.replace(cfg, accumulate=2, clip=1e9, weight_decay=0.0)
    state = _state(cfg, corpus)
    expected = build(cfg, corpus).train()
    losses = []
    for micro in range(2):
        noise = torch.Generator().manual_seed(omnisep.derive(cfg.seed, "noise", 0, micro))
        losses.append(loss_terms(cfg, expected, draw(cfg, corpus, banks, 0, micro), noise)["loss"])
    (torch.stack(losses).mean()).backward()
    values = omnisep.update(cfg, corpus, banks, state, World())
    assert values["loss"] == pytest.approx(float(torch.stack(losses).detach().mean()), rel=1e-5)
    norm = (
        torch.stack([p.grad.square().sum() for p in expected.parameters() if p.grad is not None]).sum().sqrt()
    )
    assert values["gradient_norm"] == pytest.approx(float(norm), rel=1e-3)
    for (name, mine), theirs in zip(state.model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-5, rtol=1e-3, msg=name)
    assert state.step == state.average.count == 1
    assert values["rate"] == pytest.approx(cfg.rate / 2)


def test_long_gradients_are_cut_to_the_stated_norm(parts):
    cfg, corpus, banks = parts
    state = _state(cfg, corpus)
    values = omnisep.update(dataclasses.replace(cfg, clip=1e-3), corpus, banks, state, World())
    assert values["gradient_norm"] > 1e-3
    norm = torch.stack([p.grad.square().sum() for p in state.model.parameters() if p.grad is not None]).sum()
    assert float(norm.sqrt()) == pytest.approx(1e-3, rel=1e-2)


# whole runs


def test_thirty_steps_lower_the_loss_and_leave_a_complete_run_folder(tmp_path, corpus_root, tiny_parts):
    # the absent query's term alone would close all masks before the gates can tell queries apart
    loss_weights = LossConfig(leak_db=0.0)
    cfg = _config(corpus_root, steps=30, validate_every=30, batch=4, warmup=5, rate=5e-3, loss=loss_weights)
    run = _run(tmp_path / "run", cfg)
    train(cfg, run)
    corpus = load_corpus(corpus_root, cfg.mix)
    start = build(cfg, corpus)
    banks = corpus.query_banks(start.backbones)
    end = build(cfg, corpus)
    end.load_state_dict(run.checkpoints.load_latest().state["model"])

    def loss(model: SeparatorModel) -> dict[str, float]:
        sums: dict[str, float] = {}
        for micro in range(4):
            batch = draw(cfg, corpus, banks, 10_000, micro)
            with torch.no_grad():
                terms = loss_terms(cfg, model.train(), batch, torch.Generator().manual_seed(micro))
            sums = {name: sums.get(name, 0.0) + float(value) for name, value in terms.items()}
        return sums

    before, after = loss(start), loss(end)
    for name in ("loss", "bce", "align"):
        assert after[name] < before[name], name
    records = run.metrics()
    assert {"train/loss", "train/gradient_norm", "train/rate", "seconds_per_step"} <= records[0].keys()
    assert any({"val/si_sdri", "val/win_rate", "val/presence_auc"} <= record.keys() for record in records)
    assert len(list(run.samples_path.rglob("*.flac"))) >= 5
    assert run.checkpoints.best() is not None
    model = SeparatorModel.load(run.path / "model")
    assert model.labels == tuple(corpus.labels)
    assert model.phrases == tuple(texts[0] for texts in corpus.texts)
    average = run.checkpoints.load_latest().state["average"]["model"]
    torch.testing.assert_close(
        model.state_dict()["net.frame_net.weight"], average["net.frame_net.weight"], atol=1e-3, rtol=1e-3
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, corpus_root, install_tiny_parts) -> Run:
    with pytest.MonkeyPatch.context() as patch:
        install_tiny_parts(patch)
        cfg = _config(corpus_root)
        run = _run(tmp_path_factory.mktemp("runs") / "whole", cfg)
        train(cfg, run)
    return run


def test_a_run_that_crashed_goes_on_bit_for_bit(
    tmp_path, corpus_root, tiny_parts, uninterrupted, monkeypatch
):
    cfg = _config(corpus_root)
    run = _run(tmp_path / "run", cfg)
    update = omnisep.update

    def crash(cfg, corpus, banks, state, here):
        if state.step == 3:
            raise RuntimeError("power cut")
        return update(cfg, corpus, banks, state, here)

    monkeypatch.setattr(omnisep, "update", crash)
    with pytest.raises(RuntimeError, match="power cut"):
        train(cfg, run)
    assert run.checkpoints.steps() == [2]
    monkeypatch.setattr(omnisep, "update", update)
    torch.manual_seed(12345)  # nothing may depend on the global state
    train(cfg, run)
    _assert_same(_final(run), _final(uninterrupted))
    saved = "model/model.safetensors"
    _assert_same(load_file(run.path / saved), load_file(uninterrupted.path / saved))
    steps = [record["step"] for record in run.metrics() if "val/si_sdri" in record]
    assert steps == [2, 4], "no record twice"


def test_a_stopped_run_writes_a_checkpoint_at_once_and_goes_on_bit_for_bit(
    tmp_path, corpus_root, tiny_parts, uninterrupted, monkeypatch
):
    cfg = _config(corpus_root)
    run = _run(tmp_path / "run", cfg)
    update = omnisep.update

    def interrupt(cfg, corpus, banks, state, here):
        values = update(cfg, corpus, banks, state, here)
        if state.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return values

    monkeypatch.setattr(omnisep, "update", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(cfg, run)
    assert run.checkpoints.steps()[-1] == 3
    assert not (run.path / "model").exists()
    monkeypatch.setattr(omnisep, "update", update)
    train(cfg, run)
    _assert_same(_final(run), _final(uninterrupted))


def test_a_finished_run_is_not_trained_again(tmp_path, corpus_root, tiny_parts, monkeypatch):
    cfg = _config(corpus_root, steps=1, validate_every=1)
    run = _run(tmp_path / "run", cfg)
    train(cfg, run)
    before = _final(run)
    monkeypatch.setattr(omnisep, "update", lambda *_: pytest.fail("one more step"))
    train(cfg, run)
    _assert_same(_final(run), before)


def test_micro_batches_that_processes_cannot_share_are_refused(tmp_path, corpus_root, monkeypatch):
    @contextlib.contextmanager
    def two():
        yield World(0, 2, 0)

    monkeypatch.setattr(omnisep, "world", two)
    cfg = _config(corpus_root, accumulate=3)
    with pytest.raises(UsageError, match="accumulate is 3 for 2 processes"):
        train(cfg, _run(tmp_path / "run", cfg))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 0}, "batch is 0"),
        ({"steps": -1}, "steps is -1"),
        ({"ema": 1.0}, "ema is 1.0"),
        ({"mix": MixConfig(samples=5000)}, "mix.samples is 5000"),
        ({"mix": MixConfig(samples=0)}, "mix.samples is 0"),
    ],
)
def test_impossible_configurations_name_the_value(changes, message):
    with pytest.raises(ValueError, match=message):
        Config(**changes)


# the small network, with the real YAMNet


def test_the_small_network_learns_from_the_real_yamnet(corpus_root, tiny_parts, fake_backbones):
    cfg = _config(
        corpus_root,
        network="small",
        widths=(8, 12, 16, 24),
        blocks=(1, 1, 1, 1),
        fine=4,
        hidden=16,
        batch=2,
        steps=8,
        rate=4e-3,
        mix=MixConfig(samples=8192, single=0.0),
    )
    corpus = load_corpus(corpus_root, cfg.mix)
    banks = corpus.query_banks(fake_backbones)
    state = _state(cfg, corpus)
    yamnet = state.model.backbones.yamnet
    frozen = {name: value.clone() for name, value in yamnet.state_dict().items()}
    losses = []
    for _ in range(6):
        state.step = 0  # the same batch every time
        values = omnisep.update(cfg, corpus, banks, state, World())
        assert np.isfinite(list(values.values())).all()
        losses.append(values["loss"])
    assert losses[-1] < losses[0]
    _assert_same(frozen, yamnet.state_dict())
    assert state.model.unit_queries
    without = [n for n, p in state.model.named_parameters() if p.grad is None]
    assert not without


def test_the_small_networks_terms_are_the_error_leak_and_presence_of_its_masks(
    corpus_root, tiny_parts, fake_backbones
):
    cfg = _config(
        corpus_root,
        network="small",
        widths=(8, 12, 16, 24),
        blocks=(1, 1, 1, 1),
        fine=4,
        hidden=16,
        query_noise=0.0,
        mix=MixConfig(samples=8192, single=0.0, distractor=0.0),
    )
    corpus = load_corpus(corpus_root, cfg.mix)
    banks = corpus.query_banks(fake_backbones)
    model, batch = build(cfg, corpus).eval(), draw(cfg, corpus, banks, 0, 0)
    with torch.no_grad():
        terms = loss_terms(cfg, model, batch, torch.Generator())
        query = batch.raw.embed(model.heads, unit=True)
        bands = model.net.bands
        spec, sources = model.spectrogram(batch.mixture)[..., :32], model.spectrogram(batch.sources)[..., :32]
        energy = bands(spec.abs().square())
        out = model.net.net(model.net.log_energy(energy), model.net.taps(batch.mixture), query)
        cross = bands((spec[:, None].conj() * sources).real)
        best = cross / energy[:, None]
        error = (energy[:, None] * (out.mask[:, :2] - best).square()).sum((2, 3))
        source_energy = bands(sources.abs().square())
        lost = (source_energy - energy[:, None] * best.square()).sum((2, 3))
        level = 10 * torch.log10((error + lost) / source_energy.sum((2, 3)) + 1e-3)
        leak = (energy * out.mask[:, 2].square()).sum((1, 2)) / energy.sum((1, 2))
    torch.testing.assert_close(terms["error_db"], level.mean(), atol=1e-2, rtol=1e-3)
    torch.testing.assert_close(terms["leak_db"], (10 * torch.log10(leak + 1e-2)).mean(), atol=1e-3, rtol=1e-3)
    there = torch.tensor([1.0, 1.0, 0.0]).expand(2, 3)
    torch.testing.assert_close(terms["presence"], F.binary_cross_entropy_with_logits(out.presence, there))


# other processes

PROGRAM = """
    import runpy, sys
    from pathlib import Path

    tiny = runpy.run_path(sys.argv[1])
    tiny["use_tiny_parts"]()
    from auralign.algorithms import omnisep
    from auralign.data.mixer import MixConfig
    from auralign.runtime.run import Run

    run = Run.open(sys.argv[2])
    try:
        omnisep.train(run.config(omnisep.Config), run)
    except KeyboardInterrupt:
        sys.exit(130)
"""


def _start(run: Run, **variables: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM)]
    command += [str(Path(__file__).with_name("conftest.py")), str(run.path)]
    env = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_sigterm_to_a_training_process_leaves_a_checkpoint_to_go_on_from(tmp_path, corpus_root):
    run = _run(tmp_path / "run", _config(corpus_root, steps=100_000, validate_every=100_000))
    process = _start(run)
    metrics = run.path / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while (
        time.monotonic() < deadline
        and process.poll() is None
        and not (metrics.exists() and metrics.stat().st_size)
    ):
        time.sleep(0.2)
    process.terminate()
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 130, output
    assert run.checkpoints.steps()[-1] >= 1
    assert load_checkpoint(run.checkpoints.latest()).state["step"] == run.checkpoints.steps()[-1]


@pytest.mark.slow
def test_two_processes_train_the_model_of_one_that_accumulates(tmp_path, corpus_root, tiny_parts):
    cfg = _config(corpus_root, accumulate=2, steps=3, validate_every=3)
    alone, shared = _run(tmp_path / "alone", cfg), _run(tmp_path / "shared", cfg)
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(one.getsockname()[1]), "WORLD_SIZE": "2"}
    processes = [_start(shared, RANK=str(rank), LOCAL_RANK=str(rank), **address) for rank in range(2)]
    train(cfg, alone)
    for process in processes:
        output, _ = process.communicate(timeout=250)
        assert process.returncode == 0, output
    mine, theirs = _final(alone), _final(shared)
    assert mine.keys() == theirs.keys()
    for name in mine:
        if not name.endswith(
            "num_batches_tracked"
        ):  # counts the micro-batches of a process; nothing reads it
            torch.testing.assert_close(theirs[name], mine[name], atol=1e-6, rtol=1e-5, msg=name)
