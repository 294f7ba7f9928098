"""How well a text-audio encoder knows single sounds, which BiSep's own was never aligned on.

    python benchmarks/bimodal_single_sounds.py builtin --sounds corpora/soundbox --captions corpora/captions

For the loudest 2.05 s of clips of the captions' classes: how often the right class name comes first, and how often it
lies above the name of another class. Training clips are a random 30 %, drawn with a fixed seed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from auralign.data.manifest import read_manifest
from auralign.data.sound_bank import SoundBank
from auralign.models.bimodal import open_bimodal

SAMPLES, HOP, SHARE = 32_768, 4_000, 0.3


def loudest(wave: np.ndarray) -> np.ndarray:
    """The stretch of most energy; shorter sounds are repeated."""
    if len(wave) < SAMPLES:
        return np.resize(wave, SAMPLES)
    starts = range(0, len(wave) - SAMPLES + 1, HOP)
    best = max(starts, key=lambda n: float(np.square(wave[n : n + SAMPLES]).sum()))
    return wave[best : best + SAMPLES]


def main() -> None:
    """Print one line a split."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("encoder", nargs="?", default="builtin")
    parser.add_argument("--sounds", type=Path, default=Path("corpora/soundbox"))
    parser.add_argument("--captions", type=Path, default=Path("corpora/captions"))
    options = parser.parse_args()
    names = json.loads((options.captions / "corpus.json").read_text(encoding="utf-8"))["class_names"]
    clips = read_manifest(options.sounds / "manifest.jsonl")
    encoder, chance = open_bimodal(options.encoder), np.random.default_rng(0)
    texts = encoder.texts(names)
    for split, share in (("train", SHARE), ("val", 1.0)):
        part = [c for c in clips if c.split == split and c.labels[0] in names]
        part = [c for c in part if share == 1 or chance.random() < share]
        bank = SoundBank(part, options.sounds)
        waves = np.stack([loudest(bank.samples(n)) for n in range(len(part))]).astype(np.float32)
        with torch.no_grad():
            rows = [encoder.audio(torch.from_numpy(waves[n : n + 16])) for n in range(0, len(waves), 16)]
        similarity = torch.cat(rows) @ texts.t()
        label = torch.tensor([names.index(c.labels[0]) for c in part])
        own = similarity.gather(1, label[:, None])
        first = (similarity.argmax(dim=1) == label).float().mean()
        above = (own > similarity).float().sum(dim=1).mean() / (len(names) - 1)
        print(
            f"{split}: {len(part)} clips, {len(names)} classes, first {float(first):.3f}, above {float(above):.3f}"
        )


if __name__ == "__main__":
    main()
