"""AudioSep (Liu et al. 2023): its evaluation lists, and its training list, the common form of LASS data."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from auralign.data.clip import Clip
from auralign.data.readers.base import Collector, MixtureItem, Reading, choose_splits
from auralign.data.readers.layout import Rerooter, find_any, find_folders, need_folder, wrong_root
from auralign.data.readers.tables import Row, json_entries, read_rows
from auralign.errors import DataError

_SETS = ("audiocaps", "audioset", "clotho", "esc50", "music", "vggsound")
_PLACES = ("", "metadata/", "evaluation/metadata/")
_AUDIO = ("{0}", "data/{0}", "evaluation/data/{0}", ".")
_COLUMNS = {name: ("idx", "caption", "src_wav") for name in _SETS} | {
    "vggsound": ("file_id", "mix_wav", "s0_wav", "s0_text", "s1_wav", "s1_text")
}


def read_audiosep(root: Path, *, split: str | None = None) -> Reading:
    """Read AudioSep's evaluation lists ``<set>_eval.csv`` and their rendered sounds.

    Targets are ``segment-<idx>.wav``, mixtures ``mixture-<idx>.wav`` in ``<set>/``; AudioSet and VGGSound
    name their files in the list. Clotho has two noise columns of the same name; both are kept. In AudioSet
    ``idx`` is the class and repeats. Interferers are given by path if they are there, which is rare: the
    list names source files. The label is the caption for AudioSet, ESC-50, MUSIC and VGGSound; scores of
    MUSIC are means of class means, of AudioSet means of class medians.

    Args:
        root: Folder that holds the lists, or ``evaluation/`` or its parent.
        split: One of audiocaps, audioset, clotho, esc50, music, vggsound; all that are there if not given.

    Returns:
        One mixture per row whose sounds are on disk.

    Raises:
        DataError: If no list is there, a row is wrong or repeated, or no sound is on disk.
    """
    name = "AudioSep's lists"
    root, wanted = need_folder(root, name), choose_splits(split, _SETS, name)
    lists = {part: [f"{place}{part}_eval.csv" for place in _PLACES] for part in wanted}
    there = {part: path for part in wanted if (path := find_any(root, lists[part], kind="file")) is not None}
    if not there:
        raise wrong_root(root, [lists[part][0] for part in wanted] + lists[wanted[0]][1:], name)
    out = Collector(name, root)
    for part, path in there.items():
        folders = [
            folder for base in (root, path.parent.parent) for folder in find_folders(base, _audio(part))
        ]
        files, counts = Rerooter(list(dict.fromkeys(folders))), dict[str, int]()
        for row in read_rows(path, required=_COLUMNS[part]):
            if part == "vggsound":
                item, names = _vggsound(row)
            elif part == "audioset":
                item, names = _audioset(row, counts)
            else:
                item, names = _indexed(row, part)
            out.claim(item.id, row.where)
            _add(out, files, row, (item, names))
    return out.finish()


def _audio(part: str) -> list[str]:
    return [name.format(part) for name in _AUDIO]


def _vggsound(row: Row) -> tuple[MixtureItem, tuple[str, str]]:
    labels = (row.text("s0_text"), row.text("s1_text"))
    item = MixtureItem(
        f"vggsound-{row.text('file_id')}",
        "",
        (row.text("s1_wav"),),
        labels[0],
        rule="audiosep",
        labels=labels,
    )
    return item, (row.text("s0_wav"), row.text("mix_wav"))


def _audioset(row: Row, counts: dict[str, int]) -> tuple[MixtureItem, tuple[str, str]]:
    number = row.integer("idx")
    counts[str(number)] = take = counts.get(str(number), -1) + 1
    caption = row.text("caption")
    item = MixtureItem(f"audioset-{number}-{take}", "", (), caption, rule="audiosep", labels=(caption,))
    return item, (row.text("src_wav"), row.text("noise_wav"))


def _indexed(row: Row, part: str) -> tuple[MixtureItem, tuple[str, str]]:
    number, caption = row.integer("idx"), row.text("caption")
    noises = tuple(
        cell
        for column in dict.fromkeys(row.columns)
        if column.startswith("noise_wav")
        for cell in row.all(column)
    )
    if not noises:
        raise DataError(
            "the header has no column 'noise_wav'", where=row.where, hint="download the list again"
        )
    labels = (caption,) if part in ("esc50", "music") else ()
    item = MixtureItem(f"{part}-{number}", "", noises, caption, rule="audiosep", labels=labels)
    return item, (f"segment-{number}.wav", f"mixture-{number}.wav")


def _add(out: Collector, files: Rerooter, row: Row, what: tuple[MixtureItem, tuple[str, str]]) -> None:
    item, names = what
    paths = []
    for name in names:
        path = files.find(name, row.where)
        if path is None:
            out.miss(item.id, row.where, f"{name} in {', '.join(map(str, files.folders))}")
            return
        paths.append(str(path))
    others = tuple(
        str(path) for name in item.interferers if (path := files.find(name, row.where)) is not None
    )
    if len(others) < len(item.interferers):
        others = ()
    out.mixture(
        MixtureItem(
            item.id, paths[0], others, item.query, mixture=paths[1], rule=item.rule, labels=item.labels
        )
    )


def read_audiosep_json(path: Path, *, root: Path | None = None, split: str = "train") -> Reading:
    """Read an AudioSep training list ``{"data": [{"wav": path, "caption": text}]}``.

    Paths may be absolute, relative to ``root``, or from another machine: then they are found by their ends.
    A path that occurs several times with different captions is one clip with several captions.

    Args:
        path: The JSON file.
        root: Folder of the sounds; the folder of the file if not given.
        split: Split to give the clips.

    Raises:
        DataError: If the file has another form, one line occurs twice, or no sound is on disk.
    """
    path = Path(path)
    base = path.parent if root is None else need_folder(root, "the sounds of the list")
    out, files = Collector(path.name, base), Rerooter([base])
    captions: dict[str, list[str]] = {}
    places: dict[str, str] = {}
    for entry in json_entries(path):
        wav, caption = entry.text("wav"), entry.text("caption")
        out.claim(f"{wav}: {caption}", entry.where, what="wav with the same caption")
        captions.setdefault(wav, []).append(caption)
        places.setdefault(wav, entry.where)
    for wav, texts in captions.items():
        found = files.find(wav, places[wav])
        if found is None:
            out.miss(wav, places[wav], f"{wav} below {base}")
            continue
        out.clip(
            Clip(wav, str(found), captions=tuple(texts), split=split, source=found.stem, dataset=path.stem)
        )
    if files.rerooted:
        out.note(f"{files.rerooted} paths were found by their ends below {base}")
    return out.finish()


def write_audiosep_json(clips: Sequence[Clip], path: Path, *, root: Path | None = None) -> int:
    """Write clips as an AudioSep training list: one entry per caption, or per label of clips without caption.

    Args:
        clips: Clips to write.
        path: File to write; it appears only when complete.
        root: If given, paths below it are written relative to it.

    Returns:
        Number of entries.

    Raises:
        DataError: If a clip has neither caption nor label, or starts inside its file.
    """
    entries = []
    for clip in clips:
        texts = clip.captions or clip.labels
        if not texts or clip.offset_s:
            what = (
                f"starts at {clip.offset_s} s of its file"
                if clip.offset_s
                else "has neither caption nor label"
            )
            raise DataError(
                f"clip {clip.id!r} {what}",
                where=str(path),
                why="an AudioSep list holds a path and a text",
                hint="leave the clip out, or write it to a file of its own with a caption",
            )
        wav = Path(clip.audio)
        if root is not None and wav.is_absolute() and wav.is_relative_to(Path(root).absolute()):
            wav = wav.relative_to(Path(root).absolute())
        entries += [{"wav": wav.as_posix(), "caption": text} for text in texts]
    part = Path(path).with_name(Path(path).name + ".tmp")
    part.write_text(json.dumps({"data": entries}, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    os.replace(part, path)
    return len(entries)
