"""Slow rewards beside the sampling: scored in processes of their own, a bounded number of scenes ahead.

Processes are started afresh (spawn) and load each reward by its name once. A scene is cut between them by rows;
answers come back in order. A reward that fails brings its name and message along; a process that dies (PESQ is C
code) is an error, not a wait for ever; and all of them end when the parent does, however it ends.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import traceback
from collections.abc import Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from auralign.errors import AuralignError, UsageError
from auralign.rewards.base import Reward, Scene
from auralign.rewards.load import CheckedReward, load_reward

_Arrays = dict[str, Any]
_loaded: dict[str, CheckedReward] = {}  # in a worker: the rewards by name


@dataclass(frozen=True)
class _Failure:
    """What went wrong in a worker, as text: an exception of any class may not travel."""

    name: str
    what: str
    where: str


@final
class Pending:
    """Scores on their way."""

    def __init__(self, parts: list[Future[Any]], device: torch.device) -> None:
        self._parts, self._device = parts, device

    def done(self) -> bool:
        """Whether :meth:`result` would answer at once."""
        return all(part.done() for part in self._parts)

    def result(self, timeout_s: float | None = None) -> dict[str, Float[Tensor, "batch group"]]:
        """The scores by name, rows in the scene's order.

        Raises:
            AuralignError: A reward failed, a worker died, or the time is over.
        """
        answers = []
        for part in self._parts:
            try:
                answer = part.result(timeout_s)
            except BrokenProcessPool as error:
                raise AuralignError(
                    "a reward worker died",
                    where="reward workers",
                    why="killed, out of memory, or a crash in a scorer's C code",
                    hint="score in this process (workers = 0) to see which sound it is",
                ) from error
            except TimeoutError as error:
                raise AuralignError(f"no scores after {timeout_s} s", where="reward workers") from error
            if isinstance(answer, _Failure):
                raise AuralignError(answer.what, where=f"reward {answer.name!r}", why=answer.where)
            answers.append(answer)
        return {
            name: torch.from_numpy(np.concatenate([one[name] for one in answers])).to(self._device)
            for name in answers[0]
        }


@final
class RewardWorkers:
    """Processes that score scenes by rewards that no query takes part in.

    A scene's cues stay behind; estimate, mixture, target, interferer, labels and texts go along.

    Args:
        paths: Of each reward, by the name it has in logs: a built-in name or a dotted path.
        workers: Processes.
        waiting: Scenes that may be unfinished; :meth:`submit` waits beyond.
        threads: Threads of torch and of the runtimes in each process.
    """

    def __init__(
        self, paths: Mapping[str, str], *, workers: int = 1, waiting: int = 4, threads: int = 1
    ) -> None:
        if not paths:
            raise UsageError("no reward to score by", where="reward workers")
        for name, value in (("workers", workers), ("waiting", waiting), ("threads", threads)):
            if value < 1:
                raise UsageError(f"{name} is {value}; it must be at least 1", where="reward workers")
        self.paths, self.workers = dict(paths), workers
        self._room = threading.BoundedSemaphore(waiting)
        self._pool = ProcessPoolExecutor(
            workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_begin,
            initargs=(threads,),
        )

    def submit(self, scene: Scene) -> Pending:
        """Begin to score a scene; waits while too many are unfinished."""
        self._room.acquire()
        cuts = np.array_split(np.arange(len(scene.estimate)), min(self.workers, len(scene.estimate)))
        left = [len(cuts)]
        lock = threading.Lock()

        def finished(_: Future[Any]) -> None:
            with lock:
                left[0] -= 1
                over = left[0] == 0
            if over:
                self._room.release()

        parts = []
        try:
            for rows in cuts:
                part = self._pool.submit(_score, self.paths, _pack(scene, slice(rows[0], rows[-1] + 1)))
                parts.append(part)
        except (BrokenProcessPool, RuntimeError) as error:
            self._room.release()
            raise AuralignError(
                "the reward workers are gone", where="reward workers", why=str(error)
            ) from error
        for part in parts:
            part.add_done_callback(finished)
        return Pending(parts, scene.estimate.device)

    def reward(self, name: str) -> Reward:
        """One of the rewards as a reward that waits for its answer."""
        if name not in self.paths:
            raise UsageError(f"no reward {name!r} here", where="reward workers", hint=", ".join(self.paths))

        def scored(scene: Scene) -> Float[Tensor, "batch group"]:
            return self.submit(scene).result()[name]

        return scored

    def close(self) -> None:
        """End the processes; what has not begun is dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> RewardWorkers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _pack(scene: Scene, rows: slice) -> _Arrays:
    """Some rows of a scene as plain arrays."""
    sounds = {"estimate": scene.estimate, "mixture": scene.mixture}
    sounds |= {"target": scene.target} if scene.target is not None else {}
    sounds |= {"interferer": scene.interferer} if scene.interferer is not None else {}
    packed: _Arrays = {name: wave.detach().float().cpu().numpy()[rows] for name, wave in sounds.items()}
    return packed | {"rate_hz": scene.rate_hz, "labels": scene.labels[rows], "texts": scene.texts[rows]}


def _unpack(packed: _Arrays) -> Scene:
    unpacked: dict[str, Any] = {
        name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for name, value in packed.items()
    }
    return Scene(**unpacked)


def _begin(threads: int) -> None:
    """First thing in a worker: its share of the cores, and an end when the parent's comes."""
    torch.set_num_threads(threads)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def _score(paths: dict[str, str], packed: _Arrays) -> dict[str, np.ndarray] | _Failure:
    """Scores of some rows by all rewards; what is raised comes back as text with the reward's name."""
    scene = _unpack(packed)
    scores = {}
    for name, path in paths.items():
        try:
            if path not in _loaded:
                _loaded[path] = CheckedReward(load_reward(path), name)
            scores[name] = _loaded[path](scene).numpy()
        except Exception as error:
            said = error.what if isinstance(error, AuralignError) else f"{type(error).__name__}: {error}"
            why = getattr(error, "why", "") or traceback.format_exception_only(error)[-1].strip()
            return _Failure(name, said, why)
    return scores
