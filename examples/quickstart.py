# ruff: noqa: T201
"""The ten lines of the README, runnable: take the guitar out of a recording."""

from pathlib import Path

import auralign

mixture = Path(__file__).parent / "recordings" / "guitar.flac"
model = auralign.load("mars-sep-small")  # once, for many files and many queries

out = model.separate(mixture, "guitar")  # a path, a file object or (array, rate_hz)
print(out.target.shape, out.rate_hz, f"presence {out.presence:.2f}")  # target + residual is the recording
print(*out.save("out").values(), sep="\n")

guitar, crowd = model.separate(mixture, "guitar", auralign.Query(texts=("crowd",), exclude=("music",)))
print(f"guitar {guitar.presence:.2f}, crowd {crowd.presence:.2f}")
