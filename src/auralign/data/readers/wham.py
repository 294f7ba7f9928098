"""WHAM! (Wichern et al., arXiv:1907.01160): WSJ0 voices in the noise of cafés, bars and streets."""

from __future__ import annotations

import re
from pathlib import Path

from auralign.data.readers.base import Reading, choose_splits
from auralign.data.readers.layout import Listing, find_any
from auralign.data.readers.pairs import PairCollector
from auralign.data.readers.rendered import (
    Known,
    Mix,
    add_mixture,
    add_pair,
    find_rendering,
    need_splits,
    parts_by_name,
    tell_other_renderings,
)
from auralign.data.readers.tables import read_rows

_SPLITS = ("tr", "cv", "tt")
_PLACES = ("", "wham/", "WHAM/", "2speakers/", "wham/2speakers/", "WHAM/2speakers/")
_METADATA = ("wham_noise/metadata", "metadata", "../wham_noise/metadata", "../../wham_noise/metadata")
# utterance, level, utterance, level; the levels are those of the speakers to each other, not to the noise
_NAME = re.compile(r"(\w{3})\w{5}_-?[\d.]+_(\w{3})\w{5}_-?[\d.]+")


def read_wham(
    root: Path,
    *,
    split: str | None = None,
    mix: Mix = "mix_single",
    rate: str | None = None,
    mode: str | None = None,
    headers: bool = True,
    cut_s: float = 0.0,
) -> Reading:
    """Read pairs from ``wav{16k,8k}/{min,max}/{tr,cv,tt}/{mix_single,mix_both,mix_clean,s1,s2,noise}/``.

    The SNR of the first speaker, a difference of loudness, comes from
    ``wham_noise/metadata/mix_param_meta_<split>.csv``, the noise's recording from ``noise_meta_<split>.csv``,
    where they are there. The numbers in the names are levels between the speakers and are not used.

    Args:
        root: Folder that the scripts wrote.
        split: ``tr``, ``cv`` or ``tt``; all that are there if not given.
        mix: ``mix_single`` gives pairs for enhancement; ``mix_both`` and ``mix_clean`` give one mixture item a
            speaker.
        rate: ``16k`` or ``8k``; the first that is there if not given.
        mode: ``min`` or ``max``; likewise.
        headers: Compare the headers of each pair.
        cut_s: By how much the lengths of a pair may differ, in seconds.

    Returns:
        Pairs, or mixtures.

    Raises:
        DataError: If no split is there, or one has no mixtures of that type.
    """
    name = "WHAM!"
    wanted = choose_splits(split, _SPLITS, name)
    base = find_rendering(root, _PLACES, name, rate, mode)
    gather = PairCollector(name, base, headers=headers, cut_s=cut_s)
    tell_other_renderings(gather.out, base)
    there = need_splits(base, wanted)
    files = Listing()
    for part in there:
        snrs, noises = _levels(gather, part)
        for parts in parts_by_name(base / part, mix):
            found = {
                path: Path(path) if files.holds(Path(path).parent, Path(path).name) else None
                for path in parts.paths
            }
            match = _NAME.fullmatch(parts.id)
            speakers = match.groups() if match else ()
            if mix != "mix_single":
                add_mixture(gather.out, parts, found, speakers)
                continue
            known = Known(speakers[0] if speakers else "", snrs.get(parts.id), noises.get(parts.id, ""))
            add_pair(gather, part, parts, found, known, dataset="wham")
    return gather.finish()


def _levels(gather: PairCollector, part: str) -> tuple[dict[str, float], dict[str, str]]:
    """SNR and noise recording of each mixture; ids in these lists are file names."""
    top = gather.root.parents[1]
    found: list[Path | None] = []
    for kind in ("mix_param_meta", "noise_meta"):
        path = find_any(top, [f"{place}/{kind}_{part}.csv" for place in _METADATA], kind="file")
        if path is None:
            gather.out.note(f"there is no {kind}_{part}.csv: {'SNR' if not found else 'noise'} is unknown")
        found.append(path)
    snrs: dict[str, float] = {}
    noises: dict[str, str] = {}
    if found[0] is not None:
        for row in read_rows(found[0], required=("utterance_id", "target_speaker1_snr_db")):
            snrs[row.text("utterance_id").removesuffix(".wav")] = row.number("target_speaker1_snr_db")
    if found[1] is not None:
        for row in read_rows(found[1], required=("utterance_id", "noise_file")):
            noises[row.text("utterance_id").removesuffix(".wav")] = row.text("noise_file")
    return snrs, noises
