"""Training pairs and anchors out of cached features, and the validation of a reward encoder on held-out scenes."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from auralign.algorithms.alignment_data import (
    CHANGED,
    INTERFERER,
    MIXTURE,
    TARGET,
    VARIANTS,
    SceneConfig,
    SceneMaker,
    Scenes,
    scene_features,
)
from auralign.algorithms.training import load_corpus
from auralign.data.mixer import MixConfig
from auralign.models.audio_statistics import EMBEDDING_FIRST
from auralign.models.query_encoder import MODALITIES, Modality
from auralign.models.reward_encoder import RewardEncoder
from auralign.models.separator import SeparatorModel
from auralign.rewards.base import Cue
from auralign.runtime import weights
from auralign.runtime.seed import derive

EXAMPLES = 5
"""Most recordings that an audio cue is the mean of, as in the evaluation of separation."""


@dataclass(frozen=True)
class Material:
    """Everything that heads are trained and validated on, as raw features.

    Attributes:
        train: Scenes of the training split.
        held: Scenes of the validation split.
        texts: Features of each class's wordings.
        images: Features of each class's training pictures.
        labels: Names of the classes.
    """

    train: Scenes
    held: Scenes
    texts: list[Float[Tensor, "_ text"]]
    images: list[Float[Tensor, "_ image"]]
    labels: list[str]

    def partners(self) -> dict[int, Tensor]:
        """Training scenes of each target class."""
        found: dict[int, list[int]] = defaultdict(list)
        for n, label in enumerate(self.train.labels[:, 0].tolist()):
            found[label].append(n)
        return {label: torch.tensor(members) for label, members in found.items()}


def load_material(root: Path, cfg: SceneConfig, encoder: RewardEncoder, seed: int) -> Material:
    """Make, or read from the corpus folder, the scenes of both splits and the features of words and pictures."""
    corpus = load_corpus(root, MixConfig())
    classes = json.loads((root / "classes.json").read_text(encoding="utf-8"))
    kinds = {label: str(classes[label]["kind"]) for label in corpus.labels}
    near = {label: set(classes[label].get("confusable", [])) for label in corpus.labels}
    separator = SeparatorModel.load(weights.path(cfg.separator)) if cfg.separator else None
    phrases = [texts[0] for texts in corpus.texts]
    scenes = []
    for name, bank, count in (
        ("train", corpus.mixer.bank, cfg.scenes),
        ("val", corpus.validation.bank, cfg.validation),
    ):
        maker = SceneMaker(bank, corpus.labels, kinds, near, cfg, separator, phrases)
        scenes.append(
            scene_features(maker, encoder, count=count, seed=seed, name=name, cache=root / ".cache")
        )
    banks = corpus.query_banks(encoder.backbones)
    return Material(scenes[0], scenes[1], banks.texts, banks.images, corpus.labels)


@dataclass(frozen=True)
class Batch:
    """Raw features of one training step.

    Attributes:
        sounds: Chosen sounds of each scene; the first four are target, changed target, interferer, mixture.
        quality: Their SI-SDR.
        labels: Classes of target and interferer.
        partner: Another recording of the target's class.
        example: Mean features of one to five other recordings of the class, as a listener would give them.
        cue: Words, sound and picture that say what is meant; some left out at random.
        own: Whether the cue's sound is the target itself.
        shown: Which classes have a picture.
        text: Words of every item, whether or not the cue has them.
        image: A picture of every class that has one.
    """

    sounds: Float[Tensor, "scene variant audio"]
    quality: Float[Tensor, "scene variant"]
    labels: Int[Tensor, "scene 2"]
    partner: Float[Tensor, "scene audio"]
    example: Float[Tensor, "scene audio"]
    cue: Cue
    own: Bool[Tensor, "scene"]
    shown: Bool[Tensor, "scene"]
    text: Float[Tensor, "scene text"]
    image: Float[Tensor, "scene image"]


def _partners(
    rng: np.random.Generator, material: Material, members: dict[int, Tensor], index: Tensor
) -> tuple[Tensor, Tensor]:
    """For each scene another one of its class, and the mean of one to five; of other recordings where there are."""
    train = material.train
    first, mean = [], []
    for n in index.tolist():
        same = members[int(train.labels[n, 0])]
        other = same[train.sources[same, 0] != train.sources[n, 0]]
        pool = other if len(other) else same
        chosen = pool[torch.from_numpy(rng.integers(len(pool), size=int(rng.integers(1, EXAMPLES + 1))))]
        features = train.audio[chosen, TARGET].float()
        first.append(features[0])
        mean.append(features.mean(dim=0))
    return torch.stack(first), torch.stack(mean)


def _pick(
    rng: np.random.Generator, groups: list[Tensor], labels: Tensor
) -> tuple[Float[Tensor, "item features"], Bool[Tensor, "item"]]:
    """A row of each item's class, zeros where the class has none."""
    rows = torch.zeros(len(labels), groups[0].shape[-1])
    has = torch.zeros(len(labels), dtype=torch.bool)
    for n, label in enumerate(labels.tolist()):
        if len(groups[label]):
            rows[n] = groups[label][int(rng.integers(len(groups[label])))]
            has[n] = True
    return rows, has


def make_cue(features: dict[Modality, Tensor], shown: Tensor, keep: Bool[Tensor, "item modality"]) -> Cue:
    """A cue of those modalities that are kept; an item that would have none keeps its sound."""
    keep = keep.clone()
    keep[:, 2] &= shown
    keep[:, 1] |= ~keep.any(dim=1)
    places = {m: n for n, m in enumerate(MODALITIES)}
    return Cue(features, {m: keep[:, places[m]] for m in features})


def draw(
    rng: np.random.Generator,
    material: Material,
    members: dict[int, Tensor],
    size: int,
    variants: int,
    keep: tuple[float, float, float] = (0.7, 0.75, 0.7),
) -> Batch:
    """One batch; ``rng`` decides everything.

    Args:
        rng: Source of randomness.
        material: Features.
        members: :meth:`Material.partners`, computed once.
        size: Scenes.
        variants: Sounds a scene, the first four among them.
        keep: Chances that the cue has words, a sound and a picture.
    """
    train = material.train
    index = torch.from_numpy(rng.choice(len(train), size=size, replace=len(train) < size))
    rest = torch.from_numpy(
        np.stack([rng.permutation(VARIANTS - 4)[: variants - 4] + 4 for _ in range(size)])
    )
    chosen = torch.cat([torch.arange(4).expand(size, 4), rest], dim=1)
    labels = train.labels[index]
    partner, example = _partners(rng, material, members, index)
    sounds = train.audio[index[:, None], chosen].float()
    text, _ = _pick(rng, material.texts, labels[:, 0])
    image, shown = _pick(rng, material.images, labels[:, 0])
    own = torch.from_numpy(rng.random(size) < 0.4)
    heard = torch.where(own[:, None], sounds[:, TARGET], example)
    kept = torch.from_numpy(rng.random((size, 3)) < np.array(keep))
    features: dict[Modality, Tensor] = {"text": text, "audio": heard}
    if image.shape[1]:
        features["image"] = image
    cue = make_cue(features, shown, kept)
    quality = train.si_sdr[index[:, None], chosen]
    return Batch(sounds, quality, labels, partner, example, cue, own, shown, text, image)


def embedding_only(encoder: RewardEncoder, raw: Float[Tensor, "item audio"]) -> Float[Tensor, "item audio"]:
    """What is left of a sound's features when only the tagger's mean embedding is known."""
    head_mean = encoder.standard_mean("audio")
    return torch.cat([raw[:, :EMBEDDING_FIRST], head_mean[EMBEDDING_FIRST:].expand(len(raw), -1)], dim=1)


def rank_correlation(
    first: Float[Tensor, "scene variant"], second: Float[Tensor, "scene variant"]
) -> Float[Tensor, "scene"]:
    """Spearman correlation within each scene; nan where one side is constant."""
    ranks = []
    for values in (first, second):
        below = (values[:, None, :] < values[:, :, None]).sum(dim=2)
        equal = (values[:, None, :] == values[:, :, None]).sum(dim=2)
        ranks.append(below + (equal - 1) / 2)
    a, b = (r - r.mean(dim=1, keepdim=True) for r in ranks)
    norm = (a.square().sum(dim=1) * b.square().sum(dim=1)).sqrt()
    return torch.where(norm > 0, (a * b).sum(dim=1) / norm.clamp_min(1e-12), torch.nan)


def _examples(rng: np.random.Generator, train: Scenes, members: Tensor | None) -> Float[Tensor, "audio"]:
    if members is None:
        return torch.zeros(train.audio.shape[2])
    chosen = members[torch.from_numpy(rng.permutation(len(members))[:EXAMPLES])]
    return train.audio[chosen, TARGET].float().mean(dim=0)


def held_out_cues(material: Material, seed: int) -> tuple[Cue, Cue]:
    """Cues of the validation scenes' targets and interferers: words, training recordings, a picture."""
    rng = np.random.default_rng(derive(seed, "validation cues"))
    members = material.partners()
    cues = []
    for column in (0, 1):
        labels = material.held.labels[:, column]
        rows = [members.get(int(label)) for label in labels]
        example = torch.stack([_examples(rng, material.train, one) for one in rows])
        text, _ = _pick(rng, material.texts, labels)
        image, shown = _pick(rng, material.images, labels)
        features: dict[Modality, Tensor] = {"text": text, "audio": example}
        if image.shape[1]:
            features["image"] = image
        keep = torch.ones(len(labels), 3, dtype=torch.bool)
        keep[:, 1] = torch.tensor([m is not None for m in rows])
        cues.append(make_cue(features, shown, keep))
    return cues[0], cues[1]


def only(cue: Cue, *modalities: Modality) -> Cue:
    """The same cue with fewer modalities.

    >>> only(Cue({"text": torch.ones(1, 2), "audio": torch.ones(1, 3)},
    ...          {"text": torch.ones(1).bool(), "audio": torch.ones(1).bool()}), "text").features.keys()
    dict_keys(['text'])
    """
    return Cue({m: cue.features[m] for m in modalities}, {m: cue.valid[m] for m in modalities})


@torch.no_grad()
def validate(
    encoder: RewardEncoder, material: Material, cues: tuple[Cue, Cue], stage: int
) -> dict[str, float]:
    """How well held-out sounds are ordered by anchors that never hold the target itself.

    Stage 1 is scored by words alone, stage 2 by another recording, stage 3 by everything fused.

    Returns:
        ``triples`` (share of target > mixture > interferer), ``spearman`` (within a scene, against SI-SDR), ``gap``
        (target less mixture), ``standard_gap`` (over the pooled spread), ``pairs`` (right anchor preferred to the
        interferer's) and ``score``, their mean.
    """
    alone: dict[int, tuple[Modality, ...]] = {1: ("text",), 2: ("audio",)}
    modalities = alone.get(stage, tuple(cues[0].features))
    held = material.held
    sound = encoder.embed(held.audio.flatten(0, 1).float(), "audio").unflatten(0, held.audio.shape[:2])
    wanted, unwanted = (encoder.anchor(only(cue, *modalities)) for cue in cues)
    scores = torch.einsum("bvd,bd->bv", sound, wanted)
    wrong = torch.einsum("bd,bd->b", sound[:, TARGET], unwanted)
    known = ~(wanted.isnan().any(dim=1) | unwanted.isnan().any(dim=1))
    scores, wrong, quality = scores[known], wrong[known], held.si_sdr[known]
    target, mixture, other = scores[:, TARGET], scores[:, MIXTURE], scores[:, INTERFERER]
    keep = [n for n in range(scores.shape[1]) if n != CHANGED]
    spread = ((target.var() + mixture.var()) / 2).sqrt()
    out = {
        "triples": float(((target > mixture) & (mixture > other)).double().mean()),
        "spearman": float(rank_correlation(scores[:, keep], quality[:, keep]).nanmean()),
        "gap": float((target - mixture).mean()),
        "standard_gap": float((target - mixture).mean() / spread),
        "pairs": float((target > wrong).double().mean()),
    }
    out["score"] = (out["triples"] + out["spearman"] + out["pairs"]) / 3
    return out
