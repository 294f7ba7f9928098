from __future__ import annotations

import json

import pytest
import torch

from auralign.evaluation.bench_separation import Sizes, bench, peak_mb
from auralign.models.separator import SeparatorModel

NAMES = {
    "streamed_vs_whole_file",
    "one_trunk_pass_vs_one_each",
    "stereo_48khz_vs_real_time",
    "long_stream_vs_real_time",
    "start_to_stems_vs_length",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("models") / "tiny"
    options = {"widths": (16, 32, 48, 64), "fine": 8, "hidden": 32, "query_dim": 256}
    SeparatorModel("small", options).save(path, {"name": "tiny"})
    return path


@pytest.mark.slow
def test_every_entry_has_the_promised_form(folder):
    sizes = Sizes(short_s=2, queries=2, long_s=3, file_s=1)
    found = bench(repeats=1, sizes=sizes, model=folder)
    assert set(found) == NAMES
    for entry in found.values():
        assert {"ours_s", "peer_s", "ratio", "peer", "work"} <= set(entry)
        assert entry["ratio"] == pytest.approx(entry["peer_s"] / entry["ours_s"])
        assert entry["ours_s"] > 0
        assert entry["model"] == "tiny"
    assert 50 < found["long_stream_vs_real_time"]["peak_mb"] < 5000
    assert found["one_trunk_pass_vs_one_each"]["max_difference"] < 1e-4
    json.dumps(found)


def test_peak_memory_counts_what_was_held():
    before = peak_mb()
    block = bytearray(300_000_000)
    block[::4096] = b"x" * len(block[::4096])
    assert peak_mb() > before or peak_mb() > 300
