from __future__ import annotations

import numpy as np
import pytest

from auralign.errors import AuralignError
from auralign.evaluation import bench_metrics
from auralign.evaluation.bench_metrics import Work, bench, make_sounds

SMALL = Work(2, 1, 4_000)


def test_bench_reports_times_ratio_and_agreement_for_both_peers():
    entries = bench(sizes=(SMALL,), repeats=1, least_s=0.0, dnsmos_clips=0)
    assert set(entries) == {"bss_eval_vs_mir_eval/2src_1s_4000hz", "bss_eval_vs_fast_bss_eval/2src_1s_4000hz"}
    for entry in entries.values():
        assert entry["ratio"] == pytest.approx(entry["peer_s"] / entry["ours_s"])
        assert entry["max_difference_db"] < 1e-9
        assert "2 sources, 1 s at 4000 Hz" in str(entry["work"])


def test_a_peer_that_is_not_installed_is_skipped_with_a_reason(monkeypatch):
    def absent(est: np.ndarray, ref: np.ndarray) -> np.ndarray:
        raise ImportError("no module named peer")

    monkeypatch.setattr(bench_metrics, "PEERS", {"peer": absent})
    entries = bench(sizes=(SMALL,), repeats=1, least_s=0.0, dnsmos_clips=0)
    assert entries["bss_eval_vs_peer/2src_1s_4000hz"]["skipped"] == "not installed: no module named peer"


def test_a_disagreement_is_an_error_not_a_ratio(monkeypatch):
    monkeypatch.setattr(
        bench_metrics, "PEERS", {"peer": lambda est, ref: bench_metrics._ours(est, ref) + 1e-6}
    )
    with pytest.raises(AuralignError, match="differs from peer"):
        bench(sizes=(SMALL,), repeats=1, least_s=0.0, dnsmos_clips=0)


def test_the_work_is_the_same_every_time():
    for first, second in zip(make_sounds(SMALL), make_sounds(SMALL), strict=True):
        assert first.dtype == np.float32
        np.testing.assert_array_equal(first, second)


def test_dnsmos_is_timed_against_the_published_file_and_agrees():
    entries = bench(sizes=(), repeats=1, dnsmos_clips=2)
    assert set(entries) == {"dnsmos_vs_onnxruntime", "dnsmos_narrow_vs_onnxruntime"}
    for entry in entries.values():
        assert entry["ratio"] == pytest.approx(entry["peer_s"] / entry["ours_s"])
    assert entries["dnsmos_vs_onnxruntime"]["max_difference_mos"] < 1e-4
    with pytest.raises(AuralignError, match="differs from onnxruntime"):
        bench_metrics._mos_entry("x", 1.0, 1.0, np.asarray([[0.0, 0.2, 0.0]]), 0.05)
