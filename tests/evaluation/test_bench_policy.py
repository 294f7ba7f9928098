from __future__ import annotations

import pytest

from auralign.errors import AuralignError
from auralign.evaluation import bench_policy
from auralign.evaluation.bench_policy import CASES, Work, bench

SMALL = {"small": Work(2, 3, 8, 9)}


def test_bench_reports_times_ratio_and_agreement():
    (entry,) = bench(cases=SMALL, repeats=1).values()
    assert entry["ratio"] == pytest.approx(entry["peer_s"] / entry["ours_s"])
    assert entry["max_difference"] < 1e-4
    assert "2×8×9 bins, 3 mask(s)" in str(entry["work"])
    assert CASES["beta_fused_vs_torch_distributions"] == Work(8, 1, 256, 256)


def test_a_disagreement_is_an_error_not_a_ratio(monkeypatch):
    monkeypatch.setattr(bench_policy, "KAPPA", 9.1)
    with pytest.raises(AuralignError, match="differs from torch"):
        bench(cases=SMALL, repeats=1)
