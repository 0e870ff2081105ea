"""Files that are written out of the page cache again and again."""

from __future__ import annotations

import asyncio
import contextlib
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
