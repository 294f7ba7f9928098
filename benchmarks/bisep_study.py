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
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path

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


def curve(folder: Path) -> list[tuple[int, float]]:
    """Steps and mean SI-SDR improvement on the validation list of a run."""
    path = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [(int(row["step"]), float(row["val/si_sdri"])) for row in rows if "val/si_sdri" in row]


def figure(out: Path, seeds: int) -> str:
    """Learning curves, the mean over seeds, stage two after stage one, as one SVG."""
    width, height, left, bottom = 720, 360, 48, 40
    lines = []
    for count in SOUNDS:
        warm = [curve(out / f"warm{count}-s{s}") for s in range(seeds)]
        warm = [points for points in warm if points]
        if not warm:
            continue
        first = [
            (x, sum(dict(w)[x] for w in warm) / len(warm))
            for x, _ in warm[0]
            if all(x in dict(w) for w in warm)
        ]
        lines.append((count, "mixtures", first))
        for form in FORMS:
            runs = [dict(curve(out / f"{form}{count}-s{s}")) for s in range(seeds)]
            runs = [run for run in runs if run]
            steps = sorted(set.intersection(*(set(run) for run in runs))) if runs else []
            points = [(x + first[-1][0], sum(run[x] for run in runs) / len(runs)) for x in steps]
            if points:
                lines.append((count, form, [first[-1], *points]))
    most_x = max(x for _, _, points in lines for x, _ in points)
    most_y = max(y for _, _, points in lines for _, y in points) * 1.1

    def place(x: float, y: float) -> str:
        across = left + x / most_x * (width - left - 150)
        up = height - bottom - y / most_y * (height - bottom - 12)
        return f"{across:.1f},{up:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">'
    ]
    parts.append(f'<rect width="{width}" height="{height}" fill="white"/>')
    for y in range(int(most_y) + 1):
        parts.append(f'<polyline points="{place(0, y)} {place(most_x, y)}" stroke="#ddd" fill="none"/>')
        at = place(0, y).split(",")[1]
        parts.append(f'<text x="{left - 8}" y="{at}" text-anchor="end" dominant-baseline="middle">{y}</text>')
    for x in range(0, int(most_x) + 1, 200):
        parts.append(
            f'<text x="{place(x, 0).split(",")[0]}" y="{height - 20}" text-anchor="middle">{x}</text>'
        )
    parts.append(
        f'<text x="{left}" y="{height - 4}">steps; mean SI-SDR improvement on soundbox-captions-val, dB</text>'
    )
    for count, form, points in lines:
        path = " ".join(place(x, y) for x, y in points)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{_COLOURS[count]}" stroke-width="2" '
            f'stroke-dasharray="{_DASHES[form]}"/>'
        )
    keys = [(f"{count} sounds", _COLOURS[count], "") for count in SOUNDS]
    keys += [(form, "#444", _DASHES[form]) for form in FORMS]
    for n, (text, colour, dash) in enumerate(keys):
        y = 20 + 18 * n
        parts.append(
            f'<line x1="{width - 142}" x2="{width - 112}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="2" '
            f'stroke-dasharray="{dash}"/><text x="{width - 106}" y="{y + 4}">{text}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


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
