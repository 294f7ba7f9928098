"""Encoders that the models of a trial share: loaded once, and no score moves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from auralign.evaluation.items import SoundboxItems
from auralign.evaluation.run import Answerer
from auralign.evaluation.trial_queries import Queries, SharedEncoders, share_encoders
from auralign.evaluation.trial_score import Contender, Scorer, Setting, Work
from auralign.models.reward_encoder import RewardEncoder
from auralign.models.separator import SeparatorModel

TRUNK = {"widths": (16, 16, 16, 16), "blocks": (1, 1, 1, 1), "fine": 4, "hidden": 8}
WORDS = {"heads": 2, "pooled_dim": 384, "tokens": 24, "token_dim": 384}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    """Two small text-conditioned networks, a published one, two blind ones and one of another kind."""
    root = tmp_path_factory.mktemp("sharing")
    torch.manual_seed(0)
    RewardEncoder(dim=8, hidden=8, rank=4, pooling="mean").save(root / "encoder", {"name": "encoder"})
    blind = {"slots": 2, **TRUNK, "encoder": str(root / "encoder")}
    kinds = [
        ("bisep_small", {**TRUNK, **WORDS}, "tokens"),
        ("bisep_small", {**TRUNK, **WORDS}, "tokens"),
        ("bisep", {**WORDS, "levels": 4, "width": 2, "channels": 4}, "tokens"),
        ("blind", blind, f"bimodal:{root / 'encoder'}"),
        ("blind", blind, f"bimodal:{root / 'encoder'}"),
        ("small", {"widths": (16, 32, 48, 64), "fine": 8, "hidden": 32, "query_dim": 256}, "builtin"),
    ]
    for n, (network, options, encoder) in enumerate(kinds):
        model = SeparatorModel(network, dict(options), unit_queries=False, encoder=encoder).eval()
        for name, weight in model.net.named_parameters():
            if name.endswith("filters.weight"):
                torch.nn.init.normal_(weight, std=0.3)
        model.save(root / f"m{n}", {"name": f"m{n}"})
    return [root / f"m{n}" for n in range(len(kinds))]


@pytest.fixture(scope="module")
def scorer(trial_corpus, folders) -> Scorer:
    contenders = tuple(Contender(f"arm{n}", 0, str(path), f"{n}") for n, path in enumerate(folders))
    return Scorer(Setting(trial_corpus, contenders))


def test_there_is_one_encoder_of_each_kind(scorer):
    small, other, unet, blind, rival, plain = scorer.models
    assert small.backbones is other.backbones is unet.backbones
    assert small.backbones.minilm is plain.backbones._get("text")
    assert small.net._backbones is other.net._backbones is plain.net._backbones is plain.backbones
    assert blind.backbones is rival.backbones
    assert blind.net.encoder is rival.net.encoder is blind.backbones.bimodal
    heard = blind.net.encoder.encoder.backbones
    assert heard.yamnet is plain.backbones._get("audio")  # without the memory of one input
    assert heard.yamnet is not small.net._backbones.yamnet


def test_shared_encoders_change_no_answer(scorer, trial_corpus, folders):
    items = SoundboxItems(trial_corpus)
    specs = items.read(str(trial_corpus / "tiny.jsonl"), 2)
    for spec in specs:
        scored = scorer.score(Work("tiny", spec, dict.fromkeys(range(len(folders)), ("text",))))
        wave = torch.from_numpy(items.renderer.render(spec).mixture).numpy()
        for row, folder in zip(scored.rows, folders, strict=True):
            assert (row["failed"], row["reason"]) == (False, ""), row
            alone = Answerer(SeparatorModel.load(folder), items)
            target, _, presence = alone(wave, items.ask(spec, "bell", "text"))
            assert row["presence"] == pytest.approx(presence, abs=1e-5)
            index = folders.index(folder)
            query = scorer.queries.vector(scorer.models[index], items.ask(spec, "bell", "text"))
            found, _ = scorer._answer(scorer.models[index], torch.from_numpy(wave)[None], query[None, None])
            torch.testing.assert_close(
                torch.from_numpy(found[0]), torch.from_numpy(target), atol=1e-5, rtol=0
            )


def test_an_encoder_of_another_place_is_not_swapped(trial_corpus, folders, tmp_path):
    torch.manual_seed(7)
    RewardEncoder(dim=8, hidden=8, rank=4, pooling="mean").save(tmp_path / "other", {"name": "other"})
    options = {"slots": 2, **TRUNK, "encoder": str(tmp_path / "other")}
    other = SeparatorModel("blind", options, unit_queries=False, encoder=f"bimodal:{tmp_path / 'other'}")
    models = [SeparatorModel.load(folders[3]), other.eval()]
    shared = SharedEncoders()
    share_encoders(models, shared)
    assert models[0].net.encoder is not models[1].net.encoder
    queries = Queries(SoundboxItems(trial_corpus), {})
    first, second = (queries.features(model.backbones, "text", "bell") for model in models)
    assert not torch.equal(first, second)
