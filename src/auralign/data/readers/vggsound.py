"""VGGSound (Chen et al. 2020): 10 s clips of YouTube videos with one of 309 labels."""

from __future__ import annotations

from pathlib import Path

from auralign.data.clip import Clip
from auralign.data.readers.base import Collector, Reading, choose_splits
from auralign.data.readers.layout import find_any, find_folders, need_folder, wrong_root
from auralign.data.readers.tables import Row, read_rows
from auralign.data.readers.youtube import YoutubeFiles, YoutubeKey, split_clip_file, youtube_key

_MASTER = ("vggsound.csv", "data/vggsound.csv", "metadata/vggsound.csv")
_TEST = ("test.csv", "data/test.csv", "metadata/test.csv")
_AUDIO = (
    "audio",
    "audios",
    "wav",
    "video",
    "videos",
    "data",
    "train",
    "test",
    "data/audio",
    "data/vggsound/audio",
)


def read_vggsound(root: Path, *, split: str | None = None, audio: Path | None = None) -> Reading:
    """Read ``vggsound.csv`` (id, start second, label, split; no header) or the ``test.csv`` of the authors.

    Sounds may be named by any convention of :mod:`auralign.data.readers.youtube`. Labels keep their commas.

    Args:
        root: Folder that holds the lists.
        split: ``train`` or ``test``; both if not given.
        audio: Folder of the sounds, if it is not below ``root``.

    Returns:
        One clip per listed clip on disk, 10 s long.

    Raises:
        DataError: If the folder is not VGGSound, a row is wrong, or no sound is on disk.
    """
    root, wanted = need_folder(root, "VGGSound"), choose_splits(split, ("train", "test"), "VGGSound")
    path = find_any(root, _MASTER + _TEST, kind="file")
    if path is None:
        raise wrong_root(root, _MASTER[:1] + _TEST[:1] + _MASTER[1:] + _TEST[1:], "VGGSound")
    out = Collector("VGGSound", root)
    rows = _master(path) if path.name == "vggsound.csv" else _test(path)
    folders = [Path(audio)] if audio is not None else []
    folders += find_folders(root, ("train", "test", *_AUDIO, "."))
    files = YoutubeFiles(folders, [key for _, key, _, _ in rows])
    for row, key, label, part in rows:
        out.claim(key.name, row.where, what="clip")
        if part not in wanted:
            out.skip(f"split {part}")
            continue
        found = files.find(key, label)
        if found is None:
            out.miss(key.name, row.where, files.looked_for(key, label))
            continue
        out.clip(
            Clip(
                key.name,
                str(found),
                duration_s=10.0,
                labels=(label,),
                split=part,
                source=key.id,
                dataset="vggsound",
            )
        )
    for text in files.notes():
        out.note(text)
    return out.finish()


def _master(path: Path) -> list[tuple[Row, YoutubeKey, str, str]]:
    rows = read_rows(path, columns=("youtube_id", "start_seconds", "label", "split"), comments="#")
    if rows[0]["youtube_id"].lower() in ("youtube_id", "ytid"):
        rows = rows[1:]
    out = []
    for row in rows:
        if row["split"] not in ("train", "test"):
            raise row.bad("split", "expected train or test")
        out.append((row, youtube_key(row, "youtube_id", "start_seconds"), row.text("label"), row["split"]))
    return out


def _test(path: Path) -> list[tuple[Row, YoutubeKey, str, str]]:
    rows = read_rows(path, columns=("file", "label"), comments="#")
    return [(row, split_clip_file(row, "file"), row.text("label"), "test") for row in rows]
