"""Ctrl-C while an order is followed."""

from __future__ import annotations

import io
import os
import signal
import threading
import time

import pytest

from veery.cli.interrupt import Interrupt


class Struck(io.RawIOBase):
    """A terminal: the first write to it is met by Ctrl-C while the stream above holds its lock."""

    def __init__(self) -> None:
        self.rows: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        row = bytes(data)  # type: ignore[call-overload]
        if not self.rows:
            self.rows.append(row)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)  # the handler runs now, in the midst of the write
        else:
            self.rows.append(row)
        return len(row)


def test_what_the_first_one_says_may_meet_a_write_of_the_main_thread() -> None:
    terminal, done = Struck(), threading.Event()
    stream = io.TextIOWrapper(io.BufferedWriter(terminal), encoding="utf-8")

    def first() -> None:
        print("cancelling", file=stream, flush=True)
        done.set()

    with Interrupt(first) as interrupt:
        print("40 %", file=stream, flush=True)
        assert done.wait(20)
    assert interrupt.came
    assert b"".join(terminal.rows) == b"40 %\ncancelling\n"


def test_the_second_one_leaves() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), Interrupt(lambda: None):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
    assert signal.getsignal(signal.SIGINT) is before
