"""The flow engine serves enhancement and generation alike, and may know neither."""

from __future__ import annotations

import ast
from pathlib import Path

import auralign.flow

ALLOWED = ("torch", "numpy", "jaxtyping", "auralign.errors", "auralign.flow", "auralign.runtime")
STANDARD = ("__future__", "abc", "collections", "dataclasses", "math", "typing")


def test_flow_imports_nothing_of_speech_networks_or_data():
    files = sorted(Path(auralign.flow.__file__).parent.glob("*.py"))
    assert len(files) > 5
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            named = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            named += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for module in named:
                root = module.split(".")[0]
                assert root != "auralign" or module.startswith(ALLOWED), f"{file.name} imports {module}"
                assert root in ("auralign", *ALLOWED) or root in STANDARD, f"{file.name} imports {module}"
