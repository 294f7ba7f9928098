"""The ``auralign`` command: finds the verb, imports that one command, turns errors into exit codes.

Every command is a module of this package with ``Options`` (a frozen dataclass, or a union of them for
sub-verbs) and ``run(options) -> int``. Results go to stdout, everything else to stderr. Exit codes: 0 ok,
1 some inputs failed, 2 usage, 3 model unavailable, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

from auralign import __version__
from auralign.errors import AuralignError, UsageError

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED, EXIT_PIPE = 0, 1, 2, 130, 141

COMMANDS = {
    "separate": "take a sound out of recordings by text, picture or example",
    "enhance": "take the noise out of recordings of speech",
    "train": "train a model from a recipe",
    "resume": "go on with a run where it stopped",
    "evaluate": "score a model on frozen test mixtures",
    "data": "list, build and check corpora",
    "models": "list, download and verify weights",
    "bench": "time our code against a named peer",
    "report": "write the HTML page of a folder of results again",
    "doctor": "show versions, devices, weights and what is missing",
}

EXAMPLES = """\
  auralign separate mix.wav -q violin -o out --report
  auralign separate *.flac -q "dog barking" --not speech
  auralign enhance call.wav --strength 0.8 -o out
  auralign train recipes/omnisep_small.toml --set steps=2000
  auralign doctor"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code.

    Args:
        argv: Words after the program's name; those of the process by default.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    with contextlib.suppress(ValueError):  # signals can only be caught in the main thread
        signal.signal(signal.SIGTERM, _terminate)
    try:
        code = _dispatch(words)
        sys.stdout.flush()
        return code
    except AuralignError as error:
        _debug_traceback()
        _print_error(error)
        return error.exit_code
    except KeyboardInterrupt:
        _debug_traceback()
        print("auralign: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader has seen enough. Without this, Python complains again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE
    except Exception as error:
        _debug_traceback()
        _print_unexpected(error, words)
        return EXIT_FAILED


def top_help() -> str:
    """The text of ``auralign --help``; by hand, so that it needs no import."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:<{width}}{text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            f"auralign {__version__}: separate a sound from a recording by asking for it, and enhance speech",
            "",
            "usage: auralign COMMAND [options]",
            "",
            "commands:",
            *lines,
            "",
            "options:",
            f"  {'-h, --help':<{width + 2}}this page; auralign COMMAND --help tells a command's options",
            f"  {'--version':<{width + 2}}the version",
            "",
            "examples:",
            EXAMPLES,
        ]
    )


def _dispatch(words: list[str]) -> int:
    if not words:
        print(top_help(), file=sys.stderr)
        return EXIT_USAGE
    verb, rest = words[0], words[1:]
    if verb in ("-V", "--version", "version"):
        print(f"auralign {__version__}")
        return EXIT_OK
    if verb == "help" and rest:
        verb, rest = rest[0], [*rest[1:], "--help"]
    if verb in ("-h", "--help", "help"):
        print(top_help())
        return EXIT_OK
    if verb not in COMMANDS:
        raise _unknown(verb)
    return _run(verb, rest)


def _run(verb: str, rest: list[str]) -> int:
    import tyro

    command: Any = importlib.import_module(f"auralign.cli.{verb}")
    options = tyro.cli(command.Options, prog=f"auralign {verb}", description=command.__doc__, args=rest)
    return int(command.run(options))


def _unknown(verb: str) -> UsageError:
    near = difflib.get_close_matches(verb, COMMANDS, n=1, cutoff=0.5)
    hint = f"did you mean: auralign {near[0]}" if near else "auralign --help lists the commands"
    kind = "option" if verb.startswith("-") else "command"
    return UsageError(f"there is no {kind} {verb!r}", hint=hint)


def _print_error(error: AuralignError) -> None:
    red, plain = ("\x1b[1;31m", "\x1b[0m") if _colour() else ("", "")
    where = f"{error.where}: " if error.where else ""
    print(f"{red}auralign: error:{plain} {where}{error.what}", file=sys.stderr)
    if error.why:
        print(f"  why: {error.why}", file=sys.stderr)
    if error.hint:
        print(f"  to fix: {error.hint}", file=sys.stderr)


def _print_unexpected(error: Exception, words: list[str]) -> None:
    print(f"auralign: unexpected {type(error).__name__}: {error}", file=sys.stderr)
    print(
        "  This is a fault of auralign. Please report it with the output of\n"
        f"    AURALIGN_DEBUG=1 auralign {' '.join(words)}\n"
        "    auralign doctor --json",
        file=sys.stderr,
    )


def _debug_traceback() -> None:
    if os.environ.get("AURALIGN_DEBUG", "") not in ("", "0"):
        import traceback

        traceback.print_exc()


def _colour() -> bool:
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR")


def _terminate(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
