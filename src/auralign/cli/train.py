"""Train a model from a recipe, into a run folder that `auralign resume` can continue."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import pkgutil
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, UseAppendAction, arg

from auralign.cli.options import Flag
from auralign.cli.terminal import say, show_log
from auralign.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Options:
    """Which recipe, what to change in it, and where the run goes."""

    recipe: Positional[Path]
    """A TOML file, for example recipes/omnisep_small.toml."""

    set: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="KEY=VALUE")] = ()
    """Change one value of the recipe; dots reach into tables, as in model.width=32."""

    runs: Annotated[Path, arg(metavar="DIR")] = Path("runs")
    """Where runs are kept; a new one is called after the recipe and numbered."""

    out: Annotated[Path | None, arg(aliases=["-o"], metavar="DIR")] = None
    """Exactly this folder instead."""

    print_config: Flag = False
    """Only print the recipe with all changes applied."""


def run(options: Options) -> int:
    """Trains; 130 when it was asked to stop before the end (the checkpoint is then written)."""
    from auralign.runtime import config

    show_log()
    name = config.algorithm_of(options.recipe)
    algorithm = algorithm_module(name, where=str(options.recipe))
    cfg = config.load(options.recipe, algorithm.Config, options.set)
    if options.print_config:
        print(config.dump(cfg, algorithm=name), end="")
        return 0
    from auralign.runtime.distributed import world
    from auralign.runtime.run import Run

    with world() as here:
        made = ""
        if here.is_first:
            stem = options.recipe.stem
            made = str(Run.create(options.runs, cfg, stem, algorithm=name, folder=options.out).path)
        return train(algorithm, cfg, Run.open(here.gather_json(made)[0]))


def algorithm_module(name: str, *, where: str) -> Any:
    """The module of ``auralign.algorithms`` that a recipe names.

    Raises:
        UsageError: There is none of this name.
    """
    from auralign import algorithms

    known = sorted(module.name for module in pkgutil.iter_modules(algorithms.__path__))
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        raise UsageError(f"there is no algorithm {name!r}", where=where, hint=hint)
    return importlib.import_module(f"auralign.algorithms.{name}")


def train(algorithm: Any, cfg: Any, run_folder: Any) -> int:
    """Calls the algorithm's ``train(cfg, run)``, which goes on from the newest checkpoint if there is one.

    The algorithm answers a request to stop with a checkpoint and either returns or raises KeyboardInterrupt.
    """
    from auralign.report.run_page import write_run_report
    from auralign.runtime.distributed import is_first
    from auralign.runtime.signals import EXIT_INTERRUPTED, GracefulStop

    if is_first():
        say(f"run folder: {run_folder.path}")
    with GracefulStop() as stop:
        try:
            algorithm.train(cfg, run_folder)
        except KeyboardInterrupt:
            stop.request(stop.signal_name or "interrupt")
    if is_first():
        write_run_report(run_folder.path)
        print(run_folder.path)
        if stop.requested:
            say(f"stopped by {stop.signal_name}; continue with: auralign resume {run_folder.path}")
    return EXIT_INTERRUPTED if stop.requested else 0
