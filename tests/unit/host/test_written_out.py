"""Files that are written out of the page cache again and again."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

import pytest

from veery.host.files import keep_synced


async def test_a_file_that_is_gone_is_told_and_the_others_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    there = tmp_path / "disk.raw"
    there.write_bytes(bytes(4096))
    task = asyncio.create_task(keep_synced([tmp_path / "gone", there], 0.01))
    async with asyncio.timeout(20):
        while len(caplog.records) < 2:  # twice: it went on after the first
            await asyncio.sleep(0.01)
    assert not task.done()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert "No such file" in caplog.text


async def test_devices_that_hang_take_no_thread_from_others(tmp_path: Path) -> None:
    """A pipe that nobody writes to hangs whoever opens it, as a disk without a path does."""
    pipe = tmp_path / "hangs"
    os.mkfifo(pipe)
    many = [asyncio.create_task(keep_synced([pipe], 0.0)) for _ in range(40)]  # more than the loop has threads
    try:
        await asyncio.sleep(0.2)
        async with asyncio.timeout(60):
            assert await asyncio.to_thread(lambda: 42) == 42
            for task in many:
                task.cancel()
            await asyncio.wait(many)
    finally:
        os.close(os.open(pipe, os.O_RDWR | os.O_NONBLOCK))  # lets them go
    assert all(task.cancelled() for task in many)
