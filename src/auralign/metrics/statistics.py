"""Means that say how sure they are: standard errors, bootstrap intervals, paired differences, class averages.

Every function takes one value per item, leaves nan items out and counts them. Intervals are percentile
bootstraps over items (Efron 1979) with their own seeded generator, so a table always prints the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Float, Float64, Shaped

from auralign.errors import UsageError

RESAMPLES = 10_000
"""Bootstrap resamples behind every published interval."""

LEVEL = 0.95
"""Coverage of every published interval."""

_DRAWS_AT_ONCE = 2_000_000

Values = Sequence[float] | Float[np.ndarray, " item"]


@dataclass(frozen=True)
class Summary:
    """A column of numbers in one line."""

    n: int
    """Items with a number."""
    n_nan: int
    """Items without one."""
    mean: float
    """Mean of the items with a number."""
    standard_error: float
    """Sample standard deviation (n − 1) over √n; nan below two items."""
    median: float
    """Median."""
    ci_low: float
    """Lower end of the bootstrap interval of the mean."""
    ci_high: float
    """Upper end of the bootstrap interval of the mean."""

    def as_dict(self) -> dict[str, float | int]:
        """Plain numbers, for JSON."""
        return dict(asdict(self))


@dataclass(frozen=True)
class PairedDifference:
    """System A against system B on the items both could be scored on."""

    n: int
    """Pairs with two numbers."""
    n_nan: int
    """Pairs in which at least one has none."""
    mean: float
    """Mean of A − B."""
    standard_error: float
    """Standard error of the mean difference."""
    ci_low: float
    """Lower end of the paired bootstrap interval."""
    ci_high: float
    """Upper end of the paired bootstrap interval."""
    win_rate: float
    """Share of pairs in which A is larger; a tie counts half."""

    def as_dict(self) -> dict[str, float | int]:
        """Plain numbers, for JSON."""
        return dict(asdict(self))


def _column(values: Values) -> Float64[np.ndarray, " item"]:
    column = np.asarray(values, dtype=np.float64)
    if column.ndim != 1:
        raise UsageError(
            f"values have shape {column.shape}", where="statistics", hint="pass one value per item"
        )
    return column


def _finite(values: Values) -> Float64[np.ndarray, " kept"]:
    column = _column(values)
    kept: Float64[np.ndarray, " kept"] = column[np.isfinite(column)]
    return kept


def mean(values: Values) -> float:
    """Mean of the values that are numbers; nan when there is none.

    >>> mean([1.0, float("nan"), 3.0])
    2.0
    """
    kept = _finite(values)
    return float(kept.mean()) if kept.size else math.nan


def median(values: Values) -> float:
    """Median of the values that are numbers; nan when there is none."""
    kept = _finite(values)
    return float(np.median(kept)) if kept.size else math.nan


def standard_error(values: Values) -> float:
    r"""Standard error of the mean, :math:`\sqrt{\sum_i (x_i - \bar x)^2 / (n (n-1))}`; nan below two."""
    kept = _finite(values)
    return float(kept.std(ddof=1) / math.sqrt(kept.size)) if kept.size > 1 else math.nan


def _resampled_means(values: Float64[np.ndarray, " item"], *, resamples: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    at_once = max(1, _DRAWS_AT_ONCE // values.size)
    means: list[Float64[np.ndarray, " resample"]] = [
        values[generator.integers(values.size, size=(min(at_once, resamples - done), values.size))].mean(-1)
        for done in range(0, resamples, at_once)
    ]
    joined: np.ndarray = np.concatenate(means)
    return joined


def bootstrap_interval(
    values: Values, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean: (low, high); nan below two values.

    Args:
        values: One value per item.
        level: Coverage, between 0 and 1.
        resamples: Number of resamples with replacement.
        seed: Seed of the resampling.

    >>> bootstrap_interval([2.0, 2.0, 2.0])
    (2.0, 2.0)
    """
    if not 0 < level < 1 or resamples < 1:
        raise UsageError(
            f"level {level}, resamples {resamples}", where="bootstrap", hint="0 < level < 1, resamples ≥ 1"
        )
    kept = _finite(values)
    if kept.size < 2:
        return (math.nan, math.nan)
    means = _resampled_means(kept, resamples=resamples, seed=seed)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def summarise(values: Values, *, resamples: int = RESAMPLES, seed: int = 0) -> Summary:
    """Count, mean, standard error, median and 95 % interval of one column.

    >>> summarise([1.0, 3.0, float("nan")], resamples=100).mean
    2.0
    """
    kept = _finite(values)
    low, high = bootstrap_interval(kept, resamples=resamples, seed=seed)
    return Summary(
        n=int(kept.size),
        n_nan=len(_column(values)) - int(kept.size),
        mean=mean(kept),
        standard_error=standard_error(kept),
        median=median(kept),
        ci_low=low,
        ci_high=high,
    )


def win_rate(values: Values, *, threshold: float = 0.0) -> float:
    """Share of values above the threshold; a value on it counts half, nan values do not count.

    >>> win_rate([1.0, -1.0, 2.0, 0.0])
    0.625
    """
    kept = _finite(values)
    if not kept.size:
        return math.nan
    return float((kept > threshold).mean() + 0.5 * (kept == threshold).mean())


def paired_bootstrap(a: Values, b: Values, *, resamples: int = RESAMPLES, seed: int = 0) -> PairedDifference:
    """Difference A − B over items, resampling pairs: the interval that decides whether A is better.

    Args:
        a: Values of system A.
        b: Values of system B on the same items in the same order.
        resamples: Number of resamples with replacement.
        seed: Seed of the resampling.

    >>> paired_bootstrap([2.0, 3.0, 5.0], [1.0, 2.0, 4.0], resamples=100).mean
    1.0
    """
    left, right = _column(a), _column(b)
    if left.shape != right.shape:
        raise UsageError(
            f"{left.size} values against {right.size}",
            where="paired bootstrap",
            hint="pair them by item first",
        )
    difference = left - right
    low, high = bootstrap_interval(difference, resamples=resamples, seed=seed)
    kept = _finite(difference)
    return PairedDifference(
        n=int(kept.size),
        n_nan=int(difference.size - kept.size),
        mean=mean(kept),
        standard_error=standard_error(kept),
        ci_low=low,
        ci_high=high,
        win_rate=win_rate(kept),
    )


def _per_class(
    values: Values, classes: Sequence[str] | Shaped[np.ndarray, " item"], reduce: Callable[[Values], float]
) -> dict[str, float]:
    column = _column(values)
    if len(classes) != column.size:
        raise UsageError(
            f"{column.size} values, {len(classes)} classes", where="statistics", hint="one class per item"
        )
    names = np.asarray([str(name) for name in classes])
    return {str(name): reduce(column[names == name]) for name in np.unique(names)}


def class_means(values: Values, classes: Sequence[str]) -> dict[str, float]:
    """Mean of every class, by name; their :func:`mean` is AudioSep's figure for MUSIC.

    >>> class_means([1.0, 3.0, 10.0], ["a", "a", "b"])
    {'a': 2.0, 'b': 10.0}
    """
    return _per_class(values, classes, mean)


def class_medians(values: Values, classes: Sequence[str]) -> dict[str, float]:
    """Median of every class, by name; their :func:`mean` is AudioSep's figure for AudioSet."""
    return _per_class(values, classes, median)


def shared_intervals(
    columns: Float[np.ndarray, "item column"],
    clusters: Sequence[str],
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Float64[np.ndarray, "2 column"]:
    r"""Cluster bootstrap intervals of the means of many columns, from one set of resamples.

    Clusters, not items, are drawn with replacement (Davison, Hinkley 1997, Sec. 3.8), so that items which share a
    recording do not count as independent; a resample's mean is :math:`\sum_c w_c s_c / \sum_c w_c n_c` with the
    cluster's sum :math:`s_c` and count :math:`n_c`. With one item a cluster it is the plain bootstrap. A nan value
    leaves its item out of that column only; a column with fewer than two clusters has no interval.

    Args:
        columns: One row per item.
        clusters: What the items belong to.
        level: Coverage, between 0 and 1.
        resamples: Number of resamples with replacement.
        seed: Seed of the resampling.

    >>> shared_intervals(np.array([[1.0], [3.0], [1.0], [3.0]]), ["a", "a", "b", "b"]).tolist()
    [[2.0], [2.0]]
    """
    if len(clusters) != len(columns):
        raise UsageError(f"{len(columns)} items, {len(clusters)} clusters", where="bootstrap")
    _, member = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    n_clusters = int(member.max()) + 1 if member.size else 0
    ends = np.full((2, columns.shape[1]), np.nan)
    if n_clusters < 2:
        return ends
    seen = np.isfinite(columns)
    parts = np.zeros((n_clusters, 2, columns.shape[1]))
    np.add.at(parts, member, np.stack([np.where(seen, columns, 0.0), seen], axis=1))
    sums, counts = parts[:, 0], parts[:, 1]
    generator = np.random.default_rng(seed)
    at_once = max(1, _DRAWS_AT_ONCE // n_clusters)
    means = []
    for done in range(0, resamples, at_once):
        rows = min(at_once, resamples - done)
        drawn = (
            generator.integers(n_clusters, size=(rows, n_clusters)) + n_clusters * np.arange(rows)[:, None]
        )
        weight = (
            np.bincount(drawn.ravel(), minlength=rows * n_clusters).reshape(rows, n_clusters).astype(float)
        )
        with np.errstate(invalid="ignore"):
            means.append((weight @ sums) / (weight @ counts))
    found = (counts > 0).sum(0) > 1
    drawn_means = np.concatenate(means)[:, found]
    ends[:, found] = np.nanquantile(drawn_means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return ends
