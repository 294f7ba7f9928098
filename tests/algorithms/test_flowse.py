"""FlowSE: its loss against sums written out, times, whole runs on a tiny corpus, and going on bit for bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from auralign.algorithms import flowse
from auralign.algorithms.flowse_watch import SpeechWatcher, enhance_all
from auralign.data.speech_lists import write_speech_list
from auralign.data.speech_mixer import SpeechMixConfig, SpeechMixer
from auralign.models.enhancer import EnhancerModel
from auralign.runtime.run import Run

MIX = SpeechMixConfig(samples=8192, speed=0.0, hiss=0.0, clipped=0.0, band_limited=0.0, rooms=4)
NET = {"widths": [8, 8, 16, 16], "blocks": [1, 1, 1, 1]}


@pytest.fixture(scope="session")
def tiny_list(tmp_path_factory, tiny_speech: Path, tiny_noise: Path) -> str:
    """Four validation recordings as a list of the published form."""
    mixer = SpeechMixer.load(tiny_speech, tiny_noise, "val", MIX)
    rng = np.random.default_rng(0)
    recipes = [mixer.draw_recipe(rng, f"v{n}", cfg=MIX) for n in range(4)]
    path = tmp_path_factory.mktemp("lists") / "val.jsonl"
    write_speech_list(path, recipes)
    return str(path)


@pytest.fixture
def config(tiny_speech: Path, tiny_noise: Path, tiny_list: str) -> flowse.Config:
    """Four steps of a tiny network."""
    return flowse.Config(
        corpus=tiny_speech,
        noises=tiny_noise,
        watch=tiny_list,
        options=NET,
        nfe=2,
        mix=MIX,
        batch=2,
        steps=4,
        rate=1e-3,
        warmup=1,
        precision="float32",
        device="cpu",
        validate_every=2,
    )


def test_the_loss_is_the_error_of_the_velocity_when_it_is_weighted_so():
    generator = torch.Generator().manual_seed(0)
    shape = (3, 5, 4)
    data, clean, x_t = (torch.randn(shape, dtype=torch.complex64, generator=generator) for _ in range(3))
    t = torch.tensor([1.0, 0.5, 0.1])
    found = flowse.matching_loss(data, clean, t, weighting="velocity", magnitude=0.0)["loss"]
    # written out: |v^ - v|^2 of the two ends that the state x_t has
    by_hand = 0.0
    for n in range(3):
        v_hat, v = (x_t[n] - data[n]) / t[n], (x_t[n] - clean[n]) / t[n]
        by_hand += float((v_hat - v).abs().square().sum()) / (3 * 5 * 4)
    assert float(found) == pytest.approx(by_hand, rel=1e-5)
    plain = flowse.matching_loss(data, clean, t, weighting="data", magnitude=2.0)
    error = float((data - clean).abs().square().mean())
    sizes = float((data.abs() - clean.abs()).square().mean())
    assert float(plain["loss"]) == pytest.approx(error + 2 * sizes, rel=1e-5)


def test_times_reach_the_prior_as_often_as_told(config):
    cfg = dataclasses.replace(config, at_prior=0.5, t_eps=0.1)
    t = flowse.draw_times(cfg, 4000, generator=torch.Generator().manual_seed(1))
    assert float(t.min()) >= 0.1
    assert float((t == 1).float().mean()) == pytest.approx(0.5, abs=0.03)
    never = flowse.draw_times(dataclasses.replace(config, at_prior=0.0), 100, generator=torch.Generator())
    assert not bool((never == 1).any())


def test_the_loss_of_a_network_that_knows_the_answer_is_zero(config, monkeypatch):
    model = flowse.build(config)
    clean = torch.randn(2, 4000, generator=torch.Generator().manual_seed(2)) * 0.1
    noisy = clean + 0.05 * torch.randn(2, 4000, generator=torch.Generator().manual_seed(3))
    right = model.spectrogram(clean * model.gain(noisy))
    monkeypatch.setattr(model, "data", lambda x, y, t: right)
    terms = flowse.loss_terms(config, model, clean, noisy, generator=torch.Generator().manual_seed(0))
    assert float(terms["loss"]) == 0
    monkeypatch.setattr(model, "data", lambda x, y, t: y)  # passing the noise through is not free
    terms = flowse.loss_terms(config, model, clean, noisy, generator=torch.Generator().manual_seed(0))
    assert float(terms["loss"]) > 1e-4


@pytest.mark.parametrize(
    ("field", "value"), [("batch", 0), ("ema", 1.0), ("t_eps", 0.0), ("at_prior", 1.5), ("nfe", 0)]
)
def test_settings_without_a_meaning_are_refused(config, field, value):
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(config, **{field: value})


def test_a_run_writes_a_model_that_loads(config, tmp_path):
    run = Run.create(tmp_path, config, "flowse", algorithm="flowse")
    flowse.train(config, run)
    model = EnhancerModel.load(run.path / "model")
    assert model.steps == 2
    steps = [row["step"] for row in run.metrics() if "val/si_sdri" in row]
    assert steps == [2, 4]
    assert any((run.path / "samples").rglob("*enhanced*"))


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(config, tmp_path):
    whole = Run.create(tmp_path, config, "whole", algorithm="flowse")
    flowse.train(config, whole)
    half = Run.create(tmp_path, config, "half", algorithm="flowse")
    stop = _StopAfter(2)
    with pytest.raises(KeyboardInterrupt), stop:
        flowse.train(config, half)
    flowse.train(config, Run.open(half.path))
    a, b = (EnhancerModel.load(run.path / "model").state_dict() for run in (whole, half))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert stop.calls == 2


class _StopAfter:
    """Asks a run to stop after so many updates, as a signal would."""

    def __init__(self, updates: int) -> None:
        self.updates, self.calls, self.plain = updates, 0, flowse.update

    def __enter__(self) -> None:
        import os
        import signal

        def update(*arguments):
            values = self.plain(*arguments)
            self.calls += 1
            if self.calls == self.updates:
                os.kill(os.getpid(), signal.SIGTERM)
            return values

        flowse.update = update

    def __exit__(self, *error: object) -> None:
        flowse.update = self.plain


def test_training_lowers_the_loss_on_what_it_hears(config):
    cfg = dataclasses.replace(config, steps=60, rate=3e-3, batch=4)
    mixer = SpeechMixer.load(cfg.corpus, cfg.noises, "train", cfg.mix)
    model = flowse.build(cfg)
    state = flowse.TrainState(
        model, flowse.Averager(model, 0.9), torch.optim.AdamW(model.parameters(), lr=cfg.rate)
    )
    losses = [flowse.update(cfg, mixer, state, flowse.World())["loss"] for _ in range(cfg.steps)]
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


def test_recordings_of_unequal_length_are_enhanced_as_if_alone(config, tiny_list):
    model = flowse.build(config).eval()
    sounds = [torch.randn(n, generator=torch.Generator().manual_seed(n)) * 0.1 for n in (900, 700)]
    together = enhance_all(model, sounds)
    assert [len(sound) for sound in together] == [900, 700]
    torch.testing.assert_close(together[1], model.enhance_wave(sounds[1][None], seed=1)[0])


def test_the_watcher_hears_the_whole_list_or_a_part_spread_evenly(config):
    assert len(SpeechWatcher.load(config.watch, config.corpus, config.noises).clean) == 4
    part = SpeechWatcher.load(config.watch, config.corpus, config.noises, 2)
    assert len(part.noisy) == 2
    perfect = part.scores(part.clean)
    assert perfect["estoi"] == pytest.approx(1, abs=1e-3) or np.isnan(perfect["estoi"])
    assert part.scores(part.noisy)["si_sdri"] == pytest.approx(0, abs=1e-9)
