"""Recipes of the repository: each parses into the configuration of its algorithm."""

from __future__ import annotations

from pathlib import Path

import pytest

from auralign.cli.train import algorithm_module
from auralign.runtime import config

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))
FORMS = {
    "bisep_small": "weak",
    "bisep_unsupervised_small": "unsupervised",
    "bisep_semi_small": "semi",
    "bisep_supervised_small": "supervised",
}


def read(path: Path):
    name = config.algorithm_of(path)
    return config.load(path, algorithm_module(name, where=str(path)).Config)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_parses_and_survives_being_written(path):
    cfg = read(path)
    assert config.loads(config.dump(cfg), type(cfg)) == cfg


def test_the_four_forms_of_supervision_differ_in_nothing_else():
    found = {name: read(path) for path in RECIPES if (name := path.stem) in FORMS}
    assert {name: cfg.supervision for name, cfg in found.items()} == FORMS
    for cfg in found.values():
        for same in ("options", "network", "batch", "steps", "rate", "warmup", "pairs", "loss", "seed"):
            assert getattr(cfg, same) == getattr(found["bisep_small"], same)


def test_the_released_preset_has_the_published_arithmetic():
    cfg = read(next(path for path in RECIPES if path.stem == "bisep_released"))
    loss, pairs = cfg.loss, cfg.pairs
    assert (loss.contrast, loss.mixtures, loss.phrases, loss.presence, loss.rows) == (0.5, 5, 5, 0, 0)
    assert (loss.form, loss.consistency, loss.among) == ("l1", "sum", "published")
    ours = ("multi_positive", "symmetric", "spare_close")
    assert not any(getattr(loss, name) for name in ours)
    assert not pairs.apart
    assert (pairs.repeat, pairs.most_phrases, pairs.gain) == (True, 3, (0.5, 1.5))
    assert (
        pairs.samples // 256 == 131_070 // 256 + 1 == 512
    )  # the frames of a centred STFT, cut to whole hops
    assert (cfg.batch, cfg.accumulate, cfg.rate, cfg.weight_decay) == (2, 8, 1e-4, 1e-4)
    assert cfg.options == {"mask_padding": False}
    assert cfg.words.startswith("clap-padded-tokens:")
