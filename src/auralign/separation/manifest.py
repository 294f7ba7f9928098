"""What a stem depends on besides the recording, in the record beside it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from auralign.batch.manifest import digest_of, fingerprint
from auralign.models.separator import SeparatorModel
from auralign.separation.plan import SeparateOptions, describe
from auralign.separation.query import Query
from auralign.version import VERSION


def settings(
    name: str,
    model: SeparatorModel,
    queries: Sequence[Query],
    stems: Sequence[str],
    options: SeparateOptions,
) -> dict[str, Any]:
    """Everything but the recording that a stem depends on, in plain values."""
    found: dict[str, Any] = {
        "model": {
            "name": name,
            "network": model.network,
            "queries": model.space,
            "weights": fingerprint(model.net),
        },
        "queries": {
            stem: {**query.describe(), "files": _file_digests(query)}
            for stem, query in zip(stems, queries, strict=True)
        },
        "options": dict(describe(options)),
        "version": VERSION,
    }
    return found


def _file_digests(query: Query) -> list[str]:
    """Of pictures and examples: the same name may hold another sound tomorrow."""
    files = [one for one in (*query.images, *query.audios) if isinstance(one, str | os.PathLike)]
    return [digest_of(os.fspath(one))[:16] for one in files]
