"""What a run on mixtures is watched by: mixtures told apart by captions, and phrases where sources are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from auralign.algorithms.training import evaluation
from auralign.data.captioned import CaptionedSounds, load_captioned
from auralign.data.manifest import read_manifest
from auralign.data.mixtures import MixtureRenderer, list_path, read_list
from auralign.errors import DataError
from auralign.metrics.sdr import si_sdr
from auralign.models.separator import SeparatorModel
from auralign.runtime.seed import derive

LIST = "soundbox-captions-val"
_SAMPLES = 65_536
_BATCH = 8


@dataclass(frozen=True)
class KnownSources:
    """Mixtures of the frozen validation list, rendered once."""

    target: Float[Tensor, "item time"]
    mixture: Float[Tensor, "item time"]
    queries: tuple[str, ...]


@dataclass
class Watcher:
    """Scores a separator.

    Attributes:
        recordings: Captioned recordings that are mixed in pairs and told apart by their captions. Needs no source.
        known: Mixtures with known sources, asked for by phrases; only reported.
        seed: Of the pairs.
        pairs: How many.
    """

    recordings: CaptionedSounds
    known: KnownSources | None
    seed: int
    pairs: int = 64

    def __call__(self, model: SeparatorModel) -> dict[str, float]:
        """Mean SI-SDR improvement of whole mixtures by caption, and of sources by phrase."""
        with evaluation(model):
            scores = {"mixtures_si_sdri": self._mixtures(model)}
            if self.known is not None:
                gain = improvements(model, self.known)
                scores |= {
                    "si_sdri": float(gain.mean()),
                    "si_sdri_median": float(gain.median()),
                    "win_rate": float((gain > 0).double().mean()),
                }
        return scores

    def _mixtures(self, model: SeparatorModel) -> float:
        rng = np.random.default_rng(derive(self.seed, "watched"))
        gains = []
        for _ in range(-(-self.pairs // _BATCH)):
            picked = [rng.choice(len(self.recordings), 2, replace=False) for _ in range(_BATCH)]
            pair = [[self.recordings.cut(rng, int(n)) for n in two] for two in picked]
            sources = torch.stack([torch.stack([torch.from_numpy(one.wave) for one in two]) for two in pair])
            query = torch.stack(
                [
                    torch.stack([q.vector for q in model.text_queries([one.caption for one in two])])
                    for two in pair
                ]
            )
            mixture = sources.sum(dim=1)
            found = model.separate_wave(mixture.to(model.device), query.to(model.device))[0].cpu()
            before = si_sdr(est=mixture[:, None].expand_as(sources), ref=sources)
            gains.append((si_sdr(est=found, ref=sources) - before).flatten())
        gain = torch.cat(gains)
        return float(gain[gain.isfinite()].mean())


def improvements(model: SeparatorModel, known: KnownSources) -> Float[Tensor, " item"]:
    """SI-SDR improvement of every finite item."""
    rows = []
    for start in range(0, len(known.queries), _BATCH):
        part = slice(start, start + _BATCH)
        query = torch.stack([q.vector for q in model.text_queries(known.queries[part])])[:, None]
        found = model.separate_wave(known.mixture[part].to(model.device), query.to(model.device))[0][
            :, 0
        ].cpu()
        before = si_sdr(est=known.mixture[part], ref=known.target[part])
        rows.append(si_sdr(est=found, ref=known.target[part]) - before)
    gain = torch.cat(rows)
    return gain[gain.isfinite()]


def load_watcher(corpus: Path, held_out: Sequence[str], sounds: Path | None, seed: int) -> Watcher:
    """The held-out recordings of a captioned corpus, and with a soundbox corpus its frozen validation list.

    Raises:
        DataError: There are not two recordings to mix.
    """
    recordings = load_captioned(corpus, held_out, samples=_SAMPLES)
    if len(recordings) < 2:
        raise DataError(
            f"watching needs two recordings that are mixed; {' and '.join(held_out)} has {len(recordings)}",
            where=str(corpus),
            hint="name another split in held_out",
        )
    return Watcher(recordings, None if sounds is None else known_sources(sounds, LIST), seed)


def known_sources(sounds: Path, name: str) -> KnownSources:
    """A frozen list rendered from a soundbox corpus."""
    clips = {clip.id: clip for clip in read_manifest(sounds / "manifest.jsonl")}
    renderer = MixtureRenderer(sounds, clips)
    specs = read_list(list_path(name))
    items = [renderer.render(spec, _SAMPLES) for spec in specs]
    return KnownSources(
        torch.stack([torch.from_numpy(item.target) for item in items]),
        torch.stack([torch.from_numpy(item.mixture) for item in items]),
        tuple(spec.query for spec in specs),
    )
