"""What a BiSep run is made of beside its equations: recordings, texts, the separator, its teacher, its watcher."""

from __future__ import annotations

from dataclasses import replace

import torch

from auralign.algorithms.bisep_config import Config
from auralign.algorithms.bisep_data import PairMixer, Texts
from auralign.algorithms.bisep_terms import Teacher
from auralign.algorithms.bisep_watch import Watcher, load_watcher
from auralign.data.captioned import CaptionedSounds, load_captioned
from auralign.models.bimodal import open_bimodal
from auralign.models.separator import SeparatorModel
from auralign.runtime import weights
from auralign.runtime.seed import derive


def load_sounds(cfg: Config) -> tuple[CaptionedSounds | None, CaptionedSounds | None]:
    """The mixtures and the single sounds that the form of supervision may hear."""
    mixtures = singles = None
    if cfg.supervision != "supervised":
        mixtures = load_captioned(cfg.corpus, cfg.mixtures, samples=cfg.pairs.samples)
    if cfg.supervision in ("semi", "supervised"):
        singles = load_captioned(cfg.corpus, cfg.singles, samples=cfg.pairs.samples, share=cfg.single_share)
    return mixtures, singles


def build(cfg: Config) -> SeparatorModel:
    """A fresh separator, or the one to start from."""
    if cfg.start is not None:
        started: SeparatorModel = SeparatorModel.load(weights.path(str(cfg.start))).to(
            memory_format=torch.channels_last
        )  # type: ignore[call-overload]
        return started
    torch.manual_seed(derive(cfg.seed, "weights"))
    model = SeparatorModel(cfg.network, dict(cfg.options), unit_queries=False, encoder=cfg.words)
    moved: SeparatorModel = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved


def prepare(cfg: Config, model: SeparatorModel) -> tuple[PairMixer, Teacher | None, Watcher]:
    """Recordings, texts, the teacher where one is needed, and what the run is watched by."""
    mixtures, singles = load_sounds(cfg)
    names = [text for part in (mixtures, singles) if part for text in part.texts()]
    texts = Texts.of(names, model.backbones, model.token_heads.pooled_dim, cfg.corpus / ".cache")
    teacher = None
    if cfg.phrased:
        encoder = open_bimodal(cfg.encoder).to(model.device)
        teacher = Teacher(encoder, encoder.texts(list(texts.names)))
    pairs = replace(cfg.pairs, absent_phrase=cfg.phrased)
    return (
        PairMixer(mixtures, singles, texts, pairs),
        teacher,
        load_watcher(cfg.corpus, cfg.held_out, cfg.sounds, cfg.seed),
    )
