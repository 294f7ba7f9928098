"""AudioCaps 1 and 2 (Kim et al. 2019): captions of 10 s AudioSet clips; also in the layout of BiSep."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from auralign.data.clip import Clip
from auralign.data.readers.base import Collector, MixtureItem, Reading, choose_splits
from auralign.data.readers.layout import find_any, find_folders, need_folder, wrong_root
from auralign.data.readers.tables import Entry, Row, read_json, read_rows
from auralign.data.readers.youtube import YoutubeFiles, YoutubeKey, parse_clip_name, youtube_key
from auralign.errors import DataError

_SPLITS = ("train", "val", "test")
_LISTS = (
    "{0}.csv",
    "dataset/{0}.csv",
    "csv_files_v1/{0}.csv",
    "csv_files_v2/{0}.csv",
    "csv_files/{0}.csv",
    "dataset2.0/{0}.csv",
)
_PLACES = ("", "AUDIOCAPS/", "AudioCaps/", "audiocaps/")
_AUDIO = ("{0}", "audio/{0}", "audio", "wavs/{0}", "wavs", "waveforms/{0}", "waveforms", "data/{0}", ".")
_LICENCE = "captions: academic use"


def read_audiocaps(root: Path, *, split: str | None = None, audio: Path | None = None) -> Reading:
    """Read ``train.csv``, ``val.csv`` and ``test.csv`` (audiocap_id, youtube_id, start_time, caption).

    An ``audiocap_id`` is the id of a *caption*; a clip is a video id and a start second, and gets all its
    captions (1 in training, 5 in validation and test). A clip that a second list repeats is counted and left
    out. The lists may lie in ``dataset/``, ``csv_files_v1/`` or the root, the sounds in
    ``audio_<rate>Hz/<split>/``, ``<split>/`` or ``audio/``.

    Args:
        root: Folder of the data set.
        split: ``train``, ``val`` or ``test``; all that are there if not given.
        audio: Folder of the sounds, if it is not below ``root``.

    Returns:
        One clip per clip on disk.

    Raises:
        DataError: If the folder is not AudioCaps, a row is wrong or repeated, or no sound is on disk.
    """
    root, wanted = need_folder(root, "AudioCaps"), choose_splits(split, _SPLITS, "AudioCaps")
    names = {part: [p + n.format(part) for p in _PLACES for n in _LISTS] for part in wanted}
    there = {part: path for part in wanted if (path := find_any(root, names[part], kind="file")) is not None}
    if not there:
        raise wrong_root(root, names[wanted[0]], "AudioCaps")
    out, seen = Collector("AudioCaps", root), dict[YoutubeKey, str]()
    for part in wanted:
        if part not in there:
            out.note(f"there is no list of {part}")
            continue
        folders = [Path(audio)] if audio is not None else _folders(root, part)
        _split(out, (part, there[part], folders), seen)
    return out.finish()


def _split(out: Collector, place: tuple[str, Path, list[Path]], seen: dict[YoutubeKey, str]) -> None:
    part, path, folders = place
    rows = read_rows(path, required=("audiocap_id", "youtube_id", "start_time", "caption"))
    clips: dict[YoutubeKey, list[Row]] = {}
    for row in rows:
        out.claim(row.text("audiocap_id"), row.where, what=f"audiocap_id of {part}")
        row.text("caption")
        clips.setdefault(youtube_key(row, "youtube_id", "start_time"), []).append(row)
    files = YoutubeFiles(folders, clips)
    for key, captions in clips.items():
        if seen.setdefault(key, part) != part:
            out.skip(f"clip of {part} that {seen[key]} lists too")
            continue
        found = files.find(key)
        if found is None:
            out.miss(key.name, captions[0].where, files.looked_for(key))
            continue
        out.clip(
            Clip(
                key.name,
                str(found),
                duration_s=10.0,
                captions=tuple(row["caption"] for row in captions),
                split=part,
                source=key.id,
                license=_LICENCE,
                dataset="audiocaps",
            )
        )
    for text in files.notes():
        out.note(f"{part}: {text}")


def _folders(root: Path, part: str) -> list[Path]:
    found = []
    for place in find_folders(root, ("AUDIOCAPS", "AudioCaps", "audiocaps", ".")):
        found += [path / part for path in sorted(place.glob("audio_*Hz")) if (path / part).is_dir()]
        found += find_folders(place, [name.format(part) for name in _AUDIO])
    return found


@dataclass(frozen=True)
class Phrases:
    """What BiSep knows of one AudioCaps caption.

    Args:
        key: The clip.
        caption: The whole caption.
        phrases: Its parts, each about one sound.
        where: Where it was read.
    """

    key: YoutubeKey
    caption: str
    phrases: tuple[str, ...]
    where: str


def read_phrases(path: Path) -> dict[str, Phrases]:
    """Read BiSep's ``parsed_all_caps.json``: audiocap_id → ``{file_id, caption, sources}``.

    Raises:
        DataError: If an entry has no such form.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise DataError("not an object", where=str(path), hint="the file must map audiocap ids to objects")
    found = {}
    for name, value in content.items():
        if not isinstance(value, dict):
            raise DataError(f"entry {name!r} is not an object", where=str(path))
        entry = Entry(path, name, value)
        key = parse_clip_name(entry.text("file_id"))
        if key is None or key.start_s is None:
            raise DataError(
                f"file_id {value['file_id']!r} is not <video id>_<start second>",
                where=entry.where,
                hint="an id has 11 characters and may hold '_'",
            )
        found[name] = Phrases(key, entry.text("caption"), entry.texts("sources"), entry.where)
    return found


def read_bisep_audiocaps(root: Path, *, split: str | None = None, audio: Path | None = None) -> Reading:
    """Read AudioCaps as BiSep lays it out: clips for training, pairs for testing.

    ``parsed_all_caps.json`` holds the captions, ``train_ids.csv`` one audiocap_id a row,
    ``test_sep2_ids.csv`` two ids a row (neither has a header), ``audio/`` the sounds. Each row of the test
    list gives one mixture with the first clip's whole caption as query.

    Args:
        root: Folder of the data set.
        split: ``train`` or ``test``; both if not given.
        audio: Folder of the sounds, if it is not ``audio/``.

    Returns:
        Clips with caption and phrases (train, val) and mixtures (test).

    Raises:
        DataError: If the folder has another layout, an id is unknown, or no sound is on disk.
    """
    root, wanted = (
        need_folder(root, "BiSep's AudioCaps"),
        choose_splits(split, ("train", "val", "test"), "BiSep's AudioCaps"),
    )
    names = {"train": "train_ids.csv", "val": "val_ids.csv", "test": "test_sep2_ids.csv"}
    needed = ["parsed_all_caps.json", *(names[part] for part in wanted)]
    if not (root / needed[0]).is_file() or not any((root / name).is_file() for name in needed[1:]):
        raise wrong_root(root, needed, "BiSep's AudioCaps")
    known = read_phrases(root / needed[0])
    out = Collector("BiSep's AudioCaps", root)
    folders = [Path(audio)] if audio is not None else find_folders(root, ("audio", "."))
    files = YoutubeFiles(folders, [item.key for item in known.values()])
    for part in ("train", "val"):
        if part in wanted and (root / names[part]).is_file():
            for row in read_rows(root / names[part], columns=("id",)):
                out.claim(row.text("id"), row.where, what="audiocap_id")
                _phrase_clip(out, files, (part, row), known)
    if "test" in wanted and (root / names["test"]).is_file():
        for index, row in enumerate(read_rows(root / names["test"], columns=("target", "interferer"))):
            _pair(out, files, (index, row), known)
    for text in files.notes():
        out.note(text)
    return out.finish()


def _known(row: Row, column: str, known: dict[str, Phrases]) -> Phrases:
    if row[column] not in known:
        raise row.bad(column, "parsed_all_caps.json has no such audiocap_id")
    return known[row[column]]


def _phrase_clip(
    out: Collector, files: YoutubeFiles, place: tuple[str, Row], known: dict[str, Phrases]
) -> None:
    part, row = place
    item = _known(row, "id", known)
    found = files.find(item.key)
    if found is None:
        out.miss(row["id"], row.where, files.looked_for(item.key))
        return
    out.clip(
        Clip(
            row["id"],
            str(found),
            duration_s=10.0,
            captions=(item.caption,),
            phrases=item.phrases,
            split=part,
            source=item.key.id,
            license=_LICENCE,
            dataset="bisep-audiocaps",
        )
    )


def _pair(out: Collector, files: YoutubeFiles, place: tuple[int, Row], known: dict[str, Phrases]) -> None:
    index, row = place
    items = [_known(row, column, known) for column in ("target", "interferer")]
    paths = [files.find(item.key) for item in items]
    for item, path in zip(items, paths, strict=True):
        if path is None:
            out.miss(str(index), row.where, files.looked_for(item.key))
            return
    out.mixture(MixtureItem(str(index), str(paths[0]), (str(paths[1]),), items[0].caption, rule="bisep"))
