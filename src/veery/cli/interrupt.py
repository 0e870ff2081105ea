"""Ctrl-C while an order is followed: the first one asks for its end, the second one leaves."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Self


class Interrupt:
    """A context in which the first SIGINT calls `first`, and a second one raises KeyboardInterrupt. Main thread only.

    `first` runs in a thread of its own. A signal handler interrupts the main thread anywhere, also in the middle of a
    write to stderr; a write to the same stream from the handler would raise RuntimeError (Python io, "reentrant
    call"). From another thread it waits for its turn."""

    def __init__(self, first: Callable[[], None]) -> None:
        self._first = first
        self._before: Any = None
        self.came = False  # whether the first one has come

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
