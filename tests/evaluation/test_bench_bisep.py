from __future__ import annotations

import json

import pytest
import torch

from auralign.algorithms.bisep_config import Config, LossConfig
from auralign.algorithms.bisep_data import Texts
from auralign.algorithms.bisep_terms import Teacher, loss_terms
from auralign.errors import AuralignError
from auralign.evaluation import bench_bisep
from auralign.evaluation.bench_bisep import CASES, Search, Step, bench, loop_mixit, naive_terms, noise_pairs
from auralign.models.bimodal import AlignedEncoder
from auralign.models.reward_encoder import RewardEncoder
from auralign.models.separator import SeparatorModel

TINY = {"widths": (16, 16, 16, 16), "blocks": (1, 1, 1, 1), "fine": 4, "hidden": 8, "heads": 2}
EXACT = Config(loss=LossConfig(rows=0), precision="float32")


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    model = SeparatorModel("bisep_small", TINY, unit_queries=False, encoder="tokens").train()
    torch.nn.init.normal_(model.net.head.filters.weight, std=0.3)
    batch, names = noise_pairs(2, 2, 8192, torch.Generator().manual_seed(1))
    batch.share[0, 1, 1] = 0  # one phrase is padding
    batch.phrases[1, 0, 0] = batch.phrases[0, 0, 0]  # and two rows have the same words
    texts = Texts.of(names, model.backbones, 384, None)
    encoder = AlignedEncoder(RewardEncoder(dim=8, hidden=8, rank=4, pooling="mean"), "tiny")
    return model, batch, texts, Teacher(encoder, encoder.texts(list(texts.names)))


def gradients(model, terms):
    names = [(name, p) for name, p in model.net.named_parameters() if p.requires_grad]
    found = torch.autograd.grad(terms["loss"], [p for _, p in names], allow_unused=True)
    return {name: value for (name, _), value in zip(names, found, strict=True) if value is not None}


def test_the_step_and_its_plain_form_have_the_same_loss_and_the_same_gradients(parts):
    model, batch, texts, teacher = parts
    ours = loss_terms(EXACT, model, batch, texts, teacher, torch.Generator())
    plain = naive_terms(EXACT, model, batch, texts, teacher)
    assert ours.keys() == plain.keys() == {"url", "crl", "cnt", "presence", "loss"}
    for name, value in ours.items():
        torch.testing.assert_close(value, plain[name], atol=1e-5, rtol=0)
    mine, theirs = gradients(model, ours), gradients(model, plain)
    assert mine.keys() == theirs.keys()
    assert len(mine) > 20
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], atol=1e-5, rtol=1e-5)
    assert float(mine["head.filters.weight"].abs().max()) > 1e-4


def test_the_loop_over_assignments_finds_what_the_search_finds():
    torch.manual_seed(2)
    outputs = torch.randn(3, 4, 400, requires_grad=True)
    mixtures = torch.stack([outputs[:, [0, 2, 3]].sum(1), outputs[:, 1]], dim=1).detach()
    loss, chosen = loop_mixit(outputs, mixtures)
    assert chosen.tolist() == [[0, 1, 0, 0]] * 3
    found, assigned = bench_bisep.mixit(outputs, mixtures)
    assert torch.equal(assigned, chosen)
    torch.testing.assert_close(found, loss)
    torch.testing.assert_close(
        torch.autograd.grad(found.sum(), outputs), torch.autograd.grad(loss.sum(), outputs)
    )


def test_every_entry_has_the_promised_form():
    cases = {
        "bisep_step_vs_naive": Step(2, batch=2, samples=4096, options=TINY),
        "mixit_vs_loop": Search(4, batch=1, samples=800),
    }
    found = bench(cases=cases, repeats=1)
    assert found.keys() == cases.keys()
    assert cases.keys() < CASES.keys()
    for entry in found.values():
        assert {"ours_s", "peer_s", "ratio", "peer", "work", "max_difference"} == set(entry)
        assert entry["ratio"] == pytest.approx(entry["peer_s"] / entry["ours_s"])
        assert entry["max_difference"] <= 1e-5
    assert "encoder: " in found["bisep_step_vs_naive"]["work"]
    json.dumps(found)


def test_a_step_that_computes_something_else_is_an_error_not_a_ratio(monkeypatch):
    def twice(*given):
        return {name: 2 * value for name, value in naive_terms(*given).items()}

    monkeypatch.setattr(bench_bisep, "naive_terms", twice)
    with pytest.raises(AuralignError, match="plain form"):
        bench(cases={"one": Step(2, batch=1, samples=4096, options=TINY)}, repeats=1)
