"""The folder of a training run, in which every part stands on its own.

``config.toml env.json metrics.jsonl checkpoints/ samples/ report.html``. Deleting any one of them takes away
what it held and nothing else; each checkpoint carries a copy of the configuration.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from auralign.errors import DataError, UsageError
from auralign.runtime import config as configuration
from auralign.runtime.checkpoint import CheckpointStore, read_meta
from auralign.runtime.environment import snapshot
from auralign.runtime.tracker import Tracker, read_metrics

Config = TypeVar("Config")
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Run:
    """A run's folder.

    Attributes:
        path: The folder.
        keep_last: How many checkpoints stay beside the best one.
    """

    path: Path
    keep_last: int = 2

    @classmethod
    def create(
        cls, root: str | Path, cfg: Any, name: str, *, algorithm: str = "", folder: str | Path | None = None
    ) -> Run:
        """Makes ``root/NAME-001`` (or the next free number), or exactly ``folder`` if given.

        Args:
            root: Where runs are kept, usually ``runs``.
            cfg: The configuration with all overrides.
            name: The recipe's name.
            algorithm: Module of ``auralign.algorithms`` that ``resume`` will call.
            folder: Exact place instead; it must not hold a run yet.
        """
        path = Path(folder) if folder is not None else _next_free(Path(root), name)
        if (path / "config.toml").exists() or (path / "checkpoints").exists():
            raise UsageError(
                "the folder already holds a run",
                where=str(path),
                hint=f"continue it with: auralign resume {path}",
            )
        path.mkdir(parents=True, exist_ok=True)
        (path / "config.toml").write_text(configuration.dump(cfg, algorithm=algorithm), encoding="utf-8")
        (path / "env.json").write_text(json.dumps(snapshot(), indent=2) + "\n", encoding="utf-8")
        return cls(path)

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Opens an existing run.

        Raises:
            UsageError: The folder does not exist or holds neither configuration nor checkpoints.
        """
        run = cls(Path(path))
        if not run.path.is_dir():
            raise UsageError("no such run folder", where=str(path), hint="see the folders under runs/")
        if not run.config_path.exists() and run.checkpoints.latest() is None:
            why = "it has neither config.toml nor checkpoints/"
            raise UsageError("the folder holds no run", where=str(path), why=why)
        return run

    @property
    def config_path(self) -> Path:
        """The configuration with all overrides applied."""
        return self.path / "config.toml"

    @property
    def report_path(self) -> Path:
        """The run's page."""
        return self.path / "report.html"

    @property
    def samples_path(self) -> Path:
        """Sounds written during training, one folder per step."""
        return self.path / "samples"

    @property
    def checkpoints(self) -> CheckpointStore:
        """The run's checkpoints; each new one carries the configuration's text."""
        common = {}
        if self.config_path.exists():
            common["config_toml"] = self.config_path.read_text(encoding="utf-8")
        return CheckpointStore(self.path / "checkpoints", keep_last=self.keep_last, common_meta=common)

    def tracker(self, *, also: Iterable[str] = (), resumed_step: int | None = None) -> Tracker:
        """Opens ``metrics.jsonl`` for appending, see :class:`~auralign.runtime.tracker.Tracker`."""
        return Tracker(self.path, also=also, resumed_step=resumed_step, config=self.table())

    def table(self) -> dict[str, Any]:
        """The configuration as plain values, from ``config.toml`` or else from the newest checkpoint."""
        if self.config_path.exists():
            return configuration.read_table(self.config_path)
        newest = self.checkpoints.latest()
        text = read_meta(newest).get("config_toml") if newest is not None else None
        if text is None:
            raise DataError(
                "the run's configuration is gone",
                where=str(self.config_path),
                why="no checkpoint holds a copy",
                hint="put the recipe back under this name",
            )
        log.warning("%s is gone; using the copy in %s", self.config_path, newest)
        return configuration.parse(text, str(newest))

    def config(self, cls: type[Config]) -> Config:
        """The configuration as ``cls``."""
        return configuration.from_dict(self.table(), cls, source=str(self.config_path))

    def algorithm(self) -> str:
        """Which module of ``auralign.algorithms`` trains this run."""
        name = self.table().get(configuration.ALGORITHM_KEY)
        if not isinstance(name, str):
            raise DataError("the run does not say its algorithm", where=str(self.config_path))
        return name

    def metrics(self) -> list[dict[str, Any]]:
        """The records so far; empty when ``metrics.jsonl`` is gone."""
        path = self.path / "metrics.jsonl"
        return read_metrics(path) if path.exists() else []


def _next_free(root: Path, name: str) -> Path:
    """The first unused ``root/NAME-001``; made at once, so that two runs never get the same."""
    slug = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "run"
    root.mkdir(parents=True, exist_ok=True)
    for number in range(1, 10_000):
        path = root / f"{slug}-{number:03d}"
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise UsageError(f"there are 9,999 runs called {slug!r}", where=str(root), hint="remove old ones")
