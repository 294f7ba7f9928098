"""Score a model on frozen test mixtures: one row per item, intervals, and a comparison of two systems."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, UseAppendAction, arg

from auralign.cli.options import Flag
from auralign.cli.terminal import Progress, print_json, print_table, show_log


@dataclasses.dataclass(frozen=True)
class Options:
    """What to score, on which mixtures, by whose definition."""

    task: Positional[Literal["separation"]]
    """What the model does."""

    model: str = "omnisep-small"
    """Name of a model, or its folder."""

    vs: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="OTHER")] = ()
    """Another model, or mixture, oracle, oracle-bands; compared item by item."""

    corpus: Annotated[Path, arg(metavar="DIR")] = Path("corpora/soundbox")
    """The corpus that the mixtures are made from."""

    lists: Annotated[UseAppendAction[tuple[str, ...]], arg(name="list", metavar="NAME")] = ()
    """Frozen mixture list: a name or a .jsonl file; by default the preset's."""

    preset: Literal["auralign", "omnisep", "audiosep", "bisep", "dcase24t9"] = "auralign"
    """Whose definition of the metrics."""

    query: Literal["text", "paraphrase", "image", "audio"] = "text"
    """How the target is asked for; a paraphrase is wording that training never saw."""

    limit: Annotated[int, arg(metavar="N")] = 0
    """Only the first N mixtures of each list; 0 takes all."""

    seed: int = 0
    """Seed of audio examples, absent queries and the bootstrap."""

    judge: Flag = False
    """Also score with the held-out judge (slower)."""

    out: Annotated[Path | None, arg(aliases=["-o"], metavar="DIR")] = None
    """Folder for rows.jsonl, summary.json and report.html."""

    device: str = "auto"
    """auto or cpu."""

    json: Flag = False
    """Print the summary as JSON."""


def run(options: Options) -> int:
    """Scores every mixture; 1 when some could not be scored because of an error."""
    from auralign import evaluation

    show_log()
    with Progress() as progress:
        result: Any = evaluation.run_separation(
            model=options.model,
            versus=options.vs,
            corpus=options.corpus,
            lists=options.lists,
            preset=options.preset,
            query=options.query,
            limit=options.limit or None,
            seed=options.seed,
            judge=options.judge,
            out=options.out,
            device=options.device,
            on_progress=progress,
        )
    if options.json:
        print_json(result.summary)
    else:
        for rows in (result.summary["rows"], result.summary["comparisons"]):
            print_table(rows, list(dict.fromkeys(key for row in rows for key in row)))
    if options.out is not None:
        print(options.out / "report.html")
    return 1 if result.failed else 0
