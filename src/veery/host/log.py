"""Logging: lines to stderr (which systemd keeps in the journal), the last of them in memory for `veery dmesg`.

Decisions have one grammar, that of logfmt: a verb, then name=value, quoted where it must be:
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
    """One line for one decision: `verb`, then each fact whose value is not None, in the order given."""
    return " ".join([verb, *(f"{key}={_word(value)}" for key, value in facts.items() if value is not None)])


def _word(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)


def quoted(text: str) -> str:
    """`text` on one line, with nothing in it that a terminal obeys: control characters and the like as escapes."""
    return "".join(each if each.isprintable() or each == "\t" else _escape(each) for each in text)


def harmless(text: str) -> str:
    """As `quoted`, line by line."""
    return "\n".join(quoted(line) for line in text.split("\n"))


def _escape(sign: str) -> str:
    return sign.encode("unicode_escape").decode() if not "\ud800" <= sign <= "\udfff" else f"\\u{ord(sign):04x}"


class _Quoting(logging.Formatter):
    """What others sent may be in any message: it makes neither a line of its own nor moves a terminal's cursor. The
    lines of a traceback are indented, so that none of them looks like the beginning of a record."""

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
    """Keeps the last `keep` lines."""

    def __init__(self, keep: int) -> None:
        super().__init__()
        self._lines: collections.deque[str] = collections.deque(maxlen=keep)

    def emit(self, record: logging.LogRecord) -> None:
        """As logging.Handler."""
        self._lines.append(self.format(record))

    def text(self) -> str:
        """The lines, oldest first, each ended by a newline."""
        return "".join(line + "\n" for line in self._lines)


class _Line(_Quoting):
    """UTC time, level, module, message."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03dZ %(levelname)-7s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
        self.converter = time.gmtime


class _Journal(_Quoting):
    """The journal adds time and service; sd-daemon(3)'s "<N>" carries the level."""

    def __init__(self) -> None:
        super().__init__("%(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        priority = f"<{_PRIORITY.get(record.levelno, 6)}>"
        return "\n".join(priority + line for line in super().format(record).split("\n"))


def setup(
    level: str, *, keep: int = 1000, stream: TextIO | None = None, environ: Mapping[str, str] = os.environ
) -> Tail:
    """Send the process's log to `stream` (stderr) and into the Tail returned. Call once, where things are built.

    `level` is one of LEVELS. Raises Refused for another."""
    if level not in LEVELS:
        raise Refused(f"log: no level {level!r}", hint=f"use one of {', '.join(LEVELS)}")
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
    """Whether `out` is the stream that systemd's JOURNAL_STREAM names (systemd.exec(5))."""
    try:
        device, _, inode = environ.get("JOURNAL_STREAM", "").partition(":")
        status = os.fstat(out.fileno())
        return (status.st_dev, status.st_ino) == (int(device), int(inode))
    except (ValueError, OSError):
        return False
