"""LibriMix (Cosentino et al., arXiv:2005.11262): LibriSpeech voices in WHAM! noise, as its scripts render it."""

from __future__ import annotations

import re
from pathlib import Path

from auralign.data.readers.base import Reading, choose_splits
from auralign.data.readers.layout import Rerooter, find_any
from auralign.data.readers.pairs import PairCollector
from auralign.data.readers.rendered import (
    Known,
    Mix,
    Parts,
    add_mixture,
    add_pair,
    find_rendering,
    need_splits,
    parts_by_name,
    tell_other_renderings,
)
from auralign.data.readers.tables import Row, read_rows
from auralign.errors import DataError

_SPLITS = ("train-360", "train-100", "train", "dev", "val", "test")
_PLACES = ("", "Libri2Mix/", "Libri3Mix/", "Libri1Mix/")
_UTTERANCE = re.compile(r"(\d+)-\d+-\d+")


def read_librimix(
    root: Path,
    *,
    split: str | None = None,
    mix: Mix = "mix_single",
    rate: str | None = None,
    mode: str | None = None,
    headers: bool = True,
    cut_s: float = 0.0,
) -> Reading:
    """Read pairs from ``wav{16k,8k}/{min,max}/{metadata,train-360,train-100,dev,test}/``.

    ``metadata/mixture_<split>_<mix>.csv`` lists the sounds in ``<split>/{mix_single,mix_both,mix_clean,s1,…,noise}/``.

    Paths in the lists are those of the machine that rendered; they are found by their last three parts. Without a
    list, files are paired by name. SNR comes from ``metrics_<split>_<mix>.csv``; speakers from
    ``*_info.csv`` (where ids are written as floats, "4077.0") or the names of the utterances.

    Args:
        root: ``Libri2Mix`` or the folder above.
        split: ``train-360``, ``train-100``, ``dev`` or ``test``; all that are there if not given.
        mix: ``mix_single`` gives pairs for enhancement; ``mix_both`` and ``mix_clean`` give one mixture item a
            speaker, whose interferers are the other speakers and the noise.
        rate: ``16k`` or ``8k``; the first that is there if not given.
        mode: ``min`` or ``max``; likewise.
        headers: Compare the headers of each pair, and the listed length with the file's.
        cut_s: By how much the lengths of a pair may differ, in seconds.

    Returns:
        Pairs, or mixtures.

    Raises:
        DataError: If no split is there, or a list contradicts itself or the info.
    """
    name = "LibriMix"
    wanted = choose_splits(split, _SPLITS, name)
    base = find_rendering(root, _PLACES, name, rate, mode)
    gather = PairCollector(name, base, headers=headers, cut_s=cut_s)
    tell_other_renderings(gather.out, base)
    there = need_splits(base, wanted)
    files = Rerooter([base], least=3)
    info = _info(base)
    for part in there:
        snrs = _snrs(base, part, mix)
        for parts in _listed(gather, base, part, mix):
            speakers = _speakers(parts, info)
            found = {path: files.find(path, parts.where) for path in parts.paths}
            if mix != "mix_single":
                add_mixture(gather.out, parts, found, speakers)
                continue
            known = Known(speakers[0] if speakers else "", snrs.get(parts.id))
            add_pair(gather, part, parts, found, known, dataset="librimix")
    if files.rerooted:
        gather.out.note(f"{files.rerooted} paths of another machine were found by their ends")
    return gather.finish()


def _list_names(base: Path, kind: str, part: str, mix: str) -> list[str]:
    sets = [f"{one.lower()}_" for one in (base.parents[1].name,) if one.lower().startswith("libri")]
    return [f"metadata/{kind}_{prefix}{part}_{mix}.csv" for prefix in ("", *sets)]


def _listed(gather: PairCollector, base: Path, part: str, mix: Mix) -> list[Parts]:
    path = find_any(base, _list_names(base, "mixture", part, mix), kind="file")
    if path is None:
        gather.out.note(f"there is no metadata/mixture_{part}_{mix}.csv: files were paired by name")
        return parts_by_name(base / part, mix)
    return [
        _row(row, mix) for row in read_rows(path, required=("mixture_ID", "mixture_path", "source_1_path"))
    ]


def _row(row: Row, mix: Mix) -> Parts:
    name, mixture = row.text("mixture_ID"), row.text("mixture_path")
    stem = Path(mixture.replace("\\", "/")).stem
    if stem != name:
        raise row.bad("mixture_path", f"the mixture is called {name!r}, the file {stem!r}")
    columns = [one for one in row.columns if re.fullmatch(r"source_\d+_path", one)]
    if mix == "mix_single":
        columns = columns[:1]
    noise = None
    if mix != "mix_clean":
        if "noise_path" not in row:
            raise DataError(f"a list of {mix} needs a column 'noise_path'", where=f"{row.path}:1")
        noise = row.text("noise_path")
    frames = row.number("length") if "length" in row else None
    if frames is not None and (frames < 1 or frames != int(frames)):
        raise row.bad("length", "expected a number of samples")
    sources = tuple(row.text(one) for one in columns)
    return Parts(name, row.where, mixture, sources, noise, None if frames is None else int(frames))


def _snrs(base: Path, part: str, mix: Mix) -> dict[str, float]:
    path = find_any(base, _list_names(base, "metrics", part, mix), kind="file")
    if path is None:
        return {}
    rows = read_rows(path, required=("mixture_ID", "source_1_SNR"))
    return {row.text("mixture_ID"): row.number("source_1_SNR") for row in rows}


def speaker_id(cell: str) -> str:
    """A speaker's number without the point that a column of floats adds; empty if it is no whole number.

    >>> speaker_id("4077.0"), speaker_id("4077"), speaker_id("40.5"), speaker_id("x")
    ('4077', '4077', '', '')
    """
    match = re.fullmatch(r"(\d+)(?:\.0*)?", cell.strip())
    return match.group(1) if match else ""


def _info(base: Path) -> dict[str, tuple[tuple[str, ...], str]]:
    """Speakers of each mixture and where that is written, from every ``*_info.csv`` near the rendering."""
    top = base.parents[1]
    places = [
        top / "metadata",
        top.parent / "metadata",
        top.parent / "metadata" / top.name,
        base / "metadata",
    ]
    found: dict[str, tuple[tuple[str, ...], str]] = {}
    for path in [one for place in places if place.is_dir() for one in sorted(place.glob("*_info.csv"))]:
        for row in read_rows(path, required=("mixture_ID", "speaker_1_ID")):
            columns = [one for one in row.columns if re.fullmatch(r"speaker_\d+_ID", one)]
            speakers = tuple(speaker_id(row[one]) for one in columns)
            if "" in speakers:
                raise row.bad(columns[speakers.index("")], "expected the number of a speaker")
            name = row.text("mixture_ID")
            if name in found and found[name][0] != speakers:
                raise row.bad("mixture_ID", f"its speakers differ from those at {found[name][1]}")
            found.setdefault(name, (speakers, row.where))
    return found


def _speakers(parts: Parts, info: dict[str, tuple[tuple[str, ...], str]]) -> tuple[str, ...]:
    """Speakers by the info and by the names of the utterances, which must agree."""
    named = tuple(_UTTERANCE.fullmatch(one) for one in parts.id.split("_"))
    spoken = tuple(one.group(1) for one in named if one is not None) if all(named) else ()
    known, where = info.get(parts.id, (spoken, ""))
    if spoken and known != spoken:
        raise DataError(
            f"mixture {parts.id!r} has the speakers {', '.join(known)} here, {', '.join(spoken)} by its name",
            where=where,
            hint="download the metadata again",
        )
    return known
