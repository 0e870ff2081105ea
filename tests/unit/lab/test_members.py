"""Processes by their mark; the names of what they run."""

import asyncio
import os
import subprocess
import sys

from veery.host.process import Process
from veery.lab.members import Member, kill, marked


def program(*words: str) -> str:
    return Member(Process(1, 1), words).program


def test_program_names() -> None:
    assert program("/usr/bin/qemu-system-x86_64", "-name", "x") == "qemu-system-x86_64"
    assert program("/w/.venv/bin/python", "/w/.venv/bin/veeryd", "--settings", "f") == "veeryd"
    assert program("/usr/bin/python3.11", "-m", "veery.daemon") == "veery.daemon"
    assert program("python3") == "python3"
    assert program() == ""


def test_the_marked_are_found_and_killed_and_no_others() -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    mark = f"{os.getpid()}-members"
    ours = subprocess.Popen(sleep, env={**os.environ, "VEERY_TEST_MARK": mark})
    other = subprocess.Popen(sleep, env={**os.environ, "VEERY_TEST_MARK": mark + "-no"})
    try:
        killed = asyncio.run(kill(lambda: marked("VEERY_TEST_MARK", mark)))
        assert [member.process.pid for member in killed] == [ours.pid]
        assert not killed[0].process.alive()
        assert other.poll() is None
        assert marked("VEERY_TEST_MARK", mark) == ()
    finally:
        for each in (ours, other):
            each.kill()
            each.wait(20)
