"""Time our code against a named peer on the same work, in one process.

An area is a module `auralign.evaluation.bench_AREA`, or a file `benchmarks/AREA.py` of the source tree, with
a function `bench(*, repeats)` that returns {name: {ours_s, peer_s, ratio, peer, work}}.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.util
import pkgutil
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from auralign.cli.options import Flag
from auralign.cli.terminal import print_json, print_table
from auralign.errors import UsageError

_PREFIX = "bench_"


@dataclasses.dataclass(frozen=True)
class Options:
    """Which area to time and how often."""

    area: Annotated[Positional[str], arg(metavar="[AREA]", help_behavior_hint="")] = ""
    """Name of an area; without one, the areas are listed."""

    repeats: int = 3
    """How often each side runs."""

    folder: Annotated[Path | None, arg(metavar="DIR")] = None
    """Where more areas are; by default the benchmarks/ of the source tree."""

    json: Flag = False
    """Print {name: {ours_s, peer_s, ratio, peer, work}}; ratio = peer_s / ours_s."""


def run(options: Options) -> int:
    """Times every case of the area and prints the ratios."""
    areas = find_areas(options.folder or Path(__file__).resolve().parents[3] / "benchmarks")
    if not options.area:
        print_json(sorted(areas)) if options.json else print("\n".join(sorted(areas)))
        return 0
    if options.area not in areas:
        near = difflib.get_close_matches(options.area, areas, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"areas: {', '.join(sorted(areas)) or 'none'}"
        raise UsageError(f"there is no area {options.area!r}", hint=hint)
    if options.repeats < 1:
        raise UsageError(f"{options.repeats} repeats time nothing", where="--repeats")
    results: dict[str, dict[str, Any]] = _load(areas[options.area]).bench(repeats=options.repeats)
    if options.json:
        print_json(results)
    else:
        rows = [{"name": name, **result} for name, result in results.items()]
        print_table(rows, ["name", "ours_s", "peer_s", "ratio", "peer", "work"])
    return 0


def find_areas(folder: Path) -> dict[str, str | Path]:
    """Modules and files by area; a file wins over a module of the same name."""
    package = importlib.util.find_spec("auralign.evaluation")  # found, not imported: that would load torch
    places = package.submodule_search_locations if package else None
    names = [module.name for module in pkgutil.iter_modules(places or [])]
    areas: dict[str, str | Path] = {
        name.removeprefix(_PREFIX): f"auralign.evaluation.{name}"
        for name in names
        if name.startswith(_PREFIX)
    }
    files = {path.stem: path for path in folder.glob("*.py") if not path.stem.startswith("_")}
    return areas | files


def _load(place: str | Path) -> Any:
    if isinstance(place, str):
        return importlib.import_module(place)
    spec = importlib.util.spec_from_file_location(f"auralign_benchmarks_{place.stem}", place)
    if spec is None or spec.loader is None:
        raise UsageError("the area cannot be imported", where=str(place))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
