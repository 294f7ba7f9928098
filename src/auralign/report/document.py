"""The frame of every page: one file, no address of any other machine in it, written whole or not at all."""

from __future__ import annotations

import html
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from auralign import __version__


def write_page(
    path: str | Path, title: str, intro: str, body: Iterable[str], *, scripts: Sequence[str] = ()
) -> Path:
    """Writes a page and returns its path.

    Args:
        path: Target; its folder is made when missing.
        title: Heading, as plain text.
        intro: One paragraph below it, as plain text.
        body: HTML sections.
        scripts: Names of scripts of this package to put in.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(_HEAD.format(title=escape(title), style=_asset("style.css")))
            file.write(
                f'<header class="top"><h1>{escape(title)}</h1>{paragraph(intro, "soft")}</header>\n<main>\n'
            )
            for section in body:
                file.write(section + "\n")
            file.write(f"</main>\n<footer>auralign {__version__}</footer>\n")
            for script in scripts:
                file.write(f"<script>{_asset(script)}</script>\n")
            file.write("</body>\n</html>\n")
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def escape(value: object) -> str:
    """Text that is safe inside elements and quoted attributes."""
    return html.escape(str(value), quote=True)


def paragraph(text: str, kind: str) -> str:
    """A paragraph, or nothing for an empty text."""
    return f'<p class="{kind}">{escape(text)}</p>' if text else ""


def number(value: object, *, key: str = "") -> str:
    """A value as readers expect it; the unit comes from the key's last word.

    >>> number(5.126, key="si_sdr_db"), number(None), number(True)
    ('5.13 dB', '–', 'yes')
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    unit = _UNITS.get(key.rsplit("_", 1)[-1], "")
    if isinstance(value, float):
        text = f"{value:.2f}" if 0.01 <= abs(value) < 1e4 or value == 0 else f"{value:.3g}"
        return f"{text} {unit}".strip().replace("-", "−")
    if isinstance(value, list | tuple):
        return (" … " if len(value) == 2 else ", ").join(number(item) for item in value)
    return f"{value} {unit}".strip() if isinstance(value, int) else str(value)


def heading_of(key: str) -> str:
    """A key as words, without the unit that :func:`number` shows.

    >>> heading_of("si_sdr_improvement_db")
    'si sdr improvement'
    """
    words = key.split("_")
    if len(words) > 1 and words[-1] in _UNITS:
        words = words[:-1]
    return " ".join(words)


def chips(values: Mapping[str, Any]) -> str:
    """Short facts in a row."""
    items = "".join(
        f"<li>{escape(heading_of(key))} <b>{escape(number(value, key=key))}</b></li>"
        for key, value in values.items()
    )
    return f'<ul class="chips">{items}</ul>' if items else ""


def facts(values: Mapping[str, Any], *, summary: str = "Details") -> str:
    """Everything that is known, folded away; nested tables are flattened with dots."""
    rows = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in _flat(values))
    return f"<details><summary>{escape(summary)}</summary><dl>{rows}</dl></details>" if rows else ""


def card(*parts: str, attributes: str = "") -> str:
    """A section of the page."""
    return f'<section class="card" {attributes}>{"".join(parts)}</section>'


_UNITS = {"db": "dB", "s": "s", "hz": "Hz", "percent": "%", "ms": "ms", "lufs": "LUFS", "mb": "MB"}
_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
"""


def _flat(values: Mapping[str, Any], before: str = "") -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{before}{key}.")
        else:
            rows.append((f"{before}{key}", "–" if value is None else value))
    return rows


def _asset(name: str) -> str:
    return resources.files("auralign.report").joinpath(name).read_text(encoding="utf-8")
