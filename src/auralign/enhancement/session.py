"""An enhancer loaded once, for many recordings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from auralign.audio.io import open_reader
from auralign.batch.files import Progress
from auralign.batch.outcome import FileOutcome
from auralign.enhancement.files import enhance_files
from auralign.enhancement.plan import EnhanceOptions
from auralign.enhancement.result import Enhancement
from auralign.enhancement.stream import EnhanceStream, Treatment, enhanced_blocks
from auralign.enhancement.upper import Upper
from auralign.enhancement.windows import Channels
from auralign.errors import AuralignError
from auralign.models import score_enhancer
from auralign.models.enhancer import FORMAT, Enhancer, EnhancerModel
from auralign.models.log_mmse import LogMmse
from auralign.models.model_file import kind_of
from auralign.models.score_enhancer import ScoreEnhancer
from auralign.runtime import weights
from auralign.runtime.device import pick

DEFAULT_MODEL = "flowse-small"
SHIPPED = ("flowse-small",)
CLASSIC = {LogMmse.name: LogMmse}
"""Enhancers that need no weights, by name."""


class SpeechEnhancer:
    """Takes noise out of recordings of speech.

    Args:
        model: Anything that keeps :class:`~auralign.models.enhancer.Enhancer`.
        name: What to call it in manifests; its own name when empty.

    >>> out = SpeechEnhancer(LogMmse()).enhance((np.zeros((2, 800), np.float32), 8000))
    >>> out.enhanced.shape, out.rate_hz, out.model
    ((2, 800), 8000, 'log-mmse')
    """

    def __init__(self, model: Enhancer, name: str = "") -> None:
        self.model, self.name = model, name or model.name

    @classmethod
    def load(cls, name: str | Path = DEFAULT_MODEL, *, device: str = "auto") -> SpeechEnhancer:
        """Load a model by name, or from a folder that a training run wrote.

        Args:
            name: ``log-mmse``, one of ``auralign models list``, or a path.
            device: ``auto`` (CUDA where there is one, else the CPU), ``cpu``, ``cuda``, ``mps``.
        """
        place = _device(device)
        if str(name) in CLASSIC:
            return cls(CLASSIC[str(name)]())
        folder = weights.path(str(name))
        diffusion = kind_of(folder) == score_enhancer.FORMAT
        model = ScoreEnhancer.load(folder) if diffusion else EnhancerModel.load(folder)
        return cls(model.to(place), Path(name).name)

    def enhance(
        self,
        source: Any,
        *,
        steps: int | None = None,
        seed: int = 0,
        strength: float = 1.0,
        upper: Upper = "mask",
        channels: Channels = "linked",
    ) -> Enhancement:
        """Enhance one recording in memory.

        Args:
            source: A path, a file object, or ``(array, rate_hz)`` with the array as channel x time.
            steps: Evaluations of the network; the model's own number when ``None``.
            seed: Equal seeds give equal results.
            strength: 0 leaves the recording as it is, 1 takes out all that the model takes out.
            upper: Above the model's band: ``mask``, ``pass`` or ``drop``.
            channels: ``linked`` or ``separate``.
        """
        treatment = Treatment(steps, seed, strength, upper, channels)
        with open_reader(source) as reader:
            rate_hz = reader.info.rate_hz
            stream = EnhanceStream(self.model, rate_hz, reader.info.channels, treatment)
            blocks = list(enhanced_blocks(stream, reader))
        return Enhancement(
            enhanced=np.concatenate([block.enhanced for block in blocks], axis=-1),
            residual=np.concatenate([block.residual for block in blocks], axis=-1),
            rate_hz=rate_hz,
            model=self.name,
        )

    def enhance_files(
        self,
        inputs: Sequence[str | Path],
        options: EnhanceOptions | None = None,
        on_progress: Progress | None = None,
    ) -> list[FileOutcome]:
        """Enhance files; see :class:`EnhanceOptions`.

        Raises:
            AuralignError: The options are wrong. What goes wrong with single files is in the outcomes.
        """
        return enhance_files(self.model, self.name, inputs, options or EnhanceOptions(), on_progress)


def is_enhancer(name: str | Path) -> bool:
    """Whether a name or folder is that of an enhancer; what cannot be found out is not.

    >>> is_enhancer("log-mmse"), is_enhancer("mars-sep-small"), is_enhancer("no such folder")
    (True, False, False)
    """
    if str(name) in (*CLASSIC, *SHIPPED):
        return True
    try:
        place = weights.path(str(name))
    except AuralignError:
        return False
    return kind_of(place) in (FORMAT, score_enhancer.FORMAT)


def _device(name: str) -> torch.device:
    """Apple's GPU has to be named: complex numbers were never tried on it."""
    if name != "auto":
        return pick(name).device
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
