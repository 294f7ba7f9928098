"""MUSIC and MUSIC-21 (Zhao et al. 2018, 2019): whole YouTube videos of people who play instruments."""

from __future__ import annotations

from pathlib import Path

from auralign.data.clip import Clip
from auralign.data.readers.base import Collector, Reading, choose_splits, words
from auralign.data.readers.layout import find_folders, need_folder, wrong_root
from auralign.data.readers.tables import lines_of, read_json
from auralign.data.readers.youtube import YoutubeFiles, YoutubeKey, is_youtube_id
from auralign.errors import DataError

_LISTS = {
    "solo": "MUSIC_solo_videos.json",
    "solo21": "MUSIC21_solo_videos.json",
    "duet": "MUSIC_duet_videos.json",
}
_AUDIO = (
    "{part}/audio",
    "{part}",
    "audio/{part}",
    "audio",
    "MUSIC/{part}/audio",
    "data/MUSIC/{part}/audio",
    ".",
)


def read_music(root: Path, *, split: str | None = None, audio: Path | None = None) -> Reading:
    """Read ``MUSIC_solo_videos.json``, ``MUSIC21_solo_videos.json`` and ``MUSIC_duet_videos.json``.

    Each is ``{"version": …, "videos": {label: [video id, …]}}``; sounds are ``<label>/<id>.wav``. Labels lose
    their underscores; a duet has two labels. A solo listed by both MUSIC and MUSIC-21 is read once. The
    authors give no train and test parts, so ``split`` names the list.

    Args:
        root: Folder that holds the lists (all, or some of them).
        split: ``solo``, ``solo21`` or ``duet``; every list that is there if not given.
        audio: Folder of the sounds, if it is not below ``root``.

    Returns:
        One clip per video on disk.

    Raises:
        DataError: If no list is there, an id is malformed or repeated in a list, or no sound is on disk.
    """
    root, wanted = need_folder(root, "MUSIC"), choose_splits(split, tuple(_LISTS), "MUSIC")
    there = {part: path for part in wanted if (path := _list(root, _LISTS[part])) is not None}
    if not there:
        raise wrong_root(root, [_LISTS[part] for part in wanted], "MUSIC")
    out, seen = Collector("MUSIC", root), set()
    for part, path in there.items():
        places = [name.format(part="duet" if part == "duet" else "solo") for name in _AUDIO]
        folders = [Path(audio)] if audio is not None else []
        videos = _videos(path, out)
        files = YoutubeFiles([*folders, *find_folders(root, places)])
        for name, label in videos:
            if name in seen:
                out.skip("listed by another list too")
                continue
            seen.add(name)
            _add(out, files, (name, label, part, path))
        for text in files.notes():
            out.note(f"{part}: {text}")
    return out.finish()


def _list(root: Path, name: str) -> Path | None:
    return next(
        (path for path in (root / name, root / "music" / name, root / "data" / name) if path.is_file()), None
    )


def _add(out: Collector, files: YoutubeFiles, video: tuple[str, str, str, Path]) -> None:
    name, label, part, path = video
    key, where = YoutubeKey(name), str(path)
    found = files.find(key, label)
    if found is None:
        out.miss(name, where, files.looked_for(key, label))
        return
    labels = tuple(words(item) for item in (label.split(" ") if part == "duet" else [label]))
    out.clip(
        Clip(name, str(found), labels=labels, kind="instrument", split=part, source=name, dataset="music")
    )


def _videos(path: Path, out: Collector) -> list[tuple[str, str]]:
    content = read_json(path)
    videos = content.get("videos") if isinstance(content, dict) else None
    if not isinstance(videos, dict):
        raise DataError(
            "there is no object 'videos'", where=str(path), hint='the file must be {"videos": {label: [ids]}}'
        )
    found, seen = [], set()
    for label, names in videos.items():
        for name in names if isinstance(names, list) else [names]:
            if not isinstance(name, str) or not is_youtube_id(name):
                raise DataError(
                    f"label {label!r} lists {name!r}",
                    where=str(path),
                    why="expected a video id of 11 characters",
                    hint="correct this entry",
                )
            if name in seen:
                lines = lines_of(path.read_text("utf-8-sig"), name)
                raise DataError(
                    f"video {name!r} occurs twice",
                    where=f"{path}:{lines[-1]}",
                    why=f"first on line {lines[0]}",
                    hint="remove one of the two entries",
                )
            seen.add(name)
            found.append((name, label))
    return found
