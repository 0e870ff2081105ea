"""The log's lines, and what systemd is told."""

from __future__ import annotations

import io
import logging
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from veery.errors import Refused
from veery.host import systemd
from veery.host.log import decision, harmless, setup


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, put back afterwards."""
    logger = logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    yield logger
    logger.handlers[:] = handlers
    logger.setLevel(level)


def test_a_decision_is_one_line_of_facts() -> None:
    line = decision("owner.commit", domain="busybox", reason='said "no"', ms=1.50, nothing=None, empty="", path="a=b")
    assert line == r'owner.commit domain=busybox reason="said \"no\"" ms=1.5 empty="" path="a=b"'
    assert "\n" not in decision("x", text="two\nlines")


def test_lines_go_to_the_stream_and_the_last_stay(root: logging.Logger) -> None:
    stream = io.StringIO()
    tail = setup("info", keep=2, stream=stream)
    log = logging.getLogger("veery.some")
    for number in range(3):
        log.info("number %d", number)
    log.debug("not this")
    logging.getLogger("aiohttp.access").info("nor this")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO    veery.some: number 0", lines[0])
    assert tail.text() == "".join(line + "\n" for line in lines[1:])


def test_a_second_setup_replaces_the_first(root: logging.Logger) -> None:
    old, new = io.StringIO(), io.StringIO()
    setup("info", stream=old)
    setup("error", stream=new)
    logging.getLogger("veery").warning("quiet")
    logging.getLogger("veery").error("loud")
    assert old.getvalue() == ""
    assert [line.partition(": ")[2] for line in new.getvalue().splitlines()] == ["loud"]


def test_the_journal_gets_priorities_instead_of_times(root: logging.Logger, tmp_path: Path) -> None:
    with (tmp_path / "journal").open("w+") as stream:
        status = os.fstat(stream.fileno())
        setup("info", stream=stream, environ={"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"})
        try:
            raise ValueError("one\ntwo")
        except ValueError:
            logging.getLogger("veery").exception("broken")
        stream.seek(0)
        lines = stream.read().splitlines()
        assert lines[0] == "<3>veery: broken"
        assert lines[-2:] == ["<3>    ValueError: one", "<3>    two"]


def test_what_strangers_sent_makes_no_line_and_no_escape(root: logging.Logger) -> None:
    stream = io.StringIO()
    tail = setup("info", stream=stream)
    log = logging.getLogger("veery.some")
    forged = "x\n2026-01-01T00:00:00.000Z ERROR   veery.daemon: FORGED\x1b[31m\r\x9b2J\u202e\u2028\ud800\x00"
    log.warning("stranger at %s", forged)
    try:
        raise ValueError(forged)
    except ValueError:
        log.exception("%s", forged)
    for text in (stream.getvalue(), tail.text()):
        lines = text.split("\n")
        assert sum(" veery.some: " in line for line in lines) == 2
        assert all(line.startswith(("20", "    ")) for line in lines[:-1])
        assert not any(line.startswith("2026-01-01T00:00:00") for line in lines)
        assert all(each.isprintable() for line in lines for each in line)
        assert r"\x1b[31m\r\x9b2J\u202e\u2028\ud800\x00" in text
    assert harmless("one\ttwo\n\x1b]0;title\x07") == "one\ttwo\n" + r"\x1b]0;title\x07"


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(Refused, match="unknown level 'loud'") as refused:
        setup("loud")
    assert "warning" in refused.value.hint


@pytest.mark.parametrize("abstract", [True, False])
def test_systemd_is_told(tmp_path: Path, abstract: bool) -> None:
    name = f"@veery-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + name[1:] if abstract else name)
        listener.settimeout(10)
        assert systemd.notify("READY=1", "STATUS=up", environ={"NOTIFY_SOCKET": name})
        assert listener.recv(100) == b"READY=1\nSTATUS=up"


def test_without_systemd_nothing_happens(tmp_path: Path) -> None:
    assert not systemd.notify("READY=1", environ={})
    assert not systemd.notify("READY=1", environ={"NOTIFY_SOCKET": str(tmp_path / "nobody")})
    assert systemd.watchdog_interval({}) == 0
    assert systemd.watchdog_interval({"WATCHDOG_USEC": "3000000"}) == 1.5
    assert systemd.watchdog_interval({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}) == 0
    assert systemd.watchdog_interval({"WATCHDOG_USEC": "soon"}) == 0
