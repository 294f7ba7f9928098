"""`auralign evaluate separation`: models, oracles and the input on frozen lists, with paired intervals."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from auralign.errors import UsageError
from auralign.evaluation.items import EXAMPLE_SAMPLES, Asked, Modality, SoundboxItems
from auralign.evaluation.presets import PRESETS
from auralign.evaluation.separation import (
    INPUT,
    MODEL,
    ORACLE,
    ORACLE_BANDS,
    Judge,
    evaluate_separation,
    presence_scores,
)
from auralign.evaluation.table import Table, compare
from auralign.models.separator import QueryVector, SeparatorModel
from auralign.runtime.environment import snapshot
from auralign.separation import Separator

Progress = Callable[[float, float, str], None]
DEFAULT_LISTS = {
    "auralign": ("soundbox-music-clean", "soundbox-events"),
    "omnisep": ("soundbox-vggsound-clean", "soundbox-music-clean"),
    "audiosep": ("soundbox-vggsound-clean",),
    "bisep": ("soundbox-duets",),
    "dcase24t9": ("soundbox-events",),
}
_OTHERS = {"mixture": INPUT, "input": INPUT, "oracle": ORACLE, "oracle-bands": ORACLE_BANDS}


@dataclass(frozen=True)
class EvaluationResult:
    """Tables by list, and a summary in plain values."""

    tables: dict[str, Table]
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def failed(self) -> int:
        """Rows of the model that could not be scored because of an error (absent targets do not count)."""
        rows = [row for table in self.tables.values() for row in table.rows if row.get("system") == MODEL]
        return sum("Error" in str(row.get("reason", "")) for row in rows)


def run_separation(
    *,
    model: str,
    versus: Sequence[str] = (),
    corpus: Path,
    lists: Sequence[str] = (),
    preset: str = "auralign",
    query: Modality = "text",
    limit: int | None = None,
    seed: int = 0,
    judge: bool = False,
    out: Path | None = None,
    device: str = "auto",
    on_progress: Progress | None = None,
) -> EvaluationResult:
    """Score a model on frozen lists.

    Args:
        model: Name or folder.
        versus: Other models, or ``mixture``, ``oracle``, ``oracle-bands``; compared item by item.
        corpus: Built corpus.
        lists: Names or files; the preset's own by default.
        preset: Protocol.
        query: How the target is asked for.
        limit: Only the first mixtures of each list.
        seed: Of audio examples, absent classes and the bootstrap.
        judge: Also score with the held-out judge (slower).
        out: Folder for ``rows.jsonl``, ``summary.json``, tables and ``report.html``.
        device: See :meth:`Separator.load`.
        on_progress: Called with done, total and the list's name.
    """
    if preset not in PRESETS:
        raise UsageError(f"there is no preset {preset!r}", hint=f"one of {', '.join(PRESETS)}")
    items = SoundboxItems(corpus, seed=seed)
    names = list(lists) or list(DEFAULT_LISTS[preset])
    separator = Separator.load(model, device=device)
    others = {name: Separator.load(name, device=device) for name in versus if name not in _OTHERS}
    listener = load_listener(items) if judge else None
    tables: dict[str, Table] = {}
    summary: dict[str, Any] = {
        "title": f"Separation: {model}",
        "preset": preset,
        "query": query,
        "corpus": _corpus_identity(corpus),
        "seed": seed,
        "environment": snapshot(),
        "rows": [],
        "comparisons": [],
    }
    for name in names:
        specs = items.read(name, limit)
        total = len(specs)

        def score(one: Separator, specs: Any = specs, name: str = name, total: int = total) -> Table:
            answer = Answerer(one.model, items)
            shown = (lambda done: on_progress(done, total * 4 / 3, name)) if on_progress else None
            return evaluate_separation(
                answer,
                items.items(specs, query),
                preset=PRESETS[preset],
                judge=listener,
                bands=one.model.net.projector,
                on_progress=shown,
            )

        table = score(separator)
        tables[name] = table
        summary["rows"] += summarise(table, name)
        for other in versus:
            rival = table.system(_OTHERS[other]) if other in _OTHERS else score(others[other]).system(MODEL)
            for metric in table.metrics:
                difference = compare(table.system(MODEL), rival, metric, seed=seed)
                summary["comparisons"].append({"list": name, "versus": other, **difference.as_dict()})
    result = EvaluationResult(tables, summary)
    if out is not None:
        write(result, out)
    return result


class Answerer:
    """Turns items' queries into vectors (each once) and separates 16-kHz mono mixtures in one pass."""

    def __init__(self, model: SeparatorModel, items: SoundboxItems) -> None:
        self.model, self.items = model, items
        self._vectors: dict[Asked, QueryVector] = {}

    def vector(self, asked: Asked) -> QueryVector:
        """The query's vector: each modality's texts, pictures or recordings are averaged, then the modalities."""
        if asked not in self._vectors:
            kinds: list[list[QueryVector]] = []
            if asked.texts:
                kinds.append(self.model.text_queries(asked.texts))
            if asked.images:
                read = self.model.backbones.read_picture
                kinds.append(self.model.image_queries(torch.stack([read(path) for path in asked.images])))
            if asked.clips:
                waves = [self.items.renderer.samples(clip)[:EXAMPLE_SAMPLES] for clip in asked.clips]
                kinds.append([self.model.audio_queries(torch.from_numpy(wave)[None])[0] for wave in waves])
            self._vectors[asked] = self.model.combine([self.model.combine(vectors) for vectors in kinds])
        return self._vectors[asked]

    def __call__(self, mixture: np.ndarray, query: object) -> tuple[np.ndarray, np.ndarray, float | None]:
        """Target, residual and presence."""
        if not isinstance(query, Asked):
            raise UsageError(f"a query of type {type(query).__name__} cannot be asked")
        vector = self.vector(query).vector
        with torch.inference_mode():
            wave, presence = self.model.separate_wave(torch.from_numpy(mixture)[None], vector[None, None])
        target = wave[0, 0].numpy()
        return target, mixture - target, float(presence[0, 0])


def load_listener(items: SoundboxItems) -> Judge:
    """The held-out judge with one prototype per class, the mean embedding of a few clean recordings."""
    from auralign.models.judge import load_judge

    network = load_judge()

    def embed(sounds: np.ndarray, rate_hz: int) -> np.ndarray:
        return network.hear(list(sounds), rate_hz).numpy()

    prototypes = {
        label: np.mean([embed(sound[None], 16_000)[0] for sound in sounds], axis=0)
        for label, sounds in items.prototypes().items()
    }
    return Judge(embed, prototypes)


def summarise(table: Table, name: str) -> list[dict[str, Any]]:
    """One row per system: mean with 95 % interval of every score, win rate, presence."""
    rows = []
    present = Table(
        [row for row in table.rows if row.get("present", True)],
        table.metrics,
        table.definition,
        table.aggregation,
    )
    for system in present.systems:
        part = present.system(system)
        row: dict[str, Any] = {"list": name, "system": system, "n": len(part.rows)}
        for metric in table.metrics:
            found = part.summary(metric)
            row[metric] = round(found.mean, 3) if math.isfinite(found.mean) else None
            row[f"{metric}_ci"] = [round(found.ci_low, 3), round(found.ci_high, 3)] if found.n else None
        if "si_sdri" in table.metrics:
            row["win_rate"] = round(part.win_rate("si_sdri"), 4)
        if system == MODEL:
            row |= {key: round(score.value, 4) for key, score in presence_scores(table).items()}
        rows.append(row)
    return rows


def _corpus_identity(corpus: Path) -> Any:
    path = corpus / "corpus.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write(result: EvaluationResult, out: Path) -> None:
    """``rows.jsonl`` and ``summary.json`` for the report, one table per list, and the page itself."""
    from auralign.report.folder import write_folder_report

    out.mkdir(parents=True, exist_ok=True)
    lines = []
    for name, table in result.tables.items():
        table.write(out / f"{name}.json")
        for row in table.rows:
            plain = {
                k: (None if isinstance(v, float) and not math.isfinite(v) else v) for k, v in row.items()
            }
            lines.append(json.dumps({"list": name, **plain}, ensure_ascii=False))
    (out / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    text = json.dumps(result.summary, indent=2, ensure_ascii=False, default=str)
    (out / "summary.json").write_text(text + "\n", encoding="utf-8")
    write_folder_report(out)
