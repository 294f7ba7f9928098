"""Draws the frozen mixture lists of the corpus."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from auralign.data.clip import Clip
from auralign.data.manifest import read_manifest
from auralign.data.mixtures import (
    LENGTH,
    RATE_HZ,
    Component,
    MixtureRenderer,
    MixtureSpec,
    active_power,
    excerpt,
    write_list,
)
from auralign.errors import DataError

_LEVEL_DB = -26.0  # of every component, over its active frames


@dataclass(frozen=True)
class ListPlan:
    """What a list is made of: which clips may be targets, which interferers, and how many mixtures.

    Args:
        name: Name of the list.
        count: How many mixtures it has.
        target: Says which clips may be asked for.
        interferer: Says which clips may be mixed in.
        interferers: How many are mixed in, each of a class that no other sound can be confused with.
    """

    name: str
    count: int
    target: Callable[[Clip], bool]
    interferer: Callable[[Clip], bool]
    interferers: int = 1


def _in(split: str, *kinds: str, music: bool = True) -> Callable[[Clip], bool]:
    def fits(clip: Clip) -> bool:
        return clip.split == split and clip.kind in kinds and (music or clip.labels[0] != "music")

    return fits


_ALL = ("event", "instrument", "speech")
PLANS = (
    ListPlan("soundbox-vggsound-clean", 1000, _in("test", *_ALL), _in("test", "event", "speech")),
    ListPlan(
        "soundbox-music-clean", 500, _in("test", "instrument", music=False), _in("test", "event", "speech")
    ),
    ListPlan("soundbox-events", 500, _in("test", "event"), _in("test", "event")),
    ListPlan(
        "soundbox-duets", 500, _in("test", "instrument", music=False), _in("test", "instrument", music=False)
    ),
    ListPlan("soundbox-cross", 600, _in("cross", *_ALL, music=False), _in("cross", *_ALL, music=False)),
    ListPlan("soundbox-unseen", 400, _in("unseen", *_ALL), _in("unseen", *_ALL)),
    ListPlan("soundbox-val", 400, _in("val", *_ALL), _in("val", *_ALL)),
)
_MIN_TRAIN = 8


def caption_classes(clips: Iterable[Clip], least: int = _MIN_TRAIN) -> tuple[str, ...]:
    """Name the classes that captions may speak of: enough clips to train on, some to test on, no music.

    A clip of "music" is a mixture itself.
    """
    count = Counter((clip.labels[0], clip.split) for clip in clips if clip.labels)
    names = sorted({name for name, _ in count} - {"music"})
    return tuple(name for name in names if count[name, "train"] >= least and count[name, "test"])


def caption_plans(classes: Collection[str]) -> tuple[ListPlan, ...]:
    """Plan the lists that go with the captioned corpus: 2, 3 and 4 sounds of the classes that captions name."""

    def among(split: str) -> Callable[[Clip], bool]:
        return lambda clip: clip.split == split and clip.labels[0] in classes

    def plan(name: str, split: str, sounds: int, count: int) -> ListPlan:
        return ListPlan(f"soundbox-captions-{name}", count, among(split), among(split), sounds - 1)

    return (
        plan("val", "val", 2, 200),
        plan("2", "test", 2, 400),
        plan("3", "test", 3, 300),
        plan("4", "test", 4, 300),
    )


def draw_lists(corpus: Path, out: Path, plans: Sequence[ListPlan] = PLANS) -> dict[str, int]:
    """Draw every list from a corpus and write it to `out` with its hash; return the lengths.

    Targets go round the classes in turn, so that every class counts alike; interferers are of
    classes that cannot be confused with the target's, nor with each other's. Excerpts are taken where
    there is sound, and every component is brought to the same power over its active frames. The query
    is the class's name.
    """
    clips = {clip.id: clip for clip in read_manifest(corpus / "manifest.jsonl")}
    classes: Mapping[str, Any] = json.loads((corpus / "classes.json").read_text(encoding="utf-8"))
    renderer = MixtureRenderer(corpus, clips, keep=4000)
    out.mkdir(parents=True, exist_ok=True)
    lengths = {}
    for plan in plans:
        specs = draw(plan, list(clips.values()), classes, renderer)
        write_list(out / f"{plan.name}.jsonl", specs)
        lengths[plan.name] = len(specs)
    return lengths


def draw(
    plan: ListPlan, clips: Sequence[Clip], classes: Mapping[str, Any], renderer: MixtureRenderer
) -> list[MixtureSpec]:
    """Draw the recipes of one list, deterministically."""
    targets, others = _by_class(clips, plan.target), _by_class(clips, plan.interferer)
    clash = {name: {name, *classes[name]["confusable"]} for name in classes}
    for name in classes:
        for other in classes[name]["confusable"]:
            clash.setdefault(other, {other}).add(name)
    labels = [name for name in sorted(targets) if set(others) - clash[name]]
    if not labels:
        raise DataError(f"no pair of classes fits the list {plan.name!r}")
    specs = []
    for index in range(plan.count):
        rng = np.random.default_rng([index, *plan.name.encode()])
        label = labels[index % len(labels)]
        blocked, mixed_in = set(clash[label]), []
        for _ in range(plan.interferers):
            fitting = sorted(set(others) - blocked)
            if not fitting:
                raise DataError(f"no {plan.interferers + 1} classes fit together in the list {plan.name!r}")
            mixed_in.append(fitting[int(rng.integers(len(fitting)))])
            blocked |= clash[mixed_in[-1]]
        picked = [_pick(targets[label], rng)]
        for other in mixed_in:
            used = {clip.source for clip in picked}
            picked.append(
                _pick([clip for clip in others[other] if clip.source not in used] or others[other], rng)
            )
        specs.append(
            MixtureSpec(
                id=f"{plan.name}-{index:04d}",
                components=tuple(draw_component(clip, renderer, rng) for clip in picked),
                target=0,
                query=label,
                seed=index,
            )
        )
    return specs


def _by_class(clips: Sequence[Clip], fits: Callable[[Clip], bool]) -> dict[str, list[Clip]]:
    groups: dict[str, list[Clip]] = defaultdict(list)
    for clip in sorted(clips, key=lambda item: item.id):
        if fits(clip):
            groups[clip.labels[0]].append(clip)
    return dict(groups)


def _pick(clips: Sequence[Clip], rng: np.random.Generator) -> Clip:
    """Pick a source first, then one of its clips, so that long sources do not dominate."""
    sources = sorted({clip.source for clip in clips})
    source = sources[int(rng.integers(len(sources)))]
    own = [clip for clip in clips if clip.source == source]
    return own[int(rng.integers(len(own)))]


def draw_component(clip: Clip, renderer: MixtureRenderer, rng: np.random.Generator) -> Component:
    """Choose an excerpt of a clip where there is sound, at a gain that brings it to -26 dB while it is active."""
    samples = renderer.samples(clip.id)
    offset = _offset(samples, rng)
    power = active_power(excerpt(samples, round(offset * RATE_HZ)))
    if power <= 0:
        raise DataError(f"the clip {clip.id!r} is silent")
    return Component(clip.id, round(_LEVEL_DB - 10 * float(np.log10(power)), 3), offset)


def _offset(samples: np.ndarray, rng: np.random.Generator) -> float:
    """Pick a start, on a grid of 0.25 s, whose excerpt has at least half of the most energy any has."""
    if len(samples) <= LENGTH:
        return 0.0
    starts = np.arange(0, len(samples) - LENGTH + 1, RATE_HZ // 4)
    total = np.concatenate([[0.0], np.cumsum(samples.astype(np.float64) ** 2)])
    energy = total[starts + LENGTH] - total[starts]
    good = starts[energy >= 0.5 * energy.max()]
    return round(float(good[int(rng.integers(len(good)))]) / RATE_HZ, 4)
