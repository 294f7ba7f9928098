"""FSD50K (Fonseca et al. 2022): Freesound clips with labels of the AudioSet ontology."""

from __future__ import annotations

import difflib
from pathlib import Path

from auralign.data.clip import Clip
from auralign.data.readers.base import Collector, Reading, choose_splits, words
from auralign.data.readers.layout import Listing, find_any, need_folder, wrong_root
from auralign.data.readers.tables import Row, read_json, read_rows

_LISTS: dict[str, tuple[str, ...]] = {
    "dev": ("FSD50K.ground_truth/dev.csv", "ground_truth/dev.csv", "labels/dev.csv", "dev.csv")
}
_LISTS["eval"] = tuple(name.replace("dev.csv", "eval.csv") for name in _LISTS["dev"])
_AUDIO = ("FSD50K.{0}_audio", "{0}_audio", "clips/{0}", "audio/{0}", "{0}")


def read_fsd50k(root: Path, *, split: str | None = None) -> Reading:
    """Read ``FSD50K.ground_truth/{dev,eval,vocabulary}.csv`` and ``FSD50K.{dev,eval}_audio/<fname>.wav``.

    Labels and mids are comma-joined inside quotes and already hold every ancestor; labels lose their
    underscores. Licences come from ``FSD50K.metadata/*_clips_info_FSD50K.json`` where it is there.

    Args:
        root: Folder of the data set.
        split: ``train``, ``val`` or ``test``; all if not given.

    Returns:
        One clip per file on disk; ``source`` is the Freesound id.

    Raises:
        DataError: If the folder is not FSD50K, a label is not in the vocabulary, or no sound is on disk.
    """
    root = need_folder(root, "FSD50K")
    wanted = choose_splits(split, ("train", "val", "test"), "FSD50K")
    parts = [part for part, there in (("dev", wanted != ("test",)), ("eval", "test" in wanted)) if there]
    there = {part: path for part in parts if (path := find_any(root, _LISTS[part], kind="file")) is not None}
    if not there:
        raise wrong_root(root, _LISTS[parts[0]], "FSD50K")
    out = Collector("FSD50K", root)
    for part in parts:
        if part not in there:
            out.note(f"there is no {part}.csv")
            continue
        vocabulary = _vocabulary(there[part].parent / "vocabulary.csv")
        if not vocabulary:
            out.note("there is no vocabulary.csv: labels were not checked")
        _part(out, part, there[part], wanted, vocabulary)
    return out.finish()


def _part(out: Collector, part: str, path: Path, wanted: tuple[str, ...], vocabulary: frozenset[str]) -> None:
    required = ("fname", "labels", "mids") + (("split",) if part == "dev" else ())
    folder = find_any(out.root, [name.format(part) for name in _AUDIO], kind="folder")
    files, licences = Listing(), _licences(out.root, part)
    for row in read_rows(path, required=required):
        name, split = row.text("fname"), row["split"] if part == "dev" else "test"
        if not name.isdigit():
            raise row.bad("fname", "expected a Freesound id")
        if split not in ("train", "val", "test"):
            raise row.bad("split", "expected train or val")
        out.claim(name, row.where, what="fname")
        labels = _labels(row, vocabulary)
        if split not in wanted:
            out.skip(f"split {split}")
            continue
        found = files.first([folder], (name,)) if folder is not None else None
        if found is None:
            out.miss(name, row.where, f"FSD50K.{part}_audio/{name}.wav")
            continue
        out.clip(
            Clip(
                name,
                str(found),
                labels=labels,
                split=split,
                source=name,
                license=licences.get(name, ""),
                dataset="fsd50k",
            )
        )


def _labels(row: Row, vocabulary: frozenset[str]) -> tuple[str, ...]:
    labels = [item.strip() for item in row.text("labels").split(",") if item.strip()]
    mids = [item.strip() for item in row["mids"].split(",") if item.strip()]
    if len(labels) != len(mids):
        raise row.bad("labels", f"{len(labels)} labels for {len(mids)} mids")
    for label in labels:
        if vocabulary and label not in vocabulary:
            near = difflib.get_close_matches(label, vocabulary, 1)
            hint = f"did you mean {near[0]!r}?" if near else ""
            raise row.bad("labels", f"{label!r} is not in vocabulary.csv", hint=hint)
    return tuple(words(label) for label in labels)


def _vocabulary(path: Path) -> frozenset[str]:
    if not path.is_file():
        return frozenset()
    return frozenset(row["label"] for row in read_rows(path, columns=("index", "label", "mid")))


def _licences(root: Path, part: str) -> dict[str, str]:
    name = f"{part}_clips_info_FSD50K.json"
    path = find_any(root, (f"FSD50K.metadata/{name}", f"metadata/{name}", name), kind="file")
    content = read_json(path) if path is not None else {}
    if not isinstance(content, dict):
        return {}
    return {key: str(info.get("license", "")) for key, info in content.items() if isinstance(info, dict)}
