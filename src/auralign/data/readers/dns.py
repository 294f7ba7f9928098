"""The test set of the DNS Challenge of 2020 (Reddy et al., arXiv:2005.13981): synthetic pairs and real recordings."""

from __future__ import annotations

import re
from pathlib import Path

from auralign.data.readers.base import Reading, choose_splits
from auralign.data.readers.layout import find_any, need_folder, wrong_root
from auralign.data.readers.pairs import PairCollector, matched
from auralign.data.readers.speech_base import SpeechPair, sounds_in
from auralign.errors import DataError

_PLACES = ("", "test_set/", "datasets/test_set/", "datasets/")
_FOLDERS = {
    "no_reverb": "synthetic/no_reverb",
    "with_reverb": "synthetic/with_reverb",
    "real_recordings": "real_recordings",
}
# provenance may itself hold "_", "-" and digits, so a name is only ever read from its end
_KEY = re.compile(r"(?:^|.*_)fileid_(\d+)")
_LEVELS = re.compile(r"(.*)_snr(-?\d+(?:\.\d+)?)_tl(-?\d+(?:\.\d+)?)_fileid_\d+")


def read_dns2020(
    root: Path, *, split: str | None = None, headers: bool = True, cut_s: float = 0.0
) -> Reading:
    """Read pairs from ``synthetic/{no_reverb,with_reverb}/{clean,noisy}/`` and ``real_recordings/`` of the test set.

    ``clean_fileid_<k>.wav`` belongs to ``<provenance>_snr<s>_tl<l>_fileid_<k>.wav``; k pairs them and s is the
    SNR. Real recordings have no clean speech.

    Args:
        root: Folder of the test set, or of the challenge's repository.
        split: ``no_reverb``, ``with_reverb`` or ``real_recordings``; all that are there if not given.
        headers: Compare the headers of each pair.
        cut_s: By how much the lengths of a pair may differ, in seconds.

    Returns:
        One pair per k with id ``<split>-<k>``, one per real recording with id ``real_recordings-<name>``.

    Raises:
        DataError: If no part is there, or the name of a synthetic file holds no k.
    """
    name = "the test set of DNS 2020"
    root, wanted = need_folder(root, name), choose_splits(split, tuple(_FOLDERS), name)
    places = {part: [place + _FOLDERS[part] for place in _PLACES] for part in wanted}
    found = {part: find_any(root, places[part], kind="folder") for part in wanted}
    gather = PairCollector(name, root, headers=headers, cut_s=cut_s)
    there = {part: folder for part, folder in found.items() if folder is not None}
    if not there:
        raise wrong_root(root, [one for part in wanted for one in places[part][:2]], name)
    for part, folder in there.items():
        if part == "real_recordings":
            _real(gather, folder)
        else:
            _synthetic(gather, part, folder)
    return gather.finish()


def _real(gather: PairCollector, folder: Path) -> None:
    sounds = sounds_in(folder)
    for stem, path in sounds.items():
        pair = SpeechPair(
            f"real_recordings-{stem}", str(path), split="real_recordings", source=stem, dataset="dns2020"
        )
        gather.add(pair, str(path))
    if sounds:
        gather.out.note(f"{len(sounds)} real recordings have no clean speech")


def _synthetic(gather: PairCollector, part: str, folder: Path) -> None:
    folders = (folder / "noisy", folder / "clean")
    for one in folders:
        if not one.is_dir():
            raise DataError(f"{folder.name} has no folder {one.name!r}", where=str(folder))
    noisy, clean = (_by_key(one) for one in folders)
    unnamed = 0
    for key, one, reference in matched(gather.out, noisy, clean, folders, lambda k: f"{part}-{k}"):
        levels = _LEVELS.fullmatch(one.stem)
        unnamed += levels is None
        pair = SpeechPair(
            f"{part}-{key}",
            str(one),
            str(reference),
            snr_db=float(levels.group(2)) if levels else None,
            split=part,
            source=levels.group(1) if levels else "",
            dataset="dns2020",
        )
        gather.add(pair, str(one))
    if unnamed:
        gather.out.note(f"{unnamed} noisy files of {part} do not name their SNR")
    if part == "with_reverb":
        gather.out.note("the clean speech of with_reverb is reverberant: it says nothing of dereverberation")


def _by_key(folder: Path) -> dict[int, Path]:
    found: dict[int, Path] = {}
    for stem, path in sounds_in(folder).items():
        match = _KEY.fullmatch(stem)
        if match is None:
            raise DataError(
                f"the name {path.name!r} does not end in fileid_<k>",
                where=str(folder),
                hint="move files that are not of the set elsewhere",
            )
        key = int(match.group(1))
        if key in found:
            raise DataError(
                f"fileid {key} is there twice, as {found[key].name} and {path.name}",
                where=str(folder),
                hint="remove one of the two",
            )
        found[key] = path
    return found
