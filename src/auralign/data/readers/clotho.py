"""Clotho 2.1 (Drossos et al. 2020): 15–30 s Freesound clips with five captions each."""

from __future__ import annotations

from pathlib import Path

from auralign.data.clip import Clip
from auralign.data.readers.base import Collector, Reading, choose_splits
from auralign.data.readers.layout import Listing, find_any, find_folders, need_folder, wrong_root
from auralign.data.readers.tables import Row, read_rows, read_text

_SPLITS = ("development", "validation", "evaluation")
_PLACES = ("", "clotho_csv_files/", "csv_files/", "CLOTHO_v2.1/clotho_csv_files/", "metadata/", "csv/")
_AUDIO = (
    "{0}",
    "clotho_audio_{0}/{0}",
    "clotho_audio_{0}",
    "clotho_audio_files/{0}",
    "CLOTHO_v2.1/clotho_audio_files/{0}",
    "audio/{0}",
    "audio",
    ".",
)
_CAPTIONS = tuple(f"caption_{number}" for number in range(1, 6))


def read_clotho(root: Path, *, split: str | None = None) -> Reading:
    """Read ``clotho_captions_<split>.csv``, ``clotho_metadata_<split>.csv`` and the sounds.

    File names are free text with spaces (also leading ones), commas and accents, and repeat between splits;
    clip ids are ``<split>/<name>``. The metadata is ISO-8859-1 (UTF-8 is tried first), comma- or
    semicolon-delimited, its keywords are joined by ``;`` and become labels, ``sound_id`` may be "Not found".
    Clips without metadata are counted in a note.

    Args:
        root: Folder of the data set.
        split: ``development``, ``validation`` or ``evaluation``; all that are there if not given.

    Returns:
        One clip per file on disk, with its five captions.

    Raises:
        DataError: If the folder is not Clotho, a row is wrong or repeated, or no sound is on disk.
    """
    root, wanted = need_folder(root, "Clotho"), choose_splits(split, _SPLITS, "Clotho")
    names = {part: [f"{place}clotho_captions_{part}.csv" for place in _PLACES] for part in wanted}
    there = {part: path for part in wanted if (path := find_any(root, names[part], kind="file")) is not None}
    if not there:
        raise wrong_root(root, [names[part][0] for part in wanted] + names[wanted[0]][1:], "Clotho")
    out = Collector("Clotho", root)
    for part, path in there.items():
        _split(out, part, path)
    for part in wanted:
        if part not in there:
            out.note(f"there is no list of {part}")
    return out.finish()


def _split(out: Collector, part: str, path: Path) -> None:
    required = ("file_name", *_CAPTIONS)
    rows = read_rows(path, required=required, encodings=("utf-8-sig", "iso-8859-1"), trim=False)
    about = _metadata(out, path.with_name(f"clotho_metadata_{part}.csv"))
    folders, files = find_folders(out.root, [name.format(part) for name in _AUDIO]), Listing()
    described = 0
    for row in rows:
        name = row.text("file_name")
        out.claim(name, row.where, what=f"file_name of {part}")
        captions = tuple(row.text(column) for column in _CAPTIONS)
        extra = about.get(name)
        described += extra is not None
        found = _find(files, folders, (row.exact("file_name"), name))
        if found is None:
            out.miss(f"{part}/{name}", row.where, f"{name!r} in {', '.join(map(str, folders))}")
            continue
        out.clip(_clip(found, part, captions, extra))
    if about and described < len(rows):
        out.note(f"{part}: {len(rows) - described} of {len(rows)} clips have no metadata")


def _find(files: Listing, folders: list[Path], names: tuple[str, ...]) -> Path | None:
    for folder in folders:
        for name in names:
            if "/" not in name and files.holds(folder, name):
                return folder / name
    return None


def _clip(path: Path, part: str, captions: tuple[str, ...], about: Row | None) -> Clip:
    keywords = about["keywords"].split(";") if about is not None else []
    sound = about["sound_id"] if about is not None and "sound_id" in about else ""
    return Clip(
        f"{part}/{path.stem.strip()}",
        str(path),
        captions=captions,
        labels=tuple(word.strip() for word in keywords if word.strip()),
        split=part,
        source=sound if sound.isdigit() else path.stem.strip(),
        license=about["license"] if about is not None and "license" in about else "",
        dataset="clotho",
    )


def _metadata(out: Collector, path: Path) -> dict[str, Row]:
    if not path.is_file():
        out.note(f"there is no {path.name}: no keywords, no licences")
        return {}
    encodings = ("utf-8-sig", "iso-8859-1")
    first = read_text(path, encodings=encodings).partition("\n")[0]
    delimiter = ";" if first.count(";") > first.count(",") else ","
    rows = read_rows(path, required=("file_name", "keywords"), delimiter=delimiter, encodings=encodings)
    found: dict[str, Row] = {}
    for row in rows:
        if found.setdefault(row.text("file_name"), row) is not row:
            out.note(
                f"{row.where}: {row['file_name']!r} occurs twice; {found[row['file_name']].where} was taken"
            )
    return found
