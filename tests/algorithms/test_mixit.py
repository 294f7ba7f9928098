from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from auralign.algorithms import bisep, bisep_watch, mixit
from auralign.algorithms.bisep_data import PairConfig, PairMixer, Pairs
from auralign.algorithms.mixit import Config, build, load_pairs, loss_terms, separate, train, update
from auralign.algorithms.mixit_loss import thresholded_snr_loss
from auralign.algorithms.training import Averager, TrainState, decay_groups
from auralign.cli import train as command
from auralign.errors import UsageError
from auralign.models import blind
from auralign.models.reward_encoder import RewardEncoder
from auralign.models.separator import SeparatorModel
from auralign.runtime import config as configuration
from auralign.runtime.distributed import World
from auralign.runtime.run import Run

RATE_HZ = 16_000
RECIPES = Path(__file__).parents[2] / "recipes"
OPTIONS = {"widths": (8, 12, 16, 20), "blocks": (1, 1, 1, 1), "fine": 4, "hidden": 8, "n_bands": 64}
SOUNDS = {"a low hum": 110.0, "a flute": 880.0, "a whistle": 2500.0, "a cricket": 5500.0}


def _tone(hertz: float, samples: int) -> torch.Tensor:
    return torch.sin(2 * torch.pi * hertz / RATE_HZ * torch.arange(samples))


def _write_corpus(root: Path) -> Path:
    """Every pair of four tones as a captioned recording with some noise; two more to watch."""
    rows = []
    pairs = list(itertools.combinations(SOUNDS, 2))
    for n, (one, other) in enumerate([*pairs, pairs[0], pairs[-1]]):
        name = f"recording-{n}"
        noise = np.random.default_rng(n).normal(size=9000)
        wave = 0.2 * (_tone(SOUNDS[one], 9000) + _tone(SOUNDS[other], 9000)).numpy() + 0.01 * noise
        soundfile.write(root / f"{name}.flac", wave, RATE_HZ)
        rows.append(
            {
                "id": name,
                "audio": f"{name}.flac",
                "duration_s": 9000 / RATE_HZ,
                "sample_rate": RATE_HZ,
                "channels": 1,
                "labels": [],
                "kind": "event",
                "source": name,
                "sha256": name,
                "captions": [f"{one} and {other}"],
                "phrases": [one, other],
                "split": "train-2" if n < len(pairs) else "val-2",
            }
        )
    (root / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.fixture(scope="module")
def captions(tmp_path_factory) -> Path:
    return _write_corpus(tmp_path_factory.mktemp("captions"))


@pytest.fixture(scope="module")
def space(tmp_path_factory) -> str:
    """An encoder that has learned nothing."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("space")
    RewardEncoder(dim=16, hidden=8, rank=4).save(folder, {})
    return str(folder)


@pytest.fixture(scope="module", autouse=True)
def _short_watch():
    """A validation of two pairs of one second."""
    load = mixit.load_watcher
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bisep_watch, "_SAMPLES", RATE_HZ)
        patch.setattr(bisep_watch, "_BATCH", 2)
        patch.setattr(mixit, "load_watcher", lambda *given: dataclasses.replace(load(*given), pairs=2))
        yield


@pytest.fixture(scope="module")
def tiny(captions, space):
    def make(**changes) -> Config:
        values = {
            "corpus": captions,
            "encoder": space,
            "options": OPTIONS,
            "pairs": PairConfig(samples=4096),
            "batch": 2,
            "warmup": 2,
            "steps": 4,
            "validate_every": 2,
            "precision": "float32",
        }
        return Config(**{**values, **changes})

    return make


def _state(cfg: Config) -> TrainState:
    model = build(cfg)
    optimiser = torch.optim.AdamW(decay_groups(model, cfg.weight_decay), lr=cfg.rate, betas=(0.9, 0.98))
    return TrainState(model, Averager(model, cfg.ema), optimiser)


def _run(folder: Path, cfg: Config) -> Run:
    return Run.create(folder.parent, cfg, folder.name, algorithm="mixit", folder=folder)


def _tensors(tree, name="") -> dict[str, torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        return {name: tree}
    items = (
        tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    )
    return {key: value for k, item in items for key, value in _tensors(item, f"{name}/{k}").items()}


def _assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different, different[:5]


def _final(run: Run) -> dict[str, torch.Tensor]:
    return _tensors(run.checkpoints.load_latest().state)


class Remembering(PairMixer):
    """Gives what another mixer draws, and keeps it."""

    def __init__(self, mixer: PairMixer) -> None:
        self.mixer, self.texts, self.drawn = mixer, mixer.texts, []

    def batch(self, rng: np.random.Generator, size: int) -> Pairs:
        self.drawn.append(self.mixer.batch(rng, size))
        return self.drawn[-1]


class TwoTones(PairMixer):
    """One mixture is a low tone, the other a high one; either may come first."""

    def __init__(self) -> None:
        pass

    def batch(self, rng: np.random.Generator, size: int) -> Pairs:
        waves = torch.empty(size, 2, 4096)
        for n in range(size):
            hertz = (rng.uniform(200, 400), rng.uniform(3000, 5000))
            for k, place in enumerate(rng.permutation(2)):
                waves[n, k] = 0.1 * float(rng.uniform(0.5, 1.5)) * _tone(float(hertz[place]), 4096)
        none = torch.zeros(size, 2, dtype=torch.long)
        return Pairs(waves, none, none[..., None], torch.zeros(size, 2, 1), torch.zeros(size, 2), none[:, 0])


# one batch


@pytest.mark.parametrize("apart", [False, True])
def test_a_run_hears_the_pairs_of_mixtures_that_a_bisep_run_hears(tiny, captions, space, apart):
    changes = {"accumulate": 2, "seed": 5, "pairs": PairConfig(samples=4096, apart=apart)}
    cfg = tiny(**changes)
    theirs = bisep.Config(
        corpus=captions,
        supervision="weak",
        encoder=space,
        options={"widths": (8, 12, 16, 20), "blocks": (1, 1, 1, 1), "fine": 4, "hidden": 8},
        batch=2,
        precision="float32",
        **changes,
    )
    model = bisep.build(theirs)
    mixer, teacher, _ = bisep.prepare(theirs, model)
    heard = Remembering(mixer)
    state = TrainState(model, Averager(model, 0.9), torch.optim.AdamW(model.parameters()))
    mine, mine_state = Remembering(load_pairs(cfg)), _state(cfg)
    for _ in range(2):
        bisep.update(theirs, heard, teacher, state, World())
        update(cfg, mine, mine_state, World())
    assert len(mine.drawn) == len(heard.drawn) == 4
    for one, other in zip(mine.drawn, heard.drawn, strict=True):
        assert torch.equal(one.mixtures, other.mixtures)
        assert torch.equal(one.captions, other.captions)
    assert not torch.equal(mine.drawn[0].mixtures, mine.drawn[1].mixtures)


@pytest.mark.parametrize("assignment", ["mixit", "mixpit"])
def test_the_loss_is_that_of_the_best_allowed_assignment(tiny, monkeypatch, assignment):
    slots = 3 if assignment == "mixit" else 2
    cfg = tiny(assignment=assignment, slots=slots)
    generator = torch.Generator().manual_seed(0)
    mixtures = torch.randn(4, 2, 300, generator=generator)
    outputs = torch.randn(4, slots, 300, generator=generator) + mixtures[:, :1]
    outputs[:2] = mixtures[:2, :1] / slots + 0.02 * outputs[:2]  # all outputs belong to the first mixture
    monkeypatch.setattr(mixit, "separate", lambda *_, **__: outputs)
    terms = loss_terms(cfg, build(cfg), mixtures)
    whole = mixtures.sum(dim=1)
    losses, empty = [], []
    for n in range(4):
        choices = itertools.product((0, 1), repeat=slots)
        if assignment == "mixpit":
            choices = itertools.permutations((0, 1))
        best = min(
            (
                sum(
                    float(
                        thresholded_snr_loss(
                            sum((outputs[n, m] for m in range(slots) if choice[m] == k), torch.zeros(300))[
                                None
                            ],
                            mixtures[n, k][None],
                            whole[n][None],
                        )
                    )
                    for k in (0, 1)
                ),
                choice,
            )
            for choice in choices
        )
        losses.append(best[0])
        empty.append((2 - len(set(best[1]))) / 2)
    assert float(terms["loss"]) == pytest.approx(sum(losses) / 4, rel=1e-4)
    assert float(terms["empty"]) == pytest.approx(sum(empty) / 4)


def test_outputs_in_training_sum_to_the_mixture_of_mixtures(tiny):
    wave = torch.randn(2, 4096, generator=torch.Generator().manual_seed(0))
    outputs = separate(build(tiny()).train(), wave, bfloat16=True)
    assert outputs.shape == (2, 4, 4096)
    assert outputs.dtype == torch.float32
    torch.testing.assert_close(outputs.sum(dim=1), wave, rtol=1e-3, atol=1e-3)


def test_an_update_averages_the_gradients_of_its_micro_batches(tiny):
    cfg = tiny(accumulate=2, clip=1e9, weight_decay=0.0, slots=3)
    mixer, state = load_pairs(cfg), _state(cfg)
    expected = build(cfg).train()
    losses = []
    for micro in range(2):
        rng = np.random.default_rng(mixit.derive(cfg.seed, "batch", 0, micro))
        losses.append(loss_terms(cfg, expected, mixer.batch(rng, cfg.batch).mixtures)["loss"])
    torch.stack(losses).mean().backward()
    values = update(cfg, mixer, state, World())
    assert values["loss"] == pytest.approx(float(torch.stack(losses).detach().mean()), rel=1e-5)
    for (name, mine), theirs in zip(state.model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-4, rtol=1e-3, msg=name)
    assert state.step == state.average.count == 1
    assert values["rate"] == pytest.approx(cfg.rate / 2)


@pytest.mark.parametrize("assignment", ["mixit", "mixpit"])
def test_forty_steps_tell_a_low_tone_from_a_high_one(tiny, assignment):
    slots = 3 if assignment == "mixit" else 2
    cfg = tiny(assignment=assignment, slots=slots, batch=4, steps=40, rate=1e-2, warmup=4)
    state = _state(cfg)
    losses = [update(cfg, TwoTones(), state, World())["loss"] for _ in range(cfg.steps)]
    assert np.mean(losses[-5:]) < np.mean(losses[:3]) - 10, "5 dB a mixture"


# whole runs


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, tiny) -> Run:
    cfg = tiny()
    run = _run(tmp_path_factory.mktemp("runs") / "whole", cfg)
    train(cfg, run)
    return run


def test_a_run_that_crashed_goes_on_bit_for_bit(tmp_path, tiny, uninterrupted, monkeypatch):
    cfg = tiny()
    run = _run(tmp_path / "run", cfg)

    def crash(cfg, mixer, state, here):
        if state.step == 3:
            raise RuntimeError("power cut")
        return update(cfg, mixer, state, here)

    monkeypatch.setattr(mixit, "update", crash)
    with pytest.raises(RuntimeError, match="power cut"):
        train(cfg, run)
    assert run.checkpoints.steps() == [2]
    monkeypatch.setattr(mixit, "update", update)
    torch.manual_seed(12345)  # nothing may depend on the global state
    train(cfg, run)
    _assert_same(_final(run), _final(uninterrupted))
    saved = "model/model.safetensors"
    _assert_same(load_file(run.path / saved), load_file(uninterrupted.path / saved))
    steps = [record["step"] for record in run.metrics() if "val/mixtures_si_sdri" in record]
    assert steps == [2, 4], "no record twice"


def test_a_stopped_run_writes_a_checkpoint_at_once_and_goes_on_bit_for_bit(
    tmp_path, tiny, uninterrupted, monkeypatch
):
    cfg = tiny()
    run = _run(tmp_path / "run", cfg)

    def interrupt(cfg, mixer, state, here):
        values = update(cfg, mixer, state, here)
        if state.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return values

    monkeypatch.setattr(mixit, "update", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(cfg, run)
    assert run.checkpoints.steps()[-1] == 3
    assert not (run.path / "model").exists()
    monkeypatch.setattr(mixit, "update", update)
    train(cfg, run)
    _assert_same(_final(run), _final(uninterrupted))


@pytest.mark.parametrize(("recipe", "slots"), [("mixit_small", 4), ("mixpit_small", 2)])
def test_the_recipe_trains_a_model_that_answers_sentences(tmp_path, captions, space, recipe, slots):
    changes = {
        "corpus": captions,
        "encoder": space,
        "batch": 1,
        "steps": 1,
        "pairs.samples": 4096,
        "options.widths": [8, 12, 16, 20],
        "options.fine": 4,
        "options.hidden": 8,
    }
    options = command.Options(
        RECIPES / f"{recipe}.toml",
        set=tuple(f"{name}={value}" for name, value in changes.items()),
        out=tmp_path / "run",
    )
    assert command.run(options) == 0
    scores = [r for r in Run.open(tmp_path / "run").metrics() if "val/mixtures_si_sdri" in r]
    assert len(scores) == 1
    assert np.isfinite(scores[0]["val/mixtures_si_sdri"])
    model = SeparatorModel.load(tmp_path / "run" / "model")
    assert model.net.slots.shape[0] == slots
    query = torch.stack([q.vector for q in model.text_queries(["a flute"])])[None]
    with torch.no_grad():
        sounds, presence = model.separate_wave(0.1 * _tone(880.0, RATE_HZ)[None], query)
    assert sounds.shape == (1, 1, RATE_HZ)
    assert 0 < float(presence) < 1


@pytest.mark.parametrize("name", ["mixit_small", "mixpit_small"])
def test_the_recipes_have_the_sizes_of_bisep(name):
    def load(stem, kind):
        return configuration.load(RECIPES / f"{stem}.toml", kind, ())

    mine, theirs = load(name, Config), load("bisep_start_small", bisep.Config)
    assert mine.assignment == name.removesuffix("_small")
    shared = {field.name for field in dataclasses.fields(Config)} & set(vars(theirs))
    shared -= {"loss", "steps", "validate_every"}  # as many steps as both stages together
    assert {"options", "pairs", "batch", "rate", "seed", "mixtures"} <= shared
    for field in shared:
        assert getattr(mine, field) == getattr(theirs, field), field


def test_a_blind_separator_opens_its_encoder_once(tiny, monkeypatch):
    monkeypatch.setattr(blind, "open_bimodal", lambda _: pytest.fail("opened again"))
    model = build(tiny())
    assert model.net.encoder is model.backbones.bimodal
    assert F.normalize(model.backbones.texts(["a flute"])).shape == (1, model.net.encoder.dim)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 0}, "batch is 0"),
        ({"ema": 1.0}, "ema is 1.0"),
        ({"pairs": PairConfig(samples=5000)}, "pairs.samples is 5000"),
        ({"assignment": "mixpit", "slots": 4}, "slots is 4; mixpit has one output for each of 2 mixtures"),
        ({"slots": 1}, "slots is 1"),
        ({"slots": 17}, "slots is 17"),
        ({"options": {"slots": 3}}, "options.slots is set"),
        ({"options": {"encoder": "builtin"}}, "options.encoder is set"),
    ],
)
def test_impossible_configurations_name_the_value(changes, message):
    with pytest.raises(ValueError, match=message):
        Config(**changes)


def test_micro_batches_that_processes_cannot_share_are_refused(tmp_path, tiny, monkeypatch):
    class Two:
        def __enter__(self):
            return World(0, 2, 0)

        def __exit__(self, *error):
            return None

    monkeypatch.setattr(mixit, "world", Two)
    cfg = tiny(accumulate=3)
    with pytest.raises(UsageError, match="accumulate is 3 for 2 processes"):
        train(cfg, _run(tmp_path / "run", cfg))
