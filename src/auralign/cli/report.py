"""Write the HTML page of a folder of results again: separated stems, an evaluation, or a training run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from auralign.cli.terminal import show_log


@dataclasses.dataclass(frozen=True)
class Options:
    """Which folder, and where the page goes."""

    folder: Annotated[Positional[Path], arg(metavar="DIR")]
    """Output of `separate` or `evaluate`, or a run folder."""

    out: Annotated[Path | None, arg(aliases=["-o"], metavar="FILE")] = None
    """The page; DIR/report.html by default."""


def run(options: Options) -> int:
    """Writes the page and prints its path."""
    from auralign.report.folder import write_folder_report

    show_log()
    print(write_folder_report(options.folder, options.out))
    return 0
