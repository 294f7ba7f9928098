"""The plain layout of SGMSE, flowmse and their successors: one name for the clean and the noisy file."""

from __future__ import annotations

from pathlib import Path

from auralign.data.readers.base import Reading, choose_splits
from auralign.data.readers.layout import need_folder, wrong_root
from auralign.data.readers.pairs import PairCollector, matched
from auralign.data.readers.speech_base import SpeechPair, sounds_in
from auralign.errors import DataError

_SPLITS = ("train", "valid", "test")


def read_sgmse(root: Path, *, split: str | None = None, headers: bool = True, cut_s: float = 0.0) -> Reading:
    """Read pairs from ``{train,valid,test}/{clean,noisy}/<name>.wav``: pairs of your own, or those of EARS-WHAM.

    Args:
        root: The folder that training scripts call ``base_dir``.
        split: ``train``, ``valid`` or ``test``; all that are there if not given.
        headers: Compare the headers of each pair.
        cut_s: By how much the lengths of a pair may differ, in seconds.

    Returns:
        One pair per name with id ``<split>/<name>``.

    Raises:
        DataError: If no split is there, or one has no clean speech.
    """
    name = "the layout of SGMSE"
    root, wanted = need_folder(root, name), choose_splits(split, _SPLITS, name)
    there = [part for part in wanted if (root / part / "noisy").is_dir()]
    if not there:
        raise wrong_root(root, [f"{part}/noisy" for part in wanted], name)
    gather = PairCollector(name, root, headers=headers, cut_s=cut_s)
    for part in there:
        folders = (root / part / "noisy", root / part / "clean")
        if not folders[1].is_dir():
            raise DataError(f"{part}/noisy has no {part}/clean beside it", where=str(root))
        noisy, clean = (sounds_in(folder) for folder in folders)
        for stem, one, reference in matched(gather.out, noisy, clean, folders, f"{part}/{{}}".format):
            pair = SpeechPair(
                f"{part}/{stem}", str(one), str(reference), split=part, source=stem, dataset="sgmse"
            )
            gather.add(pair, str(one))
    return gather.finish()
