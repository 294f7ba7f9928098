"""Time our code against a named peer on the same work, in one process.

An area is a file ``benchmarks/AREA.py`` of the source tree with a function ``cases() -> list[Case]``.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from auralign.cli.options import Flag
from auralign.cli.terminal import Progress, print_json, print_table
from auralign.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        name: Stable name, such as ``bss_eval_vs_mir_eval``.
        ours: Does the work our way.
        peer: Does the same work another way.
        peer_name: Who the peer is, with its version.
        work: What is done, in words with sizes.
    """

    name: str
    ours: Callable[[], object]
    peer: Callable[[], object]
    peer_name: str
    work: str


@dataclasses.dataclass(frozen=True)
class Options:
    """Which area to time and how often."""

    area: Annotated[Positional[str], arg(metavar="[AREA]", help_behavior_hint="")] = ""
    """Name of an area; without one, the areas are listed."""

    repeats: int = 5
    """How often each side runs; the medians count."""

    folder: Annotated[Path | None, arg(metavar="DIR")] = None
    """Where the areas are; by default the benchmarks/ of the source tree."""

    json: Flag = False
    """Print {name: {ours_s, peer_s, ratio, peer, work}}; ratio = peer_s / ours_s."""


def run(options: Options) -> int:
    """Times every case of the area and prints the ratios."""
    folder = options.folder or Path(__file__).resolve().parents[3] / "benchmarks"
    areas = sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))
    if not options.area:
        print_json(areas) if options.json else print("\n".join(areas))
        return 0
    if options.area not in areas:
        near = difflib.get_close_matches(options.area, areas, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"areas: {', '.join(areas) or 'none'}"
        raise UsageError(f"there is no area {options.area!r}", where=str(folder), hint=hint)
    if options.repeats < 1:
        raise UsageError(f"{options.repeats} repeats time nothing", where="--repeats")
    cases = _load(folder / f"{options.area}.py").cases()
    results = {}
    with Progress() as progress:
        for number, case in enumerate(cases):
            progress(number, len(cases), case.name)
            results[case.name] = measure(case, options.repeats)
    if options.json:
        print_json(results)
    else:
        rows = [{"name": name, **result} for name, result in results.items()]
        print_table(rows, ["name", "ours_s", "peer_s", "ratio", "peer", "work"])
    return 0


def measure(case: Case, repeats: int) -> dict[str, Any]:
    """Medians over alternating runs, after one run of each that is not counted."""
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    case.ours()
    case.peer()
    for _ in range(repeats):
        for side, work in (("ours", case.ours), ("peer", case.peer)):
            start = time.perf_counter()
            work()
            times[side].append(time.perf_counter() - start)
    ours_s, peer_s = statistics.median(times["ours"]), statistics.median(times["peer"])
    return {
        "ours_s": ours_s,
        "peer_s": peer_s,
        "ratio": peer_s / ours_s,
        "peer": case.peer_name,
        "work": case.work,
    }


def _load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"auralign_benchmarks_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UsageError("the area cannot be imported", where=str(path))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
