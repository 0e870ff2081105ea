"""Logging: lines to stderr (systemd keeps them in the journal), and the last lines in memory for `veery dmesg`.

Decisions have one grammar, that of logfmt: a verb, then name=value, quoted if needed:
    owner.commit domain=busybox from=test1 to=test2 revision=118"""

from __future__ import annotations

import collections
import json
import logging
import os
import re
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from veery.errors import Refused

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_PLAIN = re.compile(r"[^\s\"=]+")
_PRIORITY = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


def decision(verb: str, **facts: object) -> str:
    """Return one line for one decision: `verb`, then each fact whose value is not None, in the given order."""
    return " ".join([verb, *(f"{key}={_word(value)}" for key, value in facts.items() if value is not None)])


def _word(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)


def quoted(text: str) -> str:
    """Return `text` on one line, with control characters and the like as escapes, so that no terminal obeys them."""
    return "".join(each if each.isprintable() or each == "\t" else _escape(each) for each in text)


def harmless(text: str) -> str:
    """Return `text` with each line `quoted`."""
    return "\n".join(quoted(line) for line in text.split("\n"))


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode() if not "\ud800" <= char <= "\udfff" else f"\\u{ord(char):04x}"


class _Quoting(logging.Formatter):
    """A formatter that escapes messages, which may contain text from others: it must neither add lines nor control a
    terminal. It indents the lines of a traceback, so that none of them looks like the start of a record."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        record.message = quoted(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802 (logging's name)
        return self._indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802 (logging's name)
        return self._indented(super().formatStack(stack_info))

    @staticmethod
    def _indented(text: str) -> str:
        return "\n".join(f"    {quoted(line)}" for line in text.split("\n"))


class Tail(logging.Handler):
    """A handler that keeps the last `keep` lines."""

    def __init__(self, keep: int) -> None:
        super().__init__()
        self._lines: collections.deque[str] = collections.deque(maxlen=keep)

    def emit(self, record: logging.LogRecord) -> None:
        """Implement logging.Handler.emit."""
        self._lines.append(self.format(record))

    def text(self) -> str:
        """Return the lines, oldest first, each ended by a newline."""
        return "".join(line + "\n" for line in self._lines)


class _Line(_Quoting):
    """The format with UTC time, level, module and message."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03dZ %(levelname)-7s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
        self.converter = time.gmtime


class _Journal(_Quoting):
    """The format for the journal, which adds time and service; sd-daemon(3)'s "<N>" is the level."""

    def __init__(self) -> None:
        super().__init__("%(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        priority = f"<{_PRIORITY.get(record.levelno, 6)}>"
        return "\n".join(priority + line for line in super().format(record).split("\n"))


def setup(
    level: str, *, keep: int = 1000, stream: TextIO | None = None, environ: Mapping[str, str] = os.environ
) -> Tail:
    """Send the process's log to `stream` (stderr) and into the returned Tail. Call it once, at the program's start.

    `level` is one of LEVELS. Raises Refused for another."""
    if level not in LEVELS:
        raise Refused(f"log: unknown level {level!r}", hint=f"use one of {', '.join(LEVELS)}")
    out = stream or sys.stderr
    lines = logging.StreamHandler(out)
    lines.setFormatter(_Journal() if _is_journal(out, environ) else _Line())
    tail = Tail(keep)
    tail.setFormatter(_Line())
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(lines)
    root.addHandler(tail)
    root.setLevel(LEVELS[level])
    for noisy in ("aiohttp.access", "qemu.qmp", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return tail


def _is_journal(out: TextIO, environ: Mapping[str, str]) -> bool:
    """Return whether `out` is the stream in systemd's JOURNAL_STREAM (systemd.exec(5))."""
    try:
        device, _, inode = environ.get("JOURNAL_STREAM", "").partition(":")
        status = os.fstat(out.fileno())
        return (status.st_dev, status.st_ino) == (int(device), int(inode))
    except (ValueError, OSError):
        return False
