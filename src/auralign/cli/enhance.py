"""Take noise out of recordings of speech.

Files keep their rate, channels, length, start and level; with --residual what was taken out is written too, and
both add up to the recording. One bad file does not stop the others.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from auralign.cli.inputs import STDIN, expand, with_stdin_as_file
from auralign.cli.options import Flag
from auralign.cli.outcomes import check_stdout, tell, to_stdout, under_given_names, write_page
from auralign.cli.terminal import Progress, show_log
from auralign.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Options:
    """What to enhance, how much, and how to write it."""

    inputs: Annotated[Positional[tuple[str, ...]], arg(metavar="IN [IN …]", help_behavior_hint="")]
    """Sound or video files, folders, patterns in quotes, or - for standard input."""

    out: Annotated[str, arg(aliases=["-o"], metavar="DIR")] = "out"
    """Folder for the results, or a sound file for the one result of one input; - writes it to standard output."""

    strength: Annotated[float, arg(metavar="0…1")] = 1.0
    """1 takes out all noise that is found, 0.7 leaves it 10 dB lower, 0 changes nothing."""

    residual: Flag = False
    """Also write what was taken out."""

    report: Flag = False
    """Also write DIR/report.html with players and spectrograms, and the residual that it plays."""

    model: str = "flowse-small"
    """flowse-small, log-mmse (classic, no network), or a model's folder."""

    steps: Annotated[int, arg(metavar="N", help_behavior_hint="")] = 0
    """Evaluations of the network; 0 takes the model's own number."""

    seed: int = 0
    """Equal seeds give equal results."""

    channels: Literal["linked", "separate"] = "linked"
    """linked: one gain for all, the stereo image stays; separate: every channel for itself."""

    upper: Literal["mask", "pass", "drop"] = "mask"
    """Above 8 kHz, which the model does not hear: attenuate like 4 to 8 kHz, leave, or remove."""

    level: Annotated[str, arg(metavar="keep|peak[:DBFS]|lufs[:LUFS]")] = "keep"
    """keep: as in the recording; peak, lufs: one gain for result and residual."""

    format: Annotated[str, arg(metavar="EXT", help_behavior_hint="")] = ""
    """wav, flac, ogg, opus, mp3 …; by default that of the input where it is lossless, else wav."""

    rate: Annotated[int, arg(metavar="HZ", help_behavior_hint="")] = 0
    """Rate of the results; 0 keeps the input's."""

    name: Annotated[str, arg(metavar="TEMPLATE")] = "{track}/{stem}.{ext}"
    """File names below DIR."""

    device: str = "auto"
    """auto, cpu, cuda or mps."""

    recursive: Annotated[Flag, arg(aliases=["-r"], help_behavior_hint="")] = False
    """Look into folders inside the given folders."""

    overwrite: Flag = False
    """Enhance again what is already there; otherwise finished files are skipped."""

    dry_run: Flag = False
    """Only show what would be written and what it would cost."""

    json: Flag = False
    """Print the outcome of each input as JSON."""

    quiet: Flag = False
    """No progress and no notes, only warnings and errors."""


def run(options: Options) -> int:
    """Enhances every input; 1 when some failed."""
    paths = expand(options.inputs, recursive=options.recursive)
    extras = options.report or options.json or options.dry_run
    options = _into_one_file(options, len(paths))
    check_stdout(options.out, inputs=len(paths), stems=1 + options.residual, extras=extras)
    for name, value in (("--rate", options.rate), ("--steps", options.steps)):
        if value < 0:
            raise UsageError(f"{value} is negative", where=name)
    show_log(quiet=options.quiet)
    with with_stdin_as_file(paths) as files:
        names = dict(zip(files, paths, strict=True))
        if options.out == STDIN:
            wav = dataclasses.replace(options, format="wav", name="{stem}.{ext}")
            failed = to_stdout(
                lambda folder: under_given_names(_enhance(wav, files, folder), names), quiet=options.quiet
            )
            return tell(failed, None, json=False, quiet=options.quiet)
        outcomes = under_given_names(_enhance(options, files, Path(options.out)), names)
        wanted = options.report and not options.dry_run
        page, problem = write_page(options.out, outcomes) if wanted else (None, None)
    code = tell(outcomes, page, json=options.json, quiet=options.quiet)
    if problem is not None:
        raise problem
    return code


def _into_one_file(options: Options, inputs: int) -> Options:
    """With a sound file as --out: its folder, and a template that is its name."""
    from auralign.batch.names import FORMATS

    out = Path(options.out)
    if out.suffix.lower().lstrip(".") not in FORMATS or out.is_dir():
        return options
    if inputs > 1 or options.residual or options.report:
        raise UsageError(
            "one file cannot hold several results", where=f"-o {options.out}", hint="give a folder"
        )
    literal = out.name.replace("{", "{{").replace("}", "}}")
    return dataclasses.replace(options, out=str(out.parent), name=literal)


def _enhance(options: Options, files: list[str], out: Path) -> list[Any]:
    from auralign.enhancement import EnhanceOptions, SpeechEnhancer

    settings = EnhanceOptions(
        out=out,
        level=options.level,
        format=options.format,
        rate_hz=options.rate or None,
        name=options.name,
        overwrite=options.overwrite,
        dry_run=options.dry_run,
        residual=options.residual or options.report,
        steps=options.steps or None,
        seed=options.seed,
        strength=options.strength,
        upper=options.upper,
        channels=options.channels,
    )
    enhancer = SpeechEnhancer.load(options.model, device=options.device)
    with Progress(quiet=options.quiet) as progress:
        outcomes: list[Any] = enhancer.enhance_files(files, settings, on_progress=progress)
    return outcomes
