r"""How good a reward the encoder is, on recordings and mixtures that its training never saw.

For every mixture of a frozen list the target, the interferer, the mixture, graded leaks and masked mixtures are scored
against an anchor, once with the target's own sound in it (``own``, as MARS-Sep does) and once from other recordings,
words and a picture alone (``strict``). Each is scored by the encoder and by the ``untuned`` backbone, whose plain mean
embedding is compared with the same sound or recordings by cosine. Close classes are told apart on held-out recordings.

With s the score: gap = s(target) - s(mixture); standardised gap = mean gap over the pooled standard deviation of s over
items; triple = s(target) > s(mixture) > s(interferer); Spearman = rank correlation of s with SI-SDR within one mixture.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from auralign.algorithms.alignment_data import beta_noise, patched
from auralign.algorithms.alignment_pairs import rank_correlation
from auralign.data.mixtures import LENGTH, Mixture, MixtureSpec, excerpt
from auralign.errors import DataError, UsageError
from auralign.evaluation.items import SoundboxItems
from auralign.evaluation.table import Row, Table
from auralign.metrics import statistics
from auralign.metrics.sdr import si_sdr
from auralign.models.encoders import Backbones
from auralign.models.reward_encoder import RewardEncoder
from auralign.policy.beta_mask import KAPPA
from auralign.rewards.base import Cue
from auralign.runtime import weights

LISTS = ("soundbox-vggsound-clean", "soundbox-music-clean", "soundbox-cross")
CLOSE_PAIRS = (
    ("violin", "viola"),
    ("cello", "double bass"),
    ("clarinet", "oboe"),
    ("acoustic guitar", "electric guitar"),
    ("dog barking", "wolf howling"),
)
"""Chosen from the corpus's confusable classes before any was scored."""
LEAKS_DB = (-25.0, -20.0, -15.0, -10.0, -5.0, 0.0, 5.0, 10.0)
"""Level of the interferer against the target, dB."""
METRICS = (
    "target",
    "mixture",
    "interferer",
    "gap",
    "triple",
    "target_first",
    "mixture_first",
    "leaks",
    "masks",
)
TUNED, UNTUNED, OWN, STRICT = "tuned", "untuned", "own", "strict"
_EXAMPLE = 65_536


@dataclass(frozen=True)
class RewardReport:
    """Rows and summaries of one encoder.

    Attributes:
        table: One row per mixture and system; systems are ``tuned-own``, ``tuned-strict``, ``untuned-own`` ….
        pairs: One row per window of a held-out recording of a close pair.
        summary: Means with 95 % bootstrap intervals, by list and system.
    """

    table: Table
    pairs: Sequence[Row]
    summary: Mapping[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write ``scores.json``, ``pairs.json`` and ``summary.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in (
            ("scores", list(self.table.rows)),
            ("pairs", list(self.pairs)),
            ("summary", self.summary),
        ):
            text = json.dumps(_plain(value), indent=1, ensure_ascii=False)
            (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    """JSON has no nan."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def open_encoder(model: str | Path) -> RewardEncoder:
    """A reward encoder by the name of packaged weights, or from a folder."""
    path = Path(model)
    return RewardEncoder.load(path if path.exists() else weights.path(str(model)))


class _Anchors:
    """Cues of classes: wordings, other recordings, a picture; raw features are computed once."""

    def __init__(self, items: SoundboxItems, encoder: RewardEncoder) -> None:
        self.items, self.encoder = items, encoder
        self._audio: dict[str, Tensor] = {}
        self._text: dict[str, Tensor] = {}
        self._image: dict[str, Tensor | None] = {}

    def text(self, words: str) -> Float[Tensor, "features"]:
        if words not in self._text:
            self._text[words] = self.encoder.backbones.texts([words])[0]
        return self._text[words]

    def recording(self, clip: str) -> Float[Tensor, "features"]:
        """The first four seconds of a recording."""
        if clip not in self._audio:
            wave = torch.from_numpy(self.items.renderer.samples(clip)[:_EXAMPLE].copy())
            self._audio[clip] = self.encoder.audio_features(wave[None])[0]
        return self._audio[clip]

    def image(self, spec: MixtureSpec, label: str) -> Float[Tensor, "features"] | None:
        """A picture of the class that training did not see, if it has one."""
        if label not in self._image:
            try:
                path = self.items.ask(spec, label, "image").images[0]
                backbones = self.encoder.backbones
                self._image[label] = backbones.images(backbones.read_picture(path)[None])[0]
            except UsageError:
                self._image[label] = None
        return self._image[label]

    def others(self, spec: MixtureSpec, label: str) -> Float[Tensor, "features"]:
        """Mean features of up to five other recordings of the class."""
        clips = self.items.ask(spec, label, "audio").clips
        return torch.stack([self.recording(clip) for clip in clips]).mean(dim=0)

    def cue(self, spec: MixtureSpec, label: str, sound: Float[Tensor, "features"]) -> Cue:
        """Everything that says what is meant, with ``sound`` as its example."""
        features = {"text": self.text(spec.query)[None], "audio": sound[None]}
        picture = self.image(spec, label) if "image" in self.encoder.heads else None
        if picture is not None:
            features["image"] = picture[None]
        present = torch.ones(1, dtype=torch.bool)
        return Cue(features, dict.fromkeys(features, present))  # type: ignore[arg-type]


def graded(mixture: Mixture, noise: torch.Generator) -> tuple[Tensor, Tensor, int]:
    """Target, mixture, interferer, leaks, then masked mixtures; their SI-SDR; and the number of leaks."""
    target, other = torch.from_numpy(mixture.target), torch.from_numpy(mixture.interferer)
    total = target + other
    ratio = target.square().mean().sqrt() / other.square().mean().sqrt().clamp_min(1e-8)
    leaks = [target + other * ratio * 10 ** (g / 20) for g in LEAKS_DB]
    window = torch.hann_window(1024)
    spec, first, second = (
        torch.stft(x[None], 1024, 256, window=window, pad_mode="constant", return_complex=True)
        for x in (total, target, other)
    )
    ideal = first.abs() / (first.abs() + second.abs() + 1e-8)
    masks = [
        ideal,
        beta_noise(ideal, KAPPA, noise),
        *(patched(ideal, spread, noise) for spread in (0.5, 1.0, 2.0, 3.0)),
        *(ideal * (1 - share) + share for share in (0.2, 0.5)),
        *(ideal * (1 - share) + (1 - ideal) * share for share in (0.35, 0.65)),
    ]
    waves = torch.istft(spec * torch.cat(masks), 1024, 256, window=window, length=len(target))
    sounds = torch.cat([torch.stack([target, total, other, *leaks]), waves])
    quality = si_sdr(est=sounds, ref=target.expand_as(sounds)).float().clamp(-30, 30)
    return sounds, quality, len(leaks)


def _row(scores: Tensor, quality: Tensor, leaks: int) -> Row:
    """The numbers of one mixture and system."""
    target, mixture, other = (float(x) for x in scores[:3])
    graded_leaks, masked = slice(3, 3 + leaks), slice(3 + leaks, None)
    return {
        "target": target,
        "mixture": mixture,
        "interferer": other,
        "gap": target - mixture,
        "triple": float(target > mixture > other),
        "target_first": float(target > mixture),
        "mixture_first": float(mixture > other),
        "leaks": float(rank_correlation(scores[None, graded_leaks], quality[None, graded_leaks])[0]),
        "masks": float(rank_correlation(scores[None, masked], quality[None, masked])[0]),
    }


def _plain_embedding(
    encoder: RewardEncoder, raw: Float[Tensor, "item features"]
) -> Float[Tensor, "item plain"]:
    """What the backbone gives before any alignment."""
    size = encoder.backbones.dims["audio"] if isinstance(encoder.backbones, Backbones) else raw.shape[1]
    return F.normalize(raw[:, :size], dim=1)


def _item(anchors: _Anchors, spec: MixtureSpec, label: str, mixture: Mixture) -> dict[str, Row]:
    encoder = anchors.encoder
    sounds, quality, leaks = graded(
        mixture, torch.Generator().manual_seed(spec.seed * 7919 + _number(spec.id))
    )
    raw = encoder.audio_features(sounds)
    unit, plain = encoder.embed(raw, "audio"), _plain_embedding(encoder, raw)
    rows = {}
    for name, sound in ((OWN, raw[0]), (STRICT, anchors.others(spec, label))):
        anchor = encoder.anchor(anchors.cue(spec, label, sound))[0]
        rows[f"{TUNED}-{name}"] = _row(unit @ anchor, quality, leaks)
        rows[f"{UNTUNED}-{name}"] = _row(plain @ _plain_embedding(encoder, sound[None])[0], quality, leaks)
    return rows


def _number(name: str) -> int:
    return int("".join(c for c in name if c.isdigit()) or 0)


def _windows(samples: Float[np.ndarray, "_"]) -> Iterator[Float[np.ndarray, "_"]]:
    """Pieces of four seconds; a shorter recording is one piece."""
    for start in range(0, max(1, len(samples) - LENGTH // 2), LENGTH):
        piece = excerpt(samples, start)
        if float(np.square(piece).mean()) > 1e-7:
            yield piece


def _pair_rows(anchors: _Anchors, pair: tuple[str, str], splits: Sequence[str]) -> list[Row]:
    """Every window of every held-out recording of both classes against both anchors."""
    items, encoder = anchors.items, anchors.encoder
    rows: list[Row] = []
    for label, wrong in (pair, pair[::-1]):
        for clip in items.clips.values():
            if clip.labels[0] != label or clip.split not in splits:
                continue
            spec = MixtureSpec(clip.id, (_component(clip.id), _component(clip.id)), 0, "", seed=items.seed)
            raw = encoder.audio_features(
                torch.from_numpy(np.stack(list(_windows(items.renderer.samples(clip.id)))))
            )
            scores = {}
            for name in (label, wrong):
                asked = MixtureSpec(spec.id, spec.components, 0, items.classes[name]["texts"][0], items.seed)
                sound = anchors.others(asked, name)
                anchor = encoder.anchor(anchors.cue(asked, name, sound))[0]
                plain = _plain_embedding(encoder, raw) @ _plain_embedding(encoder, sound[None])[0]
                scores[name] = (encoder.embed(raw, "audio") @ anchor, plain)
            for n in range(len(raw)):
                rows.append(
                    {
                        "pair": " / ".join(pair),
                        "class": label,
                        "clip": clip.id,
                        "split": clip.split,
                        "window": n,
                        TUNED: float(scores[label][0][n] > scores[wrong][0][n]),
                        UNTUNED: float(scores[label][1][n] > scores[wrong][1][n]),
                    }
                )
    return rows


def _component(clip: str) -> Any:
    from auralign.data.mixtures import Component

    return Component(clip, 0.0)


def _interval(
    statistic: Callable[[np.ndarray], float], columns: np.ndarray, *, seed: int = 0, resamples: int = 2000
) -> dict[str, float]:
    """A statistic of several columns with its 95 % interval, items resampled together."""
    rng = np.random.default_rng(seed)
    draws = [
        statistic(columns[:, rng.integers(columns.shape[1], size=columns.shape[1])]) for _ in range(resamples)
    ]
    low, high = np.quantile(draws, [0.025, 0.975])
    return {"value": statistic(columns), "ci_low": float(low), "ci_high": float(high)}


def _standard_gap(columns: np.ndarray) -> float:
    target, mixture = columns[0], columns[1]
    spread = math.sqrt((target.var(ddof=1) + mixture.var(ddof=1)) / 2)
    return float((target - mixture).mean() / spread) if spread else math.nan


def summarise(table: Table, pairs: Sequence[Row]) -> dict[str, Any]:
    """Means, ratios against the untuned backbone and pair accuracies, with intervals."""
    out: dict[str, Any] = {}
    for anchor in (OWN, STRICT):
        tuned, untuned = (table.system(f"{kind}-{anchor}") for kind in (TUNED, UNTUNED))
        block: dict[str, Any] = {
            kind: {metric: one.summary(metric).as_dict() for metric in METRICS}
            for kind, one in ((TUNED, tuned), (UNTUNED, untuned))
        }
        columns = np.stack([one.column(m) for one in (tuned, untuned) for m in ("target", "mixture")])
        columns = columns[:, np.isfinite(columns).all(axis=0)]
        if columns.shape[1] > 1:
            block["standard_gap"] = {
                TUNED: _interval(_standard_gap, columns[:2]),
                UNTUNED: _interval(_standard_gap, columns[2:]),
            }
            block["gap_ratio"] = _interval(
                lambda c: float((c[0] - c[1]).mean() / (c[2] - c[3]).mean()), columns
            )
            block["standard_gap_ratio"] = _interval(
                lambda c: _standard_gap(c[:2]) / _standard_gap(c[2:]), columns
            )
        out[anchor] = block
    groups: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in pairs:
        groups[str(row["pair"])][str(row["clip"])].append(row)
    out["pairs"] = {pair: _pair_summary(clips) for pair, clips in groups.items()}
    return out


def _pair_summary(clips: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """Accuracy over windows, both classes weighing the same; recordings are resampled for the interval."""
    result: dict[str, Any] = {
        "recordings": len(clips),
        "windows": sum(len(rows) for rows in clips.values()),
    }
    for kind in (TUNED, UNTUNED):
        by_class: dict[str, list[float]] = defaultdict(list)
        for rows in clips.values():
            by_class[str(rows[0]["class"])] += [float(str(row[kind])) for row in rows]
        result[kind] = statistics.mean([statistics.mean(v) for v in by_class.values()])
        means = [statistics.mean([float(str(row[kind])) for row in rows]) for rows in clips.values()]
        result[f"{kind}_ci"] = statistics.bootstrap_interval(means)
    return result


def run_reward(
    model: str | Path,
    corpus: Path,
    lists: Sequence[str] = LISTS,
    *,
    limit: int | None = None,
    seed: int = 0,
    out: Path | None = None,
    pairs: Sequence[tuple[str, str]] = CLOSE_PAIRS,
    pair_splits: Sequence[str] = ("test", "cross"),
    narrow: bool = False,
) -> RewardReport:
    """Score a reward encoder on frozen lists and on close pairs.

    Args:
        model: Packaged weights by name, or a folder.
        corpus: Folder of the built corpus.
        lists: Mixture lists.
        limit: Mixtures of each list, spread evenly; all by default.
        seed: Draws example recordings and mask noise.
        out: Folder for rows and summary.
        pairs: Classes that are told apart.
        pair_splits: Splits whose recordings are held out.
        narrow: Compute features in bfloat16.

    Returns:
        Rows and the summary: ``{"all": ..., LIST: ...}``, each with ``own``, ``strict`` and ``pairs``.
    """
    encoder = open_encoder(model)
    encoder.narrow = narrow
    items = SoundboxItems(corpus, seed=seed)
    anchors = _Anchors(items, encoder)
    rows: list[Row] = []
    with torch.no_grad():
        for name in lists:
            specs = items.read(name)
            step = 1 if limit is None else max(1, len(specs) // limit)
            for spec in specs[::step][:limit]:
                rows += _rows(anchors, name, spec)
        pair_rows = [row for pair in pairs for row in _pair_rows(anchors, pair, pair_splits)]
    table = Table(rows, METRICS, definition=__doc__ or "")
    summary: dict[str, Any] = {"all": summarise(table, pair_rows)}
    for name in lists:
        summary[name] = summarise(Table([r for r in rows if r["list"] == name], METRICS), [])
    report = RewardReport(table, pair_rows, summary)
    if out is not None:
        report.write(out)
    return report


def _rows(anchors: _Anchors, name: str, spec: MixtureSpec) -> list[Row]:
    """All systems' rows of one mixture; one that cannot be rendered or asked for is nan with its reason."""
    clips = anchors.items.clips
    labels = [clips[c.clip].labels[0] if c.clip in clips else "" for c in spec.components]
    common: Row = {"id": f"{name}/{spec.id}", "list": name, "class": labels[spec.target]}
    try:
        scored = _item(anchors, spec, labels[spec.target], anchors.items.renderer.render(spec))
    except (DataError, UsageError) as error:
        systems = [f"{kind}-{anchor}" for kind in (TUNED, UNTUNED) for anchor in (OWN, STRICT)]
        return [
            {**common, "system": s, "reason": str(error), **dict.fromkeys(METRICS, math.nan)} for s in systems
        ]
    return [{**common, "system": system, "reason": "", **values} for system, values in scored.items()]
