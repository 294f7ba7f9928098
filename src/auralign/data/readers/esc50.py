"""ESC-50 (Piczak 2015): 2,000 five-second clips of 50 classes in five folds, recordings kept together."""

from __future__ import annotations

import re
from pathlib import Path

from auralign.data.clip import Clip
from auralign.data.readers.base import Collector, Reading, choose_splits, words
from auralign.data.readers.layout import Listing, find_any, need_folder, wrong_root
from auralign.data.readers.tables import read_rows

_LIST = ("meta/esc50.csv", "esc50.csv", "ESC-50-master/meta/esc50.csv")
_NAME = re.compile(r"(?P<fold>[1-5])-(?P<src>\d+)-(?P<take>[A-Z])-(?P<target>\d+)\.wav")
_FOLDS = ("fold1", "fold2", "fold3", "fold4", "fold5")


def read_esc50(root: Path, *, split: str | None = None) -> Reading:
    """Read ``meta/esc50.csv`` and ``audio/{fold}-{src}-{take}-{target}.wav``.

    Args:
        root: Folder of the data set.
        split: ``fold1`` … ``fold5``; all if not given. Test on one fold, train on the others.

    Returns:
        One clip per file on disk, 5 s long; ``source`` is the Freesound id, which never crosses a fold.

    Raises:
        DataError: If the folder is not ESC-50, a row contradicts its file name, or no sound is on disk.
    """
    root, wanted = need_folder(root, "ESC-50"), choose_splits(split, _FOLDS, "ESC-50")
    path = find_any(root, _LIST, kind="file")
    if path is None:
        raise wrong_root(root, _LIST, "ESC-50")
    base = path.parent.parent if path.parent.name == "meta" else path.parent
    folder = find_any(base, ("audio", "."), kind="folder") or base
    out, files, classes = Collector("ESC-50", root), Listing(), dict[str, str]()
    for row in read_rows(
        path, required=("filename", "fold", "target", "category", "esc10", "src_file", "take")
    ):
        name, match = row.text("filename"), _NAME.fullmatch(row["filename"])
        if match is None:
            raise row.bad("filename", "expected {fold}-{src}-{take}-{target}.wav")
        out.claim(name, row.where, what="filename")
        for column, group in (("fold", "fold"), ("src_file", "src"), ("take", "take"), ("target", "target")):
            if row[column] != match[group]:
                raise row.bad(column, f"the file name says {match[group]!r}")
        if classes.setdefault(row["target"], row.text("category")) != row["category"]:
            raise row.bad("category", f"target {row['target']} was {classes[row['target']]!r} before")
        fold = f"fold{row['fold']}"
        if fold not in wanted:
            out.skip(fold)
        elif not files.holds(folder, name):
            out.miss(name, row.where, str(folder / name))
        else:
            out.clip(
                Clip(
                    name.removesuffix(".wav"),
                    str(folder / name),
                    duration_s=5.0,
                    labels=(words(row["category"]),),
                    kind="event",
                    split=fold,
                    source=row["src_file"],
                    license="CC BY-NC 3.0",
                    dataset="esc50",
                )
            )
    return out.finish()
