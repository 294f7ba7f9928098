# ruff: noqa: T201
"""What `make demo` runs: two recordings, four ways to ask for a sound, stems, scores and one report.

The recordings are mixed here out of real sounds in examples/recordings, so that the right answers are known and
the results can be scored. A second run finds its stems and only writes the report again.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

SOUNDS = Path(__file__).resolve().parent / "recordings"
RATE_HZ = 44_100
RECORDINGS = {  # name: two sounds at equal power, each with its place between left (0) and right (1)
    "garden": (("birds", 0.25), ("clock", 0.75)),
    "evening": (("guitar", 0.4), ("fireworks", 0.6)),
}
ENCODERS = ("yamnet", "minilm", "efficientnet-lite0")


@dataclass(frozen=True)
class Task:
    """One separation: how it is asked for, in which recording, and which sound is the right answer."""

    name: str
    recording: str
    answer: str
    asked: str
    texts: tuple[str, ...] = ()
    images: tuple[Path, ...] = ()
    audios: tuple[Path, ...] = ()
    exclude: tuple[str, ...] = ()


TASKS = (
    Task("text", "garden", "birds", 'the text "birds singing"', texts=("birds singing",)),
    Task("picture", "evening", "guitar", "a picture of a guitar", images=(SOUNDS / "guitar.png",)),
    Task(
        "example", "evening", "guitar", "another guitar, recorded", audios=(SOUNDS / "guitar-example.flac",)
    ),
    Task(
        "negative",
        "evening",
        "guitar",
        'the text "music", and not "fireworks"',
        texts=("music",),
        exclude=("fireworks",),
    ),
)


def mix(name: str, folder: Path):
    """A stereo recording of two sounds, written as a file, and the sounds as they are in it."""
    import numpy as np

    from auralign.audio.io import AudioWriter, read
    from auralign.audio.mix import equal_power

    names = [sound for sound, _ in RECORDINGS[name]]
    sounds = [read(SOUNDS / f"{sound}.flac", rate_hz=RATE_HZ).samples for sound in names]
    length = min(sound.shape[1] for sound in sounds)
    sounds = equal_power([sound[:, :length] for sound in sounds])
    places = [np.array([[np.sqrt(1 - place)], [np.sqrt(place)]], np.float32) for _, place in RECORDINGS[name]]
    parts = [place * sound for place, sound in zip(places, sounds, strict=True)]
    scale = np.float32(0.7 / np.abs(sum(parts)).max())
    parts = [scale * part for part in parts]
    path = folder / f"{name}.wav"
    with AudioWriter(path, rate_hz=RATE_HZ, channels=2, subtype="PCM_24") as writer:
        writer.write(sum(parts))
    return path, dict(zip(names, parts, strict=True))


def score(stem: Path, answer, mixture: Path) -> float:
    """SI-SDR improvement of a stem over the recording, both channels together, in dB."""
    import torch

    from auralign.audio.io import read
    from auralign.metrics.sdr import si_sdri

    est, whole = (torch.from_numpy(read(path).samples).flatten() for path in (stem, mixture))
    return float(si_sdri(est=est, ref=torch.from_numpy(answer).flatten(), mixture=whole))


def separate(separator, task: Task, recording, out: Path):
    """One task: its stems in a folder, a line of results, and an item for the report."""
    from auralign.audio.sound import Sound
    from auralign.report.page import ReportItem
    from auralign.separation import Query, SeparateOptions

    path, parts = recording
    query = Query(task.texts, task.images, task.audios, task.exclude, name=f"{task.answer} by {task.name}")
    (outcome,) = separator.separate_files([path], [query], SeparateOptions(out=out / task.name))
    if outcome.error is not None:
        raise outcome.error
    target, residual = outcome.outputs
    gained = score(target, parts[task.answer], path)
    presence = outcome.presence[query.stem]
    stems = {
        "mixture": path,
        "separated": target,
        "residual": residual,
        "reference": Sound(parts[task.answer], RATE_HZ),
    }
    item = ReportItem(
        name=f"{task.recording}: {task.asked}",
        stems=stems,
        scores={"separated": {"SI-SDRi dB": round(gained, 1), "presence": round(presence, 2)}},
        note=f"The reference is the {task.answer} as mixed into the recording; the model never sees it.",
    )
    return item, gained, presence, target


def run(out: Path, model: str) -> None:
    """Everything, with a line for each step."""
    from auralign.report.page import write_report
    from auralign.runtime import weights
    from auralign.separation import Separator

    began = time.monotonic()
    for name in ENCODERS:
        weights.path(name)
    separator = Separator.load(model)
    recordings = {name: mix(name, out / "recordings") for name in RECORDINGS}
    for name, (path, parts) in recordings.items():
        print(f"{path}: {' and '.join(parts)}, {name}")
    print()
    items = []
    for task in TASKS:
        item, gained, presence, target = separate(separator, task, recordings[task.recording], out)
        items.append(item)
        print(f"{task.recording:8} by {task.asked}")
        print(f"         SI-SDRi {gained:+.1f} dB, presence {presence:.2f}: {target}")
    intro = "Two recordings, mixed out of real sounds that the model was not trained on; four ways to ask."
    page = write_report(
        out / "report.html", "auralign: the demo", items, intro=intro, details={"model": model}
    )
    print(
        f"\nSounds and report are in {out}, {time.monotonic() - began:.0f} s. Open this in a browser:\n{page}"
    )


def main() -> int:
    """Reads the command line; errors say what to do, like those of the command."""
    from auralign.errors import AuralignError

    parser = argparse.ArgumentParser(description="Separate two recordings and write a report.")
    parser.add_argument(
        "-o", "--out", type=Path, default=Path("demo-out"), help="folder for sounds and report"
    )
    parser.add_argument("--model", default="mars-sep-small", help="name or folder of a model")
    options = parser.parse_args()
    try:
        run(options.out, options.model)
    except AuralignError as error:
        print(f"demo: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
