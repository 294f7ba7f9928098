# ruff: noqa: T201
"""Fine-tunes the shipped separator on a folder of your own sounds, and says what it gained.

    python examples/fine_tune.py my_sounds/ --with corpora/soundbox
    python examples/fine_tune.py my_sounds/ --reward my_rewards.less_hum --steps 400 --out tuned

`my_sounds/` has one subfolder a class, as in my_sounds/violin/take1.wav. The steps are those of the command line:
`auralign data build folder`, `auralign train recipes/mars_sep_finetune.toml`, and separation of mixtures with sounds
that were held out, before and after. They are held out from training; the best checkpoint is chosen by the mean over
them and other held-out sounds, so for a figure to publish, keep sounds that are not in the folder at all.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "mars_sep_finetune.toml"
SOUNDBOX = Path("corpora/soundbox")
RATE_HZ = 16_000
MIXTURES, SECONDS = 12, 8.0
SPREAD = (
    0.04  # of the fidelity reward within a group: a reward of unit spread weighs as much with this weight
)


@dataclass(frozen=True)
class Mixture:
    """A held-out sound and another one at equal power."""

    name: str
    query: str
    target: object
    mixture: object


def held_out(corpus: Path) -> list[Mixture]:
    """Mixtures of the user's held-out sounds with held-out sounds of classes that cannot be taken for theirs."""
    import numpy as np

    from auralign.audio.io import read
    from auralign.audio.mix import equal_power
    from auralign.data.manifest import read_manifest

    classes = json.loads((corpus / "classes.json").read_text(encoding="utf-8"))
    clips = [clip for clip in read_manifest(corpus / "manifest.jsonl") if clip.split == "val"]
    rng = np.random.default_rng(0)
    found = []
    for clip in [clip for clip in clips if not clip.id.startswith("borrowed/")][:MIXTURES]:
        label = clip.labels[0]
        close = {label, *classes[label]["confusable"]}
        others = [other for other in clips if other.labels[0] not in close]
        other = others[rng.integers(len(others))]
        parts = [
            read(
                corpus / one.audio,
                rate_hz=RATE_HZ,
                start_s=one.offset_s,
                duration_s=min(one.duration_s, SECONDS),
            )
            for one in (clip, other)
        ]
        length = parts[0].frames
        waves = [np.resize(part.samples.mean(axis=0, keepdims=True), (1, length)) for part in parts]
        waves = equal_power(waves)
        scale = np.float32(0.5 / np.abs(sum(waves)).max())
        name = f"{clip.source_path} with {other.labels[0]}"
        found.append(Mixture(name, classes[label]["texts"][0], scale * waves[0], scale * sum(waves)))
    return found


def improvements(model: str, mixtures: list[Mixture], folder: Path, name: str) -> list[float]:
    """SI-SDR improvement of each mixture's target, dB; the first target is written to be heard."""
    import torch

    import auralign
    from auralign.audio.io import AudioWriter
    from auralign.metrics.sdr import si_sdri

    separator = auralign.load(model)
    gains = []
    for number, one in enumerate(mixtures):
        est = separator.separate((one.mixture, RATE_HZ), one.query).target
        sounds = {"est": est, "ref": one.target, "mixture": one.mixture}
        gains.append(float(si_sdri(**{key: torch.from_numpy(value)[0] for key, value in sounds.items()})))
        if number == 0:
            for stem, wave in ((name, est), ("mixture", one.mixture), ("reference", one.target)):
                path = folder / f"{stem}.wav"
                path.unlink(missing_ok=True)
                with AudioWriter(path, rate_hz=RATE_HZ, channels=1) as writer:
                    writer.write(wave)
    return gains


def build_corpus(options: argparse.Namespace) -> Path:
    """`auralign data build folder`; what was skipped is said."""
    from auralign.data.folder_corpus import build

    borrow = options.borrow or (SOUNDBOX if (SOUNDBOX / "classes.json").exists() else None)
    card = build(options.sounds, options.out / "corpus", borrow=borrow, kind=options.kind)
    for name, reason in card["skipped"].items():
        print(f"skipped {name}: {reason}", file=sys.stderr)
    for note in card["notes"]:
        print(f"note: {note}", file=sys.stderr)
    for label, count in card["own"].items():
        print(f"{label}: {count['train']} to train on, {count['val']} held out")
    return options.out / "corpus"


def train(options: argparse.Namespace, corpus: Path) -> tuple[int, Path]:
    """`auralign train` with the recipe for fine-tuning; its exit code and the model's folder."""
    from auralign import cli

    words = ["train", str(RECIPE), "--out", str(options.out / "run"), "--set", f"corpus={corpus}"]
    for key, value in (("steps", options.steps), ("start", options.model), ("batch", options.batch)):
        if value is not None:
            words += ["--set", f"{key}={value}"]
    if options.steps is not None and options.steps < 200:
        words += ["--set", f"validate_every={max(1, options.steps // 4)}"]
    if options.reward:
        shape = f'weight = {SPREAD * options.weight}, normalise = "group", unscorable = "skip"'
        tables = [
            '{path = "fidelity"}',
            *(f"{{path = {json.dumps(path)}, {shape}}}" for path in options.reward),
        ]
        words += ["--set", f"rewards=[{', '.join(tables)}]"]
    return cli.main(words), options.out / "run" / "model"


def run(options: argparse.Namespace) -> int:
    """Everything: corpus, score before, training, score after."""
    from auralign.errors import UsageError
    from auralign.rewards.load import load_reward

    for path in options.reward:
        load_reward(path)  # a mistake in it shows now and not after the corpus is built
    if (options.out / "run").exists():
        where = str(options.out / "run")
        raise UsageError("there is a run already", where=where, hint="give another --out, or remove it")
    corpus = build_corpus(options)
    mixtures = held_out(corpus)
    listen = options.out / "listen"
    listen.mkdir(parents=True, exist_ok=True)
    before = improvements(options.model, mixtures, listen, "before")
    code, model = train(options, corpus)
    if not model.exists():
        return code or 1
    if not mixtures:
        print(f"No sound was held out, so nothing can be scored. The model is {model}")
        return code
    after = improvements(str(model), mixtures, listen, "after")
    print("\nSI-SDR improvement of held-out sounds, dB: before, after")
    for one, first, second in zip(mixtures, before, after, strict=True):
        print(f"{first:+6.1f} {second:+6.1f}  {one.query!r} in {one.name}")
    mean = [sum(gains) / len(gains) for gains in (before, after)]
    print(f"{mean[0]:+6.2f} {mean[1]:+6.2f}  mean of {len(mixtures)}")
    print(f"\nListen to {listen}. Use it: auralign separate mix.wav -q {mixtures[0].query!r} --model {model}")
    return code


def main() -> int:
    """Reads the command line; errors say what to do, like those of the command."""
    from auralign.errors import AuralignError

    parser = argparse.ArgumentParser(description="Fine-tune the separator on a folder of your own sounds.")
    parser.add_argument("sounds", type=Path, help="folder with one subfolder of sounds a class")
    parser.add_argument(
        "-o", "--out", type=Path, default=Path("fine-tuned"), help="folder for everything made"
    )
    parser.add_argument(
        "--with",
        dest="borrow",
        type=Path,
        help=f"corpus to borrow other classes from (default: {SOUNDBOX}, if built)",
    )
    parser.add_argument(
        "--kind", default="event", choices=("event", "instrument", "speech"), help="what they are"
    )
    parser.add_argument(
        "--reward", action="append", default=[], help="dotted path of a reward; may be repeated"
    )
    parser.add_argument("--weight", type=float, default=1.0, help="of those rewards; 1 = as much as fidelity")
    parser.add_argument("--steps", type=int, help="updates (default: the recipe's 200)")
    parser.add_argument("--batch", type=int, help="mixtures an update (default: the recipe's 8)")
    parser.add_argument(
        "--model", default="mars-sep-small", help="name or folder of the separator to start from"
    )
    options = parser.parse_args()
    try:
        return run(options)
    except AuralignError as error:
        print(f"fine_tune: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
