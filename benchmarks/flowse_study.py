"""FlowSE-GRPO against its controls: rewards, updates and seeds from one base model, at equal numbers of scored clips.

    python benchmarks/flowse_study.py --start runs/flowse/model -o runs/flowse_study

`flow_grpo` and `nft` follow the recipe's three rewards by ratios of stochastic steps and by the forward process, `sft`
matches the best of such samples (the control), `ovrl` is `nft` on DNSMOS OVRL alone. The other arms are the other
updates on the recipe's rewards. All runs are ordinary run folders of `auralign train`; finished ones are not trained
again, an interrupted one goes on. Then:

    auralign evaluate enhancement --arm base=runs/flowse/model \
        --arm nft=runs/flowse_study/nft-s0/model,runs/flowse_study/nft-s1/model,… --vs base --base base -o out

`--curves FILE.svg` draws learning curves. `--calibrate` prints the standard deviation of each reward over the base
model's enhancements, the frozen scales, and the weights that they make of the paper's shares.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path

from learning_curves import Line, curve, draw, mean_curve

RECIPE = Path(__file__).parent.parent / "recipes" / "flowse_grpo_small.toml"
OVRL = 'rewards=[{path="dnsmos_ovrl"},{path="speaker",weight=0.0},{path="spectral_features",weight=0.0}]'
SEEDED: dict[str, tuple[str, ...]] = {
    "flow_grpo": ("update.name=flow_grpo",),
    "nft": ("update.name=nft",),
    "sft": ("update.name=sft",),
    "ovrl": ("update.name=nft", OVRL),
}
"""Arms with several seeds, and what they change in the recipe."""
COLOURS = {"flow_grpo": "#2f855a", "nft": "#1b6ca8", "sft": "#718096", "ovrl": "#c53030"}
UPDATES = ("guard", "dppo", "gspo", "awm", "advantage_flow", "dpo", "crpo", "best_of_n")
"""Arms with one seed: the other updates."""


def jobs(seeds: int) -> list[tuple[str, tuple[str, ...]]]:
    """Name and changes of every run."""
    found = [(f"{arm}-s{s}", (*c, f"seed={s}")) for s in range(seeds) for arm, c in SEEDED.items()]
    return found + [(f"{name}-s0", (f"update.name={name}", "seed=0")) for name in UPDATES]


def train(name: str, changes: tuple[str, ...], options: argparse.Namespace) -> None:
    """One run as a command, or nothing if its model is there."""
    folder = options.out / name
    if (folder / "model" / "model.safetensors").exists():
        return
    command = ["resume", str(folder)]
    if not (folder / "config.toml").exists():
        values = (f"start={options.start}", *changes, *options.set)
        command = ["train", str(RECIPE), "--out", str(folder)]
        command += [part for value in values for part in ("--set", value)]
    print(name, file=sys.stderr)
    subprocess.run([sys.executable, "-m", "auralign", *command], check=True)


def figure(out: Path, seeds: int) -> str:
    """The reward's main part and the held-out judge over scored clips, means over seeds, as one SVG."""
    panels = {}
    for title, key in (
        ("DNSMOS OVRL on speech-val (trained on)", "val/reward_dnsmos_ovrl"),
        ("Distill-MOS on speech-val (held out)", "val/judge"),
        ("speaker similarity on speech-val", "val/reward_speaker"),
    ):
        lines = []
        for arm, colour in COLOURS.items():
            points = mean_curve([curve(out / f"{arm}-s{s}", key) for s in range(seeds)])
            if points:
                lines.append(Line(arm, colour, points))
        panels[title] = lines
    return draw(panels, "collections of 32 scored clips")


def calibrate(options: argparse.Namespace) -> None:
    """Print the frozen scales and the weights that they make of the paper's shares."""
    import numpy as np
    import torch

    from auralign.algorithms.flowse_watch import enhance_all
    from auralign.data.speech_mixer import SpeechMixConfig, SpeechMixer
    from auralign.models.enhancer import RATE_HZ, EnhancerModel
    from auralign.rewards.base import Scene
    from auralign.rewards.load import load_reward
    from auralign.rewards.speech import speech_scales
    from auralign.rewards.speech_presets import FLOWSE_GRPO, frozen_rewards

    model = EnhancerModel.load(options.start)
    mix = SpeechMixConfig(samples=33_280)
    corpus, noises = Path("corpora/speech"), Path("corpora/soundbox")
    mixer = SpeechMixer.load(corpus, noises, "train", mix, cache=corpus / ".cache")
    batch = mixer.batch(np.random.default_rng(0), options.clips)
    est = torch.stack(enhance_all(model, list(batch.noisy)))
    scene = Scene(est[:, None], batch.noisy, RATE_HZ, target=batch.clean)
    scales = speech_scales({term.path: load_reward(term.path)(scene) for term in FLOWSE_GRPO})
    print("scales", scales)
    for one in frozen_rewards(scales):
        print(f'[[rewards]]\npath = "{one.path}"\nweight = {one.weight:.3f}\n')


def main() -> None:
    """Train what is missing, or calibrate."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--start", type=Path, default=Path("runs/flowse/model"))
    parser.add_argument("-o", "--out", type=Path, default=Path("runs/flowse_study"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=["*"], help="patterns of run names, such as 'grpo-*'")
    parser.add_argument("--set", nargs="+", default=[], help="changes for all arms, such as steps=30")
    parser.add_argument("--workers", type=int, default=2, help="runs at once, one thread each")
    parser.add_argument("--curves", type=Path, help="only draw the learning curves of what is there")
    parser.add_argument("--calibrate", action="store_true", help="only print the frozen scales")
    parser.add_argument("--clips", type=int, default=256, help="of the calibration")
    options = parser.parse_args()
    if options.calibrate:
        calibrate(options)
        return
    if options.curves is not None:
        options.curves.write_text(figure(options.out, options.seeds), encoding="utf-8")
        return
    chosen = [job for job in jobs(options.seeds) if any(fnmatch(job[0], p) for p in options.only)]
    with ThreadPoolExecutor(options.workers) as pool:
        list(pool.map(lambda job: train(*job, options), chosen))


if __name__ == "__main__":
    main()
