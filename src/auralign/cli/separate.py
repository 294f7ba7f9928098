"""Take sounds out of recordings by text, picture or example.

Every -q, --image and --audio makes one stem; what is left is the residual, and stems and residual add up to
the recording. Files keep their rate, channels, length and start. One bad file does not stop the others.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, UseAppendAction, arg

from auralign.cli.inputs import STDIN, expand, with_stdin_as_file
from auralign.cli.options import Flag
from auralign.cli.outcomes import check_stdout, tell, to_stdout, under_given_names, write_page
from auralign.cli.terminal import Progress, show_log
from auralign.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Options:
    """What to separate from what, and how to write it."""

    inputs: Annotated[Positional[tuple[str, ...]], arg(metavar="IN [IN …]", help_behavior_hint="")]
    """Sound or video files, folders, patterns in quotes, or - for standard input."""

    query: Annotated[UseAppendAction[tuple[str, ...]], arg(aliases=["-q"], metavar="TEXT")] = ()
    """The sound in words, for example "dog barking"."""

    image: Annotated[UseAppendAction[tuple[Path, ...]], arg(metavar="FILE")] = ()
    """A picture of what sounds."""

    audio: Annotated[UseAppendAction[tuple[Path, ...]], arg(metavar="FILE")] = ()
    """A recording of a similar sound."""

    exclude: Annotated[UseAppendAction[tuple[str, ...]], arg(name="not", metavar="TEXT")] = ()
    """A sound that must not be in the stems."""

    combine: Flag = False
    """Make one stem from all queries together."""

    out: Annotated[str, arg(aliases=["-o"], metavar="DIR")] = "out"
    """Folder for the stems; - writes the one stem to standard output as WAV."""

    report: Flag = False
    """Also write DIR/report.html with players and spectrograms."""

    model: str = "mars-sep-small"
    """Name of a model, or its folder."""

    level: Annotated[str, arg(metavar="keep|peak[:DBFS]|lufs[:LUFS]")] = "keep"
    """keep: as in the recording; peak, lufs: one gain for all stems, so that they still add up."""

    format: Annotated[str, arg(metavar="EXT", help_behavior_hint="")] = ""
    """wav, flac, ogg, opus, mp3 …; by default that of the input where it is lossless, else wav."""

    separations: Annotated[int, arg(metavar="N")] = 1
    """Separate what was left over again, N times in all: finds more, and lets more pass."""

    rate: Annotated[int, arg(metavar="HZ", help_behavior_hint="")] = 0
    """Rate of the stems; 0 keeps the input's."""

    name: Annotated[str, arg(metavar="TEMPLATE")] = "{track}/{stem}.{ext}"
    """File names below DIR."""

    device: str = "auto"
    """auto or cpu."""

    recursive: Annotated[Flag, arg(aliases=["-r"], help_behavior_hint="")] = False
    """Look into folders inside the given folders."""

    overwrite: Flag = False
    """Separate again what is already there; otherwise finished files are skipped."""

    dry_run: Flag = False
    """Only show what would be written and what it would cost."""

    json: Flag = False
    """Print the outcome of each input as JSON."""

    quiet: Flag = False
    """No progress and no notes, only warnings and errors."""


def run(options: Options) -> int:
    """Separates every input; 1 when some failed."""
    paths = expand(options.inputs, recursive=options.recursive)
    _check(options, paths)
    show_log(quiet=options.quiet)
    with with_stdin_as_file(paths) as files:
        names = dict(zip(files, paths, strict=True))
        if options.out == STDIN:
            wav = dataclasses.replace(options, format="wav", name="{stem}.{ext}")
            failed = to_stdout(
                lambda folder: under_given_names(_separate(wav, files, folder), names), quiet=options.quiet
            )
            return _tell(options, failed, None)
        outcomes = under_given_names(_separate(options, files, Path(options.out)), names)
        wanted = options.report and not options.dry_run
        page, problem = write_page(options.out, outcomes) if wanted else (None, None)
    code = _tell(options, outcomes, page)
    if problem is not None:
        raise problem
    return code


def _tell(options: Options, outcomes: list[Any], page: Path | None) -> int:
    return tell(outcomes, page, json=options.json, quiet=options.quiet, fields=("presence",))


def _check(options: Options, paths: list[str]) -> None:
    from auralign.audio.level import Level

    number = len(options.query) + len(options.image) + len(options.audio)
    if number == 0:
        raise UsageError("nothing to look for", hint='say what to separate, for example: -q "violin"')
    for path in (*options.image, *options.audio):
        if not path.is_file():
            raise UsageError("the query's file does not exist", where=str(path))
    Level.parse(options.level)
    extras = options.report or options.json or options.dry_run
    check_stdout(options.out, inputs=len(paths), stems=1 if options.combine else number, extras=extras)
    if options.rate < 0:
        raise UsageError(f"the rate {options.rate} is negative", where="--rate")


def queries(options: Options) -> list[Any]:
    """The queries in the order text, picture, example; one that holds all of them with ``--combine``."""
    from auralign.separation import Query

    if options.combine:
        return [
            Query(texts=options.query, images=options.image, audios=options.audio, exclude=options.exclude)
        ]
    return [
        *(Query(texts=(text,), exclude=options.exclude) for text in options.query),
        *(Query(images=(path,), exclude=options.exclude) for path in options.image),
        *(Query(audios=(path,), exclude=options.exclude) for path in options.audio),
    ]


def _separate(options: Options, files: list[str], out: Path) -> list[Any]:
    from auralign.separation import SeparateOptions, Separator

    asked = queries(options)
    settings = SeparateOptions(
        out=out,
        level=options.level,
        format=options.format,
        rate_hz=options.rate or None,
        separations=options.separations,
        name=options.name,
        overwrite=options.overwrite,
        dry_run=options.dry_run,
    )
    separator = Separator.load(options.model, device=options.device)
    with Progress(quiet=options.quiet) as progress:
        outcomes: list[Any] = separator.separate_files(files, asked, settings, on_progress=progress)
    return outcomes
