"""MARS-Sep's choices one at a time, at small scale: same start, batches, steps and seed; only the named keys differ.

    python benchmarks/mars_sep_ablations.py --corpus corpora/soundbox -o runs/ablations

Every arm is a run of recipes/mars_sep_small.toml with other values, an ordinary run folder that can be resumed. All
are scored on the same validation mixtures (never the test lists), source by source, and compared with the supervised
control by a paired bootstrap. Writes `table.md`, `figure.svg` and `scores.json`; finished arms are not trained again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

RECIPE = Path(__file__).parent.parent / "recipes" / "mars_sep_small.toml"
CONTROL = "control"
NO_PAIRS = ("policy.explore.pairing=independent",)
E2 = ("policy.inner_epochs=2",)
ARMS: dict[str, tuple[str, ...]] = {
    "control": ("policy.weight=0", "rewards=[]"),
    "default": (),
    "only the semantic reward": ('rewards=[{path="semantic"}]',),
    "only the fidelity reward": ('rewards=[{path="fidelity"}]',),
    "published form (G = 1, bins, batch baseline, entropy 0.1)": (
        "policy.group=1",
        "policy.advantage=published",
        "policy.explore.form=bin",
        "policy.explore.emphasis=0",
        "policy.coefficients.entropy=0.1",
        *NO_PAIRS,
    ),
    "published form, no anchor": (
        "policy.group=1",
        "policy.advantage=published",
        "policy.explore.form=bin",
        "policy.explore.emphasis=0",
        "policy.coefficients.entropy=0.1",
        "anchor=0",
        *NO_PAIRS,
    ),
    "no anchor": ("anchor=0",),
    "only semantic, no anchor": ('rewards=[{path="semantic"}]', "anchor=0"),
    "only an untuned tagger": ('rewards=[{path="benchmarks.untuned_reward.untuned"}]',),
    "only an untuned tagger, no anchor": (
        'rewards=[{path="benchmarks.untuned_reward.untuned"}]',
        "anchor=0",
    ),
    "exploration by bins": ("policy.explore.form=bin",),
    "tiles of 8": ("policy.explore.tile=[8,8]",),
    "tiles of 32": ("policy.explore.tile=[32,32]",),
    "independent masks": NO_PAIRS,
    "no emphasis": ("policy.explore.emphasis=0",),
    "kappa 5": ("policy.kappa=[5.0]",),
    "kappa 20": ("policy.kappa=[20.0]",),
    "kappa 5 to 9 to 20": ("policy.kappa=[5.0,9.0,20.0]",),
    "G = 2": ("policy.group=2", *NO_PAIRS),
    "G = 8": ("policy.group=8",),
    "two inner epochs, mean_log": E2,
    "two inner epochs, joint": ("policy.ratio=joint", *E2),
    "two inner epochs, per_bin": ("policy.ratio=per_bin", *E2),
    "two inner epochs, joint, clip 0.05": ("policy.ratio=joint", "policy.clip=0.05", *E2),
    "entropy 0": ("policy.coefficients.entropy=0",),
    "entropy 0.1": ("policy.coefficients.entropy=0.1",),
    "entropy 1": ("policy.coefficients.entropy=1.0",),
    "KL to the old policy 1, two inner epochs": ("policy.coefficients.kl_old=1.0", *E2),
    "KL to the start 0.1": ("policy.coefficients.kl_reference=0.1",),
    "pathwise gradient": ("policy.gradient=pathwise", "policy.group=1", "policy.advantage=group"),
    "residual separated again": ("policy.refine=true",),
}
"""Name of each arm and what it changes."""


def encoder_arms(folder: Path) -> dict[str, tuple[str, ...]]:
    """One arm for each reward encoder in a folder of them, semantic reward only."""
    found = (
        sorted(p for p in folder.iterdir() if (p / "model.safetensors").exists()) if folder.is_dir() else []
    )
    return {f"only semantic, encoder {p.name}": (f'rewards=[{{path="semantic:{p}"}}]',) for p in found}


def train(name: str, changes: tuple[str, ...], options: argparse.Namespace) -> Path:
    """The arm's run folder, trained if it is not."""
    run: Path = options.out / name.replace(" ", "-").replace("/", "-")
    model = run / "model"
    if model.exists():
        return model
    base = [f"corpus={options.corpus}", f"steps={options.steps}", f"validate_every={options.steps}"]
    base += [
        f"batch={options.batch}",
        f"seed={options.seed}",
        "guard.action=stop",
        "guard.fall_db=100",
        "judge=false",
    ]
    sets = [part for change in (*base, *changes) for part in ("--set", change)]
    command = [sys.executable, "-m", "auralign"]
    command += ["resume", str(run)] if (run / "config.toml").exists() else ["train", str(RECIPE), *sets]
    command += [] if (run / "config.toml").exists() else ["--out", str(run)]
    with (options.out / f"{run.name}.log").open("w", encoding="utf-8") as log:
        subprocess.run(command, stdout=log, stderr=log, check=False, cwd=RECIPE.parent.parent)
    return model


def validation(run: Path) -> dict[str, float]:
    """The last validation of a run."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    seen = [row for row in rows if "val/si_sdri" in row]
    return {name.removeprefix("val/"): value for name, value in (seen[-1] if seen else {}).items()}


def improvements(model: Path, corpus: Path, batches: int) -> np.ndarray:
    """SI-SDRi of every source of fixed validation mixtures, in dB."""
    from auralign.algorithms.training import load_corpus, validation_improvements
    from auralign.data.mixer import MixConfig
    from auralign.models.separator import SeparatorModel
    from auralign.runtime import weights

    separator = SeparatorModel.load(weights.path(str(model)))
    found = validation_improvements(separator, load_corpus(corpus, MixConfig()), 0, batches=batches)
    return found.numpy()


def score(names: list[str], models: dict[str, Path], options: argparse.Namespace) -> list[dict[str, object]]:
    """One row an arm: mean, difference to the control with its interval, rewards, judge."""
    from auralign.metrics.statistics import paired_bootstrap

    control = improvements(models[CONTROL], options.corpus, options.batches)
    rows: list[dict[str, object]] = []
    for name in names:
        if not (models[name] / "model.safetensors").exists():
            rows.append({"arm": name, "failed": True})
            continue
        values = improvements(models[name], options.corpus, options.batches)
        difference = paired_bootstrap(values, control)
        last = validation(models[name].parent)
        rows.append(
            {
                "arm": name,
                "n": int(np.isfinite(values).sum()),
                "si_sdri": float(np.nanmean(values)),
                "difference": difference.mean,
                "low": difference.ci_low,
                "high": difference.ci_high,
                "win_rate": float((values > 0).mean()),
                **{key: last.get(key) for key in ("judge", "reward/semantic", "reward/fidelity", "mask")},
            }
        )
    return rows


def table(rows: list[dict[str, object]]) -> str:
    """Markdown."""
    head = "| arm | SI-SDRi, dB | against the control (95 %) | win rate | judge | semantic | fidelity | mean mask |\n"
    head += "|---|---:|---:|---:|---:|---:|---:|---:|\n"
    lines = []
    for row in rows:
        if row.get("failed"):
            lines.append(f"| {row['arm']} | stopped | | | | | | |")
            continue
        shown = [
            "" if row[key] is None else f"{row[key]:.3f}"
            for key in ("judge", "reward/semantic", "reward/fidelity", "mask")
        ]
        gap = f"{row['difference']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"
        lines.append(
            f"| {row['arm']} | {row['si_sdri']:.2f} | {gap} | {100 * float(str(row['win_rate'])):.1f} % | "
            + " | ".join(shown)
            + " |"
        )
    return head + "\n".join(lines) + "\n"


def figure(rows: list[dict[str, object]]) -> str:
    """Differences to the control with their intervals, as SVG."""
    kept = [row for row in rows if not row.get("failed") and row["arm"] != CONTROL]
    reach = max(0.1, *(max(abs(float(str(row["low"]))), abs(float(str(row["high"])))) for row in kept))
    height, left, width = 18 * len(kept) + 40, 330, 760

    def x(value: float) -> float:
        return left + (value + reach) / (2 * reach) * (width - left - 20)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="11"><rect width="100%" height="100%" fill="white"/>',
        f'<line x1="{x(0):.1f}" x2="{x(0):.1f}" y1="8" y2="{height - 28}" stroke="#999"/>',
    ]
    for n, row in enumerate(kept):
        y = 18 * n + 18
        low, mid, high = (x(float(str(row[key]))) for key in ("low", "difference", "high"))
        parts.append(f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{row["arm"]}</text>')
        parts.append(
            f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}" stroke="#357" stroke-width="2"/>'
        )
        parts.append(f'<circle cx="{mid:.1f}" cy="{y}" r="3.5" fill="#357"/>')
    for value in np.linspace(-reach, reach, 5):
        parts.append(f'<text x="{x(value):.1f}" y="{height - 12}" text-anchor="middle">{value:+.2f}</text>')
    parts.append(
        f'<text x="{x(0):.1f}" y="{height - 1}" text-anchor="middle">dB against the control</text></svg>'
    )
    return "".join(parts)


def main() -> None:
    """Train what is missing, score everything."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, default=Path("corpora/soundbox"))
    parser.add_argument("-o", "--out", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batches", type=int, default=12, help="of 16 validation mixtures each")
    parser.add_argument("--workers", type=int, default=2, help="runs side by side")
    parser.add_argument(
        "--encoders", type=Path, default=Path("runs/encoders"), help="folder of other reward encoders"
    )
    parser.add_argument("--arm", action="append", help="only these, and the control")
    options = parser.parse_args()
    options.out, options.corpus = options.out.resolve(), options.corpus.resolve()
    options.encoders = options.encoders.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    arms = ARMS | encoder_arms(options.encoders)
    names = [name for name in arms if not options.arm or name in (CONTROL, *options.arm)]
    with ThreadPoolExecutor(options.workers) as pool:
        made = list(pool.map(lambda name: train(name, arms[name], options), names))
    rows = score(names, dict(zip(names, made, strict=True)), options)
    (options.out / "scores.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    (options.out / "table.md").write_text(table(rows), encoding="utf-8")
    (options.out / "figure.svg").write_text(figure(rows), encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
