"""A corpus of a few synthetic tones and noises, and frozen encoders that need no pretrained weights."""

from __future__ import annotations

import json
import zlib
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from auralign.models.encoders import Backbones
from auralign.models.text_tokens import WordsOnly, join_query

RATE_HZ = 16_000
KINDS = {
    "bell": "event",
    "flute": "instrument",
    "harp": "instrument",
    "hiss": "event",
    "rumble": "event",
    "saw": "instrument",
}


class FakeBackbones(Backbones):
    """Vectors that follow from the words, the spectrum or the colours; YAMNet is the real one."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def texts(self, texts):
        self.calls.append("texts")
        seeds = [zlib.crc32(text.encode()) for text in texts]
        return torch.stack([torch.randn(384, generator=torch.Generator().manual_seed(s)) for s in seeds])

    def audio(self, wave):
        self.calls.append("audio")
        return torch.fft.rfft(wave, n=2046).abs()

    def images(self, images):
        self.calls.append("images")
        return images[:, :, :20, :22].flatten(1)[:, :1280]


def tone(label: str, variant: int, samples: int) -> np.ndarray:
    """One recording: each class has its own spectrum, each variant its own pitch or noise."""
    rng = np.random.default_rng([zlib.crc32(label.encode()), variant])
    t = np.arange(samples) / RATE_HZ
    pitch = {"bell": 1500, "flute": 700, "harp": 350, "saw": 120}.get(label, 0) * (1 + 0.05 * variant)
    if label in ("hiss", "rumble"):
        spectrum = np.fft.rfft(rng.normal(size=samples))
        hertz = np.fft.rfftfreq(samples, 1 / RATE_HZ)
        spectrum *= (hertz > 4000) if label == "hiss" else (hertz < 200)
        wave = np.fft.irfft(spectrum, samples)
    else:
        overtones = 12 if label == "saw" else 2
        wave = sum(np.sin(2 * np.pi * pitch * k * t + k) / k for k in range(1, overtones + 1))
    return 0.3 * wave / np.abs(wave).max()


def write_corpus(root: Path) -> Path:
    """Six classes in training and validation, one more that only validation has."""
    root.mkdir(parents=True, exist_ok=True)
    rows = []
    for label in (*KINDS, "unheard"):
        for variant, split in enumerate(("train", "train", "val")):
            if label == "unheard" and split == "train":
                continue
            name = f"{label}-{variant}"
            wave = tone(label, variant, 12_000) if label in KINDS else np.zeros(4000)
            soundfile.write(root / f"{name}.flac", wave, RATE_HZ)
            rows.append(
                {
                    "id": name,
                    "audio": f"{name}.flac",
                    "duration_s": len(wave) / RATE_HZ,
                    "sample_rate": RATE_HZ,
                    "channels": 1,
                    "labels": [label],
                    "kind": KINDS.get(label, "event"),
                    "split": split,
                    "source": name,
                    "sha256": name,
                }
            )
    classes = {
        label: {
            "kind": KINDS.get(label, "event"),
            "texts": [label, f"the sound of a {label}"],
            "pictures": {"train": [f"{label}.png"] if label in ("bell", "flute") else [], "test": []},
        }
        for label in (*KINDS, "unheard")
    }
    for n, label in enumerate(("bell", "flute")):
        Image.new("RGB", (40, 30), (200, 90 * n, 30)).save(root / f"{label}.png")
    (root / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "classes.json").write_text(json.dumps(classes))
    return root


def use_tiny_parts(monkeypatch: pytest.MonkeyPatch | None = None) -> None:
    """Fake encoders in every new separator, and a validation of two mixtures."""
    from auralign.algorithms import omnisep
    from auralign.algorithms.training import validate
    from auralign.models import separator

    replace = setattr if monkeypatch is None else monkeypatch.setattr
    replace(separator, "open_backbones", lambda _: FakeBackbones())
    replace(omnisep, "validate", partial(validate, batches=1, size=2))


@pytest.fixture(scope="session")
def corpus_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus on disk; its cache is filled by whoever comes first."""
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def fake_backbones() -> FakeBackbones:
    return FakeBackbones()


@pytest.fixture(scope="session")
def install_tiny_parts():
    return use_tiny_parts


@pytest.fixture
def tiny_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    use_tiny_parts(monkeypatch)


# reinforcement learning on top of a separator


def use_tiny_watcher(monkeypatch: pytest.MonkeyPatch | None = None) -> None:
    """Fake encoders, and a validation of two mixtures that rewards hear too."""
    from auralign.algorithms import watching
    from auralign.algorithms.training import validate

    use_tiny_parts(monkeypatch)
    replace = setattr if monkeypatch is None else monkeypatch.setattr
    batch = watching.Watcher._batch

    def of_two(self):
        self.size = 2
        return batch(self)

    replace(watching, "validate", partial(validate, batches=1, size=2))
    replace(watching.Watcher, "_batch", of_two)


@pytest.fixture
def tiny_watcher(monkeypatch: pytest.MonkeyPatch) -> None:
    use_tiny_watcher(monkeypatch)


@pytest.fixture(scope="session")
def install_tiny_watcher():
    return use_tiny_watcher


@pytest.fixture(scope="session")
def mars_start(tmp_path_factory: pytest.TempPathFactory, corpus_root: Path) -> Path:
    """A published network of a few thousand weights after twelve supervised steps: a poor separator."""
    from auralign.algorithms import omnisep
    from auralign.algorithms.training import Averager, TrainState, decay_groups, load_corpus
    from auralign.data.mixer import MixConfig
    from auralign.runtime.distributed import World

    cfg = omnisep.Config(
        corpus=corpus_root,
        network="omnisep",
        query_dim=16,
        levels=4,
        width=4,
        batch=4,
        warmup=2,
        steps=12,
        rate=5e-3,
        precision="float32",
        mix=MixConfig(samples=4096, single=0.0),
    )
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_parts(patch)
        corpus = load_corpus(corpus_root, cfg.mix)
        model = omnisep.build(cfg, corpus)
        banks = corpus.query_banks(model.backbones)
        state = TrainState(model, Averager(model, 0.9), torch.optim.AdamW(decay_groups(model, 0.01)))
        for _ in range(cfg.steps):
            omnisep.update(cfg, corpus, banks, state, World())
        folder = tmp_path_factory.mktemp("start")
        model.eval().save(folder, {"name": "tiny"})
    return folder


@pytest.fixture(scope="session")
def mars_config(corpus_root: Path, mars_start: Path):
    """A toy configuration; ``policy`` and ``explore`` change the nested ones."""
    from auralign.algorithms.mars_sep_config import Config, PolicyConfig
    from auralign.data.mixer import MixConfig
    from auralign.policy.exploration import Exploration
    from auralign.rewards.guard import GuardConfig
    from auralign.rewards.load import RewardConfig

    def make(*, policy=None, explore=None, **changes) -> Config:
        explored = Exploration(**{"tile": (32, 4), **(explore or {})})
        tiny = {
            "corpus": corpus_root,
            "start": str(mars_start),
            "policy": PolicyConfig(**{"explore": explored, **(policy or {})}),
            "rewards": (RewardConfig("fidelity"),),
            "guard": GuardConfig(fall_db=1e6, fidelity_slack_db=1e6, all_pass=1.0, all_zero=0.0),
            "judge": False,
            "mix": MixConfig(samples=4096),
            "batch": 2,
            "warmup": 2,
            "steps": 4,
            "validate_every": 2,
            "precision": "float32",
        }
        return Config(**{**tiny, **changes})

    return make


# separation learned from captioned recordings


def write_captioned(root: Path) -> Path:
    """Six single sounds, fifteen mixtures of two in training and three held-out ones, each with its phrases."""
    rows = []

    def add(split: str, number: int, labels: tuple[str, ...]) -> None:
        audio = Path("audio") / split / f"{number}.flac"
        (root / audio).parent.mkdir(parents=True, exist_ok=True)
        wave = sum(tone(label, number, 12_000) for label in labels) / len(labels)
        soundfile.write(root / audio, wave, RATE_HZ)
        phrases = [f"a {label}" for label in labels]
        rows.append(
            {
                "id": f"{split}-{number}",
                "audio": audio.as_posix(),
                "duration_s": len(wave) / RATE_HZ,
                "sample_rate": RATE_HZ,
                "channels": 1,
                "captions": [" and ".join(phrases)],
                "phrases": phrases,
                "labels": list(labels),
                "kind": "event",
                "split": split,
                "sha256": f"{split}-{number}",
            }
        )

    names = sorted(KINDS)
    for number, label in enumerate(names):
        add("train-1", number, (label,))
    pairs = [(a, b) for a in names for b in names if a < b]
    for number, pair in enumerate(pairs):
        add("train-2", number, pair)
    for number, pair in enumerate(pairs[::6]):
        add("val-2", 100 + number, pair)
    (root / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


class FakeWords(WordsOnly):
    """A sentence vector and a row for each word, all drawn at random from the letters."""

    spec = "tokens"
    dims: ClassVar = {"text": 16 + 4 * 6}

    def texts(self, texts):
        self.refuse_empty(texts)
        return torch.cat([join_query(letters(t, 16)[None], self.words(t)[None], 4) for t in texts])

    @staticmethod
    def words(text: str) -> torch.Tensor:
        return torch.stack([letters(word, 6) for word in text.split()])


def letters(text: str, dim: int) -> torch.Tensor:
    """A unit vector that follows from the letters."""
    draw = torch.randn(dim, generator=torch.Generator().manual_seed(zlib.crc32(text.encode())))
    return torch.nn.functional.normalize(draw, dim=0)


TINY_BISEP = {
    "levels": 4,
    "width": 2,
    "heads": 2,
    "channels": 4,
    "pooled_dim": 16,
    "tokens": 4,
    "token_dim": 6,
}


def use_tiny_bisep(monkeypatch: pytest.MonkeyPatch | None = None) -> None:
    """Fake words in every new separator, and one short pair to watch."""
    from auralign.algorithms import bisep_set_up, bisep_watch
    from auralign.models import separator

    replace = setattr if monkeypatch is None else monkeypatch.setattr
    replace(separator, "open_backbones", lambda _: FakeWords())
    replace(bisep_watch, "_SAMPLES", 4096)
    replace(bisep_watch, "_BATCH", 2)
    load = bisep_watch.load_watcher

    def of_one_pair(*given):
        watcher = load(*given)
        watcher.pairs = 2
        return watcher

    replace(bisep_set_up, "load_watcher", of_one_pair)


@pytest.fixture
def tiny_bisep(monkeypatch: pytest.MonkeyPatch) -> None:
    use_tiny_bisep(monkeypatch)


@pytest.fixture(scope="session")
def install_tiny_bisep():
    return use_tiny_bisep


@pytest.fixture(scope="session")
def captioned_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The captioned corpus on disk."""
    return write_captioned(tmp_path_factory.mktemp("captions"))


@pytest.fixture
def make_captioned():
    return write_captioned


@pytest.fixture
def fake_words() -> FakeWords:
    return FakeWords()


@pytest.fixture(scope="session")
def aligned_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random text-audio encoder of the built-in kind."""
    from auralign.models.reward_encoder import RewardEncoder

    torch.manual_seed(5)
    folder = tmp_path_factory.mktemp("encoder") / "aligned"
    RewardEncoder(dim=8, hidden=8, rank=4, pooling="mean").save(folder, {"name": "tiny"})
    return folder


@pytest.fixture(scope="session")
def bisep_config(captioned_root: Path, aligned_folder: Path):
    """A toy configuration; ``pairs`` and ``loss`` change the nested ones."""
    from auralign.algorithms.bisep_config import Config, LossConfig
    from auralign.algorithms.bisep_data import PairConfig

    def make(*, pairs=None, loss=None, **changes) -> Config:
        tiny = {
            "corpus": captioned_root,
            "encoder": str(aligned_folder),
            "network": "bisep",
            "options": dict(TINY_BISEP),
            "pairs": PairConfig(**{"samples": 4096, **(pairs or {})}),
            "loss": LossConfig(**(loss or {})),
            "batch": 2,
            "warmup": 2,
            "steps": 4,
            "validate_every": 2,
            "precision": "float32",
        }
        return Config(**{**tiny, **changes})

    return make
