"""BiSep end to end: the published arithmetic by hand, what each form of supervision touches, whole runs."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from auralign import cli
from auralign.algorithms import bisep, bisep_set_up, bisep_terms
from auralign.algorithms.bisep_config import Config
from auralign.algorithms.bisep_data import Pairs, Texts
from auralign.algorithms.bisep_set_up import build, load_sounds, prepare
from auralign.algorithms.bisep_terms import Teacher, chosen_rows, loss_terms
from auralign.algorithms.separator_pass import SeparatorPass
from auralign.algorithms.training import Averager, TrainState, decay_groups
from auralign.errors import DataError, ModelUnavailableError, UsageError
from auralign.models.bimodal import BimodalEncoder
from auralign.models.separator import SeparatorModel
from auralign.runtime.distributed import World
from auralign.runtime.run import Run

RELEASED = {
    "form": "l1",
    "presence": 0.0,
    "rows": 0,
    "among": "published",
    "consistency": "sum",
    "multi_positive": False,
    "symmetric": False,
    "spare_close": False,
}
PUBLISHED_PAIRS = {"repeat": True, "apart": False, "most_phrases": 3}

pytestmark = pytest.mark.usefixtures("tiny_bisep")


class Ears(BimodalEncoder):
    """A linear spectrum: differentiable in the sound, with weights that must not learn."""

    def __init__(self, scale: float = 4.0) -> None:
        self.spec, self.dim, self.scale = "ears", 8, scale
        draw = torch.Generator().manual_seed(2)
        self.weight = torch.nn.Parameter(torch.randn(257, 8, generator=draw), requires_grad=False)

    def texts(self, texts):
        rows = [torch.randn(8, generator=torch.Generator().manual_seed(len(t) + ord(t[2]))) for t in texts]
        return F.normalize(torch.stack(rows), dim=1)

    def audio(self, wave):
        level = wave.square().mean(dim=1, keepdim=True).add(1e-12).sqrt()
        return F.normalize(torch.fft.rfft(wave / level, n=512).abs() @ self.weight, dim=1)

    def to(self, device):
        return self


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scene(cfg: Config, size: int = 2, seed: int = 0) -> tuple[SeparatorModel, Pairs, Texts, Teacher]:
    """A network whose masks vary, a batch, and a teacher that needs no weights."""
    model = build(cfg).eval()
    torch.nn.init.normal_(model.net.scale, std=2.0, generator=chance(1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bisep_set_up, "open_bimodal", lambda _: Ears())
        mixer, teacher, _ = prepare(cfg, model)
    batch = mixer.batch(np.random.default_rng(seed), size)
    return model, batch, mixer.texts, teacher


# the published arithmetic


def published(model: SeparatorModel, batch: Pairs, texts: Texts, ears: Ears) -> dict[str, float]:
    """The table of losses, item by item: each text in a pass of its own."""
    size, phrases = len(batch.mixtures), batch.phrases.shape[2]
    url = crl = cnt = 0.0
    bins, frames = 512, batch.mixtures.shape[-1] // 256
    whole = batch.mixtures[:, 0] + batch.mixtures[:, 1]
    spec = model.spectrogram(whole)[..., :frames]

    def mask(b: int, number: int) -> torch.Tensor:
        query = texts.vectors[number].float()[None, None]
        state = model.net.analyse(spec[b : b + 1], whole[b : b + 1])
        return torch.sigmoid(model.net.respond(state, query).logits)[0, 0]

    def weight(magnitude: torch.Tensor) -> torch.Tensor:
        return torch.clip(torch.log(1 + magnitude), 1e-3, 10)

    for n in range(2):
        audio, text = [], []
        for b in range(size):
            m, x = spec[b].abs(), model.spectrogram(batch.mixtures[b, n])[:, :frames].abs()
            url += float((weight(m) * (mask(b, int(batch.captions[b, n])) * m - x).abs()).sum())
            together = torch.zeros(bins, frames)
            for k in range(phrases):
                number = int(batch.phrases[b, n, k])
                mine = mask(b, number)
                together += float(batch.share[b, n, k]) * mine
                heard = F.pad(mine * spec[b], (0, 1))
                window = torch.hann_window(1022)
                wave = torch.istft(heard, 1022, 256, window=window, length=batch.mixtures.shape[-1])
                audio.append(ears.audio(wave[None])[0])
                text.append(ears.texts([texts.names[number]])[0])
            crl += float((weight(x) * (together * m - x).abs()).sum())
        for row, heard in enumerate(audio):
            logits = [ears.scale * float(heard @ other) for other in text]
            norm = math.log(sum(math.exp(value) for value in logits))
            cnt += (norm - logits[row]) / len(audio)
    cells = size * bins * frames
    return {"url": url / cells, "crl": crl / cells, "cnt": cnt}


def test_the_released_preset_is_half_the_contrast_and_five_times_both_reconstructions(bisep_config):
    cfg = bisep_config(loss=RELEASED, pairs=PUBLISHED_PAIRS)
    model, batch, texts, teacher = scene(cfg)
    with torch.no_grad():
        found = loss_terms(cfg, model, batch, texts, teacher, chance())
        expected = published(model, batch, texts, teacher.encoder)
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value, rel=1e-4), name
    total = 0.5 * expected["cnt"] + 5 * (expected["crl"] + expected["url"])
    assert float(found["loss"]) == pytest.approx(total, rel=1e-4)
    assert (batch.share.sum(dim=2) == 2).all()
    assert batch.phrases.shape[2] == 3


def test_targets_add_up_to_what_is_heard_so_that_true_masks_cost_nothing(bisep_config, monkeypatch):
    """The released loader makes targets too quiet by the number of sources; no mask could then be right."""
    cfg = bisep_config(loss=RELEASED | {"contrast": 0.0})
    model, batch, texts, _ = scene(cfg)
    early = torch.arange(4096) < 1024  # one mixture, a pause longer than a window, the other
    batch.mixtures[:, 0] *= early
    batch.mixtures[:, 1] *= torch.arange(4096) >= 3072
    share = torch.zeros_like(batch.share)
    share[:, :, 0] = 1  # one phrase says it all
    batch = dataclasses.replace(batch, share=share)
    spec = model.spectrogram(batch.mixtures.sum(dim=1))[..., :16]
    first = (torch.arange(16) < 8).float().expand(len(spec), 512, -1)
    wanted = [first, 1 - first, first, first, 1 - first, 1 - first, first]
    logits = 200 * (torch.stack(wanted, dim=1) - 0.5)
    out = SeparatorPass(spec, spec.abs().square(), logits, torch.zeros(len(spec), 7))
    terms = loss_terms(cfg, model, batch, texts, Teacher(Ears(), Ears().texts(texts.names)), chance(), out)
    assert float(terms["url"]) == pytest.approx(0, abs=1e-6)
    assert float(terms["crl"]) == pytest.approx(0, abs=1e-6)


def seen(monkeypatch) -> list[dict[str, Any]]:
    """Every call of the contrastive loss."""
    calls: list[dict[str, Any]] = []
    real = bisep_terms.contrastive

    def spy(audio, text, scale, number, **form):
        calls.append({"audio": audio, "text": text, "scale": scale, "number": number, **form})
        return real(audio, text, scale, number, **form)

    monkeypatch.setattr(bisep_terms, "contrastive", spy)
    return calls


def doubled(batch: Pairs) -> Pairs:
    """The same batch where the second item asks for the phrases of the first."""
    phrases = batch.phrases.clone()
    phrases[1] = phrases[0]
    return dataclasses.replace(batch, phrases=phrases)


def test_with_defaults_the_same_words_are_never_negatives_of_each_other(bisep_config, monkeypatch):
    cfg = bisep_config()
    model, batch, texts, teacher = scene(cfg)
    calls = seen(monkeypatch)
    loss_terms(cfg, model, doubled(batch), texts, teacher, chance())
    (call,) = calls
    assert call["multi_positive"]
    assert call["symmetric"]
    number = call["number"]
    assert len(number) == 8 > len(number.unique())
    same = number[:, None] == number[None]
    assert call["left_out"][same].all()
    names = [texts.names[int(n)] for n in number]
    torch.testing.assert_close(call["text"], Ears().texts(names))


def test_an_estimate_chooses_among_the_phrases_of_its_mixture_or_of_the_batch(bisep_config, monkeypatch):
    model, batch, texts, teacher = scene(bisep_config())
    calls = seen(monkeypatch)
    for among in ("pair", "batch"):
        cfg = bisep_config(loss={"among": among, "spare_close": False})
        loss_terms(cfg, model, batch, texts, teacher, chance())
    pair, whole = calls
    item = torch.arange(8) // 4
    assert torch.equal(pair["left_out"], item[:, None] != item[None])
    assert not whole["left_out"].any()


def test_the_released_form_contrasts_each_mixture_on_its_own(bisep_config, monkeypatch):
    cfg = bisep_config(loss=RELEASED, pairs=PUBLISHED_PAIRS)
    model, batch, texts, teacher = scene(cfg)
    calls = seen(monkeypatch)
    loss_terms(cfg, model, batch, texts, teacher, chance())
    assert len(calls) == 2
    for n, call in enumerate(calls):
        assert sorted(call["number"].tolist()) == sorted(batch.phrases[:, n].flatten().tolist())
        assert not call["multi_positive"]
        assert not call["symmetric"]
        assert not call["left_out"].any()
        assert call["scale"] == teacher.encoder.scale


@pytest.mark.parametrize("loss", [{}, {"form": "l1"}, RELEASED], ids=["default", "l1", "released"])
def test_padded_phrases_change_no_term(bisep_config, loss):
    cfg = bisep_config(loss=loss)
    model, batch, texts, teacher = scene(cfg)
    more = torch.full((2, 2, 3), 3)
    padded = dataclasses.replace(
        batch,
        phrases=torch.cat([batch.phrases, more], dim=2),
        share=F.pad(batch.share, (0, 3)),
    )
    with torch.no_grad():
        plain = loss_terms(cfg, model, batch, texts, teacher, chance())
        with_padding = loss_terms(cfg, model, padded, texts, teacher, chance())
    for name, value in plain.items():
        torch.testing.assert_close(with_padding[name], value, msg=name, atol=1e-6, rtol=1e-5)


def test_the_contrast_teaches_the_masks_and_never_the_encoder(bisep_config):
    cfg = bisep_config()
    model, batch, texts, teacher = scene(cfg)
    loss_terms(cfg, model, batch, texts, teacher, chance())["cnt"].backward()
    assert float(model.net.scale.grad.abs().max()) > 0
    assert float(model.net.downs[0][0].weight.grad.abs().max()) > 0
    assert teacher.encoder.weight.grad is None
    assert not teacher.texts.requires_grad
    assert isinstance(teacher.encoder.scale, float)


def test_single_sounds_need_no_phrases(bisep_config, monkeypatch):
    cfg = bisep_config()
    model, batch, texts, teacher = scene(cfg)
    calls = seen(monkeypatch)
    weak = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    some = dataclasses.replace(batch, weak=weak)
    terms = loss_terms(cfg, model, some, texts, teacher, chance())
    assert sorted(calls[0]["number"].tolist()) == sorted(batch.phrases[0, 0].tolist())
    other = batch.share.clone()
    other[weak == 0] *= 0.5
    changed = loss_terms(cfg, model, dataclasses.replace(some, share=other), texts, teacher, chance())
    assert float(changed["crl"].detach()) == pytest.approx(float(terms["crl"].detach()))
    none = dataclasses.replace(batch, weak=torch.zeros(2, 2))
    alone = loss_terms(cfg, model, none, texts, teacher, chance())
    assert float(alone["crl"].detach()) == float(alone["cnt"].detach()) == 0
    assert float(alone["url"].detach()) == pytest.approx(float(terms["url"].detach()))


def test_a_part_of_the_estimates_is_heard_against_all_phrases(bisep_config, monkeypatch):
    cfg = bisep_config(loss={"rows": 3})
    model, batch, texts, teacher = scene(cfg)
    calls = seen(monkeypatch)
    loss_terms(cfg, model, batch, texts, teacher, chance(4))
    (call,) = calls
    assert len(call["audio"]) == 3
    assert sorted(call["number"].tolist()) == sorted(batch.phrases.flatten().tolist())
    rows = chosen_rows(8, 3, chance(4))
    assert call["number"][:3].tolist() == batch.phrases.flatten()[rows].tolist()
    assert call["left_out"].shape == (3, 8)
    assert torch.equal(chosen_rows(5, 0, chance()), torch.arange(5))
    assert torch.equal(chosen_rows(5, 9, chance()), torch.arange(5))
    assert len({tuple(chosen_rows(8, 3, chance(s)).tolist()) for s in range(9)}) > 3


def test_presence_is_that_of_captions_and_phrases_and_not_of_the_absent_text(bisep_config):
    cfg = bisep_config()
    model, batch, texts, teacher = scene(cfg)
    share = batch.share.clone()
    share[0, 1, 1] = 0  # padding
    batch = dataclasses.replace(batch, share=share)
    out = bisep_terms.ask(cfg, model, batch, texts, phrased=True)
    right = torch.full((2, 7), 30.0)
    right[:, -1] = -30
    right[0, 5] = -30  # what is said of padding does not matter
    shown = dataclasses.replace(out, presence=right)
    assert float(loss_terms(cfg, model, batch, texts, teacher, chance(), shown)["presence"]) < 1e-6
    right[1, 0] = -30
    wrong = loss_terms(cfg, model, batch, texts, teacher, chance(), dataclasses.replace(out, presence=right))
    assert float(wrong["presence"]) == pytest.approx(30 / 13, rel=1e-3)


# forms of supervision


def test_without_phrases_only_captions_and_an_absent_caption_are_asked_for(bisep_config, monkeypatch):
    monkeypatch.setattr(bisep_set_up, "open_bimodal", lambda _: pytest.fail("an encoder is opened"))
    for supervision in ("unsupervised", "supervised"):
        cfg = bisep_config(supervision=supervision, encoder="nowhere")
        model = build(cfg).eval()
        mixer, teacher, _ = prepare(cfg, model)
        assert teacher is None
        batch = mixer.batch(np.random.default_rng(0), 2)
        out = bisep_terms.ask(cfg, model, batch, mixer.texts, phrased=False)
        assert out.logits.shape[1] == 3
        terms = loss_terms(cfg, model, batch, mixer.texts, None, chance())
        assert set(terms) == {"url", "presence", "loss"}
        nothing = torch.zeros_like(batch.phrases)
        blind = dataclasses.replace(batch, phrases=nothing, share=torch.zeros_like(batch.share))
        again = loss_terms(cfg, model, blind, mixer.texts, None, chance())
        assert torch.equal(again["loss"], terms["loss"])


@pytest.mark.parametrize(
    ("supervision", "gone"),
    [
        ("unsupervised", "train-1"),
        ("weak", "train-1"),
        ("supervised", "train-2"),
        ("semi", "train-1"),
    ],
)
def test_a_form_opens_no_sound_that_it_must_not_hear(
    tmp_path, make_captioned, bisep_config, supervision, gone
):
    root = make_captioned(tmp_path / "corpus")
    removed = [path for path in sorted(root.rglob("*.flac")) if gone in path.as_posix()]
    removed = removed[3:] if supervision == "semi" else removed
    assert removed
    for path in removed:
        path.unlink()
    cfg = bisep_config(supervision=supervision, corpus=root, single_share=0.5)
    mixtures, singles = load_sounds(cfg)
    heard = {clip.id for part in (mixtures, singles) if part for clip in part.clips}
    expected = {"unsupervised": 15, "weak": 15, "supervised": 3, "semi": 18}
    assert len(heard) == expected[supervision]
    assert all((root / clip.audio).exists() for part in (mixtures, singles) if part for clip in part.clips)


def test_a_share_of_single_sounds_is_the_first_of_them(bisep_config):
    _, singles = load_sounds(bisep_config(supervision="semi", single_share=1 / 3))
    assert [clip.id for clip in singles.clips] == ["train-1-0", "train-1-1"]


# whole runs


def a_run(folder: Path, cfg: Config) -> Run:
    return Run.create(folder.parent, cfg, folder.name, algorithm="bisep", folder=folder)


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


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {toml(v)}" for k, v in value.items()) + "}"
    return str(value) if isinstance(value, int | float) else f'"{value}"'


@pytest.mark.parametrize("supervision", ["unsupervised", "weak", "semi", "supervised"])
def test_every_form_trains_from_a_recipe_to_a_model_that_separates(
    tmp_path, captioned_root, aligned_folder, bisep_config, supervision
):
    phrased = supervision in ("weak", "semi")
    options = bisep_config().options
    lines = [
        'algorithm = "bisep"',
        f'corpus = "{captioned_root}"',
        f'supervision = "{supervision}"',
        f'encoder = "{aligned_folder if phrased else tmp_path / "nowhere"}"',
        'network = "bisep"',
        f"options = {toml(options)}",
        "pairs = {samples = 4096}",
        "single_share = 0.5",
        "batch = 2\nsteps = 2\nwarmup = 1\nvalidate_every = 2",
    ]
    recipe, folder = tmp_path / "tiny.toml", tmp_path / "run"
    recipe.write_text("\n".join(lines) + "\n")
    assert cli.main(["train", str(recipe), "-o", str(folder)]) == 0
    records = Run.open(folder).metrics()
    first = {name for name in records[0] if name.startswith("train/")}
    phrase_terms = {"train/crl", "train/cnt"}
    assert {"train/url", "train/presence", "train/loss", "train/gradient_norm"} <= first
    assert phrase_terms & first == (phrase_terms if phrased else set())
    assert any("val/mixtures_si_sdri" in record for record in records)
    model = SeparatorModel.load(folder / "model")
    wave = torch.randn(1, 3000, generator=chance())
    query = model.text_queries(["a bell"])[0].vector[None, None]
    with torch.no_grad():
        estimate, presence = model.separate_wave(wave, query)
    assert estimate.shape == (1, 1, 3000)
    assert torch.isfinite(estimate).all()
    assert 0 <= float(presence) <= 1
    assert (folder / "report.html").exists()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, bisep_config, install_tiny_bisep) -> Run:
    with pytest.MonkeyPatch.context() as patch:
        install_tiny_bisep(patch)
        cfg = bisep_config(supervision="semi")
        run = a_run(tmp_path_factory.mktemp("runs") / "whole", cfg)
        bisep.train(cfg, run)
    return run


def test_a_run_that_crashed_goes_on_bit_for_bit(tmp_path, bisep_config, uninterrupted, monkeypatch):
    cfg = bisep_config(supervision="semi")
    run = a_run(tmp_path / "run", cfg)
    update = bisep.update

    def crash(cfg, mixer, teacher, state, here):
        if state.step == 3:
            raise RuntimeError("power cut")
        return update(cfg, mixer, teacher, state, here)

    monkeypatch.setattr(bisep, "update", crash)
    with pytest.raises(RuntimeError, match="power cut"):
        bisep.train(cfg, run)
    assert run.checkpoints.steps() == [2]
    monkeypatch.setattr(bisep, "update", update)
    torch.manual_seed(12345)  # nothing may depend on the global state
    bisep.train(cfg, run)
    assert_same(final(run), final(uninterrupted))
    saved = "model/model.safetensors"
    assert_same(load_file(run.path / saved), load_file(uninterrupted.path / saved))
    assert [r["step"] for r in run.metrics() if "val/mixtures_si_sdri" in r] == [2, 4], "no record twice"


def test_a_stopped_run_writes_a_checkpoint_at_once_and_goes_on_bit_for_bit(
    tmp_path, bisep_config, uninterrupted, monkeypatch
):
    cfg = bisep_config(supervision="semi")
    run = a_run(tmp_path / "run", cfg)
    update = bisep.update

    def interrupt(cfg, mixer, teacher, state, here):
        values = update(cfg, mixer, teacher, state, here)
        if state.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return values

    monkeypatch.setattr(bisep, "update", interrupt)
    with pytest.raises(KeyboardInterrupt):
        bisep.train(cfg, run)
    assert run.checkpoints.steps()[-1] == 3
    assert not (run.path / "model").exists()
    monkeypatch.setattr(bisep, "update", update)
    bisep.train(cfg, run)
    assert_same(final(run), final(uninterrupted))


def test_the_pairs_of_a_step_follow_from_the_seed_and_the_step(bisep_config, monkeypatch):
    cfg = bisep_config(supervision="unsupervised", accumulate=2)
    model = build(cfg)
    mixer, teacher, _ = prepare(cfg, model)
    drawn: list[Pairs] = []
    batch = mixer.batch
    monkeypatch.setattr(mixer, "batch", lambda rng, size: (drawn.append(batch(rng, size)), drawn[-1])[1])
    for step in (0, 0, 1):
        twin = copy.deepcopy(model)
        optimiser = torch.optim.AdamW(decay_groups(twin, 0.01))
        state = TrainState(twin, Averager(twin, 0.9), optimiser, step=step)
        bisep.update(cfg, mixer, teacher, state, World())
        assert state.step == step + 1
    first, second = drawn[0], drawn[1]
    assert torch.equal(first.mixtures, drawn[2].mixtures)
    assert torch.equal(second.mixtures, drawn[3].mixtures)
    for other in (second, drawn[4], drawn[5]):
        assert not torch.equal(first.mixtures, other.mixtures)


def test_a_run_may_start_from_a_model(tmp_path, bisep_config):
    cfg = bisep_config()
    model = build(dataclasses.replace(cfg, seed=9)).eval()
    model.save(tmp_path / "start", {"name": "start"}, half=False)
    again = build(bisep_config(start=tmp_path / "start", seed=4))
    assert_same(dict(again.state_dict()), dict(model.state_dict()))


# what is wrong


def test_bad_inputs_are_named_with_what_to_do(tmp_path, make_captioned, bisep_config):
    def train(**changes) -> None:
        cfg = bisep_config(**changes)
        bisep.train(cfg, a_run(tmp_path / f"run-{len(list(tmp_path.iterdir()))}", cfg))

    with pytest.raises(DataError, match="no captioned corpus is there") as error:
        train(corpus=tmp_path / "nowhere")
    assert "To fix: make it with" in str(error.value)
    with pytest.raises(DataError, match="no recording is in the split train-9") as error:
        train(mixtures=("train-9",))
    assert "splits: train-1, train-2, val-2" in str(error.value)
    with pytest.raises(DataError, match="no recording is in the split val-9"):
        train(held_out=("val-9",))
    with pytest.raises((UsageError, ModelUnavailableError)) as error:
        train(encoder=str(tmp_path / "no-encoder"))
    assert "no-encoder" in str(error.value)
    with pytest.raises(UsageError, match="does not fit the network"):
        train(options=bisep_config().options | {"token_dim": 9})
    root = make_captioned(tmp_path / "corpus")
    lines = (root / "manifest.jsonl").read_text().splitlines()
    row = json.loads(lines[7]) | {"captions": []}
    (root / "manifest.jsonl").write_text("\n".join([*lines[:7], json.dumps(row), *lines[8:]]) + "\n")
    with pytest.raises(DataError, match=f"{row['id']!r} has no caption") as error:
        train(corpus=root)
    assert "To fix" in str(error.value)
    held = [line for line in lines if '"val-2"' in line]
    kept = [line for line in lines if line not in held[1:]]
    (root / "manifest.jsonl").write_text("\n".join(kept) + "\n")
    with pytest.raises(DataError, match="two recordings") as error:
        train(corpus=root, supervision="unsupervised")
    assert "To fix" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 0}, "batch is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"ema": 1.0}, "ema is 1.0"),
        ({"single_share": 0.0}, "single_share is 0.0"),
        ({"pairs": {"samples": 5000}}, "pairs.samples is 5000"),
        ({"pairs": {"repeat": True}}, "repeated phrases add up by their sum"),
    ],
)
def test_impossible_configurations_name_the_value(bisep_config, changes, message):
    with pytest.raises(ValueError, match=message):
        bisep_config(**changes)


# other processes

PROGRAM = """
    import runpy, sys

    tiny = runpy.run_path(sys.argv[1])
    tiny["use_tiny_bisep"]()
    from auralign.algorithms import bisep
    from auralign.runtime.run import Run

    run = Run.open(sys.argv[2])
    bisep.train(run.config(bisep.Config), run)
"""


@pytest.mark.slow
def test_two_processes_train_the_model_of_one_that_accumulates(tmp_path, bisep_config):
    cfg = bisep_config(accumulate=2, steps=3, validate_every=3)
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
    bisep.train(cfg, alone)
    for process in processes:
        output, _ = process.communicate(timeout=250)
        assert process.returncode == 0, output
    mine, theirs = final(alone), final(shared)
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        if isinstance(value, torch.Tensor) and not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(theirs[name], value, atol=1e-6, rtol=1e-5, msg=name)
