r"""What a trial's rows say: means of every arm, paired differences, and three views of how sure they are.

The unit is one item and query. An arm's value is the mean over its models (seeds); a difference is taken within the
item. The item interval resamples items. The recording interval resamples groups of items whose target comes from one
recording; it is the honest one, because a list asks for the same recordings many times. Neither covers that interferers
recur too, nor the choice of training seed: for that every seed's own difference is listed.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from jaxtyping import Bool, Float, Shaped

from auralign.evaluation.items import Modality
from auralign.evaluation.table import Row
from auralign.evaluation.trial_judge import ANCHORS
from auralign.evaluation.trial_score import METRICS, Contender
from auralign.metrics import statistics
from auralign.metrics.contract import METRICS as CARDS

DOMAINS = {"cross": "cross-domain", "unseen": "unseen classes"}
ALL = "all"
_NO_WINNER = ("level_change_db",)
_COLUMNS = (*METRICS, *ANCHORS)


@dataclass(frozen=True)
class Scores:
    """All rows of a trial as one array an arm, with the same items in the same order."""

    values: dict[str, Float[np.ndarray, "item _ metric"]]
    """By arm; nan where there is no score."""
    lists: Shaped[np.ndarray, " item"]
    """Name of the list."""
    items: Shaped[np.ndarray, " item"]
    """The mixture."""
    queries: Shaped[np.ndarray, " item"]
    """Query modality."""
    sources: Shaped[np.ndarray, " item"]
    """Recording of the target."""
    domains: Shaped[np.ndarray, " item"]
    """in-domain, cross-domain or unseen classes."""


def gather(rows: Iterable[Row], contenders: Sequence[Contender]) -> Scores:
    """Arrange rows by item and query; a row that is missing or failed is nan."""
    seeds = Counter(one.arm for one in contenders)
    known = {(one.arm, one.sha256): one.seed for one in contenders}
    keys: dict[tuple[str, str, str], int] = {}
    about: list[tuple[str, str]] = []
    placed: list[tuple[int, str, int, list[float]]] = []
    for row in rows:
        seed = known.get((str(row["arm"]), str(row["model"])))
        if seed is None:
            continue
        key = (str(row["list"]), str(row["id"]), str(row["query"]))
        number = keys.setdefault(key, len(keys))
        if number == len(about):
            about.append(("", ""))
        if row.get("source"):
            about[number] = (str(row["source"]), DOMAINS.get(str(row.get("split")), "in-domain"))
        placed.append((number, str(row["arm"]), seed, [_number(row.get(name)) for name in _COLUMNS]))
    values = {arm: np.full((len(keys), count, len(_COLUMNS)), np.nan) for arm, count in seeds.items()}
    for number, arm, seed, scores in placed:
        values[arm][number, seed] = scores
    names = list(keys)
    return Scores(
        values,
        np.array([key[0] for key in names], dtype=object),
        np.array([f"{key[0]}/{key[1]}" for key in names], dtype=object),
        np.array([key[2] for key in names], dtype=object),
        np.array([source for source, _ in about], dtype=object),
        np.array([domain or "in-domain" for _, domain in about], dtype=object),
    )


def slices(scores: Scores) -> Iterator[tuple[str, str, Bool[np.ndarray, " item"]]]:
    """(pool, query, which items): every list, every domain of several lists; every query, all together."""
    pools = [(str(name), scores.lists == name) for name in dict.fromkeys(scores.lists)]
    for domain in dict.fromkeys(scores.domains):
        inside = scores.domains == domain
        if len(set(scores.lists[inside])) > 1:
            pools.append((str(domain), inside))
    queries = [query for query in get_args(Modality) if (scores.queries == query).any()]
    for pool, inside in pools:
        for query in queries:
            chosen = inside & (scores.queries == query)
            if chosen.any():
                yield pool, query, chosen
        if len(queries) > 1:
            yield pool, ALL, inside


def compare_arms(
    scores: Scores, *, resamples: int = statistics.RESAMPLES, seed: int = 0
) -> list[dict[str, Any]]:
    """One row per slice, pair of arms and metric: the difference of the arm named first and the later one.

    Args:
        scores: Of all arms.
        resamples: Bootstrap resamples.
        seed: Of the bootstrap.
    """
    found = []
    pairs = list(itertools.combinations(scores.values, 2))
    for pool, query, chosen in slices(scores):
        parts = {arm: values[chosen] for arm, values in scores.values.items()}
        # a pair's value is the mean over seeds; one seed without a score leaves the pair without one
        means = {arm: values.mean(axis=1) for arm, values in parts.items()}
        columns = np.concatenate([means[a] - means[b] for a, b in pairs], axis=1)
        by_item = statistics.shared_intervals(
            columns, list(scores.items[chosen]), resamples=resamples, seed=seed
        )
        groups = list(scores.sources[chosen])
        by_group = statistics.shared_intervals(columns, groups, resamples=resamples, seed=seed)
        for n, (a, b) in enumerate(pairs):
            for m, metric in enumerate(METRICS):
                at = n * len(_COLUMNS) + m
                if not np.isfinite(columns[:, at]).any():
                    continue
                found.append(
                    {"pool": pool, "query": query, "a": a, "b": b, "metric": metric}
                    | _difference(means[a][:, m], means[b][:, m], metric)
                    | {"groups": len({g for g, v in zip(groups, columns[:, at], strict=True) if v == v})}
                    | {"item_ci": by_item[:, at].tolist(), "ci": by_group[:, at].tolist()}
                    | _seeds(parts[a][:, :, m], parts[b][:, :, m])
                )
    return found


def _difference(a: Float[np.ndarray, " item"], b: Float[np.ndarray, " item"], metric: str) -> dict[str, Any]:
    """Mean difference and win rate; an output without a score lost where the other arm has one."""
    difference = a - b
    larger = not (metric in CARDS and not CARDS[metric].larger_is_better)
    won = np.where(
        np.isfinite(a) & ~np.isfinite(b), 1.0, np.where(np.isfinite(b) & ~np.isfinite(a), -1.0, 0.0)
    )
    won = np.where(np.isfinite(difference), np.sign(difference) * (1 if larger else -1), won)
    scored = np.isfinite(a) | np.isfinite(b)
    return {
        "n": int(np.isfinite(difference).sum()),
        "n_unscored": int((~np.isfinite(difference)).sum()),
        "difference": statistics.mean(difference),
        "win_rate": None if metric in _NO_WINNER else statistics.win_rate(won[scored]),
    }


def _seeds(a: Float[np.ndarray, "item seed"], b: Float[np.ndarray, "item other"]) -> dict[str, Any]:
    """Each model's mean over the items that all models have, and seed by seed differences for equal numbers."""
    both = np.isfinite(a).all(axis=1) & np.isfinite(b).all(axis=1)
    a_means, b_means = a[both].mean(axis=0), b[both].mean(axis=0)
    pairs = (a_means - b_means).tolist() if len(a_means) == len(b_means) else []
    return {"a_seeds": a_means.tolist(), "b_seeds": b_means.tolist(), "seed_differences": pairs}


def summarise_arms(scores: Scores) -> list[dict[str, Any]]:
    """One row per slice and arm: mean of every metric over items and seeds, and the spread of the seeds' means."""
    found = []
    for pool, query, chosen in slices(scores):
        for arm, values in scores.values.items():
            part = values[chosen]
            row: dict[str, Any] = {"pool": pool, "query": query, "arm": arm}
            row |= {"n": int(chosen.sum()), "models": part.shape[1]}
            row["groups"] = len(set(scores.sources[chosen]))
            row["unscored"] = int(np.isnan(part[:, :, METRICS.index("si_sdri")]).any(axis=1).sum())
            for m, metric in enumerate(_COLUMNS):
                row[metric] = statistics.mean(part[:, :, m].ravel())
            means = [statistics.mean(part[:, s, METRICS.index("si_sdri")]) for s in range(part.shape[1])]
            row["si_sdri_seeds"] = means
            found.append({k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()})
    return found


def mean_rows(rows: Iterable[Row], contenders: Sequence[Contender]) -> list[Row]:
    """One row per item, query and arm: scores averaged over the arm's models, nan when one has none."""
    known = {(one.arm, one.sha256) for one in contenders}
    kept: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in rows:
        if (str(row["arm"]), str(row["model"])) in known:
            kept[tuple(str(row[name]) for name in ("list", "id", "query", "arm"))].append(row)
    found: list[Row] = []
    for (name, item, query, arm), group in kept.items():
        head: Row = {"list": name, "id": item, "query": query, "system": arm, "models": len(group)}
        told = {key: group[0].get(key) for key in ("class", "interferer", "split", "source", "asked")}
        means = {key: float(np.mean([_number(row.get(key)) for row in group])) for key in _COLUMNS}
        reasons = "; ".join(dict.fromkeys(str(row["reason"]) for row in group if row.get("reason")))
        found.append(head | told | means | {"reason": reasons})
    return found


def unscored_reasons(rows: Iterable[Row]) -> Mapping[str, int]:
    """How often each reason occurs."""
    return dict(Counter(f"{row['arm']}: {row['reason']}" for row in rows if row.get("reason")).most_common())


def _number(cell: object) -> float:
    return float(cell) if isinstance(cell, int | float) else math.nan
