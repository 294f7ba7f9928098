"""The page of a folder, from what lies in it: separated stems, an evaluation, or a training run.

``separate`` leaves a ``manifest.json`` in each track's folder (or one above them with ``items``)::

    {"input": "mix.wav", "stems": {"violin": "violin.wav", "residual": "residual.wav"},
     "scores": {"violin": {"presence": 0.98}}, "model": …, "settings": …}

Paths are relative to the manifest; an ``input`` that is no longer there only loses its lane on the page.
``enhance`` leaves the same with ``"task": "enhancement"``, and calls the recording ``before``.
``evaluate`` leaves ``rows.jsonl`` and ``summary.json``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from auralign.audio.sound import Sound
from auralign.errors import DataError, UsageError
from auralign.report.excerpt import BEFORE, MIXTURE
from auralign.report.page import ReportItem, write_report
from auralign.report.run_page import write_run_report
from auralign.report.table_page import write_table_report

MANIFEST = "manifest.json"
_EVALUATION_SHOWN = ("title", "rows", "comparisons", "systems")
_SHOWN_APART = ("about", "input", "stems", "scores", "note", "items", "name", "presence", "presence_timeline")


def write_folder_report(folder: str | Path, out: str | Path | None = None) -> Path:
    """Writes the page that fits the folder, and returns its path.

    Raises:
        UsageError: Nothing in the folder can be shown.
    """
    root = Path(folder)
    target = Path(out) if out is not None else root / "report.html"
    if not root.is_dir():
        raise UsageError("no such folder", where=str(root))
    if (root / "rows.jsonl").exists():
        return _evaluation(root, target)
    if (root / "config.toml").exists() or (root / "checkpoints").is_dir():
        return write_run_report(root, target)
    items = manifest_items(root)
    return write_report(target, f"{_title(items)}: {root.resolve().name}", items)


def _title(items: Sequence[ReportItem]) -> str:
    """What has been done to the recordings of a page."""
    enhanced = [BEFORE in item.stems or item.details.get("task") == "enhancement" for item in items]
    return "Enhanced" if all(enhanced) else "Separated and enhanced" if any(enhanced) else "Separated"


def manifest_items(root: Path) -> list[ReportItem]:
    """Everything that the manifests in and below a folder list.

    Raises:
        UsageError: There is no manifest.
    """
    paths = sorted(path for path in root.rglob(f"*{MANIFEST}") if not path.name.startswith("."))
    items = []
    for path in paths:
        manifest = _read_json(path)
        for entry in manifest.get("items", [manifest]):
            items.append(_item(path, entry))
    if not items:
        hint = "give the output folder of `auralign separate`, `enhance` or `evaluate`, or a run folder"
        raise UsageError(
            "there is nothing to report on", where=str(root), why=f"no {MANIFEST} in it", hint=hint
        )
    return items


def _item(manifest: Path, entry: Mapping[str, Any]) -> ReportItem:
    if not isinstance(entry.get("stems"), Mapping):
        raise DataError('the manifest lists no "stems"', where=str(manifest))
    base = manifest.parent
    stems: dict[str, Sound | Path] = {}
    notes = [str(entry[key]) for key in ("about", "note") if entry.get(key)]
    source = base / str(entry.get("input", ""))
    if source.is_file():
        stems[BEFORE if entry.get("task") == "enhancement" else MIXTURE] = source
    elif entry.get("input"):
        notes.append(f"The recording {entry['input']} is no longer there")
    for name, file in entry["stems"].items():
        if not (base / file).is_file():
            raise DataError(
                "a stem that the manifest lists is gone",
                where=str(base / file),
                hint="separate or enhance again",
            )
        stems[name] = base / file
    return ReportItem(
        name=str(entry.get("name") or Path(str(entry.get("input") or base.name)).name),
        stems=stems,
        scores=entry.get("scores") or {},
        note=". ".join(notes),
        details={key: value for key, value in entry.items() if key not in _SHOWN_APART},
    )


def _evaluation(root: Path, target: Path) -> Path:
    lines = (root / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.strip()]
    kept = _read_json(root / "summary.json") if (root / "summary.json").exists() else {}
    details = {key: value for key, value in kept.items() if key not in _EVALUATION_SHOWN}
    return write_table_report(
        target,
        str(kept.get("title") or f"Evaluation: {root.resolve().name}"),
        rows,
        summary=kept.get("rows", []),
        comparisons=kept.get("comparisons", []),
        systems=kept.get("systems", []),
        details=details,
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError("the file cannot be read as JSON", where=str(path), why=str(error)) from error
    if not isinstance(found, dict):
        raise DataError("the file holds no JSON object", where=str(path))
    return found
