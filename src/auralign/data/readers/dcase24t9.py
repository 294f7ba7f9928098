"""DCASE 2024 task 9, language-queried separation: validation and evaluation lists."""

from __future__ import annotations

from pathlib import Path

from auralign.data.clip import Clip
from auralign.data.readers.base import Collector, MixtureItem, Reading, choose_splits
from auralign.data.readers.layout import Listing, find_any, find_folders, need_folder, wrong_root
from auralign.data.readers.tables import Entry, Row, json_entries, read_json, read_rows
from auralign.errors import DataError

_LISTS = {
    "validation": "lass_synthetic_validation.csv",
    "synthetic": "lass_synthetic_evaluation.csv",
    "real": "lass_real_evaluation.csv",
}
_AUDIO = {
    "validation": ("lass_validation", "lass_validation/lass_validation"),
    "synthetic": ("lass_evaluation_synth", "lass_evaluation_synth/lass_evaluation_synth", "lass_evaluation"),
    "real": ("lass_evaluation_real", "lass_evaluation_real/lass_evaluation_real", "lass_evaluation"),
}


def read_dcase24t9(root: Path, *, split: str | None = None) -> Reading:
    """Read the lists of the task.

    Validation: ``lass_synthetic_validation.csv`` (source, noise, snr, caption or query; names without
        ``.wav``, in ``lass_validation/``) gives mixtures to render by rule ``dcase24t9``;
        ``lass_validation.json`` gives clips with three captions and tags. Evaluation:
        ``lass_synthetic_evaluation.csv`` and ``lass_real_evaluation.csv`` (wav, query) name rendered
        mixtures without published targets.

    Args:
        root: Folder of the data set.
        split: ``validation``, ``synthetic`` or ``real``; all that are there if not given.

    Returns:
        Mixtures, and the clips of the validation set.

    Raises:
        DataError: If no list is there, a row is wrong, or no sound is on disk.
    """
    name = "DCASE 2024 task 9"
    root, wanted = need_folder(root, name), choose_splits(split, tuple(_LISTS), name)
    there = {part: root / _LISTS[part] for part in wanted if (root / _LISTS[part]).is_file()}
    if not there:
        raise wrong_root(root, [_LISTS[part] for part in wanted], name)
    out, files = Collector(name, root), Listing()
    for part, path in there.items():
        folders = find_folders(root, (*_AUDIO[part], "."))
        if part != "validation":
            _evaluation(out, part, path, (folders, files))
            continue
        _validation(out, path, (folders, files))
        about = find_any(root, ("lass_validation.json",), kind="file")
        if about is not None:
            _clips(out, about, (folders, files))
    return out.finish()


def _caption(row: Row) -> str:
    return row.text("caption" if "caption" in row else "query")


def _rows(path: Path, required: tuple[str, ...]) -> list[Row]:
    rows = read_rows(path, required=required)
    if "caption" not in rows[0].columns and "query" not in rows[0].columns:
        raise DataError(
            "the header has no column 'caption' or 'query'",
            where=f"{path}:1",
            why=f"it names {', '.join(rows[0].columns)}",
            hint="download the list again",
        )
    return rows


def _validation(out: Collector, path: Path, places: tuple[list[Path], Listing]) -> None:
    folders, files = places
    for index, row in enumerate(_rows(path, ("source", "noise", "snr"))):
        caption, snr = _caption(row), row.number("snr")
        paths = {}
        for column in ("source", "noise"):
            name = row.text(column).removesuffix(".wav")
            if "/" in name:
                raise row.bad(column, "expected a file name without a folder")
            paths[column] = files.first(folders, (name,))
        if row["source"] == row["noise"]:
            raise row.bad("noise", "source and noise are the same clip")
        lost = [row[column] for column, found in paths.items() if found is None]
        if lost:
            out.miss(str(index), row.where, f"{lost[0].removesuffix('.wav')}.wav in {folders[0]}")
            continue
        out.mixture(
            MixtureItem(
                str(index),
                str(paths["source"]),
                (str(paths["noise"]),),
                caption,
                snr_db=snr,
                rule="dcase24t9",
            )
        )


def _evaluation(out: Collector, part: str, path: Path, places: tuple[list[Path], Listing]) -> None:
    folders, files = places
    for index, row in enumerate(_rows(path, ("wav",))):
        name, query = row.text("wav"), _caption(row)
        if "/" in name:
            raise row.bad("wav", "expected a file name without a folder")
        found = files.first(folders, (name.removesuffix(".wav"),))
        if found is None:
            out.miss(f"{part}-{index}", row.where, f"{name} in {folders[0]}")
            continue
        out.mixture(MixtureItem(f"{part}-{index}", "", (), query, mixture=str(found)))


def _clips(out: Collector, path: Path, places: tuple[list[Path], Listing]) -> None:
    """Add the clips of ``lass_validation.json``: ``Index`` (name without ``.wav``), ``Captions``, ``Tags``.

    Field names are compared without regard to case; a column-wise object (field → list) is accepted too.
    """
    folders, files = places
    for entry in _entries(path):
        low = {key.lower(): value for key, value in entry.value.items()}
        item = Entry(entry.path, entry.key, low)
        name = item.text("index" if "index" in low else "wav").removesuffix(".wav")
        out.claim(name, entry.where, what="clip")
        found = files.first(folders, (name,)) if "/" not in name else None
        if found is None:
            out.miss(name, entry.where, f"{name}.wav in {folders[0]}")
            continue
        captions = item.texts("captions") or item.texts("caption")
        out.clip(
            Clip(
                name,
                str(found),
                duration_s=10.0,
                captions=captions,
                labels=item.texts("tags"),
                split="validation",
                source=name,
                dataset="dcase24t9",
            )
        )


def _entries(path: Path) -> list[Entry]:
    content = read_json(path)
    if isinstance(content, dict) and content and all(isinstance(value, list) for value in content.values()):
        lengths = {len(value) for value in content.values()}
        if set(content) != {"data"} and len(lengths) == 1:
            records = [
                dict(zip(content, values, strict=True)) for values in zip(*content.values(), strict=True)
            ]
            return [Entry(path, str(index), record) for index, record in enumerate(records)]
    return json_entries(path)
