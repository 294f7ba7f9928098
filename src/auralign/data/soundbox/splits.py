"""Which source goes to training, validation and test, and which recordings are one and the same."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float32

from auralign.data.soundbox.drafts import Draft
from auralign.data.soundbox.scores import split_of
from auralign.data.soundbox.sound import Mono
from auralign.data.soundbox.taxonomy import Taxonomy
from auralign.errors import DataError

_ALIKE = 0.97


def allocate(sources: Sequence[str]) -> dict[str, str]:
    """Divide the sources of one class, in the order of a hash of their names.

    Three or more give a fifth (at least one) to test; five or more give a tenth (at least one) to
    validation; the rest trains. Fewer than three train.

    >>> sorted(allocate(["a", "b", "c"]).values())
    ['test', 'train', 'train']
    """
    order = sorted(set(sources), key=lambda name: hashlib.sha256(f"split:{name}".encode()).digest())
    test = max(1, round(0.2 * len(order))) if len(order) >= 3 else 0
    val = max(1, round(0.1 * len(order))) if len(order) >= 5 else 0
    return {
        name: "test" if k < test else "val" if k < test + val else "train" for k, name in enumerate(order)
    }


def assign(drafts: Sequence[Draft], taxonomy: Taxonomy) -> dict[str, str]:
    """Give every clip its split, by id.

    Packages kept from training are "cross", classes kept from training are "unseen", rendered clips
    follow their score, sources settled in the tables keep their split, and the other sources of each
    class are divided by `allocate`.
    """
    splits: dict[str, str] = {}
    sources: dict[str, set[str]] = defaultdict(set)
    for draft in drafts:
        if taxonomy.classes[draft.label].unseen:
            splits[draft.id] = "unseen"
        elif taxonomy.packages[draft.package].cross:
            splits[draft.id] = "cross"
        elif draft.soundfont:
            splits[draft.id] = split_of(draft.source.removeprefix("score/"))
        else:
            sources[draft.label].add(draft.source)
    owner: dict[str, str] = {}
    for label, names in sources.items():
        for name in names:
            if owner.setdefault(name, label) != label:
                raise DataError(f"the source {name!r} is in two classes: {owner[name]}, {label}")
    divided = {label: allocate(sorted(names)) for label, names in sources.items()}
    for rows in divided.values():
        rows.update({name: taxonomy.pinned[name] for name in rows if name in taxonomy.pinned})
    for draft in drafts:
        if draft.id not in splits:
            splits[draft.id] = divided[draft.label][draft.source]
    return splits


def picture_splits(pictures: Mapping[str, Sequence[str]]) -> dict[str, dict[str, list[str]]]:
    """Give the last of two or more pictures of a class to test; a picture of two classes never tests."""
    counts: dict[str, int] = defaultdict(int)
    for paths in pictures.values():
        for path in paths:
            counts[path] += 1
    out = {}
    for label, paths in pictures.items():
        own = [path for path in paths if counts[path] == 1]
        test = own[-1:] if len(paths) >= 2 else []
        out[label] = {"train": [path for path in paths if path not in test], "test": test}
    return out


def fingerprint(samples: Mono) -> Float32[np.ndarray, "_ band"]:
    """Log power in 16 bands (Hann frames of 512, hop 256), the same for louder copies of a sound."""
    padded = np.pad(samples, (0, max(0, 512 - len(samples))))[: 16_000 * 10]
    frames = np.lib.stride_tricks.sliding_window_view(padded, 512)[::256] * np.hanning(512).astype(np.float32)
    power = np.abs(np.fft.rfft(frames, axis=1)).astype(np.float32) ** 2
    edges = np.unique(np.geomspace(2, 257, 17).astype(int))
    bands = np.log(np.add.reduceat(power, edges[:-1], axis=1) + 1e-4 * float(power.max()) + 1e-12)
    return bands.astype(np.float32)


def alike(one: Float32[np.ndarray, "_ band"], other: Float32[np.ndarray, "_ band"]) -> bool:
    """Say whether two fingerprints show the same recording, up to level and a shift of three frames."""
    length = min(len(one), len(other))
    if max(len(one), len(other)) > 1.12 * length + 4 or length < 6:
        return False
    for lag in (0, -1, 1, -2, 2, -3, 3):
        a, b = one[max(0, lag) : length], other[max(0, -lag) : length]
        n = min(len(a), len(b))
        a, b = a[:n] - a[:n].mean(), b[:n] - b[:n].mean()
        norm = float(np.sqrt((a * a).sum() * (b * b).sum()))
        match = float((a * b).sum()) / norm if norm > 0 else 0.0
        if match > _ALIKE:
            return True
        if match < _ALIKE - 0.35:
            return False
    return False


def merge_duplicates(drafts: Sequence[Draft], taxonomy: Taxonomy) -> tuple[list[Draft], dict[str, str]]:
    """Find recordings that are in the corpus twice.

    Identical files are kept once. Near-identical ones of a class (other encodings or lengths of the
    same recording) become one source; where one of them lies in a package kept from training, that
    one is dropped.

    Returns:
        The clips that stay, and for each dropped one, the clip that it repeats.
    """
    kept: list[Draft] = []
    dropped: dict[str, str] = {}
    by_label: dict[str, list[tuple[Draft, np.ndarray]]] = defaultdict(list)
    digests: dict[str, str] = {}
    union: dict[str, str] = {}

    def root(name: str) -> str:
        while union.get(name, name) != name:
            name = union[name]
        return name

    order = sorted(drafts, key=lambda draft: (taxonomy.packages[draft.package].cross, draft.id))
    for draft in order:
        rendered = bool(draft.soundfont) or draft.kind == "speech"
        if not rendered and draft.sha256 in digests and "-rhythm-" not in draft.id:
            dropped[draft.id] = digests[draft.sha256]
            continue
        digests.setdefault(draft.sha256, draft.id)
        if not rendered:
            print_now = fingerprint(draft.samples)
            twins = [other for other, seen in by_label[draft.label] if alike(print_now, seen)]
            twins = [other for other in twins if root(other.source) != root(draft.source)]
            if twins and taxonomy.packages[draft.package].cross:
                dropped[draft.id] = twins[0].id
                continue
            for twin in twins:
                union[root(draft.source)] = root(twin.source)
            by_label[draft.label].append((draft, print_now))
        kept.append(draft)
    merged = [Draft(**{**draft.__dict__, "source": root(draft.source)}) for draft in kept]
    return sorted(merged, key=lambda draft: draft.id), dropped
