from __future__ import annotations

import json

import pytest

from auralign.cli import main
from auralign.evaluation import bench_enhancement
from auralign.models.enhancer import EnhancerModel


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    from auralign.errors import ModelUnavailableError

    def absent(name, **kwargs):
        raise ModelUnavailableError(f"no {name}")

    class Missing:
        name = "gtcrn"

        def __init__(self):
            raise ModelUnavailableError("no wheel")

    asked = []
    enhance = EnhancerModel.enhance_wave
    monkeypatch.setattr(
        EnhancerModel,
        "enhance_wave",
        lambda self, wave, **k: asked.append(k["steps"]) or enhance(self, wave, **k),
    )
    monkeypatch.setattr(bench_enhancement.weights, "path", absent)
    monkeypatch.setattr(bench_enhancement, "PEERS", (bench_enhancement.LogMmse, Missing))
    return asked


def test_ratios_are_seconds_of_sound_per_second_of_work(tiny):
    entries = bench_enhancement.bench(repeats=1, seconds=0.3, evaluations=(1, 2, 3))
    assert tiny == [1, 2, 3, 1, 2, 3]
    assert list(entries) == [
        "enhance_nfe1_vs_real_time",
        "enhance_nfe2_vs_real_time",
        "enhance_nfe3_vs_real_time",
        "log-mmse_vs_real_time",
        "enhance_nfe2_vs_log-mmse",
        "enhance_nfe2_vs_gtcrn",
    ]
    real = entries["enhance_nfe2_vs_real_time"]
    assert real["ratio"] == pytest.approx(0.3 / real["ours_s"])
    peer = entries["enhance_nfe2_vs_log-mmse"]
    assert peer["ratio"] == pytest.approx(entries["log-mmse_vs_real_time"]["ours_s"] / real["ours_s"])
    assert entries["enhance_nfe2_vs_gtcrn"] == {"peer": "gtcrn", "skipped": "no wheel"}
    assert "random weights" in real["work"]


def test_the_command_knows_the_area(monkeypatch, capsys):
    monkeypatch.setattr(bench_enhancement, "bench", lambda *, repeats: {"x": {"ours_s": repeats}})
    assert main(["bench", "enhancement", "--repeats", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"x": {"ours_s": 2}}
