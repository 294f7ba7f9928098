"""What commands that write a batch of sounds tell about it, and the page they make of it."""

from __future__ import annotations

import dataclasses
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from auralign.cli.inputs import STDIN
from auralign.cli.terminal import print_json, say
from auralign.errors import AuralignError, UsageError


def check_stdout(out: str, *, inputs: int, stems: int, extras: bool) -> None:
    """Whether a result can go to standard output.

    Args:
        out: What was given as --out.
        inputs: How many recordings.
        stems: How many results each.
        extras: Whether a page, JSON or a preview is wanted as well.

    Raises:
        UsageError: It cannot.
    """
    if out != STDIN:
        return
    if inputs > 1 or stems > 1:
        raise UsageError("standard output takes one input and one stem", where="-o -", hint="give a folder")
    if extras:
        raise UsageError(
            "the sound goes to standard output", where="-o -", hint="leave out --report, --json, --dry-run"
        )
    if sys.stdout.isatty():
        raise UsageError(
            "a sound would be printed on the terminal", where="-o -", hint="pipe it on, or give a folder"
        )


def under_given_names(outcomes: Sequence[Any], names: dict[str, str]) -> list[Any]:
    """The outcomes under the names that were given: standard input is ``-``, not a temporary file."""
    shown = []
    for one in outcomes:
        name, error = names[str(one.input)], one.error
        if error is not None and name == STDIN:
            where = error.where.replace(str(one.input), "standard input")
            error = type(error)(error.what, where=where, why=error.why, hint=error.hint)
        shown.append(dataclasses.replace(one, input=name, error=error))
    return shown


def to_stdout(work: Callable[[Path], list[Any]], *, quiet: bool) -> list[Any]:
    """Runs `work` into a temporary folder and copies the one stem that is no residual to standard output.

    Returns:
        The failed outcomes, for :func:`tell`.
    """
    with tempfile.TemporaryDirectory(prefix="auralign-") as folder:
        (outcome,) = work(Path(folder))
        if not outcome.ok:
            return [outcome]
        if outcome.note and not quiet:
            say(f"{outcome.input}: {outcome.note}")
        target = next(Path(path) for path in outcome.outputs if Path(path).stem != "residual")
        with target.open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.buffer.flush()
    return []


def write_page(folder: str | Path, outcomes: Sequence[Any]) -> tuple[Path | None, AuralignError | None]:
    """The page of everything in the folder, written while a piped-in recording is still there, or what prevents it."""
    if not any(outcome.ok for outcome in outcomes):
        return None, None
    from auralign.report.folder import write_folder_report

    try:
        return write_folder_report(folder), None
    except AuralignError as error:
        return None, error


def tell(
    outcomes: Sequence[Any], page: Path | None, *, json: bool, quiet: bool, fields: Sequence[str] = ()
) -> int:
    """Paths or JSON on stdout, notes and errors on stderr; 1 when some failed.

    Args:
        outcomes: One per input.
        page: The report, if there is one.
        json: Print JSON in the place of paths.
        quiet: No notes.
        fields: Further fields of an outcome for the JSON.
    """
    if json:
        print_json([_plain(one, fields) for one in outcomes])
    else:
        for outcome in outcomes:
            for path in outcome.outputs:
                print(path)
        if page is not None:
            print(page)
    for outcome in outcomes:
        if outcome.note and not quiet:
            say(f"{outcome.input}: {outcome.note}")
    failed = [outcome for outcome in outcomes if not outcome.ok]
    for outcome in failed:
        say(f"auralign: failed: {outcome.error}")
    if failed:
        say(f"{len(failed)} of {len(outcomes)} inputs failed")
    return 1 if failed else 0


def _plain(one: Any, fields: Sequence[str]) -> dict[str, Any]:
    return {
        "input": str(one.input),
        "ok": one.ok,
        "outputs": [str(path) for path in one.outputs],
        **{field: getattr(one, field) for field in fields},
        "note": one.note,
        "error": str(one.error) if one.error else None,
    }
