"""The script that softens masks: logits scaled, nothing else, and a model folder that loads."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from auralign.errors import UsageError
from auralign.models.separator import SeparatorModel

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "soften_masks.py"
SMALL = {"n_bands": 32, "widths": (8, 12, 16, 24), "blocks": (1, 1, 1, 1), "fine": 4, "hidden": 16}


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("soften_masks", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("small")
    model = SeparatorModel("small", {**SMALL, "query_dim": 24})
    torch.nn.init.normal_(model.net.net.head.filters.bias, std=0.5)
    model.save(folder, {"name": "small"}, half=False)
    return folder


def answers(model: SeparatorModel):
    generator = torch.Generator().manual_seed(1)
    fine = torch.randn(1, SMALL["fine"], 32, 16, generator=generator)
    coarse = torch.randn(1, SMALL["widths"][1], 8, 4, generator=generator)
    query = torch.nn.functional.normalize(torch.randn(1, 3, 24, generator=generator), dim=-1)
    with torch.no_grad():
        return model.eval().net.net.read(fine, coarse, query)


def test_logits_are_scaled_and_presence_stays(script, small):
    plain, softened = (answers(script.load_softened(str(small), factor)) for factor in (1.0, 0.7))
    assert float(plain.logits.abs().max()) > 0.1
    torch.testing.assert_close(softened.logits, 0.7 * plain.logits)
    torch.testing.assert_close(softened.presence, plain.presence, atol=0, rtol=0)


def test_the_written_folder_is_the_softened_model(script, small, tmp_path, monkeypatch, capsys):
    out = tmp_path / "softened"
    monkeypatch.setattr(sys, "argv", ["soften_masks", str(small), "--factor", "0.5", "-o", str(out)])
    assert script.main() == 0
    assert capsys.readouterr().out == f"{out}\n"
    expected = 0.5 * answers(SeparatorModel.load(small)).logits
    torch.testing.assert_close(answers(SeparatorModel.load(out)).logits, expected, atol=5e-3, rtol=5e-3)


def test_a_network_without_such_a_head_and_a_factor_of_zero_are_refused(script, small, tmp_path):
    SeparatorModel("omnisep", {"query_dim": 24, "width": 4, "levels": 3}).save(tmp_path, {"name": "other"})
    with pytest.raises(UsageError, match="omnisep"):
        script.load_softened(str(tmp_path), 0.7)
    with pytest.raises(UsageError, match="factor of 0"):
        script.load_softened(str(small), 0.0)
