"""Ctrl-C during an order: the first one cancels the order, the second one leaves without waiting."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Self


class Interrupt:
    """A context in which the first SIGINT calls `first`, and the second one raises KeyboardInterrupt. Main thread only.

    `first` runs in its own thread. A signal handler can interrupt the main thread in the middle of a write to stderr.
    If the handler then wrote to the same stream, Python would raise RuntimeError (io, "reentrant call"). A write from
    another thread waits for its turn."""

    def __init__(self, first: Callable[[], None]) -> None:
        self._first = first
        self._before: Any = None
        self.came = False  # whether the first SIGINT has come

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGINT, self._caught)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _caught(self, _number: int, _frame: FrameType | None) -> None:
        if self.came:
            raise KeyboardInterrupt
        self.came = True
        threading.Thread(target=self._first, name="interrupt", daemon=True).start()
