"""Builds a captioned corpus: mixtures with sentences, made from a corpus of single labelled sounds.

What comes out looks like a captioned data set: sounds that hold several sources, a caption each, and phrases
that were extracted from the caption. The truth (classes, recipes) is kept beside it for diagnosis only.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from jaxtyping import Float32

from auralign.data.captions import Caption, file_description, write_caption
from auralign.data.clip import Clip
from auralign.data.manifest import read_manifest, write_manifest
from auralign.data.mixtures import (
    LENGTH,
    RATE_HZ,
    Component,
    MixtureRenderer,
    MixtureSpec,
    excerpt,
    write_list,
)
from auralign.data.phrases import ParsedCaption, phrase_extractor, write_phrases_json
from auralign.data.soundbox.lists import caption_classes, draw_component
from auralign.errors import DataError

VERSION = "1"
SINGLES, SINGLES_OF = "train-1", "train-2"
_QUIETEST_DB = -25.0  # of a component, as energy below the mixture's
_HIGHEST = 0.99
_TRIES = 200
_BATCH = 256  # mixtures held in memory
Tell = Callable[[int, int, str], None]


@dataclass(frozen=True)
class CaptionPlan:
    """What a captioned corpus is made of.

    Args:
        parts: Name, split of the source corpus, sounds in a mixture, and number of mixtures of each part.
        classes: Classes to use; by default `caption_classes`.
        extractor: Name of the phrase extractor.
        spread_db: Standard deviation of the levels around equal power, dB.
        most_db: Levels lie within this of equal power, dB.
        seed: Draws everything.
    """

    parts: tuple[tuple[str, str, int, int], ...]
    classes: tuple[str, ...] = ()
    extractor: str = "clauses"
    spread_db: float = 3.0
    most_db: float = 8.0
    seed: int = 0


def default_plan(*, mixtures: int = 2000, seed: int = 0) -> CaptionPlan:
    """Plan as many mixtures of 2, of 3 and of 4 sounds to train on, and a tenth as many of 2 to validate on."""
    train = tuple((f"train-{sounds}", "train", sounds, mixtures) for sounds in (2, 3, 4))
    return CaptionPlan((*train, ("val-2", "val", 2, max(1, mixtures // 10))), seed=seed)


@dataclass(frozen=True)
class _Drawn:
    spec: MixtureSpec
    labels: tuple[str, ...]
    caption: Caption
    split: str


def build(
    source: Path,
    out: Path,
    *,
    plan: CaptionPlan | None = None,
    on_progress: Tell | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Build the captioned corpus in `out`; an earlier one there is replaced only on success.

    Args:
        source: A built soundbox.
        out: Folder of the corpus; it receives `manifest.jsonl`, `corpus.json`, `parsed_all_caps.json`,
            `recipes/` (how each mixture is made of the source's clips) and `audio/`.
        plan: What to make; `default_plan` if not given.
        on_progress: Called with steps done, all steps, and what is being done.
        workers: Threads that encode; as many as there are processors by default.

    Returns:
        The content of `corpus.json`.

    Raises:
        DataError: The source is missing or damaged, or has too few classes.
    """
    plan, tell = plan or default_plan(), on_progress or (lambda *_: None)
    clips, classes = _open(source)
    allowed = plan.classes or caption_classes(clips)
    for name in allowed:
        if name not in classes:
            raise DataError(f"the class {name!r} is not in the corpus", where=str(source))
    renderer = MixtureRenderer(source, {clip.id: clip for clip in clips}, keep=4000)
    drawn: dict[str, list[_Drawn]] = {}
    for part in plan.parts:
        drawn[part[0]] = _draw_part(
            part, [c for c in clips if c.labels[0] in allowed], classes, renderer, plan
        )
        tell(len(drawn), len(plan.parts), "choosing sounds")
    staging = out.parent / f".{out.name}.partial"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        card = _write(staging, drawn, clips, renderer, plan, tell, workers or os.cpu_count() or 1)
        card = {**card, "source": _identity(source), "class_names": list(allowed)}
        _write_json(staging / "corpus.json", card)
        if out.exists():
            shutil.rmtree(out)
        staging.rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return card


def _open(source: Path) -> tuple[list[Clip], dict[str, Any]]:
    clips = read_manifest(source / "manifest.jsonl")
    try:
        classes: dict[str, Any] = json.loads((source / "classes.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            "the classes of the corpus cannot be read",
            where=str(source / "classes.json"),
            why=str(error),
            hint="build it with `auralign data build soundbox`",
        ) from error
    return clips, classes


def _draw_part(
    part: tuple[str, str, int, int],
    clips: Sequence[Clip],
    classes: Mapping[str, Any],
    renderer: MixtureRenderer,
    plan: CaptionPlan,
) -> list[_Drawn]:
    """Draw the mixtures of a part; classes are used about equally often, and within a class its recordings."""
    name, split, sounds, count = part
    groups: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        if clip.split == split:
            groups[clip.labels[0]].append(clip)
    rng = np.random.default_rng([plan.seed, *name.encode()])
    known = {clip.id: clip for clip in clips}
    turns = {label: _turns(own, rng) for label, own in sorted(groups.items())}
    used: Counter[str] = Counter()
    result = []
    for index in range(count):
        labels = _labels(sounds, sorted(groups), classes, used, rng)
        if not labels:
            raise DataError(
                f"no {sounds} classes of the split {split!r} can be mixed", hint="name more classes"
            )
        used.update(labels)
        components = _levels([turns[label] for label in labels], renderer, rng, plan)
        paths = [known[part.clip].source_path for part in components]
        names = [
            file_description(path, [label, *classes[label]["texts"]])
            for path, label in zip(paths, labels, strict=True)
        ]
        caption = write_caption(labels, classes, rng, names)
        spec = MixtureSpec(
            f"{name}/{index:05d}", components, 0, caption.text, index, f"normal-{plan.spread_db:g}-dB"
        )
        result.append(_Drawn(spec, labels, caption, name))
    return result


def _labels(
    sounds: int,
    names: Sequence[str],
    classes: Mapping[str, Any],
    used: Counter[str],
    rng: np.random.Generator,
) -> tuple[str, ...]:
    """Classes that cannot be confused with each other, the least used first, in random order; none if none fit."""
    for _ in range(_TRIES):
        order = sorted(names, key=lambda label: (used[label], float(rng.random())))
        chosen: list[str] = []
        for label in order:
            if all(_apart(label, other, classes) for other in chosen):
                chosen.append(label)
            if len(chosen) == sounds:
                return tuple(chosen[i] for i in rng.permutation(sounds))
    return ()


def _apart(one: str, other: str, classes: Mapping[str, Any]) -> bool:
    return other not in classes[one]["confusable"] and one not in classes[other]["confusable"]


def _turns(clips: Sequence[Clip], rng: np.random.Generator) -> Iterator[Clip]:
    """Every source in turn, and within a source every clip in turn, without end."""
    sources: dict[str, list[Clip]] = defaultdict(list)
    for clip in sorted(clips, key=lambda item: item.id):
        sources[clip.source].append(clip)
    names = sorted(sources)
    names = [names[i] for i in rng.permutation(len(names))]
    for turn in itertools.count():
        for name in names:
            yield sources[name][turn % len(sources[name])]


def _levels(
    turns: Sequence[Iterator[Clip]], renderer: MixtureRenderer, rng: np.random.Generator, plan: CaptionPlan
) -> tuple[Component, ...]:
    """Draw excerpts and levels until every sound can be heard, then bring the peak of all below 1."""
    for _ in range(_TRIES):
        parts = []
        for turn in turns:
            extra = float(np.clip(rng.normal(0.0, plan.spread_db), -plan.most_db, plan.most_db))
            item = draw_component(next(turn), renderer, rng)
            parts.append(replace(item, gain_db=item.gain_db + extra))
        waves = np.stack([_rendered(item, renderer) for item in parts])
        energy = np.square(waves, dtype=np.float64).sum(axis=1)
        whole = float(np.square(waves.sum(axis=0), dtype=np.float64).sum())
        if whole > 0 and 10 * np.log10(energy.min() / whole) >= _QUIETEST_DB:
            highest = max(float(np.abs(waves).max()), float(np.abs(waves.sum(axis=0)).max()))
            shift = min(0.0, 20 * float(np.log10(_HIGHEST / highest)))
            return tuple(replace(item, gain_db=round(item.gain_db + shift, 3)) for item in parts)
    raise DataError("no levels were found at which every sound can be heard")


def _rendered(item: Component, renderer: MixtureRenderer) -> Float32[np.ndarray, "time"]:
    piece = excerpt(renderer.samples(item.clip), round(item.offset_s * RATE_HZ))
    return piece * np.float32(10 ** (item.gain_db / 20))


def _singles(mixtures: Sequence[_Drawn], clips: Mapping[str, Clip], seed: int) -> list[_Drawn]:
    """Every component of the mixtures alone, in an order in which every beginning is balanced.

    Classes take turns, and within a class its recordings do, so the first few per cent hold as many classes and
    recordings as they can.
    """
    rng = np.random.default_rng([seed, *SINGLES.encode()])
    groups: dict[str, dict[str, list[_Drawn]]] = defaultdict(lambda: defaultdict(list))
    for item in mixtures:
        for part, label, phrase in zip(item.spec.components, item.labels, item.caption.intended, strict=True):
            one = Caption(phrase[0].upper() + phrase[1:], (phrase,))
            spec = replace(item.spec, components=(part,), query=one.text)
            groups[label][clips[part.clip].source].append(_Drawn(spec, (label,), one, SINGLES))
    names = sorted(groups)
    names = [names[i] for i in rng.permutation(len(names))]
    per_class = [_interleaved(list(groups[name].values())) for name in names]
    order = _interleaved(per_class)
    return [
        replace(item, spec=replace(item.spec, id=f"{SINGLES}/{index:05d}"))
        for index, item in enumerate(order)
    ]


def _interleaved(queues: Sequence[Sequence[_Drawn]]) -> list[_Drawn]:
    """One of each queue in turn until all are empty."""
    rounds = itertools.zip_longest(*queues)
    return [item for one in rounds for item in one if item is not None]


def _write(
    staging: Path,
    drawn: Mapping[str, Sequence[_Drawn]],
    clips: Sequence[Clip],
    renderer: MixtureRenderer,
    plan: CaptionPlan,
    tell: Tell,
    workers: int,
) -> dict[str, Any]:
    known = {clip.id: clip for clip in clips}
    items = [item for part in drawn.values() for item in part]
    if SINGLES_OF in drawn:
        items = [*_singles(drawn[SINGLES_OF], known, plan.seed), *items]
    extract = phrase_extractor(plan.extractor)
    for name in {item.split for item in items}:
        (staging / "audio" / name).mkdir(parents=True)
    (staging / "recipes").mkdir()
    for name, part in drawn.items():
        write_list(staging / "recipes" / f"{name}.jsonl", [item.spec for item in part])
    records = []
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(items), _BATCH):
            batch = items[start : start + _BATCH]
            waves = [_mixed(item.spec.components, renderer) for item in batch]  # the renderer is not shared
            paths = [staging / "audio" / f"{item.spec.id}.flac" for item in batch]
            for item, digest in zip(batch, pool.map(_store, paths, waves), strict=True):
                records.append(_record(item, digest, known, extract(item.caption.text)))
            tell(start + len(batch), len(items), "writing sounds")
    write_manifest(staging / "manifest.jsonl", records)
    parsed = {
        clip.id: ParsedCaption(clip.id, clip.captions[0], clip.phrases)
        for clip in sorted(records, key=lambda one: one.id)
    }
    write_phrases_json(staging / "parsed_all_caps.json", parsed)
    return _card(staging, items, records, plan)


def _mixed(parts: Sequence[Component], renderer: MixtureRenderer) -> Float32[np.ndarray, "time"]:
    waves = np.stack([_rendered(part, renderer) for part in parts])
    mixed: np.ndarray = waves.sum(axis=0)
    return mixed


def _store(path: Path, wave: np.ndarray) -> str:
    soundfile.write(path, np.clip(wave, -1, 1), RATE_HZ, format="FLAC", subtype="PCM_16")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _record(item: _Drawn, digest: str, known: Mapping[str, Clip], phrases: tuple[str, ...]) -> Clip:
    parts = [known[part.clip] for part in item.spec.components]
    kinds = {part.kind for part in parts}
    return Clip(
        id=item.spec.id,
        audio=f"audio/{item.spec.id}.flac",
        duration_s=LENGTH / RATE_HZ,
        sample_rate=RATE_HZ,
        channels=1,
        captions=(item.caption.text,),
        phrases=phrases,
        labels=item.labels,
        kind=kinds.pop() if len(kinds) == 1 else "event",
        split=item.split,
        source=" + ".join(part.source for part in parts),
        package=" + ".join(dict.fromkeys(part.package for part in parts if part.package)),
        license=" + ".join(dict.fromkeys(part.license for part in parts if part.license)),
        sha256=digest,
        dataset="captions",
    )


def _card(
    staging: Path, items: Sequence[_Drawn], records: Sequence[Clip], plan: CaptionPlan
) -> dict[str, Any]:
    extract = phrase_extractor(plan.extractor)
    parts: dict[str, dict[str, Any]] = {}
    for name in sorted({item.split for item in items}):
        pairs = [(item, clip) for item, clip in zip(items, records, strict=True) if item.split == name]
        exact = [len(clip.phrases) == len(item.labels) for item, clip in pairs]
        meant = [
            phrase in clip.phrases
            for item, clip in pairs
            for phrase in (extract(text)[0] for text in item.caption.intended)
        ]
        parts[name] = {
            "clips": len(pairs),
            "sounds": len(pairs[0][0].labels),
            "as_many_phrases_as_sounds": round(sum(exact) / len(exact), 4),
            "intended_phrases_found": round(sum(meant) / len(meant), 4),
        }
    return {
        "name": "captions",
        "version": VERSION,
        "hash": hashlib.sha256((staging / "manifest.jsonl").read_bytes()).hexdigest(),
        "seed": plan.seed,
        "extractor": plan.extractor,
        "seconds": LENGTH / RATE_HZ,
        "parts": parts,
    }


def _identity(source: Path) -> dict[str, str]:
    digest = hashlib.sha256((source / "manifest.jsonl").read_bytes()).hexdigest()
    return {"name": source.resolve().name, "manifest_sha256": digest}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
