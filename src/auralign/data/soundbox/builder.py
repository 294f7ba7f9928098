"""Builds the corpus: packages in, a folder of Opus clips, pictures and a manifest out."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from auralign.data.clip import Clip
from auralign.data.manifest import write_manifest
from auralign.data.soundbox import deb, splits
from auralign.data.soundbox import taxonomy as tables
from auralign.data.soundbox.drafts import Draft, PackageYield, Progress, read_package, render_clips, slug
from auralign.data.soundbox.fetch import fetch
from auralign.data.soundbox.render import Renderer, SoundFontRenderer
from auralign.data.soundbox.scores import Score, choose_scores, read_score, split_of
from auralign.data.soundbox.sound import RATE_HZ
from auralign.data.soundbox.taxonomy import Taxonomy
from auralign.errors import DataError

VERSION = "1"
# Rendered clips of each instrument: (soundfont package, split of the score, clips).
_PLAN = (
    ("fluid-soundfont-gm", "train", 8),
    ("fluid-soundfont-gm", "val", 1),
    ("fluid-soundfont-gm", "test", 2),
    ("musescore-general-soundfont", "train", 3),
    ("timgm6mb-soundfont", "test", 2),
)
RendererFactory = Callable[[Path], Renderer]


def build(
    out: Path,
    *,
    packages: Path | None = None,
    on_progress: Progress | None = None,
    taxonomy: Taxonomy | None = None,
    plan: Sequence[tuple[str, str, int]] = _PLAN,
    scores: Sequence[Score] | None = None,
    renderer: RendererFactory = SoundFontRenderer,
    workers: int | None = None,
) -> dict[str, Any]:
    """Build the soundbox corpus in `out`; an earlier one there is replaced only on success.

    Args:
        out: Folder of the corpus; it receives `manifest.jsonl`, `classes.json`, `corpus.json`,
            `audio/` and `pictures/`.
        packages: Folder with the Debian packages. By default they are downloaded by apt-get into
            `packages/` beside the corpus.
        on_progress: Called with what was done, how many steps are done, and how many there are.
        taxonomy: Classes and packages; the curated tables by default.
        plan: How many clips each soundfont renders per instrument, by split of the score.
        scores: What the instruments play; pieces of the music21 corpus by default.
        renderer: Makes the player of a soundfont.
        workers: Processes; as many as there are processors by default, 1 stays in this process.

    Returns:
        The content of `corpus.json`: version, package versions, totals, hash, and what was left out.

    Raises:
        DataError: Packages are missing or damaged, or the tables contradict each other.
    """
    taxonomy = taxonomy or tables.load()
    report = on_progress or (lambda *_: None)
    paths = fetch(sorted(taxonomy.packages), packages or out.parent / "packages", download=packages is None)
    workers = workers or os.cpu_count() or 1
    with tempfile.TemporaryDirectory(prefix="soundbox-") as folder:
        workspace = Path(folder)
        yields = _read_all(paths, taxonomy, workspace, workers, report)
        drafts = [draft for item in yields.values() for draft in item.drafts]
        if any(cls.programs for cls in taxonomy.classes.values()) and plan:
            drafts += _render_all(paths, taxonomy, workspace, plan, scores, renderer, workers, report)
        return _write(out, drafts, yields, taxonomy, paths)


def _run(
    jobs: Sequence[tuple[Any, ...]], work: Callable[..., Any], workers: int, tell: Callable[[int], None]
) -> list[Any]:
    results = []
    if workers == 1:
        for index, job in enumerate(jobs):
            results.append(work(*job))
            tell(index)
        return results
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures = [pool.submit(work, *job) for job in jobs]
        for index, future in enumerate(futures):
            results.append(future.result())
            tell(index)
    return results


def _read_all(
    paths: Mapping[str, Path], taxonomy: Taxonomy, workspace: Path, workers: int, report: Progress
) -> dict[str, PackageYield]:
    names = sorted(paths, key=lambda name: (-paths[name].stat().st_size, name))
    jobs = [(name, paths[name], taxonomy, workspace) for name in names]
    results = _run(jobs, read_package, workers, lambda k: report(f"read {names[k]}", k + 1, len(names)))
    return dict(sorted(zip(names, results, strict=True)))


def _render_all(
    paths: Mapping[str, Path],
    taxonomy: Taxonomy,
    workspace: Path,
    plan: Sequence[tuple[str, str, int]],
    scores: Sequence[Score] | None,
    renderer: RendererFactory,
    workers: int,
    report: Progress,
) -> list[Draft]:
    if scores is None:
        chosen = choose_scores()
        scores = _run([(name,) for name in chosen], read_score, workers, lambda _: None)
        report(f"read {len(chosen)} scores", len(chosen), len(chosen))
    pools: dict[str, list[Score]] = defaultdict(list)
    for score in scores:
        if score.parts:
            pools[split_of(score.name)].append(score)
    instruments = [cls for cls in taxonomy.classes.values() if cls.programs]
    jobs = []
    for package in sorted({package for package, _, _ in plan}):
        font = next(iter(sorted(workspace.glob(f"{package}.sf?"))), None)
        if font is None:
            raise DataError("the package holds no soundfont", where=package)
        version = deb.control(paths[package]).get("Version", "")
        digest = hashlib.sha256(font.read_bytes()).hexdigest()
        wanted = [(split, count) for name, split, count in plan if name == package]
        half = (len(instruments) + 1) // 2
        for group in (instruments[:half], instruments[half:]):
            jobs.append((font, renderer, group, pools, wanted, package, version, digest))
    results = _run(jobs, _render_group, workers, lambda k: report("rendered instruments", k + 1, len(jobs)))
    return [draft for group in results for draft in group]


def _render_group(
    font: Path,
    renderer: RendererFactory,
    group: Sequence[tables.SoundClass],
    pools: Mapping[str, Sequence[Score]],
    wanted: Sequence[tuple[str, int]],
    package: str,
    version: str,
    digest: str,
) -> list[Draft]:
    player = renderer(font)
    drafts = []
    for cls in group:
        for split, count in wanted:
            if cls.unseen and split != "test":
                continue
            if not pools.get(split):
                raise DataError(f"no score is left for the {split} split of rendered instruments")
            drafts += render_clips(
                cls, player, pools[split], count, package=package, version=version, digest=digest
            )
    return drafts


def _write(
    out: Path,
    drafts: Sequence[Draft],
    yields: Mapping[str, PackageYield],
    taxonomy: Taxonomy,
    paths: Mapping[str, Path],
) -> dict[str, Any]:
    repeated = [name for name, count in Counter(draft.id for draft in drafts).items() if count > 1]
    if repeated:
        raise DataError(f"two recordings have the same id, {repeated[0]!r}")
    kept, dropped = splits.merge_duplicates(drafts, taxonomy)
    assigned = splits.assign(kept, taxonomy)
    if not kept:
        raise DataError("no recording was found in the packages")
    staging = out.parent / f".{out.name}.partial"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    pictures, captions = _write_pictures(staging, yields, taxonomy)
    classes = _classes(kept, taxonomy, pictures, captions)
    clips = [_clip(draft, assigned[draft.id], taxonomy, classes) for draft in kept]
    for draft, clip in zip(kept, clips, strict=True):
        target = staging / clip.audio
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(draft.opus)
    write_manifest(staging / "manifest.jsonl", clips)
    _write_json(staging / "classes.json", classes)
    summary = _summary(staging, clips, yields, dropped, paths)
    _write_json(staging / "corpus.json", summary)
    if out.exists():
        shutil.rmtree(out)
    staging.rename(out)
    return summary


def _clip(draft: Draft, split: str, taxonomy: Taxonomy, classes: Mapping[str, Any]) -> Clip:
    return Clip(
        id=draft.id,
        audio=f"audio/{draft.id}.ogg",
        duration_s=round(len(draft.samples) / RATE_HZ, 4),
        sample_rate=RATE_HZ,
        channels=1,
        captions=tuple(classes[draft.label]["texts"]),
        labels=(draft.label,),
        kind=draft.kind,
        split=split,
        source=draft.source,
        package=draft.package,
        version=draft.version,
        source_path=draft.source_path,
        license=taxonomy.packages[draft.package].license,
        sha256=draft.sha256,
        speaker=draft.speaker,
        soundfont=draft.soundfont,
        pictures=tuple(classes[draft.label]["pictures"]["train"]),
    )


def _write_pictures(
    root: Path, yields: Mapping[str, PackageYield], taxonomy: Taxonomy
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Write the pictures; return their paths, and the descriptions beside them, by class."""
    stored: dict[str, list[str]] = {}
    captions: dict[str, list[str]] = {}
    for cls in taxonomy.classes.values():
        stored[cls.name], captions[cls.name] = [], []
        for ending in cls.pictures:
            for item in yields.values():
                for path in sorted(item.pictures):
                    if not path.endswith("/" + ending):
                        continue
                    name = f"pictures/{slug(path.rpartition('/stamps/')[2].removesuffix('.png'))}.png"
                    (root / "pictures").mkdir(exist_ok=True)
                    (root / name).write_bytes(item.pictures[path])
                    stored[cls.name].append(name)
                    text = item.texts.get(path.removesuffix(".png"), "").rstrip(".!")
                    if text and len(text) < 60:
                        captions[cls.name].append(text.lower())
    return stored, captions


def _classes(
    drafts: Sequence[Draft],
    taxonomy: Taxonomy,
    pictures: Mapping[str, list[str]],
    captions: Mapping[str, list[str]],
) -> dict[str, Any]:
    shown = splits.picture_splits(pictures)
    return {
        label: {
            "kind": taxonomy.classes[label].kind,
            "texts": list(dict.fromkeys([*taxonomy.classes[label].texts, *captions[label]])),
            "texts_test": list(taxonomy.classes[label].texts_test),
            "pictures": shown[label],
            "confusable": sorted(
                other for other in taxonomy.classes if other != label and taxonomy.clash(label, other)
            ),
        }
        for label in sorted({draft.label for draft in drafts})
    }


def _summary(
    root: Path,
    clips: Sequence[Clip],
    yields: Mapping[str, PackageYield],
    dropped: Mapping[str, str],
    paths: Mapping[str, Path],
) -> dict[str, Any]:
    minutes: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for clip in clips:
        minutes[clip.split][clip.kind] += (clip.duration_s or 0.0) / 60
    size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    return {
        "name": "soundbox",
        "version": VERSION,
        "hash": hashlib.sha256((root / "manifest.jsonl").read_bytes()).hexdigest(),
        "audio_hash": _tree_hash(root / "audio"),
        "clips": len(clips),
        "classes": len({label for clip in clips for label in clip.labels}),
        "minutes": {
            split: {k: round(v, 2) for k, v in row.items()} for split, row in sorted(minutes.items())
        },
        "bytes": size,
        "packages": {name: deb.control(path).get("Version", "") for name, path in sorted(paths.items())},
        "unmatched": sorted(text for item in yields.values() for text in item.unmatched),
        "skipped": {name: why for item in yields.values() for name, why in sorted(item.skipped.items())},
        "repeated": dict(sorted(dropped.items())),
    }


def _tree_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.ogg")):
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
