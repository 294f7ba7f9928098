"""VoiceBank-DEMAND (Valentini-Botinhao et al. 2016): sentences of known speakers in known noise, at 48 kHz."""

from __future__ import annotations

import re
from pathlib import Path

from auralign.data.readers.base import Reading, choose_splits
from auralign.data.readers.layout import find_any, need_folder, wrong_root
from auralign.data.readers.pairs import PairCollector, matched
from auralign.data.readers.speech_base import SpeechPair, sounds_in
from auralign.data.readers.tables import read_text
from auralign.errors import DataError

VALIDATION_SPEAKERS = ("p226", "p287")
"""Speakers of the 28-speaker training set that SGMSE and its successors hold out to validate."""

_PARTS = {
    "train": "trainset_28spk",
    "valid": "trainset_28spk",
    "train56": "trainset_56spk",
    "test": "testset",
}
_SUFFIXES = ("", "_16k")
_SPEAKER = re.compile(r"(p\d+)_\d+")


def read_voicebank_demand(
    root: Path, *, split: str | None = None, headers: bool = True, cut_s: float = 0.0
) -> Reading:
    """Read pairs from ``{clean,noisy}_{testset,trainset_28spk,trainset_56spk}_wav/``, one name for both files.

    Folders of 16 kHz copies (``…_wav_16k``) are read where the originals are absent. Noise and SNR come from
    ``log_<part>.txt`` (lines of name, noise, SNR), what is said from ``<part>_txt/``, where they are there.

    Args:
        root: Folder of the data set.
        split: ``train`` and ``valid`` (the 28 speakers without and with only
            :data:`VALIDATION_SPEAKERS`), ``train56`` or ``test``; all that are there if not given.
        headers: Compare the headers of each pair.
        cut_s: By how much the lengths of a pair may differ, in seconds.

    Returns:
        One pair per stem.

    Raises:
        DataError: If the folder is not VoiceBank-DEMAND, half of a part is absent, or a log line is wrong.
    """
    name = "VoiceBank-DEMAND"
    root, wanted = need_folder(root, name), choose_splits(split, tuple(_PARTS), name)
    parts = list(dict.fromkeys(_PARTS[one] for one in wanted))
    there = {part: folders for part in parts if (folders := _folders(root, part)) is not None}
    if not there:
        raise wrong_root(root, [f"noisy_{part}_wav{suffix}" for part in parts for suffix in _SUFFIXES], name)
    gather = PairCollector(name, root, headers=headers, cut_s=cut_s)
    for part, folders in there.items():
        _part(gather, part, folders, wanted)
    return gather.finish()


def _folders(root: Path, part: str) -> tuple[Path, Path] | None:
    """Noisy and clean folder of a part; archives may have been unpacked into a folder of their own name."""
    lone = None
    for suffix in _SUFFIXES:
        names = [f"{kind}_{part}_wav{suffix}" for kind in ("noisy", "clean")]
        found = [find_any(root, (f"{one}/{one}", one), kind="folder") for one in names]
        if found[0] is not None and found[1] is not None:
            return found[0], found[1]
        if found != [None, None]:
            lone = names if found[1] is None else names[::-1]
    if lone is not None:
        raise DataError(f"{lone[0]} has no {lone[1]} beside it", where=str(root), hint="unpack both archives")
    return None


def _part(gather: PairCollector, part: str, folders: tuple[Path, Path], wanted: tuple[str, ...]) -> None:
    root, out = gather.root, gather.out
    noisy, clean = (sounds_in(folder) for folder in folders)
    listed = find_any(root, (f"log_{part}.txt", f"logfiles/log_{part}.txt"), kind="file")
    log = _log(listed) if listed is not None else {}
    texts = find_any(root, (f"{part}_txt/{part}_txt", f"{part}_txt"), kind="folder")
    if listed is None:
        out.note(f"there is no log_{part}.txt: noise and SNR are unknown")
    elif unlisted := len(noisy.keys() - log.keys()):
        out.note(f"{unlisted} files of {folders[0].name} are not in {listed.name}: their noise is unknown")
    for stem in sorted(log.keys() - noisy.keys() - clean.keys()):
        out.miss(stem, log[stem][2], f"{folders[0] / stem}.wav")
    for stem, one, reference in matched(out, noisy, clean, folders):
        speaker = match.group(1) if (match := _SPEAKER.fullmatch(stem)) else ""
        split = _split(part, speaker)
        if split not in wanted:
            out.skip(f"split {split}")
            continue
        noise, snr_db, _ = log.get(stem, ("", None, ""))
        text = texts / f"{stem}.txt" if texts is not None else None
        pair = SpeechPair(
            stem if part != _PARTS["train56"] else f"56spk-{stem}",
            str(one),
            str(reference),
            speaker=speaker,
            noise=noise,
            snr_db=snr_db,
            text=" ".join(read_text(text).split()) if text is not None and text.is_file() else "",
            split=split,
            source=stem,
            dataset="voicebank-demand",
        )
        gather.add(pair, str(one))


def _split(part: str, speaker: str) -> str:
    if part == "trainset_28spk":
        return "valid" if speaker in VALIDATION_SPEAKERS else "train"
    return "test" if part == "testset" else "train56"


def _log(path: Path) -> dict[str, tuple[str, float, str]]:
    """Noise, SNR in dB and place of each line; a line is a name, a kind of noise and a number."""
    found: dict[str, tuple[str, float, str]] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        words, where = line.split(), f"{path}:{number}"
        if not words:
            continue
        try:
            stem, noise, snr_db = words[0].removesuffix(".wav"), " ".join(words[1:-1]), float(words[-1])
        except ValueError:
            noise, snr_db = "", 0.0
        if not noise or snr_db != snr_db or abs(snr_db) == float("inf"):
            raise DataError(
                f"the line reads {line.strip()[:60]!r}",
                where=where,
                why="expected a name, a kind of noise and an SNR in dB",
                hint="correct this line, or download the log again",
            )
        if stem in found:
            raise DataError(f"{stem!r} is listed twice", where=where, why=f"first at {found[stem][2]}")
        found[stem] = (noise, snr_db, where)
    return found
