from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from auralign.data.mixtures import Component, Mixture, MixtureSpec, write_list
from auralign.evaluation import reward
from auralign.evaluation.reward import LEAKS_DB, METRICS, graded, run_reward
from auralign.metrics.sdr import si_sdr
from auralign.models.audio_statistics import FEATURES
from auralign.models.reward_encoder import RewardEncoder

PITCHES = {"bell": 1500, "flute": 700, "harp": 350, "saw": 120}


class Spectral(RewardEncoder):
    """Hears band energies: what belongs to one class lies in its own band."""

    def __init__(self) -> None:
        super().__init__(dim=16, hidden=8, rank=8, pooling="mean")

    def audio_features(self, wave, *, grad=False):
        bands = torch.fft.rfft(wave).abs().square()[:, : wave.shape[1] // 8].unflatten(1, (16, -1)).sum(2)
        return torch.cat(
            [(bands / bands.sum(1, keepdim=True)).sqrt(), torch.zeros(len(wave), FEATURES - 16)], 1
        )

    def embed(self, raw, modality):
        if modality != "audio":
            return torch.zeros(len(raw), 16)
        return torch.nn.functional.normalize(raw[:, :16], dim=1)


@pytest.fixture(autouse=True)
def _encoder(monkeypatch):
    encoder = Spectral().eval()
    monkeypatch.setattr(reward, "open_encoder", lambda _: encoder)
    monkeypatch.setattr(encoder.backbones, "texts", lambda texts: torch.zeros(len(texts), 384))


@pytest.fixture
def corpus(tmp_path) -> Path:
    rows = []
    rng = np.random.default_rng(0)
    for label, pitch in PITCHES.items():
        for number, split in enumerate(("train", "test", "test")):
            time = np.arange(70_000) / 16_000
            wave = 0.2 * np.sin(2 * np.pi * pitch * (1 + 0.03 * number) * time) + 1e-3 * rng.normal(
                size=70_000
            )
            name = f"{label}-{number}"
            soundfile.write(tmp_path / f"{name}.wav", wave, 16_000)
            rows.append(
                {
                    "id": name,
                    "audio": f"{name}.wav",
                    "duration_s": 70_000 / 16_000,
                    "sample_rate": 16_000,
                    "channels": 1,
                    "labels": [label],
                    "kind": "event",
                    "split": split,
                    "source": name,
                }
            )
    classes = {label: {"kind": "event", "texts": [label], "confusable": []} for label in PITCHES}
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "classes.json").write_text(json.dumps(classes))
    specs = [
        MixtureSpec(f"tiny-{n}", (Component(f"{a}-1", 0.0), Component(f"{b}-2", 0.0)), 0, a)
        for n, (a, b) in enumerate([("bell", "saw"), ("flute", "bell"), ("harp", "bell"), ("saw", "flute")])
    ]
    write_list(tmp_path / "tiny.jsonl", specs)
    gone = MixtureSpec("gone-0", (Component("lost", 0.0), Component("saw-2", 0.0)), 0, "bell")
    write_list(tmp_path / "gone.jsonl", [*specs[:2], dataclasses.replace(gone, id="gone-9")])
    return tmp_path


def test_graded_sounds_are_leaks_of_the_stated_level_and_masks_of_the_mixture():
    rng = np.random.default_rng(0)
    target, other = (0.1 * rng.normal(size=65_536).astype(np.float32) for _ in range(2))
    sounds, quality, leaks = graded(
        Mixture(target, 2 * other, target + 2 * other), torch.Generator().manual_seed(0)
    )
    assert leaks == len(LEAKS_DB)
    first = torch.from_numpy(target)
    for place, level in enumerate(LEAKS_DB, start=3):
        leak = sounds[place] - first
        assert 10 * float(torch.log10(leak.square().mean() / first.square().mean())) == pytest.approx(
            level, abs=0.01
        )
        assert float(quality[place]) == pytest.approx(-level, abs=0.3)
    assert (quality[3 : 3 + leaks].diff() < 0).all()
    torch.testing.assert_close(quality[1], si_sdr(est=sounds[1], ref=first).float())
    assert float(quality[3 + leaks]) > float(quality[1]) + 3  # the ideal mask


def test_a_listener_that_hears_bands_orders_everything(corpus, tmp_path):
    report = run_reward(
        "any",
        corpus,
        [str(corpus / "tiny.jsonl")],
        pairs=(("bell", "saw"), ("flute", "harp")),
        pair_splits=("test",),
        out=tmp_path / "out",
    )
    assert report.table.systems == ("tuned-own", "untuned-own", "tuned-strict", "untuned-strict")
    assert len(report.table.rows) == 4 * 4
    summary = report.summary["all"]
    for anchor in ("own", "strict"):
        tuned = summary[anchor]["tuned"]
        assert tuned["triple"]["mean"] == 1
        assert tuned["leaks"]["mean"] > 0.95
        assert summary[anchor]["gap_ratio"]["value"] == pytest.approx(1, abs=1e-5)  # both hear the same
        assert tuned["gap"]["mean"] == pytest.approx(tuned["target"]["mean"] - tuned["mixture"]["mean"])
    for pair in summary["pairs"].values():
        assert pair["tuned"] == 1
        assert pair["recordings"] == 4
    stored = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert stored["all"]["own"]["tuned"]["triple"]["n"] == 4
    assert len(json.loads((tmp_path / "out" / "scores.json").read_text())) == 16


def test_what_cannot_be_rendered_is_a_row_of_nan_with_its_reason(corpus):
    report = run_reward("any", corpus, [str(corpus / "gone.jsonl")], pairs=())
    lost = [row for row in report.table.rows if row["reason"]]
    assert len(report.table.rows) == 12
    assert len(lost) == 4
    assert all(math.isnan(float(row[m])) for row in lost for m in METRICS)
    assert all("lost" in str(row["reason"]) for row in lost)
    assert report.summary["all"]["own"]["tuned"]["gap"]["n"] == 2


def test_the_limit_spreads_over_the_list(corpus):
    report = run_reward("any", corpus, [str(corpus / "tiny.jsonl")], limit=2, pairs=())
    assert [row["class"] for row in report.table.system("tuned-own").rows] == ["bell", "harp"]


def test_pairs_count_both_classes_alike_and_every_window(corpus):
    report = run_reward(
        "any", corpus, [str(corpus / "tiny.jsonl")], limit=1, pairs=(("bell", "bell"),), pair_splits=("test",)
    )
    assert report.summary["all"]["pairs"]["bell / bell"]["tuned"] == 0  # equal anchors: neither is preferred
    assert all(row["split"] == "test" for row in report.pairs)


def test_a_row_counts_triples_and_correlations_as_defined():
    scores, quality = (
        torch.tensor([0.9, 0.5, 0.1, 0.8, 0.6, 0.7, 0.3]),
        torch.tensor([30.0, 0, -30, 20, 10, 5, 1]),
    )
    row = reward._row(scores, quality, 2)
    assert (row["triple"], row["target_first"], row["mixture_first"]) == (1, 1, 1)
    assert row["gap"] == pytest.approx(0.4)
    assert row["leaks"] == row["masks"] == 1
    worse = reward._row(scores[[1, 0, 2, 4, 3, 5, 6]], quality, 2)
    assert (worse["triple"], worse["target_first"], worse["leaks"]) == (0, 0, -1)
