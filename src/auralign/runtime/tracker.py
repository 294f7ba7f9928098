"""What happened during a run: ``metrics.jsonl`` always, TensorBoard, wandb or trackio when asked for.

One record a line: ``{"step": 120, "elapsed_s": 34.2, "loss": 0.41}``. A value that is not finite is
written as ``null`` (JSON has no nan). Sounds are FLAC files under ``samples/step_N/`` at their own rate;
one that exceeds full scale is turned down to fit, and the record says by how much.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import soundfile
from jaxtyping import Float

from auralign.errors import UsageError

Scalar = float | int | str | bool | None
_PEAK_LIMIT = 1.0 - 2.0**-15


@runtime_checkable
class Adapter(Protocol):
    """Another place that gets the same numbers and sounds."""

    def log(self, step: int, values: Mapping[str, Scalar]) -> None:
        """Numbers of one step."""

    def sound(self, step: int, name: str, samples: Float[np.ndarray, "channel time"], rate_hz: int) -> None:
        """One sound within full scale."""

    def close(self) -> None:
        """Nothing more will come."""


class Tracker:
    """Writes a run's records; use it as a context manager.

    Args:
        folder: The run's folder.
        also: Names of adapters: ``tensorboard``, ``wandb``, ``trackio``.
        resumed_step: When a run goes on from a checkpoint, records of later steps are cut off first.
        config: Plain values that adapters show beside the run.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        also: Iterable[str] = (),
        resumed_step: int | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.path = self.folder / "metrics.jsonl"
        self.folder.mkdir(parents=True, exist_ok=True)
        before_s = _cut_after(self.path, resumed_step) if resumed_step is not None else 0.0
        self._adapters = [open_adapter(name, self.folder, config or {}) for name in also]
        self._file = self.path.open("a", encoding="utf-8")
        self._start_s = time.monotonic() - before_s

    def log(self, step: int, values: Mapping[str, Scalar]) -> None:
        """Appends one record and flushes it, so that a crash loses nothing that was logged."""
        record: dict[str, Scalar] = {"step": step, "elapsed_s": round(time.monotonic() - self._start_s, 3)}
        record |= {key: _finite(value) for key, value in values.items()}
        self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._file.flush()
        for adapter in self._adapters:
            adapter.log(step, values)

    def sound(self, step: int, name: str, samples: Float[np.ndarray, "channel time"], rate_hz: int) -> Path:
        """Writes ``samples/step_N/NAME.flac`` (24 bit) and returns its path."""
        path = self.folder / "samples" / f"step_{step:09d}" / f"{name}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        peak = float(np.max(np.abs(samples), initial=0.0))
        if not math.isfinite(peak):
            raise ValueError(f"the sound {name!r} of step {step} holds values that are not finite")
        gain = min(1.0, _PEAK_LIMIT / peak) if peak > 0 else 1.0
        fitted = np.asarray(samples * gain, dtype=np.float32)
        temporary = path.with_suffix(".tmp")
        soundfile.write(temporary, fitted.T, rate_hz, format="FLAC", subtype="PCM_24")
        os.replace(temporary, path)
        if gain < 1.0:
            self.log(step, {f"sound/{name}/gain_db": 20.0 * math.log10(gain)})
        for adapter in self._adapters:
            adapter.sound(step, name, fitted, rate_hz)
        return path

    def close(self) -> None:
        """Closes the file and the adapters."""
        self._file.close()
        for adapter in self._adapters:
            adapter.close()

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """All records of a ``metrics.jsonl``; a last line that was cut by a crash is left out."""
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            if line.strip():
                records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number != len(lines):
                raise UsageError(f"line {number} is not JSON", where=str(path), why=str(error)) from error
    return records


def _cut_after(path: Path, step: int) -> float:
    """Drops records after ``step`` and returns the seconds that the run had then been going."""
    if not path.exists():
        return 0.0
    kept = [record for record in read_metrics(path) if record["step"] <= step]
    temporary = path.with_suffix(".tmp")
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept)
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
    return max((float(record["elapsed_s"]) for record in kept), default=0.0)


def _finite(value: Scalar) -> Scalar:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def open_adapter(name: str, folder: Path, config: Mapping[str, Any]) -> Adapter:
    """Opens one of the optional trackers.

    Raises:
        UsageError: It is unknown or not installed.
    """
    adapters: dict[str, type[TensorBoard] | type[WandbLike]] = {
        "tensorboard": TensorBoard,
        "wandb": WandbLike,
        "trackio": WandbLike,
    }
    if name not in adapters:
        raise UsageError(f"unknown tracker {name!r}", hint=f"choose from {', '.join(sorted(adapters))}")
    try:
        module = importlib.import_module("torch.utils.tensorboard" if name == "tensorboard" else name)
    except ImportError as error:
        raise UsageError(
            f"the tracker {name!r} is not installed", why=str(error), hint=f"pip install {name}"
        ) from error
    return adapters[name](module, folder, config)


class TensorBoard:
    """Event files under ``tensorboard/``; sounds as mono, because its plugin plays only that."""

    def __init__(self, module: Any, folder: Path, config: Mapping[str, Any]) -> None:
        self._writer = module.SummaryWriter(log_dir=str(folder / "tensorboard"))
        self._writer.add_text("config", json.dumps(dict(config), default=str))

    def log(self, step: int, values: Mapping[str, Scalar]) -> None:
        """Scalars; texts are left to ``metrics.jsonl``."""
        for key, value in values.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(key, value, global_step=step)

    def sound(self, step: int, name: str, samples: Float[np.ndarray, "channel time"], rate_hz: int) -> None:
        """The channels' mean, at its own rate."""
        self._writer.add_audio(name, samples.mean(axis=0), global_step=step, sample_rate=rate_hz)

    def close(self) -> None:
        """Closes the event file."""
        self._writer.close()


class WandbLike:
    """Weights & Biases or trackio, which share their calls; sounds go in as ``(time, channel)``."""

    def __init__(self, module: Any, folder: Path, config: Mapping[str, Any]) -> None:
        self._module = module
        self._run = module.init(project="auralign", name=folder.name, config=dict(config))

    def log(self, step: int, values: Mapping[str, Scalar]) -> None:
        """The values as they are."""
        self._run.log(dict(values), step=step)

    def sound(self, step: int, name: str, samples: Float[np.ndarray, "channel time"], rate_hz: int) -> None:
        """Clipped at full scale as 16 bit, time first."""
        pcm = np.round(np.clip(samples.T, -1.0, 1.0) * 32767.0).astype(np.int16)
        audio = self._module.Audio(pcm, sample_rate=rate_hz)
        self._run.log({f"sound/{name}": audio}, step=step)

    def close(self) -> None:
        """Ends the run there."""
        self._run.finish()
