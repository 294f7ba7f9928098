"""What a training loop under a guard does when the guard speaks."""

from __future__ import annotations

import logging
from typing import Any

from auralign.algorithms.training import TrainState
from auralign.errors import AuralignError
from auralign.models.separator import SeparatorModel
from auralign.rewards.guard import Reading, Verdict
from auralign.runtime.checkpoint import load_checkpoint
from auralign.runtime.distributed import World
from auralign.runtime.run import Run
from auralign.runtime.tracker import Tracker

log = logging.getLogger(__name__)


def reading(step: int, values: dict[str, float]) -> Reading:
    """What the guard is told of a training step."""
    return Reading(
        step, loss=values["loss"], gradient_norm=values["gradient_norm"], mean_mask=values.get("mask")
    )


def stops(verdict: Verdict | None) -> bool:
    """Whether the guard ends the run."""
    return verdict is not None and verdict.action == "stop"


def go_back(run: Run, state: TrainState[Any], verdict: Verdict, tracker: Tracker | None) -> None:
    """Return to the best weights; the step goes on, so that the same batches do not come again."""
    log.warning("%s", verdict)
    if tracker is not None:
        tracker.log(state.step, {"guard/rollback": 1.0 if verdict.action == "rollback" else 0.0})
    best = run.checkpoints.best()
    if best is None:
        raise AuralignError(
            "the guard stopped the run before anything was saved", where=str(run.path), why=str(verdict)
        )
    state.load_weights(load_checkpoint(best).state)


def export(run: Run, state: TrainState[SeparatorModel], here: World) -> None:
    """Write the averaged weights as a model of the run."""
    if here.is_first:
        state.average.model.save(run.path / "model", {"name": run.path.name, "recipe": run.table()})
