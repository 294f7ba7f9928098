"""Stopping cleanly: the first SIGTERM or Ctrl-C raises a flag, the second one interrupts at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

EXIT_INTERRUPTED = 130


class GracefulStop:
    """Context manager whose ``requested`` turns true when the process is asked to end.

    ::

        with GracefulStop() as stop:
            for step in range(steps):
                train_step()
                if stop.requested:
                    save_checkpoint(...)
                    break

    Inside another one, the request reaches both. Outside of the main thread signals cannot be caught; then
    only :meth:`request` sets the flag.
    """

    def __init__(self) -> None:
        self.requested = False
        self.signal_name = ""
        self._previous: dict[signal.Signals, Any] = {}
        self._outer: GracefulStop | None = None

    def request(self, name: str = "request") -> None:
        """Asks for the stop from the program itself."""
        self.requested = True
        self.signal_name = name
        if self._outer is not None:
            self._outer.request(name)

    def __enter__(self) -> GracefulStop:
        if threading.current_thread() is threading.main_thread():
            for kind in (signal.SIGTERM, signal.SIGINT):
                self._previous[kind] = signal.signal(kind, self._handle)
            owner = getattr(self._previous[signal.SIGTERM], "__self__", None)
            self._outer = owner if isinstance(owner, GracefulStop) else None
        return self

    def __exit__(self, *error: object) -> None:
        for kind, previous in self._previous.items():
            signal.signal(kind, previous)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.request(signal.Signals(number).name)
