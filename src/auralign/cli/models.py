"""List, download and verify weights; convert a public checkpoint."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg, subcommand

from auralign.cli.options import Flag
from auralign.cli.terminal import print_json, print_table, say
from auralign.errors import AuralignError, ModelUnavailableError, UsageError


@dataclasses.dataclass(frozen=True)
class List:
    """Show every set of weights that auralign knows."""

    json: Flag = False
    """Print JSON with all details."""


@dataclasses.dataclass(frozen=True)
class Download:
    """Fetch weights into the cache, where they are then used without network."""

    names: Annotated[Positional[tuple[str, ...]], arg(metavar="NAME [NAME …]", help_behavior_hint="")] = ()
    """Names from `auralign models list`."""

    all: Flag = False
    """All of them."""

    json: Flag = False
    """Print JSON."""


@dataclasses.dataclass(frozen=True)
class Verify:
    """Check the files in the cache against their recorded hashes."""

    names: Annotated[Positional[tuple[str, ...]], arg(metavar="[NAME …]", help_behavior_hint="")] = ()
    """Names; by default everything that is in the cache."""

    json: Flag = False
    """Print JSON."""


@dataclasses.dataclass(frozen=True)
class Convert:
    """Read a public checkpoint of SGMSE+ or flowmse (.ckpt) and write it as safetensors with a card."""

    checkpoint: Positional[Path]
    """The file; it is read by a restricted reader that runs nothing in it."""

    out: Annotated[Path, arg(aliases=["-o"], metavar="DIR")]
    """Folder for the model, which `auralign enhance --model DIR` then uses."""

    family: Literal["sgmse", "flowmse"] | None = None
    """Whose it is, where the file does not say."""


Options = (
    Annotated[List, subcommand("list")]
    | Annotated[Download, subcommand("download")]
    | Annotated[Verify, subcommand("verify")]
    | Annotated[Convert, subcommand("convert")]
)


def run(options: List | Download | Verify | Convert) -> int:
    """Does what the sub-verb says; 3 when weights are not to be had or damaged."""
    match options:
        case List():
            return _list(options)
        case Download():
            return _download(options)
        case Verify():
            return _verify(options)
        case Convert():
            return _convert(options)


def _convert(options: Convert) -> int:
    from auralign.models.public_speech import convert_public

    if (options.out / "model.safetensors").exists():
        raise UsageError("a model is already there", where=str(options.out), hint="name another folder")
    convert_public(options.checkpoint, options.out, family=options.family)
    print(options.out)
    return 0


def _list(options: List) -> int:
    from auralign.runtime import weights

    rows = []
    for name, spec in weights.registry().items():
        rows.append(
            {
                "name": name,
                "ready": weights.is_cached(name),
                "MB": round(spec.size_bytes / 1e6, 1),
                "licence": spec.licence,
                "purpose": spec.purpose,
                "version": spec.version,
                "package": spec.package,
                "citation": spec.citation,
                "sha256": spec.wheel_sha256,
                "folder": str(weights.folder_of(name)),
            }
        )
    if options.json:
        print_json(rows)
    else:
        print_table(rows, ["name", "ready", "MB", "licence", "purpose"])
    return 0


def _download(options: Download) -> int:
    from auralign.runtime import weights

    names = tuple(weights.registry()) if options.all else options.names
    if not names:
        raise UsageError("which weights?", hint=f"name some of {', '.join(weights.registry())}, or --all")
    for name in names:
        weights.spec_of(name)
    rows, worst = [], 0
    for name in names:
        if not weights.is_cached(name):
            say(f"fetching {name} ({weights.spec_of(name).size_bytes / 1e6:.0f} MB, once) …")
        try:
            rows.append({"name": name, "ok": True, "folder": str(weights.download(name)), "error": None})
        except AuralignError as error:
            rows.append({"name": name, "ok": False, "folder": None, "error": str(error)})
            say(f"auralign: error: {error}")
            worst = max(worst, error.exit_code)
    _print(rows, ["name", "ok", "folder"], as_json=options.json)
    return worst


def _verify(options: Verify) -> int:
    from auralign.runtime import weights

    names = options.names or tuple(name for name in weights.registry() if weights.is_cached(name))
    rows, worst = [], 0
    for name in names:
        try:
            weights.verify(name)
            rows.append({"name": name, "ok": True, "error": None})
        except ModelUnavailableError as error:
            rows.append({"name": name, "ok": False, "error": str(error)})
            worst = max(worst, error.exit_code)
    _print(rows, ["name", "ok", "error"], as_json=options.json)
    if not rows:
        say("nothing is in the cache yet; auralign models download fetches it")
    return worst


def _print(rows: list[dict[str, object]], columns: list[str], *, as_json: bool) -> None:
    if as_json:
        print_json(rows)
    else:
        print_table(rows, columns)
