"""How well a presence score tells items that hold the queried sound from items that do not."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float64

from auralign.errors import UsageError
from auralign.metrics.contract import MetricResult

NO_PRESENT = "no item in which the sound is present"
NO_ABSENT = "no item in which the sound is absent"


def _columns(
    score: Sequence[float] | Float[np.ndarray, " item"], present: Sequence[bool] | np.ndarray
) -> tuple[Float64[np.ndarray, " item"], np.ndarray, str]:
    scores, truth = np.asarray(score, dtype=np.float64), np.asarray(present, dtype=bool)
    if scores.shape != truth.shape or scores.ndim != 1:
        raise UsageError(
            f"{scores.shape} scores, {truth.shape} labels",
            where="presence",
            hint="one score and one label per item",
        )
    if not np.isfinite(scores).all():
        return scores, truth, "a score is NaN or infinite"
    if not truth.any():
        return scores, truth, NO_PRESENT
    return scores, truth, "" if not truth.all() else NO_ABSENT


def roc_auc(
    *, score: Sequence[float] | Float[np.ndarray, " item"], present: Sequence[bool] | np.ndarray
) -> MetricResult:
    r"""Chance that a present item scores above an absent one, ties counting half.

    :math:`AUC = (\sum_{i \in P} R_i - n_P(n_P+1)/2) / (n_P n_A)` with mid-ranks :math:`R`; exact
    (Hanley and McNeil 1982; the Mann-Whitney statistic).

    >>> roc_auc(score=[0.9, 0.5, 0.5, 0.1], present=[True, True, False, False]).value
    0.875
    """
    scores, truth, reason = _columns(score, present)
    if reason:
        return MetricResult(math.nan, reason)
    _, level, count = np.unique(scores, return_inverse=True, return_counts=True)
    mid_rank = np.cumsum(count) - (count - 1) / 2
    n_present = int(truth.sum())
    excess = mid_rank[level][truth].sum() - n_present * (n_present + 1) / 2
    return MetricResult(float(excess / (n_present * (truth.size - n_present))))


def average_precision(
    *, score: Sequence[float] | Float[np.ndarray, " item"], present: Sequence[bool] | np.ndarray
) -> MetricResult:
    r"""Area under the precision-recall steps: :math:`\sum_k (R_k - R_{k-1}) P_k` over distinct thresholds.

    No interpolation; items with equal scores enter together, so their order does not matter.

    >>> average_precision(score=[0.9, 0.8, 0.1], present=[True, False, True]).value
    0.8333333333333333
    """
    scores, truth, reason = _columns(score, present)
    if reason:
        return MetricResult(math.nan, reason)
    _, level = np.unique(-scores, return_inverse=True)
    n_taken = np.cumsum(np.bincount(level))
    n_hits = np.cumsum(np.bincount(level, weights=truth))
    recall_step = np.diff(n_hits, prepend=0.0) / truth.sum()
    return MetricResult(float((recall_step * n_hits / n_taken).sum()))
