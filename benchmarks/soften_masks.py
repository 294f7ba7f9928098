"""Softens a trained separator's masks: logits times a factor, no training. The control that SI-SDRi alone cannot see.

    python benchmarks/soften_masks.py runs/c0/model --scan 1 0.85 0.7 0.5 --corpus corpora/soundbox
    python benchmarks/soften_masks.py runs/c0/model --factor 0.7 -o runs/s0/model

A factor below 1 pulls masks towards a half. The first form prints SI-SDRi of fixed validation mixtures for each
factor; the second writes a model folder that every command takes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from auralign.algorithms.training import Corpus
    from auralign.models.separator import SeparatorModel


def load_softened(model: str, factor: float) -> SeparatorModel:
    """A separator whose mask logits are ``factor`` times what they were; its presence stays.

    Args:
        model: Name or folder of a separator of the ``small`` network.
        factor: Above 0; 1 changes nothing.

    Raises:
        UsageError: The network has no query head whose filters could be scaled, or the factor is not above 0.
    """
    import torch

    from auralign.errors import UsageError
    from auralign.models.omnisep import SmallSeparator
    from auralign.models.separator import SeparatorModel
    from auralign.runtime import weights

    if not factor > 0:
        raise UsageError(f"a factor of {factor} turns masks over or off", hint="give one above 0, as 0.7")
    separator = SeparatorModel.load(weights.path(model))
    if not isinstance(separator.net, SmallSeparator):
        raise UsageError(
            f"its network is {separator.network!r}", where=model, hint="only `small` networks can be softened"
        )
    filters = separator.net.net.head.filters  # the logits are linear in them
    with torch.no_grad():
        for parameter in filters.parameters():
            parameter.mul_(factor)
    return separator


def scan(model: str, factors: list[float], corpus: Corpus, batches: int) -> list[tuple[float, float, float]]:
    """Factor, mean SI-SDRi in dB and win rate on the validation mixtures."""
    from auralign.algorithms.training import validate

    found = []
    for factor in factors:
        scores = validate(load_softened(model, factor), corpus, 0, batches=batches)
        found.append((factor, scores["si_sdri"], scores["win_rate"]))
    return found


def run(options: argparse.Namespace) -> None:
    """Print the scan, or write the folder."""
    from auralign.algorithms.training import load_corpus
    from auralign.data.mixer import MixConfig

    if options.scan:
        corpus = load_corpus(options.corpus, MixConfig())
        print(f"{16 * options.batches} validation mixtures\nfactor  SI-SDRi, dB  win rate")
        for factor, gain, wins in scan(options.model, options.scan, corpus, options.batches):
            print(f"{factor:6.2f}  {gain:11.2f}  {100 * wins:6.1f} %")
    if options.out is not None:
        card = {"name": options.out.name, "description": f"{options.model}, logits times {options.factor}"}
        load_softened(options.model, options.factor).save(options.out, card)
        print(options.out)


def main() -> int:
    """Reads the command line."""
    from auralign.errors import AuralignError

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="name or folder of a separator")
    parser.add_argument("--factor", type=float, default=0.7, help="of the logits, for --out (default: 0.7)")
    parser.add_argument("-o", "--out", type=Path, help="model folder to write")
    parser.add_argument("--scan", type=float, nargs="+", default=[], help="factors to validate")
    parser.add_argument("--corpus", type=Path, default=Path("corpora/soundbox"))
    parser.add_argument("--batches", type=int, default=8, help="of 16 validation mixtures each")
    options = parser.parse_args()
    if not options.scan and options.out is None:
        parser.error("give --scan, --out, or both")
    try:
        run(options)
    except AuralignError as error:
        print(f"soften_masks: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
