"""Index lists of the Sound-of-Pixels lineage, and the mixtures that CLIPSep and OmniSep draw from them.

An index has no header: audio path, frame folder, number of frames[, label]; lists of two columns (path,
label) are BiSep's. MUSIC-clean+ is ``test.csv`` of MUSIC × ``test-good-no-music.csv``, VGGSOUND-clean+ is
``test-good.csv`` × ``test-no-music.csv`` of VGGSound (Dong et al. 2023; that the names mean these pairs is
inferred from the lineage's commands and matching results).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from auralign.data.clip import Clip
from auralign.data.readers.base import Collector, MixtureItem, Reading, choose_splits, words
from auralign.data.readers.layout import Rerooter, find_any, find_folders, need_folder, wrong_root
from auralign.data.readers.tables import Row, read_rows
from auralign.errors import DataError

_PLACES = ("", "data/", "clipsep/data/", "omnisep/data/")
_PAIRS = {
    "music": (
        ("MUSIC/solo/test.csv", "solo/test.csv"),
        ("vggsound/test-good-no-music.csv", "test-good-no-music.csv"),
    ),
    "vggsound": (
        ("vggsound/test-good.csv", "test-good.csv"),
        ("vggsound/test-no-music.csv", "test-no-music.csv"),
    ),
}


@dataclass(frozen=True)
class IndexItem:
    """One row of an index list.

    Args:
        audio: Path as written.
        label: Class; the folder of the file if the list has no label column.
        centre_s: Middle of the crop, in seconds; ``None`` if the list has no number of frames.
        where: File and line.
    """

    audio: str
    label: str
    centre_s: float | None
    where: str


def read_index(path: Path, *, fps: float = 1.0) -> list[IndexItem]:
    r"""Read an index list of 2 (path, label), 3 or 4 columns.

    The lineage crops around the middle frame: :math:`c = (\lfloor n / 2 \rfloor - 1/2) / f` seconds for n
    frames at f frames per second.

    Args:
        path: Header-less list.
        fps: Frames per second at which frames were taken.

    Raises:
        DataError: If a row has another form, or one path occurs twice.
    """
    rows = read_rows(path, columns=("audio", "frames", "n_frames", "label"), least=2)
    seen: dict[str, str] = {}
    items = []
    for row in rows:
        audio = row.text("audio")
        if audio in seen:
            raise row.bad("audio", f"the same path is at {seen[audio]}", hint="remove one of the two rows")
        seen[audio] = row.where
        items.append(_item(row, audio, fps))
    return items


def _item(row: Row, audio: str, fps: float) -> IndexItem:
    if len(row.cells) == 2:
        return IndexItem(audio, words(row["frames"]), None, row.where)
    frames = row.integer("n_frames")
    if frames < 1:
        raise row.bad("n_frames", "expected at least one frame")
    label = row["label"] if "label" in row else Path(audio).parent.name
    return IndexItem(audio, words(label), (frames // 2 - 0.5) / fps, row.where)


def draw_interferers(
    targets: list[IndexItem], others: list[IndexItem], *, sources: int = 2, rule: str = "published"
) -> list[tuple[IndexItem, ...]]:
    """Draw the interferers of each target as CLIPSep and OmniSep do.

    For target number i the generator is seeded with i, and each of the ``sources - 1`` interferers is
    ``others[randint(0, len(others) - 1)]``, drawn in turn (CLIPSep, ``MixDatasetV2``). Nothing there
    excludes the class of the target or a second draw of one clip; on the published lists no target meets
    its own class, as the lists were chosen so. ``rule="other-class"`` draws again until the class differs
    and the clip is
    new: use it for lists of your own. The draws depend on the order of both lists, and on ``random`` of
    Python ≥ 3.2.

    Args:
        targets: First list.
        others: Second list.
        sources: Components of a mixture, 2 or more.
        rule: ``published`` or ``other-class``.

    Raises:
        DataError: If a list is empty, or no clip of another class is left.
    """
    if rule not in ("published", "other-class") or sources < 2 or not targets or not others:
        raise DataError(
            f"cannot draw {sources - 1} of {len(others)} clips for {len(targets)} targets by rule {rule!r}",
            where="draw_interferers",
            hint="give two lists that are not empty, sources ≥ 2, and rule 'published' or 'other-class'",
        )
    return [_draw(index, target, others, (sources, rule)) for index, target in enumerate(targets)]


def _draw(
    index: int, target: IndexItem, others: list[IndexItem], how: tuple[int, str]
) -> tuple[IndexItem, ...]:
    (sources, rule), generator = how, random.Random(index)
    drawn: list[IndexItem] = []
    if rule == "other-class":
        usable = {item.audio for item in others if item.label != target.label and item.audio != target.audio}
        if len(usable) < sources - 1:
            raise DataError(
                f"only {len(usable)} clips have another class than {target.label!r}",
                where=target.where,
                hint="give a second list with more classes",
            )
    while len(drawn) < sources - 1:
        item = others[generator.randint(0, len(others) - 1)]
        if rule == "published" or (item.audio in usable and item not in drawn):
            drawn.append(item)
    return tuple(drawn)


def read_clipsep(
    root: Path, *, split: str | None = None, audio: Path | None = None, sources: int = 2, prompt: str = "{}"
) -> Reading:
    """Read MUSIC-clean+ and VGGSOUND-clean+ as mixtures.

    Paths in the lists were written on another machine; they are looked for by their ends below ``root``.

    Args:
        root: Folder with ``MUSIC/solo/test.csv``, ``vggsound/test-good.csv`` and so on, or its parent.
        split: ``music`` or ``vggsound``; both if not given.
        audio: Folder of the sounds, if it is not below ``root``.
        sources: Components of a mixture.
        prompt: Query with ``{}`` for the label; the papers use ``a photo of {}``.

    Returns:
        One mixture per target whose components are all on disk.

    Raises:
        DataError: If the lists are not there, a row is wrong, or no sound is on disk.
    """
    root, wanted = (
        need_folder(root, "CLIPSep's lists"),
        choose_splits(split, tuple(_PAIRS), "CLIPSep's lists"),
    )
    names = {part: tuple([p + n for p in _PLACES for n in side] for side in _PAIRS[part]) for part in wanted}
    found = {part: tuple(find_any(root, side, kind="file") for side in names[part]) for part in wanted}
    out = Collector("CLIPSep's lists", root)
    if not any(all(pair) for pair in found.values()):
        raise wrong_root(root, [side[0] for part in wanted for side in _PAIRS[part]], "CLIPSep's lists")
    files = Rerooter(
        [*([Path(audio)] if audio else []), root, *find_folders(root, ("data", "clipsep"))], least=2
    )
    for part, (first, second) in found.items():
        if first is None or second is None:
            out.note(f"{part}: {_PAIRS[part][0 if first is None else 1][0]} is not there")
            continue
        targets, others = read_index(first), read_index(second)
        for index, drawn in enumerate(draw_interferers(targets, others, sources=sources)):
            _add(out, files, f"{part}-{index}", ((targets[index], *drawn), prompt))
    if files.rerooted:
        out.note(
            f"{files.rerooted} paths were found by their ends below {', '.join(map(str, files.folders))}"
        )
    return out.finish()


def _add(out: Collector, files: Rerooter, name: str, what: tuple[tuple[IndexItem, ...], str]) -> None:
    items, prompt = what
    paths = []
    for item in items:
        path = files.find(item.audio, item.where)
        if path is None:
            out.miss(name, item.where, item.audio)
            return
        paths.append(str(path))
    out.mixture(
        MixtureItem(
            name,
            paths[0],
            tuple(paths[1:]),
            prompt.format(items[0].label),
            rule="clipsep",
            labels=tuple(item.label for item in items),
            centres_s=tuple(item.centre_s for item in items if item.centre_s is not None),
        )
    )


def read_index_clips(path: Path, *, root: Path, split: str = "") -> Reading:
    """Read one index list as clips, for training lists of the lineage.

    Raises:
        DataError: If a row is wrong or no sound is on disk.
    """
    out, files = Collector(path.name, root), Rerooter([root], least=2)
    for item in read_index(path):
        found = files.find(item.audio, item.where)
        if found is None:
            out.miss(item.audio, item.where, item.audio)
            continue
        out.clip(
            Clip(
                item.audio,
                str(found),
                labels=(item.label,),
                split=split,
                source=found.stem,
                dataset=path.stem,
            )
        )
    return out.finish()
