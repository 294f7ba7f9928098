"""`auralign evaluate enhancement`: systems on the same noisy recordings, with paired intervals and vetoes.

An arm is a system or a way to train one; its models are its seeds. Every system enhances every recording, with noise
of its own that follows from the seed and the recording's name alone; then all metrics hear it. An interrupted
evaluation goes on where it stopped: a row is finished when its samples, weights, steps, seed and metrics are in the
folder.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from auralign.errors import DataError, UsageError
from auralign.evaluation.enhancement_items import RATE_HZ, SpeechItem, check_items
from auralign.evaluation.enhancement_page import write_pages
from auralign.evaluation.enhancement_score import (
    NO_REFERENCE,
    Loudness,
    Scores,
    SpeechScorer,
    check_metrics,
)
from auralign.evaluation.enhancement_statistics import (
    ALL,
    best_safe,
    by_noise_level,
    compare,
    gather,
    means,
    reasons,
    vetoes,
)
from auralign.evaluation.enhancement_systems import CLEAN, NOISY, System, open_arms
from auralign.evaluation.table import Row
from auralign.evaluation.trial_rows import RowFiles
from auralign.metrics.contract import METRICS as CARDS
from auralign.metrics.contract import MetricResult
from auralign.models.enhancer import Enhancer
from auralign.runtime.environment import snapshot
from auralign.runtime.seed import derive

Progress = Callable[[float, float, str], None]
AT_ONCE = 8
"""Recordings that are scored together, and at most so many are lost by an interruption."""
KEY = ("list", "id", "sounds", "model", "steps", "noise_seed", "loudness")


@dataclass(frozen=True)
class EnhancementConfig:
    """What is compared, on what."""

    arms: tuple[tuple[str, tuple[str, ...]], ...]
    """Name of each arm and its systems: noisy, clean, log-mmse, nsnet2, gtcrn, or models, one a seed."""
    versus: tuple[str, ...] = (NOISY,)
    """Arms that the others are compared with."""
    base: str = ""
    """Arm that the vetoes guard; empty leaves them out."""
    best_by: str = "dnsmos_ovrl"
    """Metric that chooses among the safe arms."""
    metrics: tuple[str, ...] = ()
    """Metrics; all by default."""
    loudness: Loudness = "keep"
    """Whether metrics that follow the level hear outputs as they are, or all at one loudness."""
    seed: int = 0
    """Of the enhancers' noise and the bootstrap."""
    device: str = "cpu"
    """Where models run."""
    rows: Path | None = None
    """Folder of finished rows that several evaluations share, one at a time; in the output folder by default."""


@dataclass(frozen=True)
class EnhancementResult:
    """Summary in plain values, and how many rows failed."""

    summary: dict[str, Any]
    """As in ``summary.json``."""
    rows: list[Row]
    """One per recording and system."""

    @property
    def failed(self) -> int:
        """Rows that an error left without a score."""
        return sum(bool(row["failed"]) for row in self.rows)


def run_enhancement(
    cfg: EnhancementConfig,
    items: Sequence[SpeechItem],
    out: Path,
    *,
    on_progress: Progress | None = None,
) -> EnhancementResult:
    """Score all arms and write ``rows.jsonl``, ``summary.json``, ``table.md`` and ``report.html``.

    Args:
        cfg: What is compared.
        items: On what.
        out: Folder of the evaluation; one that holds a part of it is completed.
        on_progress: Called with finished recordings, all of them, and the system's name.
    """
    _check_names(cfg)
    items, systems, metrics = check_items(items), open_arms(cfg.arms), check_metrics(cfg.metrics)
    files = RowFiles(cfg.rows or out / "rows", key=KEY, file=("model_file", "list"))
    scorer = SpeechScorer(metrics, loudness=cfg.loudness)
    began, done, spent = time.monotonic(), 0, dict.fromkeys((one.arm for one in systems), 0.0)
    kept = files.read()
    for system in systems:
        todo = [item for item in items if not _finished(kept.get(_key(cfg, system, item)), metrics)]
        done += len(items) - len(todo)
        enhancer = system.open(device=cfg.device) if todo else None
        for first in range(0, len(todo), AT_ONCE):
            start, part = time.monotonic(), todo[first : first + AT_ONCE]
            files.append(_score(cfg, system, enhancer, part, scorer))
            spent[system.arm] += time.monotonic() - start
            done += len(part)
            if on_progress is not None:
                on_progress(done, len(items) * len(systems), system.arm)
    kept = files.read()
    rows = [_row_of(kept[_key(cfg, one, item)], one, metrics) for one in systems for item in items]
    cost = {
        "wall_s": round(time.monotonic() - began, 1),
        "s_by_system": {name: round(s, 2) for name, s in spent.items()},
        "s_by_metric": {name: round(s, 2) for name, s in scorer.seconds.items()},
    }
    summary = _summarise(cfg, systems, rows, metrics, cost)
    write_pages(out, summary, rows)
    return EnhancementResult(summary, rows)


def _check_names(cfg: EnhancementConfig) -> None:
    named = [name for name, _ in cfg.arms]
    for asked in (*cfg.versus, *filter(None, (cfg.base,))):
        if asked not in named:
            raise UsageError(f"no arm is called {asked!r}", hint=f"arms: {', '.join(named)}")
    if cfg.best_by not in check_metrics(cfg.metrics) and cfg.base:
        raise UsageError(f"{cfg.best_by} is not measured", where="--best-by", hint="add it to --metrics")


def _key(cfg: EnhancementConfig, system: System, item: SpeechItem) -> tuple[str, ...]:
    row = _about(cfg, system, item)
    return tuple(str(row[name]) for name in KEY)


def _about(cfg: EnhancementConfig, system: System, item: SpeechItem) -> Row:
    """What is known of a row before anything is computed."""
    return {
        "list": item.list,
        "id": item.id,
        "sounds": item.sounds,
        "model": system.sha256,
        "model_file": system.sha256[:12],
        "steps": system.steps,
        "noise_seed": cfg.seed,
        "loudness": cfg.loudness,
        "speaker": item.speaker,
        "noise": item.noise,
        "snr_db": item.snr_db,
    }


def _finished(row: Row | None, metrics: Sequence[str]) -> bool:
    return row is not None and not row["failed"] and all(name in row for name in metrics)


def _row_of(row: Row, system: System, metrics: Sequence[str]) -> Row:
    """A kept row as a row of this system, with the metrics of this evaluation."""
    head: Row = {"list": row["list"], "id": row["id"], "system": system.arm}
    head |= {"arm": system.arm, "seed": system.seed}
    hidden = {*head, *CARDS, "model_file", "sounds"}
    scores: Row = {name: _number(row.get(name)) for name in metrics}
    return head | scores | {key: value for key, value in row.items() if key not in hidden}


def _score(
    cfg: EnhancementConfig,
    system: System,
    enhancer: Enhancer | None,
    items: Sequence[SpeechItem],
    scorer: SpeechScorer,
) -> list[Row]:
    """Rows of one system on a few recordings; whatever fails becomes the reason."""
    rows: list[Row] = []
    outputs: dict[int, Float[Tensor, " _"]] = {}
    for n, item in enumerate(items):
        row: Row = _about(cfg, system, item) | {"enhance_s": None, "failed": False, "reason": ""}
        began = time.perf_counter()
        try:
            outputs[n] = _enhance(cfg, system, enhancer, item)
            row["enhance_s"] = round(time.perf_counter() - began, 4)
        except NoReferenceError:
            row["reason"] = NO_REFERENCE
        except Exception as error:  # a recording must never stop the run
            row |= {"failed": True, "reason": _said(error)}
        rows.append(row | dict.fromkeys(scorer.metrics, math.nan) | {"seconds": len(item.noisy) / RATE_HZ})
    for n, scores in _scores_of(outputs, items, scorer, rows).items():
        rows[n] |= {name: one.value for name, one in scores.items()} | {"reason": _grouped(scores)}
    return rows


def _scores_of(
    outputs: dict[int, Float[Tensor, " _"]],
    items: Sequence[SpeechItem],
    scorer: SpeechScorer,
    rows: list[Row],
) -> dict[int, Scores]:
    """All outputs together; one by one when something fails, so that only the one that fails has no score."""
    numbers = list(outputs)
    try:
        return dict(
            zip(numbers, scorer([outputs[n] for n in numbers], [items[n] for n in numbers]), strict=True)
        )
    except Exception:
        found: dict[int, Scores] = {}
        for n in numbers:
            try:
                found[n] = scorer([outputs[n]], [items[n]])[0]
            except Exception as error:  # the other recordings keep their scores
                rows[n] |= {"failed": True, "reason": _said(error)}
        return found


class NoReferenceError(Exception):
    """The oracle is asked for a recording whose clean speech nobody knows."""


def _enhance(
    cfg: EnhancementConfig, system: System, enhancer: Enhancer | None, item: SpeechItem
) -> Float[Tensor, " _"]:
    if system.place == NOISY:
        return item.noisy
    if system.place == CLEAN:
        if item.clean is None:
            raise NoReferenceError
        return item.clean
    assert enhancer is not None
    seed = derive(cfg.seed, "enhance", item.list, item.id)
    found = enhancer.enhance_wave(item.noisy[None], steps=system.steps, seed=seed)[0].detach().cpu().float()
    if found.shape != item.noisy.shape:
        raise DataError(f"the output has {len(found)} samples, the input {len(item.noisy)}", where=item.id)
    return torch.clone(found)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".replace("\n", " ").strip()


def _grouped(scores: dict[str, MetricResult]) -> str:
    """Each reason once, with the metrics it concerns when not all share it."""
    told: dict[str, list[str]] = {}
    for name, score in scores.items():
        if score.reason:
            told.setdefault(score.reason, []).append(name)
    return "; ".join(
        reason if len(names) == len(scores) else f"{reason} ({', '.join(names)})"
        for reason, names in told.items()
    )


def _number(cell: object) -> float:
    return float(cell) if isinstance(cell, int | float) else math.nan


def _summarise(
    cfg: EnhancementConfig,
    systems: Sequence[System],
    rows: Sequence[Row],
    metrics: tuple[str, ...],
    cost: dict[str, Any],
) -> dict[str, Any]:
    scores = gather(rows, systems, metrics)
    table = means(scores, seed=cfg.seed)
    for row in table:
        mine = [one for one in rows if one["arm"] == row["system"] and one["enhance_s"]]
        inside = [one for one in mine if row["list"] in (one["list"], ALL)]
        took = sum(_number(one["enhance_s"]) for one in inside)
        row["times_real_time"] = sum(_number(one["seconds"]) for one in inside) / took if took else None
    rivals = list(dict.fromkeys((*cfg.versus, *filter(None, (cfg.base,)))))
    oracles = {one.arm for one in systems if one.place == CLEAN}
    compared = compare(scores, rivals, leave_out=oracles - set(rivals), seed=cfg.seed)
    checked = vetoes(compared, cfg.base) if cfg.base else []
    return {
        "title": "Enhancement: " + ", ".join(name for name, _ in cfg.arms),
        "systems": {
            name: [
                {"model": one.place, "sha256": one.sha256[:12], "steps": one.steps}
                for one in systems
                if one.arm == name
            ]
            for name, _ in cfg.arms
        },
        "trained_on": {
            name: [m for m in metrics if any(m in one.trained_on for one in systems if one.arm == name)]
            for name, _ in cfg.arms
        },
        "lists": list(dict.fromkeys(str(row["list"]) for row in rows)),
        "metrics": list(metrics),
        "loudness": cfg.loudness,
        "seed": cfg.seed,
        "reasons": reasons(rows),
        "cost": cost,
        "environment": snapshot(),
        "rows": table,
        "comparisons": compared,
        "by_noise_level": by_noise_level(scores),
        "vetoes": checked,
        "choice": best_safe(table, checked, base=cfg.base, by=cfg.best_by) if checked else [],
    }
