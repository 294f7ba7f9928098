"""Go on with a run where it stopped, bit for bit as if it had never stopped."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tyro.conf import Positional

from auralign.cli.terminal import say, show_log
from auralign.cli.train import algorithm_module, train


@dataclasses.dataclass(frozen=True)
class Options:
    """The run to continue."""

    run: Positional[Path]
    """The run's folder, for example runs/omnisep_small-001."""


def run(options: Options) -> int:
    """Continues the run from its newest checkpoint, or from the start when it has none yet."""
    from auralign.runtime.distributed import world
    from auralign.runtime.run import Run

    show_log()
    opened = Run.open(options.run)
    algorithm = algorithm_module(opened.algorithm(), where=str(opened.config_path))
    steps = opened.checkpoints.steps()
    say(f"from step {steps[-1]}" if steps else "from the start: there is no checkpoint yet")
    with world():
        return train(algorithm, opened.config(algorithm.Config), opened)
