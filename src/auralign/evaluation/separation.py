r"""Run a separator over mixtures and score it beside the untouched input and the ideal-ratio-mask oracle.

One row per item and system (``model``, ``input``, ``oracle_irm``, ``oracle_irm_bands``). An item that fails,
at reading, separating or scoring, is a row of nan with the reason; the run never stops for it. Items whose
target is absent (``present=False``, a silent first reference) have no ratio; they count in the presence
scores and in ``level_change_db``, which says how quiet the output was kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from auralign.audio.stft import Stft
from auralign.errors import DataError, UsageError
from auralign.evaluation.presets import Preset
from auralign.evaluation.table import Row, Table
from auralign.metrics import semantic
from auralign.metrics.contract import CLAMP_DB, MetricResult, is_silent
from auralign.metrics.presence import average_precision, roc_auc

Wave = Float[np.ndarray, " time"]
Separated = tuple[Wave, Wave, float | None]
SeparateFn = Callable[[np.ndarray, object], Separated]

MODEL, INPUT, ORACLE, ORACLE_BANDS = "model", "input", "oracle_irm", "oracle_irm_bands"
JUDGE_METRICS = ("judge_similarity", "judge_margin_interferer", "judge_margin_mixture")
RANK_METRICS = ("judge_rank", "judge_top1")


@dataclass(frozen=True)
class EvaluationItem:
    """One mixture with what is in it and what is asked."""

    id: str
    """Unique name."""
    mixture: Wave
    """The mixture, mono."""
    refs: Sequence[Wave]
    """References as they are in the mixture; the first is the target, silent when it is absent."""
    query: object
    """What the separator is asked, passed on as it is."""
    label: str = ""
    """Class of the target."""
    rate_hz: int = 16_000
    """Sample rate of all sounds."""
    present: bool = True
    """Whether the queried sound is in the mixture."""
    extra: Mapping[str, str | float | int | bool | None] = field(default_factory=dict)
    """Further columns of the row: interferer, split, source group."""


@dataclass(frozen=True)
class FailedItem:
    """An item that could not be read; it still gets its rows."""

    id: str
    """Unique name."""
    reason: str
    """What went wrong."""
    label: str = ""
    """Class of the target."""


@runtime_checkable
class BandProjector(Protocol):
    """Frequency bands: powers pooled into bands by calling it, masks spread back over the bins."""

    def __call__(self, power: Tensor) -> Tensor:
        """``(freq, frame)`` powers to ``(band, frame)``."""
        ...

    def expand(self, mask: Tensor) -> Tensor:
        """``(band, frame)`` mask to ``(freq, frame)``."""
        ...


@dataclass(frozen=True)
class Judge:
    """A held-out listener: an embedding of sounds and one prototype per class."""

    embed: Callable[[np.ndarray, int], np.ndarray]
    """``(item, time)`` float32 sounds and their rate to ``(item, dim)`` embeddings."""
    prototypes: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Class to embedding, for the rank of the target; empty leaves the rank out."""
    trained_on: bool = False
    """True when a separator in the table was trained on this judge."""


def oracle_irm(
    mixture: Wave,
    refs: Sequence[Wave],
    *,
    n_fft: int = 1024,
    hop: int = 256,
    bands: BandProjector | None = None,
) -> Float32[np.ndarray, " time"]:
    r"""The target through its ideal ratio mask :math:`M = |S_1| / \sum_i |S_i|`, with the mixture's phase.

    With ``bands``, powers are pooled into bands before the ratio and the mask is spread back over the bins:
    the oracle of that resolution. An upper bound by convention, not by theorem.

    Args:
        mixture: The mixture.
        refs: References as they are in the mixture; the first is the target.
        n_fft: Window length.
        hop: Hop.
        bands: Projector to frequency bands.
    """
    if not refs:
        raise UsageError("no reference", where="oracle_irm", hint="refs[0] is the target in the mixture")
    stft = Stft(n_fft, hop)
    magnitudes = [stft.forward(torch.from_numpy(np.asarray(ref, dtype=np.float64))).abs() for ref in refs]
    if bands is not None:
        magnitudes = [bands(magnitude.square().float()).double().sqrt() for magnitude in magnitudes]
    total = torch.stack(magnitudes).sum(0)
    mask = torch.where(total > 0, magnitudes[0] / total.clamp(min=1e-300), 0.0)
    if bands is not None:
        mask = bands.expand(mask.float()).double()
    spectrum = stft.forward(torch.from_numpy(np.asarray(mixture, dtype=np.float64)))
    return stft.inverse(spectrum * mask, mixture.shape[-1]).float().numpy()


def evaluate_separation(
    separate_fn: SeparateFn,
    items: Iterable[EvaluationItem | FailedItem],
    *,
    preset: Preset,
    judge: Judge | None = None,
    bands: BandProjector | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Table:
    """Score a separator on mixtures: one row per item and system, failures included.

    Args:
        separate_fn: ``(mixture, query)`` to ``(target, residual, presence)``; presence may be None.
        items: Mixtures with references.
        preset: Protocol that scores an item.
        judge: Held-out listener for the semantic scores.
        bands: Adds the oracle at the resolution of these bands.
        on_progress: Called with the number of finished items.
    """
    systems = (MODEL, INPUT, ORACLE) + ((ORACLE_BANDS,) if bands is not None else ())
    judged = () if judge is None else JUDGE_METRICS + (RANK_METRICS if judge.prototypes else ())
    metrics = (*preset.metrics, *judged, "level_change_db")
    rows: list[Row] = []
    for done, item in enumerate(items, start=1):
        if isinstance(item, FailedItem):
            rows += [_failed(item.id, item.label, system, metrics, item.reason) for system in systems]
        else:
            rows += [_row(separate_fn, item, system, metrics, preset, judge, bands) for system in systems]
        if on_progress is not None:
            on_progress(done)
    trained_on = judged if judge is not None and judge.trained_on else ()
    return Table(rows, metrics, preset.definition, preset.aggregation, trained_on)


def presence_scores(table: Table) -> dict[str, MetricResult]:
    """ROC AUC and average precision of the model's presence score over present and absent items.

    Rows without a presence score (failures) are left out; no such row leaves nothing to score.
    """
    rows = [
        row for row in table.rows if row.get("system") == MODEL and isinstance(row.get("presence"), float)
    ]
    rows = [row for row in rows if math.isfinite(float(row["presence"] or 0.0))]
    scores = [float(row["presence"] or 0.0) for row in rows]
    present = [bool(row["present"]) for row in rows]
    return {
        "presence_auc": roc_auc(score=scores, present=present),
        "presence_ap": average_precision(score=scores, present=present),
    }


def _failed(name: str, label: str, system: str, metrics: Sequence[str], reason: str) -> Row:
    row: Row = {"id": name, "system": system, "class": label}
    return row | dict.fromkeys(metrics, math.nan) | {"reason": reason}


def _row(
    separate_fn: SeparateFn,
    item: EvaluationItem,
    system: str,
    metrics: Sequence[str],
    preset: Preset,
    judge: Judge | None,
    bands: BandProjector | None,
) -> Row:
    """Scores of one system on one item; whatever fails becomes the reason."""
    presence: float | None = None
    reasons: list[str] = []
    scores: dict[str, MetricResult] = {}
    try:
        target, residual, presence = _run(separate_fn, item, system, bands)
        scores = preset.score(target=target, residual=residual, refs=item.refs, mixture=item.mixture)
        scores["level_change_db"] = _level_change(target, item.mixture)
    except Exception as error:  # an item must never stop the run
        reasons.append(_said(error))
    else:
        try:
            scores |= {} if judge is None else _judged(judge, item, target)
        except Exception as error:  # the judge's failure leaves the other scores standing
            reasons.append(f"judge: {_said(error)}")
    reasons += _grouped(scores)
    row = _failed(item.id, item.label, system, metrics, "; ".join(reasons))
    row |= {name: score.value for name, score in scores.items()}
    query = item.query if isinstance(item.query, str) else type(item.query).__name__
    return row | {"presence": presence, "present": item.present, "query": query, **item.extra}


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".replace("\n", " ").strip()


def _grouped(scores: Mapping[str, MetricResult]) -> list[str]:
    """Each reason once, with the scores it concerns when not all share it."""
    told: dict[str, list[str]] = {}
    for name, score in scores.items():
        if score.reason:
            told.setdefault(score.reason, []).append(name)
    return [
        reason if len(names) == len(scores) or len(told) == 1 else f"{reason} ({', '.join(names)})"
        for reason, names in told.items()
    ]


def _run(
    separate_fn: SeparateFn, item: EvaluationItem, system: str, bands: BandProjector | None
) -> Separated:
    if system == INPUT:
        return item.mixture, item.mixture, None
    if system in (ORACLE, ORACLE_BANDS):
        target = oracle_irm(item.mixture, item.refs, bands=bands if system == ORACLE_BANDS else None)
        return target, item.mixture - target, None
    target, residual, presence = separate_fn(item.mixture, item.query)
    for name, sound in (("target", target), ("residual", residual)):
        if np.shape(sound) != np.shape(item.mixture):
            raise DataError(
                f"{name} has shape {np.shape(sound)}, the mixture {np.shape(item.mixture)}", where=item.id
            )
    return np.asarray(target), np.asarray(residual), None if presence is None else float(presence)


def _level_change(target: Wave, mixture: Wave) -> MetricResult:
    """Level of the output against the mixture in dB; −150 dB for silence."""
    out, whole = (float(np.square(np.asarray(x, dtype=np.float64)).sum()) for x in (target, mixture))
    if not math.isfinite(out) or not math.isfinite(whole) or whole == 0:
        return MetricResult(math.nan, "no level: the mixture is silent or samples are not finite")
    ratio = 10 * math.log10(out / whole) if out > 0 else -CLAMP_DB
    return MetricResult(min(max(ratio, -CLAMP_DB), CLAMP_DB))


def _judged(judge: Judge, item: EvaluationItem, target: Wave) -> dict[str, MetricResult]:
    """Semantic scores of one output; nan for a silent output or an absent target."""
    names = JUDGE_METRICS + (RANK_METRICS if judge.prototypes else ())
    sounds = {"estimate": target, "reference": item.refs[0]}
    for name, sound in sounds.items():
        if not np.isfinite(sound).all():
            return dict.fromkeys(names, MetricResult(math.nan, f"{name} has NaN or infinite samples"))
        if is_silent(torch.from_numpy(np.asarray(sound, dtype=np.float64))):
            return dict.fromkeys(names, MetricResult(math.nan, f"silent {name}"))
    others = (
        sum(item.refs[1:], np.zeros_like(item.mixture)) if len(item.refs) > 1 else item.mixture - item.refs[0]
    )
    waves = np.stack([target, item.refs[0], others, item.mixture]).astype(np.float32)
    est, ref, other, mixture = torch.from_numpy(np.asarray(judge.embed(waves, item.rate_hz))).double()
    values = (
        semantic.cosine(est=est, ref=ref),
        semantic.margin(est=est, ref=ref, other=other),
        semantic.margin(est=est, ref=ref, other=mixture),
    )
    scores = {name: _heard(float(value)) for name, value in zip(JUDGE_METRICS, values, strict=True)}
    return scores | (_ranked(judge, item.label, est) if judge.prototypes else {})


def _ranked(judge: Judge, label: str, est: Float[Tensor, " dim"]) -> dict[str, MetricResult]:
    classes = list(judge.prototypes)
    if label not in judge.prototypes:
        return dict.fromkeys(RANK_METRICS, MetricResult(math.nan, f"the judge has no class {label!r}"))
    prototypes = torch.from_numpy(np.stack([judge.prototypes[name] for name in classes])).double()
    rank = float(
        semantic.class_rank(est=est, prototypes=prototypes, target=torch.tensor(classes.index(label)))
    )
    top = float(rank == 1.0) if math.isfinite(rank) else math.nan
    return {"judge_rank": _heard(rank), "judge_top1": _heard(top)}


def _heard(value: float) -> MetricResult:
    return MetricResult(value, "" if math.isfinite(value) else "the judge gives no usable embedding")
