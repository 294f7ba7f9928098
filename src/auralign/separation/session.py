"""A model loaded once, for many recordings and many queries."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from auralign.audio.io import open_reader
from auralign.batch.files import Progress
from auralign.batch.outcome import FileOutcome
from auralign.errors import UsageError
from auralign.models.separator import QueryVector, SeparatorModel
from auralign.runtime import weights
from auralign.separation.files import Request, separate_files
from auralign.separation.plan import SeparateOptions
from auralign.separation.query import Query, as_query, encode, stem_names
from auralign.separation.result import Separation
from auralign.separation.stream import StemStream, stem_blocks

DEFAULT_MODEL = "mars-sep-small"


class Separator:
    """Takes queried sounds out of recordings.

    Args:
        model: Network and query heads.
        name: What to call it in manifests.
    """

    def __init__(self, model: SeparatorModel, name: str = "model") -> None:
        self.model, self.name = model.eval(), name

    @classmethod
    def load(cls, name: str | Path = DEFAULT_MODEL, *, device: str = "auto") -> Separator:
        """Load a model by name, or from a folder that a training run wrote.

        Args:
            name: One of ``auralign models list``, or a path.
            device: ``auto`` or ``cpu``; the streams run on the processor, which is faster than real time many times
                over, so another device is used for training only.
        """
        if device not in ("auto", "cpu"):
            raise UsageError(
                f"separation does not run on {device!r}",
                hint="use --device cpu; it is many times faster than real time",
            )
        return cls(SeparatorModel.load(weights.path(str(name))), Path(name).name)

    def encode(self, query: Query | str) -> QueryVector:
        """The query as a vector of this model's space."""
        return encode(self.model, as_query(query))

    def separate(
        self, source: Any, *queries: Query | str, shared: bool = True, separations: int = 1
    ) -> Separation | list[Separation]:
        """Separate one recording in memory.

        Args:
            source: A path, a file object, or ``(array, rate_hz)`` with the array as channel x time.
            queries: Texts or :class:`Query` objects.
            shared: With several queries, scale masks down where they claim more than all of a bin.
            separations: How often to separate; each further time what was left over is searched again.

        Returns:
            One result, or a list in the order of the queries if there are several. Every result's residual is what
            is left after *all* queries, so that all targets and the residual add up to the recording.
        """
        if not queries:
            raise UsageError(
                "no query is given", hint='say what to listen for, for example separate(file, "violin")'
            )
        asked = [as_query(query) for query in queries]
        stems = stem_names(asked)
        encoded = [encode(self.model, query) for query in asked]
        with open_reader(source) as reader:
            vectors = torch.stack([query.vector for query in encoded])
            stream = StemStream(
                self.model,
                vectors,
                reader.info.rate_hz,
                reader.info.channels,
                shared=shared,
                separations=separations,
            )
            blocks = list(stem_blocks(stream, reader))
            rate = reader.info.rate_hz
        targets = np.concatenate([block.targets for block in blocks], axis=-1)
        residual = np.concatenate([block.residual for block in blocks], axis=-1)
        presence = stream.masks.presence.overall(len(asked))
        results = [
            Separation(
                target=targets[n],
                residual=residual,
                rate_hz=rate,
                presence=presence[n],
                query=asked[n].describe(),
                model=self.name,
                stem=stems[n],
            )
            for n in range(len(asked))
        ]
        return results[0] if len(results) == 1 else results

    def separate_files(
        self,
        inputs: Sequence[str | Path],
        queries: Sequence[Query | str],
        options: SeparateOptions | None = None,
        on_progress: Progress | None = None,
    ) -> list[FileOutcome]:
        """Separate files into stems; see :class:`SeparateOptions`.

        Raises:
            AuralignError: The queries or the options are wrong. What goes wrong with single files is in the outcomes.
        """
        options = options or SeparateOptions()
        asked = [as_query(query) for query in queries]
        if not asked:
            raise UsageError("no query is given", hint="say what to listen for, for example 'violin'")
        encoded = [] if options.dry_run else [encode(self.model, query) for query in asked]
        request = Request(self.model, self.name, asked, encoded, options)
        return separate_files(request, inputs, on_progress)
