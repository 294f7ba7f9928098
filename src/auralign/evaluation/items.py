"""Items of a frozen list with the queries that a listener could ask: words, pictures, recorded examples."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from auralign.data.clip import Clip
from auralign.data.manifest import read_manifest
from auralign.data.mixtures import MixtureRenderer, MixtureSpec, list_path, read_list
from auralign.errors import DataError, UsageError
from auralign.evaluation.separation import EvaluationItem, FailedItem

Modality = Literal["text", "paraphrase", "image", "audio", "combined"]
EXAMPLES = 5  # recordings an audio query listens to, as in OmniSep's evaluation
EXAMPLE_SAMPLES = 16_000 * 4  # of each of them
ABSENT_EVERY = 3  # one item in three is also asked for a sound that is not there


@dataclass(frozen=True)
class Asked:
    """A query in plain values, ready for the separator."""

    modality: Modality
    label: str
    texts: tuple[str, ...] = ()
    images: tuple[Path, ...] = ()
    clips: tuple[str, ...] = ()


class SoundboxItems:
    """Renders the mixtures of a list from a built corpus and makes their queries.

    Args:
        corpus: Folder of the corpus.
        seed: Draws audio examples and absent classes.
    """

    def __init__(self, corpus: Path, *, seed: int = 0) -> None:
        if not (corpus / "manifest.jsonl").exists():
            raise DataError(
                "no corpus is there",
                where=str(corpus),
                hint=f"make it with: auralign data build soundbox --out {corpus}",
            )
        self.root, self.seed = corpus, seed
        self.clips: dict[str, Clip] = {clip.id: clip for clip in read_manifest(corpus / "manifest.jsonl")}
        self.classes: dict[str, dict[str, Any]] = json.loads(
            (corpus / "classes.json").read_text(encoding="utf-8")
        )
        self.renderer = MixtureRenderer(corpus, self.clips)
        self._examples: dict[str, list[Clip]] = defaultdict(list)
        for clip in sorted(self.clips.values(), key=lambda one: (one.split != "train", one.id)):
            self._examples[clip.labels[0]].append(clip)
        self.trained = sorted({clip.labels[0] for clip in self.clips.values() if clip.split == "train"})

    def read(self, name: str, limit: int | None = None) -> list[MixtureSpec]:
        """A list by name, or from a file."""
        path = Path(name) if name.endswith(".jsonl") else list_path(name)
        return read_list(path)[:limit]

    def items(
        self, specs: Sequence[MixtureSpec], modality: Modality, *, absent: bool = True
    ) -> Iterator[EvaluationItem | FailedItem]:
        """Every mixture as an item; every third one again with a query for a sound that is not in it."""
        for number, spec in enumerate(specs):
            labels = [self.clips[c.clip].labels[0] if c.clip in self.clips else "" for c in spec.components]
            try:
                mixture = self.renderer.render(spec)
                asked = self.ask(spec, labels[spec.target], modality)
            except (DataError, UsageError) as error:
                yield FailedItem(spec.id, str(error), labels[spec.target])
                continue
            others = [label for n, label in enumerate(labels) if n != spec.target]
            yield EvaluationItem(
                id=spec.id,
                mixture=mixture.mixture,
                refs=(mixture.target, mixture.interferer),
                query=asked,
                label=labels[spec.target],
                extra={"interferer": ", ".join(others), "asked": ", ".join(asked.texts) or modality},
            )
            if absent and number % ABSENT_EVERY == 0:
                missing = self._absent(spec, labels)
                yield EvaluationItem(
                    id=f"{spec.id}#absent",
                    mixture=mixture.mixture,
                    refs=(np.zeros_like(mixture.mixture), mixture.mixture),
                    query=Asked("text", missing, texts=(self.classes[missing]["texts"][0],)),
                    label=missing,
                    present=False,
                    extra={"interferer": ", ".join(labels), "asked": missing},
                )

    def ask(self, spec: MixtureSpec, label: str, modality: Modality) -> Asked:
        """The query of an item.

        Text is the list's own; a paraphrase is one that training never saw. Audio is up to five training recordings
        of the class (others of the class where it was never trained), none of the target's own source. Image is a
        picture that training did not see. Combined is the text with the unseen picture and the recordings, as far
        as the class has them.

        Raises:
            UsageError: The class has no picture, no paraphrase, or no other recording.
        """
        if modality == "text":
            return Asked("text", label, texts=(spec.query,))
        if modality == "paraphrase":
            held_out = self.classes[label].get("texts_test") or []
            if not held_out:
                raise UsageError(f"the class {label!r} has no held-out wording", where=spec.id)
            return Asked("paraphrase", label, texts=(held_out[0],))
        if modality == "image":
            pictures = self.classes[label].get("pictures", {})
            paths = pictures.get("test") or pictures.get("train") or []
            if not paths:
                raise UsageError(f"the class {label!r} has no picture", where=spec.id)
            return Asked("image", label, images=tuple(self.root / path for path in paths[:1]))
        clips = self._recordings(spec, label)
        if modality == "combined":
            unseen = self.classes[label].get("pictures", {}).get("test") or []
            shown = tuple(self.root / path for path in unseen[:1])
            return Asked("combined", label, texts=(spec.query,), images=shown, clips=clips)
        if not clips:
            raise UsageError(f"the class {label!r} has no other recording", where=spec.id)
        return Asked("audio", label, clips=clips)

    def _recordings(self, spec: MixtureSpec, label: str) -> tuple[str, ...]:
        """Up to five recordings of the class, none of the target's own source; the same for every query of an item."""
        own = self.clips[spec.components[spec.target].clip].source
        clips = [clip.id for clip in self._examples[label] if clip.source != own][:40]
        rng = np.random.default_rng([self.seed, spec.seed])
        chosen = rng.permutation(len(clips))[:EXAMPLES]
        return tuple(clips[n] for n in sorted(chosen))

    def _absent(self, spec: MixtureSpec, labels: Sequence[str]) -> str:
        near = {other for label in labels for other in self.classes[label].get("confusable", [])} | set(
            labels
        )
        rng = np.random.default_rng([self.seed, spec.seed, 1])
        free = [label for label in self.trained if label not in near]
        return free[int(rng.integers(len(free)))]

    def prototypes(self, count: int = EXAMPLES) -> dict[str, list[np.ndarray]]:
        """A few clean sounds per class, for the held-out judge's class prototypes."""
        return {
            label: [self.renderer.samples(clip.id)[: 16_000 * 4] for clip in clips[:count]]
            for label, clips in sorted(self._examples.items())
        }
