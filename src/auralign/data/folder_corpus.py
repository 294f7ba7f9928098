"""Builds a corpus out of a user's own sounds: the same folder that `auralign data build soundbox` makes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from auralign.data.clip import Clip
from auralign.data.folder_sounds import Progress, UserFolder, UserSound, read_folder
from auralign.data.manifest import KINDS, read_manifest, write_manifest
from auralign.data.soundbox.sound import RATE_HZ
from auralign.errors import DataError, UsageError

NAME, VERSION = "folder", "1"
FEWEST = 4  # classes: two sources, one that is absent, and a choice
_LONG_S = 8.0  # a lone recording of at least this gives its end to validation
_GAP_S = 1.0
_HELD = 0.2


def build(
    source: Path,
    out: Path,
    *,
    borrow: Path | None = None,
    kind: str = "event",
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Build a corpus from a folder with one subfolder of sounds a class; it appears only when it is complete.

    A fifth of the files of a class (at least one of two) is held out for validation. A lone recording of 8 s or
    more is divided in time, with a second left out between the parts.

    Args:
        source: The sounds, see :func:`~auralign.data.folder_sounds.read_folder`.
        out: Folder of the corpus; an earlier one made here is replaced.
        borrow: A built corpus whose training and validation clips join as other classes. Its classes of the same
            name give their wordings and pictures, not their sounds. The mixer draws kinds before classes, so its
            classes of ``kind`` change to another kind: the user's sounds then keep the whole share of theirs.
        kind: Kind of the user's classes.
        on_progress: Called with files done, files in all, and the current one.

    Returns:
        The content of ``corpus.json``: totals, notes, and every file that was skipped with its reason.

    Raises:
        DataError: The folder is not usable, or has too few classes to make mixtures of.
        UsageError: ``out`` holds something else, or the folders contain each other.
    """
    if kind not in KINDS:
        raise UsageError(f"there is no kind {kind!r}", hint=f"known: {', '.join(KINDS)}")
    _check_places(source, out, borrow)
    staging = out.parent / f".{out.name}.partial-{os.getpid()}"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        found = read_folder(source, staging, on_progress)
        draft = _own(found, kind)
        if borrow is not None:
            _borrow(draft, borrow, staging, kind)
        _check_classes(draft, found, source, borrow)
        card = _write(draft, found, staging, source, borrow)
        _into_place(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return card


@dataclass
class _Draft:
    """Clips and classes of the corpus to be."""

    clips: list[Clip] = field(default_factory=list)
    classes: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    borrowed: int = 0


def split_files(names: Iterable[str]) -> dict[str, str]:
    """Divide the files of one class, in the order of a hash of their names: a fifth, at least one, to validation.

    A lone file trains. Names decide, not the order or number of other classes.

    >>> sorted(split_files(["a.wav", "b.wav"]).values())
    ['train', 'val']
    """
    order = sorted(set(names), key=lambda name: hashlib.sha256(f"split:{name}".encode()).digest())
    held = max(1, round(_HELD * len(order))) if len(order) > 1 else 0
    return {name: "val" if n < held else "train" for n, name in enumerate(order)}


def split_time(seconds: float) -> tuple[float, float] | None:
    """Where training ends and where validation begins in a lone recording, in seconds; None when it is short.

    >>> split_time(20.0), split_time(5.0)
    ((15.0, 16.0), None)
    """
    if seconds < _LONG_S:
        return None
    start = seconds - max(2.0, _HELD * seconds)
    return start - _GAP_S, start


def _own(found: UserFolder, kind: str) -> _Draft:
    """The user's sounds as clips with splits."""
    draft = _Draft()
    by_label: dict[str, list[UserSound]] = defaultdict(list)
    for sound in found.sounds:
        by_label[sound.label].append(sound)
    for label, sounds in sorted(by_label.items()):
        draft.classes[label] = {
            "kind": kind,
            "texts": found.texts[label],
            "texts_test": [],
            "pictures": {"train": list(found.pictures.get(label, [])), "test": []},
            "confusable": [],
        }
        clips = [_clip(sound, draft.classes[label], found) for sound in sounds]
        if len(clips) > 1:
            splits = split_files(clip.source for clip in clips)
            draft.clips += [replace(clip, split=splits[clip.source]) for clip in clips]
            continue
        parts = _parts(clips[0])
        if len(parts) == 1:
            draft.notes.append(f"{label}: one short recording, which trains; add a second one to hold out")
        draft.clips += parts
    for label in sorted(set(found.texts) - set(by_label)):
        draft.notes.append(f"{label}: no usable sound, so the class is left out")
    return draft


def _clip(sound: UserSound, entry: Mapping[str, Any], found: UserFolder) -> Clip:
    return Clip(
        id=sound.audio.removeprefix("audio/").removesuffix(".flac"),
        audio=sound.audio,
        duration_s=sound.frames / RATE_HZ,
        sample_rate=RATE_HZ,
        channels=1,
        captions=tuple(entry["texts"]),
        labels=(sound.label,),
        kind=entry["kind"],
        split="train",
        source=sound.path,
        source_path=sound.path,
        sha256=sound.sha256,
        pictures=tuple(found.pictures.get(sound.label, ())),
        dataset=NAME,
    )


def _parts(clip: Clip) -> list[Clip]:
    """A lone recording: whole, or its beginning for training and its end for validation."""
    cut = split_time(clip.duration_s or 0.0)
    if cut is None:
        return [clip]
    end, start = cut
    first = replace(clip, id=f"{clip.id}-start", source=f"{clip.source}#start", duration_s=end)
    last = replace(clip, id=f"{clip.id}-end", source=f"{clip.source}#end", split="val", offset_s=start)
    return [first, replace(last, duration_s=(clip.duration_s or 0.0) - start)]


def _borrow(draft: _Draft, root: Path, staging: Path, kind: str) -> None:
    """Add the training and validation clips of another corpus as background classes."""
    if not (root / "classes.json").exists():
        raise DataError(
            "no corpus is there to borrow from",
            where=str(root),
            hint=f"make it with: auralign data build soundbox --out {root}",
        )
    theirs: dict[str, dict[str, Any]] = json.loads((root / "classes.json").read_text(encoding="utf-8"))
    own = sorted(draft.classes)
    for label in own:
        _relate(label, draft.classes, theirs)
    other_kind = next(name for name in ("instrument", "event") if name != kind)
    for clip in read_manifest(root / "manifest.jsonl"):
        label = clip.labels[0]
        if clip.split not in ("train", "val") or label in own or label not in theirs:
            continue
        entry = {
            **theirs[label],
            "kind": other_kind if theirs[label]["kind"] == kind else theirs[label]["kind"],
        }
        draft.classes.setdefault(label, entry)
        moved = replace(
            clip,
            id=f"borrowed/{clip.id}",
            audio=_link(root, clip.audio, staging, "audio/borrowed"),
            kind=entry["kind"],
            pictures=(),
        )
        draft.clips.append(moved)
        draft.borrowed += 1
    for entry in draft.classes.values():
        shown = entry["pictures"]["train"]
        linked = [path if (staging / path).exists() else _link(root, path, staging, "") for path in shown]
        entry["pictures"] = {"train": linked, "test": []}
    for label in own:
        known = set(draft.classes[label]["confusable"]) & set(draft.classes)
        draft.classes[label]["confusable"] = sorted(known)
        for other in known:
            entry = draft.classes[other]
            entry["confusable"] = sorted({*entry.get("confusable", []), label})


def _relate(label: str, classes: dict[str, dict[str, Any]], theirs: Mapping[str, Mapping[str, Any]]) -> None:
    """Wordings, pictures and look-alikes of the user's class from the borrowed ones.

    A borrowed class can be taken for it when the words of one name contain the other's, or when its wordings hold
    the name; in the latter case so can whatever the borrowed class can be taken for.
    """
    entry, words = classes[label], set(label.split())
    if label in theirs:
        entry["texts"] = list(dict.fromkeys([*entry["texts"], *theirs[label]["texts"]]))
        entry["pictures"]["train"] += theirs[label].get("pictures", {}).get("train", [])
    same = {name for name, row in theirs.items() if name == label or label in row["texts"]}
    part = {name for name in theirs if words <= set(name.split()) or set(name.split()) <= words}
    near = {other for name in same for other in theirs[name].get("confusable", [])}
    entry["confusable"] = sorted((same | part | near) - {label})


def _link(root: Path, path: str, staging: Path, under: str) -> str:
    """A file of another corpus in this one: the same bytes on disk where possible, a copy elsewhere."""
    target = f"{under}/{path.removeprefix('audio/')}" if under else path
    place = staging / target
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link((root / path).resolve(), place)
        except OSError:
            try:
                shutil.copyfile(root / path, place)
            except OSError as error:
                raise DataError(
                    "a borrowed file cannot be read", where=str(root / path), why=str(error)
                ) from error
    return target


def _check_classes(draft: _Draft, found: UserFolder, source: Path, borrow: Path | None) -> None:
    """Refuse what no mixture can be made of, before training finds out."""
    for split, what in (("train", "train on"), ("val", "validate with")):
        labels = sorted({clip.labels[0] for clip in draft.clips if clip.split == split})
        apart = [a for a in labels if set(labels) - {a, *draft.classes[a]["confusable"]}]
        if len(labels) >= FEWEST and apart == labels:
            continue
        lone = sorted(set(labels) - set(apart)) if len(labels) >= FEWEST else []
        count = f"{len(labels)} class{'' if len(labels) == 1 else 'es'} with sounds to {what}"
        why = f"nothing can be told from {lone[0]!r}" if lone else f"mixtures need {FEWEST} or more"
        if found.skipped:
            name, reason = next(iter(found.skipped.items()))
            why += f"; of no use: {len(found.skipped)}, the first {name}: {reason}"
        lend = "borrow other classes with `--with corpora/soundbox`, made by `auralign data build soundbox`"
        raise DataError(
            f"{count}: {', '.join(labels[:8]) or 'none'}",
            where=str(source),
            why=why,
            hint=f"{lend if borrow is None else 'borrow from a larger corpus'}, or add subfolders and files",
        )


def _check_places(source: Path, out: Path, borrow: Path | None) -> None:
    here, there = source.resolve(), out.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise UsageError(
            "the corpus and the sounds must not lie inside each other",
            where=str(out),
            hint=f"keep {source} as it is and give another --out, for example corpora/{here.name}",
        )
    if borrow is not None and borrow.resolve() == there:
        raise UsageError("the corpus cannot borrow from the place that it replaces", where=str(out))
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        made_here = json.loads((out / "corpus.json").read_text(encoding="utf-8")).get("name") == NAME
    except (OSError, ValueError, AttributeError):
        made_here = False
    if not made_here:
        raise UsageError(
            "this holds something that was not built from a folder of sounds",
            where=str(out),
            hint="give another --out; only an earlier corpus of the same sort is replaced",
        )


def _write(
    draft: _Draft, found: UserFolder, staging: Path, source: Path, borrow: Path | None
) -> dict[str, Any]:
    write_manifest(staging / "manifest.jsonl", draft.clips)
    _write_json(staging / "classes.json", dict(sorted(draft.classes.items())))
    minutes: dict[str, float] = defaultdict(float)
    for clip in draft.clips:
        minutes[clip.split] += (clip.duration_s or 0.0) / 60
    card = {
        "name": NAME,
        "version": VERSION,
        "source": source.resolve().name,
        "hash": hashlib.sha256((staging / "manifest.jsonl").read_bytes()).hexdigest(),
        "clips": len(draft.clips),
        "classes": len(draft.classes),
        "own": _counts(draft.clips, found.labels),
        "borrowed": {"from": "" if borrow is None else borrow.resolve().name, "clips": draft.borrowed},
        "minutes": {split: round(value, 2) for split, value in sorted(minutes.items())},
        "notes": draft.notes,
        "skipped": dict(sorted(found.skipped.items())),
        "broken": sorted(found.broken),
    }
    _write_json(staging / "corpus.json", card)
    return card


def _counts(clips: Sequence[Clip], labels: Sequence[str]) -> dict[str, dict[str, int]]:
    return {
        label: {
            split: sum(clip.labels[0] == label and clip.split == split for clip in clips)
            for split in ("train", "val")
        }
        for label in labels
    }


def _into_place(staging: Path, out: Path) -> None:
    """Two renames: at no time does a half-built folder bear the name."""
    old = out.parent / f".{out.name}.old-{os.getpid()}"
    if out.exists():
        out.rename(old)
    staging.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
