"""A corpus of short tones and noises with a frozen list, and two separators with tiny random networks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from auralign.data.mixtures import Component, MixtureSpec, write_list
from auralign.models.separator import SeparatorModel

RATE_HZ = 16_000
PITCH = {"bell": 1500, "flute": 700, "harp": 350, "saw": 120}
TINY = {"widths": (16, 32, 48, 64), "fine": 8, "hidden": 32, "query_dim": 256}


def recording(label: str, variant: int) -> np.ndarray:
    rng = np.random.default_rng([PITCH[label], variant])
    t = np.arange(24_000) / RATE_HZ
    hertz = PITCH[label] * (1 + 0.06 * variant)
    wave = sum(np.sin(2 * np.pi * hertz * k * t) / k for k in range(1, 5))
    return 0.2 * wave + 0.002 * rng.standard_normal(len(t))


@pytest.fixture(scope="session")
def trial_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes, two training recordings and one test recording of each; only the bell has a picture."""
    root = tmp_path_factory.mktemp("trial-corpus")
    rows = []
    for label in PITCH:
        for variant, split in enumerate(("train", "train", "cross" if label == "saw" else "test")):
            name = f"{label}-{variant}"
            soundfile.write(root / f"{name}.flac", recording(label, variant), RATE_HZ)
            row = {"id": name, "audio": f"{name}.flac", "labels": [label], "kind": "event", "split": split}
            rows.append(row | {"source": f"take/{name}", "sample_rate": RATE_HZ, "channels": 1})
    Image.new("RGB", (40, 30), (200, 90, 30)).save(root / "bell.png")
    classes = {
        label: {
            "kind": "event",
            "texts": [label],
            "pictures": {"train": [], "test": ["bell.png"] if label == "bell" else []},
        }
        for label in PITCH
    }
    (root / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "classes.json").write_text(json.dumps(classes))
    pairs = [("bell", "harp"), ("flute", "saw"), ("harp", "bell"), ("saw", "flute")]
    specs = [
        MixtureSpec(f"m-{n}", (Component(f"{a}-2", 0.0), Component(f"{b}-2", -3.0)), 0, a, n)
        for n, (a, b) in enumerate(pairs)
    ]
    write_list(root / "tiny.jsonl", specs)
    gone = MixtureSpec("gone", (Component("bell-2", 0.0), Component("lost-0", 0.0)), 0, "bell", 9)
    write_list(root / "broken.jsonl", [specs[0], gone])
    return root


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders of three separators that answer differently."""
    root = tmp_path_factory.mktemp("tiny-models")
    for seed in range(3):
        torch.manual_seed(seed)
        model = SeparatorModel("small", dict(TINY)).eval()
        torch.nn.init.normal_(model.net.net.head.filters.weight, std=0.3)
        model.save(root / f"m{seed}", {"name": f"m{seed}"})
    return [root / f"m{seed}" for seed in range(3)]
