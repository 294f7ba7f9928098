"""BiSep's claims on our corpus: four forms of supervision, mixtures of 2, 3 and 4 sounds, three seeds.

    python benchmarks/bisep_study.py --captions corpora/captions --sounds corpora/soundbox -o runs/bisep_study

Stage one is mix-and-separate on mixtures alone, which every arm starts from. In stage two each arm goes on for as many
steps, at the same rate and on batches of the same seed, in its own form. Semi-supervision of three and four sounds has
one seed, MixIT and MixPIT too. All runs are ordinary run folders; finished ones are not trained again, an interrupted
one goes on. `--only` takes patterns of names, `--curves FILE.svg` draws the learning curves of what is there. Then:

    auralign evaluate trial --list soundbox-captions-2 --query text --arm weak2=runs/bisep_study/weak2-s0/model,… -o …
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path

from learning_curves import Line, curve, draw, mean_curve

RECIPES = Path(__file__).parent.parent / "recipes"
FORMS: dict[str, tuple[str, ...]] = {
    "mixtures": ("supervision=unsupervised",),
    "weak": (),
    "semi": ("supervision=semi", "single_share=0.05"),
    "supervised": ("supervision=supervised",),
    "supervised5": ("supervision=supervised", "single_share=0.05"),
}
"""Arms of stage two and what they change; the last two hear single sounds and are run for two sounds only."""
BLIND = ("mixit", "mixpit")
"""Controls without words, on the mixtures of two sounds, for as many steps as both stages together."""
SOUNDS = (2, 3, 4)
_COLOURS = {2: "#1b6ca8", 3: "#c05621", 4: "#2f855a"}
KEY = "val/si_sdri"
_DASHES = {"mixtures": "", "weak": "6 3", "semi": "2 3", "supervised": "10 3", "supervised5": "1 5"}


def jobs(seeds: int) -> list[tuple[str, tuple[str, ...], str]]:
    """Name, changes and the run to start from, of every run in an order that trains starts first."""
    found: list[tuple[str, tuple[str, ...], str]] = []
    for count in SOUNDS:
        split = (f'mixtures=["train-{count}"]',)
        for seed in range(seeds if count == 2 else 1):
            found.append((f"warm{count}-s{seed}", ("validate_every=500", *split, f"seed={seed}"), ""))
    for count in SOUNDS:
        split = (f'mixtures=["train-{count}"]',)
        for seed in range(seeds):
            start = f"warm{count}-s{seed if count == 2 else 0}"
            for form, changes in FORMS.items():
                if count == 2 or form in ("mixtures", "weak") or (form == "semi" and seed == 0):
                    found.append((f"{form}{count}-s{seed}", (*changes, *split, f"seed={seed}"), start))
    return found + [(f"{form}-s0", ("seed=0",), "") for form in BLIND]


def train(name: str, changes: tuple[str, ...], start: str, options: argparse.Namespace) -> None:
    """One run as a command, or nothing if its model is there."""
    folder = options.out / name
    if (folder / "model" / "model.safetensors").exists():
        return
    if (folder / "config.toml").exists():
        command = ["resume", str(folder)]
    else:
        values = [f"corpus={options.captions}", f"sounds={options.sounds}", *changes]
        values += [f"start={options.out / start / 'model'}"] if start else []
        form = name.partition("-")[0]
        first = f"{form}_small.toml" if form in BLIND else "bisep_start_small.toml"
        recipe = "bisep_small.toml" if start else first
        command = ["train", str(RECIPES / recipe), "--out", str(folder)]
        command += [part for value in values for part in ("--set", value)]
    print(name, file=sys.stderr)
    subprocess.run([sys.executable, "-m", "auralign", *command], check=True)


def figure(out: Path, seeds: int) -> str:
    """Learning curves, the mean over seeds, stage two after stage one, as one SVG."""
    lines = []
    for count in SOUNDS:
        first = mean_curve([curve(out / f"warm{count}-s{s}", KEY) for s in range(seeds)])
        if not first:
            continue
        lines.append(Line(f"{count} sounds", _COLOURS[count], first))
        for form in FORMS:
            points = mean_curve([curve(out / f"{form}{count}-s{s}", KEY) for s in range(seeds)])
            if points:
                later = [(x + first[-1][0], y) for x, y in points if x]
                lines.append(Line(f"{count}, {form}", _COLOURS[count], [first[-1], *later], _DASHES[form]))
    return draw({"SI-SDR improvement on soundbox-captions-val, dB": lines}, "steps")


def main() -> None:
    """Train what is missing, then draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--captions", type=Path, default=Path("corpora/captions"))
    parser.add_argument("--sounds", type=Path, default=Path("corpora/soundbox"))
    parser.add_argument("-o", "--out", type=Path, default=Path("runs/bisep_study"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=["*"], help="patterns of run names, such as 'weak[34]*'")
    parser.add_argument("--workers", type=int, default=2, help="runs at once, one thread each")
    parser.add_argument("--curves", type=Path, help="only draw the learning curves of what is there")
    options = parser.parse_args()
    if options.curves is None:
        every = [job for job in jobs(options.seeds) if any(fnmatch(job[0], p) for p in options.only)]
        for stage in (True, False):
            part = [job for job in every if job[0].startswith("warm") == stage]
            with ThreadPoolExecutor(options.workers) as pool:
                list(pool.map(lambda job: train(*job, options), part))
        options.curves = options.out / "curves.svg"
    options.curves.write_text(figure(options.out, options.seeds), encoding="utf-8")
    print(options.curves)


if __name__ == "__main__":
    main()
