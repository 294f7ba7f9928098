r"""What rows of enhanced speech say: means, paired differences, noise levels, vetoes, the best safe arm.

The unit is one recording. An arm's value is the mean over its models (seeds); a difference is taken within the
recording. The first interval resamples recordings, the second one speakers. Neither covers the choice of training
seed: every seed's own difference is listed.

The veto is the one used with FlowSE-GRPO: an arm that gained in one metric must not have lost in others. A metric is
*safe* when the lower end of its interval stays above the limit, *harmed* when the upper end lies below it, and *open*
when there are too few recordings to tell. An arm is as good as its worst metric.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Shaped

from auralign.evaluation.enhancement_score import METRICS
from auralign.evaluation.enhancement_systems import System
from auralign.evaluation.table import Row
from auralign.metrics import statistics

LIMITS: Mapping[str, float] = {
    "dnsmos_sig": -0.03,
    "speaker_similarity": -0.02,
    "spectral_features": -0.005,
    "estoi": -0.005,
    "pesq_wb": -0.05,
}
"""How much an arm may lose against the base."""
ALL = "all lists"
EDGES_DB = (0.0, 5.0, 10.0, 15.0)
Verdict = Literal["safe", "open", "harmed", "not measured"]


@dataclass(frozen=True)
class Scores:
    """All rows as one array an arm, with the same recordings in the same order."""

    values: dict[str, Float[np.ndarray, "item _ metric"]]
    """By arm; nan where there is no score."""
    lists: Shaped[np.ndarray, " item"]
    """Name of the list."""
    names: Shaped[np.ndarray, " item"]
    """List and recording."""
    speakers: Shaped[np.ndarray, " item"]
    """Who speaks; the recording's own name where nobody knows."""
    snr_db: Float[np.ndarray, " item"]
    """Speech against noise, nan where unknown."""
    metrics: tuple[str, ...]
    """Columns."""

    def mean(self, arm: str) -> Float[np.ndarray, "item metric"]:
        """Mean over the models of an arm; nan when one of them has no score."""
        return np.asarray(self.values[arm].mean(axis=1))


def gather(rows: Iterable[Row], systems: Sequence[System], metrics: Sequence[str] = METRICS) -> Scores:
    """Arrange rows by recording; one that is missing or failed is nan."""
    known = {(one.arm, one.seed): one for one in systems}
    counts = Counter(one.arm for one in systems)
    keys: dict[str, int] = {}
    about: list[Row] = []
    placed: list[tuple[int, str, int, list[float]]] = []
    for row in rows:
        if (row["arm"], row["seed"]) not in known:
            continue
        name = f"{row['list']}/{row['id']}"
        number = keys.setdefault(name, len(keys))
        if number == len(about):
            about.append(row)
        numbers = [_number(row.get(metric)) for metric in metrics]
        placed.append((number, str(row["arm"]), int(str(row["seed"])), numbers))
    values = {arm: np.full((len(keys), count, len(metrics)), np.nan) for arm, count in counts.items()}
    for number, arm, seed, numbers in placed:
        values[arm][number, seed] = numbers
    names = list(keys)
    return Scores(
        values,
        np.array([str(row["list"]) for row in about], dtype=object),
        np.array(names, dtype=object),
        np.array([str(row["speaker"] or name) for row, name in zip(about, names, strict=True)], dtype=object),
        np.array([_number(row["snr_db"]) for row in about]),
        tuple(metrics),
    )


def pools(scores: Scores) -> Iterator[tuple[str, Bool[np.ndarray, " item"]]]:
    """Every list, and all together when there are several."""
    names = list(dict.fromkeys(scores.lists))
    for name in names:
        yield str(name), scores.lists == name
    if len(names) > 1:
        yield ALL, np.full(len(scores.lists), True)


def means(scores: Scores, *, seed: int = 0) -> list[dict[str, Any]]:
    """One row per pool and arm: the mean of every metric with its interval over recordings."""
    found = []
    for pool, chosen in pools(scores):
        for arm, values in scores.values.items():
            part = scores.mean(arm)[chosen]
            ends = statistics.shared_intervals(part, list(scores.names[chosen]), seed=seed)
            row: dict[str, Any] = {"list": pool, "system": arm, "n": int(chosen.sum())}
            row |= {"models": values.shape[1], "speakers": len(set(scores.speakers[chosen]))}
            for m, metric in enumerate(scores.metrics):
                row[metric] = statistics.mean(part[:, m])
                row[f"{metric}_ci"] = ends[:, m].tolist()
                row[f"{metric}_nan"] = int(np.isnan(part[:, m]).sum())
                if values.shape[1] > 1:
                    row[f"{metric}_seeds"] = [statistics.mean(x) for x in values[chosen][:, :, m].T]
            found.append(row)
    return found


def compare(
    scores: Scores,
    versus: Sequence[str],
    *,
    leave_out: Collection[str] = (),
    resamples: int = statistics.RESAMPLES,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """One row per pool, arm, rival and metric: the arm's value minus the rival's.

    Args:
        scores: Of all arms.
        versus: The rivals, in order; every other arm is compared with each.
        leave_out: Arms that are not compared, such as the oracle.
        resamples: Bootstrap resamples.
        seed: Of the bootstrap.
    """
    pairs = [(a, b) for b in versus for a in scores.values if a != b and a not in leave_out]
    pairs = [(a, b) for n, (a, b) in enumerate(pairs) if (b, a) not in pairs[:n]]
    found: list[dict[str, Any]] = []
    if not pairs:
        return found
    for pool, chosen in pools(scores):
        columns = np.concatenate([(scores.mean(a) - scores.mean(b))[chosen] for a, b in pairs], axis=1)
        settings = {"resamples": resamples, "seed": seed}
        by_item = statistics.shared_intervals(columns, list(scores.names[chosen]), **settings)
        by_voice = statistics.shared_intervals(columns, list(scores.speakers[chosen]), **settings)
        for n, (a, b) in enumerate(pairs):
            for m, metric in enumerate(scores.metrics):
                at = n * len(scores.metrics) + m
                difference = columns[:, at]
                if not np.isfinite(difference).any():
                    continue
                found.append(
                    {
                        "list": pool,
                        "system": a,
                        "versus": b,
                        "metric": metric,
                        "n": int(np.isfinite(difference).sum()),
                        "n_nan": int(np.isnan(difference).sum()),
                        "difference": statistics.mean(difference),
                        "ci": by_item[:, at].tolist(),
                        "speaker_ci": by_voice[:, at].tolist(),
                        "win_rate": statistics.win_rate(difference),
                        "seeds": _seed_differences(scores.values[a], scores.values[b], chosen, m),
                    }
                )
    return found


def _seed_differences(
    a: Float[np.ndarray, "item seed metric"],
    b: Float[np.ndarray, "item other metric"],
    chosen: Bool[np.ndarray, " item"],
    metric: int,
) -> list[float]:
    """Each model of the arm against the mean of the rival's models; against the one of its number when equally many."""
    left, right = a[chosen][:, :, metric], b[chosen][:, :, metric]
    if left.shape[1] != right.shape[1]:
        right = right.mean(axis=1, keepdims=True)
    return [statistics.mean(column) for column in (left - right).T]


def by_noise_level(scores: Scores) -> list[dict[str, Any]]:
    """One row per pool, band of SNR and arm: the means."""
    found = []
    band = np.digitize(scores.snr_db, EDGES_DB)
    for pool, chosen in pools(scores):
        for n in range(len(EDGES_DB) + 1):
            inside = chosen & (band == n) & np.isfinite(scores.snr_db)
            for arm in scores.values:
                if not inside.any():
                    continue
                row: dict[str, Any] = {"list": pool, "snr": _band_name(n), "system": arm}
                row |= {"n": int(inside.sum()), "snr_db": statistics.mean(scores.snr_db[inside])}
                columns = scores.mean(arm)[inside].T
                found.append(
                    row | {name: statistics.mean(x) for name, x in zip(scores.metrics, columns, strict=True)}
                )
    return found


def _band_name(n: int) -> str:
    if n == 0:
        return f"below {EDGES_DB[0]:g} dB"
    if n == len(EDGES_DB):
        return f"{EDGES_DB[-1]:g} dB and more"
    return f"{EDGES_DB[n - 1]:g} to {EDGES_DB[n]:g} dB"


def verdict(low: float, high: float, limit: float) -> Verdict:
    """What an interval says about a limit.

    >>> verdict(-0.01, 0.05, -0.03), verdict(-0.09, 0.05, -0.03), verdict(-0.09, -0.05, -0.03)
    ('safe', 'open', 'harmed')
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        return "not measured"
    return "safe" if low >= limit else "harmed" if high < limit else "open"


def vetoes(comparisons: Sequence[Mapping[str, Any]], base: str) -> list[dict[str, Any]]:
    """One row per pool and arm that was compared with the base: the verdict of each limit, and the worst of them."""
    parts: dict[tuple[str, str], dict[str, Verdict]] = {}
    for row in comparisons:
        if row["versus"] != base:
            continue
        mine = parts.setdefault((row["list"], row["system"]), dict.fromkeys(LIMITS, "not measured"))
        if row["metric"] in LIMITS:
            low, high = row["ci"]
            mine[row["metric"]] = verdict(low, high, LIMITS[row["metric"]])
    found = []
    for (pool, arm), said in parts.items():
        heard = set(said.values())
        worst = next((word for word in ("harmed", "open", "safe") if word in heard), "not measured")
        found.append({"list": pool, "system": arm, "versus": base, "verdict": worst, **said})
    return found


def best_safe(
    rows: Sequence[Mapping[str, Any]], checked: Sequence[Mapping[str, Any]], *, base: str, by: str
) -> list[dict[str, Any]]:
    """For each pool the arm with the best mean among the safe ones and the base itself.

    Args:
        rows: Of :func:`means`.
        checked: Of :func:`vetoes`.
        base: The arm that stays when no other is safe.
        by: Metric that chooses.
    """
    safe = {(row["list"], row["system"]) for row in checked if row["verdict"] == "safe"}
    found = []
    for pool in dict.fromkeys(row["list"] for row in checked):
        value = {row["system"]: float(row[by]) for row in rows if row["list"] == pool}
        allowed = {
            name: mean
            for name, mean in value.items()
            if math.isfinite(mean) and (name == base or (pool, name) in safe)
        }
        if allowed:
            best = max(allowed, key=lambda name: (allowed[name], name == base))
            found.append(
                {"list": pool, "choice": best, "by": by, "mean": allowed[best], "safe": len(allowed) - 1}
            )
    return found


def reasons(rows: Iterable[Row]) -> dict[str, int]:
    """How often each reason occurs."""
    return dict(Counter(f"{row['arm']}: {row['reason']}" for row in rows if row.get("reason")).most_common())


def _number(cell: object) -> float:
    return float(cell) if isinstance(cell, int | float) else math.nan
