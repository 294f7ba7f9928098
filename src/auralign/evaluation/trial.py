"""`auralign evaluate trial`: arms of models, several seeds each, on the same mixtures and queries.

An arm is a way to train; its models are its seeds. Every model answers every query of every mixture; differences are
taken within the item, averaged over seeds, and given with intervals that resample recordings. An interrupted trial
goes on where it stopped: a row is finished when its list, item, query, arm and weights are in the folder.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from auralign.errors import DataError, UsageError
from auralign.evaluation.items import Modality, SoundboxItems
from auralign.evaluation.table import Row
from auralign.evaluation.trial_judge import Precision
from auralign.evaluation.trial_page import write_pages
from auralign.evaluation.trial_pool import prepare, score_all
from auralign.evaluation.trial_rows import RowFiles
from auralign.evaluation.trial_score import PARTS, Contender, Setting, Work
from auralign.evaluation.trial_statistics import (
    compare_arms,
    gather,
    mean_rows,
    summarise_arms,
    unscored_reasons,
)
from auralign.models.separator import SeparatorModel
from auralign.runtime import weights
from auralign.runtime.environment import snapshot

Progress = Callable[[float, float, str], None]
QUERIES: tuple[Modality, ...] = ("text", "image", "audio", "combined")
LISTS = ("soundbox-vggsound-clean", "soundbox-cross")


@dataclass(frozen=True)
class TrialConfig:
    """What is compared, on what."""

    arms: tuple[tuple[str, tuple[str, ...]], ...]
    """Name of each arm and its models (names or folders), one a seed."""
    corpus: Path
    """Built corpus."""
    lists: tuple[str, ...] = LISTS
    """Frozen mixture lists."""
    queries: tuple[Modality, ...] = QUERIES
    """How the target is asked for."""
    limit: int | None = None
    """Only the first mixtures of each list."""
    judge: bool = False
    """Also score with the held-out judge."""
    judge_limit: int | None = None
    """The judge listens to the first mixtures of each list only."""
    judge_precision: Precision = "bfloat16"
    """Arithmetic of the judge."""
    workers: int = 2
    """Processes; 1 scores in this one."""
    seed: int = 0
    """Of audio examples and the bootstrap."""


@dataclass(frozen=True)
class TrialResult:
    """Summary in plain values, and how many rows failed."""

    summary: dict[str, Any]
    """As in ``summary.json``."""
    failed: int = 0
    """Rows that an error left without a score."""


@dataclass
class _Plan:
    """Work that is left, and what was counted on the way."""

    works: list[Work] = field(default_factory=list)
    finished: int = 0
    unaskable: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    keys: set[tuple[str, str, str]] = field(default_factory=set)
    lists: list[str] = field(default_factory=list)


def parse_arm(text: str) -> tuple[str, tuple[str, ...]]:
    """An arm as the command line writes it.

    >>> parse_arm("mars=a/model,b/model")
    ('mars', ('a/model', 'b/model'))
    """
    name, equals, models = text.partition("=")
    places = tuple(part.strip() for part in models.split(",") if part.strip())
    if not equals or not name.strip() or not places:
        raise UsageError(f"{text!r} is no arm", where="--arm", hint="write NAME=MODEL or NAME=MODEL,MODEL,…")
    return name.strip(), places


def run_trial(cfg: TrialConfig, out: Path, *, on_progress: Progress | None = None) -> TrialResult:
    """Score all arms and write ``rows.jsonl``, ``summary.json``, ``table.md`` and ``report.html``.

    Args:
        cfg: What is compared.
        out: Folder of the trial; one that holds a part of it is completed.
        on_progress: Called with finished mixtures, all of them, and the list's name.
    """
    contenders = open_arms(cfg.arms)
    items = SoundboxItems(cfg.corpus, seed=cfg.seed)
    out.mkdir(parents=True, exist_ok=True)
    _check_folder(cfg, out)
    files = RowFiles(out / "rows")
    plan = _plan(cfg, items, contenders, files.read())
    setting = Setting(cfg.corpus, contenders, cfg.seed, cfg.judge_precision if cfg.judge else None)
    began, seconds = time.monotonic(), dict.fromkeys(PARTS, 0.0)
    if plan.works:
        setting = prepare(setting, items, plan.works, cfg.workers)
        for done, scored in enumerate(score_all(setting, plan.works, cfg.workers), start=1):
            files.append(scored.rows)
            for part, spent in scored.seconds.items():
                seconds[part] += spent
            if on_progress is not None:
                on_progress(done, len(plan.works), str(scored.rows[0]["list"]))
    rows = [row for row in files.read().values() if _belongs(row, plan, contenders)]
    rows.sort(key=lambda row: plan.lists.index(str(row["list"])))
    cost = {
        "mixtures_scored": len(plan.works),
        "rows_kept": plan.finished,
        "wall_s": round(time.monotonic() - began, 1),
        "workers": cfg.workers,
        "ms_per_mixture": {part: round(1e3 * s / max(1, len(plan.works)), 1) for part, s in seconds.items()},
    }
    summary = _summarise(cfg, contenders, rows, plan, cost)
    write_pages(out, summary, mean_rows(rows, contenders))
    return TrialResult(summary, sum(bool(row.get("failed")) for row in rows))


def open_arms(arms: Sequence[tuple[str, tuple[str, ...]]]) -> tuple[Contender, ...]:
    """Find the models of all arms.

    Raises:
        UsageError: Fewer than two arms, a name twice, or one model twice in an arm.
    """
    names = [name for name, _ in arms]
    if len(names) < 2 or len(set(names)) != len(names):
        raise UsageError("a trial needs two or more arms with names of their own", hint="--arm NAME=MODEL,…")
    contenders = []
    for name, models in arms:
        found: dict[str, str] = {}
        for seed, model in enumerate(models):
            folder = Path(model) if Path(model).exists() else weights.path(model)
            file = folder / "model.safetensors" if folder.is_dir() else folder
            if not file.is_file():
                raise UsageError(
                    "there is no model", where=str(file), hint="give a folder with model.safetensors"
                )
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            if digest in found:
                raise UsageError(
                    f"{model} and {found[digest]} are the same weights", where=name, hint="a seed counts once"
                )
            SeparatorModel.load(folder)  # a damaged file is said here, not by a dying worker
            found[digest] = model
            contenders.append(Contender(name, seed, str(folder), digest))
    return tuple(contenders)


def _check_folder(cfg: TrialConfig, out: Path) -> None:
    """A folder holds one trial: other audio examples or another corpus would mix unlike rows."""
    digest = hashlib.sha256((cfg.corpus / "manifest.jsonl").read_bytes()).hexdigest()[:16]
    mine = {"corpus": digest, "seed": cfg.seed, "judge_precision": cfg.judge_precision}
    path = out / "trial.json"
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept != mine:
            raise UsageError(
                "the folder holds a trial with other settings", where=str(path), why=f"{kept}, not {mine}"
            )
    path.write_text(json.dumps(mine) + "\n", encoding="utf-8")


def _plan(
    cfg: TrialConfig,
    items: SoundboxItems,
    contenders: tuple[Contender, ...],
    rows: dict[tuple[str, ...], Row],
) -> _Plan:
    """Everything that no finished row covers yet."""
    plan = _Plan()
    for place in dict.fromkeys(cfg.lists):
        name = Path(place).stem if place.endswith(".jsonl") else place
        plan.lists.append(name)
        for number, spec in enumerate(items.read(place, cfg.limit)):
            judged = cfg.judge and (cfg.judge_limit is None or number < cfg.judge_limit)
            asked: dict[int, tuple[Modality, ...]] = {}
            queries = _askable(items, spec, tuple(dict.fromkeys(cfg.queries)), plan)
            plan.keys |= {(name, spec.id, query) for query in queries}
            for n, one in enumerate(contenders):
                left = []
                for query in queries:
                    row = rows.get((name, spec.id, query, one.arm, one.sha256))
                    finished = row is not None and not row["failed"] and (bool(row["judged"]) or not judged)
                    plan.finished += finished
                    left += [] if finished else [query]
                if left:
                    asked[n] = tuple(left)
            if asked:
                plan.works.append(Work(name, spec, asked, judged))
    return plan


def _askable(items: SoundboxItems, spec: Any, queries: Sequence[Modality], plan: _Plan) -> list[Modality]:
    """Queries that this item has; one whose clip is gone keeps them all and fails with the reason."""
    clip = items.clips.get(spec.components[spec.target].clip)
    if clip is None:
        return list(queries)
    found: list[Modality] = []
    for query in queries:
        try:
            items.ask(spec, clip.labels[0], query)
        except UsageError:
            plan.unaskable[query] += 1
        except DataError:
            found.append(query)
        else:
            found.append(query)
    return found


def _belongs(row: Row, plan: _Plan, contenders: tuple[Contender, ...]) -> bool:
    """Whether a row of the folder is part of this trial, not of a wider or older one."""
    key = (str(row["list"]), str(row["id"]), str(row["query"]))
    return key in plan.keys and (row["arm"], row["model"]) in {(one.arm, one.sha256) for one in contenders}


def _summarise(
    cfg: TrialConfig,
    contenders: tuple[Contender, ...],
    rows: Sequence[Row],
    plan: _Plan,
    cost: dict[str, Any],
) -> dict[str, Any]:
    scores = gather(rows, contenders)
    return {
        "title": "Trial: " + " against ".join(name for name, _ in cfg.arms),
        "arms": {
            name: [{"model": one.folder, "sha256": one.sha256[:12]} for one in contenders if one.arm == name]
            for name, _ in cfg.arms
        },
        "lists": list(cfg.lists),
        "queries": list(cfg.queries),
        "judge": cfg.judge_precision if cfg.judge else None,
        "limit": cfg.limit,
        "judge_limit": cfg.judge_limit,
        "seed": cfg.seed,
        "not_askable": dict(plan.unaskable),
        "reasons": unscored_reasons(rows),
        "cost": cost,
        "environment": snapshot(),
        "rows": summarise_arms(scores),
        "comparisons": compare_arms(scores, seed=cfg.seed),
    }
