"""WavCaps (Mei et al. 2024): weakly captioned clips of AudioSet, BBC, Freesound and SoundBible."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from auralign.data.clip import Clip
from auralign.data.readers.base import Collector, Reading, choose_splits
from auralign.data.readers.layout import Listing, find_any, find_folders, need_folder, wrong_root
from auralign.data.readers.tables import Entry, json_entries, read_json
from auralign.errors import DataError

_LISTS = {
    "AudioSet_SL": "as_final.json",
    "BBC_Sound_Effects": "bbc_final.json",
    "FreeSound": "fsd_final.json",
    "SoundBible": "sb_final.json",
}
_AUDIO = (
    "Audio/{0}",
    "audio/{0}",
    "Zip_files/{0}",
    "waveforms/{0}_flac",
    "waveforms/{0}",
    "{0}_flac",
    "{0}",
    "Zip_files/{0}/mnt/fast/nobackup/scratch4weeks/xm00178/WavCaps/data/waveforms/{0}_flac",
)
_BLACKLISTED = {"AudioSet_SL": "AudioSet", "FreeSound": "FreeSound"}


def read_wavcaps(root: Path, *, split: str | None = None, exclude: Sequence[Path] = ()) -> Reading:
    """Read ``json_files/<source>/*_final.json`` and ``<id>.flac`` of each source.

    A list is ``{"data": [{id, caption, duration, …}]}``, or only the list. The file of an item is its id with
    ``.flac``; ids of AudioSet_SL already end in ``.wav`` and start with ``Y``. Clip ids are
    ``<source>/<id>``, because ids are unique per source only.

    Args:
        root: Folder of the data set.
        split: Source: ``AudioSet_SL``, ``BBC_Sound_Effects``, ``FreeSound`` or ``SoundBible``; all if not
            given.
        exclude: Published blacklists ``{"AudioSet": [ids], "FreeSound": [ids]}``: use them when you evaluate
            on AudioCaps, Clotho, ESC-50, UrbanSound8K or VGGSound.

    Returns:
        One clip per item on disk.

    Raises:
        DataError: If the folder is not WavCaps, an item is wrong or repeated, or no sound is on disk.
    """
    root, wanted = need_folder(root, "WavCaps"), choose_splits(split, tuple(_LISTS), "WavCaps")
    names = {part: _names(part) for part in wanted}
    there = {part: path for part in wanted if (path := find_any(root, names[part], kind="file")) is not None}
    if not there:
        raise wrong_root(root, [name for part in wanted for name in names[part]], "WavCaps")
    banned = _banned(exclude)
    out = Collector("WavCaps", root)
    if not exclude and {"AudioSet_SL", "FreeSound"} & set(there):
        out.note(
            "no blacklist was given: do not evaluate on AudioCaps, Clotho, ESC-50 or VGGSound after training"
        )
    for part in wanted:
        if part not in there:
            out.note(f"there is no {_LISTS[part]}")
            continue
        folders, files = find_folders(root, [name.format(part) for name in _AUDIO]), Listing()
        for entry in json_entries(there[part]):
            _add(out, part, entry, (folders, files, banned.get(part, frozenset())))
    return out.finish()


def _names(part: str) -> list[str]:
    name = _LISTS[part]
    return [f"json_files/{part}/{name}", f"data/json_files/{part}/{name}", f"{part}/{name}", name]


def _add(out: Collector, part: str, entry: Entry, places: tuple[list[Path], Listing, frozenset[str]]) -> None:
    folders, files, banned = places
    name = entry.text("id")
    if "/" in name or name.startswith("."):
        raise DataError(f"field 'id' holds {name!r}", where=entry.where, why="an id is no path")
    out.claim(f"{part}/{name}", entry.where)
    if name.removesuffix(".wav") in banned:
        out.skip("on a blacklist")
        return
    found = files.first(folders, (name.removesuffix(".wav"),))
    if found is None:
        out.miss(
            name,
            entry.where,
            f"{name.removesuffix('.wav')}.flac in {', '.join(map(str, folders)) or 'no folder'}",
        )
        return
    out.clip(
        Clip(
            f"{part}/{name.removesuffix('.wav')}",
            str(found),
            duration_s=entry.number("duration"),
            captions=(entry.text("caption"),),
            split=part,
            source=f"{part}/{name.removesuffix('.wav')}",
            license="academic use",
            dataset="wavcaps",
        )
    )


def _banned(paths: Sequence[Path]) -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = {part: set() for part in _BLACKLISTED}
    for path in paths:
        content = read_json(Path(path))
        for part, key in _BLACKLISTED.items():
            names = content.get(key) if isinstance(content, dict) else None
            if not isinstance(names, list):
                raise DataError(
                    f"there is no list {key!r}",
                    where=str(path),
                    hint='a blacklist is {"AudioSet": […], "FreeSound": […]}',
                )
            found[part] |= {str(name).removesuffix(".wav") for name in names}
    return {part: frozenset(names) for part, names in found.items()}
